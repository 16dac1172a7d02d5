package splice

import (
	"cmp"
	"errors"
	"fmt"
	"net/netip"
	"strconv"
	"syscall"

	"github.com/fivetuple/fivetuple/internal/poll"
	"github.com/fivetuple/fivetuple/internal/proxyheader"
	"github.com/fivetuple/fivetuple/relay/upstream"
	"github.com/fivetuple/fivetuple/secure"
)

// maxPrelude bounds what a client may say before it is known where it goes: a
// header or a greeting.
const maxPrelude = 16 << 10

// begin sees to a new client.
func (l *loop) begin(p *pair, proxied bool) {
	if proxied {
		p.state = introducing
		p.ends = l.now + int64(cmp.Or(l.server.HeaderTimeout, DefaultHeaderTimeout))
		l.arm(p)
		return
	}
	l.noteAccept(p)
	l.receive(p)
}

// receive finds out where a client goes who is known.
func (l *loop) receive(p *pair) {
	l.needSetup(p)
	if !p.route.named() {
		l.choose(p, p.route.Pool)
		return
	}
	p.state = greeting
	p.ends = l.now + int64(p.route.HelloTimeout)
	l.arm(p)
	if len(p.setup.said) > 0 {
		l.heard(p)
	}
}

// listen reads what a client or its proxy says first.
func (l *loop) listen(p *pair) {
	x := &p.flows[client]
	for (p.state == introducing || p.state == greeting) && x.is(readable) {
		l.needSetup(p)
		n, errno := poll.Read(int(p.fd[client]), l.buf[:maxPrelude-len(p.setup.said)])
		switch {
		case errno == syscall.EAGAIN:
			x.flags &^= readable
			return
		case errno != 0:
			l.reset(p, causeOf(client, errno), l.failure(p, client, errno))
			return
		case n == 0:
			x.flags |= eof
			l.heardEnd(p)
			return
		}
		p.active = l.now
		p.setup.said = append(p.setup.said, l.buf[:n]...)
		l.heard(p)
	}
}

// heard looks at what was said so far.
func (l *loop) heard(p *pair) {
	if p.state == introducing {
		h, n, err := proxyheader.Parse(p.setup.said)
		switch {
		case err == nil:
			l.introduce(p, h, n)
		case !errors.Is(err, proxyheader.ErrShort) || len(p.setup.said) == maxPrelude:
			l.refuse(p, causeNoHeader, fmt.Errorf("refused: not a PROXY header, which the source must send as it is one of the proxies: %w; got %s", err, quote(p.setup.said)))
		}
		return
	}
	name, err := secure.ServerName(p.setup.said)
	if errors.Is(err, secure.ErrShort) && len(p.setup.said) < maxPrelude {
		return
	}
	if err != nil {
		name = ""
	}
	if name = p.route.Names.Match(name); name != "" {
		p.extras().name = name
	}
	l.choose(p, p.route.poolNamed(name))
}

// introduce takes on the client that a proxy has named.
func (l *loop) introduce(p *pair, h proxyheader.Header, size int) {
	proxy := p.remote
	if !h.Local && h.Client.IsValid() {
		p.remote = netip.AddrPortFrom(h.Client.Addr().Unmap(), h.Client.Port())
		e := p.extras()
		e.proxy, e.destination = proxy, h.Destination
	}
	p.setup.said = p.setup.said[:copy(p.setup.said, p.setup.said[size:])]
	if err := l.server.gate.Admit(p.remote); err != nil {
		l.refuse(p, causeRefused, fmt.Errorf("refused: %w", err))
		return
	}
	p.flags |= counted
	l.noteAccept(p)
	l.receive(p)
}

// heardEnd sees to a client that ended its side before it said what was awaited.
// What it said may be all that there is, in another protocol.
func (l *loop) heardEnd(p *pair) {
	switch {
	case len(p.setup.said) == 0: // somebody looked whether the port is open
		l.close(p, causeClosed, nil)
	case p.state == introducing:
		l.refuse(p, causeNoHeader, fmt.Errorf("refused: no PROXY header, which the source must send as it is one of the proxies; got %s", quote(p.setup.said)))
	default:
		l.choose(p, p.route.Pool)
	}
}

// heardNothing sees to a client that did not say what was awaited in time. It may
// be one that waits for the server to speak first.
func (l *loop) heardNothing(p *pair) {
	l.needSetup(p)
	if p.state == introducing {
		l.refuse(p, causeNoHeader, fmt.Errorf("refused: no PROXY header within %v, as the source is one of the proxies; got %s",
			cmp.Or(l.server.HeaderTimeout, DefaultHeaderTimeout), quote(p.setup.said)))
		return
	}
	if p.route.Pool == nil {
		l.refuse(p, causeNoGreeting, fmt.Errorf("refused: no TLS greeting within %v, and there is no target for others; got %s", p.route.HelloTimeout, quote(p.setup.said)))
		return
	}
	l.choose(p, p.route.Pool)
}

// refuse resets a client and says why.
func (l *loop) refuse(p *pair, why cause, err error) {
	l.noteError(p, err)
	l.reset(p, why, err)
}

// choose begins to connect to one of a pool.
func (l *loop) choose(p *pair, pool *upstream.Pool) {
	if pool == nil {
		l.refuse(p, causeNoTarget, fmt.Errorf("refused: no target for the server name of %s", quote(p.setup.said)))
		return
	}
	p.state = connecting
	p.setup.pool, p.setup.choice, p.setup.failures = pool, pool.Choose(p.remote.Addr()), p.setup.failures[:0]
	l.next(p)
}

// quote shows the beginning of what a peer sent.
func quote(b []byte) string {
	const shown = 32
	if len(b) == 0 {
		return "nothing"
	}
	if len(b) > shown {
		return strconv.Quote(string(b[:shown])) + "..."
	}
	return strconv.Quote(string(b))
}

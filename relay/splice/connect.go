package splice

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/fivetuple/fivetuple"
	"github.com/fivetuple/fivetuple/internal/poll"
	"github.com/fivetuple/fivetuple/internal/proxyheader"
	"github.com/fivetuple/fivetuple/relay/upstream"
	"github.com/fivetuple/fivetuple/sockopt"
	"github.com/fivetuple/fivetuple/stats"
)

// setup is what a pair has until it is connected.
type setup struct {
	pool     *upstream.Pool
	choice   upstream.Choice
	said     []byte    // what the client said already, but a proxy's header
	failures []failure // the addresses tried in vain
	retry    int64     // when to try the same address again; 0: not to
	pause    int64     // between two such tries
}

// failure is why an address did not take the connection.
type failure struct {
	to  fivetuple.Address
	err error
}

var setups = sync.Pool{New: func() any { return new(setup) }}

func (l *loop) needSetup(p *pair) {
	if p.setup == nil {
		p.setup = setups.Get().(*setup)
	}
}

func (l *loop) freeSetup(p *pair) {
	u := p.setup
	if p.setup = nil; u == nil {
		return
	}
	clear(u.failures)
	*u = setup{said: u.said[:0], failures: u.failures[:0]}
	setups.Put(u)
}

// A target that may take the connection a moment later is tried again.
const (
	firstPause = int64(time.Millisecond)
	mostPause  = int64(100 * time.Millisecond)
)

var errNoAddress = errors.New("no address")

// next tries the addresses that are left until one may work.
func (l *loop) next(p *pair) {
	u := p.setup
	for {
		a, ok := u.choice.Next()
		if !ok {
			l.unconnected(p)
			return
		}
		p.address = a
		p.flags |= chosen
		p.shift = 0
		if first := p.route.FirstPort; first != 0 && a.Path == "" {
			p.shift = p.local.Value().AddrPort.Port() - first
		}
		u.retry, u.pause = 0, firstPause
		p.ends = l.now + int64(p.route.ConnectTimeout)
		if done := l.try(p); done {
			return
		}
	}
}

// try begins to connect to the pair's address. It returns false if that is of no
// use.
func (l *loop) try(p *pair) bool {
	err, own := l.open(p)
	if err == nil {
		err, own = l.dial(p), false
	}
	errno, _ := err.(syscall.Errno)
	switch {
	case err == nil:
		local, _ := poll.LocalOf(int(p.fd[target])) // without it none is told
		l.connected(p, local)
	case errno == syscall.EINPROGRESS:
		l.arm(p)
	case mayWait(err), errno == syscall.EAGAIN && p.address.Path != "":
		l.tryAgain(p, err)
	default:
		l.turnedDown(p, err, own)
		return false
	}
	return true
}

// mayWait says whether what this process or machine is short of may come back.
func mayWait(err error) bool {
	for _, e := range []error{syscall.EMFILE, syscall.ENFILE, syscall.ENOBUFS, syscall.ENOMEM} {
		if errors.Is(err, e) {
			return true
		}
	}
	return false
}

// open makes the socket, if there is none. An error is this side's own.
func (l *loop) open(p *pair) (err error, own bool) {
	if p.fd[target] >= 0 {
		return nil, false
	}
	to := netip.Addr{}
	if p.address.Path == "" {
		to = p.address.Addr.Addr()
	}
	fd, err := poll.NewSocket(to)
	if err != nil {
		return err, true
	}
	p.fd[target] = int32(fd)
	p.flows[client].flags &^= room // until it is connected
	p.flows[target].flags &^= readable | readOn | urgent
	p.flags &^= targetTCP
	if to.IsValid() {
		err = l.prepare(p, fd)
	}
	if err == nil {
		_, err = sockopt.Apply(fd, p.route.Options...)
	}
	if err != nil {
		l.hangUp(p) // half prepared, it is not for another try
	}
	return err, true
}

// prepare sets what a TCP socket needs to connect as the route has it.
func (l *loop) prepare(p *pair, fd int) error {
	r := p.route
	err := poll.ForRelay(fd)
	if err == nil && r.Interface != "" {
		err = poll.BindToDevice(fd, r.Interface)
	}
	if err != nil {
		return err
	}
	source := r.Source
	if r.Transparent && p.remote.IsValid() {
		source = netip.AddrPortFrom(p.remote.Addr(), 0)
	}
	if !source.IsValid() && source.Port() == 0 {
		return nil
	}
	if !source.Addr().IsValid() { // a port of any address
		any := netip.IPv6Unspecified()
		if p.address.Addr.Addr().Unmap().Is4() {
			any = netip.IPv4Unspecified()
		}
		source = netip.AddrPortFrom(any, source.Port())
	}
	if err := poll.Bind(fd, source, r.Transparent); err != nil {
		return fmt.Errorf("connect from %s: %w", source, err)
	}
	return nil
}

// dial connects the socket: nil if that is done, EINPROGRESS if it is under way.
func (l *loop) dial(p *pair) error {
	fd := int(p.fd[target])
	var errno syscall.Errno
	if path := p.address.Path; path != "" {
		if errno = poll.ConnectUnix(fd, path); errno != 0 {
			return errno
		}
		return l.watch(p, target, false)
	}
	if errno = poll.Connect(fd, shifted(p.address.Addr, p.shift)); errno != 0 && errno != syscall.EINPROGRESS {
		return errno
	}
	if err := l.watch(p, target, true); err != nil || errno == 0 {
		return err
	}
	return errno
}

// tryAgain waits a little, and then tries the same address again.
func (l *loop) tryAgain(p *pair, err error) {
	u := p.setup
	u.retry = l.now + u.pause
	u.pause = min(2*u.pause, mostPause)
	if u.retry >= p.ends {
		u.retry = 0
		l.turnedDown(p, err, mayWait(err))
		l.next(p)
		return
	}
	l.arm(p)
}

// turnedDown keeps in mind that an address did not take the connection. For what
// is this machine's own fault the address is not blamed.
func (l *loop) turnedDown(p *pair, err error, own bool) {
	if errors.Is(err, syscall.EADDRNOTAVAIL) {
		own = true
		err = fmt.Errorf("%w: this machine has no such address to connect from, or its source ports (net.ipv4.ip_local_port_range) are used up", err)
	}
	blame := err
	if own {
		blame = context.Canceled // a trial goes to the next connection
	}
	p.address.Failed(blame)
	p.unchoose()
	p.setup.failures = append(p.setup.failures, failure{p.targetAddress(), err})
	l.hangUp(p)
}

// unchoose says that the address has the connection no longer.
func (p *pair) unchoose() {
	if p.is(chosen) {
		p.flags &^= chosen
		p.address.Closed()
	}
}

// hangUp closes the socket of a try.
func (l *loop) hangUp(p *pair) {
	if p.fd[target] >= 0 {
		poll.Close(int(p.fd[target]))
		p.fd[target] = -1
	}
}

// goOnConnecting looks how a try went, when the socket has told.
func (l *loop) goOnConnecting(p *pair) {
	if p.fd[target] < 0 || p.setup.retry != 0 || !p.flows[client].is(room) {
		return
	}
	var err error
	if p.flows[target].is(readOn) { // it told more than that there is room
		if errno := poll.SocketError(int(p.fd[target])); errno != 0 {
			err = errno
		}
	}
	local, _ := poll.LocalOf(int(p.fd[target])) // without it none is told
	if err == nil && p.isSelf(local) {
		err = fmt.Errorf("%w: nobody listens there; the connection was made to its own source port", syscall.ECONNREFUSED)
		poll.Reset(int(p.fd[target])) // no TIME_WAIT: a server may want the port
		p.fd[target] = -1
	}
	if err != nil {
		l.turnedDown(p, err, false)
		l.next(p)
		return
	}
	l.connected(p, local)
}

// isSelf says whether a socket with that address has connected to itself: a port of
// the ephemeral range to which nobody listens may be chosen as source port too, and
// TCP's simultaneous open (RFC 9293 section 3.5) then needs no other side.
func (p *pair) isSelf(local poll.Peer) bool {
	return local.Addr == shifted(p.address.Addr, p.shift)
}

// connectingOnTime sees to a try whose time has come.
func (l *loop) connectingOnTime(p *pair) {
	u := p.setup
	switch {
	case p.address == nil: // it was adopted
		l.choose(p, p.route.poolNamed(p.name()))
	case u.retry != 0 && l.now >= u.retry:
		u.retry = 0
		if !l.try(p) {
			l.next(p)
		}
	case l.now >= p.ends:
		l.turnedDown(p, fmt.Errorf("no answer within %v: %w", p.route.ConnectTimeout, syscall.ETIMEDOUT), false)
		l.next(p)
	}
}

// unconnected resets a client whom no address took.
func (l *loop) unconnected(p *pair) {
	u := p.setup
	why := make([]string, len(u.failures))
	for i, f := range u.failures {
		why[i] = fmt.Sprintf("%s: %v", f.to, f.err)
	}
	err := errNoAddress
	switch {
	case len(why) > 0:
		err = errors.New(strings.Join(why, "; "))
	case u.pool.Err() != nil:
		err = u.pool.Err()
	}
	l.refuse(p, causeNoTarget, fmt.Errorf("no target took the connection: %w", err))
}

// connected begins to relay. local is the address of the target's socket here.
func (l *loop) connected(p *pair, local poll.Peer) {
	p.address.Opened()
	p.state = relaying
	p.active = l.now
	if l.server.Sink != nil {
		l.note(stats.Event{Kind: stats.Forward, Tuple: p.targetTupleFrom(local), Conn: p.id})
	}
	x, u := &p.flows[client], p.setup
	x.flags |= room
	if p.route.ProxyVersion != 0 {
		destination := p.local.Value().AddrPort
		if p.extra != nil && p.extra.destination.IsValid() {
			destination = p.extra.destination
		}
		header := proxyheader.Append(make([]byte, 0, 128+len(u.said)), p.route.ProxyVersion, p.remote, destination)
		l.keep(x, append(header, u.said...))
	} else if len(u.said) > 0 {
		l.keep(x, u.said)
	}
	if len(u.said) > 0 {
		l.moved(p, x, len(u.said))
	}
	l.freeSetup(p)
	l.arm(p)
	l.relay(p)
}

package relay

import (
	"bytes"
	"cmp"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/fivetuple/fivetuple"
	"github.com/fivetuple/fivetuple/dial"
	"github.com/fivetuple/fivetuple/internal/proxyheader"
	"github.com/fivetuple/fivetuple/relay/faults"
	"github.com/fivetuple/fivetuple/relay/splice"
	"github.com/fivetuple/fivetuple/relay/upstream"
	"github.com/fivetuple/fivetuple/secure"
	"github.com/fivetuple/fivetuple/sockopt"
	"github.com/fivetuple/fivetuple/stats"
	"github.com/fivetuple/fivetuple/stream"
)

// ServeConn relays one connection, and returns when both directions have ended. It
// implements [stream.Handler].
func (r *Relay) ServeConn(ctx context.Context, c *stream.Conn) error {
	r.mu.Lock()
	config, pool, names := r.config, r.pool, r.names
	r.mu.Unlock()
	f := &flow{relay: r, config: &config, client: c, from: c, began: time.Now()}
	if len(names) > 0 {
		name, err := f.serverName()
		if err != nil {
			return err
		}
		if p := names[names.Match(name)]; p != nil {
			pool = p
		}
		if pool == nil {
			f.reset()
			return fmt.Errorf("no target for the server name %q", name)
		}
	}
	if err := f.connect(ctx, pool); err != nil {
		if ctx.Err() == nil {
			f.reset() // as a refused connection, not as an answer of no bytes
		}
		return err
	}
	defer f.address.Closed()
	r.flows.add(f)
	defer r.flows.remove(f)
	return f.run(ctx)
}

// serverName is the name that the client asks for in TLS; "" if none. What had to be
// read for it is read again by whoever reads from.
func (f *flow) serverName() (string, error) {
	if state, ok := f.client.TLS(); ok {
		return state.ServerName, nil
	}
	f.client.SetReadDeadline(time.Now().Add(splice.DefaultHelloTimeout))
	defer f.client.SetReadDeadline(time.Time{})
	var got []byte
	b := make([]byte, 4096)
	for {
		n, err := f.client.Read(b)
		got = append(got, b[:n]...)
		f.from = io.MultiReader(bytes.NewReader(got), f.client)
		name, short := secure.ServerName(got)
		switch {
		case short == nil:
			return name, nil
		case !errors.Is(short, secure.ErrShort), errors.Is(err, io.EOF):
			return "", nil // not TLS, or not the whole of it: for whoever takes all others
		case err != nil:
			return "", fmt.Errorf("wait for the server name in the client's TLS greeting: %w", err)
		}
	}
}

// connect tries the addresses of the pool until one takes the connection.
func (f *flow) connect(ctx context.Context, pool *upstream.Pool) error {
	client := f.client.Tuple().Remote.AddrPort
	var failed []error
	for way := pool.Choose(client.Addr()); ; {
		a, ok := way.Next()
		if !ok {
			break
		}
		nc, err := f.dial(ctx, a)
		if err == nil {
			a.Opened()
			f.address, f.target = a, nc
			f.record(stats.Forward, nil)
			return nil
		}
		a.Closed()
		if ctx.Err() != nil {
			return ctx.Err()
		}
		a.Failed(err)
		failed = append(failed, err)
	}
	if len(failed) == 0 {
		failed = append(failed, cmp.Or(pool.Err(), errors.New("no target has an address")))
	}
	err := noTarget(failed)
	if f.relay.events.TakeError() {
		f.record(stats.Error, err)
	}
	return err
}

// noTarget says why no target took a connection. It wraps none of the errors: a target
// that timed out or reset is not the client that did.
func noTarget(failed []error) error {
	var why []string
	for _, err := range failed {
		why = append(why, err.Error())
	}
	return fmt.Errorf("no target took the connection: %s", strings.Join(why, "; "))
}

// dial connects to an address and says first what is to be said there.
func (f *flow) dial(ctx context.Context, a *upstream.Address) (net.Conn, error) {
	c := f.config
	ctx, cancel := context.WithTimeout(ctx, cmp.Or(c.ConnectTimeout, splice.DefaultConnectTimeout))
	defer cancel()
	client, local := f.client.Tuple().Remote.AddrPort, f.client.Tuple().Local.AddrPort
	e := fivetuple.Endpoint{Network: fivetuple.Unix, Path: a.Path}
	d := dial.Dialer{Options: c.Options}
	if a.Path == "" {
		port := a.Addr.Port()
		if first := c.firstPort(); first != 0 {
			port += local.Port() - first
		}
		ip := a.Addr.Addr()
		e = fivetuple.Endpoint{Network: fivetuple.TCP, Host: ip.WithZone("").String(), Zone: ip.Zone(), Ports: fivetuple.PortRange{First: port, Last: port}}
		d.Source, d.Interface = c.Source, c.Interface
		if c.Transparent {
			transparent, err := sockopt.Parse("transparent")
			if err != nil {
				return nil, err
			}
			d.Source, d.Options = client, append(sockopt.Settings{transparent}, d.Options...)
		}
	}
	nc, err := d.Dial(ctx, e)
	if err != nil {
		return nil, err
	}
	if c.ProxyVersion != 0 {
		deadline, _ := ctx.Deadline()
		nc.SetWriteDeadline(deadline)
		_, err = nc.Write(proxyheader.Append(nil, c.ProxyVersion, client, local))
		nc.SetWriteDeadline(time.Time{})
	}
	if err == nil && a.Target.Network == fivetuple.TLS {
		return f.secure(ctx, nc, a)
	}
	if err != nil {
		nc.Close()
		return nil, fmt.Errorf("connect to %s: %w", e, err)
	}
	return nc, nil
}

// secure speaks TLS with the target, whose name is the one of the rule.
func (f *flow) secure(ctx context.Context, nc net.Conn, a *upstream.Address) (net.Conn, error) {
	t := &tls.Config{}
	if f.config.TLS != nil {
		t = f.config.TLS.Clone()
	}
	t.ServerName = cmp.Or(t.ServerName, a.Target.Host, "localhost")
	secured, err := secure.Connect(ctx, nc, t)
	if err != nil {
		return nil, fmt.Errorf("connect to %s: %w", a.Target, err)
	}
	return secured, nil
}

func (f *flow) record(kind stats.Kind, err error) {
	e := stats.Event{Kind: kind, Conn: f.client.ID(), Tuple: f.client.Tuple()}
	if f.target != nil {
		e.Tuple = fivetuple.TupleOf(networkOf(f.target), f.target)
	}
	if err != nil {
		e.Err = err.Error()
	}
	f.relay.events.Record(e)
}

func networkOf(nc net.Conn) fivetuple.Network {
	if nc.LocalAddr().Network() == "unix" {
		return fivetuple.Unix
	}
	return fivetuple.TCP
}

// reset makes the end of the client's connection a reset, if it is TCP.
func (f *flow) reset() { resetConn(f.client) }

func resetConn(c net.Conn) {
	nc := secure.NetConn(c)
	if tc, ok := nc.(*net.TCPConn); ok {
		tc.SetLinger(0)
	}
	nc.Close()
}

// run copies both ways.
func (f *flow) run(ctx context.Context) error {
	ctx, done := context.WithCancel(ctx)
	var halves sync.WaitGroup
	line := f.config.Faults
	line.Bandwidth = least(line.Bandwidth, f.config.Rate)
	ups, downs := line.Lines(f.client.ID())
	stop := context.AfterFunc(ctx, func() { // the client's connection is closed by then
		f.target.SetDeadline(time.Unix(1, 0))
		ups.Cut() // of both
	})
	errs := make(chan error, 2)
	pass := func(d *direction, to net.Conn, from io.Reader, line *faults.Line) {
		err := f.pass(ctx, d, to, from, line)
		if err == nil {
			halves.Go(func() { f.boundHalf(ctx) })
		}
		errs <- err
	}
	go pass(&f.up, f.target, f.from, ups)
	pass(&f.down, f.client, f.target, downs)
	err := cmp.Or(<-errs, <-errs)
	if first := f.failed.Load(); first != nil {
		err = *first
	}
	stop()
	done()
	halves.Wait()
	f.target.Close()
	return cmp.Or(err, io.EOF)
}

// pass copies one direction to its end, which it passes on. After an error both
// connections are reset, which ends the other direction; unless this side ended them.
func (f *flow) pass(ctx context.Context, d *direction, to net.Conn, from io.Reader, line *faults.Line) error {
	_, err := faults.Copy(&counted{to, f, d}, from, line)
	if err == nil {
		err = closeWrite(to)
	}
	d.over.Store(true)
	if err != nil && ctx.Err() == nil {
		f.resetBoth(err)
	}
	return err
}

// resetBoth ends both directions. The reason that came first is the one that is told:
// the other direction then fails too, because of the reset.
func (f *flow) resetBoth(why error) {
	f.failed.CompareAndSwap(nil, &why)
	resetConn(f.target)
	f.reset()
}

// least is the smaller of two rates of which 0 is none.
func least(a, b int64) int64 {
	if a == 0 || b == 0 {
		return a + b
	}
	return min(a, b)
}

func closeWrite(c net.Conn) error {
	w, ok := c.(interface{ CloseWrite() error })
	if !ok {
		return nil
	}
	err := w.CloseWrite()
	if errors.Is(err, syscall.ENOTCONN) {
		return nil // it is gone, as reading it tells
	}
	return err
}

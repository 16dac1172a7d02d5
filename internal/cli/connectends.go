package cli

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"slices"
	"time"

	"github.com/fivetuple/fivetuple"
	"github.com/fivetuple/fivetuple/datagram"
	"github.com/fivetuple/fivetuple/dial"
	"github.com/fivetuple/fivetuple/join"
	"github.com/fivetuple/fivetuple/secure"
	"github.com/fivetuple/fivetuple/sockopt"
	"github.com/fivetuple/fivetuple/stats"
)

// The pauses before further tries to connect.
const (
	firstPause = time.Second
	mostPause  = 30 * time.Second
)

// dialRetrying connects, and tries again as --retry says.
func (a *app) dialRetrying(ctx context.Context, p connectPlan, e fivetuple.Endpoint) (net.Conn, error) {
	pause := firstPause
	for try := 0; ; try++ {
		conn, err := a.dial(ctx, p, e)
		if err == nil || try >= p.retry || ctx.Err() != nil {
			return conn, err
		}
		a.note("%v; again in %s (%d of %d)", err, stats.FormatDuration(pause), try+1, p.retry)
		if !wait(ctx, pause) {
			return nil, ctx.Err()
		}
		pause = min(2*pause, mostPause)
	}
}

// wait returns false if ctx ended before d had passed.
func wait(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-ctx.Done():
		return false
	}
}

// dial connects to an endpoint once.
func (a *app) dial(ctx context.Context, p connectPlan, e fivetuple.Endpoint) (net.Conn, error) {
	began := time.Now()
	var report func([]sockopt.Granted)
	if p.verbose {
		report = a.noteGranted
	}
	var conn net.Conn
	var err error
	p.narrow(e)
	if e.Network.IsDatagram() {
		d := datagram.Dialer{Options: p.options, Source: p.source, Interface: p.iface, Unconnected: p.unconnected, Report: report}
		conn, err = d.Dial(ctx, e)
	} else {
		d := dial.Dialer{Options: p.options, Source: p.source, Interface: p.iface, Timeout: p.timeout, Proxy: p.proxy, Report: report}
		if e.Network == fivetuple.TLS {
			if d.TLS, err = p.tls.Config(tlsHost(e)); err != nil {
				return nil, err
			}
		}
		conn, err = d.Dial(ctx, e)
	}
	if err != nil {
		return nil, secure.Explain(err)
	}
	if p.verbose {
		a.noteConnected(conn, e, time.Since(began))
	}
	return conn, nil
}

// narrow leaves out what is for the other one of two endpoints.
func (p *connectPlan) narrow(e fivetuple.Endpoint) {
	if p.near.Network == fivetuple.Stdio {
		return
	}
	other := p.near
	if e == p.near {
		other = p.far
	}
	p.options = slices.DeleteFunc(slices.Clone(p.options), func(s sockopt.Setting) bool {
		kinds := s.Option().Sockets
		return !kinds.Admits(socketsOf(e.Network)) && kinds.Admits(socketsOf(other.Network))
	})
	if !e.Network.IsIP() {
		p.source, p.iface = netip.AddrPort{}, ""
	}
	if e.Network.Protocol() != fivetuple.TCP {
		p.proxy = nil
	}
}

// socketsOf are the kinds of sockets that a network may have.
func socketsOf(n fivetuple.Network) sockopt.Sockets {
	switch {
	case n.Protocol() == fivetuple.TCP:
		return sockopt.TCP | sockopt.IPv4 | sockopt.IPv6
	case n.Protocol() == fivetuple.UDP:
		return sockopt.UDP | sockopt.IPv4 | sockopt.IPv6
	case n.IsUnix():
		return sockopt.Unix
	}
	return 0
}

func (a *app) noteConnected(conn net.Conn, e fivetuple.Endpoint, took time.Duration) {
	if e.Network.IsDatagram() {
		a.note("%s", fivetuple.TupleOf(e.Network.Protocol(), conn))
		return
	}
	a.note("connected: %s, %s", fivetuple.TupleOf(e.Network.Protocol(), conn), stats.FormatDuration(took))
	if tc, ok := conn.(*tls.Conn); ok {
		for _, line := range secure.Describe(tc.ConnectionState()) {
			a.note("%s", line)
		}
	}
}

// noteGranted tells what became of the options that were asked for.
func (a *app) noteGranted(granted []sockopt.Granted) {
	for _, g := range granted {
		a.note("option %s", g)
	}
}

// nearEnd is standard input and output, or the other endpoint of two.
func (a *app) nearEnd(ctx context.Context, p connectPlan) (io.ReadWriteCloser, error) {
	if p.near.Network != fivetuple.Stdio {
		return a.dialRetrying(ctx, p, p.near)
	}
	return a.stdio()
}

// stdio is standard input and output as an end.
func (a *app) stdio() (join.End, error) {
	in, isFile := a.in.(*os.File)
	out, isFileToo := a.out.(*os.File)
	if !isFile || !isFileToo {
		return nil, errors.New("standard input and output must be files")
	}
	return join.Stdio(in, out), nil
}

// joinReconnecting joins standard input and output to one connection after the
// other, until standard input ends.
func (a *app) joinReconnecting(ctx context.Context, p connectPlan, far net.Conn) error {
	stdio, err := a.stdio()
	if err != nil {
		return err
	}
	defer stdio.Close()
	near := join.Keep(stdio)
	p.join.QuitWithB = true
	for {
		result, err := a.join(ctx, p, near, far)
		inputEnded := result.AToB.Err == nil
		if ctx.Err() != nil || inputEnded || isOfFile(err) {
			return err
		}
		a.note("connection to %s lost%s", p.far, because(err))
		far, err = a.dialAgain(ctx, p, near)
		switch {
		case ctx.Err() != nil:
			return nil // interrupted: that is how one ends it
		case err != nil || far == nil:
			return err
		}
	}
}

// dialAgain connects until it succeeds, ctx ends, or there is nothing more to
// send: then it returns no connection.
func (a *app) dialAgain(ctx context.Context, p connectPlan, near *join.Kept) (net.Conn, error) {
	for pause := firstPause; ; pause = min(2*pause, mostPause) {
		if !wait(ctx, pause) {
			return nil, ctx.Err()
		}
		if near.Ended(10 * time.Millisecond) {
			return nil, nil
		}
		conn, err := a.dial(ctx, p, p.far)
		if err == nil {
			return conn, nil
		}
		a.note("%v; again in %s", err, stats.FormatDuration(min(2*pause, mostPause)))
	}
}

func because(err error) string {
	if err == nil {
		return ""
	}
	return fmt.Sprintf(": %v", err)
}

package scan

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"syscall"
	"time"

	"github.com/fivetuple/fivetuple"
	"github.com/fivetuple/fivetuple/sockopt"
)

// asker connects to ports and breaks each connection off at once.
type asker struct {
	net.Dialer
}

func newAsker(timeout time.Duration, options sockopt.Settings) *asker {
	a := new(asker)
	a.Timeout = timeout
	a.KeepAlive = -1 // saves system calls
	a.SetMultipathTCP(false)
	a.Control = func(_, _ string, conn syscall.RawConn) error {
		// Before it connects, because net may close it as well.
		var errSet error
		err := conn.Control(func(fd uintptr) { errSet = resetOnClose(fd) })
		if err := errors.Join(err, errSet); err != nil {
			return err
		}
		if _, err := options.ApplyConn(conn); err != nil {
			return &optionError{err}
		}
		return nil
	}
	return a
}

// optionError is that a socket option could not be set, so that nothing was asked.
type optionError struct{ error }

func (e *optionError) Unwrap() error { return e.error }

// An outcome is what came of a try.
type outcome struct {
	try
	result   Result
	short    bool           // this side was short of something: nothing is known about the port
	source   netip.AddrPort // of the connection, without a zone
	option   *optionError   // that ends the scan
	mayBeOwn bool           // the other end of the connection, which is gone, may have been a probe
}

func (a *asker) ask(ctx context.Context, t try) outcome {
	o := outcome{try: t, result: Result{Host: t.host, Name: t.name, Port: t.port, Protocol: fivetuple.TCP}}
	start := time.Now()
	// Not DialTCP: it binds the socket, which keeps its source port from all other probes.
	conn, err := a.DialContext(ctx, "tcp", netip.AddrPortFrom(t.host, t.port).String())
	rtt := time.Since(start)
	if err != nil {
		o.refused(err)
	} else {
		o.connected(conn)
		conn.Close()
	}
	if o.result.State == Open || o.result.State == Closed {
		o.result.RTT = rtt
	}
	return o
}

func (o *outcome) connected(conn net.Conn) {
	o.source = withoutZone(conn.LocalAddr().(*net.TCPAddr).AddrPort())
	if o.source == o.endpoint() {
		// The kernel chose as the source the very port that is asked, which it can only
		// if nobody listens there: the socket is connected to itself.
		o.result.State, o.result.Reason = Closed, "connected to itself"
		return
	}
	o.result.State, o.result.Reason = Open, "connected"
}

func (o *outcome) refused(err error) {
	var errno syscall.Errno
	var timeout net.Error
	if errors.As(err, &o.option) {
		return
	} else if errors.As(err, &errno) {
		o.result.State, o.result.Reason = judge(errno)
		o.mayBeOwn = o.result.State == Open && isOwn(o.host)
		o.short = isShortage(errno)
	} else if errors.As(err, &timeout) && timeout.Timeout() {
		o.result.State, o.result.Reason = Filtered, "timed out"
	} else {
		o.result.State, o.result.Reason = Failed, err.Error()
	}
	if o.result.State == Failed {
		o.result.Err = err
	}
}

// isOwn says whether what this machine sends to an address comes from that address.
func isOwn(addr netip.Addr) bool {
	const discard = 9 // any port will do: connect(2) sends nothing
	conn, err := net.Dial("udp", netip.AddrPortFrom(addr, discard).String())
	if err != nil {
		return true // it may
	}
	defer conn.Close()
	return withoutZone(conn.LocalAddr().(*net.UDPAddr).AddrPort()).Addr() == addr.WithZone("")
}

// endpoint is what is asked, in the form of outcome.source.
func (p probe) endpoint() netip.AddrPort {
	return withoutZone(netip.AddrPortFrom(p.host, p.port))
}

func withoutZone(a netip.AddrPort) netip.AddrPort {
	return netip.AddrPortFrom(a.Addr().Unmap().WithZone(""), a.Port())
}

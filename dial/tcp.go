package dial

import (
	"context"
	"net"
	"net/netip"
	"runtime"
	"syscall"
	"time"

	"github.com/fivetuple/fivetuple"
	"github.com/fivetuple/fivetuple/sockopt"
)

// connectTCP connects to one address.
func (d Dialer) connectTCP(ctx context.Context, to netip.AddrPort) (connection, error) {
	network := "tcp6"
	if to.Addr().Is4() {
		network = "tcp4"
	}
	own, err := d.ownOptions()
	if err != nil {
		return connection{}, err
	}
	began := time.Now()
	var c connection
	nd := net.Dialer{
		KeepAlive: -1, // leaves the keep-alive options as the kernel has them, or as Options say
		Control:   sockopt.Combine(own.Control, control(d.Options, &c.granted)),
	}
	nd.SetMultipathTCP(false)
	if d.Source.IsValid() || d.Source.Port() != 0 {
		nd.LocalAddr = &net.TCPAddr{IP: d.Source.Addr().AsSlice(), Zone: d.Source.Addr().Zone(), Port: int(d.Source.Port())}
	}
	c.Conn, err = nd.DialContext(ctx, network, to.String())
	if err != nil {
		return connection{}, cutSince(ctx, began, d.silent(), d.explainTCP(err, to))
	}
	if isSelf(c.Conn) {
		c.Conn.(*net.TCPConn).SetLinger(0) // no TIME_WAIT: a server may want the port
		c.Close()
		return connection{}, withAdvice(syscall.ECONNREFUSED, "nobody listens there; the connection was made to its own source port")
	}
	if err := reapply(c.Conn, d.Options); err != nil {
		c.Close()
		return connection{}, err
	}
	return c, nil
}

// ownOptions are those that an interface and a source need, before Options.
func (d Dialer) ownOptions() (own sockopt.Settings, err error) {
	if d.Interface != "" {
		err = own.Set("bindtodevice=" + d.Interface)
	}
	switch {
	case err != nil || runtime.GOOS != "linux":
	case d.Source.Port() != 0: // or TIME_WAIT of a connection before would hold the port
		err = own.Set("reuseaddr")
	case d.Source.Addr().IsValid(): // or bind(2) would take a port for all destinations
		err = own.Set("bind-address-no-port")
	}
	return own, err
}

// control sets options on a new socket and keeps what was granted. It may run more
// than once: package net tries again when a socket has connected to itself.
func control(options sockopt.Settings, granted *[]sockopt.Granted) func(network, address string, c syscall.RawConn) error {
	return func(_, _ string, c syscall.RawConn) (err error) {
		*granted, err = options.ApplyConn(c)
		return err
	}
}

// reapply sets the options that package net has overwritten.
func reapply(c net.Conn, options sockopt.Settings) error {
	options = options.PerConn()
	if len(options) == 0 {
		return nil
	}
	raw, err := c.(*net.TCPConn).SyscallConn()
	if err != nil {
		return err
	}
	_, err = options.ApplyConn(raw)
	return err
}

// isSelf says whether a socket has connected to itself: a port of the ephemeral range
// to which nobody listens may be chosen as source port too, and TCP's simultaneous
// open (RFC 9293 section 3.5) then needs no other side.
func isSelf(c net.Conn) bool {
	return fivetuple.AddressOf(c.LocalAddr()) == fivetuple.AddressOf(c.RemoteAddr())
}

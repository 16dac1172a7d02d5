// Package dial connects to an endpoint, once, with every address of it tried:
//
//	d := dial.Dialer{Timeout: 5 * time.Second}
//	conn, err := d.Dial(ctx, fivetuple.MustParseEndpoint("tls://example.com:443"))
//
// The addresses of a name are raced as RFC 8305 ("happy eyeballs") has it, so that
// a family or an address that does not answer costs a quarter of a second and not
// the kernel's two minutes. When none takes the connection the [Error] has the
// reason of each. TLS, and the way through a SOCKS5 or HTTP proxy, come on top; Unix
// and vsock sockets have one address and no race.
//
// It stands on connect(2) without blocking and SO_ERROR, as package net does them,
// and on package sockopt. On systems other than Linux socket options,
// Dialer.Interface and vsock are errors that wrap [errors.ErrUnsupported].
package dial

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"net/url"
	"time"

	"github.com/fivetuple/fivetuple"
	"github.com/fivetuple/fivetuple/sockopt"
)

// Dialer says how to connect. The zero value is good; it is safe for use by many
// goroutines at once.
type Dialer struct {
	// Options are set on the socket before it connects, and those that package net
	// overwrites once more after.
	Options sockopt.Settings
	// Source is the address and port to connect from. A zero address or port is the
	// kernel's choice. The family of the address is the only one tried.
	Source netip.AddrPort
	// Interface is the only network interface to connect through (SO_BINDTODEVICE).
	Interface string
	// Timeout bounds all of Dial: names, connection, proxy, TLS. 0 is no bound but that of ctx.
	Timeout time.Duration
	// TLS configures tls:// endpoints. Nil verifies the peer with the system's roots.
	// Without a ServerName the endpoint's host is the name.
	TLS *tls.Config
	// Proxy is the way to go: socks5://[user:password@]host:port (RFC 1928, RFC 1929)
	// or http://[user:password@]host:port (CONNECT, RFC 9110 section 9.3.6). It resolves
	// the endpoint's name. Options, Source and Interface are for the connection to it.
	Proxy *url.URL
	// Report is told what was granted of Options, before Dial returns a connection.
	Report func([]sockopt.Granted)
	// Resolver finds addresses and ports by name. Nil is net.DefaultResolver.
	Resolver Resolver

	began   time.Time                                                         // of Dial
	connect func(Dialer, context.Context, netip.AddrPort) (connection, error) // nil is connectTCP; tests have others
}

// Resolver finds addresses and ports by name; [net.Resolver] is one.
type Resolver interface {
	// LookupNetIP is asked for network "ip4" and "ip6", at once.
	LookupNetIP(ctx context.Context, network, host string) ([]netip.Addr, error)
	LookupPort(ctx context.Context, network, service string) (int, error)
}

// connection is a connection with what its socket was granted.
type connection struct {
	net.Conn
	granted []sockopt.Granted
}

// Dial connects to an endpoint of the networks tcp, tcp4, tcp6, tls, unix, seqpacket
// or vsock. The connection is a *net.TCPConn (plain TCP, not MPTCP), a *tls.Conn
// whose handshake is done, a *net.UnixConn, or one of a vsock with CloseWrite.
// Without a host it connects to the loopback, [::1] first.
//
// When addresses were tried in vain the error is, or wraps, an [*Error]. An error of
// a timeout is [context.DeadlineExceeded] and [os.ErrDeadlineExceeded] and says what
// was going on; what a proxy says could not be done is the error number that connect(2) has for it.
func (d Dialer) Dial(ctx context.Context, e fivetuple.Endpoint) (net.Conn, error) {
	d.began = time.Now()
	if d.Timeout > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, d.Timeout)
		defer cancel()
	}
	conn, err := d.dial(ctx, e)
	if own, ok := err.(*Error); ok {
		own.Endpoint = e // as it was given, and not as it was resolved
		return nil, own
	}
	if err != nil {
		return nil, fmt.Errorf("connect %s: %w", e, err)
	}
	if d.Report != nil && len(conn.granted) > 0 {
		d.Report(conn.granted)
	}
	return conn.Conn, nil
}

func (d Dialer) dial(ctx context.Context, e fivetuple.Endpoint) (connection, error) {
	if e.Network.Protocol() == fivetuple.TCP {
		return d.dialIP(ctx, e)
	}
	if d.Source.IsValid() || d.Source.Port() != 0 || d.Interface != "" || d.Proxy != nil {
		return connection{}, errors.New("a source address, an interface and a proxy belong to TCP and TLS")
	}
	switch e.Network {
	case fivetuple.Unix, fivetuple.Seqpacket:
		return d.dialUnix(ctx, e)
	case fivetuple.Vsock:
		return d.dialVsock(ctx, e)
	}
	return connection{}, fmt.Errorf("%w: connections are made over tcp, tls, unix, seqpacket and vsock", errors.ErrUnsupported)
}

func (d Dialer) dialIP(ctx context.Context, e fivetuple.Endpoint) (connection, error) {
	e, err := e.ResolveService(ctx, d.resolver())
	if err != nil {
		return connection{}, d.cut(ctx, "asking for the port of "+e.Service, err)
	}
	if _, _, err := e.DialArgs(); err != nil { // port ranges, port 0
		return connection{}, err
	}
	var conn connection
	if d.Proxy != nil {
		conn, err = d.dialProxy(ctx, e)
	} else {
		conn, err = d.dialDirect(ctx, e)
	}
	if err == nil && e.Network == fivetuple.TLS {
		conn.Conn, err = d.handshake(ctx, conn.Conn, e)
	}
	return conn, err
}

func (d Dialer) resolver() Resolver {
	if d.Resolver != nil {
		return d.Resolver
	}
	return net.DefaultResolver
}

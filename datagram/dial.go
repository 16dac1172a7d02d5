package datagram

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"

	"github.com/fivetuple/fivetuple"
	"github.com/fivetuple/fivetuple/sockopt"
)

// Dialer says how to dial. The zero value is ready.
type Dialer struct {
	Options sockopt.Settings // set on the socket before it is connected
	// Source is the address and the port to send from over UDP; the kernel
	// chooses what is zero.
	Source netip.AddrPort
	// Interface, by name or index, is the one to send by: to a group
	// IP_MULTICAST_IF, to others SO_BINDTODEVICE, which is Linux's. "" is the
	// endpoint's, or the one that the routes name.
	Interface string
	// Unconnected leaves connect(2) out: answers may come from anywhere, and
	// what ICMP says is not reported.
	Unconnected bool
	// Report, if not nil, is called with what the kernel granted of Options.
	Report func([]sockopt.Granted)
}

// Dial opens a socket that sends to a UDP or Unix datagram endpoint, its
// service name resolved. Of the addresses of a host name it takes the first
// that there is a route to.
//
// The socket is connected: it receives only from there, and ICMP errors are
// reported. A socket for a group or a broadcast address is not, so that it
// receives the answers, which come from elsewhere. A Unix socket is bound to a
// name of its own, so that it can be answered: an abstract one on Linux,
// elsewhere a file that is removed when it is closed.
func (d Dialer) Dial(ctx context.Context, e fivetuple.Endpoint) (*Conn, error) {
	if err := check(e, d.Options); err != nil {
		return nil, fmt.Errorf("connect %s: %w", e, err)
	}
	if _, _, err := e.DialArgs(); err != nil {
		return nil, err
	}
	c, err := d.dial(ctx, e)
	if err != nil {
		return nil, fmt.Errorf("connect %s: %w", e, err)
	}
	return c, nil
}

func (d Dialer) dial(ctx context.Context, e fivetuple.Endpoint) (*Conn, error) {
	if e.Network == fivetuple.Unixgram {
		return d.dialUnix(ctx, e)
	}
	ifi, err := oneInterface(e.Zone, d.Interface)
	if err != nil {
		return nil, err
	}
	addrs, err := resolve(ctx, e)
	if err != nil {
		return nil, err
	}
	var errs []error
	for _, a := range addrs {
		c, err := d.open(ctx, netip.AddrPortFrom(a, e.Ports.First), ifi)
		if err == nil {
			return c, nil
		}
		if len(addrs) > 1 {
			err = fmt.Errorf("%s: %w", a, err)
		}
		errs = append(errs, err)
	}
	return nil, errors.Join(errs...)
}

// resolve returns the addresses of the endpoint's host, the one to be preferred first.
func resolve(ctx context.Context, e fivetuple.Endpoint) ([]netip.Addr, error) {
	if a, ok := e.Addr(); ok {
		return []netip.Addr{a}, nil
	}
	host, family := e.Host, "ip"
	if host == "" || host == fivetuple.AnyHost {
		host = "localhost"
	}
	switch e.Network {
	case fivetuple.UDP4:
		family = "ip4"
	case fivetuple.UDP6:
		family = "ip6"
	}
	addrs, err := net.DefaultResolver.LookupNetIP(ctx, family, host)
	for i, a := range addrs {
		addrs[i] = a.Unmap()
	}
	return addrs, err
}

// open opens a socket that sends to one address; ifi is nil if none is named.
func (d Dialer) open(ctx context.Context, to netip.AddrPort, ifi *net.Interface) (*Conn, error) {
	if own := d.Source.Addr(); own.IsValid() && own.Is4() != to.Addr().Is4() {
		return nil, fmt.Errorf("the source %s and %s are of different families", own, to.Addr())
	}
	many, broadcast := to.Addr().IsMulticast(), isBroadcast(to.Addr())
	control := allowBroadcast(broadcast)
	if d.Interface != "" && !many {
		control = sockopt.Combine(control, bindTo(ifi))
	}
	if !many && !broadcast {
		c, err := d.connect(ctx, to, control)
		if err != nil || !d.Unconnected {
			return c, err
		}
		c.Close() // it has shown that there is a route
	}
	c, err := d.bind(ctx, to, control)
	if err == nil && many && ifi != nil {
		if err = c.sendGroupsThrough(ifi); err != nil {
			c.Close()
		}
	}
	return c, err
}

// connect opens a connected socket.
func (d Dialer) connect(ctx context.Context, to netip.AddrPort, control controlFunc) (*Conn, error) {
	report := d.Report
	if d.Unconnected { // another socket is the one
		report = nil
	}
	nd := net.Dialer{Control: sockopt.Combine(reportICMP, control, d.Options.ControlFunc(report))}
	if d.Source != (netip.AddrPort{}) {
		nd.LocalAddr = &net.UDPAddr{IP: d.Source.Addr().AsSlice(), Zone: d.Source.Addr().Zone(), Port: int(d.Source.Port())}
	}
	nc, err := nd.DialContext(ctx, "udp", to.String())
	if err != nil {
		return nil, notOpened(err, d.Source.Addr().String())
	}
	c, err := newConn(nc.(*net.UDPConn))
	if err != nil {
		return nil, err
	}
	c.remote, c.connected = fivetuple.AddressOf(nc.RemoteAddr()), true
	return c, nil
}

// bind opens a socket that is not connected.
func (d Dialer) bind(ctx context.Context, to netip.AddrPort, control controlFunc) (*Conn, error) {
	network, own := "udp6", fmt.Sprintf(":%d", d.Source.Port())
	if to.Addr().Is4() {
		network = "udp4"
	}
	if d.Source.Addr().IsValid() {
		own = d.Source.String()
	}
	nlc := net.ListenConfig{Control: sockopt.Combine(control, d.Options.ControlFunc(d.Report))}
	pc, err := nlc.ListenPacket(ctx, network, own)
	if err != nil {
		return nil, notOpened(err, d.Source.Addr().String())
	}
	c, err := newConn(pc.(*net.UDPConn))
	if err != nil {
		return nil, err
	}
	c.remote = fivetuple.IPAddress(to)
	return c, nil
}

// isBroadcast says whether an address is 255.255.255.255, or the broadcast
// address of a network that this host is in.
func isBroadcast(a netip.Addr) bool {
	if !a.Is4() {
		return false
	}
	if a == netip.AddrFrom4([4]byte{255, 255, 255, 255}) {
		return true
	}
	addrs, err := net.InterfaceAddrs()
	if err != nil {
		return false
	}
	for _, own := range addrs {
		p, err := netip.ParsePrefix(own.String())
		if err == nil && p.Addr().Is4() && p.Bits() < 31 && p.Contains(a) && lastOf(p) == a { // RFC 3021: a /31 has none
			return true
		}
	}
	return false
}

// lastOf is the last address of an IPv4 prefix.
func lastOf(p netip.Prefix) netip.Addr {
	b := p.Addr().As4()
	for i := p.Bits(); i < 32; i++ {
		b[i/8] |= 0x80 >> (i % 8)
	}
	return netip.AddrFrom4(b)
}

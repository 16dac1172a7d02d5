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

// ListenConfig says how to listen.
type ListenConfig struct {
	Options sockopt.Settings // set on the socket before it is bound
}

// Listen opens the socket of a UDP endpoint whose service name, if it has one,
// is resolved.
//
// Where the host is a multicast group, the group is joined on the endpoint's
// interface, or on the one the routes name, and several sockets on one port
// receive it each: they have SO_REUSEADDR. On Linux such a socket is bound to
// the group and receives nothing else; elsewhere it also receives what comes
// to the port by other addresses.
func (lc ListenConfig) Listen(ctx context.Context, e fivetuple.Endpoint) (*Conn, error) {
	if err := check(e, lc.Options); err != nil {
		return nil, fmt.Errorf("listen on %s: %w", e, err)
	}
	network, address, err := e.ListenArgs()
	if err != nil {
		return nil, err
	}
	if group, ok := e.Addr(); ok && group.IsMulticast() {
		return lc.listenGroup(ctx, e, group)
	}
	nlc := net.ListenConfig{Control: sockopt.Combine(tellDestination, lc.Options.Control)}
	pc, err := nlc.ListenPacket(ctx, network, address)
	if err != nil {
		return nil, fmt.Errorf("listen on %s: %w", e, err)
	}
	c := newConn(pc.(*net.UDPConn))
	c.v6only = e.Network == fivetuple.UDP6
	for _, set := range lc.Options {
		if set.Option().Name == "v6only" {
			c.v6only = set.Int() != 0
		}
	}
	return c, nil
}

// Dial opens a socket that sends to a UDP endpoint, its service name resolved.
// It is connected: it receives only from there, and ICMP errors are reported.
// A socket for a group or a broadcast address is not, so that it receives the
// answers, which come from elsewhere; an interface in the endpoint is then the
// one it sends through.
func Dial(ctx context.Context, e fivetuple.Endpoint, options sockopt.Settings) (*Conn, error) {
	if err := check(e, options); err != nil {
		return nil, fmt.Errorf("connect %s: %w", e, err)
	}
	network, address, err := e.DialArgs()
	if err != nil {
		return nil, err
	}
	var c *Conn
	if a, ok := e.Addr(); ok && (a.IsMulticast() || isBroadcast(a)) {
		c, err = dialMany(ctx, netip.AddrPortFrom(a, e.Ports.First), e.Zone, options)
	} else {
		d := net.Dialer{Control: sockopt.Combine(reportICMP, options.Control)}
		var nc net.Conn
		if nc, err = d.DialContext(ctx, network, address); err == nil {
			c = newConn(nc.(*net.UDPConn))
			c.remote, c.connected = fivetuple.AddressOf(nc.RemoteAddr()), true
		}
	}
	if err != nil {
		return nil, fmt.Errorf("connect %s: %w", e, err)
	}
	return c, nil
}

// dialMany opens a socket that sends to a group or a broadcast address.
func dialMany(ctx context.Context, to netip.AddrPort, iface string, options sockopt.Settings) (*Conn, error) {
	network := "udp6"
	if to.Addr().Is4() {
		network = "udp4"
	}
	nlc := net.ListenConfig{Control: options.Control}
	pc, err := nlc.ListenPacket(ctx, network, ":0")
	if err != nil {
		return nil, err
	}
	c := newConn(pc.(*net.UDPConn))
	c.remote = fivetuple.IPAddress(to)
	if iface != "" && to.Addr().IsMulticast() {
		if err := c.sendGroupsThrough(iface); err != nil {
			c.Close()
			return nil, err
		}
	}
	return c, nil
}

// check refuses the endpoints and options that belong to other packages.
func check(e fivetuple.Endpoint, options sockopt.Settings) error {
	switch {
	case e.Network == fivetuple.Unixgram:
		return fmt.Errorf("datagram sockets of the Unix domain are not supported yet: %w", errors.ErrUnsupported)
	case e.Network.Protocol() != fivetuple.UDP:
		return fmt.Errorf("%s is not a datagram network: write udp://: %w", e.Network, errors.ErrUnsupported)
	}
	if a, ok := e.Addr(); e.Zone != "" && (!ok || a.Is4() && !a.IsMulticast()) {
		return fmt.Errorf("%%%s goes with a group or an IPv6 address: use the option bindtodevice=%s", e.Zone, e.Zone)
	}
	for _, set := range options {
		if set.Option().Name == "gro" {
			return fmt.Errorf("option gro would join datagrams into one: %w", errors.ErrUnsupported)
		}
	}
	return nil
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

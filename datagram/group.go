package datagram

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strconv"
	"syscall"

	"golang.org/x/net/ipv4"
	"golang.org/x/net/ipv6"

	"github.com/fivetuple/fivetuple"
	"github.com/fivetuple/fivetuple/sockopt"
)

func (lc ListenConfig) listenGroup(ctx context.Context, e fivetuple.Endpoint, group netip.Addr) (*Conn, error) {
	if group.IsLinkLocalMulticast() && group.Is6() && e.Zone == "" {
		return nil, fmt.Errorf("listen on %s: the group is one on every link: name the interface, [%s%%eth0]:%s", e, group, e.Ports)
	}
	uc, err := bindGroup(ctx, netip.AddrPortFrom(group, e.Ports.First), sockopt.Combine(tellDestination, lc.Options.Control))
	if err != nil {
		return nil, fmt.Errorf("listen on %s: %w", e, err)
	}
	c := newConn(uc)
	if err := c.Join(group, e.Zone); err != nil {
		c.Close()
		return nil, fmt.Errorf("listen on %s: %w", e, err)
	}
	return c, nil
}

// Join joins a multicast group on an interface, given by name or index, or on
// the one the routes name if iface is "". On Linux a socket not bound to a
// group also receives groups that other sockets joined, unless the option
// multicast-all is off.
func (c *Conn) Join(group netip.Addr, iface string) error {
	return c.membership("join", group, iface, (*ipv4.PacketConn).JoinGroup, (*ipv6.PacketConn).JoinGroup)
}

// Leave leaves a group that was joined with the same arguments.
func (c *Conn) Leave(group netip.Addr, iface string) error {
	return c.membership("leave", group, iface, (*ipv4.PacketConn).LeaveGroup, (*ipv6.PacketConn).LeaveGroup)
}

func (c *Conn) membership(verb string, group netip.Addr, iface string,
	change4 func(*ipv4.PacketConn, *net.Interface, net.Addr) error,
	change6 func(*ipv6.PacketConn, *net.Interface, net.Addr) error) error {
	if !group.IsMulticast() {
		return fmt.Errorf("%s %s: not a multicast group: 224.0.0.0/4 or ff00::/8", verb, group)
	}
	ifi, err := interfaceOf(iface)
	if err != nil {
		return fmt.Errorf("%s group %s: %w", verb, group, err)
	}
	addr := &net.UDPAddr{IP: group.AsSlice()}
	if group.Is4() {
		err = change4(ipv4.NewPacketConn(c.UDPConn), ifi, addr)
	} else {
		err = change6(ipv6.NewPacketConn(c.UDPConn), ifi, addr)
	}
	switch {
	case err == nil:
		return nil
	case errors.Is(err, syscall.ENODEV) && iface == "":
		return fmt.Errorf("%s group %s: no route says on which interface: name it, %s%%eth0: %w", verb, group, group, err)
	}
	return fmt.Errorf("%s group %s: %w", verb, group, err)
}

// sendGroupsThrough sets the interface that datagrams to groups leave by.
func (c *Conn) sendGroupsThrough(iface string) error {
	ifi, err := interfaceOf(iface)
	if err != nil {
		return err
	}
	if c.v6 {
		return ipv6.NewPacketConn(c.UDPConn).SetMulticastInterface(ifi)
	}
	return ipv4.NewPacketConn(c.UDPConn).SetMulticastInterface(ifi)
}

// interfaceOf finds an interface by its name or index; "" is none.
func interfaceOf(s string) (*net.Interface, error) {
	if s == "" {
		return nil, nil
	}
	ifi, err := net.InterfaceByName(s)
	if i, atoiErr := strconv.Atoi(s); err != nil && atoiErr == nil {
		ifi, err = net.InterfaceByIndex(i)
	}
	if err != nil {
		return nil, fmt.Errorf("interface %s: %w", s, err)
	}
	return ifi, nil
}

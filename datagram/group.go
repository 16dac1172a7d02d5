package datagram

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strconv"
	"strings"
	"syscall"

	"golang.org/x/net/ipv4"
	"golang.org/x/net/ipv6"

	"github.com/fivetuple/fivetuple/sockopt"
)

// listenGroup opens a socket that receives what is sent to a group.
func (lc ListenConfig) listenGroup(ctx context.Context, group netip.AddrPort, ifi *net.Interface) (*Conn, error) {
	a := group.Addr()
	if a.Is6() && a.IsLinkLocalMulticast() && ifi == nil {
		return nil, fmt.Errorf("the group is one on every link: name the interface, [%s%%eth0]:%d", a, group.Port())
	}
	uc, err := bindGroup(ctx, group, ifi, sockopt.Combine(tellDestination, lc.Options.ControlFunc(lc.Report)))
	if err != nil {
		return nil, err
	}
	c, err := newConn(uc)
	if err != nil {
		return nil, err
	}
	if ifi != nil {
		c.ifindex = ifi.Index
	}
	if err := lc.join(c, a); err != nil {
		c.Close()
		return nil, err
	}
	return c, nil
}

func (lc ListenConfig) join(c *Conn, group netip.Addr) error {
	iface := ""
	if c.ifindex != 0 {
		iface = strconv.Itoa(c.ifindex)
	}
	if len(lc.Sources) == 0 {
		return c.Join(group, iface)
	}
	for _, source := range lc.Sources {
		if err := c.JoinSource(group, source, iface); err != nil {
			return err
		}
	}
	return nil
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

// JoinSource joins a multicast group for what one source sends to it, RFC 4607;
// called again, for one more source.
func (c *Conn) JoinSource(group, source netip.Addr, iface string) error {
	return c.sourceMembership("join", group, source, iface, (*ipv4.PacketConn).JoinSourceSpecificGroup, (*ipv6.PacketConn).JoinSourceSpecificGroup)
}

// LeaveSource leaves a group for a source that was joined with the same arguments.
func (c *Conn) LeaveSource(group, source netip.Addr, iface string) error {
	return c.sourceMembership("leave", group, source, iface, (*ipv4.PacketConn).LeaveSourceSpecificGroup, (*ipv6.PacketConn).LeaveSourceSpecificGroup)
}

func (c *Conn) sourceMembership(verb string, group, source netip.Addr, iface string,
	change4 func(*ipv4.PacketConn, *net.Interface, net.Addr, net.Addr) error,
	change6 func(*ipv6.PacketConn, *net.Interface, net.Addr, net.Addr) error) error {
	if !source.IsValid() || source.Is4() != group.Is4() || source.IsMulticast() || source.IsUnspecified() {
		return fmt.Errorf("%s group %s: %s is not an address that sends to it", verb, group, source)
	}
	from := &net.UDPAddr{IP: source.AsSlice()}
	return c.membership(verb, group, iface,
		func(p *ipv4.PacketConn, ifi *net.Interface, g net.Addr) error { return change4(p, ifi, g, from) },
		func(p *ipv6.PacketConn, ifi *net.Interface, g net.Addr) error { return change6(p, ifi, g, from) })
}

func (c *Conn) membership(verb string, group netip.Addr, iface string,
	change4 func(*ipv4.PacketConn, *net.Interface, net.Addr) error,
	change6 func(*ipv6.PacketConn, *net.Interface, net.Addr) error) error {
	if !group.IsMulticast() {
		return fmt.Errorf("%s %s: not a multicast group: 224.0.0.0/4 or ff00::/8", verb, group)
	}
	if c.udp == nil {
		return fmt.Errorf("%s group %s: this is a Unix socket: %w", verb, group, errors.ErrUnsupported)
	}
	ifi, err := interfaceOf(iface)
	if err != nil {
		return fmt.Errorf("%s group %s: %w", verb, group, err)
	}
	addr := &net.UDPAddr{IP: group.AsSlice()}
	if group.Is4() {
		err = change4(ipv4.NewPacketConn(c.udp), ifi, addr)
	} else {
		err = change6(ipv6.NewPacketConn(c.udp), ifi, addr)
	}
	switch {
	case err == nil:
		return nil
	case errors.Is(err, syscall.ENODEV) && iface == "":
		return fmt.Errorf("%s group %s: no route says on which interface: name it, %s%%eth0: %w", verb, group, group, err)
	case errors.Is(err, syscall.ENOBUFS): // net/ipv4/igmp.c, net/ipv6/mcast.c
		return fmt.Errorf("%s group %s: %w: the kernel takes no more for one socket: raise net.ipv4.igmp_max_memberships, igmp_max_msf or net.ipv6.mld_max_msf", verb, group, err)
	}
	return fmt.Errorf("%s group %s: %w", verb, group, err)
}

// sendGroupsThrough sets the interface that datagrams to groups leave by.
func (c *Conn) sendGroupsThrough(ifi *net.Interface) error {
	if c.v6 {
		return ipv6.NewPacketConn(c.udp).SetMulticastInterface(ifi)
	}
	return ipv4.NewPacketConn(c.udp).SetMulticastInterface(ifi)
}

// oneInterface finds the interface of an endpoint or of a configuration; nil if
// neither names one.
func oneInterface(zone, iface string) (*net.Interface, error) {
	if zone != "" && iface != "" && zone != iface {
		return nil, fmt.Errorf("the endpoint names the interface %s and the option %s: choose one", zone, iface)
	}
	return interfaceOf(cmp.Or(zone, iface))
}

// bindTo makes a Control function that has a socket send and receive by one
// interface only.
func bindTo(ifi *net.Interface) controlFunc {
	return func(network, address string, c syscall.RawConn) error {
		set, err := sockopt.Parse("bindtodevice=" + ifi.Name)
		if err != nil {
			return err
		}
		return sockopt.Settings{set}.Control(network, address, c)
	}
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
		return nil, fmt.Errorf("interface %s: %w%s", s, bare(err), thereAre())
	}
	return ifi, nil
}

// thereAre lists the interfaces of this host.
func thereAre() string {
	list, err := net.Interfaces()
	if err != nil || len(list) == 0 {
		return ""
	}
	names := make([]string, len(list))
	for i, ifi := range list {
		names[i] = ifi.Name
	}
	return ": there are " + strings.Join(names, ", ")
}

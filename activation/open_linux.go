package activation

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"strconv"

	"golang.org/x/sys/unix"

	"github.com/fivetuple/fivetuple"
)

func open(protocol fivetuple.Network, at netip.AddrPort) (*os.File, error) {
	fd, err := openSocket(protocol, netip.AddrPortFrom(at.Addr().Unmap(), at.Port()))
	if err != nil {
		return nil, fmt.Errorf("bind %s %s: %w", protocol, at, err)
	}
	return os.NewFile(uintptr(fd), fmt.Sprintf("%s %s", protocol.Protocol(), at)), nil
}

func openSocket(protocol fivetuple.Network, at netip.AddrPort) (fd int, err error) {
	if !at.IsValid() || at.Port() == 0 {
		return -1, errors.New("want an address and a port")
	}
	switch protocol {
	case fivetuple.TCP4, fivetuple.UDP4:
		if !at.Addr().Is4() {
			return -1, errors.New("the address is IPv6")
		}
	case fivetuple.TCP6, fivetuple.UDP6:
		if at.Addr().Is4() {
			return -1, errors.New("the address is IPv4")
		}
	}
	only6 := protocol == fivetuple.TCP6 || protocol == fivetuple.UDP6
	switch protocol.Protocol() {
	case fivetuple.TCP:
		return openTCP(at, only6)
	case fivetuple.UDP:
		if addr := at.Addr(); addr.Is4() && !addr.IsUnspecified() && !addr.IsMulticast() {
			mapped := netip.AddrPortFrom(netip.AddrFrom16(addr.As16()), at.Port())
			fd, err := bound(unix.SOCK_DGRAM, mapped, false)
			if err != unix.EAFNOSUPPORT { // a kernel without IPv6
				return fd, err
			}
		}
		return bound(unix.SOCK_DGRAM, at, only6)
	}
	return -1, errors.New("want TCP or UDP")
}

// openTCP listens at once. Until then another socket with SO_REUSEADDR could be
// bound beside this one; if one was, listen fails with EADDRINUSE. A listening
// socket shares its port with no other, whatever that one sets
// (net/ipv4/inet_connection_sock.c, inet_csk_get_port).
func openTCP(at netip.AddrPort, only6 bool) (int, error) {
	fd, err := bound(unix.SOCK_STREAM, at, only6)
	if err != nil {
		return -1, err
	}
	if err := unix.Listen(fd, unix.SOMAXCONN); err != nil {
		unix.Close(fd)
		return -1, os.NewSyscallError("listen", err)
	}
	return fd, nil
}

func bound(kind int, at netip.AddrPort, only6 bool) (int, error) {
	domain, address := sockaddr(at)
	fd, err := unix.Socket(domain, kind|unix.SOCK_CLOEXEC, 0)
	if err == unix.EAFNOSUPPORT {
		return -1, err
	}
	if err != nil {
		return -1, os.NewSyscallError("socket", err)
	}
	set := func(level, option, value int) {
		if err == nil {
			err = os.NewSyscallError("setsockopt", unix.SetsockoptInt(fd, level, option, value))
		}
	}
	if kind == unix.SOCK_STREAM {
		set(unix.SOL_SOCKET, unix.SO_REUSEADDR, 1)
	}
	if domain == unix.AF_INET6 { // whatever net.ipv6.bindv6only says
		v6only := 0
		if only6 {
			v6only = 1
		}
		set(unix.IPPROTO_IPV6, unix.IPV6_V6ONLY, v6only)
	}
	if err == nil {
		err = os.NewSyscallError("bind", unix.Bind(fd, address))
	}
	if err != nil {
		unix.Close(fd)
		return -1, err
	}
	return fd, nil
}

// sockaddr takes an IPv4-mapped address for IPv6.
func sockaddr(at netip.AddrPort) (domain int, address unix.Sockaddr) {
	if at.Addr().Is4() {
		return unix.AF_INET, &unix.SockaddrInet4{Port: int(at.Port()), Addr: at.Addr().As4()}
	}
	return unix.AF_INET6, &unix.SockaddrInet6{Port: int(at.Port()), Addr: at.Addr().As16(), ZoneId: zoneID(at.Addr().Zone())}
}

// addrPort keeps a zone as a number.
func addrPort(address unix.Sockaddr) netip.AddrPort {
	switch a := address.(type) {
	case *unix.SockaddrInet4:
		return netip.AddrPortFrom(netip.AddrFrom4(a.Addr), uint16(a.Port))
	case *unix.SockaddrInet6:
		addr := netip.AddrFrom16(a.Addr).Unmap()
		if a.ZoneId != 0 {
			addr = addr.WithZone(strconv.Itoa(int(a.ZoneId)))
		}
		return netip.AddrPortFrom(addr, uint16(a.Port))
	}
	return netip.AddrPort{}
}

func zoneID(zone string) uint32 {
	if n, err := strconv.ParseUint(zone, 10, 32); err == nil {
		return uint32(n)
	}
	if device, err := net.InterfaceByName(zone); err == nil {
		return uint32(device.Index)
	}
	return 0 // the kernel refuses a link-local address without
}

package datagram

import (
	"context"
	"net"
	"net/netip"
	"os"
	"syscall"

	"golang.org/x/sys/unix"
)

// bindGroup opens a socket bound to a group, which several can be. Go's net
// package would bind it to all addresses instead, and it would receive what is
// sent to others on the port.
func bindGroup(_ context.Context, group netip.AddrPort, ifi *net.Interface, control controlFunc) (*net.UDPConn, error) {
	network, domain, sa := sockaddr(group, ifi)
	fd, err := unix.Socket(domain, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return nil, os.NewSyscallError("socket", err)
	}
	f := os.NewFile(uintptr(fd), network+" "+group.String())
	defer f.Close() // net takes a copy
	raw, err := f.SyscallConn()
	if err != nil {
		return nil, err
	}
	if err := onFD(raw, func(fd int) error { return shareGroup(fd, domain) }); err != nil {
		return nil, err
	}
	if err := control(network, group.String(), raw); err != nil {
		return nil, err
	}
	if err := onFD(raw, func(fd int) error { return os.NewSyscallError("bind", unix.Bind(fd, sa)) }); err != nil {
		return nil, err
	}
	pc, err := net.FilePacketConn(f)
	if err != nil {
		return nil, err
	}
	return pc.(*net.UDPConn), nil
}

// shareGroup sets what a socket has that receives a group: others on the port
// beside it, and nothing that only other sockets have joined for (ip(7),
// IP_MULTICAST_ALL).
func shareGroup(fd, domain int) error {
	options := []struct{ level, number, value int }{
		{unix.SOL_SOCKET, unix.SO_REUSEADDR, 1},
		{unix.SOL_SOCKET, unix.SO_BROADCAST, 1}, // as net does
		{unix.IPPROTO_IP, unix.IP_MULTICAST_ALL, 0},
	}
	if domain == unix.AF_INET6 {
		options[2].level, options[2].number = unix.IPPROTO_IPV6, unix.IPV6_MULTICAST_ALL
	}
	for _, o := range options {
		if err := unix.SetsockoptInt(fd, o.level, o.number, o.value); err != nil {
			return os.NewSyscallError("setsockopt", err)
		}
	}
	return nil
}

// sockaddr says which socket to open for a group, and where to bind it.
func sockaddr(group netip.AddrPort, ifi *net.Interface) (network string, domain int, sa unix.Sockaddr) {
	port, addr := int(group.Port()), group.Addr()
	if addr.Is4() {
		return "udp4", unix.AF_INET, &unix.SockaddrInet4{Port: port, Addr: addr.As4()}
	}
	sa6 := &unix.SockaddrInet6{Port: port, Addr: addr.As16()}
	if ifi != nil {
		sa6.ZoneId = uint32(ifi.Index)
	}
	return "udp6", unix.AF_INET6, sa6
}

// onFD runs f on the descriptor of a socket.
func onFD(c syscall.RawConn, f func(fd int) error) (err error) {
	if controlErr := c.Control(func(fd uintptr) { err = f(int(fd)) }); controlErr != nil {
		return controlErr
	}
	return err
}

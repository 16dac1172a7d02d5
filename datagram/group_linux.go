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
func bindGroup(_ context.Context, group netip.AddrPort, control func(network, address string, c syscall.RawConn) error) (*net.UDPConn, error) {
	network, domain, sa, err := sockaddr(group)
	if err != nil {
		return nil, err
	}
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
	if err := onFD(raw, func(fd int) error {
		if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_REUSEADDR, 1); err != nil {
			return os.NewSyscallError("setsockopt", err)
		}
		return os.NewSyscallError("setsockopt", unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_BROADCAST, 1)) // as net does
	}); err != nil {
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

// sockaddr says which socket to open for a group, and where to bind it.
func sockaddr(group netip.AddrPort) (network string, domain int, sa unix.Sockaddr, err error) {
	port, addr := int(group.Port()), group.Addr()
	if addr.Is4() {
		return "udp4", unix.AF_INET, &unix.SockaddrInet4{Port: port, Addr: addr.As4()}, nil
	}
	sa6 := &unix.SockaddrInet6{Port: port, Addr: addr.As16()}
	ifi, err := interfaceOf(addr.Zone())
	if ifi != nil {
		sa6.ZoneId = uint32(ifi.Index)
	}
	return "udp6", unix.AF_INET6, sa6, err
}

// onFD runs f on the descriptor of a socket.
func onFD(c syscall.RawConn, f func(fd int) error) (err error) {
	if controlErr := c.Control(func(fd uintptr) { err = f(int(fd)) }); controlErr != nil {
		return controlErr
	}
	return err
}

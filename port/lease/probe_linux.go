package lease

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"os"
	"strconv"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/fivetuple/fivetuple"
	"github.com/fivetuple/fivetuple/sockdiag"
)

// probe binds the port and lets it go. It does not listen, so no client ever
// meets it: if a TCP socket can be bound it can listen, as both look for the
// same conflicts (inet_csk_get_port in net/ipv4/inet_connection_sock.c).
func probe(ctx context.Context, r Request, at netip.AddrPort) error {
	switch {
	case r.shares():
		options := []int{unix.SO_REUSEPORT}
		if r.Protocol.Protocol() == fivetuple.TCP {
			options = append(options, unix.SO_REUSEADDR)
		}
		return bindOnce(r.Protocol, at, options...)
	case r.isGroup():
		return bindOnce(r.Protocol, at, unix.SO_REUSEADDR)
	}
	err := bindOnce(r.Protocol, at)
	if r.Protocol.Protocol() != fivetuple.TCP || !errors.Is(err, unix.EADDRINUSE) {
		return err
	}
	// What is there may be connections that a server left behind, in TIME_WAIT
	// for example. Servers set SO_REUSEADDR to be let in beside them, which also
	// lets them in beside a socket that is bound the same way and listens only
	// later: there two would be granted one port, so the socket table decides.
	if err := bindOnce(r.Protocol, at, unix.SO_REUSEADDR); err != nil {
		return err
	}
	bound, err := isBound(ctx, r.Protocol, at)
	if err != nil {
		return err
	}
	if bound {
		return os.NewSyscallError("bind", unix.EADDRINUSE)
	}
	return nil
}

// isBound looks for a socket that is bound to the port and not connected. The
// kernel lists those that do not listen since Linux 6.8.
func isBound(ctx context.Context, protocol fivetuple.Network, at netip.AddrPort) (bool, error) {
	sockets, err := sockdiag.List(ctx, sockdiag.Query{
		Protocols: []fivetuple.Network{protocol},
		States:    sockdiag.ListeningOrBound,
		LocalPort: at.Port(),
	})
	if err != nil && !errors.Is(err, errors.ErrUnsupported) {
		return false, err
	}
	for _, s := range sockets {
		if s.Holds(protocol, at) {
			return true, nil
		}
	}
	return false, nil
}

func bindOnce(protocol fivetuple.Network, at netip.AddrPort, options ...int) error {
	sockaddr, err := sockaddrOf(at)
	if err != nil {
		return err
	}
	err = bindSockaddr(protocol, sockaddr, options)
	if errors.Is(err, unix.EAFNOSUPPORT) && protocol == protocol.Protocol() && at.Addr() == netip.IPv6Unspecified() {
		// On a kernel without IPv6 all addresses are all IPv4 addresses.
		return bindSockaddr(protocol, &unix.SockaddrInet4{Port: int(at.Port())}, options)
	}
	return err
}

func bindSockaddr(protocol fivetuple.Network, sockaddr unix.Sockaddr, options []int) error {
	family, kind := unix.AF_INET, unix.SOCK_STREAM
	if _, ok := sockaddr.(*unix.SockaddrInet6); ok {
		family = unix.AF_INET6
	}
	if protocol.IsDatagram() {
		kind = unix.SOCK_DGRAM
	}
	// A child that is forked meanwhile would keep the port bound until it executes its program.
	syscall.ForkLock.RLock()
	defer syscall.ForkLock.RUnlock()
	fd, err := unix.Socket(family, kind|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return os.NewSyscallError("socket", err)
	}
	defer unix.Close(fd)
	for _, option := range options {
		if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, option, 1); err != nil {
			return os.NewSyscallError("setsockopt", err)
		}
	}
	if family == unix.AF_INET6 {
		only6 := 0
		if protocol != protocol.Protocol() {
			only6 = 1
		}
		if err := unix.SetsockoptInt(fd, unix.IPPROTO_IPV6, unix.IPV6_V6ONLY, only6); err != nil {
			return os.NewSyscallError("setsockopt", err)
		}
	}
	return os.NewSyscallError("bind", unix.Bind(fd, sockaddr))
}

func sockaddrOf(at netip.AddrPort) (unix.Sockaddr, error) {
	if at.Addr().Is4() {
		return &unix.SockaddrInet4{Port: int(at.Port()), Addr: at.Addr().As4()}, nil
	}
	s := &unix.SockaddrInet6{Port: int(at.Port()), Addr: at.Addr().As16()}
	if zone := at.Addr().Zone(); zone != "" {
		index, err := strconv.ParseUint(zone, 10, 32)
		if err != nil {
			device, err := net.InterfaceByName(zone)
			if err != nil {
				return nil, err
			}
			index = uint64(device.Index)
		}
		s.ZoneId = uint32(index)
	}
	return s, nil
}

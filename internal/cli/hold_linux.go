package cli

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"

	"golang.org/x/sys/unix"

	"github.com/fivetuple/fivetuple"
	"github.com/fivetuple/fivetuple/port/lease"
)

// holdPort binds a socket that keeps a port from connections and from other
// programs, but lets a TCP server listen that sets SO_REUSEADDR: the kernel
// allows that beside a socket that has it set and does not listen (socket(7)).
func holdPort(ctx context.Context, protocol fivetuple.Network, at netip.AddrPort) (*os.File, error) {
	if protocol.IsDatagram() {
		return bindPort(protocol, at, false)
	}
	// With the option set before, it could be bound beside another's socket.
	f, err := bindPort(protocol, at, false)
	if errors.Is(err, unix.EADDRINUSE) && lease.Check(ctx, protocol, at.Addr(), at.Port()).Free {
		return bindPort(protocol, at, true) // there are connections in TIME_WAIT only
	}
	if err != nil {
		return nil, err
	}
	if err := setReuseAddr(int(f.Fd())); err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return f, nil
}

func bindPort(protocol fivetuple.Network, at netip.AddrPort, reuse bool) (*os.File, error) {
	family, kind := unix.AF_INET, unix.SOCK_STREAM
	if at.Addr().Is6() {
		family = unix.AF_INET6
	}
	if protocol.IsDatagram() {
		kind = unix.SOCK_DGRAM
	}
	address, err := sockaddr(at)
	if err != nil {
		return nil, err
	}
	fd, err := unix.Socket(family, kind|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, os.NewSyscallError("socket", err)
	}
	f := os.NewFile(uintptr(fd), fmt.Sprintf("%s %s", protocol, at))
	if reuse {
		err = setReuseAddr(fd)
	}
	if err == nil && family == unix.AF_INET6 {
		only6 := 0
		if protocol != protocol.Protocol() {
			only6 = 1
		}
		err = os.NewSyscallError("setsockopt", unix.SetsockoptInt(fd, unix.IPPROTO_IPV6, unix.IPV6_V6ONLY, only6))
	}
	if err == nil {
		err = os.NewSyscallError("bind", unix.Bind(fd, address))
	}
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return f, nil
}

func setReuseAddr(fd int) error {
	return os.NewSyscallError("setsockopt", unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_REUSEADDR, 1))
}

func sockaddr(at netip.AddrPort) (unix.Sockaddr, error) {
	if at.Addr().Is4() {
		return &unix.SockaddrInet4{Port: int(at.Port()), Addr: at.Addr().As4()}, nil
	}
	s := &unix.SockaddrInet6{Port: int(at.Port()), Addr: at.Addr().As16()}
	if zone := at.Addr().Zone(); zone != "" {
		device, err := net.InterfaceByName(zone)
		if err != nil {
			return nil, err
		}
		s.ZoneId = uint32(device.Index)
	}
	return s, nil
}

// leaveOutput lets those go on who wait for the end of the output, as the shell
// does in PORT=$(ft port lease --hold --owner $$ &).
func (a *app) leaveOutput() error {
	out, ok := a.out.(*os.File)
	if !ok || isTerminal(out) {
		return nil
	}
	null, err := os.OpenFile(os.DevNull, os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	defer null.Close()
	return os.NewSyscallError("dup3", unix.Dup3(int(null.Fd()), int(out.Fd()), unix.O_CLOEXEC))
}

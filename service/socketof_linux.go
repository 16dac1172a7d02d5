package service

import (
	"errors"
	"fmt"
	"net/netip"
	"os"

	"golang.org/x/sys/unix"

	"github.com/fivetuple/fivetuple"
)

// SocketOf finds out of an open file, such as one that systemd passed, what
// socket it is and where it listens.
func SocketOf(f *os.File) (Socket, error) {
	raw, err := f.SyscallConn()
	if err != nil {
		return Socket{}, err
	}
	var e fivetuple.Endpoint
	var socketErr error
	if err := raw.Control(func(fd uintptr) { e, socketErr = endpointOf(int(fd)) }); err != nil {
		return Socket{}, err
	}
	return Socket{e, f}, socketErr
}

func endpointOf(fd int) (e fivetuple.Endpoint, err error) {
	kind, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_TYPE)
	if err != nil {
		return e, os.NewSyscallError("getsockopt", err)
	}
	listens, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_ACCEPTCONN)
	if err != nil {
		return e, os.NewSyscallError("getsockopt", err)
	}
	if kind != unix.SOCK_DGRAM && listens == 0 {
		return e, errors.New("it does not listen")
	}
	address, err := unix.Getsockname(fd)
	if err != nil {
		return e, os.NewSyscallError("getsockname", err)
	}
	inet := map[int]fivetuple.Network{unix.SOCK_STREAM: fivetuple.TCP, unix.SOCK_DGRAM: fivetuple.UDP}
	local := map[int]fivetuple.Network{unix.SOCK_STREAM: fivetuple.Unix, unix.SOCK_DGRAM: fivetuple.Unixgram, unix.SOCK_SEQPACKET: fivetuple.Seqpacket}
	switch a := address.(type) {
	case *unix.SockaddrInet4:
		e = fivetuple.Endpoint{Network: inet[kind], Host: netip.AddrFrom4(a.Addr).String()}.WithPort(uint16(a.Port))
	case *unix.SockaddrInet6:
		e = fivetuple.Endpoint{Network: inet[kind], Host: netip.AddrFrom16(a.Addr).String()}.WithPort(uint16(a.Port))
	case *unix.SockaddrUnix:
		e.Network, e.Path = local[kind], a.Name
	case *unix.SockaddrVM:
		if kind == unix.SOCK_STREAM {
			e.Network, e.CID, e.VPort = fivetuple.Vsock, a.CID, a.Port
		}
	}
	if e.Network == fivetuple.NetworkNone {
		return e, fmt.Errorf("a socket of type %d and family %T cannot be served: %w", kind, address, errors.ErrUnsupported)
	}
	return e, nil
}

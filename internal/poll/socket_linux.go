package poll

import (
	"fmt"
	"net"
	"net/netip"
	"os"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Read reads what a stream socket has, without waiting. EAGAIN says there is
// nothing, 0 bytes that the peer has ended its side. Of TCP, fewer bytes than b
// holds are all there were, but before urgent data (epoll(7), tcp(7)).
func Read(fd int, b []byte) (int, syscall.Errno) {
	return receive(fd, unsafe.Pointer(unsafe.SliceData(b)), len(b), unix.MSG_DONTWAIT)
}

// Drop throws away up to n bytes that a TCP socket has, without copying them
// (MSG_TRUNC, tcp(7)). It returns as Read.
func Drop(fd, n int) (int, syscall.Errno) {
	return receive(fd, nil, n, unix.MSG_DONTWAIT|unix.MSG_TRUNC)
}

func receive(fd int, b unsafe.Pointer, n int, flags uintptr) (int, syscall.Errno) {
	for {
		got, _, errno := unix.RawSyscall6(unix.SYS_RECVFROM, uintptr(fd), uintptr(b), uintptr(n), flags, 0, 0)
		if errno == 0 {
			return int(got), 0
		}
		if errno != unix.EINTR {
			return 0, errno
		}
	}
}

// Write writes what a stream socket has room for, without waiting. more says
// that the rest of it follows at once (MSG_MORE, send(2)).
func Write(fd int, b []byte, more bool) (int, syscall.Errno) {
	flags := uintptr(unix.MSG_DONTWAIT | unix.MSG_NOSIGNAL)
	if more {
		flags |= unix.MSG_MORE
	}
	for {
		n, _, errno := unix.RawSyscall6(unix.SYS_SENDTO, uintptr(fd), uintptr(unsafe.Pointer(unsafe.SliceData(b))), uintptr(len(b)), flags, 0, 0)
		if errno == 0 {
			return int(n), 0
		}
		if errno != unix.EINTR {
			return 0, errno
		}
	}
}

// Accept accepts a connection. EAGAIN says there is none; the listener must be
// in non-blocking mode.
func Accept(fd int) (int, Peer, syscall.Errno) {
	var sa unix.RawSockaddrAny
	size := uint32(unsafe.Sizeof(sa))
	for {
		n, _, errno := syscall.Syscall6(unix.SYS_ACCEPT4, uintptr(fd), uintptr(unsafe.Pointer(&sa)), uintptr(unsafe.Pointer(&size)),
			unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0, 0)
		if errno == 0 {
			return int(n), peerOf(&sa, size), 0
		}
		if errno != unix.EINTR {
			return -1, Peer{}, errno
		}
	}
}

// LocalOf returns the address a socket is bound to.
func LocalOf(fd int) (Peer, error) { return addressOf(fd, unix.SYS_GETSOCKNAME, "getsockname") }

// RemoteOf returns the address a socket is connected to.
func RemoteOf(fd int) (Peer, error) { return addressOf(fd, unix.SYS_GETPEERNAME, "getpeername") }

func addressOf(fd int, call uintptr, name string) (Peer, error) {
	var sa unix.RawSockaddrAny
	size := uint32(unsafe.Sizeof(sa))
	if _, _, errno := syscall.Syscall(call, uintptr(fd), uintptr(unsafe.Pointer(&sa)), uintptr(unsafe.Pointer(&size))); errno != 0 {
		return Peer{}, os.NewSyscallError(name, errno)
	}
	return peerOf(&sa, size), nil
}

func peerOf(sa *unix.RawSockaddrAny, size uint32) Peer {
	port := func(p *uint16) uint16 { b := (*[2]byte)(unsafe.Pointer(p)); return uint16(b[0])<<8 | uint16(b[1]) }
	switch sa.Addr.Family {
	case unix.AF_INET:
		in := (*unix.RawSockaddrInet4)(unsafe.Pointer(sa))
		return Peer{Addr: netip.AddrPortFrom(netip.AddrFrom4(in.Addr), port(&in.Port))}
	case unix.AF_INET6:
		in := (*unix.RawSockaddrInet6)(unsafe.Pointer(sa))
		a := netip.AddrFrom16(in.Addr)
		if !a.Is4In6() && in.Scope_id != 0 {
			a = a.WithZone(zone(in.Scope_id))
		}
		return Peer{Addr: netip.AddrPortFrom(a.Unmap(), port(&in.Port))}
	case unix.AF_UNIX:
		un := (*unix.RawSockaddrUnix)(unsafe.Pointer(sa))
		path := unsafe.Slice((*byte)(unsafe.Pointer(&un.Path)), len(un.Path))
		return Peer{Name: unixName(path[:min(max(int(size)-2, 0), len(path))])}
	}
	return Peer{}
}

// unixName is the name of a Unix socket as Go's net package writes it.
func unixName(path []byte) string {
	if len(path) == 0 {
		return ""
	}
	if path[0] == 0 {
		return "@" + string(path[1:])
	}
	for i, b := range path {
		if b == 0 {
			path = path[:i]
			break
		}
	}
	return string(path)
}

func zone(index uint32) string {
	if i, err := net.InterfaceByIndex(int(index)); err == nil {
		return i.Name
	}
	return fmt.Sprint(index)
}

// CloseWrite sends end of file.
func CloseWrite(fd int) error { return os.NewSyscallError("shutdown", unix.Shutdown(fd, unix.SHUT_WR)) }

// Close closes a descriptor.
func Close(fd int) { unix.Close(fd) }

// Reset closes a socket at once: TCP sends RST and forgets unsent data.
func Reset(fd int) {
	unix.SetsockoptLinger(fd, unix.SOL_SOCKET, unix.SO_LINGER, &unix.Linger{Onoff: 1})
	unix.Close(fd)
}

// Dup duplicates a descriptor.
func Dup(fd int) (int, error) {
	n, err := unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 0)
	return n, os.NewSyscallError("fcntl", err)
}

// IsStream says whether fd is a connected or listening TCP or Unix stream
// socket, and whether it is TCP.
func IsStream(fd int) (tcp bool, err error) {
	kind, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_TYPE)
	if err != nil {
		return false, os.NewSyscallError("getsockopt", err)
	}
	domain, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_DOMAIN)
	if err != nil {
		return false, os.NewSyscallError("getsockopt", err)
	}
	tcp = domain == unix.AF_INET || domain == unix.AF_INET6
	if kind != unix.SOCK_STREAM || !tcp && domain != unix.AF_UNIX {
		return false, fmt.Errorf("neither a TCP nor a Unix stream socket: %w", syscall.ESOCKTNOSUPPORT)
	}
	return tcp, nil
}

// SetNoDelay sends small segments at once, as Go's net package has it (TCP_NODELAY, tcp(7)).
func SetNoDelay(fd int) error {
	return os.NewSyscallError("setsockopt", unix.SetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_NODELAY, 1))
}

// SetNonblock sets non-blocking mode.
func SetNonblock(fd int) error { return os.NewSyscallError("fcntl", unix.SetNonblock(fd, true)) }

// Lingers says whether closing the socket may wait (SO_LINGER, socket(7)).
func Lingers(fd int) bool {
	l, err := unix.GetsockoptLinger(fd, unix.SOL_SOCKET, unix.SO_LINGER)
	return err == nil && l.Onoff != 0 && l.Linger > 0
}

// DoNotLinger makes close return at once and the kernel send what is left.
func DoNotLinger(fd int) {
	unix.SetsockoptLinger(fd, unix.SOL_SOCKET, unix.SO_LINGER, &unix.Linger{})
}

// PeerCredentials returns who connected a Unix socket.
func PeerCredentials(fd int) (Credentials, error) {
	u, err := unix.GetsockoptUcred(fd, unix.SOL_SOCKET, unix.SO_PEERCRED)
	if err != nil {
		return Credentials{}, os.NewSyscallError("getsockopt", err)
	}
	return Credentials{PID: int(u.Pid), UID: u.Uid, GID: u.Gid}, nil
}

package poll

import (
	"net"
	"net/netip"
	"os"
	"strconv"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// NewSocket makes a stream socket in non-blocking mode to connect to an IP
// address, or with the zero Addr to a Unix socket.
func NewSocket(to netip.Addr) (int, error) {
	family := unix.AF_UNIX
	switch {
	case to.Is4() || to.Is4In6():
		family = unix.AF_INET
	case to.Is6():
		family = unix.AF_INET6
	}
	fd, _, errno := unix.RawSyscall(unix.SYS_SOCKET, uintptr(family), unix.SOCK_STREAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if errno != 0 {
		return -1, os.NewSyscallError("socket", errno)
	}
	return int(fd), nil
}

// Bind gives a TCP socket the address to connect from. Without a port the kernel
// chooses one when it connects, which lets many sockets have the same
// (IP_BIND_ADDRESS_NO_PORT, ip(7)). The address may be another machine's if
// transparent (IP_TRANSPARENT, ip(7)), which takes CAP_NET_ADMIN.
func Bind(fd int, from netip.AddrPort, transparent bool) error {
	set := func(level, option int) error {
		return os.NewSyscallError("setsockopt", unix.SetsockoptInt(fd, level, option, 1))
	}
	if transparent {
		level, option := unix.SOL_IP, unix.IP_TRANSPARENT
		if from.Addr().Is6() && !from.Addr().Is4In6() {
			level, option = unix.SOL_IPV6, unix.IPV6_TRANSPARENT
		}
		if err := set(level, option); err != nil {
			return err
		}
	}
	var err error
	if from.Port() == 0 {
		err = set(unix.SOL_IP, unix.IP_BIND_ADDRESS_NO_PORT)
	} else { // or TIME_WAIT of a connection before would hold the port
		err = set(unix.SOL_SOCKET, unix.SO_REUSEADDR)
	}
	if err != nil {
		return err
	}
	var sa unix.RawSockaddrAny
	size := rawAddress(&sa, from)
	if _, _, errno := unix.RawSyscall(unix.SYS_BIND, uintptr(fd), uintptr(unsafe.Pointer(&sa)), uintptr(size)); errno != 0 {
		return os.NewSyscallError("bind", errno)
	}
	return nil
}

// BindToDevice makes a socket connect through one network interface only.
func BindToDevice(fd int, name string) error {
	return os.NewSyscallError("setsockopt", unix.BindToDevice(fd, name))
}

// Connect begins to connect to an IP address. EINPROGRESS says that the poller
// will tell [Out] when [SocketError] knows how it went.
func Connect(fd int, to netip.AddrPort) syscall.Errno {
	var sa unix.RawSockaddrAny
	return connect(fd, &sa, rawAddress(&sa, to))
}

// ConnectUnix connects to a Unix socket by its path or "@name". EAGAIN says that
// its backlog is full; nothing will tell when it is not.
func ConnectUnix(fd int, path string) syscall.Errno {
	var sa unix.RawSockaddrAny
	un := (*unix.RawSockaddrUnix)(unsafe.Pointer(&sa))
	if len(path) == 0 || len(path) >= len(un.Path) {
		return syscall.EINVAL
	}
	un.Family = unix.AF_UNIX
	for i := range len(path) {
		un.Path[i] = int8(path[i])
	}
	size := 2 + uint32(len(path)) + 1
	if path[0] == '@' { // abstract: no NUL at its end
		un.Path[0] = 0
		size--
	}
	return connect(fd, &sa, size)
}

func connect(fd int, sa *unix.RawSockaddrAny, size uint32) syscall.Errno {
	for {
		_, _, errno := unix.RawSyscall(unix.SYS_CONNECT, uintptr(fd), uintptr(unsafe.Pointer(sa)), uintptr(size))
		if errno != unix.EINTR {
			return errno
		}
	}
}

// rawAddress is an address as the kernel has it, and its size.
func rawAddress(sa *unix.RawSockaddrAny, a netip.AddrPort) uint32 {
	port := [2]byte{byte(a.Port() >> 8), byte(a.Port())}
	if a.Addr().Is4() || a.Addr().Is4In6() {
		in := (*unix.RawSockaddrInet4)(unsafe.Pointer(sa))
		*in = unix.RawSockaddrInet4{Family: unix.AF_INET, Addr: a.Addr().As4()}
		*(*[2]byte)(unsafe.Pointer(&in.Port)) = port
		return unix.SizeofSockaddrInet4
	}
	in := (*unix.RawSockaddrInet6)(unsafe.Pointer(sa))
	*in = unix.RawSockaddrInet6{Family: unix.AF_INET6, Addr: a.Addr().As16(), Scope_id: zoneIndex(a.Addr().Zone())}
	*(*[2]byte)(unsafe.Pointer(&in.Port)) = port
	return unix.SizeofSockaddrInet6
}

func zoneIndex(zone string) uint32 {
	if zone == "" {
		return 0
	}
	if i, err := net.InterfaceByName(zone); err == nil {
		return uint32(i.Index)
	}
	n, _ := strconv.ParseUint(zone, 10, 32)
	return uint32(n)
}

// SocketError takes the error that waits on a socket, 0 if there is none
// (SO_ERROR, socket(7)).
func SocketError(fd int) syscall.Errno {
	n, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_ERROR)
	if err != nil {
		return syscall.EBADF
	}
	return syscall.Errno(n)
}

// Unsent is how many bytes written to a socket its peer has not acknowledged, or
// for a Unix socket not read (SIOCOUTQ, tcp(7), unix(7)).
func Unsent(fd int) int {
	n, err := unix.IoctlGetInt(fd, unix.SIOCOUTQ)
	if err != nil {
		return 0
	}
	return n
}

// ForRelay makes a TCP socket one that passes on what comes as it comes: small
// segments at once (TCP_NODELAY, tcp(7)), and urgent data in its place among the
// other (SO_OOBINLINE, socket(7)).
func ForRelay(fd int) error {
	one := int32(1)
	for _, o := range [2][2]uintptr{{unix.IPPROTO_TCP, unix.TCP_NODELAY}, {unix.SOL_SOCKET, unix.SO_OOBINLINE}} {
		if _, _, errno := unix.RawSyscall6(unix.SYS_SETSOCKOPT, uintptr(fd), o[0], o[1], uintptr(unsafe.Pointer(&one)), 4, 0); errno != 0 {
			return os.NewSyscallError("setsockopt", errno)
		}
	}
	return nil
}

// CloseAtOnce is [Close], or [Reset], of a socket whose closing does not wait, made
// without telling Go's scheduler.
func CloseAtOnce(fd int, reset bool) {
	if reset {
		l := unix.Linger{Onoff: 1}
		unix.RawSyscall6(unix.SYS_SETSOCKOPT, uintptr(fd), unix.SOL_SOCKET, unix.SO_LINGER, uintptr(unsafe.Pointer(&l)), unix.SizeofLinger, 0)
	}
	unix.RawSyscall(unix.SYS_CLOSE, uintptr(fd), 0, 0)
}

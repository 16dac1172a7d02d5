package activation

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"slices"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/fivetuple/fivetuple"
)

// replace puts the held socket that a bind asks for in the place of the program's
// own, if there is one. Otherwise the bind is to go on.
func (s *supervisor) replace(n *notification) bool {
	if s.held == nil {
		return false
	}
	at, family, err := s.asked(n)
	if err != nil || !s.holdsPort(at.Port()) {
		if err != nil && s.valid(n) {
			s.say("cannot see what process %d binds: %v", n.tid, err)
		}
		return false
	}
	program, err := s.programSocket(n)
	if err != nil {
		wrong := errors.Is(err, unix.EBADF) || errors.Is(err, unix.ENOTSOCK) // it will hear so from the kernel
		if !wrong && s.valid(n) {
			s.say("cannot take over the bind of process %d to port %d: %v", n.tid, at.Port(), err)
		}
		return false
	}
	defer unix.Close(program.fd)
	if program.bound {
		// It was put there, but a signal broke that bind off and it is made again
		// (before Linux 5.19). Of another the kernel knows what is wrong.
		return s.holdsSocket(program.fd)
	}
	if program.domain != family {
		return false // the kernel will say so
	}
	asked := endpoint{kind: program.kind, at: at}
	h := s.match(asked)
	if wider := s.wider(asked); h == nil && wider != nil {
		s.say("process %d asked for %s %s, and what is leased is %s, where others could reach it: lease the address itself",
			n.tid, protocolOf(program.kind), at, wider.at)
	}
	if h == nil || !sameNetwork(h.fd, program.fd) || !s.valid(n) {
		return false
	}
	if err := h.prepare(program); err != nil {
		s.say("%s %s: process %d: %v", protocolOf(program.kind), at, n.tid, err)
		return false
	}
	for _, problem := range carryOptions(program.fd, h.fd) {
		s.say("%s %s: %v", protocolOf(program.kind), h.at, problem)
	}
	add := addFD{id: n.id, flags: unix.SECCOMP_ADDFD_FLAG_SETFD, srcFD: uint32(h.fd), newFD: uint32(n.args[0]),
		newFDFlags: uint32(program.flags & unix.O_CLOEXEC)}
	if err := ioctl(s.notify, unix.SECCOMP_IOCTL_NOTIF_ADDFD, unsafe.Pointer(&add)); err != nil {
		if err != unix.ENOENT && err != unix.EINPROGRESS {
			s.say("%s %s: give the socket to process %d: %v", protocolOf(program.kind), h.at, n.tid, err)
		}
		return false
	}
	if at != h.at {
		s.say("process %d asked for %s %s and was given %s, the leased address", n.tid, protocolOf(program.kind), at, h.at)
	}
	return true
}

// valid says that the process still waits in this bind, so that what was read under
// its number was its own.
func (s *supervisor) valid(n *notification) bool {
	return ioctl(s.notify, unix.SECCOMP_IOCTL_NOTIF_ID_VALID, unsafe.Pointer(&n.id)) == nil
}

func (s *supervisor) holdsPort(port uint16) bool {
	return slices.ContainsFunc(s.held, func(h held) bool { return h.at.Port() == port })
}

// asked reads the address out of the memory of the process. What is no IP address
// is the zero AddrPort.
func (s *supervisor) asked(n *notification) (at netip.AddrPort, family int, err error) {
	const (
		sizeIn  = unix.SizeofSockaddrInet4
		sizeIn6 = 24  // without the scope, as in RFC 2133: the kernel takes that
		sizeMax = 128 // struct __kernel_sockaddr_storage
	)
	length := int(int32(n.args[2]))
	if length < sizeIn || length > sizeMax {
		return netip.AddrPort{}, 0, nil
	}
	length = min(length, unix.SizeofSockaddrInet6)
	b := make([]byte, unix.SizeofSockaddrInet6)
	memory, _, err := s.look(look{TID: n.tid, Address: n.args[1], Length: uint32(min(length, len(b)))})
	if errors.Is(err, unix.EFAULT) {
		return netip.AddrPort{}, 0, nil // it will hear so from the kernel
	}
	if err != nil {
		return netip.AddrPort{}, 0, err
	}
	length = copy(b, memory)
	family = int(binary.NativeEndian.Uint16(b))
	port := int(binary.BigEndian.Uint16(b[2:]))
	switch {
	case family == unix.AF_INET:
		return addrPort(&unix.SockaddrInet4{Port: port, Addr: [4]byte(b[4:])}), family, nil
	case family == unix.AF_INET6 && length >= sizeIn6:
		address := unix.SockaddrInet6{Port: port, Addr: [16]byte(b[8:])}
		if netip.AddrFrom16(address.Addr).IsLinkLocalUnicast() { // elsewhere the scope means nothing
			address.ZoneId = binary.NativeEndian.Uint32(b[24:])
		}
		return addrPort(&address), family, nil
	}
	return netip.AddrPort{}, family, nil
}

// programSocket is the socket that a program wants to bind.
type programSocket struct {
	fd     int // a copy
	flags  int // of its descriptor and of the open file, as for open(2)
	domain int
	kind   int // SOCK_STREAM for TCP, SOCK_DGRAM for UDP, 0 for another protocol
	bound  bool
}

func (s *supervisor) programSocket(n *notification) (p programSocket, err error) {
	fd := int32(n.args[0])
	if _, p.fd, err = s.look(look{TID: n.tid, FD: fd}); err != nil {
		return p, err
	}
	if err := p.describe(n.tid, fd); err != nil {
		unix.Close(p.fd)
		return p, err
	}
	return p, nil
}

func (p *programSocket) describe(tid uint32, fd int32) (err error) {
	// fcntl(2) tells only a process itself whether its descriptor is close-on-exec.
	if p.flags, err = field(fmt.Sprintf("/proc/%d/fdinfo/%d", tid, fd), "flags:", 8); err != nil {
		return err
	}
	get := func(option int) (value int) {
		if err == nil {
			value, err = unix.GetsockoptInt(p.fd, unix.SOL_SOCKET, option)
		}
		return value
	}
	kind, protocol := get(unix.SO_TYPE), 0
	p.domain, protocol = get(unix.SO_DOMAIN), get(unix.SO_PROTOCOL)
	if err != nil {
		return os.NewSyscallError("getsockopt", err)
	}
	switch protocol {
	case unix.IPPROTO_TCP, unix.IPPROTO_MPTCP, unix.IPPROTO_UDP:
		p.kind = kind
	}
	address, err := unix.Getsockname(p.fd)
	if err != nil {
		return os.NewSyscallError("getsockname", err)
	}
	p.bound = addrPort(address).Port() != 0
	return nil
}

// match chooses the socket for what was asked, nil for none.
func (s *supervisor) match(asked endpoint) (best *held) {
	rank := 0
	for i := range s.held {
		if r := s.held[i].suits(asked); r > rank {
			best, rank = &s.held[i], r
		}
	}
	return best
}

// wider finds a socket on all addresses that stands in the way of what was asked for.
func (s *supervisor) wider(asked endpoint) *held {
	for i, h := range s.held {
		have := h.at.Addr()
		if h.kind == asked.kind && h.at.Port() == asked.at.Port() && have.IsUnspecified() &&
			(have.Is4() == asked.at.Addr().Is4() || have.Is6() && !h.only6) {
			return &s.held[i]
		}
	}
	return nil
}

// suits says how well the socket is what was asked for, 0 if it is not.
func (h endpoint) suits(asked endpoint) int {
	if asked.kind != h.kind || asked.at.Port() != h.at.Port() {
		return 0
	}
	have, want := h.at.Addr(), asked.at.Addr()
	sameFamily := have.Is4() == want.Is4()
	switch {
	case have == want:
		return 4
	case want.IsUnspecified() && sameFamily:
		return 3
	case want.IsUnspecified():
		return 2
	case isLocalhost(have) && isLocalhost(want): // a name with two addresses, of which programs choose either
		return 1
	}
	return 0
}

func isLocalhost(a netip.Addr) bool {
	return a == netip.IPv6Loopback() || a == netip.AddrFrom4([4]byte{127, 0, 0, 1})
}

// sameNetwork says that both sockets are of one network namespace: in another the
// port is another. Before Linux 5.14 it cannot be told.
func sameNetwork(a, b int) bool { return sameCookie(a, b, unix.SO_NETNS_COOKIE) }

func (s *supervisor) holdsSocket(fd int) bool {
	return slices.ContainsFunc(s.held, func(h held) bool { return sameCookie(h.fd, fd, unix.SO_COOKIE) })
}

// sameCookie is true too where the kernel does not have the option.
func sameCookie(a, b, option int) bool {
	cookieA, errA := unix.GetsockoptUint64(a, unix.SOL_SOCKET, option)
	cookieB, errB := unix.GetsockoptUint64(b, unix.SOL_SOCKET, option)
	return errA != nil || errB != nil || cookieA == cookieB
}

// prepare makes the socket fit to stand for the program's: in family, and in
// blocking mode.
func (h *held) prepare(program programSocket) error {
	if err := h.takeFamily(program.domain); err != nil {
		return err
	}
	return os.NewSyscallError("fcntl", unix.SetNonblock(h.fd, program.flags&unix.O_NONBLOCK != 0))
}

// takeFamily sees to it that the program understands the addresses that the
// socket gives it, which are in the form of the socket's family. One that opened
// an IPv6 socket for connections is used to ask which they are.
func (h *held) takeFamily(want int) error {
	have, err := unix.GetsockoptInt(h.fd, unix.SOL_SOCKET, unix.SO_DOMAIN)
	switch {
	case err != nil:
		return os.NewSyscallError("getsockopt", err)
	case have == want:
		return nil
	case h.kind == unix.SOCK_STREAM && want == unix.AF_INET6:
		return nil
	case h.kind == unix.SOCK_DGRAM && have == unix.AF_INET6 && h.at.Addr().Is4():
		return h.becomeIPv4()
	}
	families := map[int]string{unix.AF_INET: "IPv4", unix.AF_INET6: "IPv6"}
	return fmt.Errorf("it binds %s, but the leased socket %s is %s, whose addresses it would not understand: lease an address of its family",
		families[want], h.at, families[have])
}

// becomeIPv4 turns an IPv6 UDP socket on a mapped address into an IPv4 one.
// IPV6_ADDRFORM (ipv6(7)) wants it connected; for the moment it is, to itself, it
// takes no datagrams of others.
func (h *held) becomeIPv4() error {
	_, self := sockaddr(netip.AddrPortFrom(netip.AddrFrom16(h.at.Addr().As16()), h.at.Port()))
	if err := unix.Connect(h.fd, self); err != nil {
		return fmt.Errorf("make the socket %s IPv4: %w", h.at, os.NewSyscallError("connect", err))
	}
	err := os.NewSyscallError("setsockopt", unix.SetsockoptInt(h.fd, unix.IPPROTO_IPV6, unix.IPV6_ADDRFORM, unix.AF_INET))
	err = errors.Join(err, disconnect(h.fd))
	if err != nil {
		return fmt.Errorf("make the socket %s IPv4: %w", h.at, err)
	}
	return nil
}

// disconnect is connect(2) to AF_UNSPEC. The socket stays bound.
func disconnect(fd int) error {
	unspec := unix.RawSockaddr{Family: unix.AF_UNSPEC}
	_, _, errno := unix.Syscall(unix.SYS_CONNECT, uintptr(fd), uintptr(unsafe.Pointer(&unspec)), unsafe.Sizeof(unspec))
	if errno != 0 {
		return os.NewSyscallError("connect", errno)
	}
	return nil
}

func protocolOf(kind int) fivetuple.Network {
	if kind == unix.SOCK_DGRAM {
		return fivetuple.UDP
	}
	return fivetuple.TCP
}

package sessions

import (
	"encoding/binary"
	"net/netip"
	"os"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// The calls of the data path are made without telling Go's scheduler, as those
// of internal/poll: with MSG_DONTWAIT they return at once.

// mmsghdr is struct mmsghdr, recvmmsg(2).
type mmsghdr struct {
	hdr unix.Msghdr
	n   uint32 // bytes received or sent
}

// receiveMany is recvmmsg(2). Fewer messages than m holds are all there were, or
// all until an error that is told by the next call.
func receiveMany(fd int, m []mmsghdr) (int, syscall.Errno) {
	for {
		n, _, errno := unix.RawSyscall6(unix.SYS_RECVMMSG, uintptr(fd), uintptr(unsafe.Pointer(unsafe.SliceData(m))), uintptr(len(m)), unix.MSG_DONTWAIT, 0, 0)
		if errno == 0 {
			return int(n), 0
		}
		if errno != unix.EINTR {
			return 0, errno
		}
	}
}

// sendMany is sendmmsg(2): an error is of the first message of m.
func sendMany(fd int, m []mmsghdr) (int, syscall.Errno) {
	for {
		n, _, errno := unix.RawSyscall6(unix.SYS_SENDMMSG, uintptr(fd), uintptr(unsafe.Pointer(unsafe.SliceData(m))), uintptr(len(m)), unix.MSG_DONTWAIT|unix.MSG_NOSIGNAL, 0, 0)
		if errno == 0 {
			return int(n), 0
		}
		if errno != unix.EINTR {
			return 0, errno
		}
	}
}

// sendOne is sendmsg(2).
func sendOne(fd int, h *unix.Msghdr) syscall.Errno {
	for {
		_, _, errno := unix.RawSyscall(unix.SYS_SENDMSG, uintptr(fd), uintptr(unsafe.Pointer(h)), unix.MSG_DONTWAIT|unix.MSG_NOSIGNAL)
		if errno != unix.EINTR {
			return errno
		}
	}
}

// sendBytes is send(2), which is cheaper than sendmsg where it will do.
func sendBytes(fd int, b *byte, n int) syscall.Errno {
	for {
		_, _, errno := unix.RawSyscall6(unix.SYS_SENDTO, uintptr(fd), uintptr(unsafe.Pointer(b)), uintptr(n), unix.MSG_DONTWAIT|unix.MSG_NOSIGNAL, 0, 0)
		if errno != unix.EINTR {
			return errno
		}
	}
}

// memory is what SO_MEMINFO (net/core/sock.c, sk_get_meminfo; since Linux 4.12)
// says of a socket.
type memory struct {
	waiting, receiveBuffer, sendBuffer int
	drops                              uint64 // a 32-bit counter in the kernel
}

func memoryOf(fd int) memory {
	const rmem, rcvbuf, sndbuf, drops = 0, 1, 3, 8 // SK_MEMINFO_*, include/uapi/linux/sock_diag.h
	var v [9]uint32
	size := uint32(unsafe.Sizeof(v))
	_, _, errno := unix.RawSyscall6(unix.SYS_GETSOCKOPT, uintptr(fd), unix.SOL_SOCKET, unix.SO_MEMINFO, uintptr(unsafe.Pointer(&v)), uintptr(unsafe.Pointer(&size)), 0)
	if errno != 0 {
		return memory{}
	}
	return memory{waiting: int(v[rmem]), receiveBuffer: int(v[rcvbuf]), sendBuffer: int(v[sndbuf]), drops: uint64(v[drops])}
}

// isV6 says of which family a UDP socket is.
func isV6(fd int) (bool, error) {
	domain, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_DOMAIN)
	if err != nil {
		return false, os.NewSyscallError("getsockopt", err)
	}
	protocol, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_PROTOCOL)
	if err != nil {
		return false, os.NewSyscallError("getsockopt", err)
	}
	if domain != unix.AF_INET && domain != unix.AF_INET6 || protocol != unix.IPPROTO_UDP {
		return false, os.NewSyscallError("socket", unix.EPROTONOSUPPORT)
	}
	return domain == unix.AF_INET6, nil
}

// reportErrors has the kernel report all ICMP errors on a connected socket
// (IP_RECVERR, ip(7)), or none that do not belong to one.
func reportErrors(fd int, v6, yes bool) error {
	on := 0
	if yes {
		on = 1
	}
	err := unix.SetsockoptInt(fd, unix.IPPROTO_IP, unix.IP_RECVERR, on)
	if v6 {
		err = unix.SetsockoptInt(fd, unix.IPPROTO_IPV6, unix.IPV6_RECVERR, on)
	}
	return os.NewSyscallError("setsockopt", err)
}

// reportDestination has the kernel say with each datagram where it was sent to.
func reportDestination(fd int, v6, yes bool) error {
	on := 0
	if yes {
		on = 1
	}
	err := unix.SetsockoptInt(fd, unix.IPPROTO_IP, unix.IP_PKTINFO, on)
	if err == nil && v6 {
		err = unix.SetsockoptInt(fd, unix.IPPROTO_IPV6, unix.IPV6_RECVPKTINFO, on)
	}
	return os.NewSyscallError("setsockopt", err)
}

// joinTrains has the kernel hand on several datagrams as one (UDP_GRO, udp(7)).
func joinTrains(fd int, yes bool) error {
	on := 0
	if yes {
		on = 1
	}
	return os.NewSyscallError("setsockopt", unix.SetsockoptInt(fd, unix.IPPROTO_UDP, unix.UDP_GRO, on))
}

// raiseBuffer asks for a larger buffer: with the privilege beyond the limit of
// net.core.rmem_max or wmem_max, else for what that grants.
func raiseBuffer(fd, option, force, size int) {
	if unix.SetsockoptInt(fd, unix.SOL_SOCKET, force, size) != nil {
		unix.SetsockoptInt(fd, unix.SOL_SOCKET, option, size)
	}
}

// message is what the control messages of a datagram say.
type message struct {
	seg     int      // of how many bytes its datagrams are, if it is a train; else 0
	ifindex uint32   // where it came in
	to      [16]byte // what a reply leaves from; zero leaves it to the kernel
}

// readControl reads the control messages of a datagram.
func (m *message) readControl(b []byte) {
	*m = message{}
	v4 := false
	for len(b) >= unix.SizeofCmsghdr {
		h := (*unix.Cmsghdr)(unsafe.Pointer(unsafe.SliceData(b)))
		size := int(h.Len)
		if size < unix.SizeofCmsghdr || size > len(b) {
			return
		}
		data := b[unix.SizeofCmsghdr:size]
		switch {
		case h.Level == unix.IPPROTO_UDP && h.Type == unix.UDP_GRO && len(data) >= 4:
			m.seg = int(int32(binary.NativeEndian.Uint32(data)))
		case h.Level == unix.IPPROTO_IP && h.Type == unix.IP_PKTINFO && len(data) >= unix.SizeofInet4Pktinfo:
			// struct in_pktinfo, ip(7): interface, the local address that answers, the destination
			m.ifindex = binary.NativeEndian.Uint32(data)
			m.to = mapped([4]byte(data[4:8]))
			v4 = true
		case h.Level == unix.IPPROTO_IPV6 && h.Type == unix.IPV6_PKTINFO && len(data) >= unix.SizeofInet6Pktinfo && !v4:
			// struct in6_pktinfo, RFC 3542 section 6: the destination, interface
			m.ifindex = binary.NativeEndian.Uint32(data[16:])
			if data[0] != 0xff { // a group is no source
				m.to = [16]byte(data[:16])
			}
		}
		b = b[min((size+unix.SizeofPtr-1)&^(unix.SizeofPtr-1), len(b)):]
	}
}

// mapped is an IPv4 address in IPv6 (RFC 4291 section 2.5.5.2); 0.0.0.0 is none.
func mapped(a [4]byte) (b [16]byte) {
	if a != [4]byte{} {
		b[10], b[11] = 0xff, 0xff
		copy(b[12:], a[:])
	}
	return b
}

func isMapped(a *[16]byte) bool {
	return binary.NativeEndian.Uint64(a[:]) == 0 && a[8] == 0 && a[9] == 0 && a[10] == 0xff && a[11] == 0xff
}

// isLinkLocal says of an IPv6 address whether it is of one link alone: fe80::/10.
func isLinkLocal(a *[16]byte) bool { return a[0] == 0xfe && a[1]&0xc0 == 0x80 }

// sockaddr writes an address the kernel's way and returns its size. An IPv6
// socket takes IPv4 mapped.
func sockaddr(sa *unix.RawSockaddrInet6, v6 bool, a *[16]byte, port uint16, zone uint32) uint32 {
	if !v6 {
		in := (*unix.RawSockaddrInet4)(unsafe.Pointer(sa))
		*in = unix.RawSockaddrInet4{Family: unix.AF_INET, Addr: [4]byte(a[12:])}
		binary.BigEndian.PutUint16((*[2]byte)(unsafe.Pointer(&in.Port))[:], port)
		return unix.SizeofSockaddrInet4
	}
	*sa = unix.RawSockaddrInet6{Family: unix.AF_INET6, Addr: *a}
	if isLinkLocal(a) {
		sa.Scope_id = zone
	}
	binary.BigEndian.PutUint16((*[2]byte)(unsafe.Pointer(&sa.Port))[:], port)
	return unix.SizeofSockaddrInet6
}

// addrPort is an address with the name of its zone, for people and events.
func addrPort(a [16]byte, port uint16, zone uint32) netip.AddrPort {
	ip := netip.AddrFrom16(a).Unmap()
	if zone != 0 && isLinkLocal(&a) {
		ip = ip.WithZone(zoneName(zone))
	}
	return netip.AddrPortFrom(ip, port)
}

// Room for the control messages that a datagram comes with, those of options
// set by others included, and leaves with.
const (
	controlIn  = 256
	controlOut = 64
)

// writeSource writes into b the control message that chooses the address a datagram
// leaves from, and returns its size.
func writeSource(b *[controlOut]byte, a *[16]byte, zone uint32) int {
	h := (*unix.Cmsghdr)(unsafe.Pointer(b))
	if isMapped(a) {
		h.Level, h.Type = unix.IPPROTO_IP, unix.IP_PKTINFO
		h.SetLen(unix.CmsgLen(unix.SizeofInet4Pktinfo))
		data := b[unix.SizeofCmsghdr:]
		clear(data[:unix.SizeofInet4Pktinfo])
		copy(data[4:], a[12:])
		return unix.CmsgSpace(unix.SizeofInet4Pktinfo)
	}
	h.Level, h.Type = unix.IPPROTO_IPV6, unix.IPV6_PKTINFO
	h.SetLen(unix.CmsgLen(unix.SizeofInet6Pktinfo))
	data := b[unix.SizeofCmsghdr:]
	copy(data, a[:])
	if !isLinkLocal(a) {
		zone = 0
	}
	binary.NativeEndian.PutUint32(data[16:], zone)
	return unix.CmsgSpace(unix.SizeofInet6Pktinfo)
}

// writeSegment writes behind the first n bytes of b the control message that
// cuts a train into datagrams of seg bytes, and returns the size of both.
func writeSegment(b *[controlOut]byte, n, seg int) int {
	h := (*unix.Cmsghdr)(unsafe.Pointer(&b[n]))
	h.Level, h.Type = unix.IPPROTO_UDP, unix.UDP_SEGMENT
	h.SetLen(unix.CmsgLen(2))
	binary.NativeEndian.PutUint16(b[n+unix.SizeofCmsghdr:], uint16(seg))
	return n + unix.CmsgSpace(2)
}

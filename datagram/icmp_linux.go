package datagram

import (
	"encoding/binary"
	"net/netip"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/fivetuple/fivetuple"
)

// reportICMP has the kernel report all ICMP errors on a connected socket, with
// who sent them; without it only "port unreachable" and the like are. It is a
// Control function.
func reportICMP(network, _ string, c syscall.RawConn) error {
	return onFD(c, func(fd int) error {
		if strings.HasSuffix(network, "6") {
			return unix.SetsockoptInt(fd, unix.IPPROTO_IPV6, unix.IPV6_RECVERR, 1)
		}
		return unix.SetsockoptInt(fd, unix.IPPROTO_IP, unix.IP_RECVERR, 1)
	})
}

// queuedError takes the first error off the socket's error queue, nil if there
// is none or it is of this host's own making. The kernel reports the next, if
// there is one, by the socket's next error.
func (c *Conn) queuedError() *ICMPError {
	raw, err := c.SyscallConn()
	if err != nil {
		return nil
	}
	var to unix.Sockaddr
	control := make([]byte, 512)
	err = onFD(raw, func(fd int) error {
		var n int
		_, n, _, to, err = unix.Recvmsg(fd, nil, control, unix.MSG_ERRQUEUE|unix.MSG_DONTWAIT)
		control = control[:max(n, 0)]
		return err
	})
	if err != nil {
		return nil
	}
	messages, err := unix.ParseSocketControlMessage(control)
	if err != nil {
		return nil
	}
	for _, m := range messages {
		v4 := m.Header.Level == unix.IPPROTO_IP && m.Header.Type == unix.IP_RECVERR
		v6 := m.Header.Level == unix.IPPROTO_IPV6 && m.Header.Type == unix.IPV6_RECVERR
		if v4 || v6 {
			if e := icmpError(m.Data); e != nil {
				e.To = c.remote
				if a := sockaddrAddr(to); a.IsValid() {
					e.To = fivetuple.IPAddress(a)
				}
				return e
			}
		}
	}
	return nil
}

// icmpError reads a struct sock_extended_err and the address behind it, ip(7);
// nil if the error did not come by ICMP.
func icmpError(b []byte) *ICMPError {
	const size = 16 // errno, origin, type, code, padding, info, data
	if len(b) < size || b[4] != unix.SO_EE_ORIGIN_ICMP && b[4] != unix.SO_EE_ORIGIN_ICMP6 {
		return nil
	}
	e := &ICMPError{Errno: syscall.Errno(binary.NativeEndian.Uint32(b)), Type: b[5], Code: b[6]}
	if e.Errno == syscall.EMSGSIZE {
		e.MTU = int(binary.NativeEndian.Uint32(b[8:]))
	}
	// A struct sockaddr_in or sockaddr_in6: the address is at 4 or at 8.
	if offender := b[size:]; len(offender) >= unix.SizeofSockaddrInet4 {
		switch binary.NativeEndian.Uint16(offender) {
		case unix.AF_INET:
			e.From = netip.AddrFrom4([4]byte(offender[4:8]))
		case unix.AF_INET6:
			if len(offender) >= 24 {
				e.From = netip.AddrFrom16([16]byte(offender[8:24])).Unmap()
			}
		}
	}
	return e
}

func sockaddrAddr(sa unix.Sockaddr) netip.AddrPort {
	switch sa := sa.(type) {
	case *unix.SockaddrInet4:
		return netip.AddrPortFrom(netip.AddrFrom4(sa.Addr), uint16(sa.Port))
	case *unix.SockaddrInet6:
		return netip.AddrPortFrom(netip.AddrFrom16(sa.Addr), uint16(sa.Port))
	}
	return netip.AddrPort{}
}

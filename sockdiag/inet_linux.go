package sockdiag

import (
	"encoding/binary"
	"fmt"
	"net"
	"net/netip"
	"strconv"

	"golang.org/x/sys/unix"

	"github.com/fivetuple/fivetuple"
)

// Sizes and offsets in include/uapi/linux/inet_diag.h. Numbers are in the
// byte order of the machine but for ports and addresses.
const (
	inetRequestSize = 56 // struct inet_diag_req_v2
	inetMessageSize = 72 // struct inet_diag_msg

	inetDiagV6Only = 11 // INET_DIAG_SKV6ONLY, __u8

	// boundInactive is TCP_BOUND_INACTIVE, by which a request asks for TCP
	// sockets in CLOSE that are bound.
	boundInactive = 13
)

// inetRequest asks for the sockets of one family and protocol. Ports that are
// not 0 narrow the dump in the kernel (inet_diag_dump_icsk, udp_dump).
func inetRequest(q Query, family, protocol uint8) []byte {
	states := q.States
	switch {
	case states == 0:
		states = ^States(0)
	case states&(1<<fivetuple.StateClose) != 0:
		states |= 1 << boundInactive
	}
	b := make([]byte, inetRequestSize)
	b[0], b[1] = family, protocol
	binary.NativeEndian.PutUint32(b[4:], uint32(states))
	binary.BigEndian.PutUint16(b[8:], q.LocalPort)
	binary.BigEndian.PutUint16(b[10:], q.RemotePort)
	return b
}

// decodeInet fills s from a struct inet_diag_msg and its attributes.
func decodeInet(s *Socket, b []byte, zones zoneNames) error {
	if len(b) < inetMessageSize {
		return truncated("inet_diag message", len(b), inetMessageSize)
	}
	family := b[0]
	s.State = fivetuple.State(b[1])
	s.Interface = binary.NativeEndian.Uint32(b[40:])
	var local, remote netip.Addr
	switch family {
	case unix.AF_INET:
		local = netip.AddrFrom4([4]byte(b[8:]))
		remote = netip.AddrFrom4([4]byte(b[24:]))
	case unix.AF_INET6:
		local = zones.scoped(netip.AddrFrom16([16]byte(b[8:])), s.Interface)
		remote = zones.scoped(netip.AddrFrom16([16]byte(b[24:])), s.Interface)
	default:
		return fmt.Errorf("inet_diag message of unknown address family %d", family)
	}
	s.Local = netip.AddrPortFrom(local, binary.BigEndian.Uint16(b[4:]))
	if port := binary.BigEndian.Uint16(b[6:]); port != 0 || !remote.IsUnspecified() {
		s.Remote = netip.AddrPortFrom(remote, port)
	}
	s.Cookie = cookie(b[44:])
	s.RecvQueue = binary.NativeEndian.Uint32(b[56:])
	s.SendQueue = binary.NativeEndian.Uint32(b[60:])
	s.UID = binary.NativeEndian.Uint32(b[64:])
	s.Inode = binary.NativeEndian.Uint32(b[68:])
	if family == unix.AF_INET6 && (s.State == fivetuple.StateListen || s.State == fivetuple.StateClose) {
		return decodeV6Only(s, b[inetMessageSize:])
	}
	return nil
}

func decodeV6Only(s *Socket, b []byte) error {
	for len(b) > 0 {
		kind, value, rest, err := nextAttribute(b)
		if err != nil {
			return err
		}
		if kind == inetDiagV6Only && len(value) > 0 {
			s.V6Only = value[0] != 0
		}
		b = rest
	}
	return nil
}

// cookie reads the two halves that the kernel gives, the lower one first
// (sock_diag_save_cookie, net/core/sock_diag.c).
func cookie(b []byte) uint64 {
	return uint64(binary.NativeEndian.Uint32(b)) | uint64(binary.NativeEndian.Uint32(b[4:]))<<32
}

// zoneNames keeps the names of interfaces for the length of one dump.
type zoneNames map[uint32]string

// scoped unmaps IPv4, and gives a link-local address the zone that the net
// package would give it.
func (z zoneNames) scoped(a netip.Addr, index uint32) netip.Addr {
	a = a.Unmap()
	if index == 0 || !a.Is6() || !a.IsLinkLocalUnicast() && !a.IsLinkLocalMulticast() {
		return a
	}
	name, ok := z[index]
	if !ok {
		name = strconv.FormatUint(uint64(index), 10)
		if i, err := net.InterfaceByIndex(int(index)); err == nil {
			name = i.Name
		}
		z[index] = name
	}
	return a.WithZone(name)
}

package sockdiag

import (
	"encoding/binary"
	"fmt"
	"net"
	"net/netip"
	"strconv"
	"time"

	"golang.org/x/sys/unix"

	"github.com/fivetuple/fivetuple"
	"github.com/fivetuple/fivetuple/sockopt"
)

// Sizes and offsets in include/uapi/linux/inet_diag.h. Numbers are in the
// byte order of the machine but for ports and addresses.
const (
	inetRequestSize = 56 // struct inet_diag_req_v2
	tcpRequestSize  = 60 // struct inet_diag_req
	inetMessageSize = 72 // struct inet_diag_msg

	// tcpGetSock is TCPDIAG_GETSOCK, the older request: for TCP alone, and for
	// both families at once, so that the kernel goes through its table once.
	tcpGetSock = 18

	reqBytecode = 1 // INET_DIAG_REQ_BYTECODE
	reqProtocol = 3 // INET_DIAG_REQ_PROTOCOL, __u32, since Linux 5.9

	// Attributes of answers. Those below 9 come if bit number-1 of the
	// request's extensions is set, the others always.
	inetDiagInfo       = 2  // INET_DIAG_INFO, struct tcp_info
	inetDiagCongestion = 4  // INET_DIAG_CONG, a name
	inetDiagTOS        = 5  // INET_DIAG_TOS, __u8
	inetDiagTClass     = 6  // INET_DIAG_TCLASS, __u8
	inetDiagMemory     = 7  // INET_DIAG_SKMEMINFO, __u32 each
	inetDiagProtocol   = 10 // INET_DIAG_PROTOCOL, __u8, of a raw socket or an event
	inetDiagV6Only     = 11 // INET_DIAG_SKV6ONLY, __u8
	inetDiagMark       = 15 // INET_DIAG_MARK, __u32, with CAP_NET_ADMIN
	inetDiagCgroup     = 21 // INET_DIAG_CGROUP_ID, __u64, since Linux 5.9

	// boundInactive is TCP_BOUND_INACTIVE, by which a request asks for TCP
	// sockets in CLOSE that are bound.
	boundInactive = 13
)

// inetRequests asks for the protocols that have ports. MPTCP comes first, so
// that its subflows are known when TCP is listed.
func (q Query) inetRequests(wanted kinds, d *decoder) []request {
	var all []request
	if d.subflows != nil && (q.States != 0 || q.LocalPort != 0 || q.RemotePort != 0 || q.Program != nil) {
		// What narrows connections would miss subflows that differ from them.
		all = append(all, Query{}.inetPair(d, fivetuple.MPTCP, unix.IPPROTO_MPTCP, func(s *Socket) bool {
			d.subflows.add(s)
			return false
		})...)
	}
	if wanted.has(fivetuple.MPTCP) {
		all = append(all, q.inetPair(d, fivetuple.MPTCP, unix.IPPROTO_MPTCP, func(s *Socket) bool {
			d.subflows.add(s)
			return true
		})...)
	}
	if wanted.has(fivetuple.TCP) {
		r := request{
			what: "tcp", module: "tcp_diag", kind: tcpGetSock,
			decode: func(s *Socket, b []byte) (bool, error) {
				*s = Socket{Protocol: fivetuple.TCP}
				err := d.inet(s, b)
				return !d.subflows.have(s), err
			},
		}
		states := q.tcpStates()
		connected, bound := r, r
		if connected.body = q.tcpRequest(states &^ (1 << boundInactive)); states != 1<<boundInactive {
			all = append(all, connected)
		}
		if bound.body = q.tcpRequest(1 << boundInactive); states&(1<<boundInactive) != 0 {
			bound.aside = true // there the kernel goes through all TCP sockets once more
			all = append(all, bound)
		}
	}
	every := func(*Socket) bool { return true }
	if wanted.has(fivetuple.UDP) {
		all = append(all, q.inetPair(d, fivetuple.UDP, unix.IPPROTO_UDP, every)...)
	}
	if wanted.has(fivetuple.UDPLite) {
		all = append(all, q.inetPair(d, fivetuple.UDPLite, unix.IPPROTO_UDPLITE, every)...)
	}
	if wanted.has(fivetuple.SCTP) {
		all = append(all, q.sctpRequests(d)...)
	}
	return all
}

// inetPair asks for the sockets of one protocol, IPv4 and then IPv6. Not every
// module looks at the states, so keep has to be true and the state wanted.
func (q Query) inetPair(d *decoder, network fivetuple.Network, protocol uint32, keep func(*Socket) bool) []request {
	r := request{
		what: network.String(), module: diagModules[network], kind: unix.SOCK_DIAG_BY_FAMILY,
		decode: func(s *Socket, b []byte) (bool, error) {
			*s = Socket{Protocol: network}
			err := d.inet(s, b)
			return keep(s) && q.States.include(s.State), err
		},
	}
	four, six := r, r
	four.body, six.body = q.inetRequest(unix.AF_INET, protocol), q.inetRequest(unix.AF_INET6, protocol)
	return []request{four, six}
}

var diagModules = map[fivetuple.Network]string{
	fivetuple.TCP: "tcp_diag", fivetuple.UDP: "udp_diag", fivetuple.UDPLite: "udp_diag",
	fivetuple.MPTCP: "mptcp_diag", fivetuple.SCTP: "sctp_diag", fivetuple.Raw: "raw_diag",
}

// inetRequest asks for the sockets of one family and protocol. Ports that are
// not 0 narrow the dump in the kernel (inet_diag_dump_icsk, udp_dump).
func (q Query) inetRequest(family uint8, protocol uint32) []byte {
	b := make([]byte, inetRequestSize)
	b[0], b[1], b[2] = family, uint8(protocol), q.extensions()
	binary.NativeEndian.PutUint32(b[4:], uint32(q.States.orAll()))
	q.putPorts(b[8:])
	if protocol > 255 {
		b[1] = noProtocol // what a kernel looks for that does not know the attribute
		b = appendAttribute(b, reqProtocol, binary.NativeEndian.AppendUint32(nil, protocol))
	}
	return q.appendProgram(b)
}

// noProtocol is a number of RFC 3692 for experiments, which has no diagnostics.
const noProtocol = 253

// tcpRequest asks for the TCP sockets of both families in these states.
func (q Query) tcpRequest(states uint32) []byte {
	b := make([]byte, tcpRequestSize)
	b[3] = q.extensions()
	q.putPorts(b[4:])
	binary.NativeEndian.PutUint32(b[52:], states)
	return q.appendProgram(b)
}

func (q Query) putPorts(id []byte) {
	binary.BigEndian.PutUint16(id, q.LocalPort)
	binary.BigEndian.PutUint16(id[2:], q.RemotePort)
}

func (q Query) appendProgram(b []byte) []byte {
	if len(q.Program) == 0 {
		return b
	}
	return appendAttribute(b, reqBytecode, q.Program)
}

// tcpStates is the mask of idiag_states for TCP. No TCP socket is in CLOSE in
// the kernel's table of connections, and a mask without CLOSE spares going
// through that.
func (q Query) tcpStates() uint32 {
	states := q.States
	switch {
	case states == 0:
		return ^uint32(0)
	case states&(1<<fivetuple.StateClose|notBound) == 1<<fivetuple.StateClose:
		states |= 1 << boundInactive
	}
	return uint32(states &^ (1<<fivetuple.StateClose | notBound))
}

// extensions is the mask of idiag_ext.
func (q Query) extensions() (ext uint8) {
	for _, e := range []struct {
		detail Details
		bits   uint8
	}{
		{WithInfo, 1 << (inetDiagInfo - 1)},
		{WithMemory, 1 << (inetDiagMemory - 1)},
		{WithCongestion, 1 << (inetDiagCongestion - 1)},
		{WithTOS, 1<<(inetDiagTOS-1) | 1<<(inetDiagTClass-1)},
	} {
		if q.Details&e.detail != 0 {
			ext |= e.bits
		}
	}
	return ext
}

// decoder decodes the answers of one dump, and keeps what they have in common.
type decoder struct {
	details    Details
	zones      zoneNames
	congestion map[string]string // the names of algorithms, each once
	info       sockopt.TCPInfo   // of the latest socket
	subflows   *subflows         // nil if they are to be listed
}

// inet fills s from a struct inet_diag_msg and its attributes.
func (d *decoder) inet(s *Socket, b []byte) error {
	if len(b) < inetMessageSize {
		return truncated("inet_diag message", len(b), inetMessageSize)
	}
	s.State = fivetuple.State(b[1])
	expires := int32(binary.NativeEndian.Uint32(b[52:])) // below 0 when overdue
	s.Timer = Timer{Kind: TimerKind(b[2]), Retransmits: b[3], Expires: time.Duration(max(expires, 0)) * time.Millisecond}
	s.Interface = binary.NativeEndian.Uint32(b[40:])
	var local, remote netip.Addr
	switch family := b[0]; family {
	case unix.AF_INET:
		local = netip.AddrFrom4([4]byte(b[8:]))
		remote = netip.AddrFrom4([4]byte(b[24:]))
	case unix.AF_INET6:
		local = d.zones.scoped(netip.AddrFrom16([16]byte(b[8:])), s.Interface)
		remote = d.zones.scoped(netip.AddrFrom16([16]byte(b[24:])), s.Interface)
	default:
		return fmt.Errorf("inet_diag message of unknown address family %d", family)
	}
	s.Local = netip.AddrPortFrom(local, binary.BigEndian.Uint16(b[4:]))
	s.Remote = remoteOf(remote, binary.BigEndian.Uint16(b[6:]))
	s.Cookie = cookie(b[44:])
	s.RecvQueue = binary.NativeEndian.Uint32(b[56:])
	s.SendQueue = binary.NativeEndian.Uint32(b[60:])
	s.UID = binary.NativeEndian.Uint32(b[64:])
	s.Inode = binary.NativeEndian.Uint32(b[68:])
	return d.inetAttributes(s, b[inetMessageSize:])
}

// remoteOf is the zero AddrPort for a socket without a peer.
func remoteOf(addr netip.Addr, port uint16) netip.AddrPort {
	if port == 0 && addr.IsUnspecified() {
		return netip.AddrPort{}
	}
	return netip.AddrPortFrom(addr, port)
}

func (d *decoder) inetAttributes(s *Socket, b []byte) error {
	for len(b) > 0 {
		kind, value, rest, err := nextAttribute(b)
		if err != nil {
			return err
		}
		if want := inetAttributeSize(kind); len(value) < want {
			return truncated(fmt.Sprintf("inet_diag attribute %d", kind), len(value), want)
		}
		switch {
		case kind == inetDiagV6Only:
			s.V6Only = value[0] != 0
		case kind == inetDiagProtocol:
			s.Number = uint16(value[0])
		case kind == inetDiagInfo && d.details&WithInfo != 0 && s.Protocol == fivetuple.TCP:
			d.info = sockopt.DecodeTCPInfo(value)
			s.Info = &d.info
		case kind == inetDiagMemory && d.details&WithMemory != 0:
			s.Memory = decodeMemory(value)
		case kind == inetDiagCongestion && d.details&WithCongestion != 0:
			s.Congestion = d.algorithm(value)
		case kind == inetDiagCgroup && d.details&WithCgroup != 0:
			s.Cgroup = binary.NativeEndian.Uint64(value)
		case kind == inetDiagMark && d.details&WithMark != 0:
			s.Mark = binary.NativeEndian.Uint32(value)
		case kind == inetDiagTOS && d.details&WithTOS != 0:
			s.TOS = value[0]
		case kind == inetDiagTClass && d.details&WithTOS != 0:
			s.TClass = value[0]
		}
		b = rest
	}
	return nil
}

// inetAttributeSize is the least size of an attribute's value.
func inetAttributeSize(kind uint16) int {
	switch kind {
	case inetDiagTOS, inetDiagTClass, inetDiagProtocol, inetDiagV6Only:
		return 1
	case inetDiagMark:
		return 4
	case inetDiagCgroup:
		return 8
	}
	return 0
}

// algorithm gives the same string each time for the same name.
func (d *decoder) algorithm(b []byte) string {
	name, ok := d.congestion[string(b)]
	if !ok {
		if d.congestion == nil {
			d.congestion = map[string]string{}
		}
		name = escaped(b)
		d.congestion[string(b)] = name
	}
	return name
}

// decodeMemory reads an array of __u32, which older kernels give shorter.
func decodeMemory(b []byte) (m Memory) {
	for _, field := range []*uint32{&m.RecvAlloc, &m.RecvBuffer, &m.SendAlloc, &m.SendBuffer,
		&m.Forward, &m.SendQueued, &m.Option, &m.Backlog, &m.Drops} {
		if len(b) < 4 {
			break
		}
		*field = binary.NativeEndian.Uint32(b)
		b = b[4:]
	}
	return m
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
	return a.WithZone(z.name(index))
}

// name is that of an interface, or the index if it is gone.
func (z zoneNames) name(index uint32) string {
	name, ok := z[index]
	if !ok {
		name = strconv.FormatUint(uint64(index), 10)
		if i, err := net.InterfaceByIndex(int(index)); err == nil {
			name = i.Name
		}
		z[index] = name
	}
	return name
}

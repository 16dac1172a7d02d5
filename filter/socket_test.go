package filter

import (
	"math/rand/v2"
	"net/netip"
	"slices"

	"github.com/fivetuple/fivetuple"
)

// fakeSocket is a socket as the kernel has it: IPv4 mapped into IPv6 is not unmapped.
type fakeSocket struct {
	protocol     fivetuple.Network
	state        fivetuple.State
	local, peer  netip.AddrPort // of an inet socket; no peer is the unspecified address and port 0
	v6only       bool
	device, mark uint32
	cgroup       uint64
	name         string
	more         map[Field][]Value
}

// Any is what the table says of such a socket.
func (s *fakeSocket) Any(f Field, test func(Value) bool) bool {
	ports := setPorts>>s.protocol&1 != 0
	hasPeer := s.peer.IsValid() && (!s.peer.Addr().Unmap().IsUnspecified() || s.peer.Port() != 0)
	a := s.local.Addr().Unmap()
	if a.IsLinkLocalUnicast() && a.Is6() && s.device == 1 {
		a = a.WithZone("lo")
	}
	switch f {
	case FieldProtocol:
		return test(Value{Number: uint64(s.protocol)})
	case FieldState:
		return test(Value{Number: uint64(s.state)})
	case FieldFamily:
		return a.Is6() && test(Value{Number: 6}) || (a.Is4() || a.IsValid() && a.IsUnspecified() && !s.v6only) && test(Value{Number: 4})
	case FieldLocalAddr:
		return a.IsValid() && test(Value{Addr: a})
	case FieldRemoteAddr:
		return hasPeer && test(Value{Addr: s.peer.Addr().Unmap()})
	case FieldLocalPort:
		return ports && test(Value{Number: uint64(s.local.Port())})
	case FieldRemotePort:
		return ports && hasPeer && test(Value{Number: uint64(s.peer.Port())})
	case FieldDevice:
		return s.device != 0 && test(Value{Number: uint64(s.device), Text: map[uint32]string{1: "lo"}[s.device]})
	case FieldMark:
		return s.local.IsValid() && test(Value{Number: uint64(s.mark)})
	case FieldCgroup:
		return s.cgroup != 0 && test(Value{Number: s.cgroup})
	case FieldName:
		return s.name != "" && test(Value{Text: s.name})
	}
	return slices.ContainsFunc(s.more[f], test)
}

var (
	fakePorts = []uint16{22, 80, 443, 8080, 50000}
	fakeAddrs = []string{"127.0.0.1", "10.0.0.1", "10.9.0.1", "0.0.0.0", "::1", "fd00::1", "::", "fe80::1"}
)

// randomSocket makes a socket that there could be.
func randomSocket(r *rand.Rand) *fakeSocket {
	s := &fakeSocket{
		protocol: pick(r, fivetuple.TCP, fivetuple.TCP, fivetuple.TCP, fivetuple.UDP, fivetuple.UDP, fivetuple.MPTCP, fivetuple.UDPLite,
			fivetuple.SCTP, fivetuple.Raw, fivetuple.ICMP, fivetuple.Unix, fivetuple.Unixgram, fivetuple.Packet, fivetuple.Netlink),
		more: map[Field][]Value{FieldRecvQueue: {{Number: uint64(r.IntN(2))}}, FieldSendQueue: {{Number: uint64(r.IntN(2))}}, FieldUser: {{Number: uint64(r.IntN(2))}}},
	}
	states := fivetuple.States()
	switch {
	case s.protocol.IsUnix():
		s.name, s.state = pick(r, "", "@name", "/run/a.sock"), pick(r, fivetuple.StateListen, fivetuple.StateEstablished, fivetuple.StateClose)
		return s
	case !s.protocol.IsInet():
		return s
	}
	addr := func() netip.Addr { return netip.MustParseAddr(fakeAddrs[r.IntN(len(fakeAddrs))]) }
	port := func() uint16 { return fakePorts[r.IntN(len(fakePorts))] + uint16(r.IntN(2)) }
	s.state = states[r.IntN(len(states)-1)] // the table says SYN_RECV for NEW_SYN_RECV
	local := addr()
	peer := netip.IPv4Unspecified()
	if local.Is6() {
		peer = netip.IPv6Unspecified()
	}
	peerPort := uint16(0)
	if !local.IsUnspecified() && r.IntN(3) > 0 {
		for peer = addr(); peer.Is4() != local.Is4() || peer.IsUnspecified(); peer = addr() {
		}
		peerPort = port()
		if s.protocol != fivetuple.TCP && r.IntN(8) == 0 {
			peerPort = 0
		}
	}
	if local.Is4() && r.IntN(3) == 0 {
		local = netip.AddrFrom16(local.As16())
		if peerPort != 0 || !peer.IsUnspecified() {
			peer = netip.AddrFrom16(peer.As16())
		} else {
			peer = netip.IPv6Unspecified()
		}
	}
	s.local, s.peer = netip.AddrPortFrom(local, port()), netip.AddrPortFrom(peer, peerPort)
	if s.protocol == fivetuple.Raw {
		s.local = netip.AddrPortFrom(local, uint16(r.IntN(256)))
	}
	s.v6only = local == netip.IPv6Unspecified() && r.IntN(2) == 0
	s.device, s.mark = uint32(pick(r, 0, 0, 1, 2)), uint32(pick(r, 0, 0, 1, 7))
	if s.state != fivetuple.StateTimeWait && s.state != fivetuple.StateSynRecv {
		s.cgroup = pick(r, uint64(1), 42)
		s.more[FieldInode] = []Value{{Number: 1}}
	}
	return s
}

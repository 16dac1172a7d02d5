package sockdiag

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/fivetuple/fivetuple"
)

func TestFindsSocketsOfTheOtherKinds(t *testing.T) {
	if !alone(t) {
		return
	}
	lite := protocolSocket(t, unix.AF_INET6, unix.SOCK_DGRAM, unix.IPPROTO_UDPLITE)
	ok(unix.Bind(lite, &unix.SockaddrInet6{Addr: netip.IPv6Loopback().As16()}))
	litePort := uint16(must(unix.Getsockname(lite)).(*unix.SockaddrInet6).Port)
	lo := must(unix.Socket(unix.AF_PACKET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0))
	t.Cleanup(func() { unix.Close(lo) })
	ok(unix.Bind(lo, &unix.SockaddrLinklayer{Protocol: 0xcc88, Ifindex: 1})) // big-endian 0x88cc
	odd := protocolSocket(t, unix.AF_PACKET, unix.SOCK_DGRAM, 0xefbe)
	route := protocolSocket(t, unix.AF_NETLINK, unix.SOCK_RAW, unix.NETLINK_ROUTE)
	ok(unix.Bind(route, &unix.SockaddrNetlink{Family: unix.AF_NETLINK, Pid: 4_000_000_000, Groups: 1}))
	peer := protocolSocket(t, unix.AF_NETLINK, unix.SOCK_RAW, unix.NETLINK_ROUTE)
	ok(unix.Bind(peer, &unix.SockaddrNetlink{Family: unix.AF_NETLINK, Pid: 77}))
	ok(unix.Connect(peer, &unix.SockaddrNetlink{Family: unix.AF_NETLINK, Pid: 78}))
	raw := protocolSocket(t, unix.AF_INET, unix.SOCK_RAW, unix.IPPROTO_ICMP)
	ok(unix.Bind(raw, &unix.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}}))
	raw6 := protocolSocket(t, unix.AF_INET6, unix.SOCK_RAW, 89)
	ok(unix.Connect(raw6, &unix.SockaddrInet6{Addr: netip.IPv6Loopback().As16()}))
	loopback := netip.MustParseAddr("127.0.0.1")

	for _, c := range []struct {
		fd   int
		want Socket
	}{
		{lite, Socket{Protocol: fivetuple.UDPLite, State: fivetuple.StateClose, Local: netip.AddrPortFrom(netip.IPv6Loopback(), litePort), V6Only: true, UID: testUID}},
		{lo, Socket{Protocol: fivetuple.Packet, State: fivetuple.StateClose, Interface: 1, Name: "lldp:lo", Number: unix.ETH_P_LLDP, UID: testUID}},
		{odd, Socket{Protocol: fivetuple.Packet, State: fivetuple.StateClose, Name: "0xbeef:*", Number: 0xbeef, UID: testUID}},
		{route, Socket{Protocol: fivetuple.Netlink, State: fivetuple.StateClose, Name: "route:4000000000"}},
		{peer, Socket{Protocol: fivetuple.Netlink, State: fivetuple.StateEstablished, Name: "route:77"}},
		{raw, Socket{Protocol: fivetuple.Raw, State: fivetuple.StateClose, Local: netip.AddrPortFrom(loopback, 0), Number: unix.IPPROTO_ICMP, UID: testUID}},
		{raw6, Socket{Protocol: fivetuple.Raw, State: fivetuple.StateEstablished, Local: netip.AddrPortFrom(netip.IPv6Loopback(), 0), Remote: netip.AddrPortFrom(netip.IPv6Loopback(), 0), Number: 89, UID: testUID}},
	} {
		for name, q := range map[string]Query{
			"all": {}, "by name": {Protocols: []fivetuple.Network{c.want.Protocol}}, "by state": {States: StatesOf(c.want.State)},
		} {
			got := find(t, q, func(s Socket) bool { return s.Inode == fdInode(c.fd) })
			if got.Protocol != fivetuple.Raw && got.Cookie == 0 {
				t.Errorf("%s: no cookie", c.want.Name)
			}
			c.want.Inode, c.want.Cookie = got.Inode, got.Cookie
			if got != c.want {
				t.Errorf("%s:\n got %+v\nwant %+v", name, got, c.want)
			}
		}
		other := Query{States: ^StatesOf(c.want.State)}
		if all := must(List(t.Context(), other)); slices.ContainsFunc(all, func(s Socket) bool { return s.Inode == c.want.Inode }) {
			t.Errorf("%v is listed among those in other states", c.want.Tuple())
		}
	}
}

func TestFindsPingSockets(t *testing.T) {
	if !alone(t) {
		return
	}
	ok(os.WriteFile("/proc/sys/net/ipv4/ping_group_range", []byte(fmt.Sprint(testUID, " ", testUID)), 0))
	for _, c := range []struct {
		family, protocol int
		at               unix.Sockaddr
		want             netip.Addr
	}{
		{unix.AF_INET, unix.IPPROTO_ICMP, &unix.SockaddrInet4{Port: 99, Addr: [4]byte{127, 0, 0, 1}}, netip.MustParseAddr("127.0.0.1")},
		{unix.AF_INET6, unix.IPPROTO_ICMPV6, &unix.SockaddrInet6{Port: 98, Addr: netip.IPv6Loopback().As16()}, netip.IPv6Loopback()},
	} {
		fd := protocolSocket(t, c.family, unix.SOCK_DGRAM, c.protocol)
		ok(unix.Bind(fd, c.at))
		got := find(t, Query{Protocols: []fivetuple.Network{fivetuple.ICMP}}, func(s Socket) bool { return s.Inode == fdInode(fd) })
		want := Socket{Protocol: fivetuple.ICMP, State: fivetuple.StateClose, Local: got.Local, Number: uint16(c.protocol), UID: testUID, Inode: fdInode(fd)}
		if got != want || got.Local.Addr() != c.want || got.Local.Port() < 98 {
			t.Errorf("got %+v\nwant %+v at %v", got, want, c.want)
		}
	}
}

// TestProcAgreesWithDiagnostics reads what is read where modules are missing.
func TestProcAgreesWithDiagnostics(t *testing.T) {
	if !alone(t) {
		return
	}
	openEverything(t)
	request := Query{}.packetRequest(&decoder{zones: zoneNames{}})
	request.body = nil
	var s Socket
	look := func() (ours, theirs []Socket) {
		more, err := request.dump(t.Context(), nil, &s, func(s *Socket) bool {
			ours = append(ours, *s)
			return true
		})
		if !more || err != nil {
			t.Fatalf("got more %v, error %v", more, err)
		}
		theirs = must(List(t.Context(), Query{Protocols: []fivetuple.Network{fivetuple.Packet}}))
		for i := range theirs {
			theirs[i].Cookie = 0
		}
		return ours, theirs
	}
	// Packets go on arriving while the two look: once must be the same.
	got, want := look()
	for deadline := time.Now().Add(5 * time.Second); !slices.Equal(got, want) && time.Now().Before(deadline); {
		got, want = look()
	}
	if !slices.Equal(got, want) || len(got) < 5 {
		t.Errorf("got %+v\nwant %+v", got, want)
	}
	if more, err := request.dump(t.Context(), nil, &s, func(*Socket) bool { return false }); more || err != nil {
		t.Errorf("stopped: got more %v, error %v", more, err)
	}
}

func TestMissingKindsAreLeftOut(t *testing.T) {
	if !alone(t) {
		return
	}
	if _, err := List(t.Context(), Query{}); err != nil {
		t.Errorf("all: got error %v", err)
	}
	// Whether the kernel has SCTP or not: there are others.
	if _, err := List(t.Context(), Query{Protocols: []fivetuple.Network{fivetuple.SCTP, fivetuple.TCP}}); err != nil {
		t.Errorf("SCTP and TCP: got error %v", err)
	}
	// A kernel has no diagnostics of protocol 253 of RFC 3692.
	c := must(dial())
	defer c.close()
	r := request{module: "x_diag", kind: unix.SOCK_DIAG_BY_FAMILY, body: Query{}.inetRequest(unix.AF_INET, noProtocol)}
	if _, err := r.dump(t.Context(), c, &Socket{}, nil); !errors.Is(err, errors.ErrUnsupported) {
		t.Errorf("got error %v, want %v", err, errors.ErrUnsupported)
	}
	r.proc = func(s *Socket, each func(*Socket) bool) (bool, error) {
		return readProc(s, "not-there", nil, each)
	}
	if _, err := r.dump(t.Context(), c, &Socket{}, nil); !errors.Is(err, errors.ErrUnsupported) {
		t.Errorf("nor in /proc: got error %v, want %v", err, errors.ErrUnsupported)
	}
	if _, err := List(t.Context(), Query{Program: []byte{1, 2, 3, 4}}); !errors.Is(err, unix.EINVAL) {
		t.Errorf("bad program: got error %v, want %v", err, unix.EINVAL)
	}
}

func TestStatesNarrowInTheKernel(t *testing.T) {
	const listenAndClose = 1<<fivetuple.StateListen | 1<<fivetuple.StateClose
	for _, c := range []struct {
		name     string
		states   States
		tcp, udp uint32
	}{
		{"all", 0, ^uint32(0), ^uint32(0)},
		{"listening", Listening, 1 << fivetuple.StateListen, listenAndClose | 1<<31},
		{"listening or bound", ListeningOrBound, 1<<fivetuple.StateListen | 1<<boundInactive, listenAndClose},
		{"close", StatesOf(fivetuple.StateClose), 1 << boundInactive, 1 << fivetuple.StateClose},
		{"all but one", ^StatesOf(fivetuple.StateTimeWait), ^uint32(1<<fivetuple.StateTimeWait | 1<<fivetuple.StateClose | 1<<31), ^uint32(1 << fivetuple.StateTimeWait)},
		{"listening of all but one", Listening & ^StatesOf(fivetuple.StateTimeWait), 1 << fivetuple.StateListen, listenAndClose | 1<<31},
	} {
		q := Query{States: c.states}
		if tcp, udp := q.tcpStates(), uint32(q.States.orAll()); tcp != c.tcp || udp != c.udp {
			t.Errorf("%s: got %#x and %#x, want %#x and %#x", c.name, tcp, udp, c.tcp, c.udp)
		}
	}
}

func TestListeningLeavesOutBoundSockets(t *testing.T) {
	if !alone(t) {
		return
	}
	l := listen(t, "tcp", "127.0.0.1:0")
	connect(t, l.Addr())
	accept(t, l)
	u := packets(t, "udp", "127.0.0.1:0")
	bound := rawSocket(t, unix.AF_INET, unix.SOCK_STREAM)
	ok(unix.Bind(bound, &unix.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}}))
	for _, c := range []struct {
		states States
		want   []uint32
	}{
		{Listening, []uint32{inodeOf(l), inodeOf(u)}},
		{ListeningOrBound, []uint32{inodeOf(l), inodeOf(u), fdInode(bound)}},
	} {
		var got []uint32
		for _, s := range must(List(t.Context(), Query{Protocols: []fivetuple.Network{fivetuple.TCP, fivetuple.UDP}, States: c.states})) {
			got = append(got, s.Inode)
		}
		slices.Sort(got)
		slices.Sort(c.want)
		if !slices.Equal(got, c.want) {
			t.Errorf("states %#x: got inodes %d, want %d", c.states, got, c.want)
		}
	}
}

func TestProgramNarrowsInTheKernel(t *testing.T) {
	if !alone(t) {
		return
	}
	var ports []uint16
	for range 5 {
		ports = append(ports, listening(listen(t, "tcp", "127.0.0.1:0")).Port())
		packets(t, "udp", "[::1]:0")
	}
	slices.Sort(ports)
	// INET_DIAG_BC_S_GE and S_LE, each followed by the port; a jump behind the end refuses.
	program := []byte{2, 8, 20, 0, 0, 0, 0, 0, 3, 8, 12, 0, 0, 0, 0, 0}
	binary.NativeEndian.PutUint16(program[6:], ports[1])
	binary.NativeEndian.PutUint16(program[14:], ports[3])
	var got []uint16
	for _, s := range must(List(t.Context(), Query{Protocols: []fivetuple.Network{fivetuple.TCP}, Program: program})) {
		got = append(got, s.Local.Port())
	}
	slices.Sort(got)
	if !slices.Equal(got, ports[1:4]) {
		t.Errorf("got ports %d, want %d", got, ports[1:4])
	}
}

// manySockets makes a table of many pieces, so that the dump reads ahead.
func manySockets(t *testing.T) map[uint32]bool {
	inodes := map[uint32]bool{}
	for range 2000 {
		inodes[inodeOf(packets(t, "udp", "127.0.0.1:0"))] = true
	}
	return inodes
}

func TestLongDumpsAreWhole(t *testing.T) {
	if !alone(t) {
		return
	}
	missing, n := manySockets(t), 0
	for s, err := range Dump(t.Context(), Query{Protocols: []fivetuple.Network{fivetuple.UDP}}) {
		ok(err)
		n++
		delete(missing, s.Inode)
	}
	if n != 2000 || len(missing) > 0 {
		t.Errorf("got %d sockets, %d of 2000 missing", n, len(missing))
	}
}

func TestLongDumpsStopAnywhereAndLeakNothing(t *testing.T) {
	if !alone(t) {
		return
	}
	manySockets(t)
	before, descriptors := runtime.NumGoroutine(), len(must(os.ReadDir("/proc/self/fd")))
	for stop := 1; stop < 2000; stop += 37 {
		n := 0
		for _, err := range Dump(t.Context(), Query{Protocols: []fivetuple.Network{fivetuple.UDP}}) {
			ok(err)
			if n++; n == stop {
				break
			}
		}
		ctx, cancel := context.WithCancel(t.Context())
		var last error
		rows := 0
		for _, err := range Dump(ctx, Query{Protocols: []fivetuple.Network{fivetuple.UDP}}) {
			if rows++; rows == stop {
				cancel()
			}
			last = err
		}
		// What the last piece holds is given still, at most 32 KiB.
		if !errors.Is(last, context.Canceled) || rows > stop+400 {
			t.Errorf("cancelled at %d: got %d sockets, error %v", stop, rows, last)
		}
		cancel()
	}
	if after, open := runtime.NumGoroutine(), len(must(os.ReadDir("/proc/self/fd"))); after != before || open != descriptors {
		t.Errorf("got %d goroutines, %d descriptors, before %d, %d", after, open, before, descriptors)
	}
}

// The bytes of messages as the uapi headers lay them out.
func packetBody() []byte {
	b := []byte{unix.AF_PACKET, unix.SOCK_RAW}
	b = binary.NativeEndian.AppendUint16(b, unix.ETH_P_ARP)
	b = append(b, words(4242, 0x55667788, 0x11223344)...)
	b = append(b, attribute(packetDiagInfo, words(1, 0, 0, 0, 0, 1))...)
	b = append(b, attribute(packetDiagUID, words(1000))...)
	return append(b, attribute(packetDiagMemory, words(1, 2, 3, 4, 5, 6, 7, 8, 9))...)
}

func netlinkBody() []byte {
	b := []byte{unix.AF_NETLINK, unix.SOCK_RAW, unix.NETLINK_GENERIC, 1}
	b = append(b, words(1234, 0, 0, 4242, 0x55667788, 0x11223344)...)
	b = append(b, attribute(1, words(2))...) // NETLINK_DIAG_GROUPS
	return append(b, attribute(netlinkDiagMemory, words(1, 2, 3, 4, 5, 6, 7, 8, 9))...)
}

func vsockBody() []byte {
	b := []byte{unix.AF_VSOCK, unix.SOCK_STREAM, byte(fivetuple.StateListen), 0}
	return append(b, words(^uint32(0), 1024, 0, 0, 4242, 0x55667788, 0x11223344)...)
}

// rawBody is what raw_diag answers: an inet_diag_msg with the protocol in the place of the port.
func rawBody() []byte {
	b := inetBody()
	b[1] = byte(fivetuple.StateClose)
	binary.BigEndian.PutUint16(b[4:], 89)
	return append(b, attribute(inetDiagProtocol, []byte{89})...)
}

func words(all ...uint32) (b []byte) {
	for _, w := range all {
		b = binary.NativeEndian.AppendUint32(b, w)
	}
	return b
}

var wordMemory = Memory{RecvAlloc: 1, RecvBuffer: 2, SendAlloc: 3, SendBuffer: 4, Forward: 5, SendQueued: 6, Option: 7, Backlog: 8, Drops: 9}

func TestDecodesEveryFieldOfTheOtherKinds(t *testing.T) {
	d := &decoder{details: allDetails, zones: zoneNames{1: "eth0"}}
	const cookie = 0x1122334455667788
	raw := Query{}.rawRequests(d)[1]
	for _, c := range []struct {
		name   string
		decode func(*Socket, []byte) error
		body   []byte
		want   Socket
	}{
		{"packet", d.packet, packetBody(), Socket{Protocol: fivetuple.Packet, State: fivetuple.StateClose, Interface: 1, Name: "arp:eth0",
			Cookie: cookie, Inode: 4242, UID: 1000, RecvQueue: 1, SendQueue: 3, Number: unix.ETH_P_ARP, Memory: wordMemory}},
		{"netlink", d.netlink, netlinkBody(), Socket{Protocol: fivetuple.Netlink, State: fivetuple.StateEstablished, Name: "generic:1234",
			Cookie: cookie, Inode: 4242, RecvQueue: 1, SendQueue: 3, Number: unix.NETLINK_GENERIC, Memory: wordMemory}},
		{"vsock", decodeVsock, vsockBody(), Socket{Protocol: fivetuple.Vsock, State: fivetuple.StateListen, Name: "*:1024", Cookie: cookie, Inode: 4242}},
		{"raw", func(s *Socket, b []byte) error {
			_, err := raw.decode(s, b)
			return err
		}, rawBody(), Socket{Protocol: fivetuple.Raw, State: fivetuple.StateClose, V6Only: true, Interface: 1, Local: netip.MustParseAddrPort("[fe80::1%eth0]:0"),
			Cookie: cookie, Inode: 4242, UID: 1000, RecvQueue: 3, SendQueue: 128, Number: 89}},
	} {
		var got Socket
		if err := c.decode(&got, c.body); err != nil || got != c.want {
			t.Errorf("%s: got %+v, %v\nwant %+v", c.name, got, err, c.want)
		}
		whole := 0
		for n := range c.body {
			if err := c.decode(&got, c.body[:n]); err == nil {
				whole++
			} else if !errors.Is(err, io.ErrUnexpectedEOF) {
				t.Errorf("%s: first %d bytes: got error %v", c.name, n, err)
			}
		}
		if whole > 20 { // between attributes, in their padding, and within memory, which may be short
			t.Errorf("%s: %d beginnings are no error", c.name, whole)
		}
	}
}

func TestSCTPAssociationsHaveTheLikeOfATCPState(t *testing.T) {
	endpoint := inetBody()
	association := func(state byte) []byte {
		b := inetBody()
		b[1], b[2] = state, 4
		binary.BigEndian.PutUint16(b[6:], 1000+uint16(state))
		b[24] = 0xfd
		return b
	}
	var dump [][]byte
	for state := range byte(9) {
		dump = append(dump, endpoint, association(state)) // as sctp_sock_dump does
	}
	for _, c := range []struct {
		states States
		want   []fivetuple.State
	}{
		{0, []fivetuple.State{fivetuple.StateListen, fivetuple.StateClose, fivetuple.StateSynSent, fivetuple.StateSynSent, fivetuple.StateEstablished,
			fivetuple.StateFinWait1, fivetuple.StateFinWait1, fivetuple.StateCloseWait, fivetuple.StateLastAck, fivetuple.StateUnknown}},
		{StatesOf(fivetuple.StateEstablished), []fivetuple.State{fivetuple.StateEstablished}},
		{Listening, []fivetuple.State{fivetuple.StateListen, fivetuple.StateClose}},
	} {
		r := Query{States: c.states}.sctpRequests(&decoder{zones: zoneNames{1: "lo"}})[0]
		var got []fivetuple.State
		for _, b := range dump {
			var s Socket
			keep, err := r.decode(&s, b)
			ok(err)
			if keep {
				got = append(got, s.State)
			}
			if s.Timer != (Timer{}) {
				t.Errorf("got timer %+v, want none", s.Timer)
			}
		}
		if !slices.Equal(got, c.want) {
			t.Errorf("states %#x: got %v, want %v", c.states, got, c.want)
		}
	}
}

func TestNamesOfNetlinkAndPacketSockets(t *testing.T) {
	for _, c := range []struct{ got, want string }{
		{netlinkName(unix.NETLINK_ROUTE, 0), "route:kernel"}, {netlinkName(unix.NETLINK_ROUTE, 5), "route:5"},
		{netlinkName(17, 1), "17:1"}, {netlinkName(200, 1), "200:1"}, {netlinkName(unix.NETLINK_GENERIC, 1<<32-1), "generic:4294967295"},
		{etherType(3), "*"}, {etherType(0x800), "ip"}, {etherType(0x86dd), "ipv6"}, {etherType(0), "0x0"}, {etherType(0x88b5), "0x88b5"},
	} {
		if c.got != c.want {
			t.Errorf("got %q, want %q", c.got, c.want)
		}
	}
}

func TestRawDiagnosticsAreNarrowedByState(t *testing.T) {
	for states, want := range map[States]bool{0: true, StatesOf(fivetuple.StateClose): true, StatesOf(fivetuple.StateEstablished): false} {
		var s Socket
		keep, err := Query{States: states}.rawRequests(&decoder{zones: zoneNames{1: "lo"}})[0].decode(&s, rawBody())
		if err != nil || keep != want {
			t.Errorf("states %#x: got %v, %v, want %v", states, keep, err, want)
		}
	}
}

const procRaw = `  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode ref pointer drops
 151: 0100007F:00FF 0200007F:0000 01 00000003:00000010 00:00000000 00000000  1000        0 345441478 2 0000000047cb99af 7
 106: 0000000000000000FFFF00000100007F:0059 00000000000000000000000000000000:0000 07 00000000:00000000 00:00000000 00000000     0        0 345441477 2 000000000bdc9605 0
`

func TestProcLines(t *testing.T) {
	if binary.NativeEndian.Uint16([]byte{1, 0}) != 1 {
		t.Log("the text is that of a little-endian machine")
		return
	}
	d := &decoder{details: WithMemory, zones: zoneNames{}}
	var s Socket
	var got []Socket
	more, err := procLines(strings.NewReader(procRaw), func(fields []string) (bool, error) {
		s = Socket{}
		return true, d.procInet(&s, fields)
	}, func() bool {
		got = append(got, s)
		return true
	})
	want := []Socket{
		{State: fivetuple.StateEstablished, Local: netip.MustParseAddrPort("127.0.0.1:255"), Remote: netip.MustParseAddrPort("127.0.0.2:0"), UID: 1000,
			Inode: 345441478, RecvQueue: 16, SendQueue: 3, Memory: Memory{RecvAlloc: 16, SendAlloc: 3, Drops: 7}},
		{State: fivetuple.StateClose, Local: netip.MustParseAddrPort("127.0.0.1:89"), Inode: 345441477},
	}
	if err != nil || !more || !slices.Equal(got, want) {
		t.Errorf("got %+v, %v\nwant %+v", got, err, want)
	}
}

func FuzzProcLines(f *testing.F) {
	f.Add(procRaw)
	f.Add("sk RefCnt Type Proto Iface R Rmem User Inode\n000000002a5e16ea 3      3    0003   0     1 15006  0      345441479\n")
	f.Add("\n1: 0:0 0:0 0 0:0 0 0 0 0 0 0 0 0\n")
	f.Fuzz(func(t *testing.T, text string) {
		d := &decoder{details: WithMemory, zones: zoneNames{0: "*"}}
		for _, decode := range []func(*Socket, []string) error{d.procInet, d.procPacket} {
			var s Socket
			lines := 0
			procLines(strings.NewReader(text), func(fields []string) (bool, error) {
				s = Socket{}
				d.zones = zoneNames{} // and no interface is asked for but by a line that names it
				return true, decode(&s, fields)
			}, func() bool {
				lines++
				return true
			})
			if lines > strings.Count(text, "\n")+1 {
				t.Errorf("%d sockets in %q", lines, text)
			}
		}
	})
}

package sockdiag

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/fivetuple/fivetuple"
)

// testUID is who runs the tests in their own network namespace: not root, so
// that a uid that was not read is told from one that was.
const testUID = 4242

// alone runs the test again as testUID in a network namespace of its own, so
// that the table holds its sockets and no others, and says whether this is that
// run. There, loopback is up, and whatever is sent to 192.0.2.0/24 or to
// fe80::/64 on the interface "void" is lost.
func alone(t *testing.T) bool {
	t.Helper()
	if os.Getenv("FT_TEST_ALONE") == t.Name() {
		for _, args := range []string{
			"link set lo up", "link add void type veth peer name pit", "link set pit up", "link set void up arp off",
			"addr add 192.0.2.1/24 dev void", "addr add fe80::1/64 dev void nodad",
		} {
			if out, err := exec.Command("ip", strings.Fields(args)...).CombinedOutput(); err != nil {
				t.Fatalf("ip %s: %v: %s(needs apt install iproute2)", args, err, out)
			}
		}
		return true
	}
	cmd := exec.CommandContext(t.Context(), os.Args[0], "-test.run=^"+t.Name()+"$", "-test.v")
	cmd.Env = append(os.Environ(), "FT_TEST_ALONE="+t.Name(),
		"GORACE=atexit_sleep_ms=10") // instead of a second
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags:  syscall.CLONE_NEWUSER | syscall.CLONE_NEWNET,
		UidMappings: []syscall.SysProcIDMap{{ContainerID: testUID, HostID: os.Getuid(), Size: 1}},
		GidMappings: []syscall.SysProcIDMap{{ContainerID: testUID, HostID: os.Getgid(), Size: 1}},
		AmbientCaps: []uintptr{unix.CAP_NET_ADMIN, unix.CAP_NET_RAW},
	}
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Errorf("in a network namespace of its own: %v\n%s", err, out)
	}
	return false
}

// must stands for opening a socket, which here never fails for a good reason.
func must[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}

func ok(err error) {
	if err != nil {
		panic(err)
	}
}

// listen opens a listener, connect a connection, both closed at the end.
func listen(t *testing.T, network, address string) net.Listener {
	var lc net.ListenConfig
	lc.SetMultipathTCP(false)
	l := must(lc.Listen(t.Context(), network, address))
	t.Cleanup(func() { l.Close() })
	return l
}

func connect(t *testing.T, a net.Addr) net.Conn {
	var d net.Dialer
	d.SetMultipathTCP(false)
	c := must(d.DialContext(t.Context(), a.Network(), a.String()))
	t.Cleanup(func() { c.Close() })
	return c
}

func accept(t *testing.T, l net.Listener) net.Conn {
	c := must(l.Accept())
	t.Cleanup(func() { c.Close() })
	return c
}

func packets(t *testing.T, network, address string) net.PacketConn {
	c := must(net.ListenPacket(network, address))
	t.Cleanup(func() { c.Close() })
	return c
}

// rawSocket opens a socket that the net package has no name for.
func rawSocket(t *testing.T, family, kind int) int { return protocolSocket(t, family, kind, 0) }

func protocolSocket(t *testing.T, family, kind, protocol int) int {
	fd := must(unix.Socket(family, kind|unix.SOCK_CLOEXEC, protocol))
	t.Cleanup(func() { unix.Close(fd) })
	return fd
}

func listenMultipath(t *testing.T, address string) net.Listener {
	var lc net.ListenConfig
	lc.SetMultipathTCP(true)
	l := must(lc.Listen(t.Context(), "tcp", address))
	t.Cleanup(func() { l.Close() })
	return l
}

func connectMultipath(t *testing.T, a net.Addr) net.Conn {
	var d net.Dialer
	d.SetMultipathTCP(true)
	c := must(d.DialContext(t.Context(), a.Network(), a.String()))
	t.Cleanup(func() { c.Close() })
	return c
}

// deferAccept makes the listener leave connections in SYN_RECV until data comes, tcp(7).
func deferAccept(l net.Listener) {
	raw := must(l.(*net.TCPListener).SyscallConn())
	ok(raw.Control(func(fd uintptr) { ok(unix.SetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_DEFER_ACCEPT, 30)) }))
}

// inodeOf asks the kernel by the other way, fstat(2).
func inodeOf(c any) uint32 {
	var st unix.Stat_t
	raw := must(c.(syscall.Conn).SyscallConn())
	if err := raw.Control(func(fd uintptr) { ok(unix.Fstat(int(fd), &st)) }); err != nil {
		panic(err)
	}
	return uint32(st.Ino)
}

func fdInode(fd int) uint32 {
	var st unix.Stat_t
	ok(unix.Fstat(fd, &st))
	return uint32(st.Ino)
}

// find lists until exactly one socket matches, for states that the kernel
// reaches on its own a moment later.
func find(t *testing.T, q Query, match func(Socket) bool) Socket {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
	defer cancel()
	for {
		all, err := List(ctx, q)
		if err != nil {
			t.Fatalf("no such socket: %v", err)
		}
		if found := slices.DeleteFunc(all, func(s Socket) bool { return !match(s) }); len(found) == 1 {
			return found[0]
		}
	}
}

// check finds the socket by its inode and compares it, but for the cookie.
func check(t *testing.T, inode uint32, want Socket) {
	t.Helper()
	got := find(t, Query{}, func(s Socket) bool { return s.Inode == inode })
	if got.Cookie == 0 {
		t.Errorf("%v: no cookie", got.Tuple())
	}
	want.Cookie, want.Inode, want.UID = got.Cookie, inode, testUID
	want.Timer = got.Timer // of the keep-alives of package net
	if got != want {
		t.Errorf("inode %d:\n got %+v\nwant %+v", inode, got, want)
	}
}

func local(c interface{ LocalAddr() net.Addr }) netip.AddrPort {
	return fivetuple.AddressOf(c.LocalAddr()).AddrPort
}

func TestFindsTCPSockets(t *testing.T) {
	if !alone(t) {
		return
	}
	for _, address := range []string{"127.0.0.1:0", "[::1]:0"} {
		l := listen(t, "tcp", address)
		client := connect(t, l.Addr())
		server := accept(t, l)
		must(client.Write([]byte("unread")))
		bound := fivetuple.AddressOf(l.Addr()).AddrPort
		backlog := find(t, Query{}, func(s Socket) bool { return s.Inode == inodeOf(l) }).SendQueue
		somaxconn := must(strconv.Atoi(strings.TrimSpace(string(must(os.ReadFile("/proc/sys/net/core/somaxconn"))))))
		if int(backlog) != somaxconn {
			t.Errorf("%s: got backlog %d, want %d", address, backlog, somaxconn)
		}
		waiting := connect(t, l.Addr())
		check(t, inodeOf(l), Socket{Protocol: fivetuple.TCP, State: fivetuple.StateListen, Local: bound, RecvQueue: 1, SendQueue: backlog, V6Only: bound.Addr().Is6()})
		check(t, inodeOf(client), Socket{Protocol: fivetuple.TCP, State: fivetuple.StateEstablished, Local: local(client), Remote: bound})
		check(t, inodeOf(server), Socket{Protocol: fivetuple.TCP, State: fivetuple.StateEstablished, Local: bound, Remote: local(client), RecvQueue: 6})
		unaccepted := find(t, Query{}, func(s Socket) bool { return s.Remote == local(waiting) })
		if unaccepted.Inode != 0 || unaccepted.State != fivetuple.StateEstablished {
			t.Errorf("connection not accepted: got %+v, want ESTABLISHED without an inode", unaccepted)
		}
	}
}

func TestFindsDualStackSocketsWithPlainIPv4Addresses(t *testing.T) {
	if !alone(t) {
		return
	}
	l := listen(t, "tcp", "[::]:0")
	port := fivetuple.AddressOf(l.Addr()).AddrPort.Port()
	client := connect(t, &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1), Port: int(port)})
	server := accept(t, l)
	s := find(t, Query{}, func(s Socket) bool { return s.Inode == inodeOf(l) })
	if s.V6Only || !s.Holds(fivetuple.TCP, netip.AddrPortFrom(netip.IPv4Unspecified(), port)) {
		t.Errorf("got %+v, want a socket that holds the port for IPv4 too", s)
	}
	check(t, inodeOf(server), Socket{Protocol: fivetuple.TCP, State: fivetuple.StateEstablished, Local: netip.AddrPortFrom(netip.AddrFrom4([4]byte{127, 0, 0, 1}), port), Remote: local(client)})

	only := listen(t, "tcp6", "[::]:0")
	if s := find(t, Query{}, func(s Socket) bool { return s.Inode == inodeOf(only) }); !s.V6Only {
		t.Errorf("got %+v, want V6Only", s)
	}
}

func TestFindsUDPSockets(t *testing.T) {
	if !alone(t) {
		return
	}
	for _, address := range []string{"127.0.0.1:0", "[::1]:0"} {
		server := packets(t, "udp", address)
		bound := local(server)
		client := connect(t, server.LocalAddr())
		must(client.Write([]byte("unread")))
		queue := find(t, Query{}, func(s Socket) bool { return s.Inode == inodeOf(server) }).RecvQueue
		if queue < 6 {
			t.Errorf("%s: got receive queue %d, want at least the 6 bytes sent", address, queue)
		}
		check(t, inodeOf(server), Socket{Protocol: fivetuple.UDP, State: fivetuple.StateClose, Local: bound, RecvQueue: queue, V6Only: bound.Addr().Is6()})
		check(t, inodeOf(client), Socket{Protocol: fivetuple.UDP, State: fivetuple.StateEstablished, Local: local(client), Remote: bound})
	}
	link := packets(t, "udp", "[fe80::1%void]:0")
	void := must(net.InterfaceByName("void"))
	check(t, inodeOf(link), Socket{Protocol: fivetuple.UDP, State: fivetuple.StateClose, Local: local(link), Interface: uint32(void.Index), V6Only: true})
}

func TestFindsUnixSockets(t *testing.T) {
	if !alone(t) {
		return
	}
	dir := must(os.MkdirTemp("", "ft")) // not t.TempDir: sun_path has 108 bytes
	t.Cleanup(func() { os.RemoveAll(dir) })
	for network, protocol := range map[string]fivetuple.Network{"unix": fivetuple.Unix, "unixpacket": fivetuple.Seqpacket} {
		for _, name := range []string{filepath.Join(dir, network), "@ft-test-" + network} {
			l := listen(t, network, name)
			client := connect(t, l.Addr())
			server := accept(t, l)
			must(client.Write([]byte("unread")))
			backlog := find(t, Query{}, func(s Socket) bool { return s.Inode == inodeOf(l) }).SendQueue
			connect(t, l.Addr())
			check(t, inodeOf(l), Socket{Protocol: protocol, State: fivetuple.StateListen, Name: name, RecvQueue: 1, SendQueue: backlog})
			check(t, inodeOf(server), Socket{Protocol: protocol, State: fivetuple.StateEstablished, Name: name, PeerInode: inodeOf(client), RecvQueue: 6})
			sent := find(t, Query{}, func(s Socket) bool { return s.Inode == inodeOf(client) }).SendQueue
			check(t, inodeOf(client), Socket{Protocol: protocol, State: fivetuple.StateEstablished, PeerInode: inodeOf(server), SendQueue: sent})
		}
	}
	for _, name := range []string{filepath.Join(dir, "gram"), "@ft-test-gram"} {
		server := packets(t, "unixgram", name)
		check(t, inodeOf(server), Socket{Protocol: fivetuple.Unixgram, State: fivetuple.StateClose, Name: name})
		client := connect(t, server.LocalAddr())
		must(client.Write([]byte("unread")))
		check(t, inodeOf(server), Socket{Protocol: fivetuple.Unixgram, State: fivetuple.StateEstablished, Name: name, RecvQueue: 6})
		got := find(t, Query{}, func(s Socket) bool { return s.Inode == inodeOf(client) })
		if got.PeerInode != inodeOf(server) || got.Protocol != fivetuple.Unixgram {
			t.Errorf("got %+v, want peer inode %d", got, inodeOf(server))
		}
	}
	odd := rawSocket(t, unix.AF_UNIX, unix.SOCK_STREAM)
	ok(unix.Bind(odd, &unix.SockaddrUnix{Name: "@a\x00b\x1bc"}))
	check(t, fdInode(odd), Socket{Protocol: fivetuple.Unix, State: fivetuple.StateClose, Name: `@a\x00b\x1bc`})
}

func TestFindsEveryStateThatIsEasyToReach(t *testing.T) {
	if !alone(t) {
		return
	}
	l := listen(t, "tcp", "127.0.0.1:0")
	stateOf := func(from netip.AddrPort, want fivetuple.State) {
		t.Helper()
		q := Query{Protocols: []fivetuple.Network{fivetuple.TCP}, States: StatesOf(want)}
		find(t, q, func(s Socket) bool { return s.State == want && s.Local == from })
	}

	client := connect(t, l.Addr())
	server := accept(t, l)
	ok(client.(*net.TCPConn).CloseWrite())
	stateOf(local(client), fivetuple.StateFinWait2)
	stateOf(local(server), fivetuple.StateCloseWait)
	ok(server.Close())
	stateOf(local(client), fivetuple.StateTimeWait)
	if s := find(t, Query{}, func(s Socket) bool { return s.Local == local(client) }); s.Inode != 0 {
		t.Errorf("TIME_WAIT: got inode %d, want 0", s.Inode)
	}

	lost := rawSocket(t, unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_NONBLOCK)
	if err := unix.Connect(lost, &unix.SockaddrInet4{Addr: [4]byte{192, 0, 2, 9}, Port: 9}); err != unix.EINPROGRESS {
		t.Fatalf("connect: got %v, want %v", err, unix.EINPROGRESS)
	}
	if s := find(t, Query{RemotePort: 9}, func(Socket) bool { return true }); s.State != fivetuple.StateSynSent || s.Inode != fdInode(lost) {
		t.Errorf("got %+v, want SYN_SENT with inode %d", s, fdInode(lost))
	}

	deferAccept(l)
	half := connect(t, l.Addr())
	for _, want := range []fivetuple.State{fivetuple.StateSynRecv, fivetuple.StateNewSynRecv} {
		s := find(t, Query{States: StatesOf(want)}, func(s Socket) bool { return s.Remote == local(half) })
		if s.State != fivetuple.StateSynRecv || s.Inode != 0 {
			t.Errorf("asked for %v: got %+v, want SYN_RECV without an inode", want, s)
		}
	}

	bound := rawSocket(t, unix.AF_INET, unix.SOCK_STREAM)
	ok(unix.Bind(bound, &unix.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}}))
	s := find(t, Query{Protocols: []fivetuple.Network{fivetuple.TCP}, States: ListeningOrBound}, func(s Socket) bool { return s.Inode == fdInode(bound) })
	if s.State != fivetuple.StateClose || s.Local.Port() == 0 {
		t.Errorf("got %+v, want a bound socket in CLOSE", s)
	}
}

func TestQueryNarrows(t *testing.T) {
	if !alone(t) {
		return
	}
	l := listen(t, "tcp", "127.0.0.1:0")
	client := connect(t, l.Addr())
	accept(t, l)
	other := listen(t, "tcp", "[::1]:0")
	u := packets(t, "udp", "127.0.0.1:0")
	listen(t, "unix", "@ft-narrow")
	packets(t, "unixgram", "@ft-narrow-gram")
	port := fivetuple.AddressOf(l.Addr()).AddrPort.Port()
	otherPort := fivetuple.AddressOf(other.Addr()).AddrPort.Port()
	clientPort := local(client).Port()
	tcp, udp := []fivetuple.Network{fivetuple.TCP6}, []fivetuple.Network{fivetuple.UDP}
	for _, c := range []struct {
		name string
		q    Query
		want []string
	}{
		{"everything", Query{}, []string{
			fmt.Sprintf("tcp [::1]:%d LISTEN", otherPort),
			fmt.Sprintf("tcp 127.0.0.1:%d > 127.0.0.1:%d ESTABLISHED", clientPort, port),
			fmt.Sprintf("tcp 127.0.0.1:%d > 127.0.0.1:%d ESTABLISHED", port, clientPort),
			fmt.Sprintf("tcp 127.0.0.1:%d LISTEN", port),
			fmt.Sprintf("udp %v CLOSE", local(u)), "unix @ft-narrow LISTEN", "unixgram @ft-narrow-gram CLOSE"}},
		{"local port", Query{LocalPort: port}, []string{
			fmt.Sprintf("tcp 127.0.0.1:%d > 127.0.0.1:%d ESTABLISHED", port, clientPort),
			fmt.Sprintf("tcp 127.0.0.1:%d LISTEN", port)}},
		{"local port and state", Query{LocalPort: port, States: StatesOf(fivetuple.StateListen)}, []string{
			fmt.Sprintf("tcp 127.0.0.1:%d LISTEN", port)}},
		{"local port of UDP", Query{LocalPort: local(u).Port(), Protocols: udp}, []string{
			fmt.Sprintf("udp %v CLOSE", local(u))}},
		{"local port of the other protocol", Query{LocalPort: port, Protocols: udp}, nil},
		{"local port of IPv6", Query{LocalPort: otherPort}, []string{fmt.Sprintf("tcp [::1]:%d LISTEN", otherPort)}},
		{"remote port", Query{RemotePort: port}, []string{
			fmt.Sprintf("tcp 127.0.0.1:%d > 127.0.0.1:%d ESTABLISHED", clientPort, port)}},
		{"listening TCP", Query{Protocols: tcp, States: StatesOf(fivetuple.StateListen)}, []string{
			fmt.Sprintf("tcp [::1]:%d LISTEN", otherPort), fmt.Sprintf("tcp 127.0.0.1:%d LISTEN", port)}},
		{"Unix streams", Query{Protocols: []fivetuple.Network{fivetuple.Unix}}, []string{"unix @ft-narrow LISTEN"}},
		{"Unix datagrams", Query{Protocols: []fivetuple.Network{fivetuple.Unixgram}}, []string{"unixgram @ft-narrow-gram CLOSE"}},
	} {
		var got []string
		for s, err := range Dump(t.Context(), c.q) {
			if err != nil {
				t.Fatalf("%s: %v", c.name, err)
			}
			if s.Protocol == fivetuple.Netlink { // the kernel's own, and that of the dump
				continue
			}
			got = append(got, fmt.Sprint(s.Tuple(), " ", s.State))
		}
		slices.Sort(got)
		slices.Sort(c.want)
		if !slices.Equal(got, c.want) {
			t.Errorf("%s:\n got %q\nwant %q", c.name, got, c.want)
		}
	}
}

func TestDumpStopsWhenTheLoopOrTheContextDoes(t *testing.T) {
	l := listen(t, "tcp", "127.0.0.1:0")
	connect(t, l.Addr())
	n := 0
	for _, err := range Dump(t.Context(), Query{}) {
		if err != nil {
			t.Fatal(err)
		}
		n++
		break
	}
	if n != 1 {
		t.Errorf("got %d sockets, want 1", n)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if all, err := List(ctx, Query{}); !errors.Is(err, context.Canceled) || all != nil {
		t.Errorf("got %d sockets, %v, want %v", len(all), err, context.Canceled)
	}
}

func BenchmarkDump(b *testing.B) {
	l := must(net.Listen("tcp4", "127.0.0.1:0"))
	defer l.Close()
	for range 2000 {
		c := must(net.Dial("tcp4", l.Addr().String()))
		defer c.Close()
		s := must(l.Accept())
		defer s.Close()
	}
	tcp := []fivetuple.Network{fivetuple.TCP}
	for name, q := range map[string]Query{
		"addresses": {Protocols: tcp}, "info": {Protocols: tcp, Details: WithInfo}, "every detail": {Protocols: tcp, Details: allDetails},
		"listeners": {Protocols: tcp, States: Listening},
	} {
		b.Run(name, func(b *testing.B) {
			var before, after runtime.MemStats
			runtime.ReadMemStats(&before)
			rows := 0
			for b.Loop() {
				for _, err := range Dump(b.Context(), q) {
					if err != nil {
						b.Fatal(err)
					}
					rows++
				}
			}
			runtime.ReadMemStats(&after)
			b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(rows), "ns/socket")
			b.ReportMetric(float64(after.Mallocs-before.Mallocs)/float64(rows), "allocs/socket")
		})
	}
}

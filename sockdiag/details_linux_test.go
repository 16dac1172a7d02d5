package sockdiag

import (
	"net"
	"os"
	"reflect"
	"strings"
	"syscall"
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/fivetuple/fivetuple"
	"github.com/fivetuple/fivetuple/sockopt"
)

const allDetails = WithInfo | WithMemory | WithCongestion | WithCgroup | WithMark | WithTOS

// control runs fn on the descriptor of a connection.
func control(c any, fn func(fd int)) {
	ok(must(c.(syscall.Conn).SyscallConn()).Control(func(fd uintptr) { fn(int(fd)) }))
}

// memInfo asks the kernel by the other way, SO_MEMINFO.
func memInfo(fd int) Memory {
	var b [36]byte
	n := uint32(len(b))
	if _, _, errno := unix.Syscall6(unix.SYS_GETSOCKOPT, uintptr(fd), unix.SOL_SOCKET, unix.SO_MEMINFO,
		uintptr(unsafe.Pointer(&b)), uintptr(unsafe.Pointer(&n)), 0); errno != 0 {
		panic(errno)
	}
	return decodeMemory(b[:n])
}

// cgroupID is the inode number of the test's control group, by its mount or,
// where there is none, that of the root, which is always 1.
func cgroupID(t *testing.T) uint64 {
	_, path, _ := strings.Cut(strings.TrimSpace(string(must(os.ReadFile("/proc/self/cgroup")))), "0::")
	if path == "/" {
		return 1
	}
	for _, mount := range []string{"/sys/fs/cgroup", "/sys/fs/cgroup/unified"} {
		var st unix.Stat_t
		if unix.Stat(mount+path, &st) == nil {
			return st.Ino
		}
	}
	t.Fatal("control groups (v2) are not mounted in /sys/fs/cgroup")
	return 0
}

func TestDetailsAreThoseOfTheSocket(t *testing.T) {
	if !alone(t) {
		return
	}
	l := listen(t, "tcp", "[::]:0")
	client := connect(t, &net.TCPAddr{IP: net.IPv6loopback, Port: l.Addr().(*net.TCPAddr).Port})
	server := accept(t, l)
	must(client.Write(make([]byte, 1000)))
	control(client, func(fd int) {
		ok(unix.SetsockoptString(fd, unix.IPPROTO_TCP, unix.TCP_CONGESTION, "reno"))
		ok(unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_MARK, 0x77))
		ok(unix.SetsockoptInt(fd, unix.IPPROTO_IP, unix.IP_TOS, 0x10))
		ok(unix.SetsockoptInt(fd, unix.IPPROTO_IPV6, unix.IPV6_TCLASS, 0x20))
	})
	read := func(c any, details Details) Socket {
		return find(t, Query{Protocols: []fivetuple.Network{fivetuple.TCP, fivetuple.UDP}, Details: details}, func(s Socket) bool { return s.Inode == inodeOf(c) })
	}
	got := read(client, allDetails)
	if got.Congestion != "reno" || got.Mark != 0x77 || got.TOS != 0x10 || got.TClass != 0x20 {
		t.Errorf("got congestion %q, mark %#x, tos %#x, tclass %#x, want reno, 0x77, 0x10, 0x20", got.Congestion, got.Mark, got.TOS, got.TClass)
	}
	if want := cgroupID(t); got.Cgroup != want {
		t.Errorf("got cgroup %d, want %d", got.Cgroup, want)
	}
	got = read(server, allDetails)
	control(server, func(fd int) {
		if want := memInfo(fd); got.Memory != want || want.RecvAlloc == 0 {
			t.Errorf("got memory %+v, want %+v", got.Memory, want)
		}
		want := must(sockopt.GetTCPInfo(fd))
		if got.Info == nil || got.Info.BytesReceived != 1000 || got.Info.Size != want.Size || got.Info.SegsIn != want.SegsIn || got.Info.PMTU != want.PMTU {
			t.Errorf("got info %v, want %v", got.Info, want)
		}
	})
	if got := read(l, allDetails); got.Info == nil || got.Info.Sacked != got.SendQueue || got.Congestion == "" {
		t.Errorf("listener: got %+v with info %v, want the backlog in its TCP_INFO", got, got.Info)
	}
	u := packets(t, "udp", "127.0.0.1:0")
	must(connect(t, u.LocalAddr()).Write([]byte("unread")))
	got = read(u, allDetails)
	control(u, func(fd int) {
		if want := memInfo(fd); got.Memory != want || want.RecvAlloc == 0 || got.Info != nil {
			t.Errorf("udp: got memory %+v, info %v, want %+v", got.Memory, got.Info, want)
		}
	})

	// Each is there if it is asked for, and no other.
	whole := read(client, allDetails)
	for _, c := range []struct {
		detail Details
		fields []string
	}{
		{0, nil}, {WithInfo, []string{"Info"}}, {WithMemory, []string{"Memory"}}, {WithCongestion, []string{"Congestion"}},
		{WithCgroup, []string{"Cgroup"}}, {WithMark, []string{"Mark"}}, {WithTOS, []string{"TOS", "TClass"}},
	} {
		got, all := reflect.ValueOf(read(client, c.detail)), reflect.ValueOf(whole)
		for _, name := range []string{"Info", "Memory", "Congestion", "Cgroup", "Mark", "TOS", "TClass"} {
			wanted := false
			for _, f := range c.fields {
				wanted = wanted || f == name
			}
			if set := !got.FieldByName(name).IsZero(); set != wanted || all.FieldByName(name).IsZero() {
				t.Errorf("details %d: %s is set: got %v, want %v", c.detail, name, set, wanted)
			}
		}
	}
}

func TestMemoryOfOtherSockets(t *testing.T) {
	if !alone(t) {
		return
	}
	stream := must(unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0))
	t.Cleanup(func() { unix.Close(stream[0]); unix.Close(stream[1]) })
	must(unix.Write(stream[0], []byte("unread")))
	for name, fd := range map[string]int{
		"unix":    stream[0],
		"netlink": protocolSocket(t, unix.AF_NETLINK, unix.SOCK_RAW, unix.NETLINK_ROUTE),
		"packet":  protocolSocket(t, unix.AF_PACKET, unix.SOCK_RAW, 0),
	} {
		if name == "netlink" {
			ok(unix.Bind(fd, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}))
		}
		got := find(t, Query{Details: WithMemory}, func(s Socket) bool { return s.Inode == fdInode(fd) })
		want := memInfo(fd)
		if got.Memory != want || want.RecvBuffer == 0 {
			t.Errorf("%s: got %+v, want %+v", name, got.Memory, want)
		}
	}
}

func TestListKeepsEveryInfo(t *testing.T) {
	if !alone(t) {
		return
	}
	l := listen(t, "tcp", "127.0.0.1:0")
	sent := map[uint32]uint64{}
	for i := range infoChunk { // two sockets each: more than one chunk
		client := connect(t, l.Addr())
		accept(t, l)
		must(client.Write(make([]byte, i+1)))
		sent[inodeOf(client)] = uint64(i + 1)
	}
	all := must(List(t.Context(), Query{Protocols: []fivetuple.Network{fivetuple.TCP}, Details: WithInfo}))
	for _, s := range all {
		if n, ok := sent[s.Inode]; ok && s.Info.BytesSent != n {
			t.Errorf("inode %d: got %d bytes sent, want %d", s.Inode, s.Info.BytesSent, n)
		}
		delete(sent, s.Inode)
	}
	if len(sent) > 0 {
		t.Errorf("%d sockets are missing", len(sent))
	}
}

func TestTimers(t *testing.T) {
	if !alone(t) {
		return
	}
	l := listen(t, "tcp", "127.0.0.1:0")
	client, server := connect(t, l.Addr()), accept(t, l)
	check := func(name string, want TimerKind, match func(Socket) bool) {
		t.Helper()
		s := find(t, Query{Protocols: []fivetuple.Network{fivetuple.TCP}}, match)
		if s.Timer.Kind != want || (s.Timer.Expires > 0) != (want != TimerOff) || s.Timer.Expires.Hours() > 2 {
			t.Errorf("%s: got %+v, want kind %d", name, s.Timer, want)
		}
	}
	ok(server.(*net.TCPConn).SetKeepAlive(false))
	check("no timer", TimerOff, func(s Socket) bool { return s.Inode == inodeOf(server) })
	check("keep-alive", TimerKeepalive, func(s Socket) bool { return s.Inode == inodeOf(client) })
	lost := rawSocket(t, unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_NONBLOCK)
	unix.Connect(lost, &unix.SockaddrInet4{Addr: [4]byte{192, 0, 2, 9}, Port: 9})
	check("retransmission", TimerRetransmit, func(s Socket) bool { return s.Inode == fdInode(lost) })
	end := local(client)
	ok(client.Close())
	ok(server.Close())
	check("time wait", TimerTimeWait, func(s Socket) bool { return s.Local == end && s.State == fivetuple.StateTimeWait })
}

package sockopt

import (
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

// isolated runs the calling test again in a network namespace of its own and reports true there. An ordinary user gets
// a user namespace as well, to have the privileges for raw sockets in it.
func isolated(t *testing.T) bool {
	t.Helper()
	const mark = "SOCKOPT_TEST_ISOLATED"
	if os.Getenv(mark) != "" {
		if out, err := exec.Command("ip", "link", "set", "lo", "up").CombinedOutput(); err != nil {
			t.Fatalf("ip link set lo up (apt-get install iproute2): %v %s", err, out)
		}
		// Ping sockets are off by default in a new namespace.
		if err := os.WriteFile("/proc/sys/net/ipv4/ping_group_range", []byte("0 0"), 0); err != nil {
			t.Fatal(err)
		}
		return true
	}
	cmd := exec.Command(os.Args[0], "-test.run=^"+t.Name()+"$")
	cmd.Env = append(os.Environ(), mark+"=1")
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: unix.CLONE_NEWNET}
	if os.Getuid() != 0 {
		cmd.SysProcAttr.Cloneflags |= unix.CLONE_NEWUSER
		cmd.SysProcAttr.UidMappings = []syscall.SysProcIDMap{{HostID: os.Getuid(), Size: 1}}
		cmd.SysProcAttr.GidMappings = []syscall.SysProcIDMap{{HostID: os.Getgid(), Size: 1}}
	}
	out, err := cmd.CombinedOutput()
	if err != nil || strings.Contains(string(out), "no tests to run") {
		t.Errorf("in its own namespace: %v\n%s", err, out)
	}
	return false
}

// testSockets are the kinds of sockets that options belong to.
var testSockets = append(freshSockets[:len(freshSockets):len(freshSockets)],
	freshSocket{Ping | IPv4, unix.AF_INET, unix.SOCK_DGRAM, unix.IPPROTO_ICMP},
	freshSocket{Ping | IPv6, unix.AF_INET6, unix.SOCK_DGRAM, unix.IPPROTO_ICMPV6})

func open(t *testing.T, s freshSocket) int {
	t.Helper()
	fd, err := unix.Socket(s.domain, s.typ|unix.SOCK_CLOEXEC, s.protocol)
	if err != nil {
		t.Fatalf("%s socket: %v", s.kind, err)
	}
	t.Cleanup(func() { unix.Close(fd) })
	return fd
}

func tcpSocket(t *testing.T) int { return open(t, freshSockets[0]) }

func parse(t *testing.T, text string) Setting {
	t.Helper()
	s, err := Parse(text)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// olderThan reports whether the running kernel is older than a release such as "6.14".
func olderThan(t *testing.T, since string) bool {
	t.Helper()
	var u unix.Utsname
	if err := unix.Uname(&u); err != nil {
		t.Fatal(err)
	}
	numbers := func(s string) (n [3]int) {
		for i, part := range strings.SplitN(strings.SplitN(s, "-", 2)[0], ".", 3) {
			n[i], _ = strconv.Atoi(part)
		}
		return n
	}
	have, want := numbers(unix.ByteSliceToString(u.Release[:])), numbers(since)
	for i := range have {
		if have[i] != want[i] {
			return have[i] < want[i]
		}
	}
	return false
}

func TestNumbersAreThoseOfTheKernelHeaders(t *testing.T) {
	levels := map[string]int{"socket": unix.SOL_SOCKET, "tcp": unix.IPPROTO_TCP, "udp": unix.IPPROTO_UDP, "ip": unix.IPPROTO_IP, "ipv6": unix.IPPROTO_IPV6}
	for _, o := range All() {
		if want, ok := kernelNumbers[o.Constant]; !ok || o.Number != want {
			t.Errorf("%s: number %d, want %d", o.Constant, o.Number, want)
		}
		if want, ok := levels[o.LevelName()]; !ok || o.Level != want {
			t.Errorf("%s: level %d, want %d", o.Constant, o.Level, want)
		}
	}
}

// sane is a value for each option that can be set, and what is read back if that differs. Bool options are not listed:
// they are switched to the other position.
var sane = map[string][2]string{
	"sndbuf":             {"64KiB", "128KiB"},
	"rcvbuf":             {"64KiB", "128KiB"},
	"sndbufforce":        {"64KiB"},
	"rcvbufforce":        {"64KiB"},
	"keepalive":          {"on"},
	"priority":           {"5"},
	"linger":             {"5s"},
	"rcvlowat":           {"7"},
	"rcvtimeo":           {"2s"},
	"sndtimeo":           {"1.5s"},
	"bindtodevice":       {"lo"},
	"bindtoifindex":      {"lo"},
	"mark":               {"0xfeedbeef"},
	"timestamping":       {"rx-software+software"},
	"peek-off":           {"3"},
	"busy-poll":          {"50us", "50µs"},
	"busy-poll-budget":   {"16"},
	"max-pacing-rate":    {"5GiB/s"},
	"incoming-cpu":       {"0"},
	"buf-lock":           {"rcv"},
	"reserve-mem":        {"64KiB"},
	"txrehash":           {"off"},
	"maxseg":             {"1000"},
	"keepalive-idle":     {"30s"},
	"keepalive-interval": {"10s"},
	"keepalive-count":    {"3"},
	"syncnt":             {"2"},
	"linger2":            {"20s"},
	"defer-accept":       {"5s", "7s"}, // 1 + 2 + 4 s of SYN-ACK retries
	"window-clamp":       {"64KiB"},
	"congestion":         {"reno"},
	"user-timeout":       {"12345ms", "12.345s"},
	"fastopen":           {"16"},
	"notsent-lowat":      {"4294967295"},
	"save-syn":           {"mac"},
	"fastopen-key":       {"000102030405060708090a0b0c0d0e0f"},
	"tx-delay":           {"5ms"},
	"rto-max":            {"10s"},
	"rto-min":            {"100ms"},
	"delack-max":         {"100ms"},
	"udp-encap":          {"l2tpinudp"},
	"segment":            {"1200"},
	"tos":                {"af41"},
	"ttl":                {"12"},
	"ip-options":         {"01010101"}, // four times no operation
	"mtu-discover":       {"do"},
	"minttl":             {"255"},
	"multicast-if":       {"127.0.0.1"},
	"multicast-ttl":      {"9"},
	"unicast-if":         {"lo"},
	"local-port-range":   {"40000-41000"},
	"join":               {"239.1.1.1%lo"},
	"leave":              {"239.1.1.1%lo"},
	"join-source":        {"127.0.0.1@232.1.1.1%lo"},
	"leave-source":       {"127.0.0.1@232.1.1.1%lo"},
	"block-source":       {"127.0.0.1@239.1.1.1%lo"},
	"unblock-source":     {"127.0.0.1@239.1.1.1%lo"},
	"checksum6":          {"4"},
	"hops":               {"12"},
	"multicast-if6":      {"lo"},
	"multicast-hops":     {"9"},
	"router-alert6":      {"1"},
	"mtu-discover6":      {"probe"},
	"mtu6":               {"1280"},
	"tclass":             {"ef"},
	"addr-preferences":   {"temporary", "temporary+home"},
	"minhops":            {"255"},
	"unicast-if6":        {"lo"},
}

// before are settings that another one needs first.
var before = map[string][]string{
	"leave":          {"join=239.1.1.1%lo"},
	"leave-source":   {"join-source=127.0.0.1@232.1.1.1%lo"},
	"block-source":   {"join=239.1.1.1%lo"},
	"unblock-source": {"join=239.1.1.1%lo", "block-source=127.0.0.1@239.1.1.1%lo"},
}

// refused are the options that a fresh socket of the running kernel does not take: the errors allowed, nil for none.
var refused = map[string]struct{ get, set []error }{
	"peersec":     {get: []error{unix.ENOPROTOOPT, nil}},         // needs an active security module
	"busy-poll":   {set: []error{unix.EPERM, nil}},               // older kernels ask for the privilege
	"reserve-mem": {set: []error{unix.EOPNOTSUPP, nil}},          // needs memory accounting of the cgroup
	"ulp":         {set: []error{unix.ENOENT, unix.ENOTCONN}},    // needs a connection and the tls module
	"mtu":         {get: []error{unix.ENOTCONN}},                 // needs a connection
	"mtu6":        {get: []error{unix.ENOTCONN}},                 // the same, but can be set
	"peergroups":  {get: []error{unix.ENODATA}},                  // needs a peer
	"thin-dupack": {set: []error{errIgnored}, get: []error{nil}}, // without effect since Linux 4.11
}

var errIgnored = errors.New("accepted without effect")

// initialUserOnly need their privilege in the initial user namespace: net/core/sock.c asks capable, not ns_capable.
var initialUserOnly = map[string]bool{"debug": true, "sndbufforce": true, "rcvbufforce": true,
	"prefer-busy-poll": true, "busy-poll-budget": true}

func TestEveryOptionOnTheRunningKernel(t *testing.T) {
	if !isolated(t) {
		return
	}
	privileged := !strings.Contains(readFile(t, "/proc/self/uid_map"), " 1\n")
	for _, sock := range testSockets {
		for _, o := range All() {
			if !o.Sockets.Admits(sock.kind) || o.admits(sock.kind) != nil {
				continue
			}
			t.Run(strings.ReplaceAll(sock.kind.String(), " ", "")+"/"+o.Name, func(t *testing.T) {
				if o.Name == "router-alert6" {
					sock.protocol = unix.IPPROTO_RAW // the only ones that take it
				}
				fd := open(t, sock)
				old := olderThan(t, o.Since)
				var current Setting
				if o.Access != WriteOnly {
					var err error
					current, err = Get(fd, o.Name)
					if old {
						wantError(t, "get", err, unix.ENOPROTOOPT, unix.EOPNOTSUPP)
						return
					}
					wantError(t, "get", err, refused[o.Name].get...)
				}
				if o.Access == ReadOnly {
					return
				}
				ask, want := sane[o.Name][0], sane[o.Name][1]
				switch {
				case o.Name == "ulp":
					ask = "tls"
				case o.Kind == Bool:
					ask = formatBool(current.Int() == 0)
				case ask == "":
					t.Fatal("no value to try in the test's list")
				}
				if want == "" {
					want = ask
				}
				if o.Kind == Group && sock.kind == Raw|IPv6 {
					return // takes no IPv4 groups; see TestGroupsAreJoinedAndLeft
				}
				for _, text := range before[o.Name] {
					if _, err := Apply(fd, parse(t, text)); err != nil {
						t.Fatal(err)
					}
				}
				granted, err := Apply(fd, parse(t, o.Name+"="+ask))
				switch {
				case old:
					wantError(t, "set", err, unix.ENOPROTOOPT, unix.EOPNOTSUPP)
					return
				case !privileged && initialUserOnly[o.Name]:
					if !errors.Is(err, unix.EPERM) && !errors.Is(err, unix.EACCES) || !strings.Contains(err.Error(), o.Privilege) {
						t.Errorf("set: %v, want EPERM with %s", err, o.Privilege)
					}
					return
				}
				allowed := refused[o.Name].set
				if len(allowed) == 1 && allowed[0] == errIgnored {
					want, allowed = current.Value(), nil
				}
				wantError(t, "set", err, allowed...)
				if err != nil || o.Access == WriteOnly || o.Name == "mtu6" {
					return
				}
				// With a twin, the last one granted is the IPv6 option.
				for _, g := range granted {
					if g.Option.Name == o.Name && g.Got != want {
						t.Errorf("asked %s, granted %+v, want %s", ask, g, want)
					}
				}
				if got, err := Get(fd, o.Name); o.Kind != KeepAlive && (err != nil || got.Value() != want) && sock.kind != Raw|IPv6 {
					t.Errorf("asked %s, got %s, %v, want %s", ask, got.Value(), err, want)
				}
			})
		}
	}
}

func wantError(t *testing.T, what string, err error, allowed ...error) {
	t.Helper()
	if err == nil && len(allowed) == 0 {
		return
	}
	for _, a := range allowed {
		if errors.Is(err, a) || a == nil && err == nil {
			return
		}
	}
	t.Errorf("%s: %v, want %v", what, err, allowed)
}

func readFile(t *testing.T, name string) string {
	t.Helper()
	text, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

func TestTheWrongKindOfSocketIsRefusedByName(t *testing.T) {
	if !isolated(t) {
		return
	}
	for _, sock := range testSockets {
		fd := open(t, sock)
		if got, err := Identify(fd); err != nil || got != sock.kind {
			t.Errorf("Identify: %s, %v, want %s", got, err, sock.kind)
		}
		for _, o := range All() {
			if o.admits(sock.kind) == nil || o.Kind == Group && sock.kind == Raw|IPv6 {
				continue
			}
			var errs []error
			if o.Access != WriteOnly {
				_, err := Get(fd, o.Name)
				errs = append(errs, err)
			}
			if o.Access != ReadOnly {
				value := sane[o.Name][0]
				if o.Kind == Bool || o.Kind == String {
					value = "on"
				}
				granted, err := Apply(fd, parse(t, o.Name+"="+value))
				if o.Twin != "" && sock.kind == Raw|IPv6 && o.wire != wireMulticastIf {
					// The twin is the right one, and only it gets set.
					if err != nil || len(granted) != 1 || granted[0].Option.Name != o.Twin {
						t.Errorf("%s on a %s socket: %v, %v, want %s granted", o.Name, sock.kind, granted, err, o.Twin)
					}
				} else {
					errs = append(errs, err)
				}
			}
			for _, err := range errs {
				if !errors.Is(err, ErrSocket) || !strings.Contains(err.Error(), o.Constant) || !strings.Contains(err.Error(), sock.kind.String()) {
					t.Errorf("%s on a %s socket: %v, want %v", o.Name, sock.kind, err, ErrSocket)
				}
			}
		}
	}
}

func TestGroupsAreJoinedAndLeft(t *testing.T) {
	if !isolated(t) {
		return
	}
	receiver, err := net.ListenPacket("udp4", "0.0.0.0:0")
	if err != nil {
		t.Fatal(err)
	}
	defer receiver.Close()
	rc, err := receiver.(*net.UDPConn).SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	port := receiver.LocalAddr().(*net.UDPAddr).Port
	sender := open(t, testSockets[2])
	apply := func(text string) error {
		_, err := Settings{parse(t, text)}.ApplyConn(rc)
		return err
	}
	if err := unix.Bind(sender, &unix.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}}); err != nil {
		t.Fatal(err)
	}
	if _, err := Apply(sender, parse(t, "multicast-if=lo"), parse(t, "multicast-loop=on")); err != nil {
		t.Fatal(err)
	}
	// reaches sends to a group, then to the receiver itself, and says which of the two comes first: no waiting for
	// what must not come.
	reaches := func(group [4]byte) bool {
		t.Helper()
		for _, dst := range [][4]byte{group, {127, 0, 0, 1}} {
			if err := unix.Sendto(sender, dst[:], 0, &unix.SockaddrInet4{Addr: dst, Port: port}); err != nil {
				t.Fatal(err)
			}
		}
		buf := make([]byte, 16)
		got := false
		for {
			n, _, err := receiver.ReadFrom(buf)
			if err != nil {
				t.Fatal(err)
			}
			if [4]byte(buf[:n]) != group {
				return got
			}
			got = true
		}
	}
	group, sourceGroup := [4]byte{239, 1, 1, 1}, [4]byte{232, 1, 1, 1}
	for _, step := range []struct {
		set   string
		group [4]byte
		want  bool
	}{
		{"multicast-all=off", group, false},
		{"join=239.1.1.1%lo", group, true},
		{"block-source=127.0.0.1@239.1.1.1%lo", group, false},
		{"unblock-source=127.0.0.1@239.1.1.1%lo", group, true},
		{"leave=239.1.1.1%lo", group, false},
		{"join-source=10.9.9.9@232.1.1.1%lo", sourceGroup, false},
		{"join-source=127.0.0.1@232.1.1.1%lo", sourceGroup, true},
		{"leave-source=127.0.0.1@232.1.1.1%lo", sourceGroup, false},
	} {
		if err := apply(step.set); err != nil {
			t.Fatal(err)
		}
		if got := reaches(step.group); got != step.want {
			t.Errorf("after %s: group reaches the socket: %v, want %v", step.set, got, step.want)
		}
	}
	if err := apply("leave=239.1.1.1%lo"); !errors.Is(err, unix.EADDRNOTAVAIL) {
		t.Errorf("leave twice: %v, want %v", err, unix.EADDRNOTAVAIL)
	}
	if err := apply("join=239.1.1.1%nosuch0"); !errors.Is(err, unix.ENODEV) || !strings.Contains(err.Error(), "there are lo") {
		t.Errorf("join on a missing interface: %v", err)
	}
	join6 := Settings{parse(t, "join=ff02::1234%lo"), parse(t, "leave=ff02::1234%lo"), parse(t, "join-source=::1@ff32::1%lo")}
	for _, sock := range testSockets {
		if sock.kind&IPv6 == 0 || sock.kind&datagrams == 0 {
			continue
		}
		if _, err := Apply(open(t, sock), join6...); err != nil {
			t.Errorf("IPv6 groups on a %s socket: %v", sock.kind, err)
		}
		_, err := Apply(open(t, sock), parse(t, "join=239.1.1.1%lo"))
		if want := sock.kind == Raw|IPv6; errors.Is(err, ErrSocket) != want || !want && err != nil {
			t.Errorf("an IPv4 group on a %s socket: %v", sock.kind, err)
		}
	}
	if err := apply("join=ff02::1234%lo"); !errors.Is(err, ErrSocket) {
		t.Errorf("an IPv6 group on an IPv4 socket: %v", err)
	}
}

func TestDefaultsOfFreshSockets(t *testing.T) {
	if !isolated(t) {
		return
	}
	for _, o := range All() {
		s, err := Default(o.Name)
		switch {
		case o.Access == WriteOnly:
			wantError(t, o.Name, err, ErrWriteOnly)
		case olderThan(t, o.Since):
			wantError(t, o.Name, err, unix.ENOPROTOOPT, unix.EOPNOTSUPP)
		default:
			wantError(t, o.Name, err, refused[o.Name].get...)
		}
		if err == nil && s.Option().Name != o.Name {
			t.Errorf("Default(%s) is of %s", o.Name, s.Option().Name)
		}
	}
	for name, want := range map[string]string{"keepalive-idle": "2h", "ttl": "64", "type": "stream", "hops": "64", "udp-cork": "off", "nodelay": "off"} {
		if s, err := Default(name); err != nil || s.Value() != want {
			t.Errorf("Default(%s) = %s, %v, want %s", name, s.Value(), err, want)
		}
	}
	if _, err := Default("nodlay"); !errors.Is(err, ErrUnknown) {
		t.Errorf("Default of an unknown option: %v", err)
	}
}

func TestErrorsSayWhatToDo(t *testing.T) {
	fd := tcpSocket(t)
	for _, tc := range []struct {
		set   string
		errno error
		parts []string
	}{
		{"congestion=nosuch", unix.ENOENT, []string{"TCP_CONGESTION", "it has", "reno"}},
		{"bindtodevice=nosuch0", unix.ENODEV, []string{"there are", "lo"}},
		{"unicast-if=nosuch0", unix.ENODEV, []string{"nosuch0", "lo"}},
		{"segment=1200", ErrSocket, []string{"UDP_SEGMENT is for udp sockets", "tcp ipv4"}},
	} {
		_, err := Apply(fd, parse(t, tc.set))
		if !errors.Is(err, tc.errno) {
			t.Errorf("%s: %v, want %v", tc.set, err, tc.errno)
			continue
		}
		for _, part := range append(tc.parts, tc.set) {
			if !strings.Contains(err.Error(), part) {
				t.Errorf("%s: %v, want it to say %q", tc.set, err, part)
			}
		}
	}
	if _, err := Apply(fd, Setting{}); !errors.Is(err, ErrValue) {
		t.Errorf("empty setting: %v", err)
	}
	granted, err := Apply(fd, parse(t, "nodelay"), parse(t, "segment=1200"), parse(t, "cork"))
	if !errors.Is(err, ErrSocket) || len(granted) != 1 || granted[0].Option.Name != "nodelay" {
		t.Errorf("an error in the middle: %v, %v, want nodelay granted", granted, err)
	}
	if _, err := Apply(-1, parse(t, "nodelay")); !errors.Is(err, unix.EBADF) {
		t.Errorf("no descriptor: %v, want %v", err, unix.EBADF)
	}
	file, err := os.Open(os.DevNull)
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	if _, err := Get(int(file.Fd()), "nodelay"); !errors.Is(err, unix.ENOTSOCK) {
		t.Errorf("no socket: %v, want %v", err, unix.ENOTSOCK)
	}
}

func TestMultipathTCPIsNamedInErrors(t *testing.T) {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM, unix.IPPROTO_MPTCP)
	if errors.Is(err, unix.EPROTONOSUPPORT) || errors.Is(err, unix.ENOPROTOOPT) {
		t.Logf("this kernel has no Multipath TCP: %v", err)
		return
	}
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	if sk, err := Identify(fd); err != nil || sk != TCP|IPv4|MPTCP {
		t.Errorf("Identify: %s, %v", sk, err)
	}
	if _, err := Apply(fd, parse(t, "ulp=tls")); err == nil || !strings.Contains(err.Error(), "Multipath TCP") {
		t.Errorf("got %v, want it to name Multipath TCP", err)
	}
	if _, err := Apply(fd, parse(t, "nodelay")); err != nil {
		t.Errorf("nodelay: %v", err)
	}
}

func TestBufferSizesReportWhatWasGranted(t *testing.T) {
	const limit = "/proc/sys/net/core/rmem_max"
	rmemMax, err := strconv.Atoi(strings.TrimSpace(readFile(t, limit)))
	if err != nil {
		t.Fatal(err)
	}
	apply := func(t *testing.T, text string) Granted {
		t.Helper()
		granted, err := Apply(open(t, testSockets[2]), parse(t, text))
		if err != nil || len(granted) != 1 {
			t.Fatalf("%v, %v", granted, err)
		}
		return granted[0]
	}
	if g := apply(t, "rcvbuf=64KiB"); g.Got != "128KiB" || g.Less || !strings.Contains(g.Note, "doubled") {
		t.Errorf("below the limit: %+v", g)
	}
	if g := apply(t, "rcvbuf=1"); g.Less || !strings.Contains(g.Note, "minimum") {
		t.Errorf("below the minimum: %+v", g)
	}
	over := fmt.Sprintf("rcvbuf=%d", rmemMax+4096)
	capped := func() {
		g := apply(t, over)
		for _, part := range []string{fmt.Sprintf("net.core.rmem_max=%d", rmemMax), "SO_RCVBUFFORCE: operation not permitted", "CAP_NET_ADMIN", fmt.Sprintf("=%d", rmemMax+4096)} {
			if !g.Less || g.Got != formatBytes(int64(2*rmemMax), "") || !strings.Contains(g.String(), part) {
				t.Errorf("over the limit without a privilege: %s, want %q in it", g, part)
			}
		}
	}
	if os.Getuid() != 0 {
		capped()
		return
	}
	if g := apply(t, over); g.Less || g.Got != formatBytes(int64(2*(rmemMax+4096)), "") || !strings.Contains(g.Note, "SO_RCVBUFFORCE was used") {
		t.Errorf("over the limit with the privilege: %s", g)
	}
	withoutCapability(t, unix.CAP_NET_ADMIN, capped)
}

// withoutCapability runs f on the calling thread with a capability put away for the time.
func withoutCapability(t *testing.T, capability uint, f func()) {
	t.Helper()
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var have, less [2]unix.CapUserData
	if err := unix.Capget(&header, &have[0]); err != nil {
		t.Fatal(err)
	}
	less = have
	less[capability/32].Effective &^= 1 << (capability % 32)
	if err := unix.Capset(&header, &less[0]); err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := unix.Capset(&header, &have[0]); err != nil {
			t.Fatal(err)
		}
	}()
	f()
}

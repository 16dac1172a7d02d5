package doctor

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"runtime/debug"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/fivetuple/fivetuple/internal/lab"
)

// examineIn examines the machine from within the host.
func examineIn(t *testing.T, h *lab.Host) []Finding {
	t.Helper()
	var all []Finding
	h.Do(t, func() {
		var err error
		if all, err = Examine(t.Context(), Options{}); err != nil {
			t.Errorf("examine: %v", err)
		}
	})
	return all
}

// of picks the findings of a check.
func of(all []Finding, check string) (found []Finding) {
	for _, f := range all {
		if f.Check == check {
			found = append(found, f)
		}
	}
	return found
}

// await examines the host until the first finding of the check is of the level.
func await(t *testing.T, h *lab.Host, check string, level Level) Finding {
	t.Helper()
	for deadline := time.Now().Add(10 * time.Second); ; runtime.Gosched() {
		found := of(examineIn(t, h), check)
		if len(found) > 0 && found[0].Level == level {
			return found[0]
		}
		if time.Now().After(deadline) {
			t.Fatalf("%s: got %+v, want %v", check, found, level)
		}
	}
}

func dial(t *testing.T, h *lab.Host, address string) net.Conn {
	t.Helper()
	c, err := h.Dial(t.Context(), "tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

func listen(t *testing.T, h *lab.Host, network, address string) net.Listener {
	t.Helper()
	l, err := h.Listen(network, address)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	return l
}

func accept(t *testing.T, l net.Listener) net.Conn {
	t.Helper()
	c, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

func TestEveryCheckFindsSomethingHere(t *testing.T) {
	all := examineIn(t, lab.NewHost(t, "host"))
	for _, c := range checks {
		if len(of(all, c.name)) == 0 {
			t.Errorf("%s found nothing", c.name)
		}
	}
	for _, f := range all {
		if f.Value == "" || f.Group == "" || f.Level > Unknown && f.Effect == "" {
			t.Errorf("got %+v, want a value, a group, and an effect unless all is well", f)
		}
	}
	// The lab itself stands on these.
	for _, name := range []string{"diag_tcp", "diag_unix", "diag_destroy", "user_namespaces", "ipv6", "accept_queue", "close_wait", "ephemeral_exhaustion", "listen_overflows"} {
		if f := of(all, name)[0]; f.Level != OK {
			t.Errorf("got %+v, want ok", f)
		}
	}
	// What is set for the whole machine does not exist in a host.
	if f := of(all, "tcp_memory")[0]; f.Level != Unknown || f.Value != "net.ipv4.tcp_mem is not there" {
		t.Errorf("got %+v, want unknown", f)
	}
	if f := of(all, "cap_bpf")[0]; f.Level != Note {
		t.Errorf("got %+v, want a note: the lab is a user namespace", f)
	}
}

func TestKernelParametersAreThoseOfTheNetworkNamespace(t *testing.T) {
	h, other := lab.NewHost(t, "bad"), lab.NewHost(t, "good")
	for _, tt := range []struct{ check, key, bad, good string }{
		{"listen_backlog", "net.core.somaxconn", "100", "4096"},
		{"syn_backlog", "net.ipv4.tcp_syncookies", "0", "1"},
		{"abort_on_overflow", "net.ipv4.tcp_abort_on_overflow", "1", "0"},
		{"tcp_window_scaling", "net.ipv4.tcp_window_scaling", "0", "1"},
		{"tcp_autotuning", "net.ipv4.tcp_moderate_rcvbuf", "0", "1"},
		{"time_wait_reuse", "net.ipv4.tcp_tw_reuse", "0", "2"},
		{"ephemeral_range", "net.ipv4.ip_local_port_range", "40000 40009", "32768 60999"},
		{"fin_timeout", "net.ipv4.tcp_fin_timeout", "100", "60"},
		{"tcp_receive_buffer", "net.ipv4.tcp_rmem", "4096 65536 100000", "4096 131072 6291456"},
		{"unprivileged_ports", "net.ipv4.ip_unprivileged_port_start", "2000", "1024"},
		{"mptcp", "net.mptcp.enabled", "0", "1"},
	} {
		h.Sysctl(t, tt.key, tt.bad)
		other.Sysctl(t, tt.key, tt.good)
		if f := of(examineIn(t, h), tt.check)[0]; f.Level < Note || !strings.Contains(f.Fix, tt.key) {
			t.Errorf("%s=%s: got %+v, want it found with a fix", tt.key, tt.bad, f)
		}
		if f := of(examineIn(t, other), tt.check)[0]; f.Level != OK {
			t.Errorf("%s=%s: got %+v, want ok", tt.key, tt.good, f)
		}
	}
}

func TestExhaustedPortsToOneDestinationAreFound(t *testing.T) {
	h := lab.NewHost(t, "host")
	l := listen(t, h, "tcp", "127.0.0.1:8080")
	h.Sysctl(t, "net.ipv4.ip_local_port_range", "40000 40009")
	h.Sysctl(t, "net.ipv4.tcp_tw_reuse", "0")
	address := l.Addr().String()
	type pair struct{ client, server net.Conn }
	var pairs []pair
	for n := 1; n <= 10; n++ {
		client := dial(t, h, address)
		pairs = append(pairs, pair{client, accept(t, l)})
		want := OK
		if n > 8 {
			want = Warning
		}
		if n == 10 {
			want = Problem
		}
		f := of(examineIn(t, h), "ephemeral_exhaustion")[0]
		if f.Level != want {
			t.Errorf("%d connections: got %+v, want %v", n, f, want)
		}
		if want == Problem && (f.Subject != "127.0.0.1 to "+address || !strings.Contains(f.Value, "10 of 10 ephemeral ports in use, 0 ") || !strings.Contains(f.Fix, "ip_local_port_range")) {
			t.Errorf("got %+v, want the destination, 10 of 10, a wider range", f)
		}
	}
	if _, err := h.Dial(t.Context(), "tcp", address); !errors.Is(err, syscall.EADDRNOTAVAIL) {
		t.Errorf("one more connection: got %v, want the effect: %v", err, syscall.EADDRNOTAVAIL)
	}

	// In TIME_WAIT the ports stay taken, unless they may be used again.
	for _, p := range pairs {
		p.client.Close()
		p.server.Close()
	}
	for deadline := time.Now().Add(10 * time.Second); ; runtime.Gosched() {
		f := of(examineIn(t, h), "ephemeral_exhaustion")[0]
		if f.Level == Problem && strings.Contains(f.Value, "10 of 10 ephemeral ports in use, 10 ") && strings.Contains(f.Fix, "tcp_tw_reuse=1") {
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("after closing: got %+v, want 10 ports in TIME_WAIT", f)
		}
	}
	if _, err := h.Dial(t.Context(), "tcp", address); !errors.Is(err, syscall.EADDRNOTAVAIL) {
		t.Errorf("a connection with all ports in TIME_WAIT: got %v, want %v", err, syscall.EADDRNOTAVAIL)
	}
	h.Sysctl(t, "net.ipv4.tcp_tw_reuse", "2")
	await(t, h, "ephemeral_exhaustion", OK)
}

func TestAFullAcceptQueueIsFoundWithWhoHoldsIt(t *testing.T) {
	h := lab.NewHost(t, "host")
	h.Sysctl(t, "net.core.somaxconn", "1")
	for _, tt := range []struct{ network, address, effect string }{
		{"tcp", "127.0.0.1:8080", "drops"},
		{"unix", filepath.Join(t.TempDir(), "s"), "EAGAIN"},
	} {
		l := listen(t, h, tt.network, tt.address)
		await(t, h, "accept_queue", OK)
		dialIn := func() net.Conn {
			c, err := h.Dial(t.Context(), tt.network, tt.address)
			if err != nil {
				t.Fatal(err)
			}
			return c
		}
		defer dialIn().Close()
		await(t, h, "accept_queue", Warning)
		defer dialIn().Close()
		f := await(t, h, "accept_queue", Problem)
		want := fmt.Sprintf("%s of \"%s\" (pid %d)", tt.address, comm(t), os.Getpid())
		if f.Subject != want || f.Value != "2 connections wait for accept(2), the backlog is 1" || !strings.Contains(f.Effect, tt.effect) {
			t.Errorf("got %+v, want it to be of %s", f, want)
		}
		if tt.network == "tcp" { // one more is dropped, and counted
			ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
			if c, err := h.Dial(ctx, tt.network, tt.address); err == nil {
				c.Close()
				t.Error("a connection was made though the queue is full")
			}
			cancel()
			await(t, h, "listen_overflows", Note)
		}
		l.Close()
	}
}

func comm(t *testing.T) string {
	b, err := os.ReadFile("/proc/self/comm")
	if err != nil {
		t.Fatal(err)
	}
	return strings.TrimSpace(string(b))
}

func TestAProgramThatDoesNotCloseIsFound(t *testing.T) {
	h := lab.NewHost(t, "host")
	l := listen(t, h, "tcp", "127.0.0.1:0")
	var servers []net.Conn
	for range manyCloseWait {
		client := dial(t, h, l.Addr().String())
		servers = append(servers, accept(t, l))
		client.Close()
	}
	if _, err := servers[0].Read(make([]byte, 1)); err != io.EOF {
		t.Fatalf("read: got %v, want the end", err)
	}
	f := await(t, h, "close_wait", Warning)
	if want := fmt.Sprintf("\"%s\" (pid %d)", comm(t), os.Getpid()); f.Subject != want || f.Value != "20 connections in CLOSE_WAIT, 19 of them not read to the end" {
		t.Errorf("got %+v, want 20 of %s", f, want)
	}
	servers[1].Close()
	await(t, h, "close_wait", OK)
}

func TestClientsThatGaveUpBeforeTheyWereAcceptedAreNobodys(t *testing.T) {
	h := lab.NewHost(t, "host")
	l := listen(t, h, "tcp", "127.0.0.1:0")
	for range manyCloseWait {
		dial(t, h, l.Addr().String()).Close()
	}
	if f := await(t, h, "close_wait", Warning); f.Subject != "not accepted yet" {
		t.Errorf("got %+v, want them not accepted yet", f)
	}
}

func TestARunningProcessNearItsLimitIsFound(t *testing.T) {
	cmd := exec.Command("sh", "-c", "exec 3<&0 4<&0 5<&0 6<&0 7<&0 8<&0 9<&0; ulimit -S -n 12; echo ready; exec cat")
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { in.Close(); cmd.Wait() })
	if _, err := out.Read(make([]byte, 10)); err != nil {
		t.Fatal(err)
	}
	all, err := Examine(t.Context(), Options{})
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range of(all, "descriptors_near_limit") {
		if strings.HasSuffix(f.Subject, fmt.Sprintf("(pid %d)", cmd.Process.Pid)) {
			// 10 while it starts cat, which may open a file.
			if f.Level < Warning || !strings.HasSuffix(f.Value, " descriptors of 12") || !strings.HasPrefix(f.Fix, fmt.Sprintf("prlimit --pid %d --nofile=", cmd.Process.Pid)) {
				t.Errorf("got %+v, want 10 of 12", f)
			}
			return
		}
	}
	t.Errorf("got %+v, want a process with 10 descriptors of 12", of(all, "descriptors_near_limit"))
}

func TestDiagnosticsThatTheKernelLacksAreSaidToBeMissing(t *testing.T) {
	// There are none of amateur radio, in any kernel.
	d := diagnostics{familyRequest(unix.AF_AX25, 24), Warning, "effect", "module"}
	found, err := diag(d)(nil)
	if err != nil || len(found) != 1 || found[0].Level != Warning || found[0].Value != "no" || found[0].Effect != "effect" {
		t.Errorf("got %+v, %v, want a warning", found, err)
	}
}

// withoutRights runs fn on a thread without capabilities, which ends with it.
func withoutRights(fn func()) {
	done := make(chan struct{})
	go func() {
		defer close(done)
		runtime.LockOSThread() // and never unlocked
		header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
		var none [2]unix.CapUserData
		if err := unix.Capset(&header, &none[0]); err != nil {
			panic(err)
		}
		fn()
	}()
	<-done
}

func TestWithoutRightsTheChecksSayWhatIsMissing(t *testing.T) {
	withoutRights(func() {
		all, err := Examine(t.Context(), Options{})
		if err != nil {
			t.Error(err)
			return
		}
		for _, name := range []string{"cap_net_admin", "cap_net_raw", "cap_net_bind_service", "cap_bpf", "cap_perfmon", "cap_sys_ptrace", "cap_sys_resource", "cap_sys_admin"} {
			if f := of(all, name)[0]; f.Level != Note || f.Value != "not in effect" || f.Effect == "" || f.Fix == "" {
				t.Errorf("got %+v, want a note", f)
			}
		}
		if f := of(all, "packet_sockets")[0]; f.Value != "yes, with CAP_NET_RAW" {
			t.Errorf("got %+v", f)
		}
		// Both work, or are probed, without rights.
		for _, name := range []string{"diag_tcp", "diag_destroy", "pidfd_getfd"} {
			if f := of(all, name)[0]; f.Level != OK {
				t.Errorf("got %+v, want ok", f)
			}
		}
	})
}

func TestExamineLeavesNothingBehind(t *testing.T) {
	h := lab.NewHost(t, "host")
	examineIn(t, h)                                  // the first one opens the descriptors of Go's poller
	defer debug.SetGCPercent(debug.SetGCPercent(-1)) // which closes what was forgotten
	before := descriptors(t)
	for range 3 {
		examineIn(t, h)
	}
	if after := descriptors(t); after != before {
		t.Errorf("%d descriptors before, %d after", before, after)
	}
	if pid, err := syscall.Wait4(-1, nil, syscall.WNOHANG, nil); err == nil && pid > 0 {
		t.Errorf("process %d was left behind", pid)
	}
}

func descriptors(t *testing.T) int {
	all, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	return len(all)
}

func TestExamineEndsWithItsContext(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if all, err := Examine(ctx, Options{}); !errors.Is(err, context.Canceled) {
		t.Errorf("got %d findings and error %v, want %v", len(all), err, context.Canceled)
	}
}

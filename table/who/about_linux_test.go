package who

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/fivetuple/fivetuple"
	"github.com/fivetuple/fivetuple/filter"
	"github.com/fivetuple/fivetuple/internal/lab"
	"github.com/fivetuple/fivetuple/port/lease"
)

// inHost runs a test in a host of its own.
func inHost(t *testing.T, f func(h *lab.Host)) {
	t.Helper()
	h := lab.NewHost(t, "host")
	h.Do(t, func() { f(h) })
}

// look is About of a target, which must have one port.
func look(t *testing.T, target string) (*Report, Port) {
	t.Helper()
	r, err := lookAt(t.Context(), target)
	if err != nil {
		t.Fatal(err)
	}
	if len(r.Ports) != 1 {
		t.Fatalf("got %d ports, want 1: %+v", len(r.Ports), r.Ports)
	}
	return r, r.Ports[0]
}

func listen(t *testing.T, network, address string) (net.Listener, string) {
	t.Helper()
	var c net.ListenConfig
	c.SetMultipathTCP(false)
	l, err := c.Listen(t.Context(), network, address)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	_, port, _ := net.SplitHostPort(l.Addr().String())
	return l, port
}

// dial connects from an address of loopback, and returns both ends.
func dial(t *testing.T, l net.Listener, from string) (client, server net.Conn) {
	t.Helper()
	d := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP(from)}}
	d.SetMultipathTCP(false)
	client, err := d.DialContext(t.Context(), "tcp4", l.Addr().String())
	if err == nil {
		server, err = l.Accept()
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { client.Close(); server.Close() })
	return client, server
}

// hold starts a process that holds a copy of a socket. It ends with the test.
func hold(t *testing.T, socket any) *exec.Cmd {
	t.Helper()
	f, err := socket.(interface{ File() (*os.File, error) }).File()
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = append(os.Environ(), "FT_TEST_DO=hold")
	cmd.ExtraFiles = []*os.File{f}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := cmd.StdinPipe(); err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { cmd.Process.Kill(); cmd.Wait() })
	if _, err := bufio.NewReader(out).ReadString('\n'); err != nil {
		t.Fatal(err)
	}
	return cmd
}

func fdOf(t *testing.T, c syscall.Conn) (fd int) {
	t.Helper()
	raw, err := c.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	raw.Control(func(n uintptr) { fd = int(n) })
	return fd
}

func TestAListenerAndItsHolderAreDescribed(t *testing.T) {
	inHost(t, func(*lab.Host) {
		l, port := listen(t, "tcp", "127.0.0.1:0")
		r, p := look(t, port)
		if !r.Held() || p.Protocol != fivetuple.TCP || fmt.Sprint(p.Port) != port || len(p.Listeners) != 1 || p.Bind != nil {
			t.Fatalf("got %+v", p)
		}
		if p.Listeners[0].Reach != Loopback || p.Listeners[0].SendQueue == 0 {
			t.Errorf("listener: got %+v, want one on loopback, with its backlog", p.Listeners[0])
		}
		if len(p.Holders) != 1 {
			t.Fatalf("got %d holders, want 1", len(p.Holders))
		}
		h := p.Holders[0]
		if h.PID != os.Getpid() || !slices.Equal(h.CommandLine, os.Args) || !slices.Equal(h.Listening, []int{fdOf(t, l.(*net.TCPListener))}) || h.Connections != 0 {
			t.Errorf("holder: got %+v, want this process", h)
		}
		if len(h.Ancestors) == 0 || h.Ancestors[0].PID != os.Getppid() {
			t.Errorf("ancestors: got %v, want %d first", h.Ancestors, os.Getppid())
		}
		if age := time.Since(h.Started); age < 0 || age > time.Hour {
			t.Errorf("started: got %v", h.Started)
		}
		if len(p.Advice) != 1 || p.Advice[0].Command != fmt.Sprintf("kill %d", os.Getpid()) {
			t.Errorf("advice: got %+v", p.Advice)
		}
		if len(r.Unknown) != 0 {
			t.Errorf("unknown: got %q, want nothing", r.Unknown)
		}
	})
}

func TestReachIsThatOfTheAddress(t *testing.T) {
	inHost(t, func(h *lab.Host) {
		other := lab.NewHost(t, "other")
		lab.Link(t, h, other, "10.0.0.0/24", "fd00::/64")
		h.Do(t, func() {
			for _, c := range []struct {
				network, address string
				want             Reach
			}{
				{"tcp4", "127.0.0.1:0", Loopback},
				{"tcp6", "[::1]:0", Loopback},
				{"tcp4", "10.0.0.1:0", OneAddress},
				{"tcp6", "[fd00::1]:0", OneAddress},
				{"tcp4", "0.0.0.0:0", AllIPv4},
				{"tcp6", "[::]:0", AllIPv6},
				{"tcp", "[::]:0", Dual},
			} {
				_, port := listen(t, c.network, c.address)
				if _, p := look(t, port); len(p.Listeners) != 1 || p.Listeners[0].Reach != c.want {
					t.Errorf("%s %s: got %+v, want %s", c.network, c.address, p.Listeners, c.want)
				}
			}
		})
	})
}

func TestTCPAndUDPAreShownApart(t *testing.T) {
	inHost(t, func(*lab.Host) {
		_, port := listen(t, "tcp", "127.0.0.1:0")
		u, err := net.ListenPacket("udp", "127.0.0.1:"+port)
		if err != nil {
			t.Fatal(err)
		}
		defer u.Close()
		r, err := lookAt(t.Context(), port)
		if err != nil || len(r.Ports) != 2 || r.Ports[0].Protocol != fivetuple.TCP || r.Ports[1].Protocol != fivetuple.UDP {
			t.Fatalf("got %+v, %v, want TCP and UDP", r, err)
		}
		for _, p := range r.Ports {
			if len(p.Listeners) != 1 || len(p.Holders) != 1 {
				t.Errorf("%v: got %+v", p.Protocol, p)
			}
		}
		if _, p := look(t, "udp://:"+port); p.Protocol != fivetuple.UDP {
			t.Errorf("got %v, want UDP alone", p.Protocol)
		}
	})
}

func TestClientsAreCountedByAddress(t *testing.T) {
	inHost(t, func(*lab.Host) {
		l, port := listen(t, "tcp4", "0.0.0.0:0")
		for range 3 {
			dial(t, l, "127.0.0.3")
		}
		for i := range MaxClients + 1 {
			dial(t, l, fmt.Sprintf("127.0.1.%d", i+1))
		}
		_, p := look(t, port)
		all := MaxClients + 4
		if len(p.States) != 1 || p.States[0] != (StateCount{fivetuple.StateEstablished, all}) {
			t.Errorf("states: got %v, want %d established", p.States, all)
		}
		if len(p.Clients) != MaxClients || p.Clients[0].Address != "127.0.0.3" || p.Clients[0].Connections != 3 || p.MoreClients != 2 || p.MoreConnections != 2 {
			t.Errorf("clients: got %+v and %d more with %d, want 127.0.0.3 first, with 3", p.Clients, p.MoreClients, p.MoreConnections)
		}
		for _, c := range p.Clients {
			if len(c.Processes) != 1 || c.Processes[0].PID != os.Getpid() {
				t.Errorf("client %s: got processes %v, want this one", c.Address, c.Processes)
			}
		}
		if len(p.Holders) != 1 || p.Holders[0].Connections != all {
			t.Errorf("holders: got %+v, want %d connections", p.Holders, all)
		}
	})
}

func TestTheProcessAtTheOtherEndIsNamed(t *testing.T) {
	inHost(t, func(*lab.Host) {
		l, port := listen(t, "tcp4", "127.0.0.1:0")
		client, _ := dial(t, l, "127.0.0.3")
		child := hold(t, client)
		client.Close()
		_, p := look(t, port)
		if len(p.Clients) != 1 || len(p.Clients[0].Processes) != 1 || p.Clients[0].Processes[0].PID != child.Process.Pid {
			t.Errorf("got %+v, want process %d", p.Clients, child.Process.Pid)
		}
		if len(p.Holders) != 1 || p.Holders[0].PID != os.Getpid() {
			t.Errorf("got holders %+v, want this process alone", p.Holders)
		}
	})
}

func TestConnectionsNotAcceptedAreCounted(t *testing.T) {
	inHost(t, func(*lab.Host) {
		l, port := listen(t, "tcp4", "127.0.0.1:0")
		c, err := net.Dial("tcp4", l.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		_, p := look(t, port)
		if p.Listeners[0].RecvQueue != 1 || p.Ownerless["not accepted"] != 1 {
			t.Errorf("got queue %d, ownerless %v, want one that waits", p.Listeners[0].RecvQueue, p.Ownerless)
		}
	})
}

func TestAllProcessesThatHoldAListenerAreNamed(t *testing.T) {
	inHost(t, func(*lab.Host) {
		l, port := listen(t, "tcp4", "127.0.0.1:0")
		one, two := hold(t, l), hold(t, l)
		_, p := look(t, port)
		if len(p.Listeners) != 1 || len(p.Holders) != 3 {
			t.Fatalf("got %d listeners, %d holders, want 1 and 3", len(p.Listeners), len(p.Holders))
		}
		if want := fmt.Sprintf("kill %d", os.Getpid()); p.Advice[0].Command != want || !strings.Contains(p.Advice[0].Text, "when all 3 have") {
			t.Errorf("advice: got %+v, want %q, the parent of the others", p.Advice, want)
		}

		l.Close()
		_, p = look(t, port)
		if len(p.Holders) != 2 {
			t.Fatalf("got %d holders, want 2", len(p.Holders))
		}
		pids := []int{one.Process.Pid, two.Process.Pid}
		slices.Sort(pids)
		if want := fmt.Sprintf("kill %d %d", pids[0], pids[1]); p.Advice[0].Command != want {
			t.Errorf("advice: got %+v, want %q", p.Advice, want)
		}
		for _, h := range p.Holders {
			if !slices.Equal(h.Listening, []int{3}) {
				t.Errorf("got descriptors %v, want 3", h.Listening)
			}
		}
	})
}

func TestSocketsThatShareAPortAreAllListed(t *testing.T) {
	inHost(t, func(*lab.Host) {
		share := net.ListenConfig{Control: func(_, _ string, c syscall.RawConn) error {
			return c.Control(func(fd uintptr) { unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_REUSEPORT, 1) })
		}}
		share.SetMultipathTCP(false)
		one, err := share.Listen(t.Context(), "tcp4", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		defer one.Close()
		two, err := share.Listen(t.Context(), "tcp4", one.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		defer two.Close()
		_, port, _ := net.SplitHostPort(one.Addr().String())
		_, p := look(t, port)
		if len(p.Listeners) != 2 || len(p.Holders) != 1 || len(p.Holders[0].Listening) != 2 {
			t.Errorf("got %d listeners, holders %+v, want 2 of this process", len(p.Listeners), p.Holders)
		}
	})
}

func TestASocketThatIsBoundAndNoMoreIsFound(t *testing.T) {
	inHost(t, func(*lab.Host) {
		fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			t.Fatal(err)
		}
		defer unix.Close(fd)
		if err := unix.Bind(fd, &unix.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}}); err != nil {
			t.Fatal(err)
		}
		name, _ := unix.Getsockname(fd)
		r, p := look(t, fmt.Sprint(name.(*unix.SockaddrInet4).Port))
		if !r.Held() || len(p.Listeners) != 1 || p.Listeners[0].State != fivetuple.StateClose || len(p.Holders) != 1 || p.Bind != nil {
			t.Errorf("got %+v, want the socket, in CLOSE", p)
		}
	})
}

func TestAPortThatNobodyHoldsCanBeBound(t *testing.T) {
	inHost(t, func(*lab.Host) {
		l, port := listen(t, "tcp4", "127.0.0.1:0")
		l.Close()
		for _, target := range []string{port, "127.0.0.1:" + port, "udp://:" + port, "tcp4://:" + port, "tcp6://:" + port} {
			r, p := look(t, target)
			if r.Held() || p.Bind == nil || !p.Bind.Free || len(p.Advice) != 0 {
				t.Errorf("%s: got %+v, want one that is free", target, p)
			}
		}
		if _, p := look(t, "127.0.0.1:"+port); p.Bind.Address != netip.MustParseAddr("127.0.0.1") {
			t.Errorf("got %v, want the address that was asked for", p.Bind.Address)
		}
	})
}

func TestTimeWaitIsSaidToBeInTheWay(t *testing.T) {
	inHost(t, func(*lab.Host) {
		l, port := listen(t, "tcp4", "127.0.0.1:0")
		client, server := dial(t, l, "127.0.0.1")
		l.Close()
		server.Close() // who closes first waits
		client.Read(make([]byte, 1))
		client.Close()
		deadline := time.Now().Add(10 * time.Second)
		for {
			r, p := look(t, port)
			if len(p.States) == 1 && p.States[0] == (StateCount{fivetuple.StateTimeWait, 1}) {
				if r.Held() || p.TimeWait <= 0 || p.TimeWait > time.Minute || p.Bind == nil || !p.Bind.Free {
					t.Errorf("got %+v, want a port that is free with SO_REUSEADDR", p)
				}
				if len(p.Advice) != 1 || !strings.Contains(p.Advice[0].Text, "SO_REUSEADDR") {
					t.Errorf("advice: got %+v", p.Advice)
				}
				return
			}
			if time.Now().After(deadline) {
				t.Fatalf("got %+v, want one in TIME_WAIT", p.States)
			}
		}
	})
}

func TestAConnectionFromThePortIsClosedByItsCookie(t *testing.T) {
	inHost(t, func(*lab.Host) {
		l, _ := listen(t, "tcp4", "127.0.0.1:0")
		client, _ := dial(t, l, "127.0.0.9")
		_, port, _ := net.SplitHostPort(client.LocalAddr().String())
		r, p := look(t, port)
		if !r.Held() || len(p.Listeners) != 0 || len(p.Holders) != 1 || p.Holders[0].Connections != 1 {
			t.Fatalf("got %+v, want a connection of this process", p)
		}
		cookie, err := unix.GetsockoptUint64(fdOf(t, client.(*net.TCPConn)), unix.SOL_SOCKET, unix.SO_COOKIE)
		if want := fmt.Sprintf("ft kill cookie:%x", cookie); err != nil || p.Advice[0].Command != want {
			t.Errorf("advice: got %+v, want %q", p.Advice, want)
		}
	})
}

func TestAProcessIsShownByThePortsItListensOn(t *testing.T) {
	inHost(t, func(*lab.Host) {
		l, port := listen(t, "tcp4", "127.0.0.1:0")
		child := hold(t, l)
		dial(t, l, "127.0.0.4") // of the test process, not of the child
		_, p := look(t, fmt.Sprintf("pid:%d", child.Process.Pid))
		if fmt.Sprint(p.Port) != port || len(p.Holders) != 2 || len(p.Clients) != 1 || p.Clients[0].Address != "127.0.0.4" {
			t.Errorf("got %+v, want port %s with all who hold it and the client", p, port)
		}
	})
}

func TestAUnixSocketIsATargetToo(t *testing.T) {
	inHost(t, func(*lab.Host) {
		path := t.TempDir() + "/s"
		l, err := net.Listen("unix", path)
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close()
		c, err := net.Dial("unix", path)
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		r, p := look(t, "unix://"+path)
		if !r.Held() || p.Name != path || len(p.Listeners) != 1 || p.Listeners[0].Reach != Local || len(p.Holders) != 1 {
			t.Errorf("got %+v", p)
		}
	})
}

func TestARuleThatSendsThePortElsewhereIsTold(t *testing.T) {
	inHost(t, func(*lab.Host) {
		nft := exec.Command("nft", "-f", "-")
		nft.Stdin = strings.NewReader("table ip t {\nchain c { type nat hook prerouting priority -100; tcp dport 8080 dnat to 10.0.0.2:80; ip daddr 192.0.2.7 tcp dport 8081 dnat to 10.0.0.2:80; }\n}\n")
		if out, err := nft.CombinedOutput(); err != nil {
			t.Fatalf("nft: %v\n%s\ninstall it: apt-get install nftables", err, out)
		}
		r, p := look(t, "8080")
		want := Forward{Kind: ByRule, To: "10.0.0.2:80", By: "table ip t, chain c", Incoming: true}
		if r.Held() || len(p.Forwards) != 1 || p.Forwards[0] != want {
			t.Errorf("got %+v, want %+v", p.Forwards, want)
		}
		if _, p := look(t, "8081"); len(p.Forwards) != 0 {
			t.Errorf("for an address that is not this machine's: got %+v, want none", p.Forwards)
		}
	})
}

func TestALeaseOfThePortIsTold(t *testing.T) {
	inHost(t, func(*lab.Host) {
		f, err := filter.Parse(t.Context(), "8080")
		if err != nil {
			t.Fatal(err)
		}
		leases := []lease.Lease{
			{Protocol: fivetuple.TCP, Address: netip.MustParseAddr("127.0.0.1"), Port: 8080, Owner: lease.Owner{User: "alice"}},
			{Protocol: fivetuple.TCP, Address: netip.MustParseAddr("127.0.0.1"), Port: 8081, Owner: lease.Owner{User: "bob"}},
		}
		r, err := About(t.Context(), Query{Filter: f, Leases: func(context.Context) ([]lease.Lease, error) { return leases, nil }})
		if err != nil || len(r.Ports) != 1 {
			t.Fatalf("got %+v, %v", r, err)
		}
		p := r.Ports[0]
		if r.Held() || len(p.Leases) != 1 || p.Leases[0].Owner.User != "alice" || len(p.Advice) != 1 || p.Advice[0].Command != "ft port release 8080" {
			t.Errorf("got %+v", p)
		}
	})
}

// From a user namespace of its own a process may not look into those outside, whoever
// runs the test, nor read the rules of the packet filter.
func TestWhatMayNotBeSeenIsSaid(t *testing.T) {
	inHost(t, func(*lab.Host) {
		_, port := listen(t, "tcp4", "127.0.0.1:0")
		cmd := exec.Command("/proc/self/exe")
		cmd.Env = append(os.Environ(), "FT_TEST_DO=look", "FT_TEST_TARGET="+port)
		cmd.SysProcAttr = &syscall.SysProcAttr{
			Cloneflags:  unix.CLONE_NEWUSER,
			UidMappings: []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Geteuid(), Size: 1}},
			GidMappings: []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getegid(), Size: 1}},
		}
		var stderr bytes.Buffer
		cmd.Stderr = &stderr
		out, err := cmd.Output()
		if err != nil {
			t.Fatalf("%v: %s", err, &stderr)
		}
		var r struct {
			Ports []struct {
				Holders   []any          `json:"holders"`
				Ownerless map[string]int `json:"ownerless"`
				Advice    []Advice       `json:"advice"`
			} `json:"ports"`
			Unknown []string `json:"unknown"`
		}
		if err := json.Unmarshal(out, &r); err != nil || len(r.Ports) != 1 {
			t.Fatalf("%v: %s", err, out)
		}
		p := r.Ports[0]
		if len(p.Holders) != 0 || p.Ownerless["no permission"] != 1 || len(p.Advice) != 1 || !strings.HasPrefix(p.Advice[0].Command, "sudo ft who") {
			t.Errorf("got %+v", p)
		}
		all := strings.Join(r.Unknown, "\n")
		if len(r.Unknown) != 2 || !strings.Contains(all, "who holds 1 socket: ") || !strings.Contains(all, "run as root") || !strings.Contains(all, "CAP_NET_ADMIN") {
			t.Errorf("unknown: got %q", r.Unknown)
		}
	})
}

package leasetest

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"
	"golang.org/x/sys/unix"

	"github.com/fivetuple/fivetuple"
	"github.com/fivetuple/fivetuple/port/lease"
)

func TestPortIsLeasedUntilTheEndOfTheTest(t *testing.T) {
	ports := newRegistry(t)
	t.Run("sub test", func(t *testing.T) {
		port := Port(t)
		got := leases(t, ports)
		if len(got) != 1 {
			t.Fatalf("got leases %v, want 1", got)
		}
		l := got[0]
		if l.Protocol != fivetuple.TCP || l.AddrPort() != netip.AddrPortFrom(netip.MustParseAddr("127.0.0.1"), port) ||
			l.Purpose != "test TestPortIsLeasedUntilTheEndOfTheTest/sub_test" || l.Owner.PID != os.Getpid() || l.Name != "" {
			t.Errorf("port %d is leased as %+v", port, l)
		}
		if ends := time.Until(l.Expires); ends < longest-time.Minute || ends > longest {
			t.Errorf("the lease ends in %v", ends)
		}
		if port < 49152 {
			t.Errorf("got port %d, want a dynamic one", port)
		}
		program, err := net.Listen("tcp4", l.AddrPort().String())
		if err != nil {
			t.Fatal(err)
		}
		program.Close()
	})
	if got := leases(t, ports); len(got) != 0 {
		t.Errorf("%v are left", got)
	}
}

func TestListenerHoldsItsPort(t *testing.T) {
	ports := newRegistry(t)
	var address string
	t.Run("", func(t *testing.T) {
		l := Listen(t)
		address = l.Addr().String()
		got := leases(t, ports)
		if len(got) != 1 || got[0].AddrPort().String() != address || got[0].Protocol != fivetuple.TCP {
			t.Errorf("got leases %v, want one of tcp %s", got, address)
		}
		if _, err := net.Listen("tcp4", address); !errors.Is(err, unix.EADDRINUSE) {
			t.Errorf("another listener: got %v, want EADDRINUSE", err)
		}
		client, err := net.Dial("tcp4", address)
		if err != nil {
			t.Fatal(err)
		}
		client.Close()
	})
	if _, err := net.Dial("tcp4", address); !errors.Is(err, unix.ECONNREFUSED) {
		t.Errorf("after the test: got %v, want ECONNREFUSED", err)
	}
	if got := leases(t, ports); len(got) != 0 {
		t.Errorf("%v are left", got)
	}
}

func TestDatagramSocketHoldsItsPort(t *testing.T) {
	ports := newRegistry(t)
	t.Run("", func(t *testing.T) {
		c := ListenPacket(t)
		address := c.LocalAddr().String()
		got := leases(t, ports)
		if len(got) != 1 || got[0].AddrPort().String() != address || got[0].Protocol != fivetuple.UDP {
			t.Errorf("got leases %v, want one of udp %s", got, address)
		}
		if _, err := net.ListenPacket("udp4", address); !errors.Is(err, unix.EADDRINUSE) {
			t.Errorf("another socket: got %v, want EADDRINUSE", err)
		}
	})
	if got := leases(t, ports); len(got) != 0 {
		t.Errorf("%v are left", got)
	}
}

// A test that starts its server again must find the port free.
func TestPortOfAClosedListenerStaysLeased(t *testing.T) {
	ports := newRegistry(t)
	t.Run("", func(t *testing.T) {
		l := Listen(t)
		l.Close()
		if got := leases(t, ports); len(got) != 1 {
			t.Errorf("got leases %v, want 1", got)
		}
	})
	if got := leases(t, ports); len(got) != 0 {
		t.Errorf("%v are left", got)
	}
}

func TestOptions(t *testing.T) {
	ports := newRegistry(t)
	loopback6 := On(netip.IPv6Loopback())
	Port(t, UDP, loopback6, func(r *lease.Request) { r.Port, r.Name = 5353, "dns" })
	Listen(t, loopback6, func(r *lease.Request) { r.Port = 1001 })
	Listen(t, On(netip.IPv4Unspecified()), func(r *lease.Request) { r.Port = 1002 })
	Listen(t, On(netip.IPv6Unspecified()), func(r *lease.Request) { r.Port = 1003 })
	Listen(t, On(netip.IPv6Unspecified()), func(r *lease.Request) { r.Port, r.Protocol = 1004, fivetuple.TCP6 })
	ListenPacket(t, On(netip.IPv4Unspecified()), func(r *lease.Request) { r.Port = 1005 })
	var got []string
	for _, l := range leases(t, ports) {
		got = append(got, fmt.Sprintf("%s %s %s", l.Protocol, l.AddrPort(), l.Name))
	}
	want := "[tcp [::1]:1001  tcp 0.0.0.0:1002  tcp [::]:1003  tcp6 [::]:1004  udp 0.0.0.0:1005  udp [::1]:5353 dns]"
	if fmt.Sprint(got) != want {
		t.Errorf("got leases %s, want %s", got, want)
	}
	for _, tt := range []struct {
		address string
		free    bool
	}{{"[::1]:1001", false}, {"127.0.0.1:1002", false}, {"[::1]:1002", true}, {"127.0.0.1:1003", false}, {"127.0.0.1:1004", true}, {"[::1]:1004", false}} {
		l, err := net.Listen("tcp", tt.address)
		if free := err == nil; free != tt.free {
			t.Errorf("%s: got %v, want it free: %v", tt.address, err, tt.free)
		}
		if err == nil {
			l.Close()
		}
	}
}

// In the lab the kernel's range is 32768-60999, as on most machines.
func TestPortIsNotOneThatTheKernelGivesAway(t *testing.T) {
	newRegistry(t)
	for range 20 {
		if port := Port(t); port <= 60999 {
			t.Errorf("got port %d, which an outgoing connection may take", port)
		}
	}
}

func TestHelpersLeaveNothingOpenMeanwhile(t *testing.T) {
	newRegistry(t).Close()
	goroutines := goleak.IgnoreCurrent()
	before := descriptors(t)
	Port(t)
	goleak.VerifyNone(t, goroutines)
	if after := descriptors(t); after != before {
		t.Errorf("%d descriptors were open, and now %d", before, after)
	}
}

func descriptors(t *testing.T) int {
	t.Helper()
	fds, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	return len(fds)
}

func TestBinariesBesideEachOtherHavePortsOfTheirOwn(t *testing.T) {
	ports := newRegistry(t)
	binaries := []*player{start(t, "hold"), start(t, "hold"), start(t, "hold")}
	holder := make(map[string]int)
	for i, b := range binaries {
		lines := b.read(t, "ready")
		for _, port := range lines[:60] {
			if before, twice := holder[port]; twice { // or, in a subtest, it had it a moment ago
				t.Errorf("binary %d has port %s, and so has %d", i, port, before)
			}
			holder[port] = i
		}
	}
	if got := leases(t, ports); len(got) != 3*40 {
		t.Errorf("got %d leases, want 40 of each", len(got))
	}
	for _, b := range binaries {
		b.stdin.Write([]byte("\n"))
		if got := b.read(t, "failed: "); got[len(got)-1] != "failed: 0" {
			t.Errorf("got %v", got)
		}
	}
	if got := leases(t, ports); len(got) != 0 {
		t.Errorf("%v are left", got)
	}
}

func TestLeasesEndHoweverTheTestDoes(t *testing.T) {
	for _, play := range []string{"fail", "exhausted"} {
		t.Run(play, func(t *testing.T) {
			ports := newRegistry(t)
			binary := start(t, play)
			if got := binary.read(t, "failed: "); got[len(got)-1] != "failed: 1" {
				t.Errorf("got %v", got)
			}
			if got := leases(t, ports); len(got) != 0 { // the process goes on
				t.Errorf("%v are left", got)
			}
		})
	}
	t.Run("panic", func(t *testing.T) {
		ports := newRegistry(t)
		if err := start(t, "panic").cmd.Wait(); err == nil {
			t.Error("the test did not panic")
		}
		if got := leases(t, ports); len(got) != 0 {
			t.Errorf("%v are left", got)
		}
		if got, err := ports.Collect(t.Context()); len(got) != 0 || err != nil {
			t.Errorf("%v were left to be collected (error %v)", got, err)
		}
	})
	t.Run("killed", func(t *testing.T) {
		ports := newRegistry(t)
		binary := start(t, "killed")
		binary.read(t, "ready")
		if got := leases(t, ports); len(got) != 2 {
			t.Errorf("got leases %v, want 2", got)
		}
		binary.kill()
		if got := leases(t, ports); len(got) != 0 {
			t.Errorf("%v are left", got)
		}
	})
}

// recorder is a test whose log and failure are looked at.
type recorder struct {
	testing.TB
	log   strings.Builder
	fatal string
}

func (r *recorder) Logf(format string, args ...any) { fmt.Fprintf(&r.log, format+"\n", args...) }

func (r *recorder) Fatalf(format string, args ...any) {
	r.fatal = fmt.Sprintf(format, args...)
	runtime.Goexit()
}

// record runs f with a recorder, until it fails.
func record(t *testing.T, f func(testing.TB)) *recorder {
	r := &recorder{TB: t}
	done := make(chan bool)
	go func() {
		defer close(done)
		f(r)
	}()
	<-done
	return r
}

func TestRefusalFailsTheTest(t *testing.T) {
	newRegistry(t)
	taken := Listen(t).Addr().(*net.TCPAddr).AddrPort().Port()
	for _, tt := range []struct {
		name string
		f    func(testing.TB)
		want string
	}{
		{"leased", func(t testing.TB) { Port(t, func(r *lease.Request) { r.Port = taken }) },
			fmt.Sprintf("leasetest: tcp 127.0.0.1:%d overlaps tcp 127.0.0.1:%[1]d, leased to ", taken)},
		{"a bad address", func(t testing.TB) { Listen(t, On(netip.MustParseAddr("192.0.2.1"))) }, "leasetest: "},
		{"tcp for packets", func(t testing.TB) { ListenPacket(t, func(r *lease.Request) { r.Protocol = fivetuple.TCP }) },
			"leasetest: Listen is for tcp and ListenPacket for udp, but an option asks for tcp"},
		{"udp for a listener", func(t testing.TB) { Listen(t, UDP) },
			"leasetest: Listen is for tcp and ListenPacket for udp, but an option asks for udp"},
	} {
		if r := record(t, tt.f); !strings.HasPrefix(r.fatal, tt.want) {
			t.Errorf("%s: got %q, want %q", tt.name, r.fatal, tt.want)
		}
	}
}

func TestSocketOfARefusedLeaseIsClosed(t *testing.T) {
	newRegistry(t)
	closed := 0
	record(t, func(t testing.TB) {
		acquire(t, lease.Request{Range: fivetuple.PortRange{First: 2, Last: 1}}, func() { closed++ })
	})
	if closed != 1 {
		t.Errorf("it was closed %d times", closed)
	}
}

func TestWarningsAreLogged(t *testing.T) {
	newRegistry(t)
	t.Setenv("FT_CLAIMS_DIR", "/dev/null/none")
	if log := record(t, func(t testing.TB) { Port(t) }).log.String(); !strings.HasPrefix(log, "leasetest: ") || !strings.Contains(log, "/dev/null/none") {
		t.Errorf("the log is %q", log)
	}
}

func TestWithoutRegistryPortsAreLeasedInTheProcess(t *testing.T) {
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	t.Setenv("STATE_DIRECTORY", filepath.Join(file, "state"))
	t.Run("", func(t *testing.T) {
		var one, other uint16
		log := record(t, func(t testing.TB) {
			one, other = Port(t), Port(t)
		}).log.String()
		if !strings.Contains(log, "file") || !strings.Contains(log, ": other processes can get the port, too\n") {
			t.Errorf("the log is %q", log)
		}
		if one == 0 || one == other {
			t.Errorf("got ports %d and %d", one, other)
		}
		if got := leases(t, memory()); len(got) != 2 {
			t.Errorf("got leases %v, want 2", got)
		}
	})
	if got := leases(t, memory()); len(got) != 0 {
		t.Errorf("%v are left", got)
	}
}

func TestReleaseGoesToTheRegistryThatGranted(t *testing.T) {
	ports := newRegistry(t)
	t.Run("", func(t *testing.T) {
		r := record(t, func(t testing.TB) { Port(t) })
		t.Cleanup(func() {
			if r.log.Len() != 0 {
				t.Errorf("the log is %q", r.log.String())
			}
		})
		os.Setenv("STATE_DIRECTORY", "/dev/null")
	})
	if got := leases(t, ports); len(got) != 0 {
		t.Errorf("%v are left", got)
	}
}

func TestLeaseThatEndedBeforeTheTestIsNoFailure(t *testing.T) {
	ports := newRegistry(t)
	var r *recorder
	t.Run("", func(t *testing.T) {
		r = record(t, func(t testing.TB) { Port(t) })
		for _, l := range leases(t, ports) {
			if err := ports.Release(t.Context(), l); err != nil {
				t.Fatal(err)
			}
		}
	})
	if r.log.Len() != 0 {
		t.Errorf("the log is %q", r.log.String())
	}
}

func TestLongNameIsCut(t *testing.T) {
	ports := newRegistry(t)
	t.Run(strings.Repeat("é", 100), func(t *testing.T) {
		Port(t)
		if got := leases(t, ports)[0].Purpose; len(got) != lease.MaxPurpose-1 || !strings.HasSuffix(got, "é") {
			t.Errorf("got purpose %q of %d bytes", got, len(got))
		}
	})
}

package lease

import (
	"context"
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

	"golang.org/x/sys/unix"

	"github.com/fivetuple/fivetuple"
	"github.com/fivetuple/fivetuple/internal/lab"
)

// Four ports are ephemeral in these hosts, and the first of them is leased.
const fewEphemeral = "50000 50003"

func newHostWithFewEphemeralPorts(t *testing.T) *lab.Host {
	t.Helper()
	host := lab.NewHost(t, "host")
	host.Sysctl(t, "net.ipv4.ip_local_port_range", fewEphemeral)
	return host
}

// connectUntilRefused opens connections until the kernel has no port left for
// another, and returns the ports that it took.
func connectUntilRefused(t *testing.T) map[uint16]bool {
	t.Helper()
	listener := listen(t, "tcp4", "127.0.0.1:80")
	taken := map[uint16]bool{}
	for {
		conn, err := net.Dial("tcp4", fmt.Sprint("127.0.0.1:", listener))
		if errors.Is(err, unix.EADDRNOTAVAIL) {
			return taken
		}
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { conn.Close() })
		taken[conn.LocalAddr().(*net.TCPAddr).AddrPort().Port()] = true
	}
}

// bindReusable binds a TCP socket as servers do.
func bindReusable(at netip.AddrPort) (fd int, err error) {
	fd, err = unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return -1, err
	}
	err = errors.Join(unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_REUSEADDR, 1),
		unix.Bind(fd, &unix.SockaddrInet4{Port: int(at.Port()), Addr: at.Addr().As4()}))
	if err != nil {
		unix.Close(fd)
		return -1, err
	}
	return fd, nil
}

func TestUnboundPortIsTakenByAnOutgoingConnection(t *testing.T) {
	newHostWithFewEphemeralPorts(t).Do(t, func() {
		l := acquire(t, newShared(t, Options{}), Request{Port: 50000})
		if ephemeral, err := IsEphemeral(l.Port); err != nil || !ephemeral {
			t.Errorf("port %d: got %v, %v, want it ephemeral", l.Port, ephemeral, err)
		}
		if taken := connectUntilRefused(t); !taken[l.Port] || len(taken) != 4 {
			t.Fatalf("got ports %v taken, want all four", taken)
		}
		if fd, err := bindReusable(l.AddrPort()); !errors.Is(err, unix.EADDRINUSE) {
			t.Errorf("bind: got %d, %v, want EADDRINUSE", fd, err)
		}
	})
}

func TestBoundPortIsNotTakenByAnOutgoingConnection(t *testing.T) {
	newHostWithFewEphemeralPorts(t).Do(t, func() {
		held := -1
		l := acquire(t, newShared(t, Options{}), Request{Port: 50000, Bind: func(_ context.Context, at netip.AddrPort) (err error) {
			held, err = bindReusable(at)
			return err
		}})
		defer unix.Close(held)
		if taken := connectUntilRefused(t); taken[l.Port] || len(taken) != 3 {
			t.Errorf("got ports %v taken, want the other three", taken)
		}
		// The server comes in beside the socket that holds the port for it.
		listen(t, "tcp4", l.AddrPort().String())
		conn, err := net.Dial("tcp4", l.AddrPort().String())
		if err != nil {
			t.Fatal(err)
		}
		conn.Close()
	})
}

func TestReservedPortIsNotTakenByAnOutgoingConnection(t *testing.T) {
	host := newHostWithFewEphemeralPorts(t)
	host.Sysctl(t, "net.ipv4.ip_local_reserved_ports", "50002,60000-60010")
	host.Do(t, func() {
		s := newShared(t, Options{})
		l := acquire(t, s, Request{Port: 50000, Reserve: true})
		if ephemeral, err := IsEphemeral(l.Port); !l.Reserved || ephemeral || err != nil {
			t.Errorf("got %+v, ephemeral: %v, %v, want it reserved", l, ephemeral, err)
		}
		wantReserved(t, "50000,50002,60000-60010")
		if taken := connectUntilRefused(t); taken[l.Port] || len(taken) != 2 {
			t.Errorf("got ports %v taken, want 50001 and 50003", taken)
		}
		listen(t, "tcp4", l.AddrPort().String())
		if got := list(t, s); len(got) != 1 || !got[0].Reserved {
			t.Errorf("got %+v, want it reserved", got)
		}
		release(t, s, l)
		wantReserved(t, "50002,60000-60010")
	})
}

func wantReserved(t *testing.T, want string) {
	t.Helper()
	got, err := readSysctl("ip_local_reserved_ports")
	if err != nil || got != want {
		t.Errorf("ip_local_reserved_ports: got %s, %v, want %s", got, err, want)
	}
}

func TestReservationEndsWithItsLease(t *testing.T) {
	for name, ending := range endings {
		t.Run(name, func(t *testing.T) {
			host := lab.NewHost(t, "host")
			host.Sysctl(t, "net.ipv4.ip_local_reserved_ports", "50002")
			host.Do(t, func() {
				s := newShared(t, Options{})
				_, end := ending(t, s, Request{Port: 50000, Reserve: true})
				acquire(t, s, Request{Port: 50001, Reserve: true})
				listed := acquire(t, s, Request{Port: 50002, Reserve: true}) // by somebody else
				wantReserved(t, "50000-50002")
				end()
				release(t, s, listed)
				if _, err := s.Collect(t.Context()); err != nil {
					t.Fatal(err)
				}
				wantReserved(t, "50001-50002")
				// Whoever gets the port after a lease that is over also frees it.
				_, end = ending(t, s, Request{Port: 50003, Reserve: true, Name: "first"})
				end()
				release(t, s, acquire(t, s, Request{Port: 50003, Name: "second"}))
				wantReserved(t, "50001-50002")
			})
		})
	}
}

// The entry is one for both protocols, and goes with the last lease.
func TestReservationOfBothProtocols(t *testing.T) {
	lab.NewHost(t, "host").Do(t, func() {
		s := newShared(t, Options{})
		tcp, udp, err := AcquireBoth(t.Context(), s, Request{Range: onePort, Name: "dns", Reserve: true}, nil)
		if err != nil {
			t.Fatal(err)
		}
		wantReserved(t, "50000")
		release(t, s, tcp)
		wantReserved(t, "50000")
		release(t, s, udp)
		wantReserved(t, "")
		// The name finds its port again, though it is reserved while it is leased.
		if tcp, _, err = AcquireBoth(t.Context(), s, Request{Name: "dns", Reserve: true}, nil); err != nil || tcp.Port != 50000 {
			t.Errorf("got %v, %v, want port 50000", tcp, err)
		}
	})
}

// Collecting, releasing and expiring can be seen to from another network namespace.
func TestReservationEndsThoughItsLeaseEndedElsewhere(t *testing.T) {
	for name, ending := range endings {
		t.Run(name, func(t *testing.T) {
			a, b := lab.NewHost(t, "a"), lab.NewHost(t, "b")
			s := newShared(t, Options{})
			var end func()
			a.Do(t, func() {
				_, end = ending(t, s, Request{Port: 50000, Reserve: true})
				wantReserved(t, "50000")
			})
			b.Do(t, func() {
				end()
				if _, err := s.Collect(t.Context()); err != nil {
					t.Fatal(err)
				}
			})
			a.Do(t, func() {
				if _, err := s.Collect(t.Context()); err != nil { // the first who comes by
					t.Fatal(err)
				}
				wantPorts(t, s)
				wantReserved(t, "")
			})
		})
	}
}

// A grant that fails after the port was reserved reserves nothing.
func TestGrantThatFailsReservesNothing(t *testing.T) {
	lab.NewHost(t, "host").Do(t, func() {
		s := newShared(t, Options{})
		edit(t, s, "CREATE TEMP TRIGGER full BEFORE INSERT ON main.leases BEGIN SELECT RAISE(ABORT, 'no room'); END")
		if err := refusedReserve(t, s); !strings.Contains(fmt.Sprint(err), "no room") {
			t.Errorf("got %v, want the failure of the insertion", err)
		}
		wantReserved(t, "")
		edit(t, s, "DROP TRIGGER full")
		acquire(t, s, Request{Port: 50000})
	})
}

func refusedReserve(t *testing.T, s *Shared) error {
	t.Helper()
	l, err := s.Acquire(t.Context(), Request{Port: 50000, Reserve: true})
	if err == nil {
		t.Errorf("got %v, want an error", l)
	}
	return err
}

func TestReserveWithoutPrivilege(t *testing.T) {
	lab.NewHost(t, "host").Do(t, func() {
		s := newShared(t, Options{})
		release(t, s, acquire(t, s, Request{})) // so that its files are open
		letAllIn(t, s.path)
		asOrdinaryUser(t, func() {
			err := refusedReserve(t, s)
			if !errors.Is(err, os.ErrPermission) || !strings.Contains(fmt.Sprint(err), "CAP_NET_ADMIN") {
				t.Errorf("got %v, want os.ErrPermission, and the capability named", err)
			}
		})
		wantPorts(t, s)
		wantReserved(t, "")
		l := acquire(t, s, Request{Port: 50000, TTL: time.Minute})
		if l.Reserved {
			t.Errorf("got %+v, want it not reserved", l)
		}
	})
}

// An entry that this process may not remove is no reason to grant nothing.
func TestReservationThatIsLeftToRoot(t *testing.T) {
	lab.NewHost(t, "host").Do(t, func() {
		s := newShared(t, Options{})
		owner, process := newOwner(t)
		acquire(t, s, Request{Port: 50000, Owner: owner, Reserve: true})
		acquire(t, s, Request{Port: 50001, Owner: owner, Reserve: true})
		kill(process)
		letAllIn(t, s.path)
		asOrdinaryUser(t, func() {
			if _, err := s.Acquire(t.Context(), Request{Port: 50000}); err != nil {
				t.Errorf("port of a dead owner: %v", err)
			}
			if _, err := s.Collect(t.Context()); err != nil {
				t.Errorf("Collect: %v", err)
			}
		})
		wantPorts(t, s, 50000)
		if _, err := s.Collect(t.Context()); err != nil {
			t.Error(err)
		}
		wantReserved(t, "")
	})
}

// asOrdinaryUser runs f without capabilities, and if there are other users than
// this one as one of them. Only this thread changes (setresuid(2)).
func asOrdinaryUser(t *testing.T, f func()) {
	t.Helper()
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var before, none [2]unix.CapUserData
	if err := unix.Capget(&header, &before[0]); err != nil {
		t.Fatal(err)
	}
	set := func(uid uintptr, data *[2]unix.CapUserData) {
		t.Helper()
		if severalUsers() {
			const unchanged = ^uintptr(0)
			if _, _, errno := unix.RawSyscall(unix.SYS_SETRESUID, unchanged, uid, unchanged); errno != 0 {
				t.Fatal(os.NewSyscallError("setresuid", errno))
			}
		}
		none := *data
		none[0].Permitted, none[1].Permitted = before[0].Permitted, before[1].Permitted
		if err := unix.Capset(&header, &none[0]); err != nil {
			t.Fatal(err)
		}
	}
	set(ordinaryUser, &none)
	defer set(0, &before)
	f()
}

// dropCapabilities makes root obey file modes, in this goroutine: its thread
// is not unlocked and ends with it.
func dropCapabilities(t *testing.T) {
	runtime.LockOSThread()
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var none [2]unix.CapUserData
	if err := unix.Capset(&header, &none[0]); err != nil {
		t.Error(err)
	}
}

const ordinaryUser = 65534

// letAllIn lets other users see the files in a temporary directory.
func letAllIn(t *testing.T, path string) {
	t.Helper()
	dir := filepath.Dir(path)
	for _, d := range []string{dir, filepath.Dir(dir)} {
		if err := os.Chmod(d, 0o755); err != nil {
			t.Fatal(err)
		}
	}
}

// severalUsers says whether there are others than the one who started the tests.
func severalUsers() bool {
	text, err := os.ReadFile("/proc/self/uid_map")
	return err == nil && strings.Fields(string(text))[2] != "1"
}

func TestReserveOfAPortThatIsChosen(t *testing.T) {
	lab.NewHost(t, "host").Do(t, func() {
		s := newShared(t, Options{})
		within := fivetuple.PortRange{First: 50000, Last: 50002}
		for i := range 3 {
			acquire(t, s, Request{Range: within, Name: fmt.Sprint(i), Reserve: true})
		}
		wantReserved(t, "50000-50002")
		var none *ExhaustedError
		if err := refused(t, s, Request{Range: within}, ErrExhausted); !errors.As(err, &none) || none.Leased != 3 {
			t.Errorf("got %v, want three leased", err)
		}
	})
}

package lease

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/fivetuple/fivetuple"
)

func TestNextFreePortIsNotTheOneJustFreed(t *testing.T) {
	m := NewMemory()
	seen := map[uint16]bool{}
	for range 100 {
		l := acquire(t, m, Request{})
		if l.Port < 49152 {
			t.Fatalf("got port %d, want a dynamic one", l.Port)
		}
		if seen[l.Port] {
			t.Errorf("port %d is granted again at once", l.Port)
		}
		seen[l.Port] = true
		if err := m.Release(t.Context(), l); err != nil {
			t.Fatal(err)
		}
	}
}

func TestNameGetsItsOldPortBack(t *testing.T) {
	m := NewMemory()
	api := acquire(t, m, Request{Name: "api"})
	udp := acquire(t, m, Request{Name: "api", Protocol: fivetuple.UDP})
	second := acquire(t, m, Request{Name: "api"})
	if second.Port == api.Port {
		t.Errorf("port %d is granted twice", api.Port)
	}
	for _, l := range []Lease{api, udp, second} {
		if err := m.Release(t.Context(), l); err != nil {
			t.Fatal(err)
		}
	}
	acquire(t, m, Request{Name: "db"})
	if got := acquire(t, m, Request{Name: "api"}); got.Port != second.Port {
		t.Errorf("got port %d, want %d, which the name had last", got.Port, second.Port)
	}
	// The port has gone to another name since, which has it now.
	acquire(t, m, Request{Name: "dns", Protocol: fivetuple.UDP, Port: udp.Port})
	if got := acquire(t, m, Request{Name: "api", Protocol: fivetuple.UDP}); got.Port == udp.Port {
		t.Errorf("port %d is granted twice", udp.Port)
	}
	for key, port := range m.last {
		if got := m.past[protocolPort{key.protocol, port}].name; got != key.name {
			t.Errorf("%s had port %d last, which %q had last", key.name, port, got)
		}
	}
}

func TestEveryPortOfARangeIsGrantedOnce(t *testing.T) {
	m := NewMemory()
	within := fivetuple.PortRange{First: 50000, Last: 50019}
	listen(t, "tcp", "127.0.0.1:50007")
	for i := range 10 {
		acquire(t, m, Request{Range: within, Name: fmt.Sprint(i)})
	}
	for range 9 {
		acquire(t, m, Request{Range: within})
	}
	_, err := m.Acquire(t.Context(), Request{Range: within})
	want := "no tcp port of 50000-50019 is free on 127.0.0.1: 19 leased, 1 in use: take a larger range or release a lease"
	if !errors.Is(err, ErrExhausted) || err.Error() != want {
		t.Errorf("got %v, want %s", err, want)
	}
	acquire(t, m, Request{Range: within, Protocol: fivetuple.UDP})
	acquire(t, m, Request{Range: within, Address: netip.MustParseAddr("127.0.0.2")})
}

func TestEndedLeaseIsStale(t *testing.T) {
	m := NewMemory()
	old := acquire(t, m, Request{Port: 50000})
	if err := m.Release(t.Context(), old); err != nil {
		t.Fatal(err)
	}
	current := acquire(t, m, Request{Port: 50000})
	if current.Fence <= old.Fence {
		t.Errorf("got fence %d after %d", current.Fence, old.Fence)
	}
	if err := m.Release(t.Context(), old); !errors.Is(err, ErrStale) {
		t.Errorf("Release: got %v, want ErrStale", err)
	}
	if _, err := m.Renew(t.Context(), old, time.Hour); !errors.Is(err, ErrStale) {
		t.Errorf("Renew: got %v, want ErrStale", err)
	}
	if got, _ := m.List(t.Context()); len(got) != 1 || got[0] != current {
		t.Errorf("got leases %v, want %v", got, current)
	}
	if err := m.Release(t.Context(), current); err != nil {
		t.Error(err)
	}
	if len(m.leases) != 0 {
		t.Errorf("%v is kept", m.leases)
	}
}

func TestLeaseExpires(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := NewMemory()
		granted := time.Now()
		l := acquire(t, m, Request{Port: 50000, Name: "api", TTL: time.Minute})
		if want := granted.Add(time.Minute); !l.Granted.Equal(granted) || !l.Expires.Equal(want) {
			t.Errorf("got %v to %v, want %v to %v", l.Granted, l.Expires, granted, want)
		}
		time.Sleep(time.Minute - 1)
		if _, err := m.Acquire(t.Context(), Request{Port: 50000}); !errors.Is(err, ErrLeased) {
			t.Errorf("before its end: got %v, want ErrLeased", err)
		}
		l, err := m.Renew(t.Context(), l, time.Minute)
		if err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Minute - 1)
		if got, _ := m.List(t.Context()); len(got) != 1 || got[0] != l {
			t.Errorf("after renewal: got %v, want %v", got, l)
		}
		time.Sleep(time.Nanosecond)
		if _, err := m.Renew(t.Context(), l, 0); !errors.Is(err, ErrStale) {
			t.Errorf("after its end: got %v, want ErrStale", err)
		}
		l = acquire(t, m, Request{Port: 50000, TTL: time.Minute})
		if _, err := m.Renew(t.Context(), l, 0); err != nil {
			t.Fatal(err)
		}
		time.Sleep(1000 * time.Hour)
		if _, err := m.Acquire(t.Context(), Request{Port: 50000}); !errors.Is(err, ErrLeased) {
			t.Errorf("without an end: got %v, want ErrLeased", err)
		}
	})
}

func TestReusePortIsSharedByOneUser(t *testing.T) {
	m := NewMemory()
	alice, bob := Owner{PID: 1, User: "alice"}, Owner{PID: 2, User: "bob"}
	for _, tt := range []struct {
		owner Owner
		reuse bool
		want  error
	}{
		{alice, true, nil},
		{alice, true, nil},
		{alice, false, ErrLeased},
		{bob, true, ErrLeased},
	} {
		_, err := m.Acquire(t.Context(), Request{Port: 50000, Owner: tt.owner, ReusePort: tt.reuse})
		if !errors.Is(err, tt.want) {
			t.Errorf("%s, reuse %v: got %v, want %v", tt.owner.User, tt.reuse, err, tt.want)
		}
	}
	// A port that is chosen is one's own, a group's or not.
	within := fivetuple.PortRange{First: 50000, Last: 50001}
	if l := acquire(t, m, Request{Range: within, Owner: alice, ReusePort: true}); l.Port != 50001 {
		t.Errorf("got port %d, want 50001", l.Port)
	}
}

func TestBindHoldsThePortItIsGranted(t *testing.T) {
	m := NewMemory()
	within := fivetuple.PortRange{First: 50000, Last: 50001}
	listen(t, "tcp", "127.0.0.1:50000")
	var listener net.Listener
	l := acquire(t, m, Request{Range: within, Bind: func(ctx context.Context, at netip.AddrPort) (err error) {
		var config net.ListenConfig
		listener, err = config.Listen(ctx, "tcp4", at.String())
		return err
	}})
	defer listener.Close()
	if got := listener.Addr().String(); l.Port != 50001 || got != l.AddrPort().String() {
		t.Errorf("got listener %s, lease %v, want port 50001", got, l)
	}
	failure := errors.New("too many open files")
	_, err := m.Acquire(t.Context(), Request{Bind: func(context.Context, netip.AddrPort) error { return failure }})
	if !errors.Is(err, failure) || errors.Is(err, ErrExhausted) {
		t.Errorf("got %v, want %v: a local failure says nothing about the port", err, failure)
	}
	if all, _ := m.List(t.Context()); len(all) != 1 {
		t.Errorf("got leases %v, want 1", all)
	}
}

// Each goroutine binds what it was granted: a port granted twice cannot be bound
// twice. As it is bound for a moment only, the holders of each port are counted, too.
func TestNoPortIsHeldTwice(t *testing.T) {
	m := NewMemory()
	within := fivetuple.PortRange{First: 50000, Last: 50039} // fewer than there are goroutines
	var holders [1 << 16]atomic.Int32
	var workers sync.WaitGroup
	for i := range 64 {
		workers.Go(func() {
			request := Request{Range: within, Name: fmt.Sprint(i % 16)}
			if i%4 == 0 {
				request.Address = any4
			}
			for n := range 50 {
				if n%5 == 0 {
					request.Port, request.Range = 50000+uint16(n+i)%40, fivetuple.PortRange{}
				} else {
					request.Port, request.Range = 0, within
				}
				l, err := m.Acquire(t.Context(), request)
				if errors.Is(err, ErrExhausted) || errors.Is(err, ErrLeased) {
					continue
				}
				if err != nil {
					t.Errorf("Acquire: %v", err)
					return
				}
				if n := holders[l.Port].Add(1); n != 1 {
					t.Errorf("port %d has %d holders", l.Port, n)
				}
				closer, _, err := open("tcp4", l.AddrPort().String())
				if err != nil {
					t.Errorf("leased to %d, lease %d: %v", i, l.Fence, err)
					return
				}
				runtime.Gosched()
				closer.Close()
				holders[l.Port].Add(-1)
				if err := m.Release(t.Context(), l); err != nil {
					t.Errorf("Release: %v", err)
				}
			}
		})
	}
	workers.Wait()
	if all, _ := m.List(t.Context()); len(all) != 0 {
		t.Errorf("leases are left: %v", all)
	}
}

func TestAcquireStopsWithItsContext(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	tries := 0
	_, err := NewMemory().Acquire(ctx, Request{Bind: func(context.Context, netip.AddrPort) error {
		tries++
		cancel()
		return syscall.EADDRINUSE
	}})
	if !errors.Is(err, context.Canceled) || tries != 1 {
		t.Errorf("got %v after %d tries, want context.Canceled after 1", err, tries)
	}
}

func TestLeaseAsJSON(t *testing.T) {
	l := Lease{
		Protocol: fivetuple.TCP, Address: loopback, Port: 8080, Name: "api",
		Owner:   Owner{PID: 12, Start: "b/9", Command: "node", User: "alice"},
		Granted: time.Date(2026, 1, 2, 3, 4, 5, 6, time.UTC), Fence: 7,
	}
	want := `{"protocol":"tcp","address":"127.0.0.1","port":8080,"name":"api",` +
		`"owner":{"pid":12,"start":"b/9","command":"node","user":"alice"},"granted":"2026-01-02T03:04:05.000000006Z","fence":7}`
	text, err := json.Marshal(l)
	if err != nil || string(text) != want {
		t.Errorf("got %s, %v, want %s", text, err, want)
	}
	var back Lease
	if err := json.Unmarshal(text, &back); err != nil || back != l {
		t.Errorf("got back %+v, %v, want %+v", back, err, l)
	}
}

func TestStatusCountsLeasesAndSockets(t *testing.T) {
	m := NewMemory()
	status := func() Status {
		t.Helper()
		s, err := m.Status(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		return s
	}
	want := status()
	if total := want.Counts[0].Ports + want.Counts[1].Ports + want.Counts[2].Ports; total != 65535 {
		t.Errorf("got %d TCP ports, want 65535", total)
	}
	l := acquire(t, m, Request{Port: 50000})
	acquire(t, m, Request{Port: 50000, Address: netip.MustParseAddr("127.0.0.2")})
	acquire(t, m, Request{Port: 80})
	acquire(t, m, Request{Protocol: fivetuple.UDP, Port: 5000})
	listen(t, "tcp", l.AddrPort().String()) // leased and bound is one port in use
	listen(t, "tcp6", "[::1]:50001")
	listen(t, "udp4", "0.0.0.0:50002")
	for _, c := range []struct{ index, leased, used int }{{0, 1, 1}, {2, 1, 2}, {4, 1, 1}, {5, 0, 1}} {
		want.Counts[c.index].Leased += c.leased
		want.Counts[c.index].InUse += c.used
		want.Counts[c.index].Left -= c.used
	}
	if diff := cmp.Diff(want, status()); diff != "" {
		t.Errorf("status (-want +got):\n%s", diff)
	}
	if !want.Sockets {
		t.Error("the kernel's sockets are not counted")
	}
}

func TestConflictNamesTheHolder(t *testing.T) {
	m := NewMemory()
	acquire(t, m, Request{Port: 50000, Name: "api", Owner: Owner{PID: 12, Command: "node", User: "alice"}})
	_, err := m.Acquire(t.Context(), Request{Port: 50000, Address: any4})
	want := "tcp 0.0.0.0:50000 overlaps tcp 127.0.0.1:50000, leased to api (node, pid 12, user alice)"
	if err == nil || !strings.HasPrefix(err.Error(), want) {
		t.Errorf("got %v, want %s", err, want)
	}
}

func TestMulticastGroupIsShared(t *testing.T) {
	m := NewMemory()
	group := Request{Protocol: fivetuple.UDP, Address: netip.MustParseAddr("239.1.1.1"), Port: 50000}
	listen(t, "udp4", "239.1.1.1:50000", unix.SO_REUSEADDR)
	acquire(t, m, group)
	acquire(t, m, group)
	if _, err := m.Acquire(t.Context(), Request{Protocol: fivetuple.UDP, Address: any4, Port: 50000}); !errors.Is(err, ErrLeased) {
		t.Errorf("all addresses: got %v, want ErrLeased", err)
	}
}

func BenchmarkAcquireRelease(b *testing.B) {
	for _, held := range []int{0, 10000} {
		b.Run(fmt.Sprint(held, " held"), func(b *testing.B) {
			m := NewMemory()
			for range held {
				if _, err := m.Acquire(b.Context(), Request{}); err != nil {
					b.Fatal(err)
				}
			}
			for b.Loop() {
				l, err := m.Acquire(b.Context(), Request{})
				if err != nil {
					b.Fatal(err)
				}
				m.Release(b.Context(), l)
			}
		})
	}
}

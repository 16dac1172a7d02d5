package lease

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"math"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/fivetuple/fivetuple"
	"github.com/fivetuple/fivetuple/internal/lab"
)

func newShared(t testing.TB, o Options) *Shared {
	t.Helper()
	return openAt(t, filepath.Join(t.TempDir(), "ports.db"), o)
}

// openAt opens a registry that is closed at the end of the test.
func openAt(t testing.TB, path string, o Options) *Shared {
	t.Helper()
	s, err := Open(t.Context(), path, withOwnClaims(path, o))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return s
}

// withOwnClaims keeps the registry apart from those of other tests.
func withOwnClaims(path string, o Options) Options {
	if o.Claims == "" {
		o.Claims = filepath.Dir(path)
	}
	return o
}

func release(t *testing.T, r Registry, l Lease) {
	t.Helper()
	if err := r.Release(t.Context(), l); err != nil {
		t.Fatal(err)
	}
}

func list(t *testing.T, r Registry) []Lease {
	t.Helper()
	leases, err := r.List(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return leases
}

// wantPorts wants these ports to be listed, in that order.
func wantPorts(t *testing.T, r Registry, want ...uint16) {
	t.Helper()
	var got []uint16
	for _, l := range list(t, r) {
		got = append(got, l.Port)
	}
	if !slices.Equal(got, want) {
		t.Errorf("got leases of ports %v, want %v", got, want)
	}
}

// refused wants a request to fail.
func refused(t *testing.T, r Registry, request Request, want error) error {
	t.Helper()
	l, err := r.Acquire(t.Context(), request)
	if !errors.Is(err, want) {
		t.Errorf("Acquire(%+v): got %v, %v, want %v", request, l, err, want)
	}
	return err
}

// edit changes the file as nothing in the package would.
func edit(t testing.TB, s *Shared, statement string, args ...any) {
	t.Helper()
	s.turn <- struct{}{}
	defer s.endTurn()
	if _, err := s.conn.ExecContext(t.Context(), statement, args...); err != nil {
		t.Fatal(err)
	}
}

// number runs a query for one number.
func number(t testing.TB, s *Shared, query string) (n int) {
	t.Helper()
	s.turn <- struct{}{}
	defer s.endTurn()
	if err := s.conn.QueryRowContext(t.Context(), query).Scan(&n); err != nil {
		t.Fatal(err)
	}
	return n
}

// pass lets time pass for all that is in the file.
func pass(t testing.TB, s *Shared, d time.Duration) {
	t.Helper()
	setClock(t, s, d)
	edit(t, s, "UPDATE leases SET expires_since = expires_since - ?1, ended_since = ended_since - ?1", int64(d))
}

// setClock sets the time of day d ahead, as seen from what is in the file.
func setClock(t testing.TB, s *Shared, d time.Duration) {
	t.Helper()
	edit(t, s, "UPDATE leases SET granted = granted - ?1, expires = expires - ?1, ended = ended - ?1", int64(d))
}

// onePort is a range in which every free port is the same.
var onePort = fivetuple.PortRange{First: 50000, Last: 50000}

func TestSharedLeaseIsThereForAllUntilItIsReleased(t *testing.T) {
	s := newShared(t, Options{})
	l := acquire(t, s, Request{Name: "api", Purpose: "tests", TTL: time.Hour})
	me, err := OwnerOf(os.Getpid())
	if err != nil {
		t.Fatal(err)
	}
	if l.Owner != me || l.Port < 49152 || l.Address != loopback || l.Protocol != fivetuple.TCP || l.Fence == 0 ||
		time.Since(l.Granted) > time.Minute || !l.Expires.Equal(l.Granted.Add(time.Hour)) {
		t.Errorf("got %+v, want a dynamic TCP port on loopback for %v", l, me)
	}
	other := openAt(t, s.path, Options{})
	if got := list(t, other); len(got) != 1 {
		t.Errorf("got %v, want the lease", got)
	} else {
		// What is listed is the same, but for the time that passes between two readings of two clocks.
		if late := got[0].Expires.Sub(l.Expires).Abs(); late > time.Millisecond {
			t.Errorf("listed as expiring %v apart", late)
		}
		got[0].Granted, got[0].Expires = l.Granted, l.Expires
		if got[0] != l {
			t.Errorf("listed %+v, want %+v", got[0], l)
		}
	}
	err = refused(t, other, Request{Port: l.Port}, ErrLeased)
	if conflict := (*ConflictError)(nil); !errors.As(err, &conflict) || conflict.Holder.Fence != l.Fence || !strings.Contains(err.Error(), ", leased to api ("+me.String()+")") {
		t.Errorf("got %v, want the holder named", err)
	}
	release(t, other, l)
	wantPorts(t, s)
	acquire(t, other, Request{Port: l.Port, Name: "other"})
}

func TestSharedStaleFenceIsRefused(t *testing.T) {
	s := newShared(t, Options{})
	stale := func(what string, l Lease) {
		t.Helper()
		if err := s.Release(t.Context(), l); !errors.Is(err, ErrStale) || !strings.Contains(err.Error(), l.AddrPort().String()) {
			t.Errorf("release of a lease that %s: got %v, want ErrStale", what, err)
		}
		if _, err := s.Renew(t.Context(), l, time.Hour); !errors.Is(err, ErrStale) {
			t.Errorf("renewal of a lease that %s: got %v, want ErrStale", what, err)
		}
	}
	old := acquire(t, s, Request{Port: 50000, Name: "api"})
	release(t, s, old)
	stale("was released", old)
	next := acquire(t, s, Request{Port: 50000, Name: "api", TTL: time.Minute})
	if next.Fence <= old.Fence {
		t.Errorf("got fence %d after %d", next.Fence, old.Fence)
	}
	stale("another one followed", old)
	wantPorts(t, s, 50000)
	pass(t, s, time.Minute)
	stale("has expired", next)
	owner, process := newOwner(t)
	orphan := acquire(t, s, Request{Port: 50000, Owner: owner})
	kill(process)
	stale("lost its owner", orphan)
}

func TestSharedFenceGrowsAcrossReopening(t *testing.T) {
	s := newShared(t, Options{})
	var last uint64
	for i := range 5 {
		l := acquire(t, s, Request{Name: fmt.Sprint(i)})
		if l.Fence <= last {
			t.Errorf("got fence %d after %d", l.Fence, last)
		}
		last = l.Fence
		release(t, s, l)
		edit(t, s, "DELETE FROM leases") // nothing is left to count from
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
		s = openAt(t, s.path, Options{})
	}
}

func TestSharedLeaseExpires(t *testing.T) {
	s := newShared(t, Options{})
	l := acquire(t, s, Request{Port: 50000, TTL: time.Minute})
	pass(t, s, time.Minute-time.Second)
	refused(t, s, Request{Port: 50000}, ErrLeased)
	wantPorts(t, s, 50000)
	renewed, err := s.Renew(t.Context(), l, time.Minute)
	if left := time.Until(renewed.Expires); err != nil || renewed.Fence != l.Fence || left < 59*time.Second || left > time.Minute {
		t.Errorf("renewed: got %v left of %+v, %v, want a minute", left, renewed, err)
	}
	pass(t, s, time.Minute-time.Second)
	wantPorts(t, s, 50000)
	pass(t, s, time.Second)
	wantPorts(t, s)
	l = acquire(t, s, Request{Port: 50000, TTL: time.Minute})
	l, err = s.Renew(t.Context(), l, 0)
	if err != nil || !l.Expires.IsZero() {
		t.Errorf("renewed without an end: got %+v, %v", l, err)
	}
	pass(t, s, 1000*time.Hour)
	refused(t, s, Request{Port: 50000}, ErrLeased)
	if _, err := s.Renew(t.Context(), l, -1); !errors.Is(err, ErrInvalid) {
		t.Errorf("negative time to live: got %v, want ErrInvalid", err)
	}
}

// Whoever asks for a time to live that no clock reaches has the lease all the same.
func TestSharedLongestTimeToLive(t *testing.T) {
	s := newShared(t, Options{})
	l, err := s.Acquire(t.Context(), Request{Port: 50000, TTL: math.MaxInt64})
	if err == nil {
		wantPorts(t, s, 50000)
		refused(t, s, Request{Port: 50000}, ErrLeased)
		release(t, s, l)
	} else if !errors.Is(err, ErrInvalid) {
		t.Errorf("got %v, want the lease or ErrInvalid", err)
	}
	l = acquire(t, s, Request{Port: 50000})
	if _, err = s.Renew(t.Context(), l, math.MaxInt64); err == nil {
		wantPorts(t, s, 50000)
	} else if !errors.Is(err, ErrInvalid) {
		t.Errorf("renewal: got %v, want the lease or ErrInvalid", err)
	}
}

func TestSharedDetachedLeaseIsNobodys(t *testing.T) {
	s := newShared(t, Options{})
	refused(t, s, Request{Detached: true}, ErrInvalid)
	l := acquire(t, s, Request{Port: 50000, Detached: true, TTL: time.Minute})
	if l.Owner.PID != 0 || l.Owner.Start != "" || l.Owner.User == "" || !l.IsDetached() {
		t.Errorf("got owner %+v, want a user and no process", l.Owner)
	}
	if _, err := s.Renew(t.Context(), l, 0); !errors.Is(err, ErrInvalid) {
		t.Errorf("renewed for ever: got %v, want ErrInvalid", err)
	}
	s = openAt(t, s.path, Options{})
	wantPorts(t, s, 50000)
	pass(t, s, time.Minute)
	wantPorts(t, s)
}

// An owner that is no process, without Detached, would have the port for ever.
func TestOwnerMustBeAProcess(t *testing.T) {
	for name, r := range map[string]Registry{"memory": NewMemory(), "shared": newShared(t, Options{})} {
		for _, o := range []Owner{{User: "alice"}, {PID: -1, User: "alice"}} {
			if l, err := r.Acquire(t.Context(), Request{Owner: o}); !errors.Is(err, ErrInvalid) {
				t.Errorf("%s, owner %+v: got %v, %v, want ErrInvalid", name, o, l, err)
			}
		}
	}
}

func TestSharedListIsSorted(t *testing.T) {
	s := newShared(t, Options{})
	elsewhere := netip.MustParseAddr("127.0.0.2")
	var last uint64
	for _, r := range []Request{
		{Port: 50001},
		{Port: 50000, Protocol: fivetuple.UDP},
		{Port: 50000, Address: elsewhere, ReusePort: true},
		{Port: 50000},
		{Port: 50000, Address: elsewhere, ReusePort: true},
		{Port: 50002, Protocol: fivetuple.TCP6, Address: any6},
		{Port: 50002, Protocol: fivetuple.TCP, Address: any4},
	} {
		last = acquire(t, s, r).Fence
	}
	var got []string
	for _, l := range list(t, s) {
		got = append(got, fmt.Sprint(l.Protocol, " ", l.AddrPort(), " ", l.Fence+7-last))
	}
	want := []string{
		"tcp 127.0.0.1:50000 4", "tcp 127.0.0.2:50000 3", "tcp 127.0.0.2:50000 5", "tcp 127.0.0.1:50001 1",
		"tcp 0.0.0.0:50002 7", "tcp6 [::]:50002 6", "udp 127.0.0.1:50000 2",
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("list (-want +got):\n%s", diff)
	}
}

func TestSharedStatusCountsLeases(t *testing.T) {
	s := newShared(t, Options{})
	want, err := s.Status(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	l := acquire(t, s, Request{Port: 50000})
	listen(t, "tcp4", l.AddrPort().String())
	acquire(t, s, Request{Protocol: fivetuple.UDP, Port: 5000})
	release(t, s, acquire(t, s, Request{Port: 50001}))
	want.Counts[2].Leased++
	want.Counts[2].InUse++
	want.Counts[2].Left--
	want.Counts[4].Leased++
	want.Counts[4].InUse++
	want.Counts[4].Left--
	got, err := s.Status(t.Context())
	if diff := cmp.Diff(want, got); err != nil || diff != "" {
		t.Errorf("%v, status (-want +got):\n%s", err, diff)
	}
}

func TestSharedOverlapIsTheKernels(t *testing.T) {
	elsewhere, six := netip.MustParseAddr("127.0.0.2"), netip.IPv6Loopback()
	for _, tt := range []struct {
		first, second Request
		want          error
	}{
		{Request{}, Request{}, ErrLeased},
		{Request{}, Request{Address: elsewhere}, nil},
		{Request{}, Request{Protocol: fivetuple.UDP}, nil},
		{Request{}, Request{Address: any4}, ErrLeased},
		{Request{Address: any4}, Request{Address: elsewhere}, ErrLeased},
		{Request{Address: any6}, Request{Address: any4}, ErrLeased},
		{Request{Address: any6}, Request{}, ErrLeased},
		{Request{Address: any6, Protocol: fivetuple.TCP6}, Request{Address: any4}, nil},
		{Request{Address: any6, Protocol: fivetuple.TCP6}, Request{Address: six}, ErrLeased},
		{Request{Address: six}, Request{}, nil},
		{Request{Address: six}, Request{Address: any6}, ErrLeased},
		{Request{Protocol: fivetuple.UDP, Address: any6}, Request{Protocol: fivetuple.UDP}, ErrLeased},
	} {
		for _, swap := range []bool{false, true} {
			first, second := tt.first, tt.second
			if swap {
				first, second = second, first
			}
			s := newShared(t, Options{})
			first.Port, second.Port = 50000, 50000
			acquire(t, s, first)
			_, err := s.Acquire(t.Context(), second)
			if !errors.Is(err, tt.want) {
				t.Errorf("%s %s, then %s %s: got %v, want %v", first.Protocol, first.Address, second.Protocol, second.Address, err, tt.want)
			}
		}
	}
}

func TestSharedReusePortIsSharedByOneUser(t *testing.T) {
	s := newShared(t, Options{})
	alice, bob := Owner{PID: 1, User: "alice"}, Owner{PID: 2, User: "bob"}
	var group []Lease
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
		l, err := s.Acquire(t.Context(), Request{Port: 50000, Owner: tt.owner, ReusePort: tt.reuse})
		if !errors.Is(err, tt.want) {
			t.Errorf("%s, reuse %v: got %v, want %v", tt.owner.User, tt.reuse, err, tt.want)
		}
		if err == nil {
			group = append(group, l)
		}
	}
	within := fivetuple.PortRange{First: 50000, Last: 50001}
	if l := acquire(t, s, Request{Range: within, Owner: alice, ReusePort: true}); l.Port != 50001 {
		t.Errorf("got port %d, want 50001, one of its own", l.Port)
	}
	release(t, s, group[0])
	refused(t, s, Request{Port: 50000, Owner: bob, ReusePort: true}, ErrLeased)
	release(t, s, group[1])
	acquire(t, s, Request{Port: 50000, Owner: bob, ReusePort: true})
}

func TestSharedBindHoldsThePortItIsGranted(t *testing.T) {
	s := newShared(t, Options{})
	within := fivetuple.PortRange{First: 50000, Last: 50001}
	listen(t, "tcp", "127.0.0.1:50000")
	var listener net.Listener
	l := acquire(t, s, Request{Range: within, Bind: func(ctx context.Context, at netip.AddrPort) (err error) {
		listener, err = (&net.ListenConfig{}).Listen(ctx, "tcp4", at.String())
		return err
	}})
	defer listener.Close()
	if got := listener.Addr().String(); l.Port != 50001 || got != l.AddrPort().String() {
		t.Errorf("got listener %s, lease %v, want port 50001", got, l)
	}
	failure := errors.New("too many open files")
	err := refused(t, s, Request{Bind: func(context.Context, netip.AddrPort) error { return failure }}, failure)
	if errors.Is(err, ErrExhausted) {
		t.Errorf("got %v: a local failure says nothing about the port", err)
	}
	refused(t, s, Request{Port: 50000}, ErrInUse)
	wantPorts(t, s, 50001)
}

// Whatever becomes of the function that binds, the registry goes on for this
// process and all others.
func TestSharedSurvivesABindThatDoesNotReturn(t *testing.T) {
	for name, leave := range map[string]func(){
		"panic":  func() { panic("out of luck") },
		"goexit": runtime.Goexit, // as t.Fatal does
	} {
		t.Run(name, func(t *testing.T) {
			s := newShared(t, Options{Wait: time.Second})
			done := make(chan struct{})
			go func() {
				defer close(done)
				defer func() { recover() }()
				s.Acquire(t.Context(), Request{Port: 50000, Bind: func(context.Context, netip.AddrPort) error { leave(); return nil }})
			}()
			<-done
			acquire(t, s, Request{Port: 50001})
			begun := time.Now()
			acquire(t, openAt(t, s.path, Options{Wait: time.Second}), Request{Port: 50002})
			if took := time.Since(begun); took > 2*time.Second {
				t.Errorf("another process would have waited %v", took)
			}
			wantPorts(t, s, 50001, 50002)
		})
	}
}

func TestSharedAcquireStopsWithItsContext(t *testing.T) {
	s := newShared(t, Options{})
	ctx, cancel := context.WithCancel(t.Context())
	tries := 0
	_, err := s.Acquire(ctx, Request{Bind: func(context.Context, netip.AddrPort) error {
		tries++
		cancel()
		return syscall.EADDRINUSE
	}})
	if !errors.Is(err, context.Canceled) || tries != 1 {
		t.Errorf("got %v after %d tries, want context.Canceled after 1", err, tries)
	}
	for name, err := range map[string]error{
		"Acquire": func() error { _, err := s.Acquire(ctx, Request{}); return err }(),
		"Release": s.Release(ctx, Lease{Fence: 1}),
		"List":    func() error { _, err := s.List(ctx); return err }(),
	} {
		if !errors.Is(err, context.Canceled) {
			t.Errorf("%s: got %v, want context.Canceled", name, err)
		}
	}
	wantPorts(t, s)
}

func TestSharedExhaustionAddsUp(t *testing.T) {
	host := lab.NewHost(t, "host")
	host.Sysctl(t, "net.ipv4.ip_local_reserved_ports", "1000,1030-1031")
	host.Do(t, func() {
		s := newShared(t, Options{})
		within := fivetuple.PortRange{First: 1000, Last: 1031}
		closer, _, err := open("tcp4", "127.0.0.1:1024")
		if err != nil {
			t.Fatal(err)
		}
		defer closer.Close()
		acquire(t, s, Request{Port: 1025})
		acquire(t, s, Request{Port: 1026, Address: any6})
		acquire(t, s, Request{Port: 1026, Protocol: fivetuple.UDP}) // another port
		for _, port := range []uint16{1027, 1028, 1029} {
			release(t, s, acquire(t, s, Request{Port: port, Name: "before"}))
		}
		setCapable(t, false)
		defer setCapable(t, true)
		err = refused(t, s, Request{Range: within}, ErrExhausted)
		var none *ExhaustedError
		if !errors.As(err, &none) || !errors.Is(err, ErrNotPermitted) {
			t.Fatalf("got %v, want ErrExhausted and ErrNotPermitted", err)
		}
		got := [...]int{none.Leased, none.Resting, none.InUse, none.Denied, none.Reserved}
		if want := [...]int{2, 3, 1, 23, 3}; got != want || !strings.Contains(err.Error(), "2 leased, 3 freed only now and at rest, 1 in use, 23 not permitted, 3 reserved by the kernel") {
			t.Errorf("got %v (%v), want %v", err, got, want)
		}
		if l := acquire(t, s, Request{Range: within, Name: "before"}); l.Port < 1027 || l.Port > 1029 {
			t.Errorf("got port %d, want one that rests for others only", l.Port)
		}
	})
}

func TestSharedPortsAreOfANetworkNamespace(t *testing.T) {
	s := newShared(t, Options{})
	a, b := lab.NewHost(t, "a"), lab.NewHost(t, "b")
	var ofA Lease
	a.Do(t, func() { ofA = acquire(t, s, Request{Port: 50000, Name: "a"}) })
	b.Do(t, func() {
		wantPorts(t, s)
		acquire(t, s, Request{Port: 50000, Name: "b"})
		acquire(t, s, Request{Port: 50001, Name: "b"})
		wantPorts(t, s, 50000, 50001)
	})
	wantPorts(t, s)
	a.Do(t, func() {
		wantPorts(t, s, 50000)
		refused(t, s, Request{Port: 50000}, ErrLeased)
	})
	release(t, s, ofA) // a lease can be released from anywhere
	a.Do(t, func() { wantPorts(t, s) })
	b.Do(t, func() { wantPorts(t, s, 50000, 50001) })
}

func TestSharedRegistryThatMayBeReadOnly(t *testing.T) {
	path := filepath.Join(t.TempDir(), "new", "ports.db")
	if _, err := OpenReadOnly(t.Context(), path, Options{}); !errors.Is(err, fs.ErrNotExist) || !strings.Contains(err.Error(), "no port was leased yet") {
		t.Errorf("missing: got %v, want fs.ErrNotExist", err)
	}
	if _, err := os.Stat(filepath.Dir(path)); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("looking made the directory: %v", err)
	}
	s := openAt(t, path, Options{})
	l := acquire(t, s, Request{Port: 50000})
	for name, want := range map[string]fs.FileMode{path: 0o600, path + "-lock": 0o600, filepath.Dir(path): fs.ModeDir | 0o700} {
		if info, err := os.Stat(name); err != nil || info.Mode() != want {
			t.Errorf("%s: got %v, %v, want %v", name, info.Mode(), err, want)
		}
	}
	r, err := OpenReadOnly(t.Context(), path, Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	wantPorts(t, r, 50000)
	if _, err := r.Status(t.Context()); err != nil {
		t.Error(err)
	}
	_, errRenew := r.Renew(t.Context(), l, 0)
	_, errCollect := r.Collect(t.Context())
	for _, err := range []error{refused(t, r, Request{}, ErrReadOnly), errRenew, r.Release(t.Context(), l), errCollect} {
		if !errors.Is(err, ErrReadOnly) {
			t.Errorf("got %v, want ErrReadOnly", err)
		}
	}
	wantPorts(t, s, 50000)
	release(t, s, l)
	wantPorts(t, r)
}

func TestSharedRequestsThatAreWrong(t *testing.T) {
	s := newShared(t, Options{})
	acquire(t, s, Request{Name: strings.Repeat("n", 64)})
	for _, tt := range []struct {
		request Request
		want    string
	}{
		{Request{Name: "a\nb"}, `"a\nb" contains '\n', which does not print`},
		{Request{Name: "a\xff"}, `"a\xff" is not UTF-8`},
		{Request{Name: strings.Repeat("n", 65)}, "65 bytes long; the limit is 64"},
		{Request{Purpose: "a\x1b[31m"}, "does not print"},
		{Request{Owner: Owner{PID: 1, User: "a\nb"}}, "does not print"},
		{Request{Protocol: fivetuple.Unix}, "no port"},
		{Request{Range: fivetuple.PortRange{First: 2, Last: 1}}, "backwards"},
		{Request{TTL: -1}, "negative"},
	} {
		if err := refused(t, s, tt.request, ErrInvalid); err != nil && !strings.Contains(err.Error(), tt.want) {
			t.Errorf("got %v, want %s", err, tt.want)
		}
	}
	if got := list(t, s); len(got) != 1 {
		t.Errorf("got %v, want one lease", got)
	}
}

func TestSharedCollectReturnsWhatItEnded(t *testing.T) {
	s := newShared(t, Options{})
	host := lab.NewHost(t, "host")
	owner, process := newOwner(t)
	acquire(t, s, Request{Port: 50000})
	acquire(t, s, Request{Port: 50001, TTL: time.Minute})
	host.Do(t, func() { acquire(t, s, Request{Port: 50002, Owner: owner}) })
	if ended, err := s.Collect(t.Context()); err != nil || len(ended) != 0 {
		t.Errorf("got %v, %v, want nothing", ended, err)
	}
	pass(t, s, time.Minute)
	kill(process)
	ended, err := s.Collect(t.Context())
	var ports []uint16
	for _, l := range ended {
		ports = append(ports, l.Port)
	}
	slices.Sort(ports)
	if err != nil || !slices.Equal(ports, []uint16{50001, 50002}) {
		t.Errorf("got %v, %v, want 50001 and 50002", ended, err)
	}
	if ended, err := s.Collect(t.Context()); err != nil || len(ended) != 0 {
		t.Errorf("again: got %v, %v, want nothing", ended, err)
	}
	wantPorts(t, s, 50000)
}

// What is remembered of ports and names is bounded.
func TestSharedMemoryDoesNotGrow(t *testing.T) {
	s := newShared(t, Options{Rest: -1})
	const ports = 50
	grants := 10 * tidyEvery
	if raceEnabled { // SQLite is then thirty times slower
		grants = 3 * tidyEvery
	}
	within := fivetuple.PortRange{First: 50000, Last: 50000 + ports - 1}
	size := 0
	for i := range grants {
		release(t, s, acquire(t, s, Request{Range: within, Name: fmt.Sprint("name ", i)}))
		if i == 2*tidyEvery+maxNames/2 {
			size = number(t, s, "SELECT page_count FROM pragma_page_count")
		}
	}
	if rows := number(t, s, "SELECT count(*) FROM leases"); rows > ports+maxNames+tidyEvery {
		t.Errorf("%d rows are left of %d grants, want at most %d", rows, grants, ports+maxNames+tidyEvery)
	}
	if slots := number(t, s, "SELECT count(*) FROM free_slots"); slots > 2 {
		t.Errorf("%d slots are free, for one lease at a time", slots)
	}
	if now := number(t, s, "SELECT page_count FROM pragma_page_count"); now > 2*size {
		t.Errorf("the file has %d pages, %d soon after it began", now, size)
	}
	if info, err := os.Stat(s.path + "-wal"); err != nil || info.Size() > 8<<20 {
		t.Errorf("log: got %v, %v, want at most 8 MiB", info.Size(), err)
	}
}

// There are more addresses than ports, and network namespaces come and go.
func TestSharedMemoryOfAddressesAndNamespacesDoesNotGrow(t *testing.T) {
	for name, columns := range map[string]string{
		"addresses":  "namespace, '127.1.' || (i / 256) || '.' || (i % 256)",
		"namespaces": "'gone/' || i, address", // as if the machine had made a container for each
	} {
		t.Run(name, func(t *testing.T) {
			s := newShared(t, Options{})
			release(t, s, acquire(t, s, Request{Port: 50000, Name: "api"}))
			const many = 3 * maxNames
			edit(t, s, `WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < ?)
				INSERT INTO leases (namespace, address, protocol, v6only, port, name, purpose, pid, start, command, user,
					reuse_port, reserved, slot, boot, granted, ended, ended_since)
				SELECT `+columns+`, protocol, v6only, port, name, purpose, pid, start, command, user,
					reuse_port, reserved, slot, boot, granted, ended, ended_since FROM leases, n WHERE fence = (SELECT max(fence) FROM leases)`, many)
			pass(t, s, 48*time.Hour)
			if _, err := s.Collect(t.Context()); err != nil {
				t.Fatal(err)
			}
			if rows := number(t, s, "SELECT count(*) FROM leases"); rows > 2*maxNames {
				t.Errorf("%d rows are left of %d leases that ended two days ago, want at most %d", rows, many, 2*maxNames)
			}
		})
	}
}

func TestSharedMulticastGroupIsShared(t *testing.T) {
	s := newShared(t, Options{})
	group := Request{Protocol: fivetuple.UDP, Address: netip.MustParseAddr("239.1.1.1"), Port: 50000}
	listen(t, "udp4", "239.1.1.1:50000", unix.SO_REUSEADDR)
	acquire(t, s, group)
	acquire(t, s, group)
	refused(t, s, Request{Protocol: fivetuple.UDP, Address: any4, Port: 50000}, ErrLeased)
}

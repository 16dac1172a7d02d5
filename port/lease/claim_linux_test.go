package lease

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/fivetuple/fivetuple"
	"github.com/fivetuple/fivetuple/internal/claims"
	"github.com/fivetuple/fivetuple/internal/lab"
)

// claimsDir is a directory such as /var/tmp.
func claimsDir(t testing.TB) string {
	t.Helper()
	dir := t.TempDir()
	if err := os.Chmod(dir, 0o777|os.ModeSticky); err != nil {
		t.Fatal(err)
	}
	return dir
}

// registry opens a registry of its own that sees those with the same directory of claims.
func registry(t testing.TB, dir string) *Shared {
	t.Helper()
	return openAt(t, filepath.Join(t.TempDir(), "ports.db"), Options{Rest: -1, Claims: dir, Warn: func(err error) { t.Errorf("warned: %v", err) }})
}

func TestRegistriesDoNotGrantWhatAnotherHas(t *testing.T) {
	dir := claimsDir(t)
	a, b := registry(t, dir), registry(t, dir)
	l := acquire(t, a, Request{Port: 50000, Name: "api"})
	var conflict *ConflictError
	if _, err := b.Acquire(t.Context(), Request{Port: 50000}); !errors.As(err, &conflict) {
		t.Fatalf("got %v, want a conflict", err)
	}
	if got, want := conflict.Holder.Owner, a.self; got.PID != want.PID || got.User != want.User || got.Command != want.Command {
		t.Errorf("the holder is %v, want %v", got, want)
	}
	seen, err := Claimed(Options{Claims: dir})
	if err != nil || len(seen) != 1 || seen[0].AddrPort() != l.AddrPort() || seen[0].Owner.PID != l.Owner.PID || seen[0].Name != "" {
		t.Errorf("claimed are %v, %v, want %v without its name", seen, err, l)
	}
	refused(t, b, Request{Range: onePort}, ErrExhausted)
	refused(t, b, Request{Port: 50000, Address: any4}, ErrLeased)
	refused(t, b, Request{Port: 50000, Address: any6}, ErrLeased)
	// Other ports than that are free.
	release(t, b, acquire(t, b, Request{Port: 50000, Address: loopback.Next()}))
	release(t, b, acquire(t, b, Request{Port: 50000, Protocol: fivetuple.UDP}))
	release(t, b, acquire(t, b, Request{Port: 50000, Protocol: fivetuple.TCP6, Address: any6}))
	lab.NewHost(t, "elsewhere").Do(t, func() { release(t, b, acquire(t, b, Request{Port: 50000})) })

	release(t, a, l)
	release(t, b, acquire(t, b, Request{Port: 50000}))
	acquire(t, a, Request{Port: 50000})
}

func TestClaimEndsWithItsLease(t *testing.T) {
	for name, ending := range endings {
		t.Run(name, func(t *testing.T) {
			dir := claimsDir(t)
			a, b := registry(t, dir), registry(t, dir)
			request := Request{Port: 50000, Name: "api"}
			if name == "expired" {
				request.TTL = 50 * time.Millisecond
				l := acquire(t, a, request)
				for time.Now().Before(l.Expires) {
					refusedUntil(t, b, l.Expires)
				}
			} else {
				_, end := ending(t, a, request)
				refused(t, b, Request{Port: 50000}, ErrLeased)
				end()
			}
			acquire(t, b, Request{Port: 50000})
		})
	}
}

func TestClaimFollowsItsLease(t *testing.T) {
	dir := claimsDir(t)
	a, b := registry(t, dir), registry(t, dir)
	l := acquire(t, a, Request{Port: 50000, TTL: 50 * time.Millisecond})
	l, err := a.Renew(t.Context(), l, time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	heir, process := newOwner(t)
	if l, err = a.Transfer(t.Context(), l, heir); err != nil || l.Owner != heir {
		t.Fatalf("got %v, %v, want it to be of %v", l, err, heir)
	}
	wantPorts(t, a, 50000)
	time.Sleep(time.Until(l.Granted.Add(60 * time.Millisecond))) // past the first expiry
	var conflict *ConflictError
	if _, err := b.Acquire(t.Context(), Request{Port: 50000}); !errors.As(err, &conflict) || conflict.Holder.Owner.PID != heir.PID {
		t.Errorf("got %v, want a conflict with %v", err, heir)
	}
	kill(process)
	wantPorts(t, a)
	release(t, b, acquire(t, b, Request{Port: 50000}))
	if _, err := a.Transfer(t.Context(), l, a.self); !errors.Is(err, ErrStale) {
		t.Errorf("got %v for a lease whose owner died, want ErrStale", err)
	}
	if _, err := a.Transfer(t.Context(), l, Owner{}); !errors.Is(err, ErrInvalid) {
		t.Errorf("got %v for no owner, want ErrInvalid", err)
	}
}

// refusedUntil wants port 50000 to be refused, if that is known before the time is up.
func refusedUntil(t *testing.T, r Registry, until time.Time) {
	t.Helper()
	l, err := r.Acquire(t.Context(), Request{Port: 50000})
	if time.Now().Before(until) && !errors.Is(err, ErrLeased) {
		t.Errorf("got %v, %v, want ErrLeased", l, err)
	}
	if err == nil {
		release(t, r, l)
	}
}

func TestClaimIsWithdrawnIfNothingIsGranted(t *testing.T) {
	dir := claimsDir(t)
	a := registry(t, dir)
	port := listen(t, "tcp4", "127.0.0.1:0")
	refused(t, a, Request{Port: port}, ErrInUse)
	notToday := errors.New("not today")
	refused(t, a, Request{Port: 50000, Bind: func(context.Context, netip.AddrPort) error { return notToday }}, notToday)
	if n := claimed(t, dir); n != 0 {
		t.Errorf("%d claims are left", n)
	}
}

// claimed counts the claims in the directory.
func claimed(t testing.TB, dir string) (n int) {
	t.Helper()
	board, err := claims.Open(dir, "abcdef")
	if err != nil {
		t.Fatal(err)
	}
	defer board.Close()
	skipped, err := board.Others(func(uint32, claims.Claim) bool { n++; return true })
	if err := errors.Join(err, skipped.Err()); err != nil {
		t.Fatal(err)
	}
	return n
}

func TestClaimsAreThoseOfTheLeases(t *testing.T) {
	dir := claimsDir(t)
	a := registry(t, dir)
	var held []Lease
	for i := range 200 {
		held = append(held, acquire(t, a, Request{Name: fmt.Sprint(i)}))
		if i%3 == 2 {
			release(t, a, held[i/2])
			held[i/2] = held[len(held)-1]
			held = held[:len(held)-1]
		}
	}
	if n := claimed(t, dir); n != len(held) {
		t.Errorf("%d claims for %d leases", n, len(held))
	}
	// A program that tidies up has removed them.
	files, err := filepath.Glob(filepath.Join(dir, "*"))
	if err != nil || len(files) != 1 {
		t.Fatalf("got files %v, %v, want one", files, err)
	}
	if err := os.Remove(files[0]); err != nil {
		t.Fatal(err)
	}
	release(t, a, held[0])
	acquire(t, a, Request{})
	if n := claimed(t, dir); n != len(held) {
		t.Errorf("%d claims for %d leases after they were removed", n, len(held))
	}
	for _, l := range list(t, a) {
		release(t, a, l)
	}
	if files, err := os.ReadDir(dir); err != nil || len(files) != 0 {
		t.Errorf("got %v, %v, want no file where there is no lease", files, err)
	}
}

// Who may not have a port cannot keep root from it.
func TestClaimOfAPrivilegedPort(t *testing.T) {
	for _, tt := range []struct {
		uid  uint32
		port uint16
		want bool
	}{{0, 80, true}, {0, 50000, true}, {1000, 80, false}, {1000, 1023, false}, {1000, 1024, true}} {
		if got := mayClaim(tt.uid, tt.port); got != tt.want {
			t.Errorf("uid %d may claim port %d: got %v, want %v", tt.uid, tt.port, got, tt.want)
		}
	}
}

func TestRegistryWarnsOnceIfItCannotClaim(t *testing.T) {
	var warnings []string
	path := filepath.Join(t.TempDir(), "ports.db")
	s := openAt(t, path, Options{Claims: filepath.Join(path, "nowhere"), Warn: func(err error) { warnings = append(warnings, err.Error()) }})
	acquire(t, s, Request{})
	acquire(t, s, Request{})
	if len(warnings) != 1 || !strings.HasPrefix(warnings[0], "other users' registries of ports and this one do not see each other's leases: ") {
		t.Errorf("got warnings %q", warnings)
	}
}

// Two registries take the same port all the time; it is one's at a time.
func TestNoPortIsHeldByTwoRegistries(t *testing.T) {
	dir := claimsDir(t)
	var holders, granted atomic.Int32
	var wg sync.WaitGroup
	for range 2 {
		s := registry(t, dir)
		wg.Go(func() {
			for i := range 300 {
				request := Request{Port: 50000}
				if i%2 == 0 {
					request = Request{Range: onePort}
				}
				l, err := s.Acquire(t.Context(), request)
				if errors.Is(err, ErrLeased) || errors.Is(err, ErrExhausted) {
					continue
				}
				if err != nil {
					t.Error(err)
					return
				}
				granted.Add(1)
				if n := holders.Add(1); n != 1 {
					t.Errorf("the port has %d holders", n)
				}
				runtime.Gosched()
				holders.Add(-1)
				if err := s.Release(t.Context(), l); err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	if granted.Load() < 30 {
		t.Errorf("the port was granted %d times only", granted.Load())
	}
}

// What goes on after a restart of the machine is nobody else's in between.
func TestClaimOutlivesTheMachineIfItsLeaseDoes(t *testing.T) {
	dir := claimsDir(t)
	a, b := registry(t, dir), registry(t, dir)
	acquire(t, a, Request{Port: 50000, Detached: true, TTL: time.Hour})
	acquire(t, a, Request{Port: 50001})
	restart(t, a)
	b.view = strings.Replace(b.view, bootOf(b.view), "after", 1) // the same is on the board, from before
	refused(t, b, Request{Port: 50000}, ErrLeased)
	acquire(t, b, Request{Port: 50001})
	wantPorts(t, a, 50000)
}

// A lease that was over for others is not renewed if one of them has the port since.
func TestRenewOfALeaseThatIsOverElsewhere(t *testing.T) {
	for name, renew := range map[string]func(s *Shared, l Lease) error{
		"Renew":    func(s *Shared, l Lease) error { _, err := s.Renew(t.Context(), l, time.Hour); return err },
		"Transfer": func(s *Shared, l Lease) error { _, err := s.Transfer(t.Context(), l, s.self); return err },
	} {
		t.Run(name, func(t *testing.T) {
			dir := claimsDir(t)
			a, b := registry(t, dir), registry(t, dir)
			l := acquire(t, a, Request{Port: 50000})
			files, err := filepath.Glob(filepath.Join(dir, "*"))
			if err != nil || len(files) != 1 {
				t.Fatal(files, err)
			}
			if err := os.Remove(files[0]); err != nil { // so that b does not see it
				t.Fatal(err)
			}
			acquire(t, b, Request{Port: 50000})
			if err := renew(a, l); !errors.Is(err, ErrStale) {
				t.Errorf("got %v, want ErrStale", err)
			}
			wantPorts(t, a)
			wantPorts(t, b, 50000)
		})
	}
}

// Claims that could not be put are there after the next change.
func TestClaimsAreMadeUpFor(t *testing.T) {
	dir := claimsDir(t)
	path := filepath.Join(t.TempDir(), "ports.db")
	silent := openAt(t, path, Options{Claims: "none"})
	l := acquire(t, silent, Request{Port: 50000})
	acquire(t, silent, Request{Port: 50001})
	s := openAt(t, path, Options{Claims: dir})
	release(t, s, l)
	b := registry(t, dir)
	refused(t, b, Request{Port: 50001}, ErrLeased)
	acquire(t, b, Request{Port: 50000})
}

// The mark of a change that was cut short stays until one has put the claims in order.
func TestChangeThatFailsLeavesTheMark(t *testing.T) {
	s := registry(t, claimsDir(t))
	acquire(t, s, Request{Port: 50000})
	if s.guard.isDirty() {
		t.Fatal("a change that came to its end left the mark")
	}
	if err := s.guard.setDirty(true); err != nil {
		t.Fatal(err)
	}
	edit(t, s, "ALTER TABLE machine RENAME TO gone")
	if l, err := s.Acquire(t.Context(), Request{}); err == nil {
		t.Errorf("got %v without the table", l)
	}
	if !s.guard.isDirty() {
		t.Error("the mark is gone, and nothing was put in order")
	}
	edit(t, s, "ALTER TABLE gone RENAME TO machine")
	acquire(t, s, Request{})
	if s.guard.isDirty() {
		t.Error("the mark is still there")
	}
}

func TestCopyOfARegistryHasClaimsOfItsOwn(t *testing.T) {
	dir := claimsDir(t)
	a, b := registry(t, dir), registry(t, dir)
	acquire(t, a, Request{Port: 50000})
	if err := a.Close(); err != nil {
		t.Fatal(err)
	}
	text, err := os.ReadFile(a.path)
	if err != nil {
		t.Fatal(err)
	}
	copied := filepath.Join(t.TempDir(), "ports.db")
	if err := os.WriteFile(copied, text, 0o600); err != nil {
		t.Fatal(err)
	}
	c := openAt(t, copied, Options{Rest: -1, Claims: dir})
	a = openAt(t, a.path, Options{Rest: -1, Claims: dir})
	acquire(t, c, Request{Port: 50001})
	refused(t, a, Request{Port: 50001}, ErrLeased)
	refused(t, b, Request{Port: 50001}, ErrLeased)
	acquire(t, a, Request{Port: 50002})
	refused(t, c, Request{Port: 50002}, ErrLeased)
}

func TestRegistryOfAnotherUserIsRefused(t *testing.T) {
	path := filepath.Join(t.TempDir(), "ports.db")
	s := openAt(t, path, Options{})
	s.Close()
	if err := os.Chown(path, 54321, 54321); err != nil {
		if onlyOneUser(t) {
			return
		}
		t.Fatal(err)
	}
	if s, err := Open(t.Context(), path, Options{}); err == nil || !strings.Contains(err.Error(), "it belongs to the user 54321: run ft as that user") {
		t.Errorf("got %v, %v, want it refused", s, err)
	}
	if s, err := OpenReadOnly(t.Context(), path, Options{}); err != nil {
		t.Error(err)
	} else {
		s.Close()
	}
}

// onlyOneUser says whether the lab was started by an ordinary user, and has no other.
func onlyOneUser(t *testing.T) bool {
	text, err := os.ReadFile("/proc/self/uid_map")
	if err != nil {
		t.Fatal(err)
	}
	fields := strings.Fields(string(text))
	return fields[len(fields)-1] == "1"
}

func TestWaitersForTheLockDoNotPileUp(t *testing.T) {
	path := filepath.Join(t.TempDir(), "ports.db")
	s := openAt(t, path, Options{Wait: 2 * time.Millisecond})
	other := fileLock{path: path + "-lock"}
	if err := other.lock(t.Context(), time.Second); err != nil {
		t.Fatal(err)
	}
	before := runtime.NumGoroutine()
	for range 20 {
		if _, err := s.Acquire(t.Context(), Request{}); err == nil {
			t.Fatal("a locked registry granted a port")
		}
	}
	if n := runtime.NumGoroutine() - before; n > 1 {
		t.Errorf("%d goroutines wait for the lock", n)
	}
	other.unlock()
	for range 2 { // whoever waited in vain does not keep it
		if err := other.lock(t.Context(), time.Second); err != nil {
			t.Fatal(err)
		}
		other.unlock()
	}
	s.options.Wait = 5 * time.Second
	acquire(t, s, Request{})
	acquire(t, s, Request{})
	if err := other.lock(t.Context(), time.Second); err != nil { // nobody kept it
		t.Error(err)
	}
	other.close()
}

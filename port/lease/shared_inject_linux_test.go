package lease

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/fivetuple/fivetuple"
	"github.com/fivetuple/fivetuple/internal/lab"
)

// writes are the system calls by which the script changes files, of those that
// SQLite and this package could use.
const writes = "open,openat,openat2,creat,write,pwrite64,writev,pwritev,ftruncate,fallocate,fsync,fdatasync,unlink,unlinkat,rename,renameat,renameat2,link,linkat,mkdir,mkdirat,fchmod,fchmodat,fchown,flock"

// A process is killed before the first write to the registry, another one before
// the second, and so on. Whatever it was told is so afterwards.
func TestSharedKilledAtEveryWrite(t *testing.T) {
	owner, _ := newOwner(t)
	atEveryWrite(t, 100, func(t *testing.T, path string, traced func(*exec.Cmd) *exec.Cmd) (*exec.Cmd, bool) {
		cmd := traced(player(t, "script", path, toJSON(t, owner), "once"))
		told := follow(t, cmd)
		told.check(t, path)
		return cmd, told.over
	})
}

// The kernel lists no port for a lease that is not there, and goes on listing those of others.
func TestSharedKilledAtEveryWriteWhileReserving(t *testing.T) {
	owner, _ := newOwner(t)
	host := lab.NewHost(t, "host")
	var taken sync.Mutex
	atEveryWrite(t, 50, func(t *testing.T, path string, traced func(*exec.Cmd) *exec.Cmd) (cmd *exec.Cmd, over bool) {
		taken.Lock() // there is one list
		defer taken.Unlock()
		host.Sysctl(t, "net.ipv4.ip_local_reserved_ports", "60000")
		host.Do(t, func() {
			cmd = traced(player(t, "script", path, toJSON(t, owner), "reserve"))
			told := follow(t, cmd)
			told.check(t, path)
			s := openAt(t, path, Options{})
			for _, l := range list(t, s) {
				release(t, s, l)
			}
			wantReserved(t, "60000")
			over = told.over
		})
		return cmd, over
	})
}

// atEveryWrite calls run with a wrapper for commands that kills them before
// their first write, then before the second, until one runs to its end. With
// the race detector, which does not see other processes, it is every fifth.
func atEveryWrite(t *testing.T, atLeast int64, run func(t *testing.T, path string, traced func(*exec.Cmd) *exec.Cmd) (cmd *exec.Cmd, over bool)) {
	t.Helper()
	strace, err := exec.LookPath("strace")
	if err != nil {
		t.Fatal("install strace: apt-get install strace")
	}
	step := int64(1)
	if raceEnabled {
		step, atLeast = 5, atLeast/5
	}
	var next, killed atomic.Int64
	var last atomic.Bool
	var workers sync.WaitGroup
	work := func() {
		for !last.Load() && !t.Failed() && t.Context().Err() == nil {
			n := next.Add(step) - rand.Int64N(step)
			dir := t.TempDir()
			trace := filepath.Join(dir, "trace")
			var log strings.Builder
			cmd, over := run(t, filepath.Join(dir, "state", "ports.db"), func(cmd *exec.Cmd) *exec.Cmd {
				traced := exec.Command(strace, append([]string{"-f", "-qq", "-o", trace, "-e", "trace=" + writes,
					"-e", fmt.Sprintf("inject=%s:signal=SIGKILL:when=%d", writes, n), "--"}, cmd.Args...)...)
				traced.Env, traced.Stderr = cmd.Env, &log
				return traced
			})
			switch {
			case strings.Contains(log.String(), "PTRACE_"):
				t.Errorf("this test kills processes by means of ptrace(2), which is forbidden here (see /proc/sys/kernel/yama/ptrace_scope, "+
					"and the seccomp profile of the container): %s", &log)
			case cmd.ProcessState.Success() && over:
				last.Store(true)
			case cmd.ProcessState.Sys().(syscall.WaitStatus).Signal() != unix.SIGKILL:
				t.Errorf("killed at write %d: %v, %s", n, cmd.ProcessState, &log)
			default:
				killed.Add(1)
			}
			if t.Failed() {
				text, _ := os.ReadFile(trace)
				t.Errorf("at write %d, after\n%s", n, tail(string(text), 20))
			}
		}
	}
	// One in the main network namespace, and each other in one of its own: they try
	// the same ports, and a port that is tried is in use for a moment.
	for i := range runtime.GOMAXPROCS(0) {
		if i == 0 {
			workers.Go(work)
			continue
		}
		host := lab.NewHost(t, fmt.Sprint("worker ", i))
		workers.Go(func() { host.Do(t, work) })
	}
	workers.Wait()
	if n := killed.Load(); n < atLeast {
		t.Errorf("it was killed at %d writes, and there are over %d", n, atLeast)
	}
	t.Logf("killed at %d writes", killed.Load())
}

// Not all that changes the registry is a system call: SQLite's index of its log
// is memory that processes share.
func TestSharedKilledAtAnyMoment(t *testing.T) {
	owner, _ := newOwner(t)
	for range 30 {
		path := filepath.Join(t.TempDir(), "ports.db")
		script := player(t, "script", path, toJSON(t, owner), "for ever")
		patience := rand.IntN(200)
		told := followUntil(t, script, func(told *account) bool {
			patience--
			return patience < 0
		})
		if s := script.ProcessState.Sys().(syscall.WaitStatus); s.Signal() != unix.SIGKILL {
			t.Errorf("the script ended by itself: %v", script.ProcessState)
		}
		told.check(t, path)
	}
}

// event is what a script tells of a lease.
type event struct {
	What  string // "granted", "renewed", "releasing", "released", "over"
	Lease Lease
}

// runScript changes a registry in every way there is, once or for ever, and
// tells of each change as soon as it is made.
func runScript(args []string) error {
	runtime.LockOSThread() // strace counts the calls of each thread
	path, again, reserve := args[0], args[2] == "for ever", args[2] == "reserve"
	var owner Owner
	if err := json.Unmarshal([]byte(args[1]), &owner); err != nil {
		return err
	}
	dead, err := deadOwner()
	if err != nil {
		return err
	}
	ctx := context.Background()
	tell := func(what string, l Lease) error {
		text, err := json.Marshal(event{what, l})
		if err != nil {
			return err
		}
		return unix.Sendto(tellFD, append(text, '\n'), 0, nil) // not one of the writes
	}
	s, err := Open(ctx, path, withOwnClaims(path, Options{Rest: -1}))
	if err != nil {
		return err
	}
	// So that there are checkpoints all along.
	if _, err := s.conn.ExecContext(ctx, "PRAGMA wal_autocheckpoint = 12"); err != nil {
		return err
	}
	grant := func(r Request) (Lease, error) {
		l, err := s.Acquire(ctx, r)
		if err != nil {
			return l, err
		}
		return l, tell("granted", l)
	}
	end := func(l Lease) error {
		return errors.Join(tell("releasing", l), s.Release(ctx, l), tell("released", l))
	}
	for i := 0; i == 0 && !reserve || again; i++ {
		api, err := grant(Request{Range: scriptRange, Name: "api", Owner: owner})
		if err != nil {
			return err
		}
		db, err := grant(Request{Range: scriptRange, Name: "db", Owner: owner, TTL: time.Hour})
		if err != nil {
			return err
		}
		if db, err = s.Renew(ctx, db, 2*time.Hour); err != nil {
			return err
		}
		if err := tell("renewed", db); err != nil {
			return err
		}
		if err := end(api); err != nil {
			return err
		}
		if _, err := s.Acquire(ctx, Request{Range: scriptRange, Owner: dead}); err != nil {
			return err
		}
		if api, err = grant(Request{Range: scriptRange, Name: "api", Owner: owner}); err != nil {
			return err
		}
		if _, err := s.Collect(ctx); err != nil {
			return err
		}
		if i > 0 || again {
			if err := errors.Join(end(api), end(db)); err != nil {
				return err
			}
		}
		if i%8 == 7 {
			// The last to close empties the log and removes it.
			if err := s.Close(); err != nil {
				return err
			}
			if s, err = Open(ctx, path, withOwnClaims(path, Options{Rest: -1})); err != nil {
				return err
			}
		}
	}
	for i := 0; i < 2 && reserve; i++ {
		l, err := grant(Request{Range: scriptRange, Name: "api", Owner: owner, Reserve: true})
		if err != nil {
			return err
		}
		if err := end(l); err != nil {
			return err
		}
	}
	if err := s.Close(); err != nil {
		return err
	}
	return tell("over", Lease{})
}

// deadOwner is a process that was.
func deadOwner() (Owner, error) {
	cmd := exec.Command("sleep", "60")
	if err := cmd.Start(); err != nil {
		return Owner{}, err
	}
	defer kill(cmd)
	return OwnerOf(cmd.Process.Pid)
}

// tellFD is the socket on which a script tells what it has done.
const tellFD = 3

var scriptRange = fivetuple.PortRange{First: 50000, Last: 50007}

// account is what a script has told.
type account struct {
	granted   map[uint64]Lease // and not released
	releasing map[uint64]bool  // of these, one that may have been
	released  map[uint64]bool
	renewed   map[uint64]bool
	fence     uint64 // the greatest
	over      bool
}

func follow(t *testing.T, cmd *exec.Cmd) *account {
	t.Helper()
	return followUntil(t, cmd, func(*account) bool { return false })
}

// followUntil runs a script and returns what it has told when it has ended, or was killed.
func followUntil(t *testing.T, cmd *exec.Cmd, enough func(*account) bool) *account {
	t.Helper()
	told := &account{granted: map[uint64]Lease{}, releasing: map[uint64]bool{}, released: map[uint64]bool{}, renewed: map[uint64]bool{}}
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Error(err)
		return told
	}
	ours, theirs := os.NewFile(uintptr(fds[0]), "ours"), os.NewFile(uintptr(fds[1]), "theirs")
	conn, err := net.FileConn(ours)
	ours.Close()
	if err != nil {
		t.Error(err)
		return told
	}
	defer conn.Close()
	cmd.ExtraFiles = []*os.File{theirs} // descriptor 3
	err = cmd.Start()
	theirs.Close()
	if err != nil {
		t.Error(err)
		return told
	}
	defer kill(cmd)
	for lines := bufio.NewScanner(conn); lines.Scan(); {
		var e event
		if err := json.Unmarshal(lines.Bytes(), &e); err != nil {
			t.Errorf("%q: %v", lines.Text(), err)
			return told
		}
		told.note(e)
		if enough(told) {
			cmd.Process.Kill() // what it still tells is read
		}
	}
	cmd.Wait()
	return told
}

func (a *account) note(e event) {
	fence := e.Lease.Fence
	a.fence = max(a.fence, fence)
	switch e.What {
	case "granted":
		a.granted[fence] = e.Lease
	case "renewed":
		a.renewed[fence] = true
	case "releasing":
		a.releasing[fence] = true
	case "released":
		delete(a.granted, fence)
		a.released[fence] = true
	case "over":
		a.over = true
	}
}

// check opens what the script has left and wants it to be as it was told.
func (a *account) check(t *testing.T, path string) {
	t.Helper()
	s, err := Open(t.Context(), path, withOwnClaims(path, Options{Rest: -1}))
	if err != nil {
		t.Errorf("it does not open again: %v", err)
		return
	}
	defer s.Close()
	wantIntact(t, s)
	leases, err := s.List(t.Context())
	if err != nil {
		t.Error(err)
		return
	}
	held := map[uint64]Lease{}
	for _, l := range leases {
		held[l.Fence] = l
		if a.released[l.Fence] {
			t.Errorf("lease %d was released and is there: %v", l.Fence, l)
		}
		if a.fence > 0 && l.Fence > a.fence+2 { // a grant that was not told yet, after one that never is
			t.Errorf("lease %d was never asked for: %v", l.Fence, l)
		}
	}
	for fence, l := range a.granted {
		got, ok := held[fence]
		switch {
		case !ok && !a.releasing[fence]:
			t.Errorf("lease %d was granted and is not there: %v", fence, l)
		case ok && (got.Port != l.Port || got.Name != l.Name || got.Owner != l.Owner || got.Address != l.Address):
			t.Errorf("lease %d: got %v, want %v", fence, got, l)
		case ok && a.renewed[fence] && time.Until(got.Expires) < 119*time.Minute:
			t.Errorf("lease %d was renewed and expires %v", fence, got.Expires)
		}
	}
	if _, err := s.Collect(t.Context()); err != nil { // the next change of any kind puts the claims in order
		t.Error(err)
	}
	checkClaims(t, s, leases)
	a.checkGrants(t, s, leases)
}

// checkClaims wants another registry to see which ports this one has leased, and no more.
func checkClaims(t *testing.T, s *Shared, leases []Lease) {
	t.Helper()
	dir := filepath.Dir(s.path)
	other, err := Open(t.Context(), filepath.Join(dir, "other.db"), Options{Claims: dir})
	if err != nil {
		t.Error(err)
		return
	}
	defer other.Close()
	for port := scriptRange.First; port <= scriptRange.Last; port++ {
		isLeased := slices.ContainsFunc(leases, func(l Lease) bool { return l.Port == port })
		l, err := other.Acquire(t.Context(), Request{Port: port, Address: any4})
		if errors.Is(err, ErrLeased) != isLeased || err != nil && !isLeased {
			t.Errorf("another registry: got %v, %v for port %d, want it leased: %v", l, err, port, isLeased)
		}
		if err == nil {
			if err := other.Release(t.Context(), l); err != nil {
				t.Error(err)
			}
		}
	}
}

// checkGrants wants every port but those held to be granted, by number or not.
func (a *account) checkGrants(t *testing.T, s *Shared, leases []Lease) {
	t.Helper()
	var held []uint16
	for _, l := range leases {
		if slices.Contains(held, l.Port) {
			t.Errorf("port %d is leased twice", l.Port)
		}
		held = append(held, l.Port)
		if _, err := s.Acquire(t.Context(), Request{Port: l.Port}); !errors.Is(err, ErrLeased) {
			t.Errorf("%v: got %v, want ErrLeased", l, err)
		}
	}
	for range 3 {
		l, err := s.Acquire(t.Context(), Request{Range: scriptRange})
		if err != nil || slices.Contains(held, l.Port) || l.Fence <= a.fence {
			t.Errorf("got %v, %v, want a port that is not leased, and a fence greater than %d", l, err, a.fence)
		}
		held = append(held, l.Port)
	}
	for _, l := range leases {
		if err := s.Release(t.Context(), l); err != nil {
			t.Errorf("release %v: %v", l, err)
		}
		if _, err := s.Acquire(t.Context(), Request{Port: l.Port}); err != nil {
			t.Errorf("after release: %v", err)
		}
	}
}

func toJSON(t *testing.T, v any) string {
	t.Helper()
	text, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

func tail(s string, lines int) string {
	all := strings.SplitAfter(s, "\n")
	return strings.Join(all[max(0, len(all)-lines):], "")
}

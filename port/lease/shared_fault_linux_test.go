package lease

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// leaseFile makes a registry file with some leases and returns what is in it.
func leaseFile(t *testing.T) []byte {
	t.Helper()
	s := newShared(t, Options{})
	for range 200 {
		acquire(t, s, Request{})
	}
	if err := s.Close(); err != nil { // which also empties the log
		t.Fatal(err)
	}
	content, err := os.ReadFile(s.path)
	if err != nil {
		t.Fatal(err)
	}
	return content
}

func TestSharedFileThatIsNoRegistry(t *testing.T) {
	good := leaseFile(t)
	version := append([]byte(nil), good...)
	version[63] = 99 // user_version: https://www.sqlite.org/fileformat2.html#user_version_number
	random := make([]byte, 16<<10)
	for i := range random {
		random[i] = byte(i*7919>>3) | 1
	}
	foreign, err := os.ReadFile(foreignDatabase(t))
	if err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		name    string
		content []byte
		want    error
		advice  string
	}{
		{"random bytes", random, ErrDamaged, "move it away"},
		{"a text", []byte("port = 8080\n"), ErrDamaged, "move it away"},
		{"a newer version's", version, ErrNewer, "its format is 99"},
		{"another program's", foreign, ErrForeign, "name another file"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "ports.db")
			if err := os.WriteFile(path, tt.content, 0o600); err != nil {
				t.Fatal(err)
			}
			for name, open := range map[string]func(context.Context, string, Options) (*Shared, error){"Open": Open, "OpenReadOnly": OpenReadOnly} {
				s, err := open(t.Context(), path, withOwnClaims(path, Options{}))
				if err == nil {
					s.Close()
				}
				if !errors.Is(err, tt.want) || !strings.Contains(err.Error(), tt.advice) || !strings.Contains(err.Error(), path) {
					t.Errorf("%s: got %v, want %v, %s, and the path", name, err, tt.want, tt.advice)
				}
			}
			if now, err := os.ReadFile(path); err != nil || string(now) != string(tt.content) {
				t.Errorf("the file was changed: %v", err)
			}
		})
	}
}

func foreignDatabase(t *testing.T) (path string) {
	t.Helper()
	path = filepath.Join(t.TempDir(), "other.db")
	db, err := sql.Open("sqlite", path)
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	if _, err := db.ExecContext(t.Context(), "CREATE TABLE leases (a)"); err != nil {
		t.Fatal(err)
	}
	return path
}

// Damage behind the first page is found when it is met. Then nothing is granted.
func TestSharedFileThatWasDamaged(t *testing.T) {
	good := leaseFile(t)
	for name, damage := range map[string]func(b []byte) []byte{
		"cut off": func(b []byte) []byte { return b[:len(b)/2] },
		"zeros":   func(b []byte) []byte { clear(b[4096:]); return b },
		"random": func(b []byte) []byte {
			for i := range b[4096:] {
				b[4096+i] = byte(i * 7919 >> 3)
			}
			return b
		},
	} {
		t.Run(name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "ports.db")
			if err := os.WriteFile(path, damage(append([]byte(nil), good...)), 0o600); err != nil {
				t.Fatal(err)
			}
			s, err := Open(t.Context(), path, Options{Claims: "none"})
			if err == nil {
				defer s.Close()
				var l Lease
				if l, err = s.Acquire(t.Context(), Request{}); err == nil {
					t.Fatalf("got %v of a damaged registry", l)
				}
				if _, errList := s.List(t.Context()); !errors.Is(errList, ErrDamaged) {
					t.Errorf("List: got %v, want ErrDamaged", errList)
				}
			}
			if !errors.Is(err, ErrDamaged) || !strings.Contains(err.Error(), path) {
				t.Errorf("got %v, want ErrDamaged and the path", err)
			}
		})
	}
}

// A row that makes no sense, though the file is whole, is not passed over: the port would be granted again.
func TestSharedRowThatMakesNoSense(t *testing.T) {
	for _, column := range []string{"address = 'localhost'", "protocol = 'sctp'", "port = 70000", "address = ''"} {
		s := newShared(t, Options{})
		acquire(t, s, Request{Port: 50000})
		edit(t, s, "UPDATE leases SET "+column)
		if got, err := s.List(t.Context()); err == nil {
			t.Errorf("%s: got %v, want an error", column, got)
		} else if !strings.Contains(err.Error(), s.path) {
			t.Errorf("%s: got %v, want the path in it", column, err)
		}
	}
}

func TestSharedWithoutPermission(t *testing.T) {
	for _, tt := range []struct {
		name      string
		file, dir fs.FileMode
		sees      bool
	}{
		{"nothing", 0, 0o700, false},
		{"read the file", 0o400, 0o700, true},
		{"read the directory", 0o600, 0o500, true},
		{"name the directory", 0o600, 0, false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "state", "ports.db")
			s := openAt(t, path, Options{Claims: "none"})
			acquire(t, s, Request{Port: 50000})
			if err := s.Close(); err != nil {
				t.Fatal(err)
			}
			os.Chmod(path, tt.file)
			os.Chmod(filepath.Dir(path), tt.dir)
			t.Cleanup(func() { os.Chmod(filepath.Dir(path), 0o700) })
			withoutCapabilities(t, func() {
				s, err := Open(t.Context(), path, Options{Claims: "none"})
				if !errors.Is(err, fs.ErrPermission) || !strings.Contains(err.Error(), path) {
					t.Errorf("Open: got %v, want fs.ErrPermission and the path", err)
				}
				if err == nil {
					s.Close()
				}
				r, err := OpenReadOnly(t.Context(), path, Options{})
				if tt.sees != (err == nil) || !tt.sees && !errors.Is(err, fs.ErrPermission) {
					t.Errorf("OpenReadOnly: got %v, want it refused: %v", err, !tt.sees)
				}
				if err == nil {
					wantPorts(t, r, 50000)
					refused(t, r, Request{}, ErrReadOnly)
					r.Close()
				}
			})
		})
	}
}

// withoutCapabilities makes root obey file modes, in this thread.
func withoutCapabilities(t *testing.T, f func()) {
	t.Helper()
	done := make(chan struct{})
	go func() {
		defer close(done)
		dropCapabilities(t)
		f()
	}()
	<-done
}

// What another user has is neither read nor changed, and each has one's own.
func TestSharedOfTwoUsers(t *testing.T) {
	path := filepath.Join(t.TempDir(), "root", "ports.db")
	s := openAt(t, path, Options{})
	acquire(t, s, Request{Port: 50000, Name: "root's"})
	if !severalUsers() {
		return // whoever started the tests is alone here
	}
	dir := t.TempDir()
	letAllIn(t, filepath.Join(dir, "x"))
	letAllIn(t, filepath.Dir(path))
	if err := os.Chmod(dir, 0o777|fs.ModeSticky); err != nil {
		t.Fatal(err)
	}
	copied := filepath.Join(dir, "lease.test") // where the other user may execute it
	content, err := os.ReadFile("/proc/self/exe")
	if err == nil {
		err = os.WriteFile(copied, content, 0o755)
	}
	if err != nil {
		t.Fatal(err)
	}
	stranger := func(path string) (string, error) {
		cmd := player(t, "stranger", path)
		cmd.Path, cmd.Stderr = copied, nil
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: ordinaryUser, Gid: ordinaryUser}}
		cmd.Dir = dir
		out, err := cmd.CombinedOutput()
		return string(out), err
	}
	if out, err := stranger(path); err == nil || !strings.Contains(out, path) || !strings.Contains(out, "permission denied") {
		t.Errorf("root's registry: got %v, %s, want it refused", err, out)
	}
	wantPorts(t, s, 50000)
	if out, err := stranger(filepath.Join(dir, "own", "ports.db")); err != nil || !strings.Contains(out, "user nobody") && !strings.Contains(out, "user 65534") {
		t.Errorf("a registry of its own: got %v, %s", err, out)
	}
}

// openAndLease prints a lease that it takes from a registry.
func openAndLease(args []string) error {
	s, err := Open(context.Background(), args[0], withOwnClaims(args[0], Options{}))
	if err != nil {
		return err
	}
	defer s.Close()
	l, err := s.Acquire(context.Background(), Request{Name: "stranger"})
	if err == nil {
		fmt.Println(l)
	}
	return err
}

// smallDisk mounts a file system of a few pages in the lab.
func smallDisk(t *testing.T) (dir string, fill func() (free func())) {
	t.Helper()
	dir = t.TempDir()
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, "size=512k"); err != nil {
		t.Fatal(os.NewSyscallError("mount", err))
	}
	t.Cleanup(func() { unix.Unmount(dir, unix.MNT_DETACH) })
	return dir, func() func() {
		t.Helper()
		name := filepath.Join(dir, "ballast")
		f, err := os.Create(name)
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		for err == nil {
			_, err = f.Write(make([]byte, 4096))
		}
		if !errors.Is(err, unix.ENOSPC) {
			t.Fatal(err)
		}
		return func() { os.Remove(name) }
	}
}

func TestSharedOnAFullDisk(t *testing.T) {
	dir, fill := smallDisk(t)
	path := filepath.Join(dir, "ports.db")
	free := fill()
	if s, err := Open(t.Context(), path, Options{Claims: "none"}); err == nil || !isDiskFull(err) {
		t.Errorf("a new one: got %v, %v, want an error that says that the disk is full", s, err)
	}
	free()
	s := openAt(t, path, Options{Claims: "none", Rest: -1})
	kept := acquire(t, s, Request{Port: 50000})
	var granted []Lease
	free = fill()
	var err error
	for err == nil { // there may be room in the log
		var l Lease
		if l, err = s.Acquire(t.Context(), Request{Detached: true, TTL: time.Hour}); err == nil {
			granted = append(granted, l)
		}
	}
	if !isDiskFull(err) || !strings.Contains(err.Error(), path) {
		t.Errorf("got %v, want it to say that the disk is full, and the path", err)
	}
	wantHeld := func() {
		t.Helper()
		got := list(t, s)
		if len(got) != 1+len(granted) {
			t.Errorf("got %d leases, want %d", len(got), 1+len(granted))
		}
		for _, l := range append(granted, kept) {
			refusedFull(t, s, l.Port)
		}
	}
	wantHeld()
	for range 3 {
		if l, err := s.Acquire(t.Context(), Request{}); err == nil {
			t.Errorf("got %v on a full disk", l)
		}
	}
	errRelease := s.Release(t.Context(), kept)
	if errRelease != nil && !isDiskFull(errRelease) {
		t.Errorf("Release: got %v, want it to say that the disk is full", errRelease)
	}
	if errRelease == nil {
		t.Error("Release succeeded without room to write that down")
	}
	wantHeld()
	free()
	acquire(t, s, Request{Port: 50001})
	release(t, s, kept)
	for _, l := range granted {
		release(t, s, l)
	}
	wantPorts(t, s, 50001)
	wantIntact(t, s)
	if err := s.Close(); err != nil {
		t.Error(err)
	}
	wantPorts(t, openAt(t, path, Options{Claims: "none"}), 50001)
}

// isDiskFull says whether a person could tell.
func isDiskFull(err error) bool {
	return errors.Is(err, unix.ENOSPC) || strings.Contains(fmt.Sprint(err), "disk is full")
}

// refusedFull wants a port not to be granted, for whichever reason.
func refusedFull(t *testing.T, s *Shared, port uint16) {
	t.Helper()
	if l, err := s.Acquire(t.Context(), Request{Port: port}); err == nil {
		t.Errorf("port %d is granted twice: %v", port, l)
	}
}

func TestSharedLockedByAStoppedProcess(t *testing.T) {
	s := newShared(t, Options{})
	hasty := openAt(t, s.path, Options{Wait: 50 * time.Millisecond})
	stopped := startStopped(t, s.path)
	begun := time.Now()
	_, err := hasty.Acquire(t.Context(), Request{})
	took := time.Since(begun)
	pid := stopped.Process.Pid
	for _, want := range []string{s.path, "locked for 50ms", fmt.Sprint("pid ", pid), "which is stopped", fmt.Sprint("kill -CONT ", pid)} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("got %v, want %s in it", err, want)
		}
	}
	if took < 50*time.Millisecond || took > 5*time.Second {
		t.Errorf("it took %v, want 50 ms", took)
	}
	wantPorts(t, s) // reading needs no lock
	ctx, cancel := context.WithTimeout(t.Context(), time.Millisecond)
	defer cancel()
	if err := s.Release(ctx, Lease{Fence: 1}); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("got %v, want the end of the context", err)
	}
	// Killed, it is out of the way at once, and has got nothing.
	kill(stopped)
	acquire(t, s, Request{Port: 50000})
	wantPorts(t, s, 50000)

	// Let go on, it gets what it asked for.
	stopped = startStopped(t, s.path)
	if _, err := hasty.Acquire(t.Context(), Request{}); err == nil {
		t.Error("two have the lock")
	}
	if err := stopped.Process.Signal(unix.SIGCONT); err != nil {
		t.Fatal(err)
	}
	if err := stopped.Wait(); err != nil {
		t.Error(err)
	}
	acquire(t, s, Request{Port: 50001})
	wantPorts(t, s, 50000, 50001)
}

// startStopped starts a process that stops with the lock of the registry.
func startStopped(t *testing.T, path string) *exec.Cmd {
	t.Helper()
	cmd := player(t, "stop while it has the lock", path)
	start(t, cmd)
	waitStopped(t, cmd.Process.Pid)
	return cmd
}

// Those who wait for the lock have it as soon as its holder is killed.
func TestSharedHolderOfTheLockIsKilled(t *testing.T) {
	s := newShared(t, Options{Wait: time.Minute})
	stopped := startStopped(t, s.path)
	got := make(chan error)
	go func() {
		_, err := s.Acquire(t.Context(), Request{Port: 50000})
		got <- err
	}()
	for !isWaited(t, s.path+"-lock") { // the kernel tells nobody who waits for a lock
		time.Sleep(time.Millisecond)
	}
	begun := time.Now()
	kill(stopped)
	if err := <-got; err != nil {
		t.Error(err)
	}
	if took := time.Since(begun); took > time.Second {
		t.Errorf("it took %v", took)
	}
}

// isWaited says whether somebody waits for a lock on the file (proc_locks(5)).
func isWaited(t *testing.T, path string) bool {
	t.Helper()
	info, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	locks, err := os.ReadFile("/proc/locks")
	if err != nil {
		t.Fatal(err)
	}
	inode := fmt.Sprintf(":%d ", info.Sys().(*syscall.Stat_t).Ino)
	for line := range strings.Lines(string(locks)) {
		if strings.Contains(line, "-> FLOCK") && strings.Contains(line, inode) {
			return true
		}
	}
	return false
}

// Whoever has the registry open goes over to the file that is at its path now,
// as all who open it do.
func TestSharedFileIsReplaced(t *testing.T) {
	for name, replace := range map[string]func(t *testing.T, path string){
		"file removed": func(t *testing.T, path string) { remove(t, path) },
		"all files removed": func(t *testing.T, path string) {
			for _, suffix := range []string{"", "-wal", "-shm", "-lock"} {
				remove(t, path+suffix)
			}
		},
		"directory removed": func(t *testing.T, path string) {
			if err := os.RemoveAll(filepath.Dir(path)); err != nil {
				t.Fatal(err)
			}
		},
		"directory moved": func(t *testing.T, path string) {
			if err := os.Rename(filepath.Dir(path), filepath.Dir(path)+"-old"); err != nil {
				t.Fatal(err)
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			path := filepath.Join(dir, "state", "ports.db")
			s := openAt(t, path, Options{Claims: "none"})
			l := acquire(t, s, Request{Port: 50000, Name: "old"})
			replace(t, path)
			other := openAt(t, path, Options{Claims: "none"})
			acquire(t, other, Request{Port: 50001, Name: "new"})
			acquire(t, s, Request{Port: 50002, Name: "new"})
			wantPorts(t, s, 50001, 50002)
			wantPorts(t, other, 50001, 50002)
			refused(t, s, Request{Port: 50001}, ErrLeased)
			// The first lease of the new file has the number that the old one's had.
			if err := s.Release(t.Context(), l); !errors.Is(err, ErrStale) {
				t.Errorf("lease of the old file: got %v, want ErrStale", err)
			}
			wantPorts(t, other, 50001, 50002)
			wantIntact(t, s)
		})
	}
}

// Looking shows the same file as taking a port would.
func TestSharedFileIsReplacedUnderAReader(t *testing.T) {
	path := filepath.Join(t.TempDir(), "state", "ports.db")
	s := openAt(t, path, Options{Claims: "none"})
	acquire(t, s, Request{Port: 50000})
	r, err := OpenReadOnly(t.Context(), path, Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	if err := os.RemoveAll(filepath.Dir(path)); err != nil {
		t.Fatal(err)
	}
	acquire(t, openAt(t, path, Options{Claims: "none"}), Request{Port: 50001})
	wantPorts(t, s, 50001)
	wantPorts(t, r, 50001)
}

// While what is at the path cannot be used nothing is granted; once it can be all works.
func TestSharedFileIsReplacedByGarbage(t *testing.T) {
	path := filepath.Join(t.TempDir(), "state", "ports.db")
	s := openAt(t, path, Options{Claims: "none"})
	acquire(t, s, Request{Port: 50000})
	if err := os.RemoveAll(filepath.Dir(path)); err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(filepath.Dir(path), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(strings.Repeat("garbage ", 1000)), 0o600); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		refused(t, s, Request{Port: 50001}, ErrDamaged)
	}
	if got, err := s.List(t.Context()); !errors.Is(err, ErrDamaged) {
		t.Errorf("List: got %v, %v, want ErrDamaged", got, err)
	}
	remove(t, path)
	acquire(t, s, Request{Port: 50001})
	wantPorts(t, s, 50001)
	if err := s.Close(); err != nil {
		t.Error(err)
	}
}

func remove(t *testing.T, path string) {
	t.Helper()
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
}

func TestSharedClosedTwice(t *testing.T) {
	s := newShared(t, Options{})
	acquire(t, s, Request{})
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	s.Close() // whatever it says
	if l, err := s.Acquire(t.Context(), Request{}); err == nil {
		t.Errorf("got %v of a registry that is closed", l)
	}
	if l, err := s.List(t.Context()); err == nil {
		t.Errorf("got %v of a registry that is closed", l)
	}
}

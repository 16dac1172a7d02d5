package claims

import (
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"

	"golang.org/x/sys/unix"
)

func TestOthersSeeWhatIsPut(t *testing.T) {
	dir := public(t)
	a, b := with(t, dir, idA, nil), with(t, dir, idB, nil)
	want := map[int64]Claim{}
	for i, at := range []string{"0.0.0.0:1", "127.0.0.1:80", "[::]:65535", "[::1]:443", "[::ffff:127.0.0.1]:80", "[fe80::1]:53", "[2001:db8::1]:9"} {
		c := Claim{
			Protocol:  unix.IPPROTO_UDP,
			V6Only:    i%2 == 0,
			ReusePort: i%3 == 0,
			At:        netip.MustParseAddrPort(at),
			Zone:      1<<31 + uint32(i),
			PID:       int32(-i),
			Expires:   int64(-i),
			Until:     int64(1000 - i),
		}
		for j := range c.NetNS {
			c.NetNS[j], c.Process[j] = byte(i+j), byte(0xff-i-j)
		}
		if err := a.Put(i*i*100, c); err != nil {
			t.Fatal(err)
		}
		want[c.Expires] = c
	}
	wants(t, b, want, Skipped{})
	wants(t, a, map[int64]Claim{}, Skipped{})

	c := claim(7)
	if err := errors.Join(a.Put(100, c), a.Clear(400), a.Clear(401), a.Clear(Slots-1)); err != nil {
		t.Fatal(err)
	}
	delete(want, -1)
	delete(want, -2)
	want[7] = c
	wants(t, b, want, Skipped{})
}

func TestOthersStopsWhenToldTo(t *testing.T) {
	dir := public(t)
	for _, id := range []string{idA, idC} {
		with(t, dir, id, map[int]Claim{0: claim(1), 1: claim(2)})
	}
	calls := 0
	if _, err := open(t, dir, idB).Others(func(uint32, Claim) bool { calls++; return false }); err != nil || calls != 1 {
		t.Errorf("got %d calls and %v, want 1", calls, err)
	}
}

// The protocol that the package is for: no two registries have a port at a time.
func TestTwoRegistriesAreNeverGrantedThePortBoth(t *testing.T) {
	dir := public(t)
	var holders, granted atomic.Int32
	done := make(chan error)
	registry := func(id string) error {
		b, err := Open(dir, id)
		if err != nil {
			return err
		}
		defer b.Close()
		if err := b.Reset(maps.All(map[int]Claim{})); err != nil {
			return err
		}
		for range 5000 {
			if err := b.Put(3, claim(1)); err != nil {
				return err
			}
			overlap := false
			if _, err := b.Others(func(_ uint32, c Claim) bool { overlap = c.At == claim(1).At; return !overlap }); err != nil {
				return err
			}
			if !overlap {
				granted.Add(1)
				if holders.Add(1) > 1 {
					return errors.New("granted to both")
				}
				renewed := claim(1)
				renewed.Expires = 2
				if err := b.Put(3, renewed); err != nil {
					return err
				}
				holders.Add(-1)
			}
			if err := b.Clear(3); err != nil {
				return err
			}
		}
		return nil
	}
	for _, id := range []string{idA, idB} {
		go func() { done <- registry(id) }()
	}
	if err := errors.Join(<-done, <-done); err != nil {
		t.Error(err)
	}
	if granted.Load() == 0 {
		t.Error("never granted to anyone")
	}
}

// A claim that is written again, or with all others, is not gone for a moment.
func TestClaimsStayVisibleWhileTheyAreRewritten(t *testing.T) {
	for _, where := range []string{"disk", "memory"} {
		for name, rewrite := range map[string]func(b *Board, c Claim) error{
			"Put":   func(b *Board, c Claim) error { return b.Put(1, c) },
			"Reset": func(b *Board, c Claim) error { return b.Reset(maps.All(map[int]Claim{1: c, 600: claim(5)})) },
		} {
			t.Run(name+" on "+where, func(t *testing.T) {
				dir := public(t)
				if where == "memory" {
					dir = mount(t, "mode=1777")
				}
				stop, done := make(chan struct{}), make(chan error)
				a := with(t, dir, idA, map[int]Claim{1: claim(0)})
				go func() {
					done <- func() error {
						for n := 0; ; n++ {
							select {
							case <-stop:
								return nil
							default:
							}
							// Every byte of what may differ does.
							c := claim(0)
							c.Expires = int64(n) * 0x0101010101010101
							c.Process[0], c.Process[15], c.NetNS[0] = byte(n), byte(n), byte(n)
							if err := rewrite(a, c); err != nil {
								return err
							}
						}
					}()
				}()
				b := open(t, dir, idB)
				missed := 0
				for range 3000 {
					seen := false
					skipped, err := b.Others(func(_ uint32, c Claim) bool {
						seen = seen || c.At == claim(0).At
						return true
					})
					if err := errors.Join(err, skipped.Err()); err != nil {
						t.Error(err)
						break
					}
					if !seen {
						missed++
					}
				}
				close(stop)
				if err := <-done; err != nil {
					t.Error(err)
				}
				if missed > 0 {
					t.Errorf("the claim was missed %d times", missed)
				}
			})
		}
	}
}

func TestClaimsAreMissingUntilReset(t *testing.T) {
	dir := public(t)
	a := open(t, dir, idA)
	for what, err := range map[string]error{"Check": a.Check(), "Put": a.Put(0, claim(1)), "Clear": a.Clear(0)} {
		if !errors.Is(err, ErrMissing) {
			t.Errorf("%s: got %v, want ErrMissing", what, err)
		}
	}
	if entries, err := os.ReadDir(dir); err != nil || len(entries) != 0 {
		t.Errorf("got %v, %v: something was made", entries, err)
	}
	if err := a.Reset(maps.All(map[int]Claim{1: claim(1), 2: claim(2)})); err != nil {
		t.Fatal(err)
	}
	again := open(t, dir, idA)
	if err := errors.Join(a.Check(), again.Check(), again.Clear(1), a.Put(3, claim(3))); err != nil {
		t.Error(err)
	}
	wants(t, open(t, dir, idB), claimsOf(2, 3), Skipped{})
	if err := a.Reset(maps.All(map[int]Claim{2: claim(4)})); err != nil {
		t.Fatal(err)
	}
	wants(t, open(t, dir, idB), claimsOf(4), Skipped{})
	if info, err := os.Stat(fileOf(dir, idA)); err != nil || info.Size() != offset(3) {
		t.Errorf("after the reset: got %v, %v, want %d bytes", info, err, offset(3))
	}
}

// A program that tidies up removes the file, or it is renamed.
func TestRemovedFileIsNoticed(t *testing.T) {
	for name, remove := range map[string]func(path string) error{
		"removed": os.Remove,
		"renamed": func(path string) error { return os.Rename(path, filepath.Join(filepath.Dir(path), "old")) },
		"removed with a hard link left": func(path string) error {
			link := filepath.Join(filepath.Dir(path), "link")
			os.Remove(link)
			return errors.Join(os.Link(path, link), os.Remove(path))
		},
		"replaced": func(path string) error {
			return errors.Join(os.Remove(path), os.Symlink("elsewhere", path))
		},
	} {
		t.Run(name, func(t *testing.T) {
			dir := public(t)
			claims := map[int]Claim{1: claim(1), 2: claim(2)}
			for what, call := range map[string]func(*Board) error{
				"Check": (*Board).Check,
				"Put":   func(b *Board) error { return b.Put(3, claim(3)) },
				"Clear": func(b *Board) error { return b.Clear(3) },
			} {
				a := with(t, dir, idA, claims)
				if err := remove(a.file.Name()); err != nil {
					t.Fatal(err)
				}
				if err := call(a); !errors.Is(err, ErrMissing) {
					t.Errorf("%s: got %v, want ErrMissing", what, err)
				}
				if err := a.Reset(maps.All(claims)); err != nil {
					t.Fatal(err)
				}
				got, _ := others(t, open(t, dir, idB))
				if len(got) != 2 {
					t.Errorf("after the reset: got %v, want both claims", got)
				}
				if err := a.Remove(); err != nil {
					t.Fatal(err)
				}
			}
		})
	}
}

func TestFileThatAnotherProcessPutBackIsUsed(t *testing.T) {
	dir := public(t)
	daemon := with(t, dir, idA, map[int]Claim{1: claim(1), 2: claim(2)})
	if err := os.Remove(daemon.file.Name()); err != nil {
		t.Fatal(err)
	}
	with(t, dir, idA, map[int]Claim{1: claim(1), 2: claim(2)})
	if err := errors.Join(daemon.Put(3, claim(3)), daemon.Clear(1), daemon.Check()); err != nil {
		t.Error(err)
	}
	wants(t, open(t, dir, idB), claimsOf(2, 3), Skipped{})
}

func TestResetThatWasCutShort(t *testing.T) {
	dir := public(t)
	whole := image(t, idA, claim(1))
	incomplete := append([]byte(nil), whole...)
	incomplete[completeAt] = 0
	other := image(t, idC, claim(1))
	later := append([]byte(nil), whole...)
	later[16]++
	for name, content := range map[string][]byte{
		"after creation": nil, "in the header": whole[:100], "before its end": incomplete,
		"file of another registry": other, "file of a later version": later, "no file of claims": make([]byte, 1000),
	} {
		t.Run(name, func(t *testing.T) {
			write(t, fileOf(dir, idA), content)
			a := open(t, dir, idA)
			if err := a.Put(0, claim(1)); !errors.Is(err, ErrMissing) {
				t.Errorf("got %v, want ErrMissing", err)
			}
			if err := a.Reset(maps.All(map[int]Claim{0: claim(2)})); err != nil {
				t.Fatal(err)
			}
			if err := errors.Join(a.Check(), open(t, dir, idA).Check()); err != nil {
				t.Error(err)
			}
			wants(t, open(t, dir, idB), claimsOf(2), Skipped{})
			if name, want := a.file.Name(), fileOf(dir, idA); name != want {
				t.Errorf("file: got %s, want %s", name, want)
			}
		})
	}
}

// Where fs.protected_hardlinks is off, others can put any file of mine in my way.
func TestFileBehindAHardLinkIsNotWrittenTo(t *testing.T) {
	dir := public(t)
	thesis := filepath.Join(dir, "thesis")
	write(t, thesis, []byte("of great value"))
	if err := os.Link(thesis, fileOf(dir, idA)); err != nil {
		t.Fatal(err)
	}
	with(t, dir, idA, map[int]Claim{0: claim(1)})
	if got, err := os.ReadFile(thesis); err != nil || string(got) != "of great value" {
		t.Errorf("got %q, %v", got, err)
	}
	wants(t, open(t, dir, idB), claimsOf(1), Skipped{})
}

func TestNameThatIsTaken(t *testing.T) {
	squat := map[string]func(t *testing.T, path string){
		"a directory": func(t *testing.T, path string) {
			if err := os.Mkdir(path, 0o755); err != nil {
				t.Fatal(err)
			}
		},
		"a FIFO": func(t *testing.T, path string) {
			if err := unix.Mkfifo(path, 0o666); err != nil {
				t.Fatal(err)
			}
		},
		"a symbolic link to my own": func(t *testing.T, path string) {
			write(t, path+"x", image(t, idA, claim(9)))
			if err := os.Symlink(path+"x", path); err != nil {
				t.Fatal(err)
			}
			os.Rename(path+"x", filepath.Join(filepath.Dir(path), "elsewhere"))
		},
		"a mounted file": func(t *testing.T, path string) {
			mountOn(t, path, image(t, idA, claim(9)))
		},
		"a file of another user": func(t *testing.T, path string) {
			needUsers(t)
			write(t, path, image(t, idA, claim(9)))
			chown(t, path, someone)
		},
		"a file of another user that I cannot read": func(t *testing.T, path string) {
			needUsers(t)
			write(t, path, image(t, idA, claim(9)))
			chown(t, path, someone)
			if err := os.Chmod(path, 0); err != nil {
				t.Fatal(err)
			}
		},
	}
	for name, squat := range squat {
		t.Run(name, func(t *testing.T) {
			dir := public(t)
			plain := fileOf(dir, idA)
			squat(t, plain)
			before, err := os.Lstat(plain)
			if err != nil {
				t.Fatal(err)
			}
			unprivileged(t, func() {
				a, err := Open(dir, idA)
				if err != nil {
					t.Error(err)
					return
				}
				defer a.Close()
				if err := a.Put(1, claim(1)); !errors.Is(err, ErrMissing) {
					t.Errorf("got %v, want ErrMissing", err)
				}
				if err := a.Reset(maps.All(map[int]Claim{1: claim(1)})); err != nil {
					t.Error(err)
					return
				}
				again, err := Open(dir, idA)
				if err != nil {
					t.Error(err)
					return
				}
				defer again.Close()
				if err := errors.Join(again.Put(2, claim(2)), a.Put(3, claim(3))); err != nil {
					t.Error(err)
				}
			})
			got, _ := others(t, open(t, dir, idB))
			delete(got, 9)
			if fmt.Sprint(got) != fmt.Sprint(claimsOf(1, 2, 3)) {
				t.Errorf("got %v, want claims 1 to 3", got)
			}
			if after, err := os.Lstat(plain); err != nil || !os.SameFile(before, after) || after.Size() != before.Size() {
				t.Errorf("what was in the way: got %v, %v, want %v", after, err, before)
			}
			// Once the name is free the claims stay where they are.
			unix.Unmount(plain, unix.MNT_DETACH)
			if err := os.Remove(plain); err != nil {
				t.Fatal(err)
			}
			if err := open(t, dir, idA).Put(4, claim(4)); err != nil {
				t.Error(err)
			}
			wants(t, open(t, dir, idB), claimsOf(1, 2, 3, 4), Skipped{})
		})
	}
}

// mountOn mounts a file of claims on another one.
func mountOn(t *testing.T, path string, content []byte) {
	t.Helper()
	elsewhere := filepath.Join(t.TempDir(), "file")
	write(t, elsewhere, content)
	write(t, path, nil)
	if err := unix.Mount(elsewhere, path, "", unix.MS_BIND, ""); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Unmount(path, unix.MNT_DETACH) })
}

func TestFileCanBeReadByAll(t *testing.T) {
	old := unix.Umask(0o077)
	defer unix.Umask(old)
	dir := public(t)
	a := with(t, dir, idA, nil)
	expect := func() {
		t.Helper()
		if info, err := os.Stat(fileOf(dir, idA)); err != nil || info.Mode() != 0o644 {
			t.Errorf("got %v, %v, want mode 0644", info.Mode(), err)
		}
	}
	expect()
	if err := os.Chmod(a.file.Name(), 0o600); err != nil {
		t.Fatal(err)
	}
	open(t, dir, idA)
	expect()
}

func TestDirectoryThatWillNotDo(t *testing.T) {
	base := t.TempDir()
	write(t, filepath.Join(base, "file"), nil)
	if err := errors.Join(os.Mkdir(filepath.Join(base, "open"), 0o755), os.Chmod(filepath.Join(base, "open"), 0o777)); err != nil {
		t.Fatal(err)
	}
	for dir, want := range map[string]string{
		"none": "no such file or directory", "file": "is no directory", "open": "chmod +t",
	} {
		path := filepath.Join(base, dir)
		if b, err := Open(path, idA); b != nil || err == nil || !strings.Contains(err.Error(), want) || !strings.Contains(err.Error(), path) {
			t.Errorf("%s: got %v, %v, want %s", dir, b, err, want)
		}
	}
	for _, id := range []string{"", "x", "ABC", "../a", idA + "0", "a/b", "a b", "a-"} {
		if b, err := Open(base, id); b != nil || err == nil {
			t.Errorf("id %q: got %v, %v, want an error", id, b, err)
		}
	}
}

func TestDirectoryThatCannotBeWritten(t *testing.T) {
	dir := mount(t, "mode=1777")
	if err := unix.Mount("", dir, "", unix.MS_REMOUNT|unix.MS_RDONLY, ""); err != nil {
		t.Fatal(err)
	}
	err := open(t, dir, idA).Reset(maps.All(map[int]Claim{}))
	if !errors.Is(err, unix.EROFS) || !strings.Contains(err.Error(), dir) {
		t.Errorf("read-only file system: got %v", err)
	}
	dir = t.TempDir()
	if err := os.Chmod(dir, 0o555); err != nil {
		t.Fatal(err)
	}
	unprivileged(t, func() {
		b, err := Open(dir, idA)
		if err != nil {
			t.Error(err)
			return
		}
		defer b.Close()
		if err := b.Reset(maps.All(map[int]Claim{})); !errors.Is(err, fs.ErrPermission) || !strings.Contains(err.Error(), dir) {
			t.Errorf("directory without write permission: got %v", err)
		}
	})
}

func TestFullFileSystem(t *testing.T) {
	dir := mount(t, "mode=1777,size=256k")
	a := with(t, dir, idA, map[int]Claim{0: claim(1)})
	filler := filepath.Join(dir, "filler")
	if err := os.WriteFile(filler, make([]byte, 1<<20), 0o600); !errors.Is(err, unix.ENOSPC) {
		t.Fatal(err)
	}
	b := open(t, dir, idB)
	for what, err := range map[string]error{
		"Put":   a.Put(1000, claim(2)),
		"Reset": b.Reset(maps.All(map[int]Claim{1000: claim(2)})),
	} {
		if !errors.Is(err, unix.ENOSPC) || !strings.Contains(err.Error(), "delete files") {
			t.Errorf("%s: got %v, want ENOSPC", what, err)
		}
	}
	if err := errors.Join(a.Check(), a.Put(1, claim(3))); err != nil { // in a page that is there
		t.Error(err)
	}
	wants(t, open(t, dir, idC), claimsOf(1, 3), Skipped{})
	if err := a.Reset(maps.All(map[int]Claim{0: claim(1), 1: claim(3), 1000: claim(2)})); !errors.Is(err, unix.ENOSPC) {
		t.Errorf("got %v, want ENOSPC", err)
	}
	wants(t, open(t, dir, idC), claimsOf(1, 3), Skipped{})
	for _, b := range []*Board{a, b} {
		if err := b.Put(1, claim(3)); !errors.Is(err, ErrMissing) {
			t.Errorf("after a reset that failed: got %v, want ErrMissing", err)
		}
	}
	if err := os.Remove(filler); err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(a.Reset(maps.All(map[int]Claim{0: claim(1), 1: claim(3), 1000: claim(2)})), b.Reset(maps.All(map[int]Claim{1000: claim(4)}))); err != nil {
		t.Error(err)
	}
	wants(t, open(t, dir, idC), claimsOf(1, 2, 3, 4), Skipped{})
}

func TestRemove(t *testing.T) {
	dir := public(t)
	a := with(t, dir, idA, map[int]Claim{0: claim(1)})
	for range 2 {
		if err := a.Remove(); err != nil {
			t.Error(err)
		}
	}
	if entries, err := os.ReadDir(dir); err != nil || len(entries) != 0 {
		t.Errorf("got %v, %v", entries, err)
	}
	if err := a.Put(0, claim(1)); !errors.Is(err, ErrMissing) {
		t.Errorf("got %v, want ErrMissing", err)
	}
}

func TestClaimsThatCannotBeMade(t *testing.T) {
	dir := public(t)
	a := with(t, dir, idA, map[int]Claim{0: claim(1)})
	noPort, noAddress := claim(2), claim(2)
	noPort.At = netip.AddrPortFrom(noPort.At.Addr(), 0)
	noAddress.At = netip.AddrPortFrom(netip.Addr{}, 80)
	for _, tt := range []struct {
		slot  int
		claim Claim
	}{{-1, claim(2)}, {Slots, claim(2)}, {1, noPort}, {1, noAddress}} {
		if err := a.Put(tt.slot, tt.claim); err == nil || errors.Is(err, ErrMissing) {
			t.Errorf("Put(%d, %+v): got %v", tt.slot, tt.claim, err)
		}
		if err := a.Reset(maps.All(map[int]Claim{tt.slot: tt.claim})); err == nil || errors.Is(err, ErrMissing) {
			t.Errorf("Reset(%d, %+v): got %v", tt.slot, tt.claim, err)
		}
	}
	if err := errors.Join(a.Check(), a.Put(Slots-1, claim(3))); err != nil {
		t.Error(err)
	}
	wants(t, open(t, dir, idB), claimsOf(1, 3), Skipped{})
}

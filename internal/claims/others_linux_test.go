package claims

import (
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

func TestWhatIsNoFileOfClaimsIsPassedOver(t *testing.T) {
	honest := image(t, idC, claim(9))
	for name, tt := range map[string]struct {
		make   func(t *testing.T, path string)
		reason string // "": it counts as nothing, not even as passed over
	}{
		"symbolic link": {func(t *testing.T, path string) {
			write(t, filepath.Join(filepath.Dir(path), "elsewhere"), honest)
			if err := os.Symlink("elsewhere", path); err != nil {
				t.Fatal(err)
			}
		}, unix.ELOOP.Error()},
		"FIFO": {func(t *testing.T, path string) {
			if err := unix.Mkfifo(path, 0o666); err != nil {
				t.Fatal(err)
			}
		}, errKind.Error()},
		"directory": {func(t *testing.T, path string) {
			if err := os.Mkdir(path, 0o755); err != nil {
				t.Fatal(err)
			}
		}, errKind.Error()},
		"socket": {func(t *testing.T, path string) {
			short, err := os.Open(filepath.Dir(path)) // the path is longer than a socket's may be
			if err != nil {
				t.Fatal(err)
			}
			defer short.Close()
			l, err := net.Listen("unix", fmt.Sprintf("/proc/self/fd/%d/%s", short.Fd(), filepath.Base(path)))
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { l.Close() })
		}, unix.ENXIO.Error()},
		"mounted file": {func(t *testing.T, path string) { mountOn(t, path, honest) }, unix.EXDEV.Error()},
		"unreadable": {func(t *testing.T, path string) {
			write(t, path, honest)
			if err := os.Chmod(path, 0); err != nil {
				t.Fatal(err)
			}
		}, unix.EACCES.Error()},
		// Who opens it has to wait for up to fs.lease-break-time, 45 s.
		"leased": {func(t *testing.T, path string) {
			write(t, path, honest)
			f, err := os.OpenFile(path, os.O_RDWR, 0)
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { f.Close() })
			if _, err := unix.FcntlInt(f.Fd(), unix.F_SETLEASE, unix.F_WRLCK); err != nil {
				t.Fatal(err)
			}
		}, unix.EAGAIN.Error()},
		"empty":           {func(t *testing.T, path string) { write(t, path, nil) }, ""},
		"short":           {func(t *testing.T, path string) { write(t, path, honest[:unitSize-1]) }, "not a file of claims"},
		"zeros":           {func(t *testing.T, path string) { write(t, path, make([]byte, 1<<16)) }, "not a file of claims"},
		"header alone":    {func(t *testing.T, path string) { write(t, path, honest[:unitSize]) }, ""},
		"record cut off":  {func(t *testing.T, path string) { write(t, path, honest[:len(honest)-1]) }, ""},
		"another version": {func(t *testing.T, path string) { write(t, path, changed(honest, 16, 2)) }, "version 2"},
		"another size":    {func(t *testing.T, path string) { write(t, path, changed(honest, 18, 0)) }, "records of 0 bytes"},
	} {
		t.Run(name, func(t *testing.T) {
			dir := public(t)
			with(t, dir, idB, map[int]Claim{3: claim(1)})
			tt.make(t, filepath.Join(dir, prefix+"1-x\n"))
			got := map[int64]Claim{}
			var skipped Skipped
			unprivileged(t, func() {
				a, err := Open(dir, idA)
				if err != nil {
					t.Error(err)
					return
				}
				defer a.Close()
				start := time.Now()
				got, skipped = others(t, a)
				if waited := time.Since(start); waited > 10*time.Second {
					t.Errorf("waited for %v", waited)
				}
			})
			if len(got) != 1 || got[1] != claim(1) {
				t.Errorf("got %v, want claim 1", got)
			}
			text := fmt.Sprint(skipped.Err())
			switch {
			case tt.reason == "":
				if skipped != (Skipped{}) || skipped.Err() != nil {
					t.Errorf("got %+v, want nothing passed over", skipped)
				}
			case skipped.Files != 1 || skipped.Records+skipped.Unread != 0 || !strings.Contains(text, tt.reason):
				t.Errorf("got %+v, %v, want one file: %s", skipped, text, tt.reason)
			case !strings.Contains(text, `1-x\n"`):
				t.Errorf("got %q, want the name, quoted", text)
			}
		})
	}
}

func changed(content []byte, at int, to byte) []byte {
	content = slices.Clone(content)
	content[at] = to
	return content
}

func TestDamagedClaimsArePassedOver(t *testing.T) {
	dir := public(t)
	b := with(t, dir, idB, map[int]Claim{0: claim(1), 1: claim(2), 2: claim(3), 1500: claim(4)})
	for at := range offset(1) - offset(0) {
		if at == 0 {
			continue // the record would be free, or not
		}
		old := make([]byte, 1)
		if _, err := b.file.ReadAt(old, offset(1)+at); err != nil {
			t.Fatal(err)
		}
		put := func(c byte) {
			if _, err := b.file.WriteAt([]byte{c}, offset(1)+at); err != nil {
				t.Fatal(err)
			}
		}
		put(old[0] ^ 0x80)
		if got, skipped := others(t, open(t, dir, idA)); len(got) != 3 || skipped.Records != 1 || !errors.Is(skipped.Err(), errDamaged) {
			t.Fatalf("byte %d: got %v, %+v, want three claims", at, got, skipped)
		}
		put(old[0])
	}
	wants(t, open(t, dir, idA), claimsOf(1, 2, 3, 4), Skipped{})
}

// A claim that is read while it is written looks damaged.
func TestDamagedClaimIsReadAgain(t *testing.T) {
	dir := public(t)
	b := with(t, dir, idB, map[int]Claim{0: claim(1), 1: claim(2)})
	for name, tt := range map[string]struct {
		finish func() error
		want   []int64
	}{
		"written": {func() error { return b.Put(1, claim(3)) }, []int64{1, 3}},
		"cleared": {func() error { return b.Clear(1) }, []int64{1}},
	} {
		if err := b.Put(1, claim(2)); err != nil {
			t.Fatal(err)
		}
		if _, err := b.file.WriteAt([]byte{0xff}, offset(2)-1); err != nil {
			t.Fatal(err)
		}
		var got []int64
		skipped, err := open(t, dir, idA).Others(func(_ uint32, c Claim) bool {
			if got = append(got, c.Expires); len(got) == 1 { // both were read into memory
				if err := tt.finish(); err != nil {
					t.Error(err)
				}
			}
			return true
		})
		if err := errors.Join(err, skipped.Err()); err != nil || !slices.Equal(got, tt.want) {
			t.Errorf("%s: got %v, %v, want %v", name, got, err, tt.want)
		}
	}
}

func TestProgramsInheritNoFile(t *testing.T) {
	dir := public(t)
	with(t, dir, idA, map[int]Claim{0: claim(1)})
	with(t, dir, idB, map[int]Claim{0: claim(2)})
	inherited, files := 0, 0
	_, err := open(t, dir, idA).Others(func(uint32, Claim) bool {
		entries, err := os.ReadDir("/proc/self/fd")
		if err != nil {
			t.Fatal(err)
		}
		for _, entry := range entries {
			var fd int
			fmt.Sscan(entry.Name(), &fd)
			if path, _ := os.Readlink("/proc/self/fd/" + entry.Name()); !strings.HasPrefix(path, dir) {
				continue
			}
			files++
			if flags, err := unix.FcntlInt(uintptr(fd), unix.F_GETFD, 0); err != nil || flags&unix.FD_CLOEXEC == 0 {
				inherited++
			}
		}
		return true
	})
	// The directory, the file of each registry as it is written, A's opened again, B's to be read.
	if err != nil || inherited != 0 || files != 5 {
		t.Errorf("got %d files, %d inherited, %v, want 5 and none", files, inherited, err)
	}
}

func TestManyDamagedClaimsDoNotTakeLong(t *testing.T) {
	dir := public(t)
	head := header([idSize]byte([]byte(idC)))
	hostile := slices.Concat(head[:], slices.Repeat([]byte{1}, Slots*unitSize))
	write(t, fileOf(dir, idC), hostile)
	with(t, dir, idB, map[int]Claim{0: claim(1)})
	start := time.Now()
	// Both files are of one user, and the one claim is the newest.
	wants(t, open(t, dir, idA), claimsOf(1), Skipped{Records: Slots - 1, Unread: 1})
	if took := time.Since(start); took > 5*time.Second {
		t.Errorf("took %v", took)
	}
}

func TestFileThatChangesWhileItIsRead(t *testing.T) {
	dir := public(t)
	for name, tt := range map[string]struct {
		change func(path string) error
		want   int
	}{
		"cut off":     {func(path string) error { return os.Truncate(path, 0) }, 1024},
		"cut shorter": {func(path string) error { return os.Truncate(path, offset(1500)+1) }, 1500},
		"removed":     {os.Remove, 3000},
		"grown":       {func(path string) error { return os.Truncate(path, 1<<40) }, 3000},
	} {
		t.Run(name, func(t *testing.T) {
			b := with(t, dir, idB, nil)
			if err := b.Reset(many(3000)); err != nil {
				t.Fatal(err)
			}
			calls := 0
			skipped, err := open(t, dir, idA).Others(func(uint32, Claim) bool {
				if calls++; calls == 1 {
					if err := tt.change(b.file.Name()); err != nil {
						t.Fatal(err)
					}
				}
				return true
			})
			if err := errors.Join(err, skipped.Err()); err != nil || calls != tt.want {
				t.Errorf("got %d claims, %v, want %d", calls, err, tt.want)
			}
			b.Remove()
		})
	}
}

// many yields claims of the slots from 0.
func many(n int) func(func(int, Claim) bool) {
	return func(yield func(int, Claim) bool) {
		for i := range n {
			if !yield(i, claim(int64(i))) {
				return
			}
		}
	}
}

func TestClaimsOfAFullFileAreRead(t *testing.T) {
	dir := public(t)
	b := with(t, dir, idB, map[int]Claim{0: claim(1), Slots - 1: claim(2)})
	wants(t, open(t, dir, idA), claimsOf(1, 2), Skipped{})
	if err := b.file.Truncate(1 << 40); err != nil {
		t.Fatal(err)
	}
	start := time.Now()
	wants(t, open(t, dir, idA), claimsOf(1, 2), Skipped{Unread: 1})
	if took := time.Since(start); took > 5*time.Second {
		t.Errorf("took %v", took)
	}
}

// Of a user with too many files the newest are read: in old ones nothing was claimed for long.
func TestManyFilesOfAUser(t *testing.T) {
	dir := public(t)
	old := time.Now().Add(-time.Hour)
	for i := range maxFiles + 99 {
		path := filepath.Join(dir, fmt.Sprintf("%s%d-%d", prefix, i, i))
		write(t, path, image(t, idC, claim(int64(i))))
		when := old
		if i%100 == 7 {
			when = time.Now()
		}
		if err := os.Chtimes(path, when, when); err != nil {
			t.Fatal(err)
		}
	}
	got, skipped := others(t, open(t, dir, idA))
	if len(got) != maxFiles || skipped.Unread != 99 || !errors.Is(skipped.Err(), errManyFiles) {
		t.Errorf("got %d claims, %+v, want %d and 99 files unread", len(got), skipped, maxFiles)
	}
	for i := int64(7); i < maxFiles; i += 100 {
		if got[i] != claim(i) {
			t.Errorf("claim %d was not read", i)
		}
	}
}

// Where fs.protected_hardlinks is off, others can make them.
func TestHardLinksHideNothing(t *testing.T) {
	dir := public(t)
	b := with(t, dir, idB, map[int]Claim{0: claim(1)})
	junk := filepath.Join(dir, "junk")
	write(t, junk, make([]byte, 1000))
	soon := time.Now().Add(time.Hour)
	if err := os.Chtimes(junk, soon, soon); err != nil {
		t.Fatal(err)
	}
	c := with(t, dir, idC, map[int]Claim{0: claim(2)})
	if err := os.Chtimes(c.file.Name(), soon, soon); err != nil {
		t.Fatal(err)
	}
	for i := range maxFiles + 1 {
		for _, path := range []string{junk, b.file.Name(), c.file.Name()} {
			if err := os.Link(path, fmt.Sprintf("%s%d-%s", filepath.Join(dir, prefix), i, filepath.Base(path))); err != nil {
				t.Fatal(err)
			}
		}
	}
	a := with(t, dir, idA, map[int]Claim{0: claim(3)})
	if err := os.Link(a.file.Name(), filepath.Join(dir, prefix+"1-1")); err != nil {
		t.Fatal(err)
	}
	wants(t, a, claimsOf(1, 2), Skipped{Files: maxFiles + 1})
	if err := b.Put(1, claim(4)); err != nil {
		t.Error(err)
	}
	wants(t, open(t, dir, idA), claimsOf(1, 2, 4), Skipped{Files: maxFiles + 1})
}

// Every file counts for its owner, whatever its name says.
func TestOwnerIsNotAskedOfTheName(t *testing.T) {
	dir := public(t)
	path := filepath.Join(dir, prefix+"4242-"+idB)
	write(t, path, image(t, idB, claim(1)))
	expect := func(want uint32) {
		t.Helper()
		calls := 0
		_, err := open(t, dir, idA).Others(func(uid uint32, c Claim) bool {
			if calls++; uid != want || c != claim(1) {
				t.Errorf("got user %d, %+v, want user %d", uid, c, want)
			}
			return true
		})
		if err != nil || calls != 1 {
			t.Errorf("got %d claims, %v", calls, err)
		}
	}
	expect(uint32(os.Geteuid()))
	needUsers(t)
	chown(t, path, someone)
	expect(someone)
}

// The id alone does not make a file mine: another user can copy it.
func TestCopiedIdHidesNothing(t *testing.T) {
	dir := public(t)
	with(t, dir, idA, map[int]Claim{0: claim(1)})
	b := open(t, dir, idA)
	b.uid++ // the file is another user's, then
	wants(t, b, claimsOf(1), Skipped{})
	if err := b.Check(); err != nil {
		t.Errorf("a file that is open: got %v", err)
	}
	if err := b.find(); err != nil || b.file != nil {
		t.Errorf("looked for again: got %v, %v, want no file", b.file, err)
	}
}

func TestUsersOfEachOther(t *testing.T) {
	needUsers(t)
	dir := public(t)
	root := with(t, dir, idA, map[int]Claim{0: claim(1)})
	as(t, someone, func() {
		user, err := Open(dir, idB)
		if err != nil {
			t.Error(err)
			return
		}
		defer user.Close()
		if err := user.Reset(maps.All(map[int]Claim{0: claim(2)})); err != nil {
			t.Error(err)
			return
		}
		if name, want := filepath.Base(user.file.Name()), fmt.Sprintf("%s%d-%s", prefix, someone, idB); name != want {
			t.Errorf("got file %s, want %s", name, want)
		}
		if got, skipped := others(t, user); len(got) != 1 || got[1] != claim(1) || skipped.Err() != nil {
			t.Errorf("got %v, %+v, want claim 1", got, skipped)
		}
		if _, err := os.OpenFile(root.file.Name(), os.O_RDWR, 0); !errors.Is(err, fs.ErrPermission) {
			t.Errorf("write to another's file: got %v", err)
		}
		if err := os.Remove(root.file.Name()); !errors.Is(err, fs.ErrPermission) {
			t.Errorf("remove another's file: got %v", err)
		}
	})
	wants(t, root, claimsOf(2), Skipped{})
}

// One user's flood, of files or of claims, hides only that user's claims.
func TestFloodHidesNobodyElse(t *testing.T) {
	needUsers(t)
	dir := public(t)
	for uid, c := range map[int]int64{someone - 1: 1, someone + 1: 2} {
		path := filepath.Join(dir, fmt.Sprintf("%s%d-%s", prefix, uid, idB))
		write(t, path, image(t, idB, claim(c)))
		chown(t, path, uid)
	}
	flood := func(name string, content []byte, size int64) {
		path := filepath.Join(dir, prefix+name)
		write(t, path, content)
		if err := os.Truncate(path, size); err != nil {
			t.Fatal(err)
		}
		chown(t, path, someone)
	}
	hostile := image(t, idC, claim(9))[:unitSize]
	for i := range maxFiles {
		flood(fmt.Sprint(i), hostile, int64(unitSize))
	}
	for i := range 3 {
		flood(fmt.Sprint("big", i), hostile, 1<<30)
	}
	wants(t, open(t, dir, idA), claimsOf(1, 2), Skipped{Unread: 6})
}

// A user with many user ids can use up what is read altogether, but is read after lower ones.
func TestFloodOfManyUsers(t *testing.T) {
	needUsers(t)
	dir := public(t)
	head := image(t, idC, claim(9))[:unitSize]
	for i := range 17 {
		path := filepath.Join(dir, fmt.Sprint(prefix, i))
		write(t, path, head)
		if err := os.Truncate(path, offset(Slots)); err != nil {
			t.Fatal(err)
		}
		chown(t, path, 2000+i)
	}
	path := filepath.Join(dir, prefix+"z")
	write(t, path, image(t, idB, claim(1)))
	chown(t, path, someone)
	start := time.Now()
	// One is read but for its last slot, and one not at all.
	wants(t, open(t, dir, idA), claimsOf(1), Skipped{Unread: 2})
	if took := time.Since(start); took > 20*time.Second {
		t.Errorf("took %v", took)
	}
}

func TestOutOfDescriptors(t *testing.T) {
	dir := public(t)
	a := with(t, dir, idA, nil)
	with(t, dir, idB, map[int]Claim{0: claim(1)})
	next, err := unix.Dup(0)
	if err != nil {
		t.Fatal(err)
	}
	unix.Close(next)
	var old unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &old); err != nil {
		t.Fatal(err)
	}
	few := unix.Rlimit{Cur: uint64(next) + 1, Max: old.Max} // the directory, and no file in it
	if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &few); err != nil {
		t.Fatal(err)
	}
	_, err = a.Others(func(uint32, Claim) bool { return true })
	_, errOpen := Open(dir, idC[:1])
	_, errMine := Open(dir, idA)
	if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &old); err != nil {
		t.Fatal(err)
	}
	for _, err := range []error{err, errOpen, errMine} {
		if !errors.Is(err, unix.EMFILE) || !strings.Contains(err.Error(), dir) {
			t.Errorf("got %v, want EMFILE", err)
		}
	}
}

func TestDirectoryThatWasRemoved(t *testing.T) {
	dir := filepath.Join(public(t), "gone")
	if err := os.Mkdir(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	a := with(t, dir, idA, nil)
	if err := os.RemoveAll(dir); err != nil {
		t.Fatal(err)
	}
	_, err := a.Others(func(uint32, Claim) bool { return true })
	for _, err := range []error{err, a.Check(), a.Put(0, claim(1)), a.Reset(many(1))} {
		if !errors.Is(err, fs.ErrNotExist) || !strings.Contains(err.Error(), dir) {
			t.Errorf("got %v, want the directory to be missing", err)
		}
	}
}

func TestOthersAllocatesNothingForAClaim(t *testing.T) {
	dir := public(t)
	a := open(t, dir, idA)
	b := with(t, dir, idB, nil)
	allocations := func(n int) float64 {
		if err := b.Reset(many(n)); err != nil {
			t.Fatal(err)
		}
		return testing.AllocsPerRun(10, func() {
			if _, err := a.Others(func(uint32, Claim) bool { return true }); err != nil {
				t.Error(err)
			}
		})
	}
	if few, lots := allocations(1), allocations(10000); lots > few+2 {
		t.Errorf("got %v allocations for 10,000 claims, %v for one", lots, few)
	}
}

func TestSweepRemovesFilesWithoutALiveClaim(t *testing.T) {
	dir := public(t)
	with(t, dir, idA, map[int]Claim{0: claim(1), 5: claim(2)}) // one of them lives
	with(t, dir, idC, map[int]Claim{3: claim(1)})              // none does
	mine := with(t, dir, idB, map[int]Claim{0: claim(1)})
	with(t, dir, idD, map[int]Claim{3: claim(1)}) // nor here, but just now
	for _, id := range []string{idA, idB, idC} {
		past := time.Now().Add(-61 * time.Second)
		if err := os.Chtimes(fileOf(dir, id), past, past); err != nil {
			t.Fatal(err)
		}
	}
	if err := mine.Sweep(func(c Claim) bool { return c.Expires == 2 }); err != nil {
		t.Fatal(err)
	}
	for id, want := range map[string]bool{idA: true, idB: true, idC: false, idD: true} {
		if _, err := os.Stat(fileOf(dir, id)); (err == nil) != want {
			t.Errorf("file of registry %s is there: %v, want %v", id, err == nil, want)
		}
	}
}

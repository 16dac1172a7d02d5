package claims

import (
	"bytes"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"os"
	"path/filepath"
	"runtime"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/fivetuple/fivetuple/internal/lab"
)

func TestMain(m *testing.M) { lab.Main(m) }

// Ids of registries.
const (
	idA = "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa"
	idB = "bbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbb"
	idC = "cccccccccccccccccccccccccccccccc"
	idD = "dddddddddddddddddddddddddddddddd"
)

// someone is the user id of another user, in a lab that has several.
const someone = 1000

func needUsers(t *testing.T) {
	t.Helper()
	users, err := os.ReadFile("/proc/self/uid_map")
	if err != nil {
		t.Fatal(err)
	}
	if fields := bytes.Fields(users); string(fields[2]) == "1" {
		t.Skip("the lab of an ordinary user has no second user: run the tests as root, too")
	}
}

// public is a directory where everyone may create files, like /var/tmp.
func public(t testing.TB) string {
	t.Helper()
	dir := t.TempDir()
	if err := os.Chmod(filepath.Dir(dir), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(dir, 0o777|os.ModeSticky); err != nil {
		t.Fatal(err)
	}
	return dir
}

// mount makes a small file system, and removes it at the end of the test.
func mount(t *testing.T, options string) string {
	t.Helper()
	dir := t.TempDir()
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, options); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Unmount(dir, unix.MNT_DETACH) })
	return dir
}

func open(t testing.TB, dir, id string) *Board {
	t.Helper()
	b, err := Open(dir, id)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { b.Close() })
	return b
}

// with opens a registry that has these claims.
func with(t testing.TB, dir, id string, claims map[int]Claim) *Board {
	t.Helper()
	b := open(t, dir, id)
	if err := b.Reset(maps.All(claims)); err != nil {
		t.Fatal(err)
	}
	return b
}

// wants fails the test unless the other registries have just these claims, each of
// which has an expiry of its own, and everything passed over is as told.
func wants(t *testing.T, b *Board, want map[int64]Claim, passed Skipped) {
	t.Helper()
	got, skipped := others(t, b)
	if diff := cmp.Diff(want, got, cmp.Comparer(func(a, b netip.AddrPort) bool { return a == b })); diff != "" {
		t.Errorf("claims of others (-want +got):\n%s", diff)
	}
	first := skipped.First
	skipped.First = nil
	if skipped != passed {
		t.Errorf("passed over: got %+v (%v), want %+v", skipped, first, passed)
	}
}

func others(t *testing.T, b *Board) (map[int64]Claim, Skipped) {
	t.Helper()
	got := map[int64]Claim{}
	skipped, err := b.Others(func(_ uint32, c Claim) bool {
		if _, twice := got[c.Expires]; twice {
			t.Errorf("got the claim %+v twice", c)
		}
		got[c.Expires] = c
		return true
	})
	if err != nil {
		t.Fatal(err)
	}
	return got, skipped
}

// claim returns one that differs from those of all other numbers.
func claim(n int64) Claim {
	return Claim{
		Protocol: unix.IPPROTO_TCP,
		At:       netip.AddrPortFrom(netip.AddrFrom4([4]byte{127, 0, byte(n >> 14), 1}), uint16(1+n%60000)),
		PID:      int32(n),
		Expires:  n,
	}
}

func claimsOf(numbers ...int64) map[int64]Claim {
	claims := map[int64]Claim{}
	for _, n := range numbers {
		claims[n] = claim(n)
	}
	return claims
}

// fileOf is where a registry of this user has its claims, unless someone took that name.
func fileOf(dir, id string) string {
	return filepath.Join(dir, fmt.Sprintf("%s%d-%s", prefix, os.Geteuid(), id))
}

// image is a file with a claim in slot 0.
func image(t *testing.T, id string, c Claim) []byte {
	t.Helper()
	head := header([idSize]byte([]byte(id)))
	head[completeAt] = 1
	record, err := c.encode()
	if err != nil {
		t.Fatal(err)
	}
	return append(head[:], record[:]...)
}

func write(t *testing.T, path string, content []byte) {
	t.Helper()
	if err := os.WriteFile(path, content, 0o644); err != nil {
		t.Fatal(err)
	}
}

func chown(t *testing.T, path string, uid int) {
	t.Helper()
	if err := os.Lchown(path, uid, uid); err != nil {
		t.Fatal(err)
	}
}

// as runs f in a thread of another user, which has no privileges.
func as(t *testing.T, uid uintptr, f func()) {
	t.Helper()
	if err := inThread(func() error {
		if _, _, errno := unix.RawSyscall(unix.SYS_SETRESGID, uid, uid, uid); errno != 0 {
			return errno
		}
		if _, _, errno := unix.RawSyscall(unix.SYS_SETRESUID, uid, uid, uid); errno != 0 {
			return errno
		}
		f()
		return nil
	}); err != nil {
		t.Fatal("become another user:", err)
	}
}

// unprivileged runs f in a thread without the privileges of root.
func unprivileged(t *testing.T, f func()) {
	t.Helper()
	if err := inThread(func() error {
		header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
		var none [2]unix.CapUserData
		if err := unix.Capset(&header, &none[0]); err != nil {
			return err
		}
		f()
		return nil
	}); err != nil {
		t.Fatal("drop capabilities:", err)
	}
}

// inThread runs f in a thread that ends with it. In f no test can be ended at once.
func inThread(f func() error) error {
	done := make(chan error, 1)
	go func() {
		err := errors.New("the test was ended in a thread that is not its own")
		defer func() { done <- err }()
		runtime.LockOSThread() // never unlocked: the thread ends with the goroutine
		err = f()
	}()
	return <-done
}

package sqlitefile

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// An ordinary user asks for the file of a service that runs as root, say.
func TestErrorsSayThatPermissionIsMissing(t *testing.T) {
	path := newPath(t)
	write(t, path)
	dir := filepath.Dir(path)
	for _, tc := range []struct {
		name       string
		file, dir  fs.FileMode
		read, open bool // are refused
	}{
		{"nothing", 0, 0o700, true, true},
		{"read the file", 0o400, 0o700, false, true},
		{"read the directory", 0o600, 0o500, false, true},
		{"name the directory", 0o600, 0, true, true},
		{"all", 0o600, 0o700, false, false},
	} {
		t.Run(tc.name, func(t *testing.T) {
			for _, suffix := range []string{"-wal", "-shm"} { // a reader leaves them behind
				os.Remove(path + suffix)
			}
			os.Chmod(path, tc.file)
			os.Chmod(dir, tc.dir)
			dropCapabilities(t)
			r, err := notes.OpenReadOnly(t.Context(), path)
			if refused := errors.Is(err, fs.ErrPermission); refused != tc.read || !refused && err != nil {
				t.Errorf("OpenReadOnly: %v; want it refused: %v", err, tc.read)
			}
			if err == nil {
				if n := count(t, r); n != 1 {
					t.Errorf("%d rows, want 1", n)
				}
				r.Close()
			}
			rw, err := notes.Open(t.Context(), path)
			if refused := errors.Is(err, fs.ErrPermission); refused != tc.open || !refused && err != nil {
				t.Errorf("Open: %v; want it refused: %v", err, tc.open)
			}
			if err == nil {
				rw.Close()
			}
		})
		os.Chmod(dir, 0o700)
		os.Chmod(path, 0o600)
	}
}

// A log that was left behind, by a process that was killed, cannot be read
// where its index cannot be made; what is only in it must not be passed over.
func TestLogInAReadOnlyDirectory(t *testing.T) {
	path, dir := newPath(t), t.TempDir()
	if err := insert(t.Context(), open(t, path)); err != nil {
		t.Fatal(err)
	}
	for _, suffix := range []string{"", "-wal"} {
		b, err := os.ReadFile(path + suffix)
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, "notes.db"+suffix), b, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	os.Chmod(dir, 0o500)
	t.Cleanup(func() { os.Chmod(dir, 0o700) })
	dropCapabilities(t)
	_, err := notes.OpenReadOnly(t.Context(), filepath.Join(dir, "notes.db"))
	if err == nil || !strings.Contains(err.Error(), "its log (notes.db-wal) cannot be read in a read-only directory: copy both files") {
		t.Errorf("got error %v, want what to do about the log", err)
	}
}

// dropCapabilities makes root obey file modes, in this goroutine: its thread
// is not unlocked and ends with it.
func dropCapabilities(t *testing.T) {
	runtime.LockOSThread()
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var none [2]unix.CapUserData
	if err := unix.Capset(&header, &none[0]); err != nil {
		t.Fatal(err)
	}
}

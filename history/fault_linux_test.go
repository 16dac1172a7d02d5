package history

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/fivetuple/fivetuple/stats"
	"golang.org/x/sys/unix"
)

const mountsVariable = "FT_HISTORY_TEST_MOUNTS"

// withMounts runs the test again in a user and mount namespace of its own,
// where it may mount what it likes, and says whether this is that run. All
// mounts are gone with the process.
func withMounts(t *testing.T) bool {
	t.Helper()
	if os.Getenv(mountsVariable) != "" {
		if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
			t.Fatal(err)
		}
		return true
	}
	cmd := helper(t, "", "-test.run=^"+t.Name()+"$", "-test.v")
	cmd.Env = append(cmd.Env, mountsVariable+"=1")
	cmd.Stdout = t.Output()
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags:  syscall.CLONE_NEWUSER | syscall.CLONE_NEWNS,
		UidMappings: []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getuid(), Size: 1}},
		GidMappings: []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getgid(), Size: 1}},
		Pdeathsig:   syscall.SIGKILL,
	}
	if err := cmd.Run(); err != nil {
		t.Fatalf("in a mount namespace of its own: %v", err)
	}
	return false
}

// smallDisk mounts a file system of the size.
func smallDisk(t *testing.T, size string) (dir string) {
	t.Helper()
	dir = t.TempDir()
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, "size="+size); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Unmount(dir, unix.MNT_DETACH) })
	return dir
}

// fill takes all space on the disk and returns how to give it back.
func fill(t *testing.T, dir string) (free func()) {
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

func TestFullDiskStopsHistoryOnceAndPasses(t *testing.T) {
	if !withMounts(t) {
		return
	}
	dir := smallDisk(t, "8m")
	var log lines
	d := openAt(t, filepath.Join(dir, "history.db"), Options{Log: log.logger(), Retry: time.Millisecond})
	free := fill(t, dir)
	if _, err := d.Writer(); err == nil || !strings.Contains(err.Error(), "disk is full") {
		t.Errorf("a writer on a full disk: %v", err)
	}
	free()
	w := newWriter(t, d)
	recorded := recordBatches(t, w, 10)
	free = fill(t, dir)
	recorded += recordUntil(t, w, func() bool { return w.Lost() > 10_000 }) // many tries
	if err := w.Flush(t.Context()); err == nil || !strings.Contains(err.Error(), "disk is full") {
		t.Errorf("flush: %v", err)
	}
	log.want(t, map[string]int{"history stops": 1})
	if got := uint64(len(query(t, d, Query{}))); got+w.Lost() != uint64(recorded) {
		t.Errorf("%d events can be read and %d are counted as lost, of %d", got, w.Lost(), recorded)
	}
	free()
	recorded += recordUntil(t, w, func() bool { return w.rec.stopped() == nil })
	recorded += recordBatches(t, w, 20)
	entries := query(t, d, Query{})
	if got := uint64(len(entries)); got+w.Lost() != uint64(recorded) {
		t.Errorf("afterwards %d events and %d lost, of %d", got, w.Lost(), recorded)
	}
	for _, e := range entries {
		if want := fmt.Sprint("service ", (e.Conn-1)/50%20); e.Service != want || e.Run != 1 {
			t.Fatalf("event %d is of %q in run %d, want %q in run 1", e.ID, e.Service, e.Run, want)
		}
	}
	if err := w.Close(); err != nil {
		t.Error(err)
	}
	checkIntegrity(t, d)
	log.want(t, map[string]int{"history stops": 1, "history goes on": 1})
}

// A disk that history itself fills, as its limit is greater than the disk.
func TestHistoryThatFillsTheDisk(t *testing.T) {
	if !withMounts(t) {
		return
	}
	dir := smallDisk(t, "2m")
	var log lines
	d := openAt(t, filepath.Join(dir, "history.db"), Options{Log: log.logger(), Retry: time.Hour})
	w := newWriter(t, d)
	recorded := 0
	for w.Lost() == 0 {
		for range 5 * batchSize {
			w.Record(sample(recorded))
			recorded++
		}
		w.Flush(t.Context())
	}
	if err := w.Close(); err == nil {
		t.Error("closed without an error")
	}
	log.want(t, map[string]int{"history stops": 1})
	d.Close()
	r, err := OpenReadOnly(t.Context(), d.path, Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	checkIntegrity(t, r)
	if got := uint64(len(query(t, r, Query{}))); got+w.Lost() != uint64(recorded) || got < 1000 {
		t.Errorf("%d events can be read and %d are counted as lost, of %d", got, w.Lost(), recorded)
	}
}

func TestOpenOnAFullDiskFailsAndLeavesNothingBroken(t *testing.T) {
	if !withMounts(t) {
		return
	}
	for pages := range 15 { // left free
		dir := smallDisk(t, "1m")
		path := filepath.Join(dir, "history.db")
		free := fill(t, dir)
		if err := os.Truncate(filepath.Join(dir, "ballast"), 1<<20-int64(pages)*4096); err != nil {
			t.Fatal(err)
		}
		d, err := Open(t.Context(), path, Options{})
		if err == nil {
			d.Close()
			t.Fatalf("opened with %d pages left", pages)
		}
		if !strings.Contains(err.Error(), "disk is full") {
			t.Errorf("with %d pages left: got error %v", pages, err)
		}
		free()
		d = openAt(t, path, Options{})
		record(t, d, sample(0))
		checkIntegrity(t, d)
		d.Close()
	}
}

func TestReadOnlyDirectory(t *testing.T) {
	if !withMounts(t) {
		return
	}
	dir, readOnly := t.TempDir(), t.TempDir()
	path := filepath.Join(dir, "history.db")
	if err := unix.Mount(dir, readOnly, "", unix.MS_BIND, ""); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mount("", readOnly, "", unix.MS_BIND|unix.MS_REMOUNT|unix.MS_RDONLY, ""); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Unmount(readOnly, unix.MNT_DETACH) })
	seen := filepath.Join(readOnly, "history.db")
	read := func() (n int) {
		t.Helper()
		r, err := OpenReadOnly(t.Context(), seen, Options{})
		if err != nil {
			t.Error(err)
			return -1
		}
		defer r.Close()
		if _, err := r.Totals(t.Context(), Query{}); err != nil {
			t.Error(err)
		}
		return len(query(t, r, Query{}))
	}

	if _, err := Open(t.Context(), seen, Options{}); !errors.Is(err, unix.EROFS) {
		t.Errorf("creating one: got %v, want EROFS", err)
	}
	d := openAt(t, path, Options{})
	w := newWriter(t, d)
	w.Record(stats.Event{Kind: stats.Accept, Service: "web", Conn: 1})
	w.Flush(t.Context())
	if n := read(); n != 1 {
		t.Errorf("beside a writer: %d events, want 1", n)
	}
	w.Close()
	d.Close()
	if n := read(); n != 1 {
		t.Errorf("after it was closed: %d events, want 1", n)
	}
	if _, err := Open(t.Context(), seen, Options{}); !errors.Is(err, unix.EROFS) {
		t.Errorf("opening it to write: got %v, want EROFS", err)
	}

	// After a kill the log is still there. It can be read with its index; without, the error says what to do.
	killRecorder(t, path, testRate)
	if n := read(); n < 2 {
		t.Errorf("after a kill: %d events", n)
	}
	if err := os.Remove(path + "-shm"); err != nil {
		t.Fatal(err)
	}
	if _, err := OpenReadOnly(t.Context(), seen, Options{}); err == nil || !strings.Contains(err.Error(), "copy both files") {
		t.Errorf("after a kill, without the log's index: %v", err)
	}
	if _, err := os.Stat(path + "-shm"); err == nil {
		t.Error("the read-only directory was written to")
	}
}

package changes

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/fivetuple/fivetuple/table"
)

func TestSaveToAFullDiskLeavesTheOldFile(t *testing.T) {
	dir := t.TempDir()
	if err := unix.Mount("none", dir, "tmpfs", 0, "size=64k"); err != nil {
		t.Fatal(err)
	}
	defer unix.Unmount(dir, unix.MNT_DETACH)
	path := filepath.Join(dir, "a")
	if err := sample().Save(path); err != nil {
		t.Fatal(err)
	}
	large := sample()
	large.Rows = slices.Repeat(large.Rows, 1000)
	if err := large.Save(path); !errors.Is(err, unix.ENOSPC) {
		t.Errorf("got %v, want %v", err, unix.ENOSPC)
	}
	if s, err := Load(path); err != nil || len(s.Rows) != 3 {
		t.Errorf("the old file: %v", err)
	}
	if all, _ := os.ReadDir(dir); len(all) != 1 {
		t.Errorf("more was left behind: %v", all)
	}
}

const saveTo = "FIVETUPLE_TEST_SAVE_TO"

// TestSavesForEver is what the next test kills.
func TestSavesForEver(t *testing.T) {
	path := os.Getenv(saveTo)
	if path == "" {
		return
	}
	s := sample()
	s.Rows = slices.Repeat(s.Rows, 1000)
	for {
		if err := s.Save(path); err != nil {
			t.Fatal(err)
		}
	}
}

func TestFileIsWholeWheneverItsWriterIsKilled(t *testing.T) {
	path := filepath.Join(t.TempDir(), "a")
	if err := sample().Save(path); err != nil {
		t.Fatal(err)
	}
	for i := range 20 {
		c := exec.Command("/proc/self/exe", "-test.run=^TestSavesForEver$")
		c.Env = append(os.Environ(), saveTo+"="+path)
		if err := c.Start(); err != nil {
			t.Fatal(err)
		}
		// It is killed while it writes: another time in each round.
		deadline := time.Now().Add(patience)
		for written := int64(0); written <= int64(i)*10_000 && time.Now().Before(deadline); {
			files, _ := filepath.Glob(filepath.Join(filepath.Dir(path), ".a.*"))
			written = 0
			for _, f := range files {
				if info, err := os.Stat(f); err == nil {
					written = max(written, info.Size())
				}
			}
		}
		c.Process.Kill()
		c.Wait()
		if s, err := Load(path); err != nil || len(s.Rows) != 3 && len(s.Rows) != 3000 {
			t.Fatalf("round %d: %v", i, err)
		}
		files, _ := filepath.Glob(filepath.Join(filepath.Dir(path), ".a.*"))
		for _, f := range files {
			os.Remove(f)
		}
	}
}

func TestSnapshotOfThisMachine(t *testing.T) {
	now, err := table.Read(t.Context(), table.Query{Owners: true})
	if err != nil {
		t.Fatal(err)
	}
	s := New(now, "")
	if s.Boot == "" || s.Netns == 0 || s.Kernel == "" || s.Host == "" || time.Since(s.Time) > time.Minute {
		t.Errorf("got %+v", s)
	}
	if why, ok := s.Comparable(New(now, "")); !ok {
		t.Errorf("not comparable with itself: %s", why)
	}
}

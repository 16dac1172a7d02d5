package owner

import (
	"errors"
	"io/fs"
	"maps"
	"os"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// Only root can make a group. The root group is there for all.
func TestFinderResolvesCgroupsBothWays(t *testing.T) {
	mount := cgroupMount()
	if mount == "" {
		t.Fatal("cgroup2 is not mounted: mount -t cgroup2 cgroup2 /sys/fs/cgroup")
	}
	root := Cgroup{ID: cgroupID(mount), Path: "/"}
	want := map[uint64]Cgroup{root.ID: root}
	var made string
	if os.Geteuid() == 0 {
		made = must(os.MkdirTemp(mount, "ft-test-*.service"))
		inner := made + "/" + id64
		ok(os.Mkdir(inner, 0o755))
		t.Cleanup(func() {
			ok(os.Remove(inner))
			ok(os.Remove(made))
		})
		path := strings.TrimPrefix(made, mount)
		want[cgroupID(made)] = Cgroup{ID: cgroupID(made), Path: path, Unit: path[1:]}
		want[cgroupID(inner)] = Cgroup{ID: cgroupID(inner), Path: path + "/" + id64, Unit: path[1:], Container: id64}
	}
	var byHandle Finder
	walked := cgroups{known: map[uint64]Cgroup{}, mount: mount}
	walked.walk("/")
	for id, c := range want {
		if got, ok := byHandle.Cgroup(id); got != c || !ok {
			t.Errorf("by handle: got %+v, %v, want %+v", got, ok, c)
		}
		if got := walked.known[id]; got != c {
			t.Errorf("by walk: got %+v, want %+v", got, c)
		}
	}
	if os.Geteuid() == 0 && !maps.Equal(byHandle.known, want) {
		t.Errorf("got %v, want no more than was asked for: %v", byHandle.known, want)
	}
	for _, id := range []uint64{0, 1 << 40} {
		if got, ok := byHandle.Cgroup(id); ok {
			t.Errorf("group %d: got %+v, want none", id, got)
		}
	}
	if made == "" {
		return
	}
	child := startReady(t, "hold", nil)
	ok(os.WriteFile(made+"/cgroup.procs", []byte(strconv.Itoa(child.Process.Pid)), 0))
	t.Cleanup(func() { child.Process.Kill(); child.Process.Wait() })
	got, err := CgroupOf(child.Process.Pid)
	if c := want[cgroupID(made)]; err != nil || got.Unit != c.Unit || got.Path != c.Path {
		t.Errorf("group of a process: got %+v, %v, want %+v", got, err, c)
	}
}

func cgroupID(dir string) uint64 {
	var st unix.Stat_t
	ok(unix.Stat(dir, &st))
	return st.Ino
}

func TestCgroupOfNoProcess(t *testing.T) {
	if _, err := CgroupOf(1 << 30); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("got error %v, want %v", err, fs.ErrNotExist)
	}
}

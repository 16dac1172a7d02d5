package owner

import (
	"errors"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// Where no group can be made the test does with those that are there.
func TestFinderResolvesCgroupsBothWays(t *testing.T) {
	var byHandle Finder
	mount := cgroupMount()
	if mount == "" {
		if got, ok := byHandle.Cgroup(1); ok {
			t.Errorf("without cgroup2: got %+v, want none", got)
		}
		return
	}
	root := Cgroup{ID: cgroupID(mount), Path: "/"}
	want := map[uint64]Cgroup{root.ID: root}
	child, out := start(t, "cgroup", nil, nil)
	if made := strings.TrimSpace(must(out.ReadString('\n'))); made != "" {
		path := strings.TrimPrefix(made, mount)
		c := Cgroup{ID: cgroupID(made), Path: path, Unit: path[1:]}
		inner := Cgroup{ID: cgroupID(made + "/" + id64), Path: path + "/" + id64, Unit: path[1:], Container: id64}
		want[c.ID], want[inner.ID] = c, inner
		got, err := CgroupOf(child.Process.Pid)
		if err != nil || got.Unit != c.Unit || got.Path != c.Path {
			t.Errorf("group of a process: got %+v, %v, want %+v", got, err, c)
		}
	}
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
	if _, err := pathOfCgroup(mount, root.ID); err == nil && !maps.Equal(byHandle.known, want) {
		t.Errorf("got %v, want no more than was asked for: %v", byHandle.known, want)
	}
	for _, id := range []uint64{0, 1 << 40} {
		if got, ok := byHandle.Cgroup(id); ok {
			t.Errorf("group %d: got %+v, want none", id, got)
		}
	}
}

// makeCgroup makes a group named as a service with a group named as a container in it, and
// moves this process into the first. It is "" where that may not be.
func makeCgroup(mount string) (made string, remove func()) {
	file := string(must(os.ReadFile("/proc/self/cgroup")))
	_, now, _ := strings.Cut("\n"+file, "\n0::")
	now, _, _ = strings.Cut(now, "\n")
	back, err := os.OpenFile(filepath.Join(mount, now, "cgroup.procs"), os.O_WRONLY, 0)
	if err != nil {
		return "", func() {}
	}
	made, err = os.MkdirTemp(mount, "ft-test-*.service")
	if err != nil {
		return "", func() {}
	}
	remove = func() {
		back.WriteString("0") // this process
		os.Remove(made + "/" + id64)
		os.Remove(made)
	}
	if os.Mkdir(made+"/"+id64, 0o755) != nil || os.WriteFile(made+"/cgroup.procs", []byte("0"), 0) != nil {
		remove()
		return "", func() {}
	}
	return made, remove
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

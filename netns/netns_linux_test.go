package netns

import (
	"errors"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/fivetuple/fivetuple/internal/lab"
)

func TestMain(m *testing.M) { lab.Main(m) }

func must[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}

// inside gives the namespace of a host as a thread in it sees it.
func inside(t *testing.T, h *lab.Host) (n Namespace) {
	t.Helper()
	h.Do(t, func() { n = must(Current()) })
	return n
}

// list lists and indexes by ID.
func list(t *testing.T) map[uint64]Namespace {
	t.Helper()
	all, err := All()
	if err != nil {
		t.Fatal(err)
	}
	byID := map[uint64]Namespace{}
	for _, n := range all {
		if _, twice := byID[n.ID]; twice {
			t.Errorf("namespace %d is listed twice", n.ID)
		}
		byID[n.ID] = n
	}
	return byID
}

// mount keeps the namespace of the host at the path, as ip netns does.
func mount(t *testing.T, h *lab.Host, path string) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(path); err != nil {
		if err := os.WriteFile(path, nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	h.Do(t, func() {
		if err := unix.Mount("/proc/thread-self/ns/net", path, "", unix.MS_BIND, ""); err != nil {
			t.Fatal(err)
		}
	})
	t.Cleanup(func() {
		if err := unix.Unmount(path, 0); err != nil {
			t.Error(err)
		}
	})
}

func TestCurrentIsThatOfTheThread(t *testing.T) {
	h := lab.NewHost(t, "other")
	home, other := must(Current()), inside(t, h)
	link := must(os.Readlink("/proc/self/ns/net"))
	if want := "net:[" + strconv.FormatUint(home.ID, 10) + "]"; link != want || home.PID != os.Getpid() {
		t.Errorf("got %+v, want that of %s", home, link)
	}
	if other.ID == home.ID || other.ID == 0 {
		t.Errorf("got %+v in another host, %+v at home", other, home)
	}
}

func TestAllFindsProcesses(t *testing.T) {
	h := lab.NewHost(t, "other")
	sleep := exec.Command("sleep", "1000")
	h.Start(t, sleep)
	h.Start(t, exec.Command("sleep", "1000")) // of a higher number
	all := list(t)
	id := inside(t, h).ID
	want := Namespace{ID: id, PID: sleep.Process.Pid, Path: processPath(sleep.Process.Pid)}
	if all[id] != want {
		t.Errorf("got %+v, want %+v", all[id], want)
	}
	home := must(Current())
	if n := all[home.ID]; n.PID == 0 || n.Path != processPath(n.PID) || n.PID > os.Getpid() {
		t.Errorf("own namespace: got %+v", n)
	}
}

func TestAllFindsNamesAndMounts(t *testing.T) {
	dir := must(os.MkdirTemp("", "ft"))
	t.Cleanup(func() { os.RemoveAll(dir) })
	run(t)
	named, mounted, covered := lab.NewHost(t, "named"), lab.NewHost(t, "mounted"), lab.NewHost(t, "covered")
	mount(t, named, dir+"/first mount")
	mount(t, named, "/run/netns/blue")
	mount(t, mounted, dir+`/ and space\`)
	below := lab.NewHost(t, "below")
	mount(t, below, dir+"/twice")
	mount(t, mounted, dir+"/twice")
	mount(t, covered, dir+"/covered/at")
	if err := unix.Mount("", dir+"/covered", "tmpfs", 0, ""); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Unmount(dir+"/covered", 0) })
	if err := os.WriteFile(dir+"/covered/at", nil, 0o600); err != nil {
		t.Fatal(err)
	}
	var plain unix.Stat_t // a file that has a number too
	if err := unix.Stat(dir+"/covered/at", &plain); err != nil {
		t.Fatal(err)
	}

	all := list(t)
	for _, c := range []struct {
		host *lab.Host
		want Namespace
	}{
		{named, Namespace{Name: "blue", Path: "/run/netns/blue"}},
		{mounted, Namespace{Path: dir + `/ and space\`}},
	} {
		c.want.ID = inside(t, c.host).ID
		if got := all[c.want.ID]; got != c.want {
			t.Errorf("got %+v, want %+v", got, c.want)
		}
	}
	if n, ok := all[plain.Ino]; ok {
		t.Errorf("got %+v, which is a plain file", n)
	}
	for _, h := range []*lab.Host{covered, below} {
		if n, ok := all[inside(t, h).ID]; ok {
			t.Errorf("got %+v, which cannot be opened there", n)
		}
	}
	if n := inside(t, named); n.Name != "blue" {
		t.Errorf("current in blue: got %+v", n)
	}
}

// run mounts an empty /run, that of the lab's own mount namespace.
func run(t *testing.T) {
	t.Helper()
	if err := unix.Mount("", "/run", "tmpfs", 0, ""); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Unmount("/run", unix.MNT_DETACH) })
}

func TestDoRunsInTheNamespaceAndReturns(t *testing.T) {
	h := lab.NewHost(t, "other")
	h.Start(t, exec.Command("sleep", "1000"))
	home := must(Current())
	other := list(t)[inside(t, h).ID]
	failure := errors.New("failure")
	err := other.Do(func() error {
		if n := must(Current()); n.ID != other.ID {
			t.Errorf("in it: got %d, want %d", n.ID, other.ID)
		}
		return failure
	})
	if !errors.Is(err, failure) {
		t.Errorf("got error %v, want that of the function", err)
	}
	if n := must(Current()); n.ID != home.ID {
		t.Errorf("afterwards: got %d, want %d", n.ID, home.ID)
	}
	func() {
		defer func() { recover() }()
		other.Do(func() error { panic("out") })
	}()
	if n := must(Current()); n.ID != home.ID {
		t.Errorf("after a panic: got %d, want %d", n.ID, home.ID)
	}
}

func TestDoSaysWhyNot(t *testing.T) {
	h := lab.NewHost(t, "other")
	h.Start(t, exec.Command("sleep", "1000"))
	other := list(t)[inside(t, h).ID]
	ran := func() error { t.Error("the function ran"); return nil }
	for _, n := range []Namespace{
		{ID: other.ID, Path: "/proc/self/ns/net"},       // of a process that ended, and another got its number
		{ID: other.ID, Path: "/proc/4194305/ns/net"},    // above the highest
		{ID: other.ID, Path: "/run/netns/not-there/at"}, // its name was taken away
	} {
		if err := n.Do(ran); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("%s: got error %v, want %v", n.Path, err, fs.ErrNotExist)
		}
	}
	own := must(Current())
	ranHere := false
	if err := (Namespace{ID: own.ID}).Do(func() error { ranHere = true; return nil }); err != nil || !ranHere {
		t.Errorf("own namespace: got %v, ran %v", err, ranHere)
	}
	// Without the right: of this thread only, which ends with its goroutine.
	done := make(chan error)
	go func() {
		keepThread()
		dropCapabilities()
		done <- other.Do(ran)
	}()
	if err := <-done; !errors.Is(err, fs.ErrPermission) || !strings.Contains(err.Error(), "CAP_SYS_ADMIN") {
		t.Errorf("without rights: got error %v", err)
	}
}

func TestDoLeaksNoDescriptors(t *testing.T) {
	h := lab.NewHost(t, "other")
	h.Start(t, exec.Command("sleep", "1000"))
	other := list(t)[inside(t, h).ID]
	before := len(must(os.ReadDir("/proc/self/fd")))
	for range 20 {
		other.Do(func() error { return nil })
		(Namespace{ID: 1, Path: "/proc/self/ns/net"}).Do(func() error { return nil })
		(Namespace{ID: 1, Path: "/not/there"}).Do(func() error { return nil })
	}
	if after := len(must(os.ReadDir("/proc/self/fd"))); after > before+2 {
		t.Errorf("got %d descriptors, %d before", after, before)
	}
}

func TestUnescape(t *testing.T) {
	for _, c := range []struct{ escaped, want string }{
		{"/run/a", "/run/a"}, {`/a\040b`, "/a b"}, {`\134040`, `\040`}, {`/a\011\012`, "/a\t\n"},
	} {
		if got := unescape(c.escaped); got != c.want {
			t.Errorf("%s: got %q, want %q", c.escaped, got, c.want)
		}
	}
	if !slices.Equal([]string{nameOf("/run/netns/a"), nameOf("/var/run/netns/b"), nameOf("/run/netns/a/b")}, []string{"a", "b", ""}) {
		t.Error("names of ip-netns(8) are those in /run/netns")
	}
}

func keepThread() { runtime.LockOSThread() }

func dropCapabilities() {
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	if err := unix.Capset(&header, &new([2]unix.CapUserData)[0]); err != nil {
		panic(err)
	}
}

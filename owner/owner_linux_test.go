package owner

import (
	"context"
	"encoding/json"
	"errors"
	"io/fs"
	"os"
	"os/exec"
	"os/user"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

// listener opens a TCP listener and returns it as a file, the only descriptor of it.
func listener(t testing.TB) *os.File {
	t.Helper()
	fd := must(unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0))
	ok(unix.Bind(fd, &unix.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}}))
	ok(unix.Listen(fd, 1))
	f := os.NewFile(uintptr(fd), "listener")
	t.Cleanup(func() { f.Close() })
	return f
}

func inodeOf(f *os.File) uint32 {
	return inodeOfFD(int(f.Fd()))
}

func inodeOfFD(fd int) uint32 {
	var st unix.Stat_t
	ok(unix.Fstat(fd, &st))
	return uint32(st.Ino)
}

// find returns the holders of one socket, PID and descriptor only.
func find(t *testing.T, inode uint32) [][2]int {
	t.Helper()
	found, err := Find(t.Context(), inode)
	if err != nil {
		t.Fatal(err)
	}
	return pairs(found.Of(inode))
}

func pairs(holders []Holder) (all [][2]int) {
	for _, h := range holders {
		all = append(all, [2]int{h.PID, h.FD})
	}
	return all
}

func TestFindListsEveryHolder(t *testing.T) {
	l := listener(t)
	child := startReady(t, "hold", l)
	twin := must(unix.Dup(int(l.Fd())))
	defer unix.Close(twin)
	want := [][2]int{{os.Getpid(), int(l.Fd())}, {os.Getpid(), twin}, {child.Process.Pid, 3}}
	slices.SortFunc(want, func(a, b [2]int) int { return slices.Compare(a[:], b[:]) })
	if got := find(t, inodeOf(l)); !slices.Equal(got, want) {
		t.Errorf("got pid and fd %v, want %v", got, want)
	}
}

func TestFindFollowsADescriptorThatWasPassedOn(t *testing.T) {
	l := listener(t)
	inode := inodeOf(l)
	pair := must(unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0))
	mine, its := os.NewFile(uintptr(pair[0]), "mine"), os.NewFile(uintptr(pair[1]), "its")
	defer mine.Close()
	defer its.Close()
	child, out := start(t, "receive", its, nil)
	ok(unix.Sendmsg(pair[0], []byte{0}, unix.UnixRights(int(l.Fd())), nil, 0))
	awaitReady(t, child, out)
	ok(l.Close())
	want := [][2]int{{child.Process.Pid, 77}}
	if got := find(t, inode); !slices.Equal(got, want) {
		t.Errorf("got pid and fd %v, want %v", got, want)
	}
}

func TestFindDescribesTheProcess(t *testing.T) {
	l := listener(t)
	found := must(Find(t.Context(), 0, inodeOf(l)))
	if len(found.Of(inodeOf(l))) != 1 {
		t.Fatalf("got %v, want one holder", found.Of(inodeOf(l)))
	}
	got := found.Of(inodeOf(l))[0]
	me := must(user.Current())
	want := Process{
		PID: os.Getpid(), Start: got.Start, UID: uint32(os.Geteuid()), User: me.Username,
		Command: strings.TrimSpace(string(must(os.ReadFile("/proc/self/comm")))),
	}
	if got.Process != want {
		t.Errorf("got %+v, want %+v", got.Process, want)
	}
	if p := must(ProcessOf(os.Getpid())); p != got.Process {
		t.Errorf("ProcessOf: got %+v, want %+v", p, got.Process)
	}
	b := string(must(json.Marshal(got)))
	for _, key := range []string{`"pid":`, `"fd":`, `"command":`, `"user":`} {
		if !strings.Contains(b, key) {
			t.Errorf("no %s in %s", key, b)
		}
	}
}

func TestStartIsTheTimeSinceTheMachineStarted(t *testing.T) {
	uptime := func() float64 { // in 1/100 s, as Start is
		return 100 * must(strconv.ParseFloat(strings.Fields(string(must(os.ReadFile("/proc/uptime"))))[0], 64))
	}
	before := uptime()
	child := startReady(t, "hold", nil)
	got, after := must(ProcessOf(child.Process.Pid)).Start, uptime()
	if float64(got) < before-1 || float64(got) > after+1 {
		t.Errorf("got start %d, want it from %v to %v", got, before, after)
	}
}

func TestFindOfNothingLooksNowhere(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if found, err := Find(ctx, 0); err != nil || found.Of(0) != nil {
		t.Errorf("got %v, %v, want nothing", found, err)
	}
	if _, err := Find(ctx, 1); !errors.Is(err, context.Canceled) {
		t.Errorf("got error %v, want %v", err, context.Canceled)
	}
}

// A process in a user namespace of its own has no right to look into those
// outside, whoever runs the test.
func TestFindCountsProcessesItMayNotRead(t *testing.T) {
	l := listener(t)
	hidden := startReady(t, "hold", l)
	searcher, out := start(t, "find", l, apart(0))
	var found struct {
		Holders    []Holder
		Unreadable int
	}
	if err := json.NewDecoder(out).Decode(&found); err != nil {
		t.Fatal(err)
	}
	want := [][2]int{{searcher.Process.Pid, 3}}
	if got := pairs(found.Holders); !slices.Equal(got, want) {
		t.Errorf("got pid and fd %v, want %v only, not %d", got, want, hidden.Process.Pid)
	}
	if found.Unreadable < 2 {
		t.Errorf("got %d unreadable processes, want this one and its child at least", found.Unreadable)
	}
	// Other processes may have ended meanwhile, but not half as many as there are kernel threads.
	if threads := kernelThreads(t); threads > 0 && found.Unreadable > len(must(processes()))-threads/2 {
		t.Errorf("got %d unreadable processes, want none of the %d kernel threads among them", found.Unreadable, threads)
	}
}

// apart gives a child a user namespace of its own, and others by their CLONE flags.
func apart(flags uintptr) *syscall.SysProcAttr {
	return &syscall.SysProcAttr{
		Cloneflags:  syscall.CLONE_NEWUSER | flags,
		UidMappings: []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getuid(), Size: 1}},
		GidMappings: []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getgid(), Size: 1}},
	}
}

// Where /proc is mounted with hidepid, the stat of a process that may not be
// read cannot be read either.
func TestHiddenProcessMayHoldSockets(t *testing.T) {
	_, out := start(t, "hidepid", nil, apart(syscall.CLONE_NEWPID|syscall.CLONE_NEWNS))
	if line, err := out.ReadString('\n'); line != "true true 1 1\n" {
		t.Errorf("denied, may hold sockets, and how many the program leaves unread: got %q, %v, want true true 1 1", line, err)
	}
}

func TestAliveWithoutProc(t *testing.T) {
	_, out := start(t, "no-proc", nil, apart(syscall.CLONE_NEWNS))
	if line, err := out.ReadString('\n'); line != "true false\n" {
		t.Errorf("one that runs and one that has ended: got %q, %v, want true false", line, err)
	}
}

func kernelThreads(t *testing.T) (n int) {
	t.Helper()
	for _, pid := range must(processes()) {
		if dir, err := openProcess(pid); err == nil {
			if st, err := readStat(dir); err == nil && st.flags&kernelThread != 0 {
				n++
			}
			unix.Close(dir)
		}
	}
	return n
}

func TestAliveUntilTheProcessEnds(t *testing.T) {
	child := exec.Command("sleep", "60")
	ok(child.Start())
	p := must(ProcessOf(child.Process.Pid))
	if !p.Alive() {
		t.Errorf("%v: got not alive before it ended", p)
	}
	later := p
	later.Start++
	if later.Alive() {
		t.Errorf("%v: got alive with another start time", later)
	}
	ok(child.Process.Kill())
	ok(unix.Waitid(unix.P_PID, child.Process.Pid, nil, unix.WEXITED|unix.WNOWAIT, nil))
	if p.Alive() {
		t.Errorf("%v: got alive as a zombie", p)
	}
	child.Wait()
	if p.Alive() {
		t.Errorf("%v: got alive after it was reaped", p)
	}
	if _, err := ProcessOf(p.PID); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("got error %v, want %v", err, fs.ErrNotExist)
	}
	if (Process{}).Alive() || (Process{PID: -1}).Alive() {
		t.Error("got alive for no process")
	}
}

// A program may end its first thread and go on (pthread_exit(3)).
func TestAliveWithoutTheFirstThread(t *testing.T) {
	child := startReady(t, "end-first-thread", nil)
	if st := must(os.ReadFile("/proc/" + strconv.Itoa(child.Process.Pid) + "/stat")); !strings.Contains(string(st), ") Z ") {
		t.Fatalf("got %q, want the state of the first thread, a zombie", st)
	}
	p := must(ProcessOf(child.Process.Pid))
	if !p.Alive() {
		t.Errorf("%v: got not alive while a thread of it runs", p)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := p.Wait(ctx); !errors.Is(err, context.Canceled) {
		t.Errorf("wait: got %v, want %v", err, context.Canceled)
	}
}

func TestParseStat(t *testing.T) {
	tail := " S 1 2 3 4 5 4194560 7 8 9 10 11 12 13 14 15 16 17 18 4711 20 21"
	for _, c := range []struct {
		in   string
		want stat
		bad  bool
	}{
		{in: "1 (nginx)" + tail, want: stat{"nginx", 'S', 1, 4194560, 17, 4711}},
		{in: "1 (a) Z (b))" + tail, want: stat{"a) Z (b)", 'S', 1, 4194560, 17, 4711}},
		{in: "1 ()" + tail, want: stat{"", 'S', 1, 4194560, 17, 4711}},
		{in: "", bad: true},
		{in: "1 )(" + tail, bad: true},
		{in: "1 (nginx) S 1 2 3", bad: true},
		{in: "1 (nginx)" + strings.Replace(tail, "4711", "x", 1), bad: true},
		{in: "1 (nginx)" + strings.Replace(tail, "4194560", "-1", 1), bad: true},
		{in: "1 (nginx)" + strings.Replace(tail, "17", "x", 1), bad: true},
		{in: "1 (nginx)" + strings.Replace(tail, " 1", " x", 1), bad: true},
	} {
		got, err := parseStat([]byte(c.in))
		if got != c.want || (err != nil) != c.bad {
			t.Errorf("%q: got %+v, %v, want %+v, error %v", c.in, got, err, c.want, c.bad)
		}
	}
}

func TestSocketInode(t *testing.T) {
	for link, want := range map[string]uint32{
		"socket:[1]": 1, "socket:[4294967295]": 4294967295, "socket:[4294967297]": 0,
		"socket:[]": 0, "socket:[": 0, "socket:[1": 0, "socket:[-1]": 0, "socket:[12345678901]": 0,
		"pipe:[1]": 0, "/tmp/socket:[1]": 0, "": 0,
	} {
		if got := socketInode([]byte(link)); got != want {
			t.Errorf("%q: got %d, want %d", link, got, want)
		}
	}
}

func TestCommandsCannotSpeakToTheTerminal(t *testing.T) {
	child := startReady(t, "rename", nil)
	if got := must(ProcessOf(child.Process.Pid)).Command; got != `\x1b[31mred` {
		t.Errorf("got command %q, want it escaped", got)
	}
}

func FuzzParseStat(f *testing.F) {
	f.Add([]byte("1 (nginx) S 1 2 3 4 5 4194560 7 8 9 10 11 12 13 14 15 16 17 18 4711 20 21"))
	f.Add([]byte("Name:\tnginx\nUid:\t1\t2\t3\t4\n"))
	f.Fuzz(func(t *testing.T, b []byte) {
		if st, err := parseStat(b); err == nil && st.state == 0 && !strings.Contains(string(b), "\x00") {
			t.Errorf("no state in %q", b)
		}
		parseUID(b)
	})
}

func FuzzDirectoryEntries(f *testing.F) {
	buf := make([]byte, 4096)
	dir := must(unix.Open("/proc/self/fd", unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0))
	f.Add(buf[:must(unix.Getdents(dir, buf))])
	ok(unix.Close(dir))
	f.Fuzz(func(t *testing.T, b []byte) {
		for {
			name, rest := nextName(b)
			if name == nil {
				return
			}
			if name[len(name)-1] != 0 || len(rest) >= len(b) {
				t.Fatalf("got name %q and %d of %d bytes left", name, len(rest), len(b))
			}
			b = rest
		}
	})
}

func BenchmarkAlive(b *testing.B) {
	p := must(ProcessOf(os.Getpid()))
	b.ReportAllocs()
	for b.Loop() {
		if !p.Alive() {
			b.Fatal(p, "is not alive")
		}
	}
}

func BenchmarkFind(b *testing.B) {
	var last *os.File
	for range 500 {
		last = listener(b)
	}
	inode := inodeOf(last)
	b.ReportAllocs()
	for b.Loop() {
		if found, err := Find(b.Context(), inode); err != nil || len(found.Of(inode)) == 0 {
			b.Fatal(found, err)
		}
	}
}

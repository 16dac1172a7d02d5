package owner

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

// byProc is a Finder that reads /proc only.
func byProc() *Finder { return &Finder{finder{refused: errors.ErrUnsupported}} }

// eachWay runs a test with every way to search that there is.
func eachWay(t *testing.T, test func(t *testing.T, f *Finder)) {
	for name, f := range map[string]*Finder{"by the kernel's choice": {}, "by /proc": byProc()} {
		t.Run(name, func(t *testing.T) {
			defer f.Close()
			test(t, f)
		})
	}
}

// The kernel refuses the program to all but root outside of user namespaces. Then
// the tests compare /proc with itself, but not unnoticed.
func TestFindUsesTheProgramWhereItMay(t *testing.T) {
	var f Finder
	defer f.Close()
	must(f.Find(t.Context(), []uint32{1}))
	users := strings.Fields(string(must(os.ReadFile("/proc/self/uid_map"))))
	_, noTypes := readLayout("/sys/kernel/btf/vmlinux")
	may := hasCapability(unix.CAP_BPF) && hasCapability(unix.CAP_PERFMON) && users[2] == "4294967295" && noTypes == nil
	if used := f.refused == nil; used != may {
		t.Errorf("got used %v (%v), want %v", used, f.refused, may)
	}
}

func TestFindSeesThreadsWithDescriptorsOfTheirOwn(t *testing.T) {
	l := listener(t)
	child, out := start(t, "hold-in-thread", l, nil)
	thread := must(strconv.Atoi(strings.TrimSpace(must(out.ReadString('\n')))))
	eachWay(t, func(t *testing.T, f *Finder) {
		found := must(f.Find(t.Context(), []uint32{inodeOf(l)}))
		var got [][3]int
		for _, h := range found.Of(inodeOf(l)) {
			if h.PID == child.Process.Pid {
				got = append(got, [3]int{h.PID, h.Thread, h.FD})
			}
		}
		want := [][3]int{{child.Process.Pid, 0, 3}, {child.Process.Pid, thread, 77}}
		if !slices.Equal(got, want) {
			t.Fatalf("got pid, thread and fd %v, want %v", got, want)
		}
	})
	p := must(ProcessOf(child.Process.Pid))
	h := Holder{p, 77, thread}
	for name, open := range map[string]func() (int, error){
		"Open": h.Open, "OpenFD": func() (int, error) { return h.OpenFD(h.FD) },
	} {
		fd, err := open()
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		if got := inodeOfFD(fd); got != inodeOf(l) {
			t.Errorf("%s: got inode %d, want %d", name, got, inodeOf(l))
		}
		ok(unix.Close(fd))
	}
}

// All its threads share one table, which the first has no more.
func TestFindSeesAProcessWithoutItsFirstThread(t *testing.T) {
	l := listener(t)
	child := startReady(t, "end-first-thread", l)
	eachWay(t, func(t *testing.T, f *Finder) {
		found := must(f.Find(t.Context(), []uint32{inodeOf(l)}))
		var got []Holder
		for _, h := range found.Of(inodeOf(l)) {
			if h.PID == child.Process.Pid {
				got = append(got, h)
			}
		}
		if len(got) != 1 || got[0].FD != 3 || got[0].Thread == 0 || got[0].Thread == child.Process.Pid {
			t.Errorf("got %v, want one holder by descriptor 3 of another thread", got)
		}
	})
}

// What the program finds are the PIDs of the reader's namespace.
func TestFindInAPIDNamespaceShowsItsPIDs(t *testing.T) {
	l := listener(t)
	attr := apart(syscall.CLONE_NEWPID | syscall.CLONE_NEWNS)
	if os.Geteuid() == 0 { // the program is for those outside of user namespaces
		attr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWPID | syscall.CLONE_NEWNS}
	}
	_, out := start(t, "find-in-namespace", l, attr)
	for range 2 {
		line := must(out.ReadString('\n'))
		var pid, child int
		must(fmt.Sscan(line, &pid, &child))
		want := fmt.Sprintf("(pid %d,", pid)
		if pid != 1 || strings.Count(line, "(pid ") != 2 || !strings.Contains(line, want) || !strings.Contains(line, fmt.Sprintf("(pid %d,", child)) {
			t.Errorf("got %q, want holders %d and %d, and not the test outside", line, pid, child)
		}
		if !strings.Contains(line, "outside this PID namespace") {
			t.Errorf("got %q, want it to say that there may be others", line)
		}
	}
}

// Both ways find the same in whatever processes do with their descriptors.
func TestWaysAgree(t *testing.T) {
	random := rand.New(rand.NewPCG(1, 2))
	var all []uint32
	l := listener(t)
	for range 4 {
		_, inodes := holdMany(t, 1+random.IntN(200))
		all = append(all, inodes...)
	}
	startReady(t, "hold", l)
	_, out := start(t, "hold-in-thread", l, nil)
	must(out.ReadString('\n'))
	startReady(t, "end-first-thread", l)
	all = append(all, inodeOf(l))
	for range 50 { // of its own, with duplicates
		f := listener(t)
		all = append(all, inodeOf(f))
		for range random.IntN(3) {
			twin := must(unix.FcntlInt(f.Fd(), unix.F_DUPFD_CLOEXEC, random.IntN(1000)))
			t.Cleanup(func() { unix.Close(twin) })
		}
	}
	var program Finder
	defer program.Close()
	proc := byProc()
	for round := range 8 {
		inodes := slices.Clone(all)
		random.Shuffle(len(inodes), func(i, j int) { inodes[i], inodes[j] = inodes[j], inodes[i] })
		if round%2 == 0 {
			inodes = inodes[:1+random.IntN(wantedFew)] // which the program looks for
		}
		a := must(program.Find(t.Context(), inodes))
		b := must(proc.Find(t.Context(), inodes))
		total := 0
		for _, i := range all {
			if got, want := a.Of(i), b.Of(i); !slices.Equal(got, want) {
				t.Fatalf("inode %d: got %v, want %v as in /proc", i, got, want)
			}
			if len(a.Of(i)) > 0 && !slices.Contains(inodes, i) {
				t.Fatalf("inode %d: got holders, was not looked for", i)
			}
			total += len(a.Of(i))
		}
		if total < len(inodes) {
			t.Fatalf("got %d holders of %d sockets", total, len(inodes))
		}
		if a.Unreadable > b.Unreadable { // the program may see more than /proc shows
			t.Errorf("got %d unreadable processes, want %d at most, as in /proc", a.Unreadable, b.Unreadable)
		}
	}
}

// A socket that is passed over for want of room, in a table of many, would go missing.
func TestFindMakesRoomForMoreSocketsThanExpected(t *testing.T) {
	pid, inodes := holdMany(t, 3000)
	last := inodes[len(inodes)-wantedFew-1:]
	eachWay(t, func(t *testing.T, f *Finder) {
		found := must(f.Find(t.Context(), last))
		for _, i := range last {
			if h := found.Of(i); len(h) != 1 || h[0].PID != pid {
				t.Fatalf("inode %d: got %v, want process %d", i, h, pid)
			}
		}
	})
}

func TestFindWhileProcessesEnd(t *testing.T) {
	l := listener(t)
	eachWay(t, func(t *testing.T, f *Finder) {
		for range 10 {
			child := startReady(t, "hold", l)
			ended := make(chan struct{})
			go func() {
				child.Process.Kill()
				child.Process.Wait()
				close(ended)
			}()
			for done := false; !done; {
				select {
				case <-ended:
					done = true
				default:
				}
				for _, h := range must2(f.Find(t.Context(), []uint32{inodeOf(l)})).Of(inodeOf(l)) {
					if h.PID != os.Getpid() && h.PID != child.Process.Pid {
						t.Fatalf("got %v, want this process or %d", h, child.Process.Pid)
					}
					if done && h.PID != os.Getpid() {
						t.Fatalf("got %v, which has ended", h)
					}
				}
			}
		}
	})
}

func must2(f Found, err error) *Found {
	ok(err)
	return &f
}

// A socket that is held all the time is found all the time, and no other for it.
func TestFindWhileDescriptorsChange(t *testing.T) {
	l := listener(t)
	child := startReady(t, "change", l)
	inode := inodeOf(l)
	ok(l.Close())
	_, many := holdMany(t, wantedFew+1)
	eachWay(t, func(t *testing.T, f *Finder) {
		for round := range 6 {
			inodes := []uint32{inode}
			if round >= 3 {
				inodes = append(inodes, many...)
			}
			found := must(f.Find(t.Context(), inodes))
			own := 0
			for _, h := range found.Of(inode) {
				if h.PID != child.Process.Pid || h.FD != 3 {
					t.Fatalf("got %v, want descriptor 3 of %d", h, child.Process.Pid)
				}
				if h.Thread == 0 { // the others close it as soon as they have it
					own++
				}
			}
			if own != 1 {
				t.Fatalf("got %v, want one holder that is no thread", found.Of(inode))
			}
		}
	})
}

// Large tables the program leaves to /proc. Here those are large that have grown once.
func TestFindReadsLargeTablesFromProc(t *testing.T) {
	l, _ := readLayout("/sys/kernel/btf/vmlinux") // without it all are read from there
	l.maxTable = 64
	pid, inodes := holdMany(t, 200)
	small := listener(t)
	child := startReady(t, "hold", small)
	for _, looked := range [][]uint32{inodes[:1], inodes} {
		f := Finder{finder{layout: &l}}
		found := must(f.Find(t.Context(), append(slices.Clone(looked), inodeOf(small))))
		for _, i := range looked {
			if h := found.Of(i); len(h) != 1 || h[0].PID != pid {
				t.Fatalf("inode %d: got %v, want process %d", i, h, pid)
			}
		}
		if got, want := len(found.Of(inodeOf(small))), 2; got != want {
			t.Errorf("got %d holders, want %d: this process and %d", got, want, child.Process.Pid)
		}
		ok(f.Close())
	}
}

// Wherever the kernel does not take the program, /proc is read instead.
func TestFindDoesWithoutTheProgram(t *testing.T) {
	l := listener(t)
	f := Finder{finder{layout: &layout{}}}
	found, err := f.Find(t.Context(), []uint32{inodeOf(l)})
	if err != nil || len(found.Of(inodeOf(l))) != 1 || f.refused == nil {
		t.Errorf("got %v, %v, refused %v, want this process by /proc", found.Of(inodeOf(l)), err, f.refused)
	}
}

// A walk that fails once, for want of memory or descriptors say, is no reason to do without for good.
func TestFindTriesTheProgramAgainAfterAFailedWalk(t *testing.T) {
	l := listener(t)
	var f Finder
	defer f.Close()
	must(f.Find(t.Context(), []uint32{inodeOf(l)}))
	if f.refused != nil {
		return // see TestFindUsesTheProgramWhereItMay
	}
	null := must(os.Open(os.DevNull))
	defer null.Close()
	ok(unix.Dup3(int(null.Fd()), f.walker.link, unix.O_CLOEXEC))
	for _, walked := range []bool{false, true} {
		found := must(f.Find(t.Context(), []uint32{inodeOf(l)}))
		if got := f.walker != nil; len(found.Of(inodeOf(l))) != 1 || got != walked {
			t.Errorf("got %v, by the program %v, want this process, %v", found.Of(inodeOf(l)), got, walked)
		}
	}
}

func TestFindStopsWhenTheContextIsDone(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	eachWay(t, func(t *testing.T, f *Finder) {
		if _, err := f.Find(ctx, []uint32{1}); !errors.Is(err, context.Canceled) {
			t.Errorf("got error %v, want %v", err, context.Canceled)
		}
	})
}

func TestFinderMayBeUsedAfterClose(t *testing.T) {
	l := listener(t)
	var f Finder
	for range 3 {
		found := must(f.Find(t.Context(), []uint32{inodeOf(l)}))
		if len(found.Of(inodeOf(l))) != 1 {
			t.Fatalf("got %v, want this process", found.Of(inodeOf(l)))
		}
		before := openFDs(t)
		ok(f.Close())
		if after := openFDs(t); f.refused == nil && after >= before {
			t.Errorf("got %d descriptors after Close, want less than %d", after, before)
		}
		ok(f.Close())
	}
}

func openFDs(t *testing.T) int {
	t.Helper()
	return len(must(numbersIn("/proc/self/fd")))
}

// Of a descriptor that is a mere path /proc says the same as of one that holds the socket.
func TestFindPassesOverMerePaths(t *testing.T) {
	l := listener(t)
	path := must(unix.Open(fmt.Sprintf("/proc/self/fd/%d", l.Fd()), unix.O_PATH|unix.O_CLOEXEC, 0))
	defer unix.Close(path)
	var f Finder
	defer f.Close()
	found := must(f.Find(t.Context(), []uint32{inodeOf(l)}))
	want := [][2]int{{os.Getpid(), int(l.Fd())}}
	if f.refused != nil {
		want = append(want, [2]int{os.Getpid(), path})
	}
	if got := pairs(found.Of(inodeOf(l))); !slices.Equal(got, want) {
		t.Errorf("got pid and fd %v, want %v", got, want)
	}
}

func TestTheProgramTellsCookies(t *testing.T) {
	l := listener(t)
	cookie := must(unix.GetsockoptUint64(int(l.Fd()), unix.SOL_SOCKET, unix.SO_COOKIE))
	var f Finder
	defer f.Close()
	found := must(f.Find(t.Context(), []uint32{inodeOf(l)}))
	want := []uint64{cookie}
	if f.refused != nil {
		want = []uint64{0}
	}
	if got := found.groups.cookies; !slices.Equal(got, want) {
		t.Errorf("got cookies %v, want %v", got, want)
	}
}

// A process that began after the walk has the PID of one that was seen by it.
func TestRecordsOfAPIDThatIsUsedAgain(t *testing.T) {
	l := listener(t)
	groups, _ := newGroups([]uint32{inodeOf(l)})
	me := must(ProcessOf(os.Getpid()))
	records := []record{{pid: uint32(me.PID), thread: uint32(me.PID), fd: 3, inode: inodeOf(l)}}
	for _, c := range []struct {
		began uint64
		want  int
	}{{me.Start, 1}, {me.Start - 1, 0}} {
		if tables, hidden := tablesOf(records, &groups, c.began); len(tables) != c.want || hidden != 0 {
			t.Errorf("walk at %d, start at %d: got %v, %d hidden, want %d tables", c.began, me.Start, tables, hidden, c.want)
		}
	}
}

// The program leaves a thread that was changing to /proc.
func TestRecordsThatAreToBeLookedAtAgain(t *testing.T) {
	l := listener(t)
	inode := inodeOf(l)
	groups, _ := newGroups([]uint32{inode})
	child, out := start(t, "hold-in-thread", l, nil)
	thread := must(strconv.Atoi(strings.TrimSpace(must(out.ReadString('\n')))))
	pid := uint32(child.Process.Pid)
	tables, _ := tablesOf([]record{
		{pid: pid, thread: pid},
		{pid: pid, thread: uint32(thread), files: 7},
		{pid: pid, thread: uint32(thread) + 1, files: 7}, // shares the table
		{pid: 0, thread: 0},
		{pid: 1 << 30, thread: 1 << 30}, // has ended
	}, &groups, 1<<60)
	var got [][3]int
	for _, t := range tables {
		for _, d := range t.sockets {
			got = append(got, [3]int{t.PID, t.thread, int(d.fd)})
		}
	}
	want := [][3]int{{int(pid), 0, 3}, {int(pid), thread, 77}}
	if !slices.Equal(got, want) {
		t.Errorf("got pid, thread and fd %v, want %v", got, want)
	}
}

func TestHiddenProcessesAreKnownByTheMountOptions(t *testing.T) {
	for options, want := range map[string]bool{
		"rw": false, "rw,hidepid=1": false, "rw,hidepid=noaccess": false,
		"rw,hidepid=2": true, "rw,hidepid=invisible": true, "rw,hidepid=4,gid=3": true, "rw,hidepid=ptraceable": true,
	} {
		if got := hidesProcesses.MatchString(options); got != want {
			t.Errorf("%s: got %v, want %v", options, got, want)
		}
	}
}

// holdMany starts a child with so many sockets.
func holdMany(t testing.TB, count int) (pid int, inodes []uint32) {
	t.Helper()
	t.Setenv("FT_TEST_COUNT", strconv.Itoa(count))
	child, out := start(t, "hold-many", nil, nil)
	ok(json.NewDecoder(out).Decode(&inodes))
	if len(inodes) != count {
		t.Fatalf("got %d sockets, want %d", len(inodes), count)
	}
	return child.Process.Pid, inodes
}

// Many are the 100,000 sockets of five processes, less what a process has open besides.
func BenchmarkMany(b *testing.B) {
	var all []uint32
	for range 5 {
		_, inodes := holdMany(b, 19_980)
		all = append(all, inodes...)
	}
	for _, c := range []struct {
		name   string
		finder func() *Finder
		inodes []uint32
		once   bool
	}{
		{"one/program/first", func() *Finder { return &Finder{} }, all[len(all)-1:], true},
		{"one/program/again", func() *Finder { return &Finder{} }, all[len(all)-1:], false},
		{"one/proc", byProc, all[len(all)-1:], false},
		{"all/program/first", func() *Finder { return &Finder{} }, all, true},
		{"all/program/again", func() *Finder { return &Finder{} }, all, false},
		{"all/proc", byProc, all, false},
	} {
		b.Run(c.name, func(b *testing.B) {
			f := c.finder()
			b.ReportAllocs()
			for b.Loop() {
				if c.once {
					f.Close()
					f = c.finder()
				}
				found, err := f.Find(b.Context(), c.inodes)
				if err != nil || len(found.Of(c.inodes[0])) != 1 {
					b.Fatal(err, found.Of(c.inodes[0]))
				}
			}
			f.Close()
		})
	}
	var f Finder
	defer f.Close()
	found := must(f.Find(b.Context(), all))
	b.Run("of", func(b *testing.B) {
		b.ReportAllocs()
		for i := 0; b.Loop(); i++ {
			if len(found.Of(all[i%len(all)])) != 1 {
				b.Fatal("no holder")
			}
		}
	})
}

func BenchmarkReadLayout(b *testing.B) {
	for b.Loop() {
		must(readLayout("/sys/kernel/btf/vmlinux"))
	}
}

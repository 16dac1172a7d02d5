package owner

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"regexp"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// finder is what a [Finder] keeps between searches.
type finder struct {
	cgroups
	layout *layout
	walker *walker // nil until it is needed
	// refused is why there can be no walker and /proc is read.
	refused error
	users   map[uint32]string
	looked  bool   // at what follows
	own     error  // unless /proc shows the PID namespace of this process
	partial string // see Found.Partial
}

// search finds the sockets that processes hold, in one of two ways: a BPF program that
// walks through the tables of descriptors in the kernel, where that is allowed, and
// otherwise by reading /proc.
func (f *finder) search(ctx context.Context, wanted *groups, inodes []uint32) ([]table, int, error) {
	f.look()
	if err := ctx.Err(); err != nil {
		return nil, 0, err
	}
	if f.refused == nil {
		var few []uint32
		if len(inodes) <= wantedFew {
			few = inodes
		}
		tables, hidden, err := f.walk(ctx, wanted, few, len(inodes))
		if err == nil || ctx.Err() != nil {
			return f.named(tables), hidden, err
		}
		f.close()
	}
	tables, unreadable, err := readProc(ctx, wanted, f.own == nil)
	return f.named(tables), unreadable, err
}

// searchAll finds all sockets, by the program.
func (f *finder) searchAll(ctx context.Context) ([]table, int, error) {
	f.look()
	if f.refused != nil {
		return nil, 0, fmt.Errorf("%w: %w", f.refused, errors.ErrUnsupported)
	}
	tables, hidden, err := f.walk(ctx, &groups{any: true}, nil, openFiles())
	if f.refused != nil {
		err = fmt.Errorf("%w: %w", f.refused, errors.ErrUnsupported)
	}
	return f.named(tables), hidden, err
}

// openFiles is how many files are open on the machine (proc_sys_fs(5)): there are
// hardly more sockets. It is 0 where that is not known.
func openFiles() (n int) {
	if b, err := os.ReadFile("/proc/sys/fs/file-nr"); err == nil {
		fmt.Sscan(string(b), &n)
	}
	return n
}

// look makes out, once, which ways there are.
func (f *finder) look() {
	if f.looked {
		return
	}
	f.own, f.partial, f.looked = ownProc(), unseen(), true
	if f.own != nil {
		f.partial = "/proc shows another PID namespace than that of this process"
		f.refused = f.own // what the program finds could not be looked up in /proc
	}
}

func (f *finder) prepare() {
	if f.look(); f.refused == nil && f.walker == nil {
		f.refused = f.load(spare)
	}
}

func (f *finder) unseen() string { return f.partial }

func (f *finder) close() {
	if f.walker != nil {
		f.walker.close()
		f.walker = nil
	}
}

// named fills in the names of users.
func (f *finder) named(tables []table) []table {
	if f.users == nil {
		f.users = map[uint32]string{}
	}
	for i := range tables {
		uid := tables[i].UID
		name, ok := f.users[uid]
		if !ok {
			name = userName(uid)
			f.users[uid] = name
		}
		tables[i].User = name
	}
	return tables
}

// spare is for how many sockets there is room beyond those that are looked for.
const spare = 1024

// walk searches by the program, which tells the sockets with these few inodes, or
// all if there are none. about is how many it will be.
func (f *finder) walk(ctx context.Context, wanted *groups, few []uint32, about int) (tables []table, hidden int, err error) {
	started, err := ticks()
	if err != nil {
		return nil, 0, err
	}
	records, want := []record(nil), about+about/4
	for tries := 0; ; tries++ {
		if f.walker == nil {
			if f.refused = f.load(want + spare); f.refused != nil {
				return nil, 0, f.refused
			}
		}
		if records, want, err = f.walker.walk(ctx, few); err != nil {
			return nil, 0, err
		}
		if want <= len(records) {
			break
		}
		if tries == 5 {
			return nil, 0, errors.New("the sockets grow in number faster than they are read")
		}
		f.close()
		want += want / 4
	}
	tables, hidden = tablesOf(records, wanted, started)
	return tables, hidden, nil
}

func (f *finder) load(capacity int) error {
	if f.layout == nil {
		l, err := readLayout("/sys/kernel/btf/vmlinux")
		if err != nil {
			return err
		}
		f.layout = &l
	}
	w, err := newWalker(*f.layout, capacity)
	if err != nil {
		return err
	}
	f.walker = w
	return nil
}

// tablesOf makes tables of the records of a walk that began at the given time. It
// counts the processes among them that /proc hides, or does not let be read.
func tablesOf(records []record, wanted *groups, began uint64) (tables []table, hidden int) {
	unread := map[uint32]bool{}
	all := make([]descriptor, 0, len(records)) // of which the tables are parts
	type key struct {
		pid   uint32
		files uint64
	}
	seen := map[key]bool{} // tables of threads other than the first, which several may share
	for n := 0; len(records) > 0; records = records[n:] {
		head := records[0]
		for n = 1; n < len(records) && records[n].thread == head.thread; n++ {
		}
		if head.pid == 0 { // it ended meanwhile
			continue
		}
		t := table{}
		if head.thread != head.pid {
			if seen[key{head.pid, head.files}] {
				continue
			}
			seen[key{head.pid, head.files}] = true
			t.thread = int(head.thread)
		}
		if head.inode == 0 {
			var unreadable bool
			if t.sockets, unreadable = lookAgain(int(head.pid), t.thread, wanted); unreadable {
				unread[head.pid] = true
			}
		} else {
			first := len(all)
			for _, r := range records[:n] {
				if wanted.wants(r.inode) {
					all = append(all, descriptor{r.inode, r.fd, r.cookie})
				}
			}
			t.sockets = all[first:len(all):len(all)]
		}
		if len(t.sockets) == 0 {
			continue
		}
		var err error
		if last := len(tables) - 1; last >= 0 && tables[last].PID == int(head.pid) {
			t.Process = tables[last].Process
		} else if t.Process, err = describeSince(int(head.pid), began); err != nil {
			if isHidden(int(head.pid)) {
				unread[head.pid] = true
			}
			continue
		}
		tables = append(tables, t)
	}
	return tables, len(unread)
}

// isHidden says that a process runs, and /proc does not tell of it: it is mounted with hidepid.
func isHidden(pid int) bool {
	_, err := readFile(unix.AT_FDCWD, "/proc/"+strconv.Itoa(pid)+"/stat")
	return err != nil && unix.Kill(pid, 0) != unix.ESRCH
}

// lookAgain reads the sockets of one table from /proc. A process that ended holds none.
func lookAgain(pid, thread int, wanted *groups) (sockets []descriptor, unreadable bool) {
	dir, err := openProcess(pid)
	if err != nil {
		return nil, isHidden(pid)
	}
	defer unix.Close(dir)
	path := "fd"
	if thread != 0 {
		path = "task/" + strconv.Itoa(thread) + "/fd"
	}
	r := &reader{wanted: wanted}
	if err := r.descriptors(dir, path, thread); err != nil {
		unreadable = denied(err) && mayHoldSockets(dir) || isHidden(pid)
	}
	if len(r.tables) > 0 {
		sockets = r.tables[0].sockets
	}
	return sockets, unreadable
}

// describeSince describes a process that ran at the given time. A later one of the same PID is
// none.
func describeSince(pid int, time uint64) (Process, error) {
	dir, err := openProcess(pid)
	if err != nil {
		return Process{}, err
	}
	defer unix.Close(dir)
	p, err := describe(dir, pid)
	if err == nil && p.Start > time {
		err = fs.ErrNotExist
	}
	return p, err
}

// ticksPerSecond is the unit of times in /proc/PID/stat, USER_HZ: 100 on amd64, arm64
// and all others that Go knows.
const ticksPerSecond = 100

// ticks is the time since the machine started, as [Process].Start counts it.
func ticks() (uint64, error) {
	var t unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_BOOTTIME, &t); err != nil {
		return 0, err
	}
	return uint64(t.Nano()) / (1e9 / ticksPerSecond), nil
}

// unseen says why there can be processes that /proc does not show.
func unseen() string {
	// The number of the first PID namespace is the same on every machine:
	// PID_NS_INIT_INO of linux/nsfs.h.
	if ns, err := namespace("pid"); err == nil && ns != "4026531836" {
		return "processes outside this PID namespace are not seen"
	}
	mounts, err := readFile(unix.AT_FDCWD, "/proc/self/mountinfo")
	if err != nil || os.Geteuid() == 0 {
		return ""
	}
	for line := range strings.Lines(string(mounts)) {
		if fields := strings.Fields(line); len(fields) > 4 && fields[4] == "/proc" && hidesProcesses.MatchString(fields[len(fields)-1]) {
			return "/proc hides the processes of other users (hidepid)"
		}
	}
	return ""
}

// hidesProcesses matches the mount options of proc(5) with which it does.
var hidesProcesses = regexp.MustCompile(`\bhidepid=(2|4|invisible|ptraceable)\b`)

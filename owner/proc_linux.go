package owner

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"io/fs"
	"os"
	"strconv"
	"sync"
	"sync/atomic"
	"unsafe"

	"golang.org/x/sys/unix"
)

// procThreads is how many threads read /proc. The time is spent in the kernel,
// where more of them wait for each other.
const procThreads = 2

// readProc searches by reading the link of every descriptor in /proc. It takes one
// opened with O_PATH (open(2)) for one that holds the socket: the link is the same.
func readProc(ctx context.Context, wanted *groups, threads bool) (tables []table, unreadable int, err error) {
	pids, err := processes()
	if err != nil {
		return nil, 0, err
	}
	var next atomic.Int64
	var wg sync.WaitGroup
	var readers [procThreads]*reader
	for i := range readers {
		r := &reader{wanted: wanted, threads: threads}
		readers[i] = r
		wg.Go(func() {
			for i := next.Add(1) - 1; i < int64(len(pids)) && ctx.Err() == nil; i = next.Add(1) - 1 {
				r.process(pids[i])
			}
		})
	}
	wg.Wait()
	for _, r := range readers {
		tables = append(tables, r.tables...)
		unreadable += r.unreadable
	}
	return tables, unreadable, nil
}

// processes lists /proc.
func processes() ([]int, error) {
	pids, err := numbersIn("/proc")
	if err == nil && len(pids) == 0 {
		err = errors.New("no processes in /proc: is it mounted?")
	}
	return pids, err
}

// numbersIn lists the entries of a directory whose names are numbers.
func numbersIn(path string) ([]int, error) {
	dir, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer dir.Close()
	names, err := dir.Readdirnames(-1)
	if err != nil {
		return nil, err
	}
	var numbers []int
	for _, name := range names {
		if n, err := strconv.Atoi(name); err == nil {
			numbers = append(numbers, n)
		}
	}
	return numbers, nil
}

// reader is the work of one thread: it reads one process after the other
// into the same buffers.
type reader struct {
	wanted     *groups
	threads    bool // look also for threads with descriptors of their own
	tables     []table
	unreadable int
	entries    [32 << 10]byte // of getdents64(2)
	link       [64]byte       // of readlinkat(2); "socket:[4294967295]" and more fit
}

// process adds what the process holds. One that ends meanwhile holds nothing.
func (r *reader) process(pid int) {
	dir, err := openProcess(pid)
	if err != nil {
		return
	}
	defer unix.Close(dir)
	first := len(r.tables)
	err = r.descriptors(dir, "fd", 0)
	if r.threads && (!denied(err) || firstThreadEnded(dir)) {
		err = r.otherThreads(dir, pid)
	}
	if denied(err) && mayHoldSockets(dir) {
		r.unreadable++
	}
	if len(r.tables) == first {
		return
	}
	p, err := describe(dir, pid)
	if err != nil {
		r.tables = r.tables[:first]
		return
	}
	for i := first; i < len(r.tables); i++ {
		r.tables[i].Process = p
	}
}

// otherThreads adds what threads hold in tables of descriptors of their own.
func (r *reader) otherThreads(dir, pid int) (err error) {
	var st unix.Stat_t
	if unix.Fstatat(dir, "task", &st, 0) != nil || st.Nlink <= 3 {
		return nil // a directory for each thread, and two links to the one itself
	}
	ids, err := numbersIn("/proc/" + strconv.Itoa(pid) + "/task")
	if err != nil {
		return nil
	}
	tables := []int{pid} // a thread of each table
	for _, id := range ids {
		if id == pid || !ownTable(id, tables) {
			continue
		}
		tables = append(tables, id)
		if e := r.descriptors(dir, "task/"+strconv.Itoa(id)+"/fd", id); denied(e) {
			err = e
		}
	}
	return err
}

// firstThreadEnded says that a process goes on without its first thread, whose
// descriptors cannot be read then.
func firstThreadEnded(dir int) bool {
	st, err := readStat(dir)
	return err == nil && st.state == 'Z' && st.threads > 1
}

// ownTable says whether a thread shares its table of descriptors with none of
// the others. Where the kernel does not tell (kcmp(2), CONFIG_KCMP) it is taken
// to share, as nearly all do.
func ownTable(thread int, others []int) bool {
	const files = 2 // KCMP_FILES
	for _, o := range others {
		order, _, errno := unix.Syscall6(unix.SYS_KCMP, uintptr(o), uintptr(thread), files, 0, 0, 0)
		if errno != 0 || order == 0 {
			return false
		}
	}
	return true
}

func denied(err error) bool { return errors.Is(err, fs.ErrPermission) }

// mayHoldSockets tells a process from kernel threads and from what is left of
// processes that have ended: both are root's, and have no descriptors. One whose
// stat is hidden as well (proc(5), hidepid=1) may be anything.
func mayHoldSockets(dir int) bool {
	st, err := readStat(dir)
	return denied(err) || err == nil && !st.ended() && st.flags&kernelThread == 0
}

// descriptors adds a table without its process for the sockets in a directory fd of
// /proc/PID, if it has any of the wanted. The error is the first that kept it from
// reading on.
func (r *reader) descriptors(dir int, path string, thread int) error {
	fds, err := unix.Openat(dir, path, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fds)
	var sockets []descriptor
	defer func() {
		if len(sockets) > 0 {
			r.tables = append(r.tables, table{thread: thread, sockets: sockets})
		}
	}()
	for {
		n, err := unix.Getdents(fds, r.entries[:])
		if err == unix.EINTR {
			continue
		}
		if err != nil || n <= 0 {
			return err
		}
		for b := r.entries[:n]; len(b) > 0; {
			var name []byte
			if name, b = nextName(b); name == nil {
				return nil
			}
			fd, ok := number(name[:len(name)-1])
			if !ok {
				continue // "." and ".."
			}
			inode, err := r.socketAt(fds, name)
			if denied(err) {
				return err // the same for all of them
			}
			if err == nil && r.wanted.wants(inode) {
				sockets = append(sockets, descriptor{inode: inode, fd: fd})
			}
		}
	}
}

// nextName takes the first struct linux_dirent64 off b (getdents64(2)): inode
// and offset of 8 bytes each, length of the entry, type, and the name, which is
// returned with the NUL at its end. It is nil if there is none.
func nextName(b []byte) (name, rest []byte) {
	const nameAt = 19
	if len(b) < nameAt {
		return nil, nil
	}
	size := int(binary.NativeEndian.Uint16(b[16:]))
	if size < nameAt || size > len(b) {
		return nil, nil
	}
	end := bytes.IndexByte(b[nameAt:size], 0)
	if end < 0 {
		return nil, nil
	}
	return b[nameAt : nameAt+end+1], b[size:]
}

// socketAt reads the link of a descriptor and returns the inode of a socket, 0
// for what is none. unix.Readlinkat would copy the name twice for each.
func (r *reader) socketAt(dir int, nameNUL []byte) (inode uint32, err error) {
	n, _, errno := unix.Syscall6(unix.SYS_READLINKAT, uintptr(dir), uintptr(unsafe.Pointer(&nameNUL[0])),
		uintptr(unsafe.Pointer(&r.link[0])), uintptr(len(r.link)), 0, 0)
	if errno != 0 {
		return 0, errno
	}
	return socketInode(r.link[:n]), nil
}

// socketInode reads "socket:[123]". Anything else is 0.
func socketInode(link []byte) uint32 {
	rest, ok := bytes.CutPrefix(link, []byte("socket:["))
	if !ok || len(rest) == 0 || rest[len(rest)-1] != ']' {
		return 0
	}
	n, _ := number(rest[:len(rest)-1])
	return n
}

// number reads decimal digits up to 4294967295, without allocating.
func number(b []byte) (n uint32, ok bool) {
	if len(b) == 0 || len(b) > 10 {
		return 0, false
	}
	var v uint64
	for _, c := range b {
		if c < '0' || c > '9' {
			return 0, false
		}
		v = v*10 + uint64(c-'0')
	}
	if v > 1<<32-1 {
		return 0, false
	}
	return uint32(v), true
}

package owner

import (
	"bytes"
	"cmp"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"unsafe"

	"golang.org/x/sys/unix"
)

// searchThreads is how many threads read /proc. It is spent in the kernel,
// where more of them wait for each other.
const searchThreads = 2

// search finds the holders of the wanted sockets.
func search(ctx context.Context, wanted map[uint32]bool) (Found, error) {
	pids, err := processes()
	if err != nil {
		return Found{}, fmt.Errorf("find the holders of sockets: %w", err)
	}
	var next atomic.Int64
	var wg sync.WaitGroup
	var searchers [searchThreads]*searcher
	for i := range searchers {
		s := &searcher{wanted: wanted}
		searchers[i] = s
		wg.Go(func() {
			for i := next.Add(1) - 1; i < int64(len(pids)) && ctx.Err() == nil; i = next.Add(1) - 1 {
				s.process(pids[i])
			}
		})
	}
	wg.Wait()
	if err := ctx.Err(); err != nil {
		return Found{}, fmt.Errorf("find the holders of sockets: %w", err)
	}
	return merge(searchers[:]), nil
}

// processes lists /proc.
func processes() ([]int, error) {
	dir, err := os.Open("/proc")
	if err != nil {
		return nil, err
	}
	defer dir.Close()
	names, err := dir.Readdirnames(-1)
	if err != nil {
		return nil, err
	}
	var pids []int
	for _, n := range names {
		if pid, err := strconv.Atoi(n); err == nil {
			pids = append(pids, pid)
		}
	}
	if len(pids) == 0 {
		return nil, errors.New("no processes in /proc: is it mounted?")
	}
	return pids, nil
}

func merge(searchers []*searcher) Found {
	f := Found{Holders: map[uint32][]Holder{}}
	users := map[uint32]string{}
	for _, s := range searchers {
		f.Unreadable += s.unreadable
		for _, m := range s.matches {
			name, ok := users[m.UID]
			if !ok {
				name = userName(m.UID)
				users[m.UID] = name
			}
			m.User = name
			f.Holders[m.inode] = append(f.Holders[m.inode], m.Holder)
		}
	}
	for _, holders := range f.Holders {
		slices.SortFunc(holders, func(a, b Holder) int {
			return cmp.Or(cmp.Compare(a.PID, b.PID), cmp.Compare(a.FD, b.FD))
		})
	}
	return f
}

// searcher is the work of one thread: it reads one process after the other
// into the same buffers.
type searcher struct {
	wanted     map[uint32]bool
	matches    []match
	unreadable int
	entries    [32 << 10]byte // of getdents64(2)
	link       [64]byte       // of readlinkat(2); "socket:[4294967295]" and more fit
}

type match struct {
	inode uint32
	Holder
}

// process adds what the process holds. One that ends meanwhile holds nothing.
func (s *searcher) process(pid int) {
	dir, err := openProcess(pid)
	if err != nil {
		return
	}
	defer unix.Close(dir)
	first := len(s.matches)
	err = s.descriptors(dir)
	if denied(err) && mayHoldSockets(dir) {
		s.unreadable++
	}
	if len(s.matches) == first {
		return
	}
	p, err := describe(dir, pid)
	if err != nil {
		s.matches = s.matches[:first]
		return
	}
	for i := first; i < len(s.matches); i++ {
		s.matches[i].Process = p
	}
}

func denied(err error) bool { return errors.Is(err, fs.ErrPermission) }

// mayHoldSockets tells a process from kernel threads and from what is left of
// processes that have ended: both are root's, and have no descriptors. One whose
// stat is hidden as well (proc(5), hidepid=1) may be anything.
func mayHoldSockets(dir int) bool {
	st, err := readStat(dir)
	return denied(err) || err == nil && !st.ended() && st.flags&kernelThread == 0
}

// descriptors adds a match without its process for every wanted socket in
// /proc/PID/fd. The error is the first that kept it from reading on.
func (s *searcher) descriptors(dir int) error {
	fds, err := unix.Openat(dir, "fd", unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fds)
	for {
		n, err := unix.Getdents(fds, s.entries[:])
		if err == unix.EINTR {
			continue
		}
		if err != nil || n <= 0 {
			return err
		}
		for b := s.entries[:n]; len(b) > 0; {
			var name []byte
			if name, b = nextName(b); name == nil {
				return nil
			}
			fd, ok := number(name[:len(name)-1])
			if !ok {
				continue // "." and ".."
			}
			inode, err := s.socket(fds, name)
			if denied(err) {
				return err // the same for all of them
			}
			if err == nil && s.wanted[inode] {
				s.matches = append(s.matches, match{inode, Holder{FD: int(fd)}})
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

// socket reads the link of a descriptor and returns the inode of a socket, 0
// for what is none. unix.Readlinkat would copy the name twice for each.
func (s *searcher) socket(dir int, nameNUL []byte) (inode uint32, err error) {
	n, _, errno := unix.Syscall6(unix.SYS_READLINKAT, uintptr(dir), uintptr(unsafe.Pointer(&nameNUL[0])),
		uintptr(unsafe.Pointer(&s.link[0])), uintptr(len(s.link)), 0, 0)
	if errno != 0 {
		return 0, errno
	}
	return socketInode(s.link[:n]), nil
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

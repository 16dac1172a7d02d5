//go:build unix

package claims

import (
	"cmp"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"time"

	"golang.org/x/sys/unix"
)

// What is read of others is bounded, so that nobody can keep them all busy. As
// each user has a share of his own, one who makes a flood of files or claims
// hides nobody's but his.
const (
	// maxFiles of one user are read, the newest: more than ever are in use, since
	// registries that were not removed leave theirs behind.
	maxFiles = 1024
	// maxBytes is what is read of one user's files: a full one.
	maxBytes = Slots * unitSize
	// maxTotal is what is read altogether. Only a user with many user ids
	// (subuid(5)) can get there; these are higher than those of people and
	// services, mostly, and lower ones are read first.
	maxTotal = 16 * maxBytes
	// maxRereads of damaged records, altogether: honest files have one at most,
	// that which is being written.
	maxRereads = 64
)

var (
	errKind      = errors.New("not a regular file")
	errDamaged   = errors.New("damaged claim")
	errManyFiles = fmt.Errorf("its owner has more than %d files of claims", maxFiles)
	errManyBytes = errors.New("its owner has too many claims, or all owners together have")
)

// Others calls see with every claim of every other registry, and the user id of
// its owner, until see returns false. The error says that the claims cannot be
// read; what cannot be read for reasons that its owner made is [Skipped].
func (b *Board) Others(see func(uid uint32, c Claim) bool) (Skipped, error) {
	dir, err := os.Open(b.dir)
	if err != nil {
		return Skipped{}, fmt.Errorf("read the claims of other registries: %w", err)
	}
	defer dir.Close()
	r := reader{board: b, dir: dir, see: see, total: maxTotal, rereads: maxRereads}
	if err := r.readAll(); err != nil {
		return r.skipped, fmt.Errorf("read the claims of other registries in %s: %w", b.dir, err)
	}
	return r.skipped, nil
}

// Sweep removes the files of this user's other registries in which no claim is
// live any more and none was put for a minute: those of registries that were
// removed, above all. A registry that still is there makes its file again when
// it next puts a claim.
func (b *Board) Sweep(live func(Claim) bool) error {
	dir, err := os.Open(b.dir)
	if err != nil {
		return fmt.Errorf("sweep the claims of removed registries: %w", err)
	}
	defer dir.Close()
	r := reader{board: b, dir: dir, total: maxTotal, rereads: maxRereads}
	files, err := r.candidates()
	for _, c := range files {
		if c.uid != b.uid || err != nil || time.Since(time.Unix(0, c.time)) < time.Minute {
			continue
		}
		used, before, share := false, r.skipped, int64(maxBytes)
		r.see = func(_ uint32, c Claim) bool { used = live(c); return !used }
		if err = r.read(c.name, &share); err == nil && !used && r.skipped == before {
			if err = os.Remove(filepath.Join(b.dir, c.name)); errors.Is(err, fs.ErrNotExist) {
				err = nil // by another registry
			}
		}
		r.done = false
	}
	return err
}

// reader reads the files of others.
type reader struct {
	board   *Board
	dir     *os.File
	see     func(uint32, Claim) bool
	skipped Skipped
	buf     [1024 * unitSize]byte

	total   int64 // bytes left to read
	rereads int   // left
	done    bool  // see has had enough
}

// candidate is a file of claims, by its name.
type candidate struct {
	name  string
	uid   uint32
	inode uint64
	time  int64 // last modified
}

func (r *reader) readAll() error {
	candidates, err := r.candidates()
	if err != nil {
		return err
	}
	var files int   // of one owner
	var share int64 // bytes left to read of them
	for i, c := range candidates {
		if i == 0 || c.uid != candidates[i-1].uid {
			files, share = 0, maxBytes
		}
		if files++; files > maxFiles {
			r.pass(&r.skipped.Unread, c.name, errManyFiles)
			continue
		}
		if err := r.read(c.name, &share); err != nil || r.done {
			return err
		}
	}
	return nil
}

// candidates lists the files by owner, and those of an owner from the newest.
// Hard links to a file, which others can make if fs.protected_hardlinks is off
// (proc_sys_fs(5)), do not count towards its owner's share.
func (r *reader) candidates() ([]candidate, error) {
	names, err := list(r.dir, prefix)
	if err != nil {
		return nil, err
	}
	var candidates []candidate
	for _, name := range names {
		fd, st, err := r.open(name)
		if err != nil {
			return nil, err
		}
		if fd >= 0 {
			unix.Close(fd)
			candidates = append(candidates, candidate{name, st.Uid, uint64(st.Ino), st.Mtim.Nano()})
		}
	}
	slices.SortFunc(candidates, func(a, b candidate) int {
		return cmp.Or(cmp.Compare(a.uid, b.uid), cmp.Compare(b.time, a.time), cmp.Compare(a.inode, b.inode))
	})
	return slices.CompactFunc(candidates, func(a, b candidate) bool {
		return a.uid == b.uid && a.inode == b.inode
	}), nil
}

// open opens a file of another registry. It returns -1 for what is none.
func (r *reader) open(name string) (fd int, st unix.Stat_t, err error) {
	fd, err = openFile(r.dir, name, unix.O_RDONLY)
	switch {
	case isOurs(err):
		return -1, st, err
	case err == unix.ENOENT: // removed since
		return -1, st, nil
	case err != nil:
		r.pass(&r.skipped.Files, name, err)
		return -1, st, nil
	}
	var other bool
	if err = unix.Fstat(fd, &st); err == nil {
		other, err = r.isOther(fd, &st)
	}
	if err != nil {
		r.pass(&r.skipped.Files, name, err)
	}
	if !other {
		unix.Close(fd)
		return -1, st, nil
	}
	return fd, st, nil
}

func (r *reader) isOther(fd int, st *unix.Stat_t) (bool, error) {
	if st.Mode&unix.S_IFMT != unix.S_IFREG {
		return false, errKind
	}
	n, err := pread(fd, r.buf[:unitSize], 0)
	if n == 0 || err != nil { // nothing in it: its owner is making it just now
		return false, err
	}
	id, err := readHeader((*unit)(r.buf[:]), n)
	if err != nil {
		return false, err
	}
	return id != r.board.id || st.Uid != r.board.uid, nil
}

// read reads the claims of a file, which may have been replaced by now.
func (r *reader) read(name string, share *int64) error {
	fd, st, err := r.open(name)
	if fd < 0 {
		return err
	}
	defer unix.Close(fd)
	// What is added from now on was put there by who reads my claims after that.
	for at := int64(unitSize); at < st.Size && !r.done; {
		room := min(*share, r.total, int64(len(r.buf))) / unitSize * unitSize
		if room == 0 {
			r.pass(&r.skipped.Unread, name, errManyBytes)
			return nil
		}
		n, err := pread(fd, r.buf[:room], at)
		if err != nil {
			r.pass(&r.skipped.Files, name, err)
			return nil
		}
		n -= n % unitSize
		if n == 0 {
			return nil // cut off since, or in the middle of a record
		}
		r.records(fd, name, st.Uid, r.buf[:n], at)
		at += int64(n)
		*share -= int64(n)
		r.total -= int64(n)
	}
	return nil
}

// records hands on the claims in a part of a file that begins at an offset.
func (r *reader) records(fd int, name string, uid uint32, records []byte, at int64) {
	for i := 0; i < len(records); i += unitSize {
		u := (*unit)(records[i:])
		if u.free() {
			continue
		}
		c, ok := u.decode()
		if !ok {
			if c, ok = r.reread(fd, u, at+int64(i)); !ok && !u.free() {
				r.pass(&r.skipped.Records, name, errDamaged)
			}
		}
		if ok && !r.see(uid, c) {
			r.done = true
			return
		}
	}
}

// reread reads a damaged record again: it may be in use and have been written to
// just then, by a process that perhaps had to stop in the middle of it.
func (r *reader) reread(fd int, u *unit, at int64) (c Claim, ok bool) {
	for try := 0; try < 8 && r.rereads > 0 && !ok && !u.free(); try++ {
		r.rereads--
		if try > 0 {
			time.Sleep(time.Millisecond)
		}
		if n, err := pread(fd, u[:], at); n < unitSize || err != nil {
			break
		}
		c, ok = u.decode()
	}
	return c, ok
}

func (r *reader) pass(count *int, name string, err error) {
	if *count++; r.skipped.First == nil {
		r.skipped.First = fmt.Errorf("%q: %w", filepath.Join(r.board.dir, name), err)
	}
}

func pread(fd int, p []byte, at int64) (n int, err error) {
	for {
		n, err = unix.Pread(fd, p, at)
		if err != unix.EINTR {
			return n, err
		}
	}
}

//go:build unix

package claims

import (
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// A registry's file is called fivetuple-ports-UID-ID. Anyone can be first to
// create that, so then it gets a suffix. The names are to tell people whose
// files these are; who owns one is asked of the kernel.
const prefix = "fivetuple-ports-"

// mode: others must be able to read it, whatever the umask.
const mode = 0o644

// find looks for this registry's file, and leaves b.file nil if there is none.
func (b *Board) find() error {
	b.drop()
	dir, err := os.Open(b.dir)
	if err != nil {
		return err
	}
	defer dir.Close()
	if err := b.try(dir, b.plain); b.file != nil || err != nil {
		return err
	}
	names, err := list(dir, b.plain+"-")
	if err != nil {
		return err
	}
	slices.Sort(names) // so that every process finds the same one
	for _, name := range names {
		if err := b.try(dir, name); b.file != nil || err != nil {
			return err
		}
	}
	return nil
}

// try takes a file if it is this registry's. The id in it was written by us, so
// it is no other file of this user to which somebody made a hard link.
func (b *Board) try(dir *os.File, name string) error {
	file, st, err := b.open(dir, name)
	if file == nil {
		return err
	}
	var head unit
	n, err := file.ReadAt(head[:], 0)
	if err != nil && err != io.EOF {
		file.Close()
		return err
	}
	if id, err := readHeader(&head, n); err != nil || id != b.id {
		file.Close()
		return nil
	}
	b.take(file, st)
	b.complete = head[completeAt] == 1
	return b.publish(st)
}

// open opens a file of this user, and returns nil for all else that the name may stand for.
func (b *Board) open(dir *os.File, name string) (*os.File, *unix.Stat_t, error) {
	path := filepath.Join(b.dir, name)
	fd, err := openFile(dir, name, unix.O_RDWR)
	if err != nil {
		if isOurs(err) {
			return nil, nil, &fs.PathError{Op: "open", Path: path, Err: err}
		}
		return nil, nil, nil
	}
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil || st.Mode&unix.S_IFMT != unix.S_IFREG || st.Uid != b.uid {
		unix.Close(fd)
		return nil, nil, nil
	}
	return os.NewFile(uintptr(fd), path), &st, nil
}

func (b *Board) take(file *os.File, st *unix.Stat_t) {
	b.file, b.dev, b.ino = file, uint64(st.Dev), uint64(st.Ino)
}

func (b *Board) publish(st *unix.Stat_t) error {
	if st.Mode&0o777 == mode {
		return nil
	}
	if err := b.file.Chmod(mode); err != nil {
		return fmt.Errorf("let others read this registry's claims: %w", err)
	}
	return nil
}

// create makes this registry's file, which is not complete yet. It never opens
// one that is there, which fs.protected_regular may forbid (proc_sys_fs(5)).
func (b *Board) create() error {
	name := b.plain
	for {
		file, err := os.OpenFile(filepath.Join(b.dir, name), os.O_RDWR|os.O_CREATE|os.O_EXCL, mode)
		if err == nil {
			var st unix.Stat_t
			if err := unix.Fstat(int(file.Fd()), &st); err != nil {
				file.Close()
				return err
			}
			b.take(file, &st)
			return b.publish(&st)
		}
		if !errors.Is(err, fs.ErrExist) {
			return err
		}
		if name != b.plain || !b.removeRemains() {
			name = b.plain + "-" + rand.Text()
		}
	}
}

// removeRemains removes what has our name and is this user's but no file of
// claims of this version: it was made by another version, or not finished.
func (b *Board) removeRemains() bool {
	dir, err := os.Open(b.dir)
	if err != nil {
		return false
	}
	defer dir.Close()
	file, _, err := b.open(dir, b.plain)
	if file == nil || err != nil {
		return false
	}
	defer file.Close()
	return os.Remove(file.Name()) == nil
}

// list returns the names in a directory that begin so.
func list(dir *os.File, prefix string) (names []string, err error) {
	for {
		some, err := dir.Readdirnames(1024)
		for _, name := range some {
			if strings.HasPrefix(name, prefix) {
				names = append(names, name)
			}
		}
		if err == io.EOF {
			return names, nil
		}
		if err != nil {
			return nil, err
		}
	}
}

// openFile opens what may be anything: it follows no symbolic link, and does not
// wait for the other end of a FIFO or for the holder of a lease (F_SETLEASE(2const)).
func openFile(dir *os.File, name string, access int) (fd int, err error) {
	for {
		fd, err = openHere(int(dir.Fd()), name, access|unix.O_NOFOLLOW|unix.O_NONBLOCK|unix.O_NOCTTY|unix.O_CLOEXEC)
		if err != unix.EINTR {
			return fd, err
		}
	}
}

// isOurs says whether open(2) failed for a reason that is not the file's.
func isOurs(err error) bool {
	return err == unix.EMFILE || err == unix.ENFILE || err == unix.ENOMEM
}

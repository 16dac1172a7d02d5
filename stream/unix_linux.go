package stream

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// modeBeforeBind sets the permissions of a socket before it has a file: bind(2)
// makes the file with them, less the umask (unix_bind_bsd in net/unix/af_unix.c).
// After bind it would be open to others for a moment.
func modeBeforeBind(mode fs.FileMode) func(network, address string, c syscall.RawConn) error {
	return func(_, _ string, c syscall.RawConn) error {
		var err error
		if cerr := c.Control(func(fd uintptr) { err = unix.Fchmod(int(fd), uint32(mode.Perm())) }); cerr != nil {
			return cerr
		}
		return os.NewSyscallError("fchmod", err)
	}
}

// settle gives the file of a socket that was just bound its owner, and then its
// mode. It holds on to the file itself, so that whoever may write to the
// directory cannot have another one changed in its place.
func settle(path string, bound fs.FileInfo, a access) error {
	fd, err := unix.Open(path, unix.O_PATH|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return &fs.PathError{Op: "open", Path: path, Err: err}
	}
	f := os.NewFile(uintptr(fd), path)
	defer f.Close()
	now, err := f.Stat()
	if err != nil {
		return err
	}
	st := now.Sys().(*syscall.Stat_t)
	if !os.SameFile(now, bound) || now.Mode().Type() != fs.ModeSocket || now.Mode().Perm()&^a.mode != 0 || int(st.Uid) != os.Geteuid() {
		return fmt.Errorf("%s was replaced while it was made: use a directory that only its owner writes to", path)
	}
	if a.owner != noIDs {
		err := unix.Fchownat(fd, "", a.owner.uid, a.owner.gid, unix.AT_EMPTY_PATH)
		if errors.Is(err, unix.EPERM) {
			return fmt.Errorf("chown to %d:%d: %w: it needs CAP_CHOWN, or, for the group alone, to be in it", a.owner.uid, a.owner.gid, err)
		}
		if err != nil {
			return fmt.Errorf("chown to %d:%d: %w", a.owner.uid, a.owner.gid, err)
		}
	}
	if now.Mode().Perm() == a.mode.Perm() {
		return nil
	}
	err = unix.Fchmodat(fd, "", uint32(a.mode.Perm()), unix.AT_EMPTY_PATH) // Linux 6.6
	if err == nil {
		return nil
	}
	return os.Chmod(fmt.Sprintf("/proc/self/fd/%d", fd), a.mode.Perm())
}

// lockDirOf takes an advisory lock on the directory of path.
func lockDirOf(ctx context.Context, path string) (unlock func(), err error) {
	const patience, pause = 2 * time.Second, 10 * time.Millisecond
	dir, err := os.Open(filepath.Dir(path))
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	for {
		err := unix.Flock(int(dir.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		if err == nil {
			return func() { dir.Close() }, nil
		}
		if !errors.Is(err, unix.EWOULDBLOCK) && !errors.Is(err, unix.EINTR) || !sleep(ctx, pause) {
			dir.Close()
			return nil, fmt.Errorf("lock the directory %s, which another process may have locked: %w", dir.Name(), err)
		}
	}
}

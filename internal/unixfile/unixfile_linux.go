package unixfile

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// modeBeforeBind sets the permissions of a socket before it has a file: bind(2)
// makes the file with them, less the umask (unix_bind_bsd in net/unix/af_unix.c).
// After bind it would be open to others for a moment.
func modeBeforeBind(mode fs.FileMode) Control {
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
// directory cannot have another one changed in its place: it must be a socket of
// this user, without a permission that it was not born with.
func settle(path string, born, mode fs.FileMode, o owner) (fs.FileInfo, error) {
	fd, err := unix.Open(path, unix.O_PATH|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, os.NewSyscallError("open the socket's file", err)
	}
	f := os.NewFile(uintptr(fd), path)
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return nil, err
	}
	uid := int(info.Sys().(*syscall.Stat_t).Uid)
	if info.Mode().Type() != fs.ModeSocket || uid != os.Geteuid() || info.Mode().Perm()&^born != 0 {
		return nil, errors.New("another process has replaced the socket's file: use a directory that only this user writes to")
	}
	if o != nobody {
		if err := unix.Fchownat(fd, "", o.uid, o.gid, unix.AT_EMPTY_PATH); err != nil {
			return info, refused(o, err)
		}
	}
	if info.Mode().Perm() == mode {
		return info, nil
	}
	return info, os.NewSyscallError("chmod", chmod(fd, mode))
}

func refused(o owner, err error) error {
	if errors.Is(err, unix.EPERM) {
		return fmt.Errorf("give the file to %s: %w: that takes CAP_CHOWN, unless it is to a group this user is in", o, err)
	}
	return fmt.Errorf("give the file to %s: %w", o, err)
}

// chmod sets the mode of an O_PATH descriptor, which fchmod(2) does not take.
func chmod(fd int, mode fs.FileMode) error {
	err := unix.Fchmodat(fd, "", uint32(mode), unix.AT_EMPTY_PATH) // Linux 6.6
	if err == nil {
		return nil
	}
	return unix.Chmod("/proc/self/fd/"+strconv.Itoa(fd), uint32(mode))
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

// sleep waits for d and says whether ctx lasted so long.
func sleep(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-ctx.Done():
		return false
	}
}

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

// hand gives a new socket file its owner, and back what the umask took of its
// mode. The path is looked up once: whoever can write to the directory could
// put a link to something else there.
func hand(path string, o owner, mode fs.FileMode) (fs.FileInfo, error) {
	fd, err := unix.Open(path, unix.O_PATH|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, os.NewSyscallError("open the socket's file", err)
	}
	f := os.NewFile(uintptr(fd), path)
	defer f.Close()
	info, err := f.Stat()
	switch {
	case err != nil:
		return nil, err
	case info.Mode().Type() != fs.ModeSocket:
		return nil, errors.New("another process has put something else in the place of the socket's file")
	}
	if o != (owner{-1, -1}) {
		if err := unix.Fchownat(fd, "", o.uid, o.gid, unix.AT_EMPTY_PATH); err != nil {
			return info, fmt.Errorf("give the file to %s: %w: that takes CAP_CHOWN, unless it is to a group this user is in", o, err)
		}
	}
	if info.Mode().Perm() == mode && o == (owner{-1, -1}) {
		return info, nil
	}
	if err := unix.Chmod("/proc/self/fd/"+strconv.Itoa(fd), uint32(mode)); err != nil { // fchmod(2) takes no O_PATH descriptor
		return info, os.NewSyscallError("chmod", err)
	}
	return info, nil
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

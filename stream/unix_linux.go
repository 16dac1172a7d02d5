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

package stream

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"time"

	"golang.org/x/sys/unix"
)

// bindWithMode binds on a thread with a umask of its own: chmod after bind
// would leave the socket open to others for a moment, and the process's umask
// belongs to all its threads.
func bindWithMode(ctx context.Context, lc net.ListenConfig, network, path string, mode fs.FileMode) (ln net.Listener, err error) {
	done := make(chan struct{})
	go func() {
		defer close(done)
		runtime.LockOSThread() // never unlocked: the thread ends with the goroutine
		if err = unix.Unshare(unix.CLONE_FS); err != nil {
			err = fmt.Errorf("unshare the umask: %w", err)
			return
		}
		unix.Umask(int(^mode & 0o777))
		ln, err = lc.Listen(ctx, network, path)
	}()
	<-done
	return ln, err
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
			return nil, fmt.Errorf("lock the directory %s: %w", dir.Name(), err)
		}
	}
}

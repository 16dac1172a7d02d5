//go:build unix

package env

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"

	"github.com/fivetuple/fivetuple/internal/statedir"
)

// lockWait is how long to wait for other runs, each of which takes milliseconds.
const lockWait = 10 * time.Second

// lock waits until no other run of this user is under way. The lock is not on
// the project's file: there may be several of one project, editors replace
// files, and whoever may read a file may lock it.
func lock(ctx context.Context) (unlock func(), err error) {
	path, err := statedir.Path("ports-env.lock")
	if err != nil {
		return nil, err
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return nil, err
	}
	f, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, err
	}
	if err := wait(ctx, f); err != nil {
		f.Close()
		return nil, err
	}
	return func() { f.Close() }, nil
}

func wait(ctx context.Context, f *os.File) error {
	ctx, cancel := context.WithTimeoutCause(ctx, lockWait,
		fmt.Errorf("another run has kept %s locked for %v: see who with `fuser -v %[1]s`, and end it", f.Name(), lockWait))
	defer cancel()
	again := time.NewTicker(5 * time.Millisecond)
	defer again.Stop()
	for {
		err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		switch {
		case err == nil:
			return nil
		case err != unix.EWOULDBLOCK && err != unix.EINTR:
			return &os.PathError{Op: "flock", Path: f.Name(), Err: err}
		}
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-again.C:
		}
	}
}

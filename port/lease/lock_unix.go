//go:build unix

package lease

import (
	"context"
	"errors"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// fileLock lets one process at a time change the registry. Unlike SQLite's own
// lock it wakes those who wait, in turn, and the kernel tells who has it. It is
// not safe for use by several goroutines.
type fileLock struct {
	path string
	file *os.File // nil until first used, and after one was given up
}

// lock waits for the lock up to the given time. The error of a lock that others
// keep is [os.ErrDeadlineExceeded].
func (l *fileLock) lock(ctx context.Context, wait time.Duration) error {
	for {
		if err := l.lockFile(ctx, wait); err != nil {
			return err
		}
		locked, err := l.file.Stat()
		if err != nil {
			return err
		}
		if now, err := os.Stat(l.path); err == nil && os.SameFile(locked, now) {
			return nil
		}
		l.close() // it was removed, and others lock another one
	}
}

func (l *fileLock) lockFile(ctx context.Context, wait time.Duration) error {
	if l.file == nil {
		f, err := os.OpenFile(l.path, os.O_CREATE|os.O_RDWR, 0o600)
		if err != nil {
			return err
		}
		l.file = f
	}
	err := flock(l.file, unix.LOCK_EX|unix.LOCK_NB)
	if !errors.Is(err, unix.EWOULDBLOCK) {
		return err
	}
	f := l.file
	locked := make(chan error, 1)
	go func() { locked <- flock(f, unix.LOCK_EX) }()
	timeout := time.NewTimer(wait)
	defer timeout.Stop()
	select {
	case err := <-locked:
		return err
	case <-ctx.Done():
		err = ctx.Err()
	case <-timeout.C:
		err = os.ErrDeadlineExceeded
	}
	// Whoever waits in the kernel cannot be called back: when it gets the lock, it is to let it go.
	l.file = nil
	go func() { <-locked; f.Close() }()
	return err
}

func (l *fileLock) unlock() { flock(l.file, unix.LOCK_UN) }

// setDirty notes that whoever has the lock is in the middle of something, or
// no longer is. It can be lost only to a full disk, or with the machine.
func (l *fileLock) setDirty(dirty bool) error {
	if dirty {
		_, err := l.file.WriteAt([]byte("changing"), 0)
		return err
	}
	return l.file.Truncate(0)
}

// isDirty says whether the last one who had the lock was killed in the middle of something.
func (l *fileLock) isDirty() bool {
	info, err := l.file.Stat()
	return err != nil || info.Size() > 0
}

func (l *fileLock) close() error {
	if l.file == nil {
		return nil
	}
	f := l.file
	l.file = nil
	return f.Close()
}

func flock(f *os.File, how int) error {
	for {
		if err := unix.Flock(int(f.Fd()), how); err != unix.EINTR {
			return err
		}
	}
}

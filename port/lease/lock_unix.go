//go:build unix

package lease

import (
	"context"
	"errors"
	"io"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// fileLock lets one process at a time change the registry. Unlike SQLite's own
// lock it wakes those who wait, in turn, and the kernel tells who has it. It is
// not safe for use by several goroutines.
type fileLock struct {
	path    string
	file    *os.File // nil until first used
	waiting *waiter  // nil if nobody waits in the kernel
}

// waiter waits for the lock in the kernel, from where it cannot be called back.
type waiter struct {
	mu     sync.Mutex
	wanted bool // if not, the lock is let go at once
	done   chan error
}

// errUnwanted: the lock came when nobody wanted it any more.
var errUnwanted = errors.New("the lock was not wanted")

// lock waits for the lock up to the given time. The error of a lock that others
// keep is [os.ErrDeadlineExceeded].
func (l *fileLock) lock(ctx context.Context, wait time.Duration) error {
	for {
		err := l.lockFile(ctx, wait)
		if err == errUnwanted {
			continue
		}
		if err != nil {
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
	if l.waiting == nil {
		err := flock(l.file, unix.LOCK_EX|unix.LOCK_NB)
		if !errors.Is(err, unix.EWOULDBLOCK) {
			return err
		}
		l.waiting = waitFor(l.file)
	}
	w := l.waiting
	w.setWanted(true)
	timeout := time.NewTimer(wait)
	defer timeout.Stop()
	var err error
	select {
	case err := <-w.done:
		l.waiting = nil
		return err
	case <-ctx.Done():
		err = ctx.Err()
	case <-timeout.C:
		err = os.ErrDeadlineExceeded
	}
	w.setWanted(false)
	select {
	case err := <-w.done: // in the last moment
		l.waiting = nil
		return err
	default:
		return err
	}
}

func waitFor(f *os.File) *waiter {
	w := &waiter{wanted: true, done: make(chan error, 1)}
	go func() {
		err := flock(f, unix.LOCK_EX)
		w.mu.Lock()
		defer w.mu.Unlock()
		if !w.wanted {
			flock(f, unix.LOCK_UN)
			err = errUnwanted
		}
		w.done <- err
	}()
	return w
}

func (w *waiter) setWanted(wanted bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.wanted = wanted
}

func (l *fileLock) unlock() { flock(l.file, unix.LOCK_UN) }

// setDirty notes that whoever has the lock is in the middle of something, or no
// longer is. The file keeps its byte, so that this works on a full disk.
func (l *fileLock) setDirty(dirty bool) error {
	mark := []byte{clean}
	if dirty {
		mark[0] = clean + 1
	}
	_, err := l.file.WriteAt(mark, 0)
	return err
}

const clean = '0'

// isDirty says whether the last one who had the lock did not come to an end.
func (l *fileLock) isDirty() bool {
	var mark [1]byte
	n, err := l.file.ReadAt(mark[:], 0)
	return n == 1 && mark[0] != clean || err != nil && err != io.EOF
}

func (l *fileLock) close() error {
	f, w := l.file, l.waiting
	l.file, l.waiting = nil, nil
	switch {
	case f == nil:
		return nil
	case w == nil:
		return f.Close()
	}
	w.setWanted(false)
	go func() { <-w.done; f.Close() }() // when whoever has the lock now gives it back
	return nil
}

func flock(f *os.File, how int) error {
	for {
		if err := unix.Flock(int(f.Fd()), how); err != unix.EINTR {
			return err
		}
	}
}

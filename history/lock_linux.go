package history

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"

	"golang.org/x/sys/unix"
)

// A run that is alive holds a lock on the byte of its number in a file beside
// the database. The kernel drops it when the process dies in whatever way.
// (The database itself must not be opened for that: closing it would drop
// SQLite's own locks.)
const runsSuffix = "-runs"

// lockRun marks the run as alive until it is closed or the process ends.
func lockRun(path string, run int64) (io.Closer, error) {
	f, err := os.OpenFile(path+runsSuffix, os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, err
	}
	l := unix.Flock_t{Type: unix.F_WRLCK, Start: run, Len: 1}
	if err := unix.FcntlFlock(f.Fd(), unix.F_OFD_SETLK, &l); err != nil {
		return nil, errors.Join(fmt.Errorf("lock byte %d of %s: %w", run, f.Name(), err), f.Close())
	}
	return f, nil
}

// aliveRuns returns those of the runs, which did not end properly, whose process is alive.
func aliveRuns(path string, runs []int64) (map[int64]bool, error) {
	alive := map[int64]bool{}
	f, err := os.Open(path + runsSuffix)
	if errors.Is(err, fs.ErrNotExist) {
		return alive, nil
	}
	if err != nil {
		return nil, err
	}
	defer f.Close()
	for _, run := range runs {
		l := unix.Flock_t{Type: unix.F_WRLCK, Start: run, Len: 1}
		if err := unix.FcntlFlock(f.Fd(), unix.F_OFD_GETLK, &l); err != nil {
			return nil, fmt.Errorf("query the lock of byte %d of %s: %w", run, f.Name(), err)
		}
		if l.Type != unix.F_UNLCK {
			alive[run] = true
		}
	}
	return alive, nil
}

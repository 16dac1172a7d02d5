package stream

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"

	"github.com/fivetuple/fivetuple/sockopt"
)

// unixListener removes its socket file when it is closed, but not a file that
// has taken its place.
type unixListener struct {
	*net.UnixListener
	path string
	file fs.FileInfo
	keep atomic.Bool
	once sync.Once // a later file may get the same inode number
}

// Close implements net.Listener.
func (l *unixListener) Close() error {
	l.once.Do(func() {
		if l.keep.Load() {
			return
		}
		if now, err := os.Lstat(l.path); err == nil && os.SameFile(now, l.file) {
			os.Remove(l.path)
		}
	})
	return l.UnixListener.Close()
}

// SetUnlinkOnClose says whether Close removes the socket file.
func (l *unixListener) SetUnlinkOnClose(unlink bool) { l.keep.Store(!unlink) }

// access is who may connect to a Unix socket by its path.
type access struct {
	mode  fs.FileMode
	owner ids
}

// listenUnix binds a Unix socket to whose path nobody ever has more access than
// is given. A file in the way is looked at and replaced under a lock on the
// directory, so that of two processes that find it stale only one does.
func listenUnix(ctx context.Context, lc net.ListenConfig, network, path string, a access) (net.Listener, error) {
	ln, err := bindUnix(ctx, lc, network, path, a)
	if err != nil {
		return nil, fmt.Errorf("listen on unix %s: %w", path, err)
	}
	return ln, nil
}

func bindUnix(ctx context.Context, lc net.ListenConfig, network, path string, a access) (net.Listener, error) {
	if strings.HasPrefix(path, "@") {
		if a.owner != noIDs {
			return nil, errors.New("an abstract name has no owner: use a path, or let peers in by their ids")
		}
		return lc.Listen(ctx, network, path)
	}
	if _, err := os.Lstat(path); err == nil {
		unlock, err := lockDirOf(ctx, path)
		if err != nil {
			return nil, err
		}
		defer unlock()
		if err := removeStale(ctx, network, path); err != nil {
			return nil, err
		}
	}
	born := a.mode
	if a.owner != noIDs {
		born = 0 // until it is the owner's
	}
	lc.Control = sockopt.Combine(lc.Control, modeBeforeBind(born))
	ln, err := lc.Listen(ctx, network, path)
	if err != nil {
		return nil, err
	}
	l := &unixListener{UnixListener: ln.(*net.UnixListener), path: path}
	l.UnixListener.SetUnlinkOnClose(false)
	if l.file, err = os.Lstat(path); err == nil {
		err = settle(path, l.file, a)
	}
	if err != nil {
		l.Close()
		return nil, err
	}
	return l, nil
}

// removeStale removes the socket file of a server that is gone.
func removeStale(ctx context.Context, network, path string) error {
	info, err := os.Lstat(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil
	case err != nil:
		return err
	case info.Mode().Type() != fs.ModeSocket:
		return fmt.Errorf("%w: the path is a %s, not a socket: choose another", fs.ErrExist, describe(info.Mode()))
	}
	var d net.Dialer
	conn, err := d.DialContext(ctx, network, path)
	switch {
	case err == nil:
		conn.Close()
		return syscall.EADDRINUSE
	case errors.Is(err, syscall.ECONNREFUSED):
		return os.Remove(path)
	}
	if errors.Is(err, fs.ErrPermission) {
		return fmt.Errorf("%w: a socket of another user is there: remove it, or choose another path", err)
	}
	// EPROTOTYPE: a live socket of another type. EAGAIN: a full backlog.
	return fmt.Errorf("%w (%w)", syscall.EADDRINUSE, err)
}

func describe(m fs.FileMode) string {
	switch {
	case m.IsDir():
		return "directory"
	case m.IsRegular():
		return "file"
	case m.Type() == fs.ModeSymlink:
		return "symbolic link"
	}
	return "special file"
}

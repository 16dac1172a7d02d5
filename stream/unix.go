package stream

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"strings"
	"syscall"
)

// unixListener removes its socket file when it is closed, but not a file that
// has taken its place.
type unixListener struct {
	*net.UnixListener
	path string
	file fs.FileInfo
}

// Close implements net.Listener.
func (l *unixListener) Close() error {
	if now, err := os.Lstat(l.path); err == nil && os.SameFile(now, l.file) {
		os.Remove(l.path)
	}
	return l.UnixListener.Close()
}

// listenUnix binds a Unix socket with the given mode from the first moment on.
// The directory is locked meanwhile, so that of two processes that find a
// stale file only one replaces it.
func listenUnix(ctx context.Context, lc net.ListenConfig, network, path string, mode fs.FileMode) (net.Listener, error) {
	if strings.HasPrefix(path, "@") {
		ln, err := lc.Listen(ctx, network, path)
		if err != nil {
			return nil, fmt.Errorf("listen on unix %s: %w", path, err)
		}
		return ln, nil
	}
	unlock, err := lockDirOf(ctx, path)
	if err != nil {
		return nil, fmt.Errorf("listen on unix %s: %w", path, err)
	}
	defer unlock()
	if err := removeStale(ctx, network, path); err != nil {
		return nil, fmt.Errorf("listen on unix %s: %w", path, err)
	}
	ln, err := bindWithMode(ctx, lc, network, path, mode)
	if err != nil {
		return nil, fmt.Errorf("listen on unix %s: %w", path, err)
	}
	ul := ln.(*net.UnixListener)
	ul.SetUnlinkOnClose(false)
	file, err := os.Lstat(path)
	if err != nil {
		ul.Close()
		return nil, fmt.Errorf("listen on unix %s: %w", path, err)
	}
	return &unixListener{UnixListener: ul, path: path, file: file}, nil
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
	// EPROTOTYPE: a live socket of another type. EAGAIN: a full backlog.
	return fmt.Errorf("%w (%v)", syscall.EADDRINUSE, err)
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

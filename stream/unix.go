package stream

import (
	"context"
	"fmt"
	"net"
	"sync"
	"sync/atomic"

	"github.com/fivetuple/fivetuple/internal/unixfile"
	"github.com/fivetuple/fivetuple/sockopt"
)

// unixListener removes its socket file when it is closed, but not a file that
// has taken its place.
type unixListener struct {
	*net.UnixListener
	file *unixfile.File // nil if none is seen
	keep atomic.Bool
	once sync.Once
}

// Close implements net.Listener.
func (l *unixListener) Close() error {
	l.once.Do(func() {
		if !l.keep.Load() {
			l.file.Remove()
		}
	})
	return l.UnixListener.Close()
}

// SetUnlinkOnClose says whether Close removes the socket file.
func (l *unixListener) SetUnlinkOnClose(unlink bool) { l.keep.Store(!unlink) }

// listenUnix binds a Unix socket to a path or an abstract name.
func (lc ListenConfig) listenUnix(ctx context.Context, nlc net.ListenConfig, network, path string) (net.Listener, error) {
	bind := func(control unixfile.Control) (*net.UnixListener, error) {
		nlc.Control = sockopt.Combine(nlc.Control, control)
		ln, err := nlc.Listen(ctx, network, path)
		if err != nil {
			return nil, err
		}
		ul := ln.(*net.UnixListener)
		ul.SetUnlinkOnClose(false)
		return ul, nil
	}
	ul, file, err := unixfile.Bind(ctx, network, path, unixfile.Config{Mode: lc.Mode, Owner: lc.Owner}, bind)
	if err != nil {
		return nil, fmt.Errorf("listen on unix %s: %w", path, err)
	}
	return &unixListener{UnixListener: ul, file: file}, nil
}

//go:build !linux

package stream

import (
	"context"
	"io/fs"
	"net"
	"os"
)

// bindWithMode sets the mode after bind, as a thread cannot have its own umask here.
func bindWithMode(ctx context.Context, lc net.ListenConfig, network, path string, mode fs.FileMode) (net.Listener, error) {
	ln, err := lc.Listen(ctx, network, path)
	if err != nil {
		return nil, err
	}
	if err := os.Chmod(path, mode); err != nil {
		ln.Close()
		return nil, err
	}
	return ln, nil
}

// lockDirOf does nothing where directories cannot be locked.
func lockDirOf(context.Context, string) (unlock func(), err error) { return func() {}, nil }

//go:build !linux

package stream

import (
	"context"
	"io/fs"
	"os"
	"syscall"
)

// modeBeforeBind does nothing where a socket without a file has no permissions:
// they are set after bind.
func modeBeforeBind(fs.FileMode) func(network, address string, c syscall.RawConn) error { return nil }

// settle gives the file of a socket its owner and mode, by its path.
func settle(path string, _ fs.FileInfo, a access) error {
	if a.owner != noIDs {
		if err := os.Lchown(path, a.owner.uid, a.owner.gid); err != nil {
			return err
		}
	}
	return os.Chmod(path, a.mode.Perm())
}

// lockDirOf does nothing where directories cannot be locked.
func lockDirOf(context.Context, string) (unlock func(), err error) { return func() {}, nil }

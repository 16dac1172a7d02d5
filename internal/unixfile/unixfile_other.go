//go:build !linux

package unixfile

import (
	"context"
	"fmt"
	"io/fs"
	"os"
)

// modeBeforeBind does nothing where a socket without a file has no permissions:
// they are set after bind.
func modeBeforeBind(fs.FileMode) Control { return nil }

// settle gives the file of a socket that was just bound its owner and mode, by
// its path.
func settle(path string, _, mode fs.FileMode, o owner) (fs.FileInfo, error) {
	info, err := os.Lstat(path)
	if err != nil {
		return nil, err
	}
	if o != nobody {
		if err := os.Lchown(path, o.uid, o.gid); err != nil {
			return info, fmt.Errorf("give the file to %s: %w", o, err)
		}
	}
	return info, os.Chmod(path, mode)
}

// lockDirOf does nothing where directories cannot be locked.
func lockDirOf(context.Context, string) (unlock func(), err error) { return func() {}, nil }

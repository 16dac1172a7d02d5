//go:build !linux

package stream

import (
	"context"
	"io/fs"
	"syscall"
)

// modeBeforeBind does nothing where a socket without a file has no permissions:
// they are set after bind.
func modeBeforeBind(fs.FileMode) func(network, address string, c syscall.RawConn) error { return nil }

// lockDirOf does nothing where directories cannot be locked.
func lockDirOf(context.Context, string) (unlock func(), err error) { return func() {}, nil }

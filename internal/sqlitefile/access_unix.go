//go:build unix

package sqlitefile

import (
	"io/fs"

	"golang.org/x/sys/unix"
)

// SQLite says only that it is unable to open a file. This says why beforehand,
// by faccessat(2), as opening and closing it would drop SQLite's locks.

func checkReadable(path string) error { return access(path, unix.R_OK) }

func checkWritable(path string) error { return access(path, unix.R_OK|unix.W_OK) }

func access(path string, mode uint32) error {
	if err := unix.Faccessat(unix.AT_FDCWD, path, mode, unix.AT_EACCESS); err != nil {
		return &fs.PathError{Op: "access", Path: path, Err: err}
	}
	return nil
}

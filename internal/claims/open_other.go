//go:build unix && !linux

package claims

import "golang.org/x/sys/unix"

func openHere(dir int, name string, flags int) (int, error) {
	return unix.Openat(dir, name, flags, 0)
}

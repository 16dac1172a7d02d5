//go:build !linux

package owner

import (
	"context"
	"errors"
	"fmt"
	"runtime"
)

func unsupported(what string) error {
	return fmt.Errorf("%s: needs Linux's /proc, not there on %s: %w", what, runtime.GOOS, errors.ErrUnsupported)
}

func search(context.Context, map[uint32]bool) (Found, error) {
	return Found{}, unsupported("find the holders of sockets")
}

func processOf(pid int) (Process, error) {
	return Process{}, unsupported(fmt.Sprintf("describe process %d", pid))
}

func alive(Process) bool { return true }

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

func caller() (Process, error) { return Process{}, unsupported("describe the parent") }

func alive(Process) bool { return true }

func wait(context.Context, Process) error { return unsupported("watch a process") }

func view() (string, error) { return "", unsupported("read the boot and the namespaces") }

//go:build !linux

package owner

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"time"
)

func unsupported(what string) error {
	return fmt.Errorf("%s: needs Linux's /proc, not there on %s: %w", what, runtime.GOOS, errors.ErrUnsupported)
}

type finder struct{}

func (*finder) searchAll(context.Context) ([]table, int, error) {
	return nil, 0, unsupported("find the holders of sockets")
}

func (*finder) prepare() {}

func (*finder) search(context.Context, *groups, []uint32) ([]table, int, error) {
	return nil, 0, unsupported("look at processes")
}

func (*finder) unseen() string { return "" }

func (*finder) close() {}

func processOf(pid int) (Process, error) {
	return Process{}, unsupported(fmt.Sprintf("describe process %d", pid))
}

func caller() (Process, error) { return Process{}, unsupported("describe the parent") }

func alive(Process) bool { return true }

func wait(context.Context, Process) error { return unsupported("watch a process") }

func view() (string, error) { return "", unsupported("read the boot and the namespaces") }

func (*finder) cgroup(uint64) (Cgroup, bool) { return Cgroup{}, false }

func cgroupOf(int) (Cgroup, error) { return Cgroup{}, unsupported("find the cgroup of a process") }

func ancestors(int) ([]Process, error) { return nil, unsupported("find the ancestors of a process") }

func commandLine(int) ([]string, error) { return nil, unsupported("read a command line") }

func started(Process) (time.Time, error) {
	return time.Time{}, unsupported("find when a process started")
}

func open(Holder) (int, error) { return -1, unsupported("open another process's descriptor") }

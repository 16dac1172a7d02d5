package owner

import (
	"errors"
	"fmt"
	"io/fs"
	"strconv"

	"golang.org/x/sys/unix"
)

func open(h Holder) (int, error) {
	if err := ownProc(); err != nil { // the PID would be another's
		return -1, err
	}
	id, flags := h.PID, 0
	if h.Thread != 0 {
		id, flags = h.Thread, unix.O_EXCL // PIDFD_THREAD
	}
	process, err := unix.PidfdOpen(id, flags)
	switch {
	case err == unix.ESRCH:
		return -1, fmt.Errorf("it has ended: %w", fs.ErrNotExist)
	case err == unix.ENOSYS || err == unix.EINVAL && h.Thread != 0:
		return -1, fmt.Errorf("the kernel is too old: %w", errors.ErrUnsupported)
	case err != nil:
		return -1, fmt.Errorf("pidfd_open: %w", err)
	}
	defer unix.Close(process)
	if !h.Alive() || h.Thread != 0 && !isThreadOf(h.Thread, h.PID) { // or so was what has just been opened
		return -1, fmt.Errorf("it has ended: %w", fs.ErrNotExist)
	}
	fd, err := unix.PidfdGetfd(process, h.FD, 0)
	switch err {
	case nil:
		return fd, nil
	case unix.EBADF:
		return -1, fmt.Errorf("it is closed: %w", fs.ErrNotExist)
	case unix.ESRCH:
		return -1, fmt.Errorf("it has ended: %w", fs.ErrNotExist)
	case unix.ENOSYS:
		return -1, fmt.Errorf("the kernel is older than Linux 5.6: %w", errors.ErrUnsupported)
	case unix.EPERM:
		return -1, fmt.Errorf("%w: %s", fs.ErrPermission, whyNotTraced())
	}
	return -1, fmt.Errorf("pidfd_getfd: %w", err)
}

func isThreadOf(thread, pid int) bool {
	return unix.Access("/proc/"+strconv.Itoa(pid)+"/task/"+strconv.Itoa(thread), unix.F_OK) == nil
}

// whyNotTraced says what this process lacks to trace another (ptrace(2)).
func whyNotTraced() string {
	scope, _ := readFile(unix.AT_FDCWD, "/proc/sys/kernel/yama/ptrace_scope") // of Yama, where that is in use
	traces := hasCapability(unix.CAP_SYS_PTRACE)
	switch {
	case len(scope) > 0 && scope[0] == '3':
		return "kernel.yama.ptrace_scope is 3, which forbids it to all until the machine restarts"
	case traces:
		return "though this process has CAP_SYS_PTRACE: the other is outside its user namespace, or a security module or a filter of system calls forbids it"
	case len(scope) > 0 && scope[0] == '1':
		return "it needs CAP_SYS_PTRACE, also for processes of the same user, since kernel.yama.ptrace_scope is 1: run as root"
	default:
		return "it needs CAP_SYS_PTRACE: run as root"
	}
}

func hasCapability(number uint) bool {
	var sets [2]unix.CapUserData
	err := unix.Capget(&unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}, &sets[0])
	return err == nil && sets[number/32].Effective&(1<<(number%32)) != 0
}

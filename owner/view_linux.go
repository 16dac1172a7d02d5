package owner

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

func view() (string, error) {
	if err := ownProc(); err != nil {
		return "", err
	}
	boot, err := readFile(unix.AT_FDCWD, "/proc/sys/kernel/random/boot_id")
	if err != nil {
		return "", err
	}
	pid, err := namespace("pid")
	if err != nil {
		return "", err
	}
	time, err := namespace("time")
	if err != nil {
		return "", err
	}
	return string(bytes.TrimSpace(boot)) + "/" + pid + "/" + time, nil
}

// ownProc returns an error unless /proc shows processes by the PIDs that they
// have for this one.
func ownProc() error {
	status, err := readFile(unix.AT_FDCWD, "/proc/self/status")
	if err != nil {
		return fmt.Errorf("%w: is /proc mounted for this PID namespace?", err)
	}
	if !shows(status, os.Getpid()) {
		return errors.New("/proc shows another PID namespace than this process is in: mount it anew (mount -t proc proc /proc)")
	}
	return nil
}

// shows says whether /proc/self/status, read by the process pid, is that of its
// own PID namespace. NSpid lists the PIDs it has in the namespace of /proc, in
// its own, and in those between; Linux has it since 4.1.
func shows(status []byte, pid int) bool {
	pids := statusField(status, "NSpid:")
	if pids == nil {
		pids = statusField(status, "Pid:")
	}
	return len(pids) == 1 && string(pids[0]) == strconv.Itoa(pid)
}

// namespace returns the number of this process's namespace (namespaces(7)), and 0
// where the kernel has only one: before Linux 5.6 there were no time namespaces.
func namespace(kind string) (string, error) {
	path := "/proc/self/ns/" + kind
	link, err := os.Readlink(path) // "pid:[4026531836]"
	if errors.Is(err, fs.ErrNotExist) {
		return "0", nil
	}
	if err != nil {
		return "", err
	}
	return strings.TrimSuffix(strings.TrimPrefix(link, kind+":["), "]"), nil
}

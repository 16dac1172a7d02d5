package owner

import (
	"bytes"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

func ancestors(pid int) ([]Process, error) {
	dir, err := openProcess(pid)
	if err != nil {
		return nil, fmt.Errorf("find the ancestors of process %d: %w", pid, err)
	}
	defer func() { unix.Close(dir) }()
	st, err := readStat(dir)
	if err != nil {
		return nil, fmt.Errorf("find the ancestors of process %d: %w", pid, err)
	}
	var list []Process
	for st.parent != 0 {
		parent := int(st.parent)
		up, err := openProcess(parent)
		if err != nil {
			return list, nil
		}
		// The parent can have ended, and its PID be another's: then it is not
		// the parent any more.
		again, err := readStat(dir)
		if err == nil && again.parent != st.parent {
			unix.Close(up)
			st = again
			continue
		}
		unix.Close(dir)
		dir = up
		p, err := describeWithUser(dir, parent)
		if err != nil || slices.Contains(list, p) {
			return list, nil
		}
		list = append(list, p)
		if st, err = readStat(dir); err != nil {
			return list, nil
		}
	}
	return list, nil
}

func commandLine(pid int) ([]string, error) {
	b, err := readFile(unix.AT_FDCWD, "/proc/"+strconv.Itoa(pid)+"/cmdline")
	if err != nil {
		return nil, fmt.Errorf("read the command line of process %d: %w", pid, err)
	}
	if len(b) == 0 {
		return nil, nil
	}
	return strings.Split(string(bytes.TrimSuffix(b, []byte{0})), "\x00"), nil
}

func started(p Process) (time.Time, error) {
	var t unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_BOOTTIME, &t); err != nil {
		return time.Time{}, fmt.Errorf("find when %v started: %w", p, err)
	}
	age := time.Duration(t.Nano()) - time.Duration(p.Start)*(time.Second/ticksPerSecond)
	return time.Now().Round(0).Add(-age), nil
}

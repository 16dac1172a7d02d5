package lease

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"strings"
	"syscall"
)

// ownerOf reads proc_pid_stat(5). Start is the boot and the clock tick in it at
// which the process started, which no change of the clock moves.
func ownerOf(pid int) (Owner, error) {
	o, err := readOwner(pid)
	if errors.Is(err, syscall.ESRCH) { // it ended while it was looked at
		err = os.ErrNotExist
	}
	if err != nil {
		return Owner{}, fmt.Errorf("look up process %d: %w", pid, err)
	}
	return o, nil
}

func readOwner(pid int) (Owner, error) {
	boot, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return Owner{}, err
	}
	directory := fmt.Sprintf("/proc/%d/", pid)
	stat, err := os.ReadFile(directory + "stat")
	if err != nil {
		return Owner{}, err
	}
	command, ticks, err := parseStat(stat)
	if err != nil {
		return Owner{}, err
	}
	status, err := os.ReadFile(directory + "status")
	if err != nil {
		return Owner{}, err
	}
	return Owner{
		PID:     pid,
		Start:   strings.TrimSpace(string(boot)) + "/" + ticks,
		Command: command,
		User:    userName(effectiveUID(status)),
	}, nil
}

// parseStat returns the fields comm (2) and starttime (22). The first is in
// parentheses and can hold any byte, parentheses too.
func parseStat(stat []byte) (command, ticks string, err error) {
	open, end := bytes.IndexByte(stat, '('), bytes.LastIndexByte(stat, ')')
	if open < 0 || end < open {
		return "", "", fmt.Errorf("stat %q has no command", stat)
	}
	fields := bytes.Fields(stat[end+1:]) // from field 3
	const starttime = 22 - 3
	if len(fields) <= starttime {
		return "", "", fmt.Errorf("stat %q ends before the start time", stat)
	}
	return printable(string(stat[open+1 : end])), string(fields[starttime]), nil
}

// effectiveUID reads "Uid: real effective saved filesystem" of proc_pid_status(5).
func effectiveUID(status []byte) string {
	for line := range bytes.Lines(status) {
		if rest, ok := bytes.CutPrefix(line, []byte("Uid:")); ok {
			if fields := bytes.Fields(rest); len(fields) > 1 {
				return string(fields[1])
			}
		}
	}
	return ""
}

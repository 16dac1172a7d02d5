//go:build unix

package scan

import (
	"math"
	"syscall"
)

// resetOnClose makes a socket's connection end with a reset, so that it leaves no
// TIME_WAIT socket behind: SO_LINGER with no time, socket(7).
func resetOnClose(fd uintptr) error {
	return syscall.SetsockoptLinger(int(fd), syscall.SOL_SOCKET, syscall.SO_LINGER, &syscall.Linger{Onoff: 1})
}

// maxDescriptors returns how many files the process may have open: RLIMIT_NOFILE, getrlimit(2).
func maxDescriptors() int {
	var limit syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_NOFILE, &limit); err != nil {
		return math.MaxInt
	}
	return int(min(uint64(limit.Cur), math.MaxInt))
}

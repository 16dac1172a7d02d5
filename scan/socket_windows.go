package scan

import (
	"math"
	"syscall"
)

// resetOnClose makes a socket's connection end with a reset, so that it leaves no
// TIME_WAIT socket behind: SO_LINGER with no time.
func resetOnClose(fd uintptr) error {
	return syscall.SetsockoptLinger(syscall.Handle(fd), syscall.SOL_SOCKET, syscall.SO_LINGER, &syscall.Linger{Onoff: 1})
}

// maxDescriptors returns how many sockets the process may have open: as many as memory allows.
func maxDescriptors() int { return math.MaxInt }

//go:build unix

package tui

import (
	"syscall"
	"time"
)

// processorTime is what this process has used. A reading is measured by it: on a
// busy machine it may take long and still cost little.
func processorTime() time.Duration {
	var u syscall.Rusage
	if syscall.Getrusage(syscall.RUSAGE_SELF, &u) != nil {
		return 0
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

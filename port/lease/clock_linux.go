package lease

import (
	"time"

	"golang.org/x/sys/unix"
)

// sinceBoot reads the clock that runs since the machine was started, asleep or
// not, and that nobody can set (clock_gettime(2), CLOCK_BOOTTIME).
func sinceBoot() time.Duration {
	var ts unix.Timespec
	if unix.ClockGettime(unix.CLOCK_BOOTTIME, &ts) != nil {
		return 0
	}
	return time.Duration(ts.Nano())
}

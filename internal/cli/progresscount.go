package cli

import (
	"fmt"
	"sync/atomic"
	"time"

	"github.com/fivetuple/fivetuple/stats"
)

// progressCount is how far a transfer is; total is -1 where nobody knows.
type progressCount struct{ done, total atomic.Int64 }

func (c *progressCount) set(done, total int64) {
	c.done.Store(done)
	c.total.Store(total)
}

func (c *progressCount) line(verb string, took time.Duration) string {
	done, total := c.done.Load(), c.total.Load()
	rate := stats.FormatBytes(uint64(float64(done)/max(took.Seconds(), 1e-9))) + "/s"
	if total < 0 {
		return fmt.Sprintf("%s %s, %s", verb, stats.FormatBytes(uint64(done)), rate)
	}
	return fmt.Sprintf("%s %s of %s, %s%s", verb, stats.FormatBytes(uint64(done)), stats.FormatBytes(uint64(total)), rate, timeLeft(uint64(done), uint64(total), took))
}

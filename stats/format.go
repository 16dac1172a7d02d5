package stats

import (
	"fmt"
	"math"
	"math/bits"
	"time"
)

// FormatBytes writes a size for people: whole bytes below 1024, above that one
// decimal in the largest binary unit that keeps the number below 1024, rounded
// half up: "0 B", "1023 B", "1.0 KiB", "1.5 MiB", "16.0 EiB". What would round
// to 1024.0 is 1.0 of the next unit.
func FormatBytes(n uint64) string {
	if n < 1024 {
		return fmt.Sprintf("%d B", n)
	}
	const units = "KMGTPE"
	shift := (bits.Len64(n) - 1) / 10 * 10
	t := tenths(n, shift)
	if t >= 10240 {
		shift += 10
		t = 10
	}
	return fmt.Sprintf("%d.%d %ciB", t/10, t%10, units[shift/10-1])
}

// tenths is n in tenths of 1<<shift, rounded half up, without overflow.
func tenths(n uint64, shift int) uint64 {
	whole, rest := n>>shift, n&(1<<shift-1)
	return whole*10 + (rest*10+1<<(shift-1))>>shift
}

// FormatDuration writes a duration for people, in one or two units, rounded:
// "0 s", "850 ns", "12.3 µs", "4.5 ms", "59.9 s", "3m12s", "2h05m", "9d04h".
func FormatDuration(d time.Duration) string {
	switch {
	case d < 0:
		return "-" + FormatDuration(-max(d, -math.MaxInt64)) // the smallest has no opposite
	case d == 0:
		return "0 s"
	case d < time.Microsecond:
		return fmt.Sprintf("%d ns", d)
	case d < 999_950*time.Nanosecond:
		return decimal(d, time.Microsecond, "µs")
	case d < 999_950*time.Microsecond:
		return decimal(d, time.Millisecond, "ms")
	case d < 59_950*time.Millisecond:
		return decimal(d, time.Second, "s")
	}
	const day = 24 * time.Hour
	if s := d.Round(time.Second); s < time.Hour {
		return fmt.Sprintf("%dm%02ds", s/time.Minute, s%time.Minute/time.Second)
	}
	if m := d.Round(time.Minute); m < day {
		return fmt.Sprintf("%dh%02dm", m/time.Hour, m%time.Hour/time.Minute)
	}
	h := d.Round(time.Hour)
	return fmt.Sprintf("%dd%02dh", h/day, h%day/time.Hour)
}

func decimal(d, unit time.Duration, name string) string {
	t := (d*10 + unit/2) / unit
	return fmt.Sprintf("%d.%d %s", t/10, t%10, name)
}

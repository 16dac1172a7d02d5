// Package quota keeps what happens very often from being said very often.
package quota

import "time"

// PerSecond lets so many things happen in a second, counted from the first,
// and counts those it keeps back. The zero value is ready. It is not safe for
// use by several goroutines at once.
type PerSecond struct {
	start time.Time
	used  int
	over  uint64
}

// Take says whether one more may happen, of n in a second.
func (q *PerSecond) Take(now time.Time, n int) bool {
	if now.Sub(q.start) >= time.Second {
		q.start, q.used = now, 0
	}
	if q.used >= n {
		q.over++
		return false
	}
	q.used++
	return true
}

// KeptBack returns and forgets how many were kept back, once their second is past.
func (q *PerSecond) KeptBack(now time.Time) uint64 {
	if now.Sub(q.start) < time.Second {
		return 0
	}
	n := q.over
	q.over = 0
	return n
}

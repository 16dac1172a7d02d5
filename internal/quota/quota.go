// Package quota keeps what happens very often from being said very often.
package quota

import "time"

// PerSecond lets so many things happen in a second, counted from the first,
// and counts those it keeps back. The zero value is ready. It is not safe for
// use by several goroutines at once.
type PerSecond struct {
	start      time.Time
	used       int
	over, past uint64 // kept back in this second, and in those before
}

// Take says whether one more may happen, of n in a second.
func (q *PerSecond) Take(now time.Time, n int) bool {
	q.roll(now)
	if q.used >= n {
		q.over++
		return false
	}
	q.used++
	return true
}

// KeptBack returns and forgets how many were kept back in the seconds that are past.
func (q *PerSecond) KeptBack(now time.Time) uint64 {
	q.roll(now)
	n := q.past
	q.past = 0
	return n
}

// roll begins a new second if the last is over.
func (q *PerSecond) roll(now time.Time) {
	if now.Sub(q.start) >= time.Second {
		q.start, q.used = now, 0
		q.past, q.over = q.past+q.over, 0
	}
}

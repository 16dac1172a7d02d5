package quota

import "time"

// Bucket is a token bucket (the generic cell rate algorithm). The zero value is
// full, and it may be copied to take a token back. It is not safe for use by several goroutines at once.
type Bucket struct {
	next time.Time // when a token is due if none is saved
}

// Take takes a token, or says how long until there is one. rate is in tokens per
// second, of which a tenth of a second's worth is saved, at least one; 0 has no limit.
func (b *Bucket) Take(rate float64, now time.Time) time.Duration {
	if rate <= 0 {
		return 0
	}
	interval := time.Duration(float64(time.Second) / rate)
	burst := max(100*time.Millisecond, interval)
	if b.next.Before(now.Add(-burst)) {
		b.next = now.Add(-burst)
	}
	due := b.next.Add(interval)
	if due.After(now) {
		return due.Sub(now)
	}
	b.next = due
	return 0
}

// Backoff doubles a pause from Min to Max.
type Backoff struct {
	Min, Max, last time.Duration
}

// First says whether Next has not been called since the last Reset.
func (b *Backoff) First() bool { return b.last == 0 }

// Reset begins again with Min.
func (b *Backoff) Reset() { b.last = 0 }

// Next is how long to pause now.
func (b *Backoff) Next() time.Duration {
	b.last = min(max(2*b.last, b.Min), b.Max)
	return b.last
}

package faults

import (
	"math/rand/v2"
	"time"
)

// Line is one direction of one connection or session. It is not safe for use by
// several goroutines at once, but for Cut and Done.
type Line struct {
	config Config
	// Each kind of chance is of its own, so that the same datagrams are lost with jitter
	// and without.
	losses, jitters, reorders rand.PCG
	free                      time.Time // when the link has sent all it was given
	last                      time.Time // when the last one in order is due
	cut                       *cut
}

// Direction of a Line.
type Direction uint8

// The directions, as the client sees them.
const (
	Up   Direction = iota // to the target
	Down                  // to the client
)

// Line returns a direction of the conn-th connection. The same seed, number and direction
// have the same chances. CutAfter and CutTime count for this line alone: a
// connection has [Config.Lines].
func (c Config) Line(conn uint64, d Direction) *Line {
	l := &Line{config: c, cut: newCut(c)}
	for i, p := range []*rand.PCG{&l.losses, &l.jitters, &l.reorders} {
		p.Seed(c.Seed, conn<<3|uint64(d)<<2|uint64(i))
	}
	return l
}

// Lines returns both directions of the conn-th connection, which begins now. What
// CutAfter and CutTime leave it is for both together.
func (c Config) Lines(conn uint64) (up, down *Line) {
	up, down = c.Line(conn, Up), c.Line(conn, Down)
	down.cut = up.cut
	return up, down
}

// Datagram says when a datagram of so many bytes that comes now is to be sent on;
// false if it is lost. After a cut all are. Whatever is lost to chance takes no bandwidth.
func (l *Line) Datagram(now time.Time, size int) (time.Time, bool) {
	lost, late := l.loses(), l.isLate()
	way := l.way()
	if l.cut.isOver(now) {
		l.cut.fire()
		return now, false
	}
	if lost || l.config.Bandwidth > 0 && l.free.Sub(now) > maxQueue {
		return now, false
	}
	if l.cut.take(size) < size {
		l.cut.fire()
		return now, false
	}
	due := l.send(now, size).Add(way)
	if late { // and those behind it need not wait
		return due.Add(l.lateness()), true
	}
	l.last = later(l.last, due)
	return l.last, true
}

// segment is how long a segment of a stream takes from when it is sent, and
// false if it never arrives.
func (l *Line) segment() (time.Duration, bool) {
	way := l.way()
	if l.isLate() {
		way += l.lateness()
	}
	rto := minRTO + 2*l.config.Delay
	for range maxLosses {
		if !l.loses() {
			return way, true
		}
		way += min(rto, maxRTO)
		rto *= 2
	}
	return way, false
}

// send gives bytes to the link, which sends one after the other, and says when it has.
func (l *Line) send(now time.Time, size int) time.Time {
	if l.config.Bandwidth <= 0 {
		return now
	}
	l.free = later(l.free, now).Add(time.Duration(float64(size) * float64(time.Second) / float64(l.config.Bandwidth)))
	return l.free
}

// way is how long it takes from end to end.
func (l *Line) way() time.Duration {
	return l.config.Delay + time.Duration(share(&l.jitters)*float64(l.config.Jitter))
}

func (l *Line) loses() bool  { return share(&l.losses) < l.config.Loss }
func (l *Line) isLate() bool { return share(&l.reorders) < l.config.Reorder }

func (l *Line) lateness() time.Duration {
	return max(lateAtLeast, l.config.Delay/2) + l.config.Jitter
}

// share is at least 0 and below 1.
func share(p *rand.PCG) float64 { return float64(p.Uint64()>>11) / (1 << 53) }

func later(a, b time.Time) time.Time {
	if a.After(b) {
		return a
	}
	return b
}

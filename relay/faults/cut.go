package faults

import (
	"sync"
	"sync/atomic"
	"time"
)

// Cut cuts the connection of the line now: a Copy of either direction returns ErrCut
// at once, whatever it holds or waits for.
func (l *Line) Cut() {
	if l.cut != nil {
		l.cut.fire()
	}
}

// Done returns a channel that is closed when the connection has been cut. It is time
// for whoever holds its ends to reset both.
func (l *Line) Done() <-chan struct{} {
	if l.cut == nil {
		return nil
	}
	return l.cut.done
}

// cut is what the lines of a connection share. A nil one, of a connection in which
// nothing goes wrong, never comes.
type cut struct {
	counts bool // bytes
	left   atomic.Int64
	at     time.Time // zero is never
	once   sync.Once
	done   chan struct{}
}

func newCut(c Config) *cut {
	if !c.Active() {
		return nil
	}
	x := &cut{counts: c.CutAfter > 0, done: make(chan struct{})}
	x.left.Store(c.CutAfter)
	if c.CutTime > 0 {
		x.at = time.Now().Add(c.CutTime)
	}
	return x
}

func (x *cut) fire() { x.once.Do(func() { close(x.done) }) }

// take says how many of n bytes may still pass.
func (x *cut) take(n int) int {
	for x != nil && x.counts {
		left := x.left.Load()
		may := min(int64(n), left)
		if x.left.CompareAndSwap(left, left-may) {
			return int(may)
		}
	}
	return n
}

// isUsed says whether no byte more may pass.
func (x *cut) isUsed() bool { return x != nil && x.counts && x.left.Load() == 0 }

// isOver says whether it has come, or its time has.
func (x *cut) isOver(now time.Time) bool {
	if x == nil {
		return false
	}
	select {
	case <-x.done:
		return true
	default:
		return !x.at.IsZero() && !now.Before(x.at)
	}
}

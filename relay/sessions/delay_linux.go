package sessions

import (
	"time"
	"unsafe"

	"github.com/fivetuple/fivetuple/internal/poll"
	"github.com/fivetuple/fivetuple/relay/faults"
)

// maxQueue is how long a datagram waits at most for a rate's sake, of which it is
// a burst, too.
const maxQueue = 50 * time.Millisecond

// newLine is what a session has of a route's faults and rate; nil if nothing.
func newLine(r *Route, id uint64) *line {
	if !r.Faults.Active() && r.Rate <= 0 {
		return nil
	}
	n := &line{rate: r.Rate}
	if r.Faults.Active() {
		n.faults[faults.Up], n.faults[faults.Down] = r.Faults.Lines(id)
		n.cutTime = r.Faults.CutTime
	}
	return n
}

// delay sends a datagram of a session with a line on when it is due, or not at
// all.
func (l *loop) delay(c *session, down bool, b *byte, n int) {
	due, ok := l.due(c, down, n)
	if !ok {
		c.dropped++
		l.dropped++
		return
	}
	if due <= l.now {
		l.put(c, down, b, n, n)
		return
	}
	if !l.waiting.push(late{due: due, token: c.token(), down: down, b: append([]byte(nil), unsafe.Slice(b, n)...)}) {
		c.dropped++
		l.dropped++
	}
}

// due says when a datagram is to be sent on; false if it is lost.
func (l *loop) due(c *session, down bool, n int) (int64, bool) {
	w := c.line
	if w.cut {
		return 0, false
	}
	i := faults.Up
	if down {
		i = faults.Down
	}
	due := l.now
	if w.rate > 0 {
		due = max(due, w.next[i])
		if due-l.now > int64(maxQueue) {
			return 0, false
		}
		w.next[i] = due + int64(float64(n)/float64(w.rate)*float64(time.Second))
	}
	if w.faults[i] == nil {
		return due, true
	}
	now := time.Now()
	at, ok := w.faults[i].Datagram(now.Add(time.Duration(due-l.now)), n)
	if !ok && isClosed(w.faults[i].Done()) {
		w.cut = true
		l.cuts = append(l.cuts, c.token())
	}
	return l.now + int64(at.Sub(now)), ok
}

func isClosed(c <-chan struct{}) bool {
	select {
	case <-c:
		return true
	default:
		return false
	}
}

// endCut ends the sessions that a fault has cut.
func (l *loop) endCut() {
	for _, token := range l.cuts {
		if c := l.table.find(token); c != nil {
			l.end(c, causeCut, nil)
		}
	}
	l.cuts = l.cuts[:0]
}

// sendWaiting sends what is due now.
func (l *loop) sendWaiting() { l.sendLate(l.now) }

// sendAllWaiting sends what is delayed before its time: it would be lost.
func (l *loop) sendAllWaiting() { l.sendLate(poll.Never) }

func (l *loop) sendLate(until int64) {
	if len(l.waiting.heap) == 0 || l.waiting.next() > until {
		return
	}
	for len(l.waiting.heap) > 0 && l.waiting.next() <= until {
		d := l.waiting.pop()
		if c := l.table.find(d.token); c != nil {
			l.late = true
			l.put(c, d.down, unsafe.SliceData(d.b), len(d.b), len(d.b))
		}
	}
	l.flush()
}

// late is a datagram that waits.
type late struct {
	due   int64
	order uint64 // of two that are due at once the one that came first is sent first
	token uint64
	down  bool
	b     []byte
}

// waiting is a heap of datagrams by when they are due. It is bounded.
type waiting struct {
	heap  []late
	bytes int
	order uint64
}

// What may wait in a loop.
const (
	maxLate      = 1 << 16
	maxLateBytes = 32 << 20
)

// next is when the next is due; never if none waits.
func (w *waiting) next() int64 {
	if len(w.heap) == 0 {
		return poll.Never
	}
	return w.heap[0].due
}

// push returns false if there is no room.
func (w *waiting) push(d late) bool {
	if len(w.heap) >= maxLate || w.bytes+len(d.b) > maxLateBytes {
		return false
	}
	w.order++
	d.order = w.order
	w.bytes += len(d.b)
	w.heap = append(w.heap, d)
	for i := len(w.heap) - 1; i > 0; {
		up := (i - 1) / 2
		if !w.before(i, up) {
			break
		}
		w.heap[i], w.heap[up] = w.heap[up], w.heap[i]
		i = up
	}
	return true
}

func (w *waiting) pop() late {
	d, last := w.heap[0], len(w.heap)-1
	w.bytes -= len(d.b)
	w.heap[0], w.heap[last] = w.heap[last], late{}
	w.heap = w.heap[:last]
	for i := 0; ; {
		least := i
		for child := 2*i + 1; child <= 2*i+2 && child < last; child++ {
			if w.before(child, least) {
				least = child
			}
		}
		if least == i {
			break
		}
		w.heap[i], w.heap[least] = w.heap[least], w.heap[i]
		i = least
	}
	if last == 0 {
		w.heap = nil
	}
	return d
}

func (w *waiting) before(i, j int) bool {
	a, b := &w.heap[i], &w.heap[j]
	return a.due < b.due || a.due == b.due && a.order < b.order
}

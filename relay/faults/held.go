package faults

import (
	"io"
	"sync"
	"sync/atomic"
	"time"
)

const (
	segmentSize = 1460     // of TCP over IPv4 on Ethernet
	firstHeld   = 16 << 10 // bytes
	maxHeld     = 1 << 20
	maxRead     = 64 << 10
	maxPieces   = 4096
)

// held is what has been read and is not due: a ring of bytes, that one goroutine reads
// into and another writes from, and a list of when which are due.
type held struct {
	line    *Line
	piece   int // bytes that are sent at once
	limit   int // bytes
	began   time.Time
	written atomic.Int64
	stop    chan struct{} // closed when Copy has returned
	broken  chan struct{} // closed after why is set, of an end that has not to wait
	why     error
	arrived chan struct{} // for the writer, of 1: there is something new to look at
	freed   chan struct{} // for the reader: there is place

	mu         sync.Mutex
	ring       []byte
	head, tail int64   // of all bytes: written so far, read so far
	pieces     []piece // in the order of their due; those before first are gone
	first      int
	ready      int64 // of all bytes: due so far
	end        error // of src; nil: none yet
	endDue     time.Duration
}

// piece is the bytes up to end, counted from the first of all, and when they are
// due, since held began.
type piece struct {
	end int64
	due time.Duration
}

func newHeld(l *Line) *held {
	h := &held{
		line: l, piece: segmentSize, limit: maxHeld, began: time.Now(),
		stop: make(chan struct{}), broken: make(chan struct{}),
		arrived: make(chan struct{}, 1), freed: make(chan struct{}, 1),
	}
	if b := l.config.Bandwidth; b > 0 {
		h.piece = int(min(max(b/100, 1), segmentSize))
		under := (maxQueue + l.config.Delay + l.config.Jitter).Seconds() * float64(b)
		h.limit = int(min(max(under, segmentSize), maxHeld))
	}
	h.ring = make([]byte, min(firstHeld, h.limit))
	return h
}

// readFrom reads until the end, and says when what it has read is due.
func (h *held) readFrom(src io.Reader) {
	for empty, dead := 0, false; ; {
		b := h.place()
		if b == nil {
			return
		}
		n, err := src.Read(b)
		now := time.Now()
		if n > 0 {
			h.mu.Lock()
			h.tail += int64(n)
			h.mu.Unlock()
			empty = 0
		} else if empty++; err == nil && empty == 100 {
			err = io.ErrNoProgress
		}
		if n > 0 && !dead { // what follows a segment that never arrives fills the window
			dead = !h.schedule(now, n)
		}
		switch {
		case err == nil:
			continue
		case isOurs(err):
			h.why = err
			close(h.broken)
		case !dead:
			h.endAt(now, err)
		}
		return
	}
}

// place returns where to read to; nil if it is too late.
func (h *held) place() []byte {
	for {
		h.mu.Lock()
		size := int64(len(h.ring))
		if h.tail-h.head == size && len(h.ring) < h.limit {
			h.grow()
			size = int64(len(h.ring))
		}
		from := h.tail % size
		n := min(size-(h.tail-h.head), size-from, maxRead)
		b := h.ring[from : from+n]
		h.mu.Unlock()
		if n > 0 {
			return b
		}
		if !h.wait(h.freed) {
			return nil
		}
	}
}

// grow doubles the ring. The writer may still be at the old one, which stays as it is.
func (h *held) grow() {
	old := h.ring
	h.ring = make([]byte, min(2*len(old), h.limit))
	for at := h.head; at < h.tail; {
		part := old[at%int64(len(old)):]
		part = part[:min(int64(len(part)), h.tail-at)]
		for n := 0; n < len(part); {
			n += copy(h.ring[(at+int64(n))%int64(len(h.ring)):], part[n:])
		}
		at += int64(len(part))
	}
}

// schedule says when the last n bytes are due, which have come now; false if no more
// will ever be.
func (h *held) schedule(now time.Time, n int) bool {
	l := h.line
	end := h.tail - int64(n) // only this goroutine changes it
	for n > 0 {
		segment := min(n, segmentSize)
		n -= segment
		way, arrives := l.segment()
		if !arrives {
			h.setEnd(l.inOrder(now.Add(way)), ErrTimeout)
			return false
		}
		for segment > 0 {
			k := min(segment, h.piece)
			segment -= k
			end += int64(k)
			if !h.add(end, l.inOrder(l.send(now, k).Add(way))) {
				return false
			}
		}
	}
	h.tell(h.arrived)
	return true
}

// endAt has the end, which has come now, take its way like a segment.
func (h *held) endAt(now time.Time, err error) {
	way, arrives := h.line.segment()
	if !arrives {
		err = ErrTimeout
	}
	h.setEnd(h.line.inOrder(now.Add(way)), err)
}

func (h *held) setEnd(due time.Time, err error) {
	h.mu.Lock()
	h.end, h.endDue = err, due.Sub(h.began)
	h.mu.Unlock()
	h.tell(h.arrived)
}

// inOrder lets nothing overtake what is before it.
func (l *Line) inOrder(due time.Time) time.Time {
	l.last = later(l.last, due)
	return l.last
}

func (h *held) add(end int64, due time.Time) bool {
	p := piece{end, due.Sub(h.began)}
	for {
		h.mu.Lock()
		last := len(h.pieces) - 1
		full := len(h.pieces)-h.first == maxPieces
		switch {
		case last >= h.first && h.pieces[last].due == p.due:
			h.pieces[last].end = end
			full = false
		case !full:
			if h.first > 0 && len(h.pieces) == cap(h.pieces) {
				h.pieces = h.pieces[:copy(h.pieces, h.pieces[h.first:])]
				h.first = 0
			}
			h.pieces = append(h.pieces, p)
		}
		h.mu.Unlock()
		if !full {
			return true
		}
		h.tell(h.arrived)
		if !h.wait(h.freed) {
			return false
		}
	}
}

func (h *held) tell(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

func (h *held) wait(c chan struct{}) bool {
	select {
	case <-c:
		return true
	case <-h.stop:
		return false
	}
}

// writeTo writes what is due until the end, of which it returns the error but for io.EOF.
func (h *held) writeTo(dst io.Writer) error {
	t := time.NewTimer(0)
	defer t.Stop()
	for {
		b, wait, end := h.due()
		switch {
		case len(b) > 0:
			if err := h.write(dst, b); err != nil {
				return err
			}
			continue
		case end == io.EOF:
			return nil
		case end != nil:
			return end
		case wait > 0:
			t.Reset(wait)
		default:
			t.Stop()
		}
		select {
		case <-t.C:
		case <-h.arrived:
		case <-h.stop:
			return ErrCut
		}
	}
}

// due returns bytes that are due; or how long until there are, 0 if that is not
// known; or the end.
func (h *held) due() (b []byte, wait time.Duration, end error) {
	now := time.Since(h.began)
	h.mu.Lock()
	defer h.mu.Unlock()
	for h.first < len(h.pieces) && h.pieces[h.first].due <= now {
		h.ready = h.pieces[h.first].end
		if h.first++; h.first == len(h.pieces) {
			h.pieces, h.first = h.pieces[:0], 0
		}
	}
	switch {
	case h.ready > h.head:
		b = h.ring[h.head%int64(len(h.ring)):]
		return b[:min(int64(len(b)), h.ready-h.head)], 0, nil
	case h.first < len(h.pieces):
		return nil, h.pieces[h.first].due - now, nil
	case h.end != nil && h.endDue <= now:
		return nil, 0, h.end
	case h.end != nil:
		return nil, h.endDue - now, nil
	}
	return nil, 0, nil
}

// write writes as much as may pass before the cut.
func (h *held) write(dst io.Writer, b []byte) error {
	x := h.line.cut
	may := x.take(len(b))
	if may == 0 { // the other direction is writing the last of it, and cuts then
		select {
		case <-x.done:
		case <-h.stop:
		}
		return ErrCut
	}
	n, err := dst.Write(b[:may])
	h.written.Add(int64(n))
	h.mu.Lock()
	h.head += int64(n)
	h.mu.Unlock()
	h.tell(h.freed)
	if x.isUsed() {
		x.fire()
		return ErrCut
	}
	if err == nil && n < may {
		err = io.ErrShortWrite
	}
	return err
}

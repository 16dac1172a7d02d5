package loop

import (
	"sync"

	"github.com/fivetuple/fivetuple/internal/poll"
	"github.com/fivetuple/fivetuple/stream"
)

// queue is what waits to be written to one connection. It exists only while
// something waits.
type queue struct {
	waiting []segment
	size    int // what Send's part of it costs
}

// segment is a piece of a queue: a message, which is shared by queues, or the
// rest of an echo, in a buffer of the pool.
type segment struct {
	rest   []byte
	cost   int
	buffer []byte // nil for a message
}

// message is what is sent to one or many. It is copied once, when the first of
// them cannot take it at once.
type message struct {
	bytes []byte
	kept  []byte
}

// tail is what follows the first n bytes, in memory that stays.
func (m *message) tail(n int) []byte {
	if m.kept == nil {
		m.kept = append([]byte(nil), m.bytes...)
	}
	return m.kept[n:]
}

const defaultWriteQueue = 256 << 10

// place is what a waiting message takes of the limit besides its bytes.
const placeCost = 64

// send writes a message to a connection, or queues what it does not take.
func (l *loop) send(c *conn, m *message) error {
	if c.state != open {
		return stream.ErrNoConn
	}
	if len(m.bytes) == 0 {
		return nil
	}
	n := 0
	if c.queue == nil {
		var ok bool
		if n, ok = l.write(c, m.bytes, false); !ok {
			return stream.ErrNoConn
		}
		if n == len(m.bytes) {
			return nil
		}
	}
	limit := l.server.gate.Limits().WriteQueue
	if limit <= 0 {
		limit = defaultWriteQueue
	}
	cost := len(m.bytes) - n + placeCost
	if q := c.queue; q != nil && q.size > 0 && q.size+cost > limit {
		l.reset(c, causeSlow)
		return stream.ErrSlow
	}
	l.enqueue(c, segment{rest: m.tail(n), cost: cost})
	return nil
}

// keep queues the rest of an echo.
func (l *loop) keep(c *conn, b []byte) {
	buffer := getBuffer(len(b))
	l.enqueue(c, segment{rest: buffer[:copy(buffer, b)], buffer: buffer})
}

func (l *loop) enqueue(c *conn, s segment) {
	if c.queue == nil {
		c.queue = queues.Get().(*queue)
		l.wantRoom(c)
	}
	c.queue.waiting = append(c.queue.waiting, s)
	c.queue.size += s.cost
}

// wantRoom makes the poller tell when there is room to write, from now on. Not
// from the beginning: a Unix socket tells whenever the peer reads.
func (l *loop) wantRoom(c *conn) {
	if !c.is(tellsRoom) {
		c.flags |= tellsRoom
		l.poller.Change(int(c.fd), c.token(), interest|poll.Out)
	}
	l.arm(c)
}

// drainQueue writes what there is room for. It reports whether the connection
// still is; its queue is nil when all is written.
func (l *loop) drainQueue(c *conn) bool {
	q := c.queue
	for i := range q.waiting {
		s := &q.waiting[i]
		n, ok := l.write(c, s.rest, i < len(q.waiting)-1)
		if !ok {
			return false
		}
		s.rest = s.rest[n:]
		if len(s.rest) > 0 {
			q.drop(i)
			return true
		}
		q.size -= s.cost
		putBuffer(s.buffer)
		s.buffer = nil
	}
	l.freeQueue(c)
	return true
}

// drop forgets the first n segments, which are written.
func (q *queue) drop(n int) {
	left := copy(q.waiting, q.waiting[n:])
	clear(q.waiting[left:])
	q.waiting = q.waiting[:left]
}

var queues = sync.Pool{New: func() any { return new(queue) }}

func (l *loop) freeQueue(c *conn) {
	q := c.queue
	c.queue = nil
	for i := range q.waiting {
		putBuffer(q.waiting[i].buffer)
	}
	clear(q.waiting)
	*q = queue{waiting: q.waiting[:0]}
	if cap(q.waiting) <= 64 {
		queues.Put(q)
	}
}

// Buffers for the rest of an echo are of two sizes: most rests are either small
// or nearly all that was read.
const (
	smallBuffer = 8 << 10
	largeBuffer = 64 << 10
)

var (
	smallBuffers = sync.Pool{New: func() any { return new([smallBuffer]byte) }}
	largeBuffers = sync.Pool{New: func() any { return new([largeBuffer]byte) }}
)

func getBuffer(n int) []byte {
	if n <= smallBuffer {
		return smallBuffers.Get().(*[smallBuffer]byte)[:]
	}
	return largeBuffers.Get().(*[largeBuffer]byte)[:]
}

func putBuffer(b []byte) {
	switch len(b) {
	case smallBuffer:
		smallBuffers.Put((*[smallBuffer]byte)(b))
	case largeBuffer:
		largeBuffers.Put((*[largeBuffer]byte)(b))
	}
}

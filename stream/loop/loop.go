package loop

import (
	"math"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
	"unique"

	"github.com/fivetuple/fivetuple/internal/poll"
	"github.com/fivetuple/fivetuple/stats"
	"github.com/fivetuple/fivetuple/stream/gate"
)

// loop serves a share of the connections, with one goroutine. Others may look
// at and send to its connections under its mutex.
type loop struct {
	server *Server
	index  int
	poller *poll.Poller
	count  atomic.Int64 // connections

	mu       sync.Mutex
	table    table
	wheel    poll.Wheel
	now      int64         // the time of this turn
	wakeAt   int64         // until when it sleeps; awake if far in the past
	later    []uint64      // tokens of connections to go on with in the next turn
	events   []stats.Event // to be recorded by the loop, in order
	told     []told        // what connections said, to be passed on
	toldSize int
	frozen   chan struct{} // closed when it goes on; nil if it is not frozen
	parked   chan struct{} // told when the loop stands still to be frozen
	ended    bool          // nothing can be added

	accepts *gate.Acceptor

	// The goroutine's own.
	spare     []uint64
	passed    []told
	tells     []stats.Event
	fire      func(int)
	buf       []byte
	parkedFor chan struct{} // the frozen it has stood still for
}

const (
	awake = math.MinInt64

	// interest is what is to be known of every connection. Urgent data and the
	// peer's end make a short read not the last.
	interest = poll.In | poll.Pri | poll.RdHup | poll.Edge

	readSize     = 64 << 10 // what loopback TCP delivers in one segment
	readsPerTurn = 4        // bounds what a connection may have of a turn
	maxTold      = 1 << 20  // bounds what is read in a turn to be passed on

	dataEvery  = 10 * time.Second // between a connection's Data events
	retryWrite = time.Second      // TCP short of memory does not tell of room (tcp_mem, tcp(7))
)

func newLoop(s *Server, index int) (*loop, error) {
	p, err := poll.New()
	if err != nil {
		return nil, err
	}
	l := &loop{server: s, index: index, poller: p, wakeAt: awake, parked: make(chan struct{}, 1), buf: make([]byte, readSize)}
	l.fire = l.onTime
	l.accepts = s.gate.Acceptor(&l.mu, p, l.settle)
	return l, nil
}

// run is the loop's goroutine.
func (l *loop) run() {
	for timeout := time.Duration(0); ; {
		events := l.poller.Wait(timeout)
		l.mu.Lock()
		l.wakeAt = awake
		l.now = l.server.clock()
		for i := range events {
			l.dispatch(events[i].Token(), events[i].Ready())
		}
		l.continueLater()
		l.wheel.Advance(l.now, l.fire)
		if l.hasOutside() {
			l.mu.Unlock()
			l.doOutside()
			l.mu.Lock()
		}
		timeout = l.plan()
		l.mu.Unlock()
		if l.server.mode.Load() != running && !l.standStill() {
			return
		}
	}
}

// dispatch sees to one event.
func (l *loop) dispatch(token uint64, ready poll.Ready) {
	if c := l.table.find(token); c != nil {
		if ready&^(poll.In|poll.Out) != 0 {
			c.flags |= readOn
		}
		l.serve(c)
		return
	}
	l.accepts.Notice(token)
}

// goOn sees to a connection again in the next turn, though no event may come.
func (l *loop) goOn(c *conn) {
	c.flags |= readOn
	if !c.is(waits) {
		c.flags |= waits
		l.later = append(l.later, c.token())
	}
}

func (l *loop) continueLater() {
	now := l.later
	l.later = l.spare[:0]
	for _, token := range now {
		if c := l.table.find(token); c != nil && c.is(waits) {
			c.flags &^= waits
			l.serve(c)
		}
	}
	l.spare = now
}

// hasOutside says whether there is something to do without the mutex.
func (l *loop) hasOutside() bool {
	return l.accepts.Look(l.now) || len(l.told)+len(l.events) > 0
}

// doOutside does what must not be done with the mutex held: accepting, which
// gives connections to other loops; passing on what was said, to connections of
// other loops; and recording events.
func (l *loop) doOutside() {
	l.accepts.Accept()
	l.passOn()
	l.recordEvents()
}

func (l *loop) recordEvents() {
	l.mu.Lock()
	l.events, l.tells = l.tells[:0], l.events
	l.mu.Unlock()
	for i := range l.tells {
		l.server.events.Record(l.tells[i])
	}
	clear(l.tells)
	if cap(l.tells) > 256 {
		l.tells = nil
	}
}

// plan says how long to wait.
func (l *loop) plan() time.Duration {
	if len(l.later)+len(l.events)+len(l.told) > 0 {
		return 0
	}
	l.wakeAt = min(l.wheel.Next(), l.accepts.Due())
	if l.wakeAt == poll.Never {
		return -1
	}
	return time.Duration(max(l.wakeAt-l.server.clock(), 0))
}

// lock takes the mutex for another goroutine than the loop's own, when the loop
// is not frozen.
func (l *loop) lock() {
	l.mu.Lock()
	for l.frozen != nil {
		frozen := l.frozen
		l.mu.Unlock()
		<-frozen
		l.mu.Lock()
	}
	if l.wakeAt != awake {
		l.now = l.server.clock()
	}
}

// unlock gives it back and wakes the loop if it has something to do.
func (l *loop) unlock() {
	wake := l.wakeAt != awake && len(l.later)+len(l.events)+len(l.told) > 0
	l.mu.Unlock()
	if wake {
		l.poller.Wake()
	}
}

// each calls f on every connection that is, without holding the loop up for
// long.
func (l *loop) each(f func(c *conn)) {
	for i := 0; ; i++ {
		l.lock()
		if i >= len(l.table.chunks) {
			l.unlock()
			return
		}
		for j := range l.table.chunks[i] {
			if c := &l.table.chunks[i][j]; c.state != free {
				f(c)
			}
		}
		l.unlock()
	}
}

// end closes what is left when the loop's goroutine has returned.
func (l *loop) end() {
	l.each(func(c *conn) { l.reset(c, causeShutdown) })
	l.recordEvents()
	l.mu.Lock()
	defer l.mu.Unlock()
	l.accepts.Stop()
	l.ended = true
	l.poller.Close()
}

// note records an event soon, without the mutex, after those noted before.
func (l *loop) note(e stats.Event) {
	if l.server.Sink == nil {
		return
	}
	if e.Time.IsZero() {
		e.Time = time.Now()
	}
	l.events = append(l.events, e)
}

// add gives a connection a place, and waits for what happens to it. It is not
// nil even if that fails.
func (l *loop) add(n *gate.Newcomer) (*conn, error) {
	c := l.table.take()
	c.id, c.fd, c.remote, c.local = n.ID, int32(n.FD), n.Peer.Addr, unique.Make(n.Local)
	c.started, c.active, c.reported = l.now, l.now, l.now
	if n.Peer.Name != "" {
		c.extra = &extra{peerName: n.Peer.Name}
	}
	if n.TCP {
		c.flags |= isTCP
	} else {
		c.flags |= readOn
	}
	if n.Lingers {
		c.flags |= lingers
	}
	l.count.Add(1)
	l.server.gate.Put(c.id, gate.Place{Loop: uint32(l.index), Slot: c.slot})
	return c, l.poller.Add(n.FD, c.token(), interest)
}

// drop gives a connection's place back.
func (l *loop) drop(c *conn) {
	if c.queue != nil {
		l.freeQueue(c)
	}
	l.wheel.Clear(int(c.slot))
	l.table.release(c)
	l.count.Add(-1)
}

// arm sets when the connection is to be looked at, if nothing happens before.
func (l *loop) arm(c *conn) {
	limits := l.server.gate.Limits()
	due := poll.Never
	if c.state == closing {
		due = c.ends
	} else {
		if limits.IdleTimeout > 0 {
			due = min(due, c.active+int64(limits.IdleTimeout))
		}
		if limits.FirstByteTimeout > 0 && c.in == 0 {
			due = min(due, c.started+int64(limits.FirstByteTimeout))
		}
		if c.is(unreported) && l.server.Sink != nil {
			due = min(due, max(c.reported+int64(dataEvery), l.now))
		}
	}
	if c.queue != nil {
		due = min(due, l.now+int64(retryWrite))
	}
	if due != l.wheel.Due(int(c.slot)) {
		l.wheel.Set(int(c.slot), due)
		if due < l.wakeAt {
			l.poller.Wake()
		}
	}
}

// onTime sees to a connection whose time has come.
func (l *loop) onTime(slot int) {
	c := l.table.at(int32(slot))
	limits := l.server.gate.Limits()
	switch {
	case c.state == closing && l.now >= c.ends:
		l.close(c, c.cause, nil)
		return
	case c.state == closing:
	case limits.FirstByteTimeout > 0 && c.in == 0 && l.now-c.started >= int64(limits.FirstByteTimeout):
		l.close(c, causeNoFirstByte, nil)
		return
	case limits.IdleTimeout > 0 && l.now-c.active >= int64(limits.IdleTimeout):
		l.close(c, causeIdle, nil)
		return
	case c.is(unreported) && l.now-c.reported >= int64(dataEvery):
		c.flags &^= unreported
		c.reported = l.now
		l.note(stats.Event{Kind: stats.Data, Tuple: c.tuple(), Conn: c.id, BytesIn: c.in, BytesOut: c.out})
	}
	if c.queue != nil {
		gen := c.gen
		l.serve(c)
		if c.state == free || c.gen != gen {
			return
		}
	}
	l.arm(c)
}

// serve does what can be done for a connection now.
func (l *loop) serve(c *conn) {
	if c.state == closing {
		l.flush(c)
		return
	}
	if c.queue != nil {
		if !l.drainQueue(c) {
			return
		}
		if c.queue == nil && l.server.kind == echo {
			c.flags |= readOn // reading had stopped: what came was not looked at
		}
	}
	switch l.server.kind {
	case chargen:
		l.generate(c)
	case echo:
		l.echo(c)
	case discard:
		l.discard(c)
	default:
		l.listen(c)
	}
}

// read reads into the loop's buffer. It returns nothing when there is no more,
// or the connection has ended, which ended sees to.
func (l *loop) read(c *conn) []byte {
	n, errno := poll.Read(int(c.fd), l.buf)
	if n == 0 {
		l.readNothing(c, errno)
		return nil
	}
	l.moved(c, &c.in, n)
	return l.buf[:n]
}

// readNothing sees to what a read returned that is not bytes.
func (l *loop) readNothing(c *conn, errno syscall.Errno) {
	switch {
	case errno == syscall.EAGAIN:
		if c.is(isTCP) {
			c.flags &^= readOn
		}
	case errno != 0:
		l.fail(c, "read", errno)
	default:
		c.flags |= peerEnded
		l.atEnd(c)
	}
}

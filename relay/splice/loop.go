package splice

import (
	"context"
	"math"
	"sync"
	"sync/atomic"
	"time"
	"unique"

	"github.com/fivetuple/fivetuple/internal/poll"
	"github.com/fivetuple/fivetuple/stats"
	"github.com/fivetuple/fivetuple/stream/gate"
)

// loop serves a share of the pairs, with one goroutine. Others may look at its
// pairs, and end them, under its mutex.
type loop struct {
	server *Server
	index  int
	poller *poll.Poller
	count  atomic.Int64 // pairs, with those that are to be settled

	mu     sync.Mutex
	table  table
	wheel  poll.Wheel
	now    int64         // the time of this turn
	wakeAt int64         // until when it sleeps; awake if far in the past
	later  []uint64      // tokens of pairs to go on with in the next turn
	events []stats.Event // to be recorded by the loop, in order
	pipes  []*poll.Pipe  // empty ones, kept
	frozen chan struct{} // closed when it goes on; nil if it is not frozen
	parked chan struct{} // told when the loop stands still to be frozen
	ended  bool          // nothing can be added

	accepts *gate.Acceptor

	inbox     sync.Mutex      // guards newcomers; taken inside mu
	newcomers []gate.Newcomer // of other loops, to be settled
	hasNew    atomic.Bool

	// The goroutine's own.
	spare     []uint64
	tells     []stats.Event
	fire      func(int)
	buf       []byte
	spareNew  []gate.Newcomer
	parkedFor chan struct{} // the frozen it has stood still for
}

const (
	awake = math.MinInt64

	// interest is what is to be known of every socket. Urgent data and the
	// peer's end make a short read not the last.
	interest = poll.In | poll.Pri | poll.RdHup | poll.Edge

	dataEvery  = 10 * time.Second      // between a connection's Data events
	retryWrite = time.Second           // TCP short of memory does not tell of room (tcp_mem, tcp(7))
	lookAgain  = 20 * time.Millisecond // nor that the last was acknowledged
)

func newLoop(s *Server, index int) (*loop, error) {
	p, err := poll.New()
	if err != nil {
		return nil, err
	}
	l := &loop{server: s, index: index, poller: p, wakeAt: awake, parked: make(chan struct{}, 1), buf: make([]byte, readSize)}
	l.fire = l.onTime
	l.accepts = s.gate.Acceptor(&l.mu, p, l.place)
	return l, nil
}

// run is the loop's goroutine.
func (l *loop) run() {
	for timeout := time.Duration(0); ; {
		events := l.poller.Wait(timeout)
		l.mu.Lock()
		l.wakeAt = awake
		l.now = l.server.clock()
		l.takeIn()
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
	if p, of := l.table.find(token); p != nil {
		l.notice(p, of, ready)
		if p.state != free {
			l.serve(p)
		}
		return
	}
	l.accepts.Notice(token)
}

// notice keeps in mind what one of a pair's sockets is ready for.
func (l *loop) notice(p *pair, of side, ready poll.Ready) {
	if p.fd[of] < 0 {
		return // closed by an earlier event of this turn
	}
	from, to := &p.flows[of], &p.flows[of.other()]
	if ready&^poll.Out != 0 {
		from.flags |= readable
	}
	if ready&^(poll.In|poll.Out) != 0 {
		from.flags |= readOn
	}
	if ready&poll.Pri != 0 {
		from.flags |= urgent
	}
	if ready&(poll.Out|poll.Err|poll.Hup) != 0 {
		to.flags |= room
	}
	if ready&poll.Err == 0 || p.state == connecting && of == target {
		return
	}
	errno := poll.SocketError(int(p.fd[of]))
	switch {
	case errno == 0:
	case p.state == relaying:
		l.failed(p, of, errno)
	case p.state == ending || of == client: // nobody is left to relay for
		l.reset(p, causeOf(of, errno), l.failure(p, of, errno))
	}
}

// goOn sees to a pair again in the next turn, though no event may come.
func (l *loop) goOn(p *pair) {
	if !p.is(waits) {
		p.flags |= waits
		l.later = append(l.later, p.token(client))
	}
}

func (l *loop) continueLater() {
	now := l.later
	l.later = l.spare[:0]
	for _, token := range now {
		if p, _ := l.table.find(token); p != nil && p.is(waits) {
			p.flags &^= waits
			l.serve(p)
		}
	}
	l.spare = now
}

// hasOutside says whether there is something to do without the mutex.
func (l *loop) hasOutside() bool {
	return l.accepts.Look(l.now) || len(l.events) > 0
}

// doOutside does what must not be done with the mutex held: accepting, which
// gives connections to other loops, and recording events.
func (l *loop) doOutside() {
	l.accepts.Accept()
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
	if len(l.later)+len(l.events) > 0 {
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
	wake := l.wakeAt != awake && len(l.later)+len(l.events) > 0
	l.mu.Unlock()
	if wake {
		l.poller.Wake()
	}
}

// each calls f on every pair that is, without holding the loop up for long.
func (l *loop) each(f func(p *pair)) {
	for i := 0; ; i++ {
		l.lock()
		if i >= len(l.table.chunks) {
			l.unlock()
			return
		}
		for j := range l.table.chunks[i] {
			if p := &l.table.chunks[i][j]; p.state != free {
				f(p)
			}
		}
		l.unlock()
	}
}

// end closes what is left when the loop's goroutine has returned.
func (l *loop) end() {
	l.lock()
	l.takeIn()
	l.unlock()
	l.each(func(p *pair) { l.reset(p, causeShutdown, nil) })
	l.recordEvents()
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, p := range l.pipes {
		l.server.pipes.drop(p)
	}
	l.pipes = nil
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

// noteError is note for an error, if there were not too many in this second.
func (l *loop) noteError(p *pair, err error) {
	if l.server.events.TakeError() {
		l.note(stats.Event{Kind: stats.Error, Tuple: p.clientTuple(), Conn: p.id, Err: err.Error()})
	}
}

// add gives a connection a place, and waits for what happens to it. It is not
// nil even if that fails.
func (l *loop) add(n *gate.Newcomer) (*pair, error) {
	s := l.server
	p := l.table.take()
	p.id, p.fd[client], p.remote, p.local = n.ID, int32(n.FD), n.Peer.Addr, unique.Make(n.Local)
	p.route = s.route.Load()
	p.state = connecting
	p.started, p.active, p.reported, p.ends = l.now, l.now, l.now, poll.Never
	if n.Peer.Name != "" {
		p.extras().peerName = n.Peer.Name
	}
	p.flows[target].flags |= room
	if n.Lingers {
		p.flags |= lingers
	}
	if !n.Proxied {
		p.flags |= counted
	}
	s.gate.Put(p.id, gate.Place{Loop: uint32(l.index), Slot: p.slot})
	return p, l.watch(p, client, n.TCP)
}

// watch waits for what happens to one socket of a pair.
func (l *loop) watch(p *pair, of side, tcp bool) error {
	what := interest
	if tcp {
		p.flags |= clientTCP << of
		what |= poll.Out // which it tells only when there was none
	} else {
		p.flows[of].flags |= readOn
	}
	return l.poller.Add(int(p.fd[of]), p.token(of), what)
}

// drop gives a pair's place back, and what it has but its descriptors.
func (l *loop) drop(p *pair) {
	for s := range p.flows {
		l.forget(&p.flows[s])
	}
	l.freeSetup(p)
	if p.state == connecting && p.is(chosen) { // a trial goes to the next connection
		p.address.Failed(context.Canceled)
	}
	p.unchoose()
	l.wheel.Clear(int(p.slot))
	l.table.release(p)
	l.count.Add(-1)
}

// arm sets when the pair is to be looked at, if nothing happens before.
func (l *loop) arm(p *pair) {
	limits := l.server.gate.Limits()
	due := p.ends
	switch p.state {
	case relaying:
		due = l.dueRelaying(p, limits.IdleTimeout)
	case connecting:
		if p.setup != nil && p.setup.retry != 0 {
			due = min(due, p.setup.retry)
		}
	case ending:
		due = min(due, l.now+int64(lookAgain))
	}
	if limits.FirstByteTimeout > 0 && p.bytesIn() == 0 && p.state == relaying {
		due = min(due, p.started+int64(limits.FirstByteTimeout))
	}
	if due != l.wheel.Due(int(p.slot)) {
		l.wheel.Set(int(p.slot), due)
		if due < l.wakeAt {
			l.poller.Wake()
		}
	}
}

// dueRelaying is arm for a pair that is connected.
func (l *loop) dueRelaying(p *pair, idle time.Duration) int64 {
	due := poll.Never
	if idle > 0 {
		due = p.active + int64(idle)
	}
	if p.halfClosed() {
		due = min(due, p.active+int64(p.route.HalfClosed))
	}
	if p.is(unreported) && l.server.Sink != nil {
		due = min(due, max(p.reported+int64(dataEvery), l.now))
	}
	for s := range p.flows {
		x := &p.flows[s]
		if p.err[s] != 0 {
			due = min(due, p.active+int64(flushTimeout))
		}
		if x.waiting() {
			due = min(due, l.now+int64(retryWrite))
		}
		if x.is(limited) {
			due = min(due, allowedAt(p, x))
		}
	}
	return due
}

// onTime sees to a pair whose time has come.
func (l *loop) onTime(slot int) {
	p := l.table.at(int32(slot))
	limits := l.server.gate.Limits()
	switch {
	case p.state != relaying:
		l.onTimeBefore(p)
		return
	case p.err != [2]uint16{} && l.now-p.active >= int64(flushTimeout):
		l.breakOffFailed(p)
		return
	case limits.FirstByteTimeout > 0 && p.bytesIn() == 0 && l.now-p.started >= int64(limits.FirstByteTimeout):
		l.close(p, causeNoFirstByte, nil)
		return
	case limits.IdleTimeout > 0 && l.now-p.active >= int64(limits.IdleTimeout):
		l.close(p, causeIdle, nil)
		return
	case p.halfClosed() && l.now-p.active >= int64(p.route.HalfClosed):
		l.reset(p, causeHalfClosed, nil) // what was said so far is not the whole
		return
	case p.is(unreported) && l.now-p.reported >= int64(dataEvery):
		p.flags &^= unreported
		p.reported = l.now
		l.note(stats.Event{Kind: stats.Data, Tuple: p.clientTuple(), Conn: p.id, BytesIn: p.bytesIn(), BytesOut: p.bytesOut()})
	}
	look := false
	for s := range p.flows {
		x := &p.flows[s]
		if x.waiting() {
			x.flags |= room // perhaps
			look = true
		}
		if x.is(limited) {
			x.flags &^= limited
			look = true
		}
	}
	if look {
		gen := p.gen
		if l.relay(p); p.state == free || p.gen != gen {
			return
		}
	}
	l.arm(p)
}

// onTimeBefore is onTime for a pair that is not relaying.
func (l *loop) onTimeBefore(p *pair) {
	switch p.state {
	case introducing, greeting:
		if l.now >= p.ends {
			l.heardNothing(p)
			return
		}
	case connecting:
		gen := p.gen
		if l.connectingOnTime(p); p.state == free || p.gen != gen {
			return
		}
	case ending:
		left := client
		if p.fd[client] < 0 {
			left = target
		}
		if l.now >= p.ends || poll.Unsent(int(p.fd[left])) == 0 {
			l.reset(p, p.cause, nil)
			return
		}
	}
	l.arm(p)
}

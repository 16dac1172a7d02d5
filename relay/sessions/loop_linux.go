package sessions

import (
	"errors"
	"math"
	"runtime/debug"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"github.com/fivetuple/fivetuple/internal/poll"
	"github.com/fivetuple/fivetuple/stats"
)

// loop serves some of the sockets and the sessions of their clients, with one
// goroutine. Others may look at them under its mutex.
type loop struct {
	server    *Server
	poller    *poll.Poller
	sockets   atomic.Int64 // how many it has
	evictions atomic.Int64 // how many sessions it is to end for the sake of other loops'
	least     atomic.Int64 // when the session used least recently was; never if there is none

	mu       sync.Mutex
	ports    []*port // by index; nil if gone
	table    table
	byKey    map[key]int32 // slots
	most     int           // the highest peak since memory was given back to the system
	peak     int           // how many sessions there have been since byKey was made
	wheel    poll.Wheel
	now      int64 // the time of this turn
	wakeAt   int64 // until when it sleeps; awake if far in the past
	later    []uint64
	waiting  waiting       // datagrams that are sent later
	events   []stats.Event // to be recorded by the loop, in order
	frozen   chan struct{} // closed when it goes on; nil if it is not frozen
	parked   chan struct{} // told when the loop stands still to be frozen
	ended    bool          // nothing can be added
	gso, gro bool
	gsoWhy   string
	groWhy   string

	in    *inbox
	out   outbox
	late  bool // something in out has memory of its own
	piece struct {
		hdr unix.Msghdr
		iov unix.Iovec
	}
	runs  []run // of this batch, by session
	chain [batch]int16
	cuts  []uint64 // sessions that a fault has ended
	came  [batch]received

	inFlow, outFlow       Flow
	dropped, refused, cut uint64

	// The goroutine's own.
	spare     []uint64
	ready     []*port // to be received from in this turn
	tells     []stats.Event
	fire      func(int)
	parkedFor chan struct{} // the frozen it has stood still for
	pace      pace
}

const (
	awake     = math.MinInt64
	portToken = uint64(maxGen+8) << 32

	// interest: each arrival is told once. A receiving call that returns fewer
	// messages than it might has taken all, so that none is made in vain.
	interest = poll.In | poll.Edge

	batchesPerTurn = 4 // bounds what one socket may have of a turn

	dataEvery = 10 * time.Second // between a session's Data events
)

func newLoop(s *Server) (*loop, error) {
	in, err := newInbox()
	if err != nil {
		return nil, err
	}
	p, err := poll.New()
	if err != nil {
		in.free()
		return nil, err
	}
	l := &loop{server: s, poller: p, in: in, wakeAt: awake, parked: make(chan struct{}, 1),
		byKey: make(map[key]int32), runs: make([]run, 0, batch)}
	l.least.Store(poll.Never)
	l.out.init()
	l.fire = l.onTime
	l.probe()
	return l, nil
}

// probe finds out what the kernel can.
func (l *loop) probe() {
	l.gsoWhy, l.groWhy = "on", "on"
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err == nil {
		defer unix.Close(fd)
		_, err = unix.GetsockoptInt(fd, unix.IPPROTO_UDP, unix.UDP_SEGMENT)
	}
	switch {
	case l.server.without.gso:
		l.gsoWhy = "off: switched off"
	case err != nil:
		l.gsoWhy = "off: the kernel has no UDP_SEGMENT (since Linux 4.18): " + err.Error()
	default:
		l.gso = true
	}
	err = joinTrains(fd, true)
	switch {
	case l.server.without.gro:
		l.groWhy = "off: switched off"
	case err != nil:
		l.groWhy = "off: the kernel has no UDP_GRO (since Linux 5.0): " + err.Error()
	default:
		l.gro = true
	}
}

// run is the loop's goroutine.
func (l *loop) run() {
	for timeout := time.Duration(0); ; {
		if timeout != 0 {
			l.pace.gather()
		}
		events := l.poller.Wait(timeout)
		l.mu.Lock()
		l.wakeAt = awake
		l.now = l.server.clock()
		l.turn(events)
		l.pace.see(l.now, l.inFlow.Datagrams+l.outFlow.Datagrams)
		tells := len(l.events) > 0
		l.mu.Unlock()
		if tells {
			l.recordEvents()
		}
		if l.server.mode.Load() != running && !l.standStill() {
			return
		}
		l.mu.Lock()
		timeout = l.plan()
		l.mu.Unlock()
	}
}

// turn sees to what has happened: first to what comes from targets, whose
// datagrams are sent to clients many at a time.
func (l *loop) turn(events []poll.Event) {
	l.continueLater()
	for i := range events {
		token := events[i].Token()
		if c := l.table.find(token); c != nil {
			l.fromTarget(c)
		} else if p := l.portOf(token); p != nil {
			l.receiveSoon(p)
		}
	}
	l.sendDown()
	for _, p := range l.ready {
		p.queued = false
		l.fromClients(p)
	}
	l.ready = l.ready[:0]
	l.sendWaiting()
	l.wheel.Advance(l.now, l.fire)
	for range l.evictions.Swap(0) {
		l.server.count.Add(1) // who asked for it has counted it
		l.evict()             // there may be none any more
	}
	l.shrink()
	l.least.Store(l.leastUse())
}

func (l *loop) portOf(token uint64) *port {
	if i := int(token &^ portToken); token&portToken == portToken && i < len(l.ports) {
		return l.ports[i]
	}
	return nil
}

// goOn sees to a session or a socket again in the next turn, though no event may come.
func (l *loop) goOn(token uint64) { l.later = append(l.later, token) }

// continueLater sees to what is left over from the last turn.
func (l *loop) continueLater() {
	now := l.later
	l.later = l.spare[:0]
	for _, token := range now {
		if c := l.table.find(token); c != nil {
			c.flags &^= waits
			l.fromTarget(c)
		} else if p := l.portOf(token); p != nil {
			l.receiveSoon(p)
		}
	}
	l.spare = now
}

// receiveSoon receives from a socket in this turn.
func (l *loop) receiveSoon(p *port) {
	if !p.queued {
		p.queued = true
		l.ready = append(l.ready, p)
	}
}

// shrink gives memory back that was for more sessions than there are: maps and
// the wheel keep the room of their largest time.
func (l *loop) shrink() {
	const small, many = 64, 4096
	if l.peak == l.table.used || l.table.used > 0 && (l.peak <= small || l.table.used > l.peak/4) {
		return
	}
	peak := l.peak
	l.peak = l.table.used
	m := make(map[key]int32, l.table.used)
	for k, slot := range l.byKey {
		m[k] = slot
	}
	l.byKey = m
	l.wheel = poll.Wheel{}
	l.wheel.Advance(l.now, l.fire)
	l.eachNow(l.arm)
	if cap(l.later) > small && len(l.later) == 0 {
		l.later, l.spare = nil, nil
	}
	if l.table.used == 0 {
		l.in.forget()
	}
	l.most = max(l.most, peak)
	if l.table.used == 0 && l.most >= many { // with nothing to do the collector would come in minutes only
		l.most = 0
		go debug.FreeOSMemory()
	}
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
	if len(l.later)+len(l.events) > 0 || l.evictions.Load() > 0 {
		return 0
	}
	l.wakeAt = min(l.wheel.Next(), l.waiting.next())
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

// each calls f on every session that is, without holding the loop up for long.
func (l *loop) each(f func(c *session)) {
	for i := 0; ; i++ {
		l.lock()
		if i >= len(l.table.chunks) {
			l.unlock()
			return
		}
		l.eachOf(i, f)
		l.unlock()
	}
}

// eachNow calls f on every session. l.mu is held.
func (l *loop) eachNow(f func(c *session)) {
	for i := 0; i < len(l.table.chunks); i++ {
		l.eachOf(i, f)
	}
}

// eachOf calls f, which may end it, on every session of a chunk.
func (l *loop) eachOf(i int, f func(c *session)) {
	c := l.table.chunks[i]
	if c == nil {
		return
	}
	for j := range c.sessions {
		if s := &c.sessions[j]; s.state != free {
			f(s)
		}
	}
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

// finish ends what is left when the loop's goroutine has returned.
func (l *loop) finish() {
	l.mu.Lock()
	l.now = l.server.clock()
	l.sendAllWaiting()
	l.eachNow(func(c *session) { l.end(c, causeShutdown, nil) })
	for _, p := range l.ports {
		if p != nil {
			p.restore()
		}
	}
	if !l.ended {
		l.ended = true
		l.poller.Close()
		l.in.free()
	}
	l.mu.Unlock()
	l.recordEvents()
}

// addPort begins to receive from a socket. l.mu is held.
func (l *loop) addPort(p *port) error {
	p.loop, p.index = l, slices.Index(l.ports, nil)
	if p.index < 0 {
		if len(l.ports) > math.MaxUint16 {
			return errors.New("too many sockets")
		}
		p.index = len(l.ports)
		l.ports = append(l.ports, nil)
	}
	l.ports[p.index] = p
	l.sockets.Add(1)
	for _, st := range p.strays {
		l.restore(st, p)
	}
	p.strays = nil
	return l.poller.Add(p.fd, portToken|uint64(p.index), interest)
}

// removePort ends the sessions of a socket and receives from it no longer. l.mu is held.
func (l *loop) removePort(p *port) {
	if l.ended || l.ports[p.index] != p {
		return
	}
	l.eachNow(func(c *session) {
		if int(c.key.port) == p.index {
			l.end(c, causeClosed, nil)
		}
	})
	l.poller.Remove(p.fd) // the socket may live on, and would go on telling
	p.restore()
	l.ports[p.index] = nil
	l.sockets.Add(-1)
}

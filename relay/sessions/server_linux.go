package sessions

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"net"
	"net/netip"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/fivetuple/fivetuple"
	"github.com/fivetuple/fivetuple/datagram"
	"github.com/fivetuple/fivetuple/internal/acl"
	"github.com/fivetuple/fivetuple/internal/quota"
	"github.com/fivetuple/fivetuple/stats"
)

// engine is what a Server has on Linux.
type engine struct {
	limits atomic.Pointer[Limits]
	route  atomic.Pointer[Route]
	ids    atomic.Uint64 // if IDs is nil
	count  atomic.Int64  // sessions
	epoch  time.Time     // what the loops' clock counts from
	wg     sync.WaitGroup

	mode  atomic.Int32  // what the loops are to do
	ended chan struct{} // closed at the end of Shutdown and Release

	handing sync.Mutex // held by HandOff, Resume and Release, and while the loops end

	mu        sync.Mutex // taken inside a loop's, never around it
	loops     []*loop
	started   bool // init was called
	closed    bool
	frozen    chan struct{} // closed when what HandOff froze goes on; nil if nothing is frozen
	strays    []*stray      // adopted sessions whose listening socket has not come yet
	perSource map[netip.Addr]int
	// mostSources is how many there have been since perSource was made.
	mostSources int
	bucket      quota.Bucket
	events      stats.Recorder
	saidFull    time.Time // when it was last said that sessions have to make room

	// For tests: what the kernel is made to lack, or to answer; and where loops run.
	without struct{ gso, gro bool }
	failGSO syscall.Errno
	within  func(func())
}

// What the loops are to do.
const (
	running int32 = iota
	freezing
	stopping
)

// Serve relays what comes to the sockets until Shutdown or Release, and closes
// them. They are UDP sockets that are bound and not connected; from now on nothing
// else is to be received from them in this process. Each has a loop for
// itself as long as there are processors for more; those of one port that
// share it (SO_REUSEPORT, socket(7)) so share the work.
//
// It returns [datagram.ErrServerClosed], or net.ErrClosed if a socket was closed
// by another, which ends its sessions.
func (s *Server) Serve(conns ...*datagram.Conn) (err error) {
	defer func() {
		for _, c := range conns {
			c.Close()
		}
	}()
	if err := s.init(); err != nil {
		return err
	}
	var ports []*port
	defer func() { s.unlisten(ports) }()
	for _, c := range conns {
		p, err := s.newPort(c)
		if err != nil {
			return err
		}
		ports = append(ports, p)
	}
	detachAll(ports)
	s.claimStrays(ports)
	for _, p := range ports {
		if err := s.listen(p); err != nil {
			return err
		}
	}
	for _, p := range ports {
		s.events.Record(stats.Event{Kind: stats.Listen, Tuple: p.tuple})
	}
	err = s.waitFor(ports)
	s.unlisten(ports)
	for i, p := range ports {
		conns[i].Close()
		s.events.Record(stats.Event{Kind: stats.Close, Tuple: p.tuple})
	}
	ports = nil
	return err
}

// init makes what there is to make, once.
func (s *Server) init() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return datagram.ErrServerClosed
	}
	if s.started {
		return nil
	}
	s.started = true
	s.events.Service, s.events.Sink = s.Service, s.Sink
	s.epoch = time.Now()
	s.perSource = make(map[netip.Addr]int)
	s.ended = make(chan struct{})
	if s.limits.Load() == nil {
		l := s.Limits
		s.limits.Store(&l)
	}
	if s.route.Load() == nil {
		r := s.Route
		s.route.Store(&r)
	}
	return nil
}

// listen gives a socket to a loop.
func (s *Server) listen(p *port) error {
	l, err := s.loopForAnother()
	if err != nil {
		return err
	}
	l.lock()
	defer l.unlock()
	if l.ended {
		return datagram.ErrServerClosed
	}
	if err := l.addPort(p); err != nil {
		return fmt.Errorf("serve udp %s: %w", p.addr, err)
	}
	return nil
}

// loopForAnother returns a new loop, or the one with the fewest sockets if there
// are as many as processors.
func (s *Server) loopForAnother() (*loop, error) {
	for {
		s.mu.Lock()
		frozen := s.frozen
		if frozen == nil {
			break
		}
		s.mu.Unlock()
		<-frozen // what is to stand still has been counted
	}
	defer s.mu.Unlock()
	switch {
	case s.closed:
		return nil, datagram.ErrServerClosed
	case len(s.loops) >= runtime.GOMAXPROCS(0):
		return slices.MinFunc(s.loops, func(a, b *loop) int { return cmp.Compare(a.sockets.Load(), b.sockets.Load()) }), nil
	}
	l, err := newLoop(s)
	if err != nil {
		return nil, fmt.Errorf("start an event loop: %w", err)
	}
	s.loops = append(slices.Clip(s.loops), l)
	if s.within == nil {
		s.wg.Go(l.run)
	} else {
		s.wg.Go(func() { s.within(l.run) })
	}
	return l, nil
}

// unlisten takes sockets from their loops, and ends their sessions.
func (s *Server) unlisten(ports []*port) {
	for _, p := range ports {
		if p.loop != nil {
			p.loop.lock()
			p.loop.removePort(p)
			p.loop.unlock()
		}
		p.close()
	}
}

// waitFor returns why no more is received. That a socket was closed by another
// only a look at it tells.
func (s *Server) waitFor(ports []*port) error {
	look := time.NewTicker(time.Second / 4)
	defer look.Stop()
	for {
		select {
		case <-s.ended:
			return datagram.ErrServerClosed
		case <-look.C:
		}
		for _, p := range ports {
			if p.raw.Control(func(uintptr) {}) != nil {
				return fmt.Errorf("receive on udp %s: %w", p.addr, net.ErrClosed)
			}
		}
	}
}

// clock is the time since the server began, in nanoseconds.
func (s *Server) clock() int64 { return int64(time.Since(s.epoch)) }

func (s *Server) allLoops() []*loop {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.loops
}

// Len returns how many sessions there are.
func (s *Server) Len() int {
	s.mu.Lock()
	strays := len(s.strays)
	s.mu.Unlock()
	return max(int(s.count.Load()), 0) + strays
}

// SetRoute changes where the datagrams of new sessions go.
func (s *Server) SetRoute(r Route) { s.route.Store(&r) }

// SetLimits changes the limits for sessions from now on; the timeouts apply to
// those that exist as well.
func (s *Server) SetLimits(limits Limits) {
	s.limits.Store(&limits)
	for _, l := range s.allLoops() {
		l.each(l.arm)
	}
}

// maxSessions is the limit in force.
func (s *Server) maxSessions(l *Limits) int {
	if l.MaxSessions > 0 {
		return l.MaxSessions
	}
	var r unix.Rlimit
	if unix.Getrlimit(unix.RLIMIT_NOFILE, &r) != nil {
		return 1 << 10
	}
	most := int(min(r.Cur, 1<<30))
	return max(most-most/8-64, 16)
}

// refusal is why a client gets no session. There may be one for every datagram,
// so that it becomes a text only when it is told.
type refusal uint8

const (
	admitted refusal = iota
	refusedPort
	refusedSource
	refusedClosed
	refusedPerSource
	refusedRate
)

func (r refusal) text(limits *Limits, client netip.AddrPort) string {
	switch r {
	case refusedPort:
		return "refused: port 0 cannot be answered"
	case refusedSource:
		return "refused: source not allowed"
	case refusedClosed:
		return "refused: shutting down"
	case refusedPerSource:
		return fmt.Sprintf("refused: more than %d sessions from %s, the limit per source", limits.MaxPerSource, acl.Source(client))
	}
	return fmt.Sprintf("refused: more than %g new sessions per second", limits.SessionRate)
}

// admit counts a new session, or says why there may be none. full says that
// another has to make room for it.
func (s *Server) admit(client netip.AddrPort) (full bool, refused refusal) {
	limits := s.limits.Load()
	if client.Port() == 0 {
		return false, refusedPort
	}
	if !(acl.List{Allow: limits.Allow, Deny: limits.Deny}).Allows(client.Addr()) {
		return false, refusedSource
	}
	from := acl.Source(client)
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case s.closed:
		return false, refusedClosed
	case limits.MaxPerSource > 0 && s.perSource[from] >= limits.MaxPerSource:
		return false, refusedPerSource
	case s.bucket.Take(limits.SessionRate, time.Now()) > 0:
		return false, refusedRate
	}
	s.addSource(from)
	return s.count.Add(1) > int64(s.maxSessions(limits)), admitted
}

// enter counts a session whatever the limits.
func (s *Server) enter(client netip.AddrPort) {
	s.mu.Lock()
	s.addSource(acl.Source(client))
	s.mu.Unlock()
	s.count.Add(1)
}

func (s *Server) addSource(from netip.Addr) {
	s.perSource[from]++
	s.mostSources = max(s.mostSources, len(s.perSource))
}

// leave counts the end of one.
func (s *Server) leave(client netip.AddrPort) {
	from := acl.Source(client)
	s.mu.Lock()
	if n := s.perSource[from]; n > 1 {
		s.perSource[from] = n - 1
	} else {
		delete(s.perSource, from)
		if len(s.perSource) < s.mostSources/4 { // a map keeps the room of its largest time
			s.perSource = maps.Collect(maps.All(s.perSource))
			s.mostSources = len(s.perSource)
		}
	}
	s.mu.Unlock()
	s.count.Add(-1)
}

// Shutdown makes no more sessions, lets those there are come to rest, closes the
// sockets, and returns when all has ended. A session on which nothing has come for a
// quarter of a second ends; those still busy when ctx ends are ended then, and the
// error is ctx's.
func (s *Server) Shutdown(ctx context.Context) error {
	s.mu.Lock()
	already, started := s.closed, s.started
	s.closed = true
	strays := s.strays
	s.strays = nil
	s.mu.Unlock()
	if !started {
		return nil
	}
	s.Resume() // whatever stands still
	for _, st := range strays {
		s.endStray(st, causeShutdown)
	}
	var err error
	if !s.drain(ctx) {
		err = ctx.Err()
	}
	s.handing.Lock()
	s.stop()
	s.handing.Unlock()
	s.events.Flush()
	if !already {
		close(s.ended)
	}
	return err
}

// drain ends sessions as they fall quiet, and the rest when ctx ends. It reports
// whether all were quiet.
func (s *Server) drain(ctx context.Context) bool {
	const quiet = time.Second
	tick := time.NewTicker(quiet / 20)
	defer tick.Stop()
	for {
		left := 0
		for _, l := range s.allLoops() {
			l.each(func(c *session) {
				if c.is(replied) && l.now-c.active >= int64(quiet) { // the others wait for their first reply
					l.end(c, causeDrained, nil)
				} else {
					left++
				}
			})
		}
		if left == 0 {
			return true
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return false
		}
	}
}

// stop ends the loops and waits for them. s.handing is held.
func (s *Server) stop() {
	s.mode.Store(stopping)
	for _, l := range s.allLoops() {
		l.poller.Wake()
	}
	s.wg.Wait()
	for _, l := range s.allLoops() {
		l.finish()
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.loops = nil
}

func (s *Server) nextID() uint64 {
	if s.IDs != nil {
		return s.IDs.Add(1)
	}
	return s.ids.Add(1)
}

// mayTell says whether an error may be recorded, and else counts it: there may
// be one for every datagram.
func (s *Server) mayTell() bool { return s.Sink != nil && s.events.TakeError() }

// udp names one leg of a session.
func udp(local, remote netip.AddrPort) fivetuple.Tuple {
	return fivetuple.Tuple{Protocol: fivetuple.UDP, Local: fivetuple.IPAddress(local), Remote: fivetuple.IPAddress(remote)}
}

var errFrozen = errors.New("it is done already: call Resume or Release")

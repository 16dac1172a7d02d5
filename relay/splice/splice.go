// Package splice relays streams between pairs of TCP and Unix sockets on event
// loops, without copying what is much: splice(2).
//
//	srv := &splice.Server{Route: splice.Route{Pool: pool}}
//	err := srv.Serve(ln)
//
// A [Server] runs a few event loops, one for each processor, which wait for all
// sockets with Linux's epoll(7) by way of internal/poll. Both sockets of a pair
// are one loop's; a pair at rest has no goroutine, no buffer and no pipe, only
// some 300 bytes.
//
// Each direction begins with copying. One that brings much at a time goes over to
// splice, by a pipe(7) that is taken from a small pool when there are bytes to
// move and given back, empty, before it waits; only while the receiver takes no
// more does the pipe stay, with what is in it. How large the pipes are, how many
// there may be, and when there are none and bytes are copied after all, is in
// [Server.Stats] and, for each pair, in [Server.Pairs].
//
// The end of one direction (FIN) is passed on when everything before it was, and
// the other goes on. A reset is passed on as a reset. Urgent data (RFC 6093) is
// passed on in its place among the other, as ordinary bytes.
//
// On systems other than Linux Serve and Adopt return an error that wraps
// [errors.ErrUnsupported].
package splice

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"runtime"
	"sync"
	"sync/atomic"
	"time"

	"github.com/fivetuple/fivetuple/relay/upstream"
	"github.com/fivetuple/fivetuple/sockopt"
	"github.com/fivetuple/fivetuple/stats"
	"github.com/fivetuple/fivetuple/stream"
	"github.com/fivetuple/fivetuple/stream/gate"
)

// Server relays the connections of any number of listeners. Set the fields before
// the first call of Serve or Adopt; limits and the route can change later.
type Server struct {
	Service string        // its name in events
	Route   Route         // where connections go; SetRoute changes it for new ones
	Sink    stats.Sink    // where events go; nil discards them
	Limits  stream.Limits // what it takes on; WriteQueue is not used
	// IDs is where connection ids come from: servers that follow each other under
	// one Service share it. nil counts from 1.
	IDs     *atomic.Uint64
	Options sockopt.Settings   // set on every accepted connection where the listener's do not carry over
	Peers   *stream.PeerFilter // who may connect to Unix sockets; nil lets everyone
	// Proxies lists the sources that must send a PROXY protocol header first, within HeaderTimeout, default 5 s.
	Proxies       []netip.Prefix
	HeaderTimeout time.Duration
	Loops         int // how many event loops; default GOMAXPROCS

	gate    gate.Gate
	events  stats.Recorder
	route   atomic.Pointer[route]
	epoch   time.Time        // what the loops' clock counts from
	perConn sockopt.Settings // those of Options that a connection does not have from its listener
	pipes   pipePool
	loops   []*loop
	wg      sync.WaitGroup // the loops

	mode    atomic.Int32  // what the loops are to do
	handing sync.Mutex    // held by HandOff, Resume and Release, and while the loops end
	mu      sync.Mutex    // taken inside a loop's, never around it
	begun   bool          // the loops run
	frozen  chan struct{} // closed when what HandOff froze goes on; nil if nothing is frozen
}

// Route is where connections go, and how.
type Route struct {
	Pool *upstream.Pool // nil: only Names
	// Names are pools by the server name of a TLS client's greeting (SNI, RFC 6066
	// section 3), which is read and passed on, not decrypted: "a.example" or
	// "*.example", which is every name below it. Other names, and clients that do
	// not speak TLS, go to Pool.
	Names        upstream.Names
	HelloTimeout time.Duration // until the greeting is whole; default 5 s
	// FirstPort, if not 0, is the local port that the target's port belongs to:
	// a connection to the next port goes to the target's next.
	FirstPort      uint16
	ConnectTimeout time.Duration    // of each address; default 5 s
	HalfClosed     time.Duration    // how long a connection may be closed in one direction without a byte in the other; default 60 s
	ProxyVersion   int              // of the PROXY protocol header that is sent first; 0 is none
	Source         netip.AddrPort   // to connect from
	Interface      string           // to connect through
	Transparent    bool             // connect from the client's own address (IP_TRANSPARENT)
	Options        sockopt.Settings // of connections to targets
	Rate           int64            // bytes per second of a connection in each direction; 0 is no limit
}

// Defaults of a [Route] and a [Server].
const (
	DefaultHelloTimeout   = 5 * time.Second
	DefaultConnectTimeout = 5 * time.Second
	DefaultHalfClosed     = time.Minute
	DefaultHeaderTimeout  = stream.DefaultHeaderTimeout
)

// What the loops are to do.
const (
	running int32 = iota
	freezing
	stopping
)

// Serve accepts connections on the listeners until Shutdown or Release, and
// closes them. They are TCP or Unix stream listeners of package net, or embed
// one. If there are as many as loops, each loop has its own (SO_REUSEPORT,
// socket(7)); otherwise the loops share them. Those of
// [stream.Unwatched] cost less for each connection.
//
// It returns [stream.ErrServerClosed], or the error that ended accepting for
// good: net.ErrClosed if a listener was closed by another, which leaves the
// connections as they are.
func (s *Server) Serve(lns ...net.Listener) error {
	defer func() {
		for _, ln := range lns {
			ln.Close()
		}
	}()
	if err := s.init(); err != nil {
		return err
	}
	ls, err := gate.Listeners(lns)
	if err != nil {
		return err
	}
	s.begin()
	return s.gate.Serve(ls)
}

// init makes the loops, once.
func (s *Server) init() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.gate.IsShut() {
		return stream.ErrServerClosed
	}
	if s.loops != nil {
		return nil
	}
	s.epoch = time.Now()
	s.perConn = s.Options.PerConn()
	s.events.Service, s.events.Sink = s.Service, s.Sink
	s.gate.Open(gate.Config{Clock: s.clock, Limits: s.Limits, Peers: s.Peers, Proxies: s.Proxies, IDs: s.IDs, Events: &s.events})
	s.pipes.init()
	if s.route.Load() == nil {
		s.route.Store(newRoute(s.Route))
	}
	n := s.Loops
	if n <= 0 {
		n = runtime.GOMAXPROCS(0)
	}
	loops := make([]*loop, n)
	for i := range loops {
		l, err := newLoop(s, i)
		if err != nil {
			for _, l := range loops[:i] {
				l.poller.Close()
			}
			return fmt.Errorf("start an event loop: %w", err)
		}
		loops[i] = l
	}
	s.loops = loops
	return nil
}

// begin starts the loops, once.
func (s *Server) begin() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.begun {
		return
	}
	for _, l := range s.loops {
		s.begun = true
		s.wg.Go(l.run)
	}
}

// clock is the time since the server began, in nanoseconds.
func (s *Server) clock() int64 { return int64(time.Since(s.epoch)) }

// allLoops returns the loops, none before Serve.
func (s *Server) allLoops() []*loop {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.loops
}

// Len returns how many connections there are.
func (s *Server) Len() int { return s.gate.Len() }

// Cut resets both sides of one connection. An unknown id is [stream.ErrNoConn].
func (s *Server) Cut(id uint64) error {
	at, ok := s.gate.Find(id)
	if loops := s.allLoops(); ok && loops != nil {
		l := loops[at.Loop]
		l.lock()
		defer l.unlock()
		if p := l.table.at(at.Slot); p.state != free && p.id == id {
			l.reset(p, causeCut, nil)
			return nil
		}
	}
	return fmt.Errorf("connection %d: %w", id, stream.ErrNoConn)
}

// SetLimits changes the limits for connections from now on; the timeouts apply
// to those that exist as well.
func (s *Server) SetLimits(limits stream.Limits) {
	s.gate.SetLimits(limits)
	for _, l := range s.allLoops() {
		l.each(l.arm)
	}
}

// SetRoute changes the route for connections accepted from now on.
func (s *Server) SetRoute(r Route) { s.route.Store(newRoute(r)) }

// Shutdown closes the listeners and returns when all connections have ended. Those
// that there are when ctx ends are reset, and the error is ctx's.
func (s *Server) Shutdown(ctx context.Context) error {
	s.gate.Close()
	s.Resume() // whatever stands still
	var err error
	if !s.drain(ctx) {
		err = ctx.Err()
	}
	s.handing.Lock()
	s.stop()
	s.handing.Unlock()
	s.events.Flush()
	return err
}

// drain waits until the pairs have ended, and resets the rest when ctx ends: that
// nothing moves does not say that nothing is to come. It reports whether none had to be reset.
func (s *Server) drain(ctx context.Context) bool {
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	for {
		left := s.gate.Unplaced()
		for _, l := range s.allLoops() {
			l.each(func(*pair) { left++ })
		}
		if left == 0 {
			return true
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			for _, l := range s.allLoops() {
				l.each(func(p *pair) { l.reset(p, causeShutdown, nil) })
			}
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
		l.end()
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.loops = nil
}

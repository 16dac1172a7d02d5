// Package loop serves the built-in kinds of package stream to very many
// connections at once: an idle one has no goroutine and no buffer, only some
// 200 bytes.
//
// A [Server] runs a few event loops, one for each processor, which wait for all
// connections with Linux's epoll(7) by way of internal/poll. What it does to a
// connection, within limits, and what it says of it in events is what
// [stream.Server] with the handler of the same name does and says; the same
// tests run on both. It takes plain TCP and Unix stream sockets. It can also
// give its connections to another process and take those of one: see
// [Server.HandOff].
//
// On systems other than Linux Serve and Adopt return an error that wraps
// [errors.ErrUnsupported].
package loop

import (
	"context"
	"errors"
	"fmt"
	"net"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/fivetuple/fivetuple/sockopt"
	"github.com/fivetuple/fivetuple/stats"
	"github.com/fivetuple/fivetuple/stream"
	"github.com/fivetuple/fivetuple/stream/gate"
)

// Kinds lists the kinds a [Server] can be.
func Kinds() []string { return slices.Clone(kindNames[:]) }

// Server serves the connections of any number of listeners with one of [Kinds].
// Set the fields before the first call of Serve or Adopt; limits can change later.
type Server struct {
	Service string        // its name in events
	Kind    string        // one of Kinds; required
	Sink    stats.Sink    // where events go; nil discards them
	Limits  stream.Limits // what it takes on; SetLimits changes them while it serves
	// IDs is where connection ids come from: servers that follow each other under
	// one Service share it. nil counts from 1.
	IDs     *atomic.Uint64
	Options sockopt.Settings   // set on every accepted connection where the listener's do not carry over
	Peers   *stream.PeerFilter // who may connect to Unix sockets; nil lets everyone
	Loops   int                // how many event loops; default GOMAXPROCS

	gate    gate.Gate
	events  stats.Recorder
	epoch   time.Time // what the loops' clock counts from
	kind    kind
	perConn sockopt.Settings // those of Options that a connection does not have from its listener
	loops   []*loop
	wg      sync.WaitGroup // the loops

	mode    atomic.Int32  // what the loops are to do
	handing sync.Mutex    // held by HandOff, Resume and Release, and while the loops end
	mu      sync.Mutex    // taken inside a loop's, never around it
	begun   bool          // the loops run
	frozen  chan struct{} // closed when what HandOff froze goes on; nil if nothing is frozen
}

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
	k := slices.Index(kindNames[:], s.Kind)
	if k < 0 {
		return fmt.Errorf("unknown kind %q: want one of %s", s.Kind, strings.Join(kindNames[:], ", "))
	}
	s.kind = kind(k)
	s.epoch = time.Now()
	s.perConn = s.Options.PerConn()
	s.events.Service, s.events.Sink = s.Service, s.Sink
	s.gate.Open(gate.Config{Clock: s.clock, Limits: s.Limits, Peers: s.Peers, IDs: s.IDs, Events: &s.events})
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

// Conns returns the ids of the connections of this moment, in no order.
func (s *Server) Conns() []uint64 { return s.gate.Conns() }

// Send sends b to one connection, or queues what it cannot take at once. It does
// not wait: a client too slow to take what is queued for it is dropped, and the
// error is [stream.ErrSlow]. An unknown id is [stream.ErrNoConn].
func (s *Server) Send(id uint64, b []byte) error {
	err := error(stream.ErrNoConn)
	s.with(id, func(l *loop, c *conn) { err = l.send(c, &message{bytes: b}) })
	if errors.Is(err, stream.ErrNoConn) {
		return fmt.Errorf("connection %d: %w", id, err)
	}
	return err
}

// Broadcast sends b to every connection and returns to how many. It never waits
// for a client: see [Server.Send].
func (s *Server) Broadcast(b []byte) int { return s.broadcast(b, 0) }

// broadcast leaves out one connection, 0 for none.
func (s *Server) broadcast(b []byte, except uint64) int {
	m := &message{bytes: b}
	n := 0
	for _, l := range s.allLoops() {
		l.each(func(c *conn) {
			if c.id != except && l.send(c, m) == nil {
				n++
			}
		})
	}
	return n
}

// Cut resets one connection. An unknown id is [stream.ErrNoConn].
func (s *Server) Cut(id uint64) error {
	if !s.with(id, func(l *loop, c *conn) { l.reset(c, causeCut) }) {
		return fmt.Errorf("connection %d: %w", id, stream.ErrNoConn)
	}
	return nil
}

// with calls f on a connection and reports whether there is such a one.
func (s *Server) with(id uint64, f func(l *loop, c *conn)) bool {
	p, ok := s.gate.Find(id)
	loops := s.allLoops()
	if !ok || loops == nil {
		return false
	}
	l := loops[p.Loop]
	l.lock()
	defer l.unlock()
	c := l.table.at(p.Slot)
	if c.state == free || c.id != id {
		return false
	}
	f(l, c)
	return true
}

// SetLimits changes the limits for connections from now on; the timeouts apply
// to those that exist as well.
func (s *Server) SetLimits(limits stream.Limits) {
	s.gate.SetLimits(limits)
	for _, l := range s.allLoops() {
		l.each(l.arm)
	}
}

// Shutdown closes the listeners, lets connections come to rest, and returns
// when all have ended. A connection on which nothing has moved for a quarter of
// a second, and to which nothing is still to be sent, is closed; those still
// busy when ctx ends are reset. The error is ctx's if any had to be.
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

// drain closes connections as they fall quiet, and resets the rest when ctx
// ends. It reports whether none had to be reset.
func (s *Server) drain(ctx context.Context) bool {
	const quiet = 250 * time.Millisecond
	tick := time.NewTicker(quiet / 5)
	defer tick.Stop()
	for {
		left := 0
		for _, l := range s.allLoops() {
			l.each(func(c *conn) {
				if l.now-c.active >= int64(quiet) && !c.sending() {
					l.close(c, causeDrained, nil)
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
			for _, l := range s.allLoops() {
				l.each(func(c *conn) { l.reset(c, causeShutdown) })
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

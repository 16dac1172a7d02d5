package loop

import (
	"errors"
	"fmt"
	"os"
	"time"

	"github.com/fivetuple/fivetuple/internal/poll"
	"github.com/fivetuple/fivetuple/stream"
	"github.com/fivetuple/fivetuple/stream/gate"
)

// HandOff stops the server between two reads, and gives every connection with
// what the server knows of it: a duplicate of its descriptor, which give
// closes when it has no more use for it, and a state for [Server.Adopt]. Give is
// called by one goroutine; it must not call the server.
//
// When HandOff returns, nothing is accepted, read, written or closed, and Send,
// Broadcast, Cut and SetLimits wait, until one of two follows: Release, when
// another process has taken all; or Resume, after an error or a change of mind.
// Listeners are the caller's to hand over.
func (s *Server) HandOff(give func(f *os.File, state []byte) error) error {
	s.handing.Lock()
	defer s.handing.Unlock()
	if err := s.freeze(); err != nil {
		return fmt.Errorf("hand off: %w", err)
	}
	for _, l := range s.allLoops() {
		for _, chunk := range l.table.chunks {
			for i := range chunk {
				if chunk[i].state == free {
					continue
				}
				if err := l.give(&chunk[i], give); err != nil {
					return fmt.Errorf("hand off connection %d: %w", chunk[i].id, err)
				}
			}
		}
	}
	return nil
}

func (l *loop) give(c *conn, give func(f *os.File, state []byte) error) error {
	fd, err := poll.Dup(int(c.fd))
	if err != nil {
		return err
	}
	t := c.tuple()
	return give(os.NewFile(uintptr(fd), t.String()), l.snapshot(c).encode())
}

// Resume goes on after HandOff as if nothing had happened, and begins to serve
// what was adopted before Serve. Otherwise it does nothing.
func (s *Server) Resume() error {
	s.handing.Lock()
	defer s.handing.Unlock()
	s.begin()
	s.mu.Lock()
	frozen := s.frozen
	s.frozen = nil
	s.mu.Unlock()
	if frozen == nil {
		return nil
	}
	s.gate.Unblock()
	s.mode.Store(running)
	s.thawLoops(frozen)
	return nil
}

// Release lets go of what HandOff gave away, or of what was adopted and never
// served: it closes the server's own descriptors, which leaves the connections of
// another process that has them alone, and makes Serve return
// [stream.ErrServerClosed]. There are no Disconnect events, since nothing has
// ended; nor is the file of a Unix socket removed.
func (s *Server) Release() error {
	s.handing.Lock()
	defer s.handing.Unlock()
	s.mu.Lock()
	frozen := s.frozen
	if s.begun && frozen == nil {
		s.mu.Unlock()
		return errors.New("release: nothing is handed off: call HandOff first")
	}
	s.frozen = nil
	loops := s.loops
	s.mu.Unlock()

	s.gate.Shut()
	s.mode.Store(stopping)
	for _, l := range loops {
		l.forget()
	}
	if frozen != nil {
		s.thawLoops(frozen)
	}
	s.gate.Release()
	s.stop()
	s.events.Flush()
	return nil
}

// forget closes the descriptors of all connections and nothing else.
func (l *loop) forget() {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, chunk := range l.table.chunks {
		for i := range chunk {
			c := &chunk[i]
			if c.state == free {
				continue
			}
			l.poller.Remove(int(c.fd)) // the socket lives on, and would go on telling
			poll.Close(int(c.fd))
			id, client := c.id, c.remote
			l.drop(c)
			l.server.gate.Leave(id, client)
		}
	}
}

// freeze makes every loop stand still, also those that Serve has yet to let accept.
// s.handing is held.
func (s *Server) freeze() error {
	if err := s.init(); err != nil {
		return err
	}
	s.begin()
	s.mu.Lock()
	if shut := s.gate.IsShut(); shut || s.frozen != nil {
		defer s.mu.Unlock()
		if shut {
			return stream.ErrServerClosed
		}
		return errors.New("it is done already: call Resume or Release")
	}
	frozen := make(chan struct{})
	s.frozen = frozen
	loops := s.loops
	s.mu.Unlock()

	s.mode.Store(freezing)
	for _, l := range loops {
		l.poller.Wake()
	}
	for _, l := range loops { // until all do: one may still pass on to another
		<-l.parked
	}
	for _, l := range loops {
		l.mu.Lock()
		l.now = s.clock()
		l.frozen = frozen
		l.mu.Unlock()
	}
	return nil
}

// thawLoops lets the loops, and those that wait for them, go on.
func (s *Server) thawLoops(frozen chan struct{}) {
	for _, l := range s.allLoops() {
		l.mu.Lock()
		l.frozen = nil
		l.mu.Unlock()
		l.poller.Wake() // what it planned is late
	}
	close(frozen)
}

// standStill waits while the loop is frozen. It returns false when the loop is
// to end.
func (l *loop) standStill() bool {
	for {
		s := l.server
		s.mu.Lock()
		frozen, mode := s.frozen, s.mode.Load()
		s.mu.Unlock()
		switch {
		case mode == running:
			return true
		case mode == stopping:
			return false
		case frozen != nil && l.parkedFor != frozen:
			l.parkedFor = frozen
			l.parked <- struct{}{}
			<-frozen
		}
	}
}

// Adopt takes over a connection that another server handed off. Before Serve, or
// Resume, has begun nothing is read or written, so that Release can still leave
// everything to the other; afterwards it is served at once. Adopt works on a
// duplicate: f stays the caller's to close, best at once, as two descriptors a
// connection are many. The connection keeps its id, unless this server has one
// of that id already. It counts for the limits but is not refused by them, and
// makes no Accept event, as it made one.
func (s *Server) Adopt(f *os.File, state []byte) error {
	if err := s.adopt(f, state); err != nil {
		return fmt.Errorf("adopt %s: %w", f.Name(), err)
	}
	return nil
}

func (s *Server) adopt(f *os.File, state []byte) error {
	var was snapshot
	if err := was.decode(state); err != nil {
		return err
	}
	if was.kind != s.Kind {
		return fmt.Errorf("it is of a server of kind %q, this one is of kind %q", was.kind, s.Kind)
	}
	if err := s.init(); err != nil {
		return err
	}
	n, err := gate.Open(f)
	if err != nil {
		return err
	}
	n.ID, n.Peer = was.id, poll.Peer{Addr: was.remote, Name: was.peerName}
	if err := s.place(&n, &was); err != nil {
		poll.Close(n.FD) // the other server still has it
		return err
	}
	return nil
}

// place gives an adopted connection to a loop.
func (s *Server) place(n *gate.Newcomer, was *snapshot) error {
	loops := s.allLoops() // none if the gate is shut
	if err := s.gate.Enter(n); err != nil {
		return err
	}
	l := loops[0]
	for _, other := range loops {
		if other.count.Load() < l.count.Load() {
			l = other
		}
	}
	l.lock()
	defer l.unlock()
	if l.ended { // by Shutdown, meanwhile
		s.gate.Leave(n.ID, n.Client())
		return stream.ErrServerClosed
	}
	c, err := l.add(n)
	if err != nil {
		l.drop(c)
		s.gate.Leave(n.ID, n.Client())
		return err
	}
	l.restore(c, was)
	return nil
}

// snapshot is what to know of a connection to go on with it elsewhere.
func (l *loop) snapshot(c *conn) *snapshot {
	w := &snapshot{
		kind: l.server.Kind, id: c.id, in: c.in, out: c.out, remote: c.remote, pos: c.pos,
		age: time.Duration(l.now - c.started), quiet: time.Duration(l.now - c.active), reported: time.Duration(l.now - c.reported),
		unreported: c.is(unreported),
	}
	if c.extra != nil {
		w.peerName, w.line = c.extra.peerName, c.extra.line
	}
	if c.queue != nil {
		for _, s := range c.queue.waiting {
			w.unsent = append(w.unsent, s.rest...)
		}
	}
	if c.state == closing {
		w.closing, w.cause, w.shut, w.peerEnded = true, c.cause, c.is(shut), c.is(peerEnded)
		w.left = time.Duration(max(c.ends-l.now, 0))
	}
	return w
}

// restore makes a new connection what it was elsewhere.
func (l *loop) restore(c *conn, was *snapshot) {
	c.in, c.out, c.pos = was.in, was.out, was.pos
	c.started, c.active, c.reported = l.now-int64(was.age), l.now-int64(was.quiet), l.now-int64(was.reported)
	set := func(f flags, on bool) {
		if on {
			c.flags |= f
		}
	}
	set(unreported, was.unreported)
	set(shut, was.shut)
	set(peerEnded, was.peerEnded)
	if len(was.line) > 0 {
		if c.extra == nil {
			c.extra = new(extra)
		}
		c.extra.line = was.line
	}
	if len(was.unsent) > 0 {
		cost := 0
		if l.server.kind != echo {
			cost = len(was.unsent) + placeCost
		}
		l.enqueue(c, segment{rest: was.unsent, cost: cost})
	}
	if was.closing {
		c.state, c.cause, c.ends = closing, was.cause, l.now+int64(was.left)
	}
	l.arm(c)
	l.goOn(c)
}

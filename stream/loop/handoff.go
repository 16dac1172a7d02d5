package loop

import (
	"errors"
	"fmt"
	"os"
	"time"

	"github.com/fivetuple/fivetuple"
	"github.com/fivetuple/fivetuple/internal/acl"
	"github.com/fivetuple/fivetuple/internal/poll"
	"github.com/fivetuple/fivetuple/stream"
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
	as := s.acceptors
	s.mu.Unlock()
	if frozen == nil {
		return nil
	}
	for _, a := range as { // who had a copy may have changed what both share
		a.raw.Control(func(fd uintptr) { poll.SetNonblock(int(fd)) })
	}
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
	already := s.closed
	s.frozen = nil
	s.closed = true
	as, loops := s.acceptors, s.loops
	s.mu.Unlock()

	s.mode.Store(stopping)
	for _, l := range loops {
		l.forget()
	}
	if frozen != nil {
		s.thawLoops(frozen)
	}
	for _, a := range as {
		if u, ok := a.ln.(interface{ SetUnlinkOnClose(bool) }); ok {
			u.SetUnlinkOnClose(false)
		}
	}
	s.unlisten(as)
	if s.ended != nil && !already {
		close(s.ended)
	}
	s.stop()
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
			id, from := c.id, acl.Source(c.remote)
			l.drop(c)
			l.server.leave(id, from)
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
	if s.closed || s.frozen != nil {
		defer s.mu.Unlock()
		if s.closed {
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
	n, err := newcomerFrom(f, &was)
	if err != nil {
		return err
	}
	s.mu.Lock()
	if s.closed {
		s.mu.Unlock()
		poll.Close(n.fd)
		return stream.ErrServerClosed
	}
	s.raiseIDs(was.id)
	if _, taken := s.where[was.id]; taken {
		n.id = s.nextID()
	}
	s.enter(n.id, acl.Source(n.peer.Addr))
	loops := s.loops
	s.mu.Unlock()

	l := loops[0]
	for _, other := range loops {
		if other.count.Load() < l.count.Load() {
			l = other
		}
	}
	l.lock()
	defer l.unlock()
	if l.ended { // by Shutdown, meanwhile
		poll.Close(n.fd)
		s.mu.Lock()
		s.unplaced--
		s.mu.Unlock()
		s.leave(n.id, acl.Source(n.peer.Addr))
		return stream.ErrServerClosed
	}
	c, err := l.add(n)
	if err != nil {
		poll.Close(n.fd) // the other server still has it
		l.drop(c)
		s.leave(n.id, acl.Source(n.peer.Addr))
		return err
	}
	l.restore(c, &was)
	return nil
}

// newcomerFrom makes a connection of a descriptor that came from elsewhere.
func newcomerFrom(f *os.File, was *snapshot) (*newcomer, error) {
	n := &newcomer{id: was.id, peer: poll.Peer{Addr: was.remote, Name: was.peerName}}
	sc, err := f.SyscallConn()
	if err != nil {
		return nil, err
	}
	var local poll.Peer
	var cerr error
	err = sc.Control(func(fd uintptr) {
		if n.tcp, cerr = poll.IsStream(int(fd)); cerr != nil {
			return
		}
		n.lingers = poll.Lingers(int(fd))
		if local, cerr = poll.LocalOf(int(fd)); cerr == nil {
			n.fd, cerr = poll.Dup(int(fd))
		}
	})
	if err = errors.Join(err, cerr); err != nil {
		return nil, err
	}
	n.local = fivetuple.Address{AddrPort: local.Addr, Name: local.Name}
	return n, nil
}

// raiseIDs makes further ids higher than id.
func (s *Server) raiseIDs(id uint64) {
	ids := &s.ids
	if s.IDs != nil {
		ids = s.IDs
	}
	for {
		last := ids.Load()
		if last >= id || ids.CompareAndSwap(last, id) {
			return
		}
	}
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

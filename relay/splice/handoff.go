package splice

import (
	"errors"
	"fmt"
	"os"
	"slices"
	"time"

	"github.com/fivetuple/fivetuple/internal/poll"
	"github.com/fivetuple/fivetuple/relay/upstream"
	"github.com/fivetuple/fivetuple/stream"
	"github.com/fivetuple/fivetuple/stream/gate"
)

// HandOff stops the server between two reads, and gives every connection with
// what the server knows of it: duplicates of its descriptors, the client's first,
// then the target's unless it has yet to be connected, which give closes when it
// has no more use for them; and a state for [Server.Adopt], with what was read of
// one side and not yet taken by the other, up to 2 MiB. Give is called by one
// goroutine; it must not call the server.
//
// When HandOff returns, nothing is accepted, read, written or closed, and Cut,
// Pairs and SetLimits wait, until one of two follows: Release, when another
// process has taken all; or Resume, after an error or a change of mind. Listeners
// are the caller's to hand over.
func (s *Server) HandOff(give func(files []*os.File, state []byte) error) error {
	s.handing.Lock()
	defer s.handing.Unlock()
	if err := s.freeze(); err != nil {
		return fmt.Errorf("hand off: %w", err)
	}
	for _, l := range s.allLoops() {
		for _, chunk := range l.table.chunks {
			for i := range chunk {
				p := &chunk[i]
				if p.state == free || p.state == ending {
					continue
				}
				if err := l.give(p, give); err != nil {
					return fmt.Errorf("hand off connection %d: %w", p.id, err)
				}
			}
		}
	}
	return nil
}

func (l *loop) give(p *pair, give func(files []*os.File, state []byte) error) error {
	l.emptyPipes(p)
	var files []*os.File
	for s, name := range sideNames {
		if side(s) == target && p.state != relaying {
			break
		}
		fd, err := poll.Dup(int(p.fd[s]))
		if err != nil {
			for _, f := range files {
				f.Close()
			}
			return err
		}
		files = append(files, os.NewFile(uintptr(fd), fmt.Sprintf("%s of connection %d", name, p.id)))
	}
	return give(files, l.snapshot(p).encode())
}

// emptyPipes puts what is in a pair's pipes into buffers.
func (l *loop) emptyPipes(p *pair) {
	for s := range p.flows {
		x := &p.flows[s]
		if x.held == 0 {
			continue
		}
		var b []byte
		if x.buffer != nil {
			b = append(b, x.buffer.rest...)
			putBuffer(x.buffer)
			x.buffer = nil
		}
		b = slices.Grow(b, int(x.held))
		for x.held > 0 {
			n, errno := x.pipe.Read(b[len(b) : len(b)+int(x.held)])
			if n == 0 || errno != 0 {
				break
			}
			b = b[:len(b)+n]
			x.held -= int32(n)
		}
		l.givePipe(x)
		l.keep(x, b)
	}
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
	for _, l := range s.allLoops() {
		l.unblock()
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
	s.frozen = nil
	loops := s.loops
	s.mu.Unlock()

	s.gate.Shut()
	s.mode.Store(stopping)
	for _, l := range loops {
		l.leaveAll()
	}
	if frozen != nil {
		s.thawLoops(frozen)
	}
	s.gate.Release()
	s.stop()
	s.events.Flush()
	return nil
}

// unblock sets non-blocking mode on all sockets of a frozen loop: who had a copy
// may have changed what both share, and splice would wait.
func (l *loop) unblock() {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, chunk := range l.table.chunks {
		for i := range chunk {
			for _, fd := range chunk[i].fd {
				if chunk[i].state != free && fd >= 0 {
					poll.SetNonblock(int(fd))
				}
			}
		}
	}
}

// leaveAll closes the descriptors of all pairs and nothing else.
func (l *loop) leaveAll() {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, chunk := range l.table.chunks {
		for i := range chunk {
			p := &chunk[i]
			switch p.state {
			case free:
				continue
			case ending: // which was not given away
				l.reset(p, p.cause, nil)
				continue
			}
			for _, fd := range p.fd {
				if fd >= 0 {
					l.poller.Remove(int(fd)) // the socket may live on, and would go on telling
					poll.Close(int(fd))
				}
			}
			id, client := p.id, p.countedAs()
			l.drop(p)
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
		l.takeIn()
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

// Adopt takes over a connection that another server handed off, with its files
// in the same order. Before Serve, or Resume, has begun nothing is read, written or
// connected, so that Release can still leave everything to the other; afterwards it
// is served at once. Adopt works on duplicates: the files stay the caller's to
// close, best at once, as four descriptors a connection are many. The connection
// keeps its id, unless this server has one of that id already. It counts for the
// limits but is not refused by them, and makes no Accept event, as it made one.
func (s *Server) Adopt(files []*os.File, state []byte) error {
	if err := s.adopt(files, state); err != nil {
		return fmt.Errorf("adopt a connection: %w", err)
	}
	return nil
}

func (s *Server) adopt(files []*os.File, state []byte) error {
	var was snapshot
	if err := was.decode(state); err != nil {
		return err
	}
	if want := 1 + btoi(was.state == relaying); len(files) != want {
		return fmt.Errorf("%d files came with it, want %d", len(files), want)
	}
	if err := s.init(); err != nil {
		return err
	}
	given, err := openGiven(files)
	if err != nil {
		return err
	}
	err = s.place(given, &was)
	if err != nil {
		for _, g := range given { // the other server still has them
			poll.Close(g.FD)
		}
	}
	return err
}

func btoi(b bool) int {
	if b {
		return 1
	}
	return 0
}

// place gives an adopted connection to a loop.
func (s *Server) place(given []gate.Newcomer, was *snapshot) error {
	n := &given[client]
	n.ID, n.Peer, n.Proxied = was.id, poll.Peer{Addr: was.remote, Name: was.peerName}, !was.counted
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
	l.count.Add(1)
	l.lock()
	defer l.unlock()
	if l.ended { // by Shutdown, meanwhile
		s.gate.Leave(n.ID, n.Client())
		return stream.ErrServerClosed
	}
	p, err := l.add(n)
	if err == nil && was.state == relaying {
		p.fd[target] = int32(given[target].FD)
		err = l.watch(p, target, given[target].TCP)
	}
	if err != nil {
		l.poller.Remove(n.FD)
		l.drop(p)
		s.gate.Leave(n.ID, n.Client())
		return err
	}
	l.restore(p, was)
	return nil
}

// openGiven opens the sockets of a pair that came from elsewhere.
func openGiven(files []*os.File) ([]gate.Newcomer, error) {
	var all []gate.Newcomer
	for _, f := range files {
		n, err := gate.Open(f)
		if err != nil {
			for _, n := range all {
				poll.Close(n.FD)
			}
			return nil, fmt.Errorf("%s: %w", f.Name(), err)
		}
		all = append(all, n)
	}
	return all, nil
}

// snapshot is what to know of a pair to go on with it elsewhere.
func (l *loop) snapshot(p *pair) *snapshot {
	w := &snapshot{
		id: p.id, state: p.state, remote: p.remote, shift: p.shift,
		age: time.Duration(l.now - p.started), quiet: time.Duration(l.now - p.active), reported: time.Duration(l.now - p.reported),
		unreported: p.is(unreported), counted: p.is(counted), accepted: p.is(accepted), targetFirst: p.is(targetFirst),
	}
	if p.ends != poll.Never {
		w.left = time.Duration(max(p.ends-l.now, 0))
	}
	if p.extra != nil {
		w.peerName, w.proxy, w.destination, w.name = p.extra.peerName, p.extra.proxy, p.extra.destination, p.extra.name
	}
	if p.state == relaying {
		w.addr, w.path = p.address.Addr, p.address.Path
	}
	for s := range p.flows {
		x := &p.flows[s]
		w.flows[s] = flowState{moved: x.moved, flags: x.flags & keptFlags, err: p.err[s]}
		if x.buffer != nil {
			w.flows[s].rest = x.buffer.rest
		}
	}
	if p.setup != nil {
		w.flows[client].rest = p.setup.said
	}
	return w
}

// restore makes a new pair what it was elsewhere.
func (l *loop) restore(p *pair, was *snapshot) {
	p.started, p.active, p.reported = l.now-int64(was.age), l.now-int64(was.quiet), l.now-int64(was.reported)
	p.state, p.shift = was.state, was.shift
	for _, f := range []struct {
		flag flags
		on   bool
	}{{unreported, was.unreported}, {accepted, was.accepted}, {targetFirst, was.targetFirst}} {
		if f.on {
			p.flags |= f.flag
		}
	}
	if was.proxy.IsValid() || was.name != "" {
		e := p.extras()
		e.proxy, e.destination, e.name = was.proxy, was.destination, was.name
	}
	for s := range p.flows {
		p.err[s] = was.flows[s].err
		x := &p.flows[s]
		x.flags |= was.flows[s].flags | readable | readOn | room
		x.moved = was.flows[s].moved
	}
	switch p.state {
	case relaying:
		l.restoreRelaying(p, was)
	case connecting: // again
		l.needSetup(p)
		p.setup.said = append(p.setup.said, was.flows[client].rest...)
		p.ends = l.now
	default:
		l.needSetup(p)
		p.setup.said = append(p.setup.said, was.flows[client].rest...)
		p.ends = l.now + int64(was.left)
	}
	l.arm(p)
	l.goOn(p)
}

func (l *loop) restoreRelaying(p *pair, was *snapshot) {
	if pool := p.route.poolNamed(was.name); pool != nil {
		p.address = pool.Find(was.addr, was.path)
	} else {
		p.address = &upstream.Address{Addr: was.addr, Path: was.path}
	}
	p.address.Begun()
	p.address.Opened()
	p.flags |= chosen
	for s := range p.flows {
		if rest := was.flows[s].rest; len(rest) > 0 {
			l.keep(&p.flows[s], rest)
			l.wantRoom(p, side(s))
		}
	}
}

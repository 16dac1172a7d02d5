package sessions

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"slices"
	"time"

	"github.com/fivetuple/fivetuple/datagram"
	"github.com/fivetuple/fivetuple/internal/poll"
	"github.com/fivetuple/fivetuple/relay/upstream"
	"github.com/fivetuple/fivetuple/stats"
)

// HandOff stops the server between two batches, and gives every session with
// what the server knows of it: a duplicate of its socket, which give closes when it
// has no more use for it, and a state for [Server.Adopt]. Give is called by one
// goroutine; it must not call the server.
//
// When HandOff returns, nothing is received, sent or ended until one of two
// follows: Release, when another process has taken all; or Resume, after an
// error or a change of mind. What arrives meanwhile waits in the sockets. What a fault
// or a rate has delayed is sent before its time. The sockets that clients write to
// are the caller's to hand over.
func (s *Server) HandOff(give func(files []*os.File, state []byte) error) error {
	s.handing.Lock()
	defer s.handing.Unlock()
	if err := s.freeze(); err != nil {
		return fmt.Errorf("hand off: %w", err)
	}
	for _, l := range s.allLoops() {
		for _, p := range l.ports {
			if p != nil {
				p.restore()
			}
		}
		var err error
		l.eachNow(func(c *session) {
			if err == nil {
				err = handTo(give, int(c.fd), l.snapshot(c))
			}
		})
		if err != nil {
			return err
		}
	}
	s.mu.Lock()
	strays := s.strays
	s.mu.Unlock()
	for _, st := range strays {
		if err := handTo(give, st.fd, st.aged(s.clock())); err != nil {
			return err
		}
	}
	return nil
}

func handTo(give func(files []*os.File, state []byte) error, fd int, w *snapshot) error {
	fd, err := poll.Dup(fd)
	if err == nil {
		err = give([]*os.File{os.NewFile(uintptr(fd), "udp session of "+w.client.String())}, w.encode())
	}
	if err != nil {
		return fmt.Errorf("hand off session %d: %w", w.id, err)
	}
	return nil
}

// Resume goes on after HandOff as if nothing had happened. Otherwise it does nothing.
func (s *Server) Resume() error {
	s.handing.Lock()
	defer s.handing.Unlock()
	s.mu.Lock()
	frozen := s.frozen
	s.frozen = nil
	loops := s.loops
	s.mu.Unlock()
	if frozen == nil {
		return nil
	}
	for _, l := range loops {
		for _, p := range l.ports { // who had a copy may have changed what both share
			if p != nil {
				p.prepare(s)
			}
		}
	}
	s.mode.Store(running)
	s.thaw(frozen)
	return nil
}

// Release lets go of what HandOff gave away, or of what was adopted and never
// served: it closes the server's own descriptors, which leaves the sockets of another
// process that has them alone, and makes Serve return [datagram.ErrServerClosed]. There
// are no Disconnect events, since nothing has ended.
func (s *Server) Release() error {
	s.handing.Lock()
	defer s.handing.Unlock()
	s.mu.Lock()
	frozen := s.frozen
	if len(s.loops) > 0 && frozen == nil {
		s.mu.Unlock()
		return errors.New("release: nothing is handed off: call HandOff first")
	}
	already, started := s.closed, s.started
	s.frozen = nil
	s.closed = true
	loops, strays := s.loops, s.strays
	s.strays = nil
	s.mu.Unlock()

	s.mode.Store(stopping)
	for _, st := range strays {
		poll.Close(st.fd)
	}
	for _, l := range loops {
		l.forget()
	}
	if frozen != nil {
		s.thaw(frozen)
	}
	s.stop()
	if started && !already {
		close(s.ended)
	}
	return nil
}

// forget closes the descriptors of all sessions and sockets, and nothing else.
func (l *loop) forget() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.eachNow(func(c *session) {
		l.poller.Remove(int(c.fd)) // the socket lives on, and would go on telling
		l.drop(c)
	})
	for i, p := range l.ports {
		if p != nil {
			l.poller.Remove(p.fd)
			l.ports[i] = nil
		}
	}
}

// freeze makes every loop stand still. s.handing is held.
func (s *Server) freeze() error {
	if err := s.init(); err != nil {
		return err
	}
	s.mu.Lock()
	if s.closed || s.frozen != nil {
		defer s.mu.Unlock()
		if s.closed {
			return datagram.ErrServerClosed
		}
		return errFrozen
	}
	frozen := make(chan struct{})
	s.frozen = frozen
	loops := s.loops
	s.mu.Unlock()

	s.mode.Store(freezing)
	for _, l := range loops {
		l.poller.Wake()
	}
	for _, l := range loops {
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

// thaw lets the loops, and those that wait for them, go on.
func (s *Server) thaw(frozen chan struct{}) {
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
	s := l.server
	for {
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
			l.mu.Lock()
			l.sendAllWaiting()
			l.mu.Unlock()
			l.recordEvents()
			l.parked <- struct{}{}
			<-frozen
		}
	}
}

// stray is an adopted session that has no listening socket yet.
type stray struct {
	snapshot
	fd    int
	since int64 // when it was adopted, by the server's clock
}

// aged is what to know of it now.
func (st *stray) aged(now int64) *snapshot {
	w := st.snapshot
	d := time.Duration(now - st.since)
	w.age, w.quiet, w.reported = w.age+d, w.quiet+d, w.reported+d
	return &w
}

// Adopt takes over a session that another server handed off: its one file. The
// session belongs to the socket that its client writes to, and waits for the call of
// Serve that brings it, so that Release can still leave everything to the
// other; one brought before is found, too. Where it was opened anew another on the
// same address and port will do. Adopt works on a duplicate: the file
// stays the caller's to close, best at once, as two descriptors a session
// are many. The session keeps its id. It counts for the limits but is not refused by
// them, and makes no Accept event, as it made one. Faults begin anew.
func (s *Server) Adopt(files []*os.File, state []byte) error {
	if len(files) != 1 {
		return fmt.Errorf("adopt a UDP session: it has one socket, here are %d", len(files))
	}
	if err := s.adopt(files[0], state); err != nil {
		return fmt.Errorf("adopt %s: %w", files[0].Name(), err)
	}
	return nil
}

func (s *Server) adopt(f *os.File, state []byte) error {
	st := &stray{fd: -1}
	if err := st.decode(state); err != nil {
		return err
	}
	if err := s.init(); err != nil {
		return err
	}
	if err := st.take(f); err != nil {
		return err
	}
	st.since = s.clock()
	s.raiseIDs(st.id)
	s.mu.Lock()
	if s.closed {
		s.mu.Unlock()
		poll.Close(st.fd)
		return datagram.ErrServerClosed
	}
	loops := s.loops
	s.mu.Unlock()
	for _, exact := range []bool{true, false} {
		for _, l := range loops {
			if l.adopt(st, exact) {
				return nil
			}
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.strays = append(s.strays, st)
	return nil
}

// take duplicates the socket of a session.
func (st *stray) take(f *os.File) error {
	sc, err := f.SyscallConn()
	if err != nil {
		return err
	}
	var cerr error
	err = sc.Control(func(fd uintptr) {
		if _, cerr = isV6(int(fd)); cerr != nil {
			cerr = fmt.Errorf("it is no UDP socket: %w", cerr)
			return
		}
		if _, cerr = poll.RemoteOf(int(fd)); cerr == nil {
			st.fd, cerr = poll.Dup(int(fd))
		}
	})
	return errors.Join(err, cerr)
}

// adopt gives a session to one of the loop's sockets, if it belongs to one.
func (l *loop) adopt(st *stray, exact bool) bool {
	l.lock()
	defer l.unlock()
	for _, p := range l.ports {
		if p != nil && !l.ended && p.owns(&st.snapshot, exact) {
			l.restore(st, p)
			return true
		}
	}
	return false
}

// owns says whether a session's client writes to the socket: to that very one, or
// to one on the same address and port.
func (p *port) owns(w *snapshot, exact bool) bool {
	if exact {
		return p.cookie == w.cookie
	}
	return p.addr == w.socket
}

// claimStrays gives the sockets, which serve nothing yet, their sessions.
func (s *Server) claimStrays(ports []*port) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, exact := range []bool{true, false} {
		s.strays = slices.DeleteFunc(s.strays, func(st *stray) bool {
			i := slices.IndexFunc(ports, func(p *port) bool { return p.owns(&st.snapshot, exact) })
			if i >= 0 {
				ports[i].strays = append(ports[i].strays, st)
			}
			return i >= 0
		})
	}
	if len(s.strays) == 0 {
		s.strays = nil
	}
}

// endStray ends a session whose listening socket never came.
func (s *Server) endStray(st *stray, cause string) {
	w := st.aged(s.clock())
	local := w.socket
	if w.local.IsValid() {
		local = netip.AddrPortFrom(w.local, w.socket.Port())
	}
	s.events.Record(stats.Event{Kind: stats.Disconnect, Tuple: udp(local, w.client), Conn: w.id, Cause: cause, Duration: w.age,
		BytesIn: w.bytesIn, BytesOut: w.bytesOut, PacketsIn: w.packetsIn, PacketsOut: w.packetsOut})
	poll.Close(st.fd)
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

// snapshot is what to know of a session to go on with it elsewhere.
func (l *loop) snapshot(c *session) *snapshot {
	p := l.ports[c.key.port]
	w := &snapshot{
		id: c.id, packetsIn: c.packetsIn, packetsOut: c.packetsOut, bytesIn: c.bytesIn, bytesOut: c.bytesOut, dropped: c.dropped,
		age: time.Duration(l.now - c.started), quiet: time.Duration(l.now - c.active), reported: time.Duration(l.now - c.reported),
		client: netip.AddrPortFrom(netip.AddrFrom16(c.key.client).Unmap(), c.key.from), zone: c.key.zone,
		socket: p.addr, cookie: p.cookie, replied: c.is(replied), unreported: c.is(unreported),
	}
	if c.key.local != [16]byte{} {
		w.local = netip.AddrFrom16(c.key.local).Unmap()
	}
	return w
}

// restore makes a session of the loop of what it was elsewhere. Another that the
// client has begun meanwhile ends: the target knows the older. l.mu is held.
func (l *loop) restore(st *stray, p *port) {
	s := l.server
	w := st.aged(s.clock())
	k := key{client: w.client.Addr().As16(), from: w.client.Port(), zone: w.zone, port: uint16(p.index)}
	switch {
	case !p.any:
		k.local = p.local
	case w.local.IsValid():
		k.local = w.local.As16()
	}
	if slot, ok := l.byKey[k]; ok {
		l.end(l.table.at(slot), causeEvicted, nil)
	}
	s.enter(addrPort(k.client, k.from, k.zone))
	route := s.route.Load()
	c := l.add(w.id, &k, way{st.fd, route.find(st.fd, p)})
	c.address.Begun()
	c.packetsIn, c.packetsOut, c.bytesIn, c.bytesOut, c.dropped = w.packetsIn, w.packetsOut, w.bytesIn, w.bytesOut, w.dropped
	c.started, c.active, c.reported = l.now-int64(w.age), l.now-int64(w.quiet), l.now-int64(w.reported)
	if w.unreported {
		c.flags |= unreported
	}
	if w.replied {
		c.flags |= replied
		c.address.Opened()
	}
	if l.gro {
		joinTrains(st.fd, true)
	}
	c.line = newLine(route, c.id)
	l.arm(c)
	if err := l.poller.Add(st.fd, c.token(), interest); err != nil {
		l.end(c, causeFailed, err)
	}
}

// find returns the address that a session's socket leads to.
func (r *Route) find(fd int, p *port) *upstream.Address {
	remote, _ := poll.RemoteOf(fd)
	to := remote.Addr
	if r.FirstPort != 0 {
		to = netip.AddrPortFrom(to.Addr(), to.Port()-p.addr.Port()+r.FirstPort)
	}
	if r.Pool == nil {
		return &upstream.Address{Addr: to}
	}
	return r.Pool.Find(to, "")
}

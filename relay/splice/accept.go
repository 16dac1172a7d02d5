package splice

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"slices"
	"syscall"
	"time"

	"github.com/fivetuple/fivetuple"
	"github.com/fivetuple/fivetuple/ancillary"
	"github.com/fivetuple/fivetuple/internal/acl"
	"github.com/fivetuple/fivetuple/internal/poll"
	"github.com/fivetuple/fivetuple/sockopt"
	"github.com/fivetuple/fivetuple/stats"
	"github.com/fivetuple/fivetuple/stream"
)

// acceptor accepts the connections of one listener.
type acceptor struct {
	ln      net.Listener
	raw     syscall.RawConn
	tuple   fivetuple.Tuple
	tcp     bool
	any     bool // bound to no address of its own: each connection has one
	lingers bool // closing its connections may wait
	failed  chan error

	// What the last try gave, under the server's mutex. The listener's own
	// descriptor is used, and held while it is: another may close the listener.
	try   func(fd uintptr)
	fd    int
	peer  poll.Peer
	errno syscall.Errno
}

func newAcceptor(ln net.Listener) (*acceptor, error) {
	sc, ok := ln.(syscall.Conn)
	if !ok {
		return nil, fmt.Errorf("serve %s with event loops: %w: a TCP or Unix stream listener is needed, this is a %T", ln.Addr(), errors.ErrUnsupported, ln)
	}
	raw, err := sc.SyscallConn()
	if err != nil {
		return nil, fmt.Errorf("serve %s: %w", ln.Addr(), err)
	}
	a := &acceptor{ln: ln, raw: raw, failed: make(chan error, 1)}
	a.try = func(fd uintptr) { a.fd, a.peer, a.errno = poll.Accept(int(fd)) }
	var cerr error
	err = raw.Control(func(fd uintptr) {
		if a.tcp, cerr = poll.IsStream(int(fd)); cerr == nil {
			a.lingers = poll.Lingers(int(fd))
			cerr = poll.SetNonblock(int(fd)) // whoever shares it may have changed it
		}
	})
	if err = errors.Join(err, cerr); err != nil {
		return nil, fmt.Errorf("serve %s with event loops: %w", ln.Addr(), err)
	}
	a.tuple = fivetuple.Tuple{Protocol: fivetuple.Unix, Local: fivetuple.AddressOf(ln.Addr())}
	if a.tcp {
		a.tuple.Protocol = fivetuple.TCP
		a.any = a.tuple.Local.AddrPort.Addr().IsUnspecified()
	}
	return a, nil
}

// listen lets the loops accept.
func (s *Server) listen(as []*acceptor) error {
	s.mu.Lock()
	if s.closed {
		s.mu.Unlock()
		return stream.ErrServerClosed
	}
	s.acceptors = append(s.acceptors, as...)
	loops := s.loops
	s.mu.Unlock()
	for i, a := range as {
		for j, l := range loops {
			if len(as) == len(loops) && i != j {
				continue
			}
			if err := l.addAcceptor(a); err != nil {
				s.unlisten(as)
				return fmt.Errorf("serve %s: %w", a.ln.Addr(), err)
			}
		}
	}
	return nil
}

// unlisten lets the loops accept no more. It comes before the listener is
// closed: another descriptor may keep the socket, and it in the loops, alive.
func (s *Server) unlisten(as []*acceptor) {
	for _, l := range s.allLoops() {
		l.mu.Lock()
		for _, a := range as {
			if i := slices.Index(l.acceptors, a); i >= 0 {
				if l.listening {
					a.raw.Control(func(fd uintptr) { l.poller.Remove(int(fd)) })
				}
				l.acceptors[i] = nil // a token is an index
			}
		}
		l.mu.Unlock()
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.acceptors = slices.DeleteFunc(slices.Clone(s.acceptors), func(a *acceptor) bool { return slices.Contains(as, a) })
}

// waitFor returns why no more is accepted. That a listener was closed by
// another only a look at it tells.
func (s *Server) waitFor(as []*acceptor) error {
	look := time.NewTicker(time.Second / 4)
	defer look.Stop()
	for {
		for _, a := range as {
			select {
			case err := <-a.failed:
				return fmt.Errorf("accept on %s: %w", a.ln.Addr(), err)
			default:
			}
			if a.raw.Control(func(uintptr) {}) != nil && !s.isClosed() {
				return fmt.Errorf("accept on %s: %w", a.ln.Addr(), net.ErrClosed)
			}
		}
		select {
		case <-s.ended:
			return stream.ErrServerClosed
		case <-look.C:
		}
	}
}

func (s *Server) isClosed() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.closed
}

func (l *loop) addAcceptor(a *acceptor) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.acceptors = append(l.acceptors, a)
	if !l.listening {
		return nil
	}
	return l.hear(len(l.acceptors) - 1)
}

// hear waits for connections of one listener: only one of the loops that do is
// woken by one.
func (l *loop) hear(i int) error {
	var err error
	cerr := l.acceptors[i].raw.Control(func(fd uintptr) {
		err = l.poller.Add(int(fd), acceptorToken|uint64(i), poll.In|poll.Exclusive)
	})
	return errors.Join(cerr, err)
}

// hearAll goes on accepting, deafen stops. l.mu is held.
func (l *loop) hearAll() {
	l.listening = true
	l.acceptAt = poll.Never
	for i, a := range l.acceptors {
		if a != nil {
			l.hear(i) // fails if it is closed, which waitFor sees
		}
	}
}

func (l *loop) deafen(until int64) {
	l.lock()
	defer l.unlock()
	l.acceptAt = until
	if !l.listening {
		return
	}
	l.listening = false
	for _, a := range l.acceptors {
		if a != nil {
			a.raw.Control(func(fd uintptr) { l.poller.Remove(int(fd)) })
		}
	}
}

// acceptsPerTurn bounds what a listener may have of a loop's turn.
const acceptsPerTurn = 64

// acceptFrom accepts what waits. l.mu is not held.
func (l *loop) acceptFrom(a *acceptor) {
	s := l.server
	for range acceptsPerTurn {
		n, say, err := s.accept(a)
		if say != nil {
			s.recordError(n.tuple(), say)
		}
		switch {
		case err == nil:
			s.settle(n, l)
		case err == errNone:
			return
		case err == errPaused:
			l.deafen(s.pausedUntil())
			return
		case n.fd >= 0:
			poll.Reset(n.fd)
		default: // the listener is of no more use
			select {
			case a.failed <- err:
			default:
			}
			s.unlisten([]*acceptor{a})
			return
		}
	}
}

// newcomer is an accepted connection.
type newcomer struct {
	fd           int // -1: none
	id           uint64
	tcp, lingers bool
	proxied      bool // a proxy speaks first, for the client
	counted      bool // its source counts it
	local        fivetuple.Address
	peer         poll.Peer
}

func (n *newcomer) tuple() fivetuple.Tuple {
	t := fivetuple.Tuple{Protocol: fivetuple.Unix, Local: n.local, Remote: fivetuple.Address{AddrPort: n.peer.Addr, Name: n.peer.Name}}
	if n.tcp {
		t.Protocol = fivetuple.TCP
	}
	return t
}

// Why accept accepted nothing.
var (
	errNone   = errors.New("no connection waits")
	errPaused = errors.New("accepting is paused")
)

// accept accepts a connection if the limits allow another. One that they forbid
// comes with the error. say is what is to be recorded.
func (s *Server) accept(a *acceptor) (n newcomer, say, err error) {
	limits := s.limits.Load()
	n = newcomer{fd: -1, tcp: a.tcp, local: a.tuple.Local}
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case s.closed:
		return n, nil, errNone
	case s.paused.Load():
		return n, nil, errPaused
	case limits.MaxConns > 0 && len(s.where) >= limits.MaxConns:
		s.pauseFor(time.Duration(poll.Never))
		return n, s.full(limits.MaxConns), errPaused
	}
	saved := s.bucket
	if wait := s.bucket.Take(limits.AcceptRate, time.Now()); wait > 0 {
		s.pauseFor(wait)
		return n, nil, errPaused
	}
	if a.raw.Control(a.try) != nil { // closed
		return n, nil, errNone
	}
	if a.errno != 0 {
		s.bucket = saved
		say, err = s.acceptFailed(a.errno)
		return n, say, err
	}
	s.pause.Reset()
	n.fd, n.id, n.peer, n.lingers = a.fd, s.nextID(), a.peer, a.lingers
	if a.any {
		if p, err := poll.LocalOf(n.fd); err == nil {
			n.local = fivetuple.Address{AddrPort: p.Addr}
		}
	}
	if err := s.admit(&n, limits); err != nil {
		return n, fmt.Errorf("refused: %w", err), err
	}
	return n, nil, nil
}

// acceptFailed says what is to be recorded and done about it. s.mu is held.
func (s *Server) acceptFailed(errno syscall.Errno) (say, err error) {
	err = os.NewSyscallError("accept4", errno)
	switch {
	case errno == syscall.EAGAIN:
		return nil, errNone
	case !mayAcceptLater(errno):
		return fmt.Errorf("accept: %w", err), err
	}
	if s.pause.First() {
		say = fmt.Errorf("accept paused: %w", err)
	}
	s.pauseFor(s.pause.Next())
	return say, errPaused
}

// mayAcceptLater says whether accept(2) may succeed later: descriptors or memory
// are short, or the error belonged to the connection that was to be accepted.
func mayAcceptLater(errno syscall.Errno) bool {
	switch errno {
	case syscall.EMFILE, syscall.ENFILE, syscall.ENOBUFS, syscall.ENOMEM, syscall.ECONNABORTED, syscall.EPERM, syscall.EPROTO,
		syscall.ENETDOWN, syscall.EHOSTDOWN, syscall.EHOSTUNREACH, syscall.ENETUNREACH, syscall.EOPNOTSUPP, syscall.ETIMEDOUT:
		return true
	}
	return false
}

// pauseFor stops accepting for so long, or until a connection ends. s.mu is held.
func (s *Server) pauseFor(d time.Duration) {
	s.paused.Store(true)
	s.pauseEnds = poll.Never
	if int64(d) < poll.Never/2 {
		s.pauseEnds = s.clock() + int64(d)
	}
}

func (s *Server) pausedUntil() int64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.pauseEnds
}

// acceptAgain ends a pause.
func (s *Server) acceptAgain() {
	if s.paused.Swap(false) {
		for _, l := range s.allLoops() {
			l.poller.Wake()
		}
	}
}

// full says that clients have to wait, at most once a minute. s.mu is held.
func (s *Server) full(limit int) error {
	if !s.saidFull.IsZero() && time.Since(s.saidFull) < time.Minute {
		return nil
	}
	s.saidFull = time.Now()
	return fmt.Errorf("full with %d connections: others wait until one ends", limit)
}

// admit enters a connection among those served, or says why it may not be. One of
// a proxy is judged when it has said for whom it speaks. s.mu is held.
func (s *Server) admit(n *newcomer, limits *stream.Limits) error {
	if !n.tcp && s.Peers != nil {
		if err := s.allowed(n.fd); err != nil {
			return err
		}
	}
	n.proxied = s.isProxy(n.peer.Addr.Addr())
	if !n.proxied {
		if err := s.judge(n.peer.Addr, limits); err != nil {
			return err
		}
		n.counted = true
	}
	s.enter(n.id, n.source())
	return nil
}

// judge says why a client may not be served. s.mu is held.
func (s *Server) judge(client netip.AddrPort, limits *stream.Limits) error {
	if !(acl.List{Allow: limits.Allow, Deny: limits.Deny}).Allows(client.Addr()) {
		return errors.New("source not allowed")
	}
	from := acl.Source(client)
	if limits.MaxPerSource > 0 && from.IsValid() && s.perSource[from] >= limits.MaxPerSource {
		return fmt.Errorf("more than %d connections from %s, the limit per source", limits.MaxPerSource, from)
	}
	return nil
}

// admitNamed judges and counts the client that a proxy has named.
func (s *Server) admitNamed(client netip.AddrPort) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := s.judge(client, s.limits.Load()); err != nil {
		return err
	}
	if from := acl.Source(client); from.IsValid() {
		s.perSource[from]++
	}
	return nil
}

// isProxy says whether a source is one of Proxies.
func (s *Server) isProxy(a netip.Addr) bool {
	if len(s.Proxies) == 0 || !a.IsValid() {
		return false
	}
	a = a.Unmap().WithZone("")
	return slices.ContainsFunc(s.Proxies, func(p netip.Prefix) bool { return p.Contains(a) })
}

// source is what limits for each source count it by; invalid if they do not.
func (n *newcomer) source() netip.Addr {
	if !n.counted {
		return netip.Addr{}
	}
	return acl.Source(n.peer.Addr)
}

// enter counts a connection that has no place yet. s.mu is held.
func (s *Server) enter(id uint64, from netip.Addr) {
	s.where[id] = place{slot: -1}
	s.unplaced++
	if from.IsValid() {
		s.perSource[from]++
	}
}

// leave forgets a connection that has ended.
func (s *Server) leave(id uint64, from netip.Addr) {
	s.mu.Lock()
	delete(s.where, id)
	if n := s.perSource[from]; n > 1 {
		s.perSource[from] = n - 1
	} else {
		delete(s.perSource, from)
	}
	s.mu.Unlock()
	s.acceptAgain()
}

// allowed says whether Peers lets the process in that connected a Unix socket.
func (s *Server) allowed(fd int) error {
	who, err := poll.PeerCredentials(fd)
	if err != nil {
		return err
	}
	peer := ancillary.Credentials{PID: who.PID, UID: who.UID, GID: who.GID}
	if !s.Peers.Allows(peer) {
		return fmt.Errorf("peer not allowed: %s", peer)
	}
	return nil
}

// settle gives a connection accepted by l to a loop: to l itself, unless another
// has clearly fewer. It runs on l's goroutine.
func (s *Server) settle(n newcomer, l *loop) {
	to := l
	for _, other := range s.loops {
		if have := to.count.Load(); other.count.Load() < have-have/8-2 {
			to = other
		}
	}
	to.count.Add(1)
	if to != l {
		to.send(n)
		return
	}
	l.lock()
	defer l.unlock()
	l.settle(&n)
}

// send lets another loop settle a newcomer, in its next turn: waiting for its
// mutex would make both stand still by turns.
func (l *loop) send(n newcomer) {
	l.inbox.Lock()
	l.newcomers = append(l.newcomers, n)
	l.inbox.Unlock()
	l.hasNew.Store(true)
	l.poller.Wake()
}

// takeIn settles the newcomers that other loops have sent. l.mu is held.
func (l *loop) takeIn() {
	if !l.hasNew.Swap(false) {
		return
	}
	l.inbox.Lock()
	l.newcomers, l.spareNew = l.spareNew[:0], l.newcomers
	l.inbox.Unlock()
	for i := range l.spareNew {
		l.settle(&l.spareNew[i])
	}
	clear(l.spareNew)
}

// settle begins to serve a connection that was counted. l.mu is held.
func (l *loop) settle(n *newcomer) {
	p, err := l.add(n)
	switch {
	case err != nil:
	case n.tcp:
		poll.ForRelay(n.fd) // Options may take it back
		_, err = sockopt.Apply(n.fd, l.server.perConn...)
	default: // a Unix socket has nothing from its listener
		_, err = sockopt.Apply(n.fd, l.server.Options...)
	}
	if err != nil {
		l.noteAccept(p)
		l.close(p, causeFailed, err)
		return
	}
	l.begin(p, n.proxied)
}

// noteAccept records that there is a new client, when it is known who it is.
func (l *loop) noteAccept(p *pair) {
	p.flags |= accepted
	if l.server.Sink == nil {
		return
	}
	e := stats.Event{Kind: stats.Accept, Tuple: p.clientTuple(), Conn: p.id}
	if !p.isTCP(client) {
		if who, err := poll.PeerCredentials(int(p.fd[client])); err == nil {
			e.Peer = (*stats.Peer)(&who)
		}
	}
	l.note(e)
}

// Package datagram serves and speaks UDP (unicast, broadcast and multicast) and
// datagrams of the Unix domain.
//
// A [Server] hands every datagram of its sockets to a [Handler]. One socket
// serves any number of clients; a reply leaves from the address that the
// client wrote to, also on hosts with several. A client is a peer: a remote
// address heard from lately, with events and totals like a connection's. A
// [Client] talks to one address and reports what ICMP says about it. [Conn] is
// the socket below both.
//
// It stands on Go's net package and, on Linux, on IP_PKTINFO and
// IPV6_RECVPKTINFO (ip(7), ipv6(7)) for the address written to, and on
// IP_RECVERR for ICMP errors. Elsewhere the system picks the address replies
// leave from, and a client sees only the errors its system reports.
//
// Unix datagram sockets (unix(7)) lose nothing: who sends to one whose queue is
// full waits. A peer is the name that its socket is bound to; one without a
// name is heard and cannot be answered. What a peer does not read counts
// against the send buffer of the server's socket, which all share: one that is
// connected and never reads keeps the others from being answered once the
// buffer is full of it, until it goes (unix_dgram_sendmsg in
// net/unix/af_unix.c). The server goes on receiving meanwhile and reports it.
package datagram

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/fivetuple/fivetuple"
	"github.com/fivetuple/fivetuple/internal/quota"
	"github.com/fivetuple/fivetuple/stats"
)

// Handler takes the datagrams of a server, one after the other for each of its
// sockets: one that takes long holds up those behind it. p and its Data are
// the handler's until it returns. An error is recorded; the server goes on.
type Handler interface {
	ServePacket(p *Packet) error
}

// HandlerFunc makes a function a Handler.
type HandlerFunc func(p *Packet) error

// ServePacket calls f.
func (f HandlerFunc) ServePacket(p *Packet) error { return f(p) }

// Errors of a server.
var (
	ErrServerClosed = errors.New("server closed") // what Serve returns after Shutdown
	ErrNoPeer       = errors.New("no such peer")
	ErrNoSocket     = errors.New("no socket to send from")
)

// maxErrors is how many Error events a server or client makes in a second.
// What goes over is counted, and said in one more.
const maxErrors = 10

// Server serves the datagrams of any number of sockets with one handler. Set
// the fields before the first call of Serve; limits can change later.
type Server struct {
	Service string  // its name in events
	Handler Handler // required
	// Sink is where events go, those of a peer in their order; nil discards them.
	// The server is locked meanwhile: Record must not call it, nor wait for
	// somebody who does.
	Sink   stats.Sink
	Limits Limits // what it takes on; SetLimits changes them while it serves
	// IDs is where peer ids come from: servers that follow each other under one
	// Service share it. nil counts from 1.
	IDs *atomic.Uint64
	// Suspects says of a source that it is a server which may answer whatever it
	// gets; the built-in handlers do not answer it, since the answers would go to
	// and fro without end. Who runs several servers names their ports here, so
	// that nobody can set one on the other. It is called for every datagram, by
	// many goroutines at once, and must not wait for Shutdown. nil suspects none
	// but those that the handlers always do.
	Suspects func(netip.AddrPort) bool

	limits atomic.Pointer[Limits]
	ids    atomic.Uint64 // if IDs is nil

	mu       sync.Mutex
	closed   bool
	conns    []*Conn
	peers    peerTable
	newPeers quota.PerSecond
	errors   quota.PerSecond
	stop     chan struct{}  // closed at shutdown, nil before the first Serve
	serving  sync.WaitGroup // calls of Serve
	sweeping sync.WaitGroup
}

// Serve hands the datagrams of c to the handler until Shutdown, and closes c.
// It returns ErrServerClosed, or an error if c was closed by another. A
// datagram that cannot be received or answered is an Error event and not the
// end.
func (s *Server) Serve(c *Conn) error {
	if err := s.addConn(c); err != nil {
		c.Close()
		return err
	}
	defer s.removeConn(c)
	p := &Packet{server: s}
	failures := 0
	for {
		err := c.Receive(p)
		switch {
		case err == nil:
			failures = 0
			s.serve(p)
			continue
		case s.isClosed():
			return ErrServerClosed
		case errors.Is(err, net.ErrClosed):
			return fmt.Errorf("serve %s: %w", c, err)
		}
		s.recordError(c.tuple(), err)
		if failures++; failures > maxErrors { // a socket that only fails must not eat a processor
			s.sleep(10 * time.Millisecond)
		}
	}
}

// serve takes one datagram through the limits to the handler.
func (s *Server) serve(p *Packet) {
	if refused := s.admit(p, time.Now()); refused != "" {
		s.recordError(p.Tuple(), errors.New("refused: "+refused))
		return
	}
	if err := s.Handler.ServePacket(p); err != nil {
		s.recordError(p.Tuple(), err)
	}
}

func (s *Server) addConn(c *Conn) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return ErrServerClosed
	}
	if s.stop == nil {
		s.stop = make(chan struct{})
		s.peers.init()
		if s.limits.Load() == nil {
			l := s.Limits
			s.limits.Store(&l)
		}
		s.sweeping.Go(s.sweep)
	}
	s.conns = append(s.conns, c)
	s.serving.Add(1)
	s.record(stats.Event{Kind: stats.Listen, Tuple: c.tuple()})
	return nil
}

func (s *Server) removeConn(c *Conn) {
	c.Close()
	s.mu.Lock()
	s.conns = slices.DeleteFunc(s.conns, func(other *Conn) bool { return other == c })
	for _, p := range s.peers.dropConn(c) {
		s.recordGone(p, causeClosed)
	}
	s.record(stats.Event{Kind: stats.Close, Tuple: c.tuple()})
	s.mu.Unlock()
	s.serving.Done()
}

func (s *Server) nextID() uint64 {
	if s.IDs != nil {
		return s.IDs.Add(1)
	}
	return s.ids.Add(1)
}

// Peers returns the peers of this moment, the one heard from last first.
func (s *Server) Peers() []Peer {
	s.mu.Lock()
	defer s.mu.Unlock()
	list := make([]Peer, 0, len(s.peers.byTuple))
	for p := range s.peers.all() {
		list = append(list, p.snapshot())
	}
	return list
}

// Send sends b to one peer, from the address it wrote to. The error is
// ErrNoPeer if no peer has the id, or no longer.
func (s *Server) Send(id uint64, b []byte) error {
	if t := s.targets(func(p *peer) bool { return p.id == id }); len(t) > 0 {
		return s.sendTo(t[0], b)
	}
	return fmt.Errorf("peer %d: %w", id, ErrNoPeer)
}

// SendTo sends b to an address: to a peer from the address it wrote to last,
// to others from the first socket of the server that can reach them.
func (s *Server) SendTo(to fivetuple.Address, b []byte) error {
	if to.AddrPort.IsValid() {
		to = fivetuple.IPAddress(to.AddrPort)
	}
	if t := s.targets(func(p *peer) bool { return p.tuple.Remote == to }); len(t) > 0 {
		return s.sendTo(t[0], b)
	}
	s.mu.Lock()
	conns := slices.Clone(s.conns)
	s.mu.Unlock()
	for _, c := range conns {
		if c.reaches(to) {
			return target{server: s, conn: c, to: to}.send(b, nil)
		}
	}
	return fmt.Errorf("send to %s: %w", to, ErrNoSocket)
}

// Broadcast sends b to every peer and returns to how many. The sources of
// datagrams can be forged: somebody who never asked may be among the peers. A
// Unix peer without a name is left out.
func (s *Server) Broadcast(b []byte) int { return s.sendAll(b, nil) }

// sendAll sends b to every peer but one.
func (s *Server) sendAll(b []byte, but *peer) (n int) {
	for _, t := range s.targets(func(p *peer) bool { return p != but && !p.tuple.Remote.IsZero() }) {
		if err := s.sendTo(t, b); err != nil {
			s.recordError(t.peer.tuple, err)
			continue
		}
		n++
	}
	return n
}

// Shutdown stops receiving, waits until the handlers have returned, and closes
// the sockets. Handlers still busy when ctx ends have their socket closed under
// them; the error is then ctx's. What the kernel has received by then and no
// handler seen is lost.
func (s *Server) Shutdown(ctx context.Context) error {
	s.mu.Lock()
	if !s.closed && s.stop != nil {
		close(s.stop)
	}
	s.closed = true
	for _, c := range s.conns {
		c.SetReadDeadline(time.Unix(1, 0))
	}
	s.mu.Unlock()

	done := make(chan struct{})
	go func() {
		s.serving.Wait()
		s.sweeping.Wait()
		close(done)
	}()
	var err error
	select {
	case <-done:
	case <-ctx.Done():
		err = ctx.Err()
		s.mu.Lock()
		for _, c := range s.conns {
			c.Close()
		}
		s.mu.Unlock()
		<-done
	}
	s.recordKeptBack(time.Now().Add(time.Second)) // all of it
	return err
}

func (s *Server) isClosed() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.closed
}

// sleep waits for d, or until shutdown.
func (s *Server) sleep(d time.Duration) {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
	case <-s.stop:
	}
}

func (s *Server) record(e stats.Event) {
	if s.Sink == nil {
		return
	}
	if e.Time.IsZero() {
		e.Time = time.Now()
	}
	e.Service = s.Service
	s.Sink.Record(e)
}

// recordError records an error, or counts it if there were many in this second.
func (s *Server) recordError(tuple fivetuple.Tuple, err error) {
	s.mu.Lock()
	ok := s.errors.Take(time.Now(), maxErrors)
	s.mu.Unlock()
	if ok {
		s.record(stats.Event{Kind: stats.Error, Tuple: tuple, Err: err.Error()})
	}
}

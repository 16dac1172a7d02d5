// Package stream serves and makes connections that carry a stream of bytes:
// TCP, TLS, Unix sockets and vsock.
//
// A [Server] runs a [Handler] on every connection of its listeners, within
// limits, and survives what connections do to a server: clients that never
// read, that send a byte a second, that come by the thousand from one address,
// and a process that runs out of descriptors. A [Client] connects, and
// connects again when the connection is lost.
//
// What speaks first on a connection is done before its handler: the header of a
// proxy (PROXY protocol 1 and 2), then the TLS handshake, each with a time limit
// and in the connection's own goroutine. Accept is recorded when it is known who
// the client is, and before the handshake.
//
// It stands on Go's net package and works wherever that does; what needs Linux
// (socket options by name, vsock, the peer of a Unix socket, Exec) says so in its
// error elsewhere. The mode and the owner of a Unix socket are set after it was
// made on other systems, where they are a race.
package stream

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"slices"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/fivetuple/fivetuple"
	"github.com/fivetuple/fivetuple/internal/quota"
	"github.com/fivetuple/fivetuple/sockopt"
	"github.com/fivetuple/fivetuple/stats"
)

// Handler serves one connection, which is closed when it returns, after the
// peer has got all that was written. It returns io.EOF if the peer ended its
// side, nil if the server ends it, and otherwise what failed. ctx ends when this
// side closes the connection; that the peer has gone only reading tells.
type Handler interface {
	ServeConn(ctx context.Context, c *Conn) error
}

// HandlerFunc makes a function a Handler.
type HandlerFunc func(ctx context.Context, c *Conn) error

// ServeConn calls f.
func (f HandlerFunc) ServeConn(ctx context.Context, c *Conn) error { return f(ctx, c) }

// ErrServerClosed is what [Server.Serve] returns after Shutdown.
var ErrServerClosed = errors.New("server closed")

// Server serves the connections of any number of listeners with one handler.
// Set the fields before the first call of Serve; limits can change later.
type Server struct {
	Service string     // its name in events
	Handler Handler    // required
	Sink    stats.Sink // where events go; nil discards them
	Limits  Limits     // what it takes on; SetLimits changes them while it serves
	// IDs is where connection ids come from: servers that follow each other under
	// one Service share it. nil counts from 1.
	IDs     *atomic.Uint64
	Options sockopt.Settings // set on every accepted connection where the listener's do not carry over
	// TLS, if not nil, is spoken on every connection, from its first byte or the
	// end of its PROXY header on. A handshake may take HandshakeTimeout.
	TLS *tls.Config
	// HandshakeTimeout bounds the TLS handshake. Default 10 s.
	HandshakeTimeout time.Duration
	// Proxies lists the sources that must send a PROXY protocol header, of
	// version 1 or 2, before anything else; from others none is looked for. The
	// client that the header names is then the one that limits and events speak of.
	Proxies []netip.Prefix
	// HeaderTimeout bounds the wait for a whole PROXY header. Default 5 s.
	HeaderTimeout time.Duration
	// Patient makes Shutdown wait for every connection to end by itself, however
	// quiet it is: for a handler that waits for others.
	Patient bool
	// Peers says which processes may connect to Unix sockets; nil lets all.
	Peers *PeerFilter

	limits atomic.Pointer[Limits]
	ids    atomic.Uint64 // if IDs is nil
	events stats.Recorder

	mu        sync.Mutex
	closed    bool
	listeners map[*net.Listener]struct{} // by pointer: a listener need not be comparable
	conns     map[uint64]*Conn
	held      map[*Conn]struct{} // their proxies have not said yet for whom they are
	perSource map[netip.Addr]int
	slotFree  chan struct{} // closed and replaced when a connection ends
	bucket    quota.Bucket
	saidFull  time.Time      // when it was last said that clients have to wait
	sweeper   chan struct{}  // closed to stop the sweeper, nil if none runs
	wg        sync.WaitGroup // handlers and the sweeper
}

// Serve accepts connections on ln until Shutdown, and closes ln. It returns
// ErrServerClosed, or the error that ended accepting for good: net.ErrClosed if
// ln was closed by another, which leaves its connections as they are. A Serve
// that waits for a connection to end (Limits.MaxConns) notices only Shutdown.
func (s *Server) Serve(ln net.Listener) error {
	if err := s.addListener(&ln); err != nil {
		ln.Close()
		return err
	}
	defer s.removeListener(&ln)
	pause := quota.Backoff{Min: 5 * time.Millisecond, Max: time.Second}
	for {
		if !s.waitForSlot() {
			return ErrServerClosed
		}
		nc, err := ln.Accept()
		if err == nil {
			pause.Reset()
			s.start(nc)
			continue
		}
		switch {
		case s.isClosed():
			return ErrServerClosed
		case errors.Is(err, net.ErrClosed):
			return fmt.Errorf("accept on %s: %w", ln.Addr(), err)
		case !acceptAgain(err):
			s.events.Error(listenTuple(ln), fmt.Errorf("accept: %w", err))
			return fmt.Errorf("accept on %s: %w", ln.Addr(), err)
		}
		if pause.First() {
			s.events.Error(listenTuple(ln), fmt.Errorf("accept paused: %w", err))
		}
		s.sleep(pause.Next())
	}
}

// acceptAgain says whether accept(2) may succeed later: descriptors or memory
// are short, or the error belonged to the connection that was to be accepted.
func acceptAgain(err error) bool {
	for _, e := range []error{syscall.EMFILE, syscall.ENFILE, syscall.ENOBUFS, syscall.ENOMEM, syscall.ECONNABORTED,
		syscall.EINTR, syscall.EPERM, syscall.EPROTO, syscall.ENETDOWN, syscall.EHOSTDOWN, syscall.EHOSTUNREACH,
		syscall.ENETUNREACH, syscall.EOPNOTSUPP, syscall.ETIMEDOUT} {
		if errors.Is(err, e) {
			return true
		}
	}
	return false
}

func (s *Server) addListener(ln *net.Listener) error {
	if s.TLS != nil && protocolOf((*ln).Addr()) == fivetuple.Seqpacket {
		return fmt.Errorf("serve %s: TLS goes over a stream of bytes, and seqpacket keeps records", (*ln).Addr())
	}
	s.mu.Lock()
	if s.closed {
		s.mu.Unlock()
		return ErrServerClosed
	}
	if s.listeners == nil {
		s.listeners = make(map[*net.Listener]struct{})
		s.conns = make(map[uint64]*Conn)
		s.held = make(map[*Conn]struct{})
		s.perSource = make(map[netip.Addr]int)
		s.slotFree = make(chan struct{})
		s.sweeper = make(chan struct{})
		s.events.Service, s.events.Sink = s.Service, s.Sink
		if s.limits.Load() == nil {
			l := s.Limits
			s.limits.Store(&l)
		}
		s.wg.Go(s.sweep)
	}
	s.listeners[ln] = struct{}{}
	s.mu.Unlock()
	s.events.Record(stats.Event{Kind: stats.Listen, Tuple: listenTuple(*ln)})
	return nil
}

func (s *Server) removeListener(ln *net.Listener) {
	(*ln).Close()
	s.mu.Lock()
	delete(s.listeners, ln)
	s.mu.Unlock()
	s.events.Record(stats.Event{Kind: stats.Close, Tuple: listenTuple(*ln)})
}

func listenTuple(ln net.Listener) fivetuple.Tuple {
	return fivetuple.Tuple{Protocol: protocolOf(ln.Addr()), Local: fivetuple.AddressOf(ln.Addr())}
}

// protocolOf names the protocol of an address as the net package does.
func protocolOf(a net.Addr) fivetuple.Network {
	if a.Network() == "unixpacket" {
		return fivetuple.Seqpacket
	}
	n, err := fivetuple.ParseNetwork(a.Network())
	if err != nil {
		return fivetuple.NetworkNone
	}
	return n.Protocol()
}

// start serves an accepted connection, or resets it if the limits forbid it.
// Whatever has to be waited for is waited for in a goroutine of the connection.
func (s *Server) start(nc net.Conn) {
	c := newConn(s, s.nextID(), nc)
	if s.isProxy(c.tuple.Remote.AddrPort.Addr()) {
		if s.enter(c, s.hold) {
			go s.serveProxied(c)
		}
		return
	}
	if err := c.identify(); err != nil {
		s.refuse(c, err)
		return
	}
	if s.enter(c, s.admit) {
		s.recordAccept(c)
		go s.serveConn(c)
	}
}

// enter takes the connection on by hold or admit, or refuses it.
func (s *Server) enter(c *Conn, take func(*Conn) error) bool {
	err := take(c)
	for err == errFull && s.waitForSlot() { // another listener took the slot
		err = take(c)
	}
	if err != nil {
		s.refuse(c, err)
	}
	return err == nil
}

func (s *Server) refuse(c *Conn, err error) {
	s.events.Error(c.tuple, fmt.Errorf("refused: %w", err))
	c.cancel()
	reset(c.raw)
}

func (s *Server) recordAccept(c *Conn) {
	if s.Sink != nil {
		s.events.Record(stats.Event{Time: c.started, Kind: stats.Accept, Tuple: c.tuple, Conn: c.id, Peer: c.peerOf()})
	}
}

// isProxy says whether a source is one of Proxies.
func (s *Server) isProxy(a netip.Addr) bool {
	a = a.Unmap().WithZone("")
	return slices.ContainsFunc(s.Proxies, func(p netip.Prefix) bool { return p.Contains(a) })
}

// serveProxied serves a connection for which a proxy speaks first.
func (s *Server) serveProxied(c *Conn) {
	defer s.letGo(c)
	err := c.introduce()
	if err == nil {
		err = s.admit(c)
	}
	switch {
	case errors.Is(err, errNoHeader), s.isClosed() && err != nil:
		c.cancel()
		c.raw.Close()
	case err != nil:
		s.refuse(c, err)
	default:
		s.recordAccept(c)
		s.serveConn(c)
	}
}

func (s *Server) nextID() uint64 {
	if s.IDs != nil {
		return s.IDs.Add(1)
	}
	return s.ids.Add(1)
}

func (s *Server) serveConn(c *Conn) {
	defer s.wg.Done()
	err := applyPerConn(c.raw, s.Options)
	if err == nil && s.TLS != nil {
		err = c.handshake()
	}
	if err == nil {
		c.release()
		err = s.Handler.ServeConn(c.ctx, c)
	}
	c.finish(err)
	s.mu.Lock()
	delete(s.conns, c.id)
	if n := s.perSource[c.source]; n > 1 {
		s.perSource[c.source] = n - 1
	} else {
		delete(s.perSource, c.source)
	}
	s.wakeWaiting()
	s.mu.Unlock()
}

// wakeWaiting wakes those that wait for a slot to look again. s.mu is held.
func (s *Server) wakeWaiting() {
	close(s.slotFree)
	s.slotFree = make(chan struct{})
}

// Conns returns the ids of the connections of this moment, in no order.
func (s *Server) Conns() []uint64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	ids := make([]uint64, 0, len(s.conns))
	for id := range s.conns {
		ids = append(ids, id)
	}
	return ids
}

// Send queues b for one connection. It does not wait: a client too slow to
// take what is queued for it is dropped, and the error is ErrSlow. An unknown
// id is ErrNoConn.
func (s *Server) Send(id uint64, b []byte) error {
	s.mu.Lock()
	c := s.conns[id]
	s.mu.Unlock()
	if c == nil {
		return fmt.Errorf("connection %d: %w", id, ErrNoConn)
	}
	return c.Send(b)
}

// Cut resets one connection. An unknown id is ErrNoConn.
func (s *Server) Cut(id uint64) error {
	s.mu.Lock()
	c := s.conns[id]
	s.mu.Unlock()
	if c == nil {
		return fmt.Errorf("connection %d: %w", id, ErrNoConn)
	}
	c.resetBecause(causeCut)
	return nil
}

// Broadcast queues b for every connection and returns for how many. It never
// waits for a client: see [Server.Send].
func (s *Server) Broadcast(b []byte) int { return s.sendToOthers(nil, b) }

// sendToOthers is Broadcast but for one connection.
func (s *Server) sendToOthers(but *Conn, b []byte) int {
	b = append([]byte(nil), b...) // one copy, shared by all queues
	n := 0
	for _, c := range s.snapshot() {
		if c != but && c.enqueue(b) == nil {
			n++
		}
	}
	return n
}

// Shutdown closes the listeners, lets connections come to rest, and returns
// when all handlers have returned. A connection on which nothing has moved for
// a quarter of a second, and to which nothing is still to be sent, is closed;
// those still busy when ctx ends are reset. The error is ctx's if any had to be.
func (s *Server) Shutdown(ctx context.Context) error {
	s.mu.Lock()
	already := s.closed
	s.closed = true
	for ln := range s.listeners {
		(*ln).Close()
	}
	for c := range s.held {
		c.raw.Close()
	}
	if s.slotFree != nil && !already {
		s.wakeWaiting()
	}
	s.mu.Unlock()

	var err error
	if !s.drain(ctx) {
		err = ctx.Err()
	}
	s.mu.Lock()
	if s.sweeper != nil && !already {
		close(s.sweeper)
	}
	s.mu.Unlock()
	s.wg.Wait()
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
		for _, c := range s.snapshot() {
			c.look()
			if !s.Patient && c.idleFor() >= quiet && !c.sending() && !c.blind() {
				c.closeBecause(causeDrained, nil)
			} else {
				left++
			}
		}
		if left == 0 {
			return true
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			for _, c := range s.snapshot() {
				c.resetBecause(causeShutdown)
			}
			return false
		}
	}
}

func (s *Server) snapshot() []*Conn {
	s.mu.Lock()
	defer s.mu.Unlock()
	conns := make([]*Conn, 0, len(s.conns))
	for _, c := range s.conns {
		conns = append(conns, c)
	}
	return conns
}

func (s *Server) isClosed() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.closed
}

// sleep waits for d, or until a connection ends, which gives back a descriptor,
// or Shutdown.
func (s *Server) sleep(d time.Duration) {
	s.mu.Lock()
	closed, free := s.closed, s.slotFree
	s.mu.Unlock()
	if !closed {
		sleepUnless(free, d)
	}
}

// sleepUnless waits for d or until c is closed.
func sleepUnless(c <-chan struct{}, d time.Duration) {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
	case <-c:
	}
}

// isTimeout says whether err is a deadline that ran out.
func isTimeout(err error) bool { return errors.Is(err, os.ErrDeadlineExceeded) }

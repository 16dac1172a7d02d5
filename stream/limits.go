package stream

import (
	"errors"
	"fmt"
	"net/netip"
	"time"

	"github.com/fivetuple/fivetuple"
	"github.com/fivetuple/fivetuple/internal/acl"
)

// Limits bound what a server takes on. The zero value of a field is no limit,
// except where a default is given.
type Limits struct {
	// MaxConns is how many connections there may be at once, with those of which
	// the PROXY header or the TLS handshake is awaited. Further ones wait
	// in the kernel's backlog, and one for each listener but the first outside it.
	MaxConns int
	// MaxPerSource is how many of them may come from one address, or from one
	// /64 of IPv6. Further ones are reset.
	MaxPerSource int
	// AcceptRate is how many connections are accepted per second, evenly
	// spaced after a burst of a tenth of a second's worth, at least one.
	AcceptRate float64
	// IdleTimeout closes a connection on which no byte was moved for so long.
	IdleTimeout time.Duration
	// FirstByteTimeout closes a connection whose client sent nothing for so
	// long after it was accepted.
	FirstByteTimeout time.Duration
	// WriteQueue is how many bytes may wait in memory for one client before it
	// is dropped as too slow; a single message may be larger. Default 256 KiB.
	WriteQueue int
	// Allow, if not empty, lists the only sources that are served; Deny lists
	// sources that are not. The longest matching prefix of both decides, Deny
	// on a tie. Unix sockets have no source and are not judged, nor is one of
	// Server.Proxies, but the client that it names.
	Allow, Deny []netip.Prefix
}

const defaultWriteQueue = 256 << 10

// SetLimits changes the limits for connections from now on; the timeouts apply
// to those that exist as well.
func (s *Server) SetLimits(l Limits) {
	s.limits.Store(&l)
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.slotFree != nil {
		s.wakeWaiting()
	}
}

// errFull says that there are as many connections as there may be.
var errFull = errors.New("too many connections")

// admit enters a connection among those served, or says why it may not be. One
// that was held takes its own slot.
func (s *Server) admit(c *Conn) error {
	l := s.limits.Load()
	if !(acl.List{Allow: l.Allow, Deny: l.Deny}).Allows(c.tuple.Remote.AddrPort.Addr()) {
		return errors.New("source not allowed")
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	_, held := s.held[c]
	switch {
	case s.closed:
		return errShutdown
	case l.MaxPerSource > 0 && c.source.IsValid() && s.perSource[c.source] >= l.MaxPerSource:
		return fmt.Errorf("more than %d connections from %s, the limit per source", l.MaxPerSource, c.source)
	case !held && s.full(l):
		return errFull
	}
	delete(s.held, c)
	s.conns[c.id] = c
	s.perSource[c.source]++
	s.wg.Add(1)
	return nil
}

// hold keeps a slot for a connection while its proxy says who the client is.
func (s *Server) hold(c *Conn) error {
	l := s.limits.Load()
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case s.closed:
		return errShutdown
	case s.full(l):
		return errFull
	}
	s.held[c] = struct{}{}
	s.wg.Add(1)
	return nil
}

// letGo ends what hold began, and gives the slot back if it was not taken.
func (s *Server) letGo(c *Conn) {
	defer s.wg.Done()
	s.mu.Lock()
	defer s.mu.Unlock()
	if _, held := s.held[c]; held {
		delete(s.held, c)
		s.wakeWaiting()
	}
}

var errShutdown = errors.New("shutting down")

// full says whether there is no room for a connection. s.mu is held.
func (s *Server) full(l *Limits) bool {
	return l.MaxConns > 0 && len(s.conns)+len(s.held) >= l.MaxConns
}

// waitForSlot returns when the limits allow another accept, or false when the
// server is shut down.
func (s *Server) waitForSlot() bool {
	for {
		l := s.limits.Load()
		s.mu.Lock()
		closed, full, free := s.closed, s.full(l), s.slotFree
		var wait time.Duration
		if !full {
			wait = s.bucket.Take(l.AcceptRate, time.Now())
		}
		s.mu.Unlock()
		switch {
		case closed:
			return false
		case full:
			s.recordFull(l.MaxConns)
			<-free
		case wait > 0:
			sleepUnless(free, wait)
		default:
			return true
		}
	}
}

// recordFull says that clients have to wait, at most once a minute.
func (s *Server) recordFull(limit int) {
	s.mu.Lock()
	say := s.saidFull.IsZero() || time.Since(s.saidFull) >= time.Minute
	if say {
		s.saidFull = time.Now()
	}
	s.mu.Unlock()
	if say {
		s.events.Error(fivetuple.Tuple{}, fmt.Errorf("full with %d connections: others wait until one ends", limit))
	}
}

// sweep closes connections that are idle too long, and reports the totals of
// those that live long.
func (s *Server) sweep() {
	const dataEvery = 10 * time.Second
	for {
		l := s.limits.Load()
		every := time.Second
		for _, d := range []time.Duration{l.IdleTimeout, l.FirstByteTimeout} {
			if d > 0 {
				every = min(every, max(d/8, 5*time.Millisecond))
			}
		}
		t := time.NewTimer(every)
		select {
		case <-s.sweeper:
			t.Stop()
			return
		case <-t.C:
		}
		for _, c := range s.snapshot() {
			c.look()
			switch {
			case c.blind():
			case l.FirstByteTimeout > 0 && c.in.Load() == 0 && time.Since(c.started) >= l.FirstByteTimeout:
				c.closeBecause(causeNoFirstByte, nil)
			case l.IdleTimeout > 0 && c.idleFor() >= l.IdleTimeout:
				c.closeBecause(causeIdle, nil)
			default:
				c.reportData(dataEvery)
			}
		}
	}
}

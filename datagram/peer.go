package datagram

import (
	"container/list"
	"errors"
	"fmt"
	"iter"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/fivetuple/fivetuple"
	"github.com/fivetuple/fivetuple/internal/quota"
	"github.com/fivetuple/fivetuple/stats"
)

// Peer is a remote end that a server has heard from lately, and its totals.
type Peer struct {
	ID                    uint64          // never used again by its server
	Tuple                 fivetuple.Tuple // Local is the address it wrote to
	Since, Seen           time.Time       // its first and its latest datagram
	BytesIn, BytesOut     uint64
	PacketsIn, PacketsOut uint64
}

// Why a peer is one no longer, as events and history name it.
const (
	causeIdle    = "idle timeout"
	causeClosed  = "closed"
	causeEvicted = "evicted"
	causeLeft    = "left"
	causeGone    = "gone"
)

type peer struct {
	id    uint64
	tuple fivetuple.Tuple
	since time.Time

	// Guarded by the server's mutex.
	seen                 time.Time
	conn                 *Conn // the socket and the route of its latest datagram
	route                route
	bytesIn              uint64
	packetsIn            uint64
	rate                 quota.PerSecond
	reportedAt           time.Time
	reported             uint64
	element              *list.Element
	bytesOut, packetsOut atomic.Uint64 // sent to it
	full                 atomic.Bool   // the queue of its socket, at the latest attempt
}

func (p *peer) sent(n int) {
	p.bytesOut.Add(uint64(n))
	p.packetsOut.Add(1)
}

// notSent takes back what sent has counted.
func (p *peer) notSent(n int) {
	p.bytesOut.Add(-uint64(n))
	p.packetsOut.Add(^uint64(0))
}

func (p *peer) snapshot() Peer {
	return Peer{ID: p.id, Tuple: p.tuple, Since: p.since, Seen: p.seen, BytesIn: p.bytesIn, BytesOut: p.bytesOut.Load(),
		PacketsIn: p.packetsIn, PacketsOut: p.packetsOut.Load()}
}

// peerTable holds the peers by tuple and in the order they were heard from. It
// is not safe for concurrent use.
type peerTable struct {
	byTuple map[fivetuple.Tuple]*peer
	recent  list.List // of *peer, the one heard from last at the front
}

func (t *peerTable) init() { t.byTuple = make(map[fivetuple.Tuple]*peer) }

// add makes a peer of the sender of a packet.
func (t *peerTable) add(id uint64, tuple fivetuple.Tuple, now time.Time) *peer {
	p := &peer{id: id, tuple: tuple, since: now, reportedAt: now}
	p.element = t.recent.PushFront(p)
	t.byTuple[tuple] = p
	return p
}

// heard counts a packet for its peer, which is the latest now.
func (t *peerTable) heard(p *peer, packet *Packet, now time.Time) {
	p.seen, p.conn, p.route = now, packet.conn, packet.route
	p.bytesIn += uint64(len(packet.Data))
	p.packetsIn++
	t.recent.MoveToFront(p.element)
}

// drop forgets a peer. It may be forgotten already.
func (t *peerTable) drop(p *peer) bool {
	if t.byTuple[p.tuple] != p {
		return false
	}
	delete(t.byTuple, p.tuple)
	t.recent.Remove(p.element)
	return true
}

// oldest is the peer not heard from for the longest, nil if there is none.
func (t *peerTable) oldest() *peer {
	if e := t.recent.Back(); e != nil {
		return e.Value.(*peer)
	}
	return nil
}

// dropConn forgets the peers of a socket.
func (t *peerTable) dropConn(c *Conn) (gone []*peer) {
	for p := range t.all() {
		if p.conn == c {
			t.drop(p)
			gone = append(gone, p)
		}
	}
	return gone
}

// all goes from the peer heard from last to the first; each may be dropped on the way.
func (t *peerTable) all() iter.Seq[*peer] {
	return func(yield func(*peer) bool) {
		for e := t.recent.Front(); e != nil; {
			next := e.Next()
			if !yield(e.Value.(*peer)) {
				return
			}
			e = next
		}
	}
}

// target is a peer with the way to it, for sending without the lock.
type target struct {
	server *Server // nil without one
	peer   *peer   // nil if not tracked
	conn   *Conn
	to     fivetuple.Address
	route  route
}

// send sends b and counts it, before the peer can have it. A server waits for a
// peer whose queue is full but once, and then no more until there is room again.
func (t target) send(b, control []byte) error {
	const patience = 100 * time.Millisecond
	switch {
	case t.server == nil:
		return t.conn.sendFrom(b, t.to, t.route, control, forever)
	case t.peer == nil:
		return t.conn.sendFrom(b, t.to, t.route, control, 0)
	}
	wait := patience
	if t.peer.full.Load() {
		wait = 0
	}
	t.peer.sent(len(b))
	err := t.conn.sendFrom(b, t.to, t.route, control, wait)
	if err != nil {
		t.peer.notSent(len(b))
	}
	if full := isFull(err); full != t.peer.full.Load() {
		t.peer.full.Store(full)
	}
	return err
}

// sendTo sends b to a peer. A Unix socket that is no longer there is a peer no longer.
func (s *Server) sendTo(t target, b []byte) error {
	var control [controlOut]byte
	err := t.send(b, control[:])
	if t.conn.unix != nil && (errors.Is(err, syscall.ECONNREFUSED) || errors.Is(err, syscall.ENOENT)) {
		s.forget(t.peer, causeGone)
	}
	return err
}

// targets are the peers that want says, the one heard from last first.
func (s *Server) targets(want func(*peer) bool) (list []target) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for p := range s.peers.all() {
		if want(p) {
			list = append(list, target{s, p, p.conn, p.tuple.Remote, p.route})
		}
	}
	return list
}

// forget ends a peer before its time.
func (s *Server) forget(p *peer, cause string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.peers.drop(p) {
		s.recordGone(p, cause)
	}
}

// recordGone records the end of a peer. Like all events of peers it is recorded
// by whoever holds the server's mutex, so that none comes after the end.
func (s *Server) recordGone(p *peer, cause string) {
	e := p.event(stats.Disconnect)
	e.Cause, e.Duration = cause, p.seen.Sub(p.since)
	s.record(e)
}

func (p *peer) event(kind stats.Kind) stats.Event {
	now := p.snapshot()
	return stats.Event{Kind: kind, Tuple: p.tuple, Conn: p.id, BytesIn: now.BytesIn, BytesOut: now.BytesOut,
		PacketsIn: now.PacketsIn, PacketsOut: now.PacketsOut}
}

// sweep looks after the peers from time to time, and says what the quotas kept back.
func (s *Server) sweep() {
	for {
		t := time.NewTimer(min(time.Second, max(s.limits.Load().peerTimeout()/8, 5*time.Millisecond)))
		select {
		case <-s.stop:
			t.Stop()
			return
		case <-t.C:
		}
		now := time.Now()
		s.review(now)
		s.recordKeptBack(now)
	}
}

// review forgets the peers that have been silent too long, and reports the
// totals of those that stay long.
func (s *Server) review(now time.Time) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, p := range s.peers.expire(now.Add(-s.limits.Load().peerTimeout())) {
		s.recordGone(p, causeIdle)
	}
	for _, e := range s.peers.report(now) {
		s.record(e)
	}
}

// expire forgets the peers not heard from since then.
func (t *peerTable) expire(since time.Time) (gone []*peer) {
	for p := t.oldest(); p != nil && !p.seen.After(since); p = t.oldest() {
		t.drop(p)
		gone = append(gone, p)
	}
	return gone
}

// report makes a Data event for every peer whose last is ten seconds old and
// that something came from since.
func (t *peerTable) report(now time.Time) (events []stats.Event) {
	const every = 10 * time.Second
	for p := range t.all() {
		if p.packetsIn != p.reported && now.Sub(p.reportedAt) >= every {
			p.reported, p.reportedAt = p.packetsIn, now
			events = append(events, p.event(stats.Data))
		}
	}
	return events
}

// recordKeptBack says how many events the quotas have kept back.
func (s *Server) recordKeptBack(now time.Time) {
	l := s.limits.Load()
	s.mu.Lock()
	unknown, errs := s.newPeers.KeptBack(now), s.errors.KeptBack(now)
	s.mu.Unlock()
	if unknown > 0 {
		s.record(stats.Event{Kind: stats.Error, Err: fmt.Sprintf("%d datagrams of new peers not tracked: more than %d new peers in a second", unknown, l.newPeers())})
	}
	if errs > 0 {
		s.record(stats.Event{Kind: stats.Error, Err: fmt.Sprintf("%d more errors", errs)})
	}
}

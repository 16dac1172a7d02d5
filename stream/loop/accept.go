package loop

import (
	"github.com/fivetuple/fivetuple/internal/poll"
	"github.com/fivetuple/fivetuple/sockopt"
	"github.com/fivetuple/fivetuple/stats"
	"github.com/fivetuple/fivetuple/stream/gate"
)

// settle gives a connection that l has accepted to a loop: to l itself, unless
// another has clearly fewer.
func (l *loop) settle(n gate.Newcomer) {
	s := l.server
	for _, other := range s.allLoops() {
		if have := l.count.Load(); other.count.Load() < have-have/8-2 {
			l = other
		}
	}
	l.lock()
	defer l.unlock()
	c, err := l.add(&n)
	e := stats.Event{Kind: stats.Accept, Tuple: c.tuple(), Conn: c.id}
	if !n.TCP && s.Sink != nil {
		if who, err := poll.PeerCredentials(n.FD); err == nil {
			e.Peer = (*stats.Peer)(&who)
		}
	}
	l.note(e)
	switch {
	case err != nil:
	case n.TCP:
		poll.SetNoDelay(n.FD) // as package net does; Options may take it back
		_, err = sockopt.Apply(n.FD, s.perConn...)
	default: // a Unix socket has nothing from its listener
		_, err = sockopt.Apply(n.FD, s.Options...)
	}
	if err != nil {
		l.close(c, causeFailed, err)
		return
	}
	l.arm(c)
	l.begin(c)
}

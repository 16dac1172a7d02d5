package splice

import (
	"github.com/fivetuple/fivetuple/internal/poll"
	"github.com/fivetuple/fivetuple/sockopt"
	"github.com/fivetuple/fivetuple/stats"
	"github.com/fivetuple/fivetuple/stream/gate"
)

// place gives a connection that l has accepted to a loop: to l itself, unless
// another has clearly fewer. It runs on l's goroutine.
func (l *loop) place(n gate.Newcomer) {
	to := l
	for _, other := range l.server.loops {
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
func (l *loop) send(n gate.Newcomer) {
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
func (l *loop) settle(n *gate.Newcomer) {
	p, err := l.add(n)
	switch {
	case err != nil:
	case n.TCP:
		poll.ForRelay(n.FD) // Options may take it back
		_, err = sockopt.Apply(n.FD, l.server.perConn...)
	default: // a Unix socket has nothing from its listener
		_, err = sockopt.Apply(n.FD, l.server.Options...)
	}
	if err != nil {
		l.noteAccept(p)
		l.close(p, causeFailed, err)
		return
	}
	l.begin(p, n.Proxied)
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

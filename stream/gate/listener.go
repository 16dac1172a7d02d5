package gate

import (
	"errors"
	"fmt"
	"net"
	"slices"
	"syscall"
	"time"

	"github.com/fivetuple/fivetuple"
	"github.com/fivetuple/fivetuple/internal/poll"
	"github.com/fivetuple/fivetuple/stats"
	"github.com/fivetuple/fivetuple/stream"
)

// Listener is one whose connections are accepted.
type Listener struct {
	ln      net.Listener
	raw     syscall.RawConn
	tuple   fivetuple.Tuple
	tcp     bool
	any     bool // bound to no address of its own: each connection has one
	lingers bool // closing its connections may wait
	failed  chan error

	// What the last try gave, under the gate's mutex. The listener's own
	// descriptor is used, and held while it is: another may close the listener.
	try   func(fd uintptr)
	fd    int
	peer  poll.Peer
	errno syscall.Errno
}

// Listeners looks at listeners, which must be TCP or Unix stream listeners of
// package net, or embed one, or come from [stream.Unwatched]; for others the error
// wraps [errors.ErrUnsupported].
func Listeners(lns []net.Listener) ([]*Listener, error) {
	ls := make([]*Listener, len(lns))
	for i, ln := range lns {
		var err error
		if ls[i], err = newListener(ln); err != nil {
			return nil, err
		}
	}
	return ls, nil
}

func newListener(ln net.Listener) (*Listener, error) {
	sc, ok := ln.(syscall.Conn)
	if !ok {
		return nil, fmt.Errorf("serve %s with event loops: %w: a TCP or Unix stream listener is needed, this is a %T", ln.Addr(), errors.ErrUnsupported, ln)
	}
	raw, err := sc.SyscallConn()
	if err != nil {
		return nil, fmt.Errorf("serve %s: %w", ln.Addr(), err)
	}
	l := &Listener{ln: ln, raw: raw, failed: make(chan error, 1)}
	l.try = func(fd uintptr) { l.fd, l.peer, l.errno = poll.Accept(int(fd)) }
	var cerr error
	err = raw.Control(func(fd uintptr) {
		if l.tcp, cerr = poll.IsStream(int(fd)); cerr == nil {
			l.lingers = poll.Lingers(int(fd))
			cerr = poll.SetNonblock(int(fd)) // whoever shares it may have changed it
		}
	})
	if err = errors.Join(err, cerr); err != nil {
		return nil, fmt.Errorf("serve %s with event loops: %w", ln.Addr(), err)
	}
	l.tuple = fivetuple.Tuple{Protocol: fivetuple.Unix, Local: fivetuple.AddressOf(ln.Addr())}
	if l.tcp {
		l.tuple.Protocol = fivetuple.TCP
		l.any = l.tuple.Local.AddrPort.Addr().IsUnspecified()
	}
	return l, nil
}

// Serve lets the acceptors accept on the listeners until Close or Release, and
// closes them. If there are as many as acceptors, each has its own; otherwise they
// share them.
//
// It returns [stream.ErrServerClosed], or the error that ended accepting for
// good: net.ErrClosed if a listener was closed by another.
func (g *Gate) Serve(ls []*Listener) error {
	if err := g.listen(ls); err != nil {
		return err
	}
	for _, l := range ls {
		g.is.Events.Record(stats.Event{Kind: stats.Listen, Tuple: l.tuple})
	}
	err := g.wait(ls)
	g.unlisten(ls)
	for _, l := range ls {
		l.ln.Close()
		g.is.Events.Record(stats.Event{Kind: stats.Close, Tuple: l.tuple})
	}
	return err
}

func (g *Gate) listen(ls []*Listener) error {
	g.mu.Lock()
	if g.shut {
		g.mu.Unlock()
		return stream.ErrServerClosed
	}
	g.listeners = append(g.listeners, ls...)
	acceptors := g.acceptors
	g.mu.Unlock()
	for i, l := range ls {
		for j, a := range acceptors {
			if len(ls) == len(acceptors) && i != j {
				continue
			}
			if err := a.add(l); err != nil {
				g.unlisten(ls)
				return fmt.Errorf("serve %s: %w", l.ln.Addr(), err)
			}
		}
	}
	return nil
}

// unlisten lets the loops accept no more. It comes before the listener is
// closed: another descriptor may keep the socket, and it in the loops, alive.
func (g *Gate) unlisten(ls []*Listener) {
	g.mu.Lock()
	acceptors := g.acceptors
	g.mu.Unlock()
	for _, a := range acceptors {
		a.remove(ls)
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	g.listeners = slices.DeleteFunc(slices.Clone(g.listeners), func(l *Listener) bool { return slices.Contains(ls, l) })
}

// wait returns why no more is accepted. That a listener was closed by another
// only a look at it tells.
func (g *Gate) wait(ls []*Listener) error {
	look := time.NewTicker(time.Second / 4)
	defer look.Stop()
	for {
		for _, l := range ls {
			select {
			case err := <-l.failed:
				return fmt.Errorf("accept on %s: %w", l.ln.Addr(), err)
			default:
			}
			if l.raw.Control(func(uintptr) {}) != nil && !g.IsShut() {
				return fmt.Errorf("accept on %s: %w", l.ln.Addr(), net.ErrClosed)
			}
		}
		select {
		case <-g.ended:
			return stream.ErrServerClosed
		case <-look.C:
		}
	}
}

// Unblock makes the listeners not wait again: who had a copy of one may have
// changed what both share.
func (g *Gate) Unblock() {
	for _, l := range g.all() {
		l.raw.Control(func(fd uintptr) { poll.SetNonblock(int(fd)) })
	}
}

func (g *Gate) all() []*Listener {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.listeners
}

package gate

import (
	"errors"
	"slices"
	"sync"

	"github.com/fivetuple/fivetuple/internal/poll"
)

// Tokens is the first of the tokens that acceptors use with their loops' pollers;
// a loop's own are lower.
const Tokens = uint64(1<<32-8) << 32

// Acceptor accepts the connections that one loop is told of. It belongs to the
// loop's goroutine.
type Acceptor struct {
	gate   *Gate
	poller *poll.Poller
	settle func(Newcomer)
	ready  []*Listener // something waits

	mu        *sync.Mutex // the loop's, which guards
	listeners []*Listener // by token; nil if gone
	listening bool
	tryAt     int64 // when to listen again, if not listening
}

// Acceptor is one more for the gate, of the loop that has this mutex and poller.
// It hands settle what it accepts.
func (g *Gate) Acceptor(mu *sync.Mutex, p *poll.Poller, settle func(Newcomer)) *Acceptor {
	a := &Acceptor{gate: g, poller: p, settle: settle, mu: mu, listening: true, tryAt: poll.Never}
	g.mu.Lock()
	defer g.mu.Unlock()
	g.acceptors = append(g.acceptors, a)
	return a
}

// Notice keeps in mind that a listener is ready, if an event's token is of one.
// The loop's mutex is held.
func (a *Acceptor) Notice(token uint64) {
	if i := token - Tokens; token >= Tokens && i < uint64(len(a.listeners)) && a.listeners[i] != nil {
		a.ready = append(a.ready, a.listeners[i])
	}
}

// Look begins to listen again if a pause is over, and says whether there is
// something to accept. The loop's mutex is held; now is the time of its clock.
func (a *Acceptor) Look(now int64) bool {
	if !a.listening && (!a.gate.paused.Load() || now >= a.tryAt) {
		a.gate.paused.Store(false)
		a.listening = true
		a.tryAt = poll.Never
		for i, l := range a.listeners {
			if l != nil {
				a.hear(i) // fails if it is closed, which wait sees
			}
		}
	}
	return len(a.ready) > 0
}

// Due is when to look again, if no event comes: 0 is at once. The loop's mutex is held.
func (a *Acceptor) Due() int64 {
	if !a.listening && !a.gate.paused.Load() {
		return 0
	}
	return a.tryAt
}

// Accept accepts what waits. The loop's mutex is not held.
func (a *Acceptor) Accept() {
	for _, l := range a.ready {
		a.acceptFrom(l)
	}
	clear(a.ready)
	a.ready = a.ready[:0]
}

// Stop ends it, before the poller is closed. The loop's mutex is held.
func (a *Acceptor) Stop() {
	a.listening = false
	g := a.gate
	g.mu.Lock()
	defer g.mu.Unlock()
	g.acceptors = slices.DeleteFunc(slices.Clone(g.acceptors), func(other *Acceptor) bool { return other == a })
}

// perTurn bounds what a listener may have of a loop's turn.
const perTurn = 64

func (a *Acceptor) acceptFrom(l *Listener) {
	g := a.gate
	for range perTurn {
		n, say, err := g.accept(l)
		if say != nil {
			g.is.Events.Error(n.Tuple(), say)
		}
		switch {
		case err == nil:
			a.settle(n)
		case err == errNone:
			return
		case err == errPaused:
			a.deafen(g.pausedUntil())
			return
		case n.FD >= 0:
			poll.Reset(n.FD)
		default: // the listener is of no more use
			select {
			case l.failed <- err:
			default:
			}
			g.unlisten([]*Listener{l})
			return
		}
	}
}

// deafen stops listening, so that the loop can sleep though connections wait.
func (a *Acceptor) deafen(until int64) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.tryAt = until
	if !a.listening {
		return
	}
	a.listening = false
	for _, l := range a.listeners {
		if l != nil {
			a.ignore(l)
		}
	}
}

func (a *Acceptor) add(l *Listener) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.listeners = append(a.listeners, l)
	if !a.listening {
		return nil
	}
	return a.hear(len(a.listeners) - 1)
}

func (a *Acceptor) remove(ls []*Listener) {
	a.mu.Lock()
	defer a.mu.Unlock()
	for _, l := range ls {
		if i := slices.Index(a.listeners, l); i >= 0 {
			if a.listening {
				a.ignore(l)
			}
			a.listeners[i] = nil // a token is an index
		}
	}
}

// hear waits for connections of one listener: only one of the loops that do is
// woken by one.
func (a *Acceptor) hear(i int) error {
	var err error
	cerr := a.listeners[i].raw.Control(func(fd uintptr) {
		err = a.poller.Add(int(fd), Tokens+uint64(i), poll.In|poll.Exclusive)
	})
	return errors.Join(cerr, err)
}

func (a *Acceptor) ignore(l *Listener) {
	l.raw.Control(func(fd uintptr) { a.poller.Remove(int(fd)) })
}

package changes

import (
	"context"
	"errors"
	"time"

	"github.com/fivetuple/fivetuple"
	"github.com/fivetuple/fivetuple/owner"
	"github.com/fivetuple/fivetuple/sockdiag"
	"github.com/fivetuple/fivetuple/sockopt"
	"github.com/fivetuple/fivetuple/table"
)

// class is what a socket is to those who watch.
type class uint8

const (
	idle       class = iota // bound at most
	connecting              // waits for a peer to answer
	connected
	listening
)

func classOf(r *table.Row) class {
	switch {
	case r.Listens():
		return listening
	case r.Protocol == fivetuple.Unixgram:
		return connected // it has no name, so it can only send
	}
	switch r.State.Phase() {
	case fivetuple.PhaseConnecting:
		return connecting
	case fivetuple.PhaseConnected, fivetuple.PhaseClosing:
		return connected
	}
	return idle
}

// socket is one that a look at the table showed.
type socket struct {
	row    table.Row
	class  class
	look   int       // the last that showed it
	seen   time.Time // when that began
	first  time.Time // when it was first seen to be of its class
	after  time.Time // a look that began then did not show it so; zero if there was none
	absent time.Time // the first look that began then did not show it any more; zero if the last one did
}

// step is a change of a socket's class.
type step struct {
	socket *socket
	ended  *Event // the end of what it was before
}

// lookTries is how often a look that the kernel interrupted is made before one
// does without knowing what is gone.
const lookTries = 3

// poll looks at the table and compares it with what was there before. cost is the
// processor time that it took.
func (w *watcher) poll(ctx context.Context) (cost time.Duration, err error) {
	spent := processorTime()
	w.look++
	w.before, w.began = w.began, time.Now()
	w.steps, w.ownerless = w.steps[:0], w.ownerless[:0]
	for range lookTries {
		err = table.Each(ctx, w.query, func(r *table.Row) bool { w.see(r); return true })
		if !errors.Is(err, sockdiag.ErrInterrupted) {
			break
		}
	}
	complete := err == nil
	if !complete && !errors.Is(err, sockdiag.ErrInterrupted) {
		return 0, err
	}
	if err := w.join(ctx); err != nil {
		return 0, err
	}
	if complete {
		w.gone()
	}
	for _, s := range w.steps {
		if s.ended != nil {
			w.emit(*s.ended)
		}
		w.opened(s.socket)
	}
	clear(w.steps)
	clear(w.ownerless)
	return processorTime() - spent, nil
}

// see takes a row of the table.
func (w *watcher) see(r *table.Row) {
	// A TIME_WAIT, also one that stands for FIN_WAIT2, is what is left of a
	// connection, under a name of its own.
	if r.Protocol == fivetuple.Netlink || r.State == fivetuple.StateTimeWait || r.Timer.Kind == sockdiag.TimerTimeWait {
		return
	}
	id, now := r.ID(), classOf(r)
	s := w.known[id]
	if s == nil {
		s = &socket{class: idle}
		s.row.Namespace = w.netns
		w.known[id] = s
		w.ownerless = append(w.ownerless, s)
		if r.Protocol == fivetuple.MPTCP {
			w.mptcp[endsOf(r)] = true
		}
	} else {
		if s.look == w.look && s.class >= now {
			return // listed twice, as it changed meanwhile
		}
		if r.Inode != s.row.Inode {
			w.ownerless = append(w.ownerless, s) // it was accepted
		}
	}
	s.look, s.seen, s.absent = w.look, w.began, time.Time{}
	was := s.class
	var ended *Event
	if now != was && was >= connected {
		ended = w.ended(s, w.began, nil)
	}
	s.keep(r)
	if now != was {
		s.class, s.first, s.after = now, time.Now(), w.before
		if w.look > 1 {
			s.row.Opened = s.first
		}
		w.steps = append(w.steps, step{s, ended})
	}
}

// keep takes over what the kernel says, with a copy of TCP_INFO.
func (s *socket) keep(r *table.Row) {
	info := s.row.Info
	s.row.Socket = r.Socket
	if s.row.Info = nil; r.Info != nil {
		if info == nil {
			info = new(sockopt.TCPInfo)
		}
		*info = *r.Info
		s.row.Info = info
	}
}

// copy is the socket's row to be kept by others.
func (s *socket) copy() *table.Row {
	row := s.row
	if row.Info != nil {
		info := *row.Info
		row.Info = &info
	}
	return &row
}

// join finds the owners of the sockets that this look showed first, or first
// with an inode.
func (w *watcher) join(ctx context.Context) error {
	inodes := make([]uint32, 0, len(w.ownerless))
	for _, s := range w.ownerless {
		if s.row.Inode != 0 {
			inodes = append(inodes, s.row.Inode)
		}
	}
	if len(inodes) == 0 {
		return nil
	}
	found, err := w.finder.Find(ctx, inodes)
	if err != nil {
		return err
	}
	w.unreadable, w.partial = found.Unreadable, found.Partial
	groups := map[owner.Process]owner.Cgroup{}
	for _, s := range w.ownerless {
		s.row.Owners = append([]owner.Holder(nil), found.Of(s.row.Inode)...) // else all that was found is kept
		g, known := owner.Cgroup{}, false
		if s.row.Cgroup != 0 {
			g, known = w.finder.Cgroup(s.row.Cgroup)
		}
		if !known && len(s.row.Owners) > 0 {
			p := s.row.Owners[0].Process
			if g, known = groups[p]; !known {
				g, _ = owner.CgroupOf(p.PID) // what cannot be read is of no known group
				groups[p] = g
			}
		}
		s.row.Unit, s.row.Container = g.Unit, g.Container
	}
	return nil
}

// opened tells of a socket that became what it is.
func (w *watcher) opened(s *socket) {
	switch s.class {
	case connected:
		w.emit(Event{Time: s.first, Kind: Open, Row: s.copy(), Seen: true})
	case listening:
		w.emit(Event{Time: s.first, Kind: Listen, Row: s.copy(), Seen: true})
	}
}

// kernelTells says whether there will be an event of the socket's end.
func (w *watcher) kernelTells(r *table.Row) bool {
	return w.events && (r.Protocol == fivetuple.TCP || r.Protocol == fivetuple.UDP)
}

// grace is how long the event of a socket that left the table is waited for: the
// kernel sends it beside its other work.
const grace = time.Second

// maxClosed bounds how many sockets are remembered that are out of the table and
// not yet destroyed: those that programs still hold.
const maxClosed = 1 << 16

// gone goes through the sockets that the look did not show.
func (w *watcher) gone() {
	for id, s := range w.known {
		if s.look == w.look {
			continue
		}
		tells := w.kernelTells(&s.row)
		if s.absent.IsZero() {
			s.absent = w.began
		}
		if tells && s.class != idle && w.began.Sub(s.absent) < grace {
			continue // its event says more; it is on its way, or comes when its process closes it
		}
		if tells {
			if len(w.closed) == maxClosed {
				clear(w.closed)
			}
			w.closed[id] = struct{}{}
		}
		e := w.ended(s, w.began, nil)
		if tells && e.Err == "" {
			e.Err = errUnhashed
			if w.lost.After(s.seen) {
				e.Err = errEndLost
			}
		}
		w.forget(id, s)
		if s.class != idle {
			w.emit(*e)
		}
	}
}

func (w *watcher) forget(id table.ID, s *socket) {
	delete(w.known, id)
	if s.row.Protocol == fivetuple.MPTCP {
		delete(w.mptcp, endsOf(&s.row))
	}
}

// take takes an event of the kernel.
func (w *watcher) take(d destroyed) error {
	if errors.Is(d.err, sockdiag.ErrEventsLost) {
		w.lost = d.at
		w.emit(Event{Time: d.at, Kind: Lost, Err: d.err.Error()})
		return nil
	}
	if d.err != nil {
		return d.err
	}
	row := table.Row{Socket: d.socket, Namespace: w.netns}
	id := row.ID()
	if _, told := w.closed[id]; told {
		delete(w.closed, id)
		return nil
	}
	if s := w.known[id]; s != nil {
		w.forget(id, s)
		if s.class != idle {
			w.emit(*w.ended(s, d.at, &d.socket))
		}
		return nil
	}
	if w.watches(row.Protocol) {
		w.unseen(&row, d.at)
	}
	return nil
}

// ended is the end of a socket that was seen, by the kernel's word for it if
// there is one.
func (w *watcher) ended(s *socket, at time.Time, final *sockdiag.Socket) *Event {
	e := &Event{Time: at, Kind: Close, Row: s.copy(), Seen: true, Duration: max(0, s.seen.Sub(s.first))}
	if s.class == listening {
		e.Kind = Unlisten
	}
	if !s.after.IsZero() {
		e.MaxDuration = max(0, at.Sub(s.after))
	}
	wasConnected := s.class != connecting
	if final != nil {
		e.Duration = max(0, at.Sub(s.first))
		switch {
		case s.class == listening:
		case s.row.Remote.Port() != 0 && final.Remote.Port() == 0: // tcp_disconnect has cleared TCP_INFO, too
			if s.row.Protocol == fivetuple.TCP && wasConnected {
				e.Err = errReset
			}
		case final.Info != nil:
			e.Row.Info, e.Final = final.Info, true
			wasConnected = wasConnected || met(final.Info)
		}
	}
	if !wasConnected {
		e.Err = errNeverConnected
	}
	return e
}

// met says whether a connection was made: the peer's answer to the SYN gave a
// round-trip time.
func met(i *sockopt.TCPInfo) bool { return i.RTT != 0 || i.BytesAcked != 0 || i.BytesReceived != 0 }

// unseen tells of the end of a socket that no look showed.
func (w *watcher) unseen(r *table.Row, at time.Time) {
	tcp := r.Protocol == fivetuple.TCP
	if tcp && !r.Remote.IsValid() || !tcp && r.Local.Port() == 0 {
		return // it never had a peer: was made and not used, or was a listener
	}
	if tcp && w.subflow(r) {
		return
	}
	since := w.began
	if at.Before(since) {
		since = w.before
	}
	e := Event{Time: at, Kind: Close, Row: r, MaxDuration: max(0, at.Sub(since))}
	switch {
	case !r.Remote.IsValid():
		e.Kind = Unlisten
	case r.Remote.Port() == 0:
		r.Info = nil
		e.Err = errDisconnected
	default:
		r.State = fivetuple.StateEstablished
		if e.Final = r.Info != nil; e.Final && !met(r.Info) {
			e.Err = errNeverConnected
		}
	}
	w.emit(e)
}

// subflow says whether a TCP socket was one of a Multipath TCP connection, which
// the table shows in its place.
func (w *watcher) subflow(r *table.Row) bool {
	e := endsOf(r)
	e.protocol = fivetuple.MPTCP
	if w.mptcp[e] {
		return true
	}
	if e.remote.Port() != 0 {
		return false
	}
	for parent := range w.mptcp { // tcp_disconnect has forgotten the peer's port
		if parent.local == e.local && parent.remote.Addr() == e.remote.Addr() {
			return true
		}
	}
	return false
}

package changes

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"slices"
	"time"

	"github.com/fivetuple/fivetuple"
	"github.com/fivetuple/fivetuple/filter"
	"github.com/fivetuple/fivetuple/netns"
	"github.com/fivetuple/fivetuple/owner"
	"github.com/fivetuple/fivetuple/sockdiag"
	"github.com/fivetuple/fivetuple/table"
)

// Options say what to watch. The zero value is every socket, looked at once a second.
type Options struct {
	// Filter chooses events; nil takes all. It is asked about the socket as
	// [Event].Row has it: a closed one in the state it was last seen in, with
	// the owners it had and its last TCP_INFO. One that no look showed counts
	// as ESTABLISHED if it has a peer.
	Filter *filter.Filter
	// Protocols to watch, as in [sockdiag.Query]; none means all but netlink(7),
	// by which the watch itself asks.
	Protocols []fivetuple.Network
	// Interval is how long to wait from one look at the table to the next, at
	// least: with many sockets it is longer, so that the looks take no more than a
	// fifth of a processor's time. 0 means a second.
	Interval time.Duration
	// PollOnly does without the kernel's events.
	PollOnly bool
	// Started is called after the first look, from when on nothing is missed
	// but what Start says.
	Started func(Start)
}

// Start says how a watch began.
type Start struct {
	Sockets    int    // that are there already, whether the filter takes them or not
	Unreadable int    // processes whose sockets cannot be told to be theirs
	Partial    string // why there may be processes that are not even seen
	NoEvents   error  // why the kernel tells of no closes: what opens and closes between two looks is missed
}

// Watch looks at the socket table of the calling thread's network namespace again
// and again and tells what changed, until ctx is done, which is no error.
//
// Opens are noticed by comparing two looks. The end of a TCP or UDP socket the
// kernel tells at once, also of one that no look showed; its end, its last
// TCP_INFO, is exact then. Without the kernel's events, and of other kinds of
// sockets, ends are noticed by comparing, and what opened and closed between two
// looks is missed. A connection ends when its process closes it and the peer has
// acknowledged that; a TIME_WAIT counts as closed.
//
// A listener that no look showed is not told, and of Multipath TCP the
// connection and not its subflows. No rights are needed; without CAP_SYS_PTRACE
// the processes of other users are not known.
//
// Memory is bounded by the number of sockets, about 1 KiB for each. Events that
// are not taken in time are kept by the kernel, and when it drops some there is an
// event of kind [Lost].
func Watch(ctx context.Context, o Options) iter.Seq2[Event, error] {
	return func(yield func(Event, error) bool) {
		w := newWatcher(o)
		if err := w.run(ctx, yield); err != nil && ctx.Err() == nil {
			yield(Event{}, fmt.Errorf("watch sockets: %w", err))
		}
	}
}

// watcher is a watch under way.
type watcher struct {
	Options
	finder owner.Finder
	query  table.Query
	netns  *netns.Namespace
	events bool // the kernel tells of closes

	known  map[table.ID]*socket
	closed map[table.ID]struct{} // told of, and their destroy event is yet to come
	mptcp  map[ends]bool         // the known ones of Multipath TCP

	look       int       // counts looks at the table
	began      time.Time // the last look
	before     time.Time // the one before it
	lost       time.Time // when events were, the last time
	steps      []step    // of a look under way
	ownerless  []*socket // of a look under way: their owners are to be found
	unreadable int
	partial    string
	pending    []Event
}

func newWatcher(o Options) *watcher {
	return &watcher{Options: o, known: map[table.ID]*socket{}, closed: map[table.ID]struct{}{}, mptcp: map[ends]bool{}}
}

// destroyed is what the kernel tells of a close.
type destroyed struct {
	at     time.Time
	socket sockdiag.Socket
	err    error
}

// eventQueue is how many events wait here while the table is looked at; the
// kernel keeps more.
const eventQueue = 4096

func (w *watcher) run(ctx context.Context, yield func(Event, error) bool) error {
	defer w.finder.Close()
	here, err := netns.Current()
	if err != nil {
		return err
	}
	w.netns = &here
	ctx, cancel := context.WithCancel(ctx)
	ended := make(chan struct{})
	close(ended)
	defer func() {
		cancel()
		<-ended
	}()
	var closes chan destroyed
	start := Start{NoEvents: errors.New("not asked for")}
	if !w.PollOnly {
		events, err := sockdiag.Destroyed(ctx)
		if start.NoEvents = err; err == nil {
			w.events = true
			closes, ended = make(chan destroyed, eventQueue), make(chan struct{})
			go func() {
				defer close(ended)
				pump(ctx, events, closes)
			}()
		}
	}
	w.query = w.plan()
	cost, err := w.poll(ctx)
	if err != nil {
		return err
	}
	if w.pending = nil; w.Started != nil {
		start.Sockets, start.Unreadable, start.Partial = len(w.known), w.unreadable, w.partial
		w.Started(start)
	}
	next := time.NewTimer(w.pause(cost))
	defer next.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case d := <-closes:
			err = w.take(d)
		case <-next.C:
			// What waits is taken first: a socket whose end is known already
			// must not look as if it had left the table without one.
			for waits := len(closes); waits > 0 && err == nil; waits-- {
				err = w.take(<-closes)
			}
			if err == nil {
				cost, err = w.poll(ctx)
			}
			next.Reset(w.pause(cost))
		}
		if err != nil {
			return err
		}
		for _, e := range w.pending {
			if !yield(e, nil) {
				return nil
			}
		}
		w.pending = w.pending[:0]
	}
}

// pump gives each event the time when it came.
func pump(ctx context.Context, events iter.Seq2[sockdiag.Socket, error], to chan<- destroyed) {
	for s, err := range events {
		select {
		case to <- destroyed{time.Now(), s, err}:
		case <-ctx.Done():
			return
		}
	}
}

// pause is how long to wait after a look that took so much processor time.
func (w *watcher) pause(cost time.Duration) time.Duration {
	interval := w.Interval
	if interval <= 0 {
		interval = time.Second
	}
	return max(interval-time.Since(w.began), 4*cost)
}

// fixed are the fields that do not change while a socket lives, or of which a
// change makes it another: a filter of these alone may run in the kernel. By any
// other a socket that no longer matches would look closed.
var fixed = []filter.Field{
	filter.FieldProtocol, filter.FieldFamily, filter.FieldLocalAddr, filter.FieldRemoteAddr,
	filter.FieldLocalPort, filter.FieldRemotePort, filter.FieldName, filter.FieldCookie,
	filter.FieldNetns, filter.FieldUser, filter.FieldMark, filter.FieldCgroup,
}

// plan says what to ask of the table.
func (w *watcher) plan() table.Query {
	q := table.Query{Protocols: w.Protocols, Details: sockdiag.WithCgroup}
	narrow := true
	for f := filter.FieldNone + 1; f <= filter.FieldDrops; f++ {
		narrow = narrow && (!w.Filter.Uses(f) || slices.Contains(fixed, f))
	}
	if narrow {
		q.Filter = w.Filter
	}
	if w.Filter.Uses(filter.FieldMark) {
		q.Details |= sockdiag.WithMark
	}
	if w.Filter.Uses(filter.FieldDrops) {
		q.Details |= sockdiag.WithMemory
	}
	info := !w.events
	for _, f := range []filter.Field{filter.FieldRTT, filter.FieldRetrans, filter.FieldCwnd, filter.FieldSent, filter.FieldReceived} {
		info = info || w.Filter.Uses(f)
	}
	if info {
		q.Details |= sockdiag.WithInfo
	}
	return q
}

// watches says whether a protocol is watched.
func (w *watcher) watches(p fivetuple.Network) bool {
	return len(w.Protocols) == 0 || slices.Contains(w.Protocols, p)
}

// emit tells of an event if the filter takes its socket.
func (w *watcher) emit(e Event) {
	switch {
	case e.Row == nil:
	case e.Seen && !w.Filter.Match(e.Row):
		return
	case !e.Seen && !w.Filter.Match(unseen{e.Row}):
		return
	}
	w.pending = append(w.pending, e)
}

// unseen is a socket of which the kernel told the end only: not who made it.
type unseen struct{ *table.Row }

// Any implements [filter.Subject].
func (u unseen) Any(f filter.Field, test func(filter.Value) bool) bool {
	return f != filter.FieldUser && f != filter.FieldMark && u.Row.Any(f, test)
}

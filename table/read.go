package table

import (
	"context"
	"errors"
	"io/fs"
	"slices"

	"github.com/fivetuple/fivetuple"
	"github.com/fivetuple/fivetuple/filter"
	"github.com/fivetuple/fivetuple/netns"
	"github.com/fivetuple/fivetuple/owner"
	"github.com/fivetuple/fivetuple/sockdiag"
	"github.com/fivetuple/fivetuple/sockopt"
)

// Query says what of the socket table is wanted. The zero value is every
// socket of this network namespace, without owners.
type Query struct {
	// Filter chooses sockets; nil takes all. As much of it as can be runs in
	// the kernel.
	Filter *filter.Filter
	// Protocols and States narrow the filter further, as in [sockdiag.Query].
	Protocols []fivetuple.Network
	States    sockdiag.States
	// Details to read beyond those that the filter looks at.
	Details sockdiag.Details
	// Owners asks for the processes that hold the sockets, and their units and
	// containers.
	Owners bool
	// Peers asks who holds the other end of connections within the machine.
	Peers bool
	// Rates asks to compare with what the [Reader] read before.
	Rates bool
	// Servers asks which ports are served, also where the filter leaves out
	// what listens there: [Table.Group] by port wants to know.
	Servers bool
	// Namespaces to read, from [netns.All]. None means the one of this process.
	Namespaces []netns.Namespace
}

// Table is what was read.
type Table struct {
	Rows []Row
	// Unreadable is how many processes could not be looked into for lack of
	// permission: one of them may be an owner that Rows lacks.
	Unreadable int
	// Partial says why there may be processes that the search for owners did
	// not even see; empty if all were seen.
	Partial string
	// Unentered is how many of several namespaces could not be looked into for
	// lack of permission.
	Unentered int

	listeners []Row // that Servers asked for
	ahead     *ahead

	here  uint64 // this process's network namespace
	infos []sockopt.TCPInfo
}

// Reader reads the table again and again and keeps what does not change
// between. The zero value is ready. It is used by one goroutine at a time.
type Reader struct {
	finder owner.Finder
	groups map[owner.Process]owner.Cgroup
	before map[ID]sample // of the last time that rates were asked for
}

// Read reads the table once. See [Reader.Read].
func Read(ctx context.Context, q Query) (*Table, error) {
	var r Reader
	defer r.Close()
	return r.Read(ctx, q)
}

// Close gives back what the reader holds. It may be used again after.
func (r *Reader) Close() error { return r.finder.Close() }

// Read returns the sockets that a query asks for, in the kernel's order. The
// kernel takes no snapshot: a socket that changes its state meanwhile may be
// missing, but is not listed twice.
func (r *Reader) Read(ctx context.Context, q Query) (*Table, error) {
	t := &Table{}
	p := q.plan()
	if p.owners {
		t.ahead = r.lookAhead(ctx, q.Filter == nil && q.States == 0)
	}
	err := t.readAll(ctx, q)
	if t.ahead != nil {
		<-t.ahead.done
	}
	if err == nil && p.owners {
		err = r.join(ctx, t)
	}
	if err != nil {
		return nil, err
	}
	if p.peers {
		if err := r.peers(ctx, q, t); err != nil {
			return nil, err
		}
	}
	if p.rates {
		r.rates(t)
	}
	if p.late {
		t.Rows = slices.DeleteFunc(t.Rows, func(row Row) bool { return !p.match.Match(&row) })
	}
	return t, nil
}

// plan is how a query is carried out.
type plan struct {
	query  sockdiag.Query
	match  filter.SocketPlan
	none   bool // nothing can match
	owners bool // the rows need them, or the filter does
	peers  bool
	rates  bool // or it asks for those
	late   bool // the filter must wait for owners, peers or rates
}

func (q Query) plan() plan {
	p := plan{match: q.Filter.Sockets(), owners: q.Owners}
	p.none = p.match.Never
	p.query = sockdiag.Query{
		Protocols: q.Protocols,
		States:    q.States,
		Program:   p.match.Program,
		Details:   q.Details,
	}
	if p.match.Protocols != nil {
		p.query.Protocols = common(q.Protocols, p.match.Protocols)
		p.none = p.none || len(p.query.Protocols) == 0
	}
	if states := sockdiag.States(p.match.States); states != 0 {
		p.query.States = states
		if q.States != 0 {
			p.query.States = (states | sockdiag.Listening&^sockdiag.ListeningOrBound) & q.States
			p.none = p.none || p.query.States == 0
		}
	}
	for f, d := range filterDetails {
		if q.Filter.Uses(f) {
			p.query.Details |= d
		}
	}
	for _, f := range []filter.Field{filter.FieldPID, filter.FieldCommand, filter.FieldUnit, filter.FieldContainer} {
		if q.Filter.Uses(f) {
			p.owners, p.late = true, true
		}
	}
	if p.peers = q.Peers; q.Filter.Uses(filter.FieldPeerName) {
		p.peers, p.late = true, true
	}
	if q.Filter.Uses(filter.FieldRate) || q.Filter.Uses(filter.FieldAge) {
		p.late = true
	}
	if p.rates = q.Rates; p.rates {
		p.query.Details |= sockdiag.WithInfo
	}
	if p.owners {
		p.query.Details |= sockdiag.WithCgroup
	}
	return p
}

// filterDetails are what a filter's terms need of the kernel.
var filterDetails = map[filter.Field]sockdiag.Details{
	filter.FieldRTT:      sockdiag.WithInfo,
	filter.FieldRetrans:  sockdiag.WithInfo,
	filter.FieldCwnd:     sockdiag.WithInfo,
	filter.FieldSent:     sockdiag.WithInfo,
	filter.FieldReceived: sockdiag.WithInfo,
	filter.FieldDrops:    sockdiag.WithMemory,
	filter.FieldMark:     sockdiag.WithMark,
	filter.FieldCgroup:   sockdiag.WithCgroup,
}

// common returns what is in both lists; the empty first one means all.
func common(some, others []fivetuple.Network) []fivetuple.Network {
	if len(some) == 0 {
		return others
	}
	return slices.DeleteFunc(slices.Clone(some), func(n fivetuple.Network) bool { return !slices.Contains(others, n) })
}

// readAll reads the namespaces of a query. One of several that is gone, or that may
// not be entered, is passed over.
func (t *Table) readAll(ctx context.Context, q Query) error {
	here, err := netns.Current()
	if err == nil {
		t.here = here.ID
	}
	if len(q.Namespaces) == 0 {
		return t.read(ctx, q, &here)
	}
	for i := range q.Namespaces {
		ns := &q.Namespaces[i]
		read := func() error { return t.read(ctx, q, ns) } // which makes out devices by the names they have there
		if ns.ID == t.here {
			err = read()
		} else {
			err = ns.Do(read)
		}
		several := len(q.Namespaces) > 1
		switch {
		case several && errors.Is(err, fs.ErrPermission):
			t.Unentered++
		case err != nil && !(several && errors.Is(err, fs.ErrNotExist)):
			return err
		}
	}
	return nil
}

// read adds what a query asks for of the namespace that the calling thread is in.
func (t *Table) read(ctx context.Context, q Query, ns *netns.Namespace) error {
	if q.Servers {
		serving := &Table{}
		listeners := Query{States: sockdiag.Listening, Protocols: []fivetuple.Network{fivetuple.TCP, fivetuple.MPTCP, fivetuple.UDP, fivetuple.UDPLite, fivetuple.SCTP}}
		if err := serving.dump(ctx, listeners.plan(), ns); err != nil {
			return err
		}
		t.listeners = append(t.listeners, serving.Rows...)
	}
	if q.Filter == nil && q.States == 0 {
		t.Rows = slices.Grow(t.Rows, expected()) // else they are copied time and again
	}
	return t.dump(ctx, q.plan(), ns)
}

// readTries is how often an interrupted dump is made before giving up.
const readTries = 5

// dump adds the sockets of the namespace that the calling thread is in.
func (t *Table) dump(ctx context.Context, p plan, ns *netns.Namespace) error {
	if p.none {
		return nil
	}
	first := len(t.Rows)
	var err error
	for range readTries {
		t.Rows = t.Rows[:first]
		t.ahead.forget(first)
		if err = t.dumpOnce(ctx, p, ns); !errors.Is(err, sockdiag.ErrInterrupted) {
			break
		}
	}
	if t.dropRepeated(first) {
		t.ahead.forget(first) // the rows have moved
	}
	return err
}

func (t *Table) dumpOnce(ctx context.Context, p plan, ns *netns.Namespace) error {
	for s, err := range sockdiag.Dump(ctx, p.query) {
		if err != nil {
			return err
		}
		last := len(t.Rows)
		t.Rows = append(t.Rows, Row{})
		row := &t.Rows[last]
		row.Socket, row.Namespace = s, ns
		if !p.late && !p.match.Match(row) {
			t.Rows = t.Rows[:last]
			continue
		}
		t.keepInfo(row)
		if last%ownEvery == 0 {
			t.ahead.own(t)
		}
	}
	return nil
}

// dropRepeated leaves one of the rows from first on that are of the same socket.
// It is listed twice if it begins to listen, or to connect, between the parts of
// the table that the kernel goes through: once in CLOSE or LISTEN.
func (t *Table) dropRepeated(first int) (dropped bool) {
	idle := map[uint64]int{} // cookie to row
	isIdle := func(r *Row) bool {
		return r.Cookie != 0 && (r.State == fivetuple.StateClose || r.State == fivetuple.StateListen)
	}
	var drop []int
	for i := first; i < len(t.Rows); i++ {
		if r := &t.Rows[i]; isIdle(r) {
			if _, twice := idle[r.Cookie]; twice {
				drop = append(drop, i)
			}
			idle[r.Cookie] = i
		}
	}
	if len(idle) == 0 {
		return false
	}
	for i := first; i < len(t.Rows); i++ {
		if r := &t.Rows[i]; !isIdle(r) {
			if j, twice := idle[r.Cookie]; twice {
				drop = append(drop, j)
			}
		}
	}
	slices.Sort(drop)
	for _, i := range slices.Backward(slices.Compact(drop)) {
		t.Rows = slices.Delete(t.Rows, i, i+1)
	}
	return len(drop) > 0
}

// keepInfo copies TCP_INFO, which the dump overwrites, to where many fit.
func (t *Table) keepInfo(row *Row) {
	if row.Info == nil {
		return
	}
	if len(t.infos) == cap(t.infos) {
		t.infos = make([]sockopt.TCPInfo, 0, 256)
	}
	t.infos = append(t.infos, *row.Info)
	row.Info = &t.infos[len(t.infos)-1]
}

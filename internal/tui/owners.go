package tui

import (
	"context"
	"time"

	"github.com/fivetuple/fivetuple/filter"
	"github.com/fivetuple/fivetuple/owner"
	"github.com/fivetuple/fivetuple/table"
)

// owners are the processes that hold the sockets, as they were found the last
// time. A search goes through all descriptors of the machine, whatever it looks
// for, so it is made rarely, for all sockets at once, and beside the readings.
type owners struct {
	finder owner.Finder // of the search only
	of     holdersOf
	table  table.Table // for Unowned
	upTo   uint64      // sockets asked for until then were looked for
	at     time.Time   // of the latest search; zero if there was none
	cost   time.Duration
	err    error // of the latest search

	places owner.Finder
	groups map[uint64]place
	ofProc map[owner.Process]owner.Cgroup
}

// holdersOf are the holders of a socket that a search has found.
type holdersOf func(inode uint32, cookie uint64) []owner.Holder

// holders are those of a slot, none if they are not known.
func (o *owners) holders(p *slot) []owner.Holder {
	if p.inode == 0 || o.of == nil {
		return nil
	}
	return o.of(p.inode, p.cookie)
}

// place is a control group; not known, if it could not be found.
type place struct {
	owner.Cgroup
	known bool
}

const (
	ownersStale = 30 * time.Second // descriptors can be passed on
	ownersShare = 10               // a search may take a tenth of the time
)

func (o *owners) close() {
	o.finder.Close()
	o.places.Close()
}

// search is what is to be looked for.
type search struct {
	inodes []uint32
	upTo   uint64
}

// due says what to look for now, if it is time to.
func (b *book) due(now time.Time) (search, bool) {
	o := &b.owners
	since := now.Sub(o.at)
	if !o.at.IsZero() && (since < ownersShare*o.cost || since < ownersStale && b.serial == o.upTo) {
		return search{}, false
	}
	s := search{upTo: b.serial, inodes: make([]uint32, 0, len(b.slots))}
	for i := range b.slots {
		if p := &b.slots[i]; p.is(inUse) && p.inode != 0 {
			s.inodes = append(s.inodes, p.inode)
		}
	}
	return s, true
}

// answer is what a search found.
type answer struct {
	of         holdersOf
	unreadable int
	err        error
	upTo       uint64
	cost       time.Duration
}

func (o *owners) search(ctx context.Context, s search) answer {
	start := time.Now()
	found, err := o.finder.Find(ctx, s.inodes)
	return answer{of: found.OfSocket, unreadable: found.Unreadable, err: err, upTo: s.upTo, cost: time.Since(start)}
}

// learn takes what a search found.
func (b *book) learn(a answer, now time.Time) {
	o := &b.owners
	o.at, o.cost, o.err = now, a.cost, a.err
	if a.err != nil {
		return
	}
	o.of, o.upTo, o.table.Unreadable = a.of, a.upTo, a.unreadable
	clear(o.ofProc) // a process may have moved
	b.count()
}

// unowned says why a slot has no owner; false if that has not been looked for.
func (o *owners) unowned(b *book, p *slot) (table.Unowned, bool) {
	if p.inode != 0 {
		if len(o.holders(p)) > 0 {
			return table.Owned, true
		}
		if p.asked > o.upTo || o.at.IsZero() {
			return 0, false
		}
	}
	b.row.State, b.row.Inode, b.row.Owners, b.row.Namespace = p.state, p.inode, nil, &b.here
	return o.table.Unowned(&b.row), true
}

// own fills a row's owners, and its unit and container if the filter asks for them.
func (b *book) own(p *slot, row *table.Row, f *filter.Filter) {
	row.Owners = b.owners.holders(p)
	row.Unit, row.Container = "", ""
	if f.Uses(filter.FieldUnit) || f.Uses(filter.FieldContainer) {
		b.owners.place(row)
	}
}

// place finds the unit and the container, by the control group the socket was
// made in or else by that of its first owner.
func (o *owners) place(row *table.Row) {
	var g place
	if row.Cgroup != 0 {
		var asked bool
		if g, asked = o.groups[row.Cgroup]; !asked {
			g.Cgroup, g.known = o.places.Cgroup(row.Cgroup)
			if o.groups == nil {
				o.groups = map[uint64]place{}
			}
			o.groups[row.Cgroup] = g
		}
	}
	if !g.known && len(row.Owners) > 0 {
		g.Cgroup = o.groupOf(row.Owners[0].Process)
	}
	row.Unit, row.Container = g.Unit, g.Container
}

func (o *owners) groupOf(p owner.Process) owner.Cgroup {
	g, known := o.ofProc[p]
	if !known {
		g, _ = owner.CgroupOf(p.PID) // what cannot be read is of no known group
		if o.ofProc == nil {
			o.ofProc = map[owner.Process]owner.Cgroup{}
		}
		o.ofProc[p] = g
	}
	return g
}

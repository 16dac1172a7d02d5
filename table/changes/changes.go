// Package changes says what became of the sockets between two looks at the
// table: [Diff] compares two readings, [Watch] looks again and again, and a
// [Snapshot] keeps a reading in a file for later.
//
//	for e, err := range changes.Watch(ctx, changes.Options{}) {
//		fmt.Println(e.Kind, e.Row.Tuple(), e.Duration)
//	}
//
// It stands on package table, so on sock_diag(7), and [Watch] also on the
// kernel's destroy events (SKNLGRP_INET_TCP_DESTROY and its kin, Linux 4.2). On
// other systems than Linux, Watch fails with an error wrapping
// [errors.ErrUnsupported]; Diff and snapshot files work everywhere.
package changes

import (
	"encoding/json"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"github.com/fivetuple/fivetuple"
	"github.com/fivetuple/fivetuple/owner"
	"github.com/fivetuple/fivetuple/table"
)

// Kind is what became of a socket.
type Kind string

// The kinds of a [Change].
const (
	Opened  Kind = "opened"  // it is in the later table only
	Closed  Kind = "closed"  // it is in the earlier table only
	Changed Kind = "changed" // it is in both, and What differs
)

// Change is a difference between two tables.
type Change struct {
	Kind Kind
	// Before and After are the socket in the two tables, nil where it is not there.
	Before, After *table.Row
	// What changed, of: state, local, remote, owners.
	What []string
	// BytesIn and BytesOut are what a TCP connection received, and sent and
	// had acknowledged, between the two readings, if both have TCP_INFO.
	BytesIn, BytesOut uint64
}

// Row is the socket as it was last seen.
func (c *Change) Row() *table.Row {
	if c.After != nil {
		return c.After
	}
	return c.Before
}

// Diff compares two readings of the table of one machine since it started:
// sockets are the same by [table.Row.ID]. What closed comes first, then what
// changed, then what opened, each in the order of its table.
//
// A socket changed if its state, an end of it, or who holds it is another:
// a process that got or lost a descriptor of it counts, a descriptor more in the
// same process does not. Owners count only where both readings found some.
// Queues, windows and counters always move and are no change.
//
// A TIME_WAIT is no socket but what is left of one: a connection that became
// one changed its state, and others are left out.
func Diff(before, after []table.Row) []Change {
	return diff(before, after, func(r *table.Row) any { return r.ID() }, byPID)
}

// DiffEnds compares readings of different machines, network namespaces, or
// starts of one machine, of which ids say nothing: sockets are the same by
// protocol and ends, and owners by command and user.
func DiffEnds(before, after []table.Row) []Change {
	return diff(before, after, func(r *table.Row) any { return endsOf(r) }, byCommand)
}

// ends is what a socket can be found by when its id says nothing.
type ends struct {
	protocol      fivetuple.Network
	local, remote netip.AddrPort
	name          string
	number        uint16
}

func endsOf(r *table.Row) ends {
	return ends{r.Protocol, r.Local, r.Remote, r.Name, r.Number}
}

// place is a key and which row of that key it is: of the sockets that share
// their ends (SO_REUSEPORT, unnamed Unix sockets) each counts.
type place struct {
	key any
	n   int
}

func diff(before, after []table.Row, key func(*table.Row) any, owners func(owner.Holder) string) []Change {
	old := index(before, key)
	var opened, changed []Change
	left := map[ends]*table.Row{} // what became TIME_WAIT, and is not yet known to have
	counts := map[any]int{}
	for i := range after {
		row := &after[i]
		if row.State == fivetuple.StateTimeWait {
			left[endsOf(row)] = row
			continue
		}
		k := key(row)
		p := place{k, counts[k]}
		counts[k]++
		was := old[p]
		if was == nil {
			opened = append(opened, Change{Kind: Opened, After: row})
			continue
		}
		delete(old, p)
		if c := compare(was, row, owners); len(c.What) > 0 {
			changed = append(changed, c)
		}
	}
	var closed []Change
	counts = map[any]int{}
	for i := range before {
		row := &before[i]
		if row.State == fivetuple.StateTimeWait {
			continue
		}
		k := key(row)
		p := place{k, counts[k]}
		counts[k]++
		if old[p] == nil {
			continue
		}
		if rest := left[endsOf(row)]; rest != nil {
			changed = append(changed, Change{Kind: Changed, Before: row, After: rest, What: []string{"state"}})
			delete(left, endsOf(row))
			continue
		}
		closed = append(closed, Change{Kind: Closed, Before: row})
	}
	return slices.Concat(closed, changed, opened)
}

func index(rows []table.Row, key func(*table.Row) any) map[place]*table.Row {
	all := make(map[place]*table.Row, len(rows))
	counts := map[any]int{}
	for i := range rows {
		if rows[i].State == fivetuple.StateTimeWait {
			continue
		}
		k := key(&rows[i])
		all[place{k, counts[k]}] = &rows[i]
		counts[k]++
	}
	return all
}

func compare(before, after *table.Row, owners func(owner.Holder) string) Change {
	c := Change{Kind: Changed, Before: before, After: after}
	if before.State != after.State {
		c.What = append(c.What, "state")
	}
	if before.Local != after.Local || before.Name != after.Name {
		c.What = append(c.What, "local")
	}
	if before.Remote != after.Remote {
		c.What = append(c.What, "remote")
	}
	if len(before.Owners) > 0 && len(after.Owners) > 0 && holders(before, owners) != holders(after, owners) {
		c.What = append(c.What, "owners")
	}
	if a, b := before.Info, after.Info; a != nil && b != nil && before.State != fivetuple.StateListen {
		c.BytesIn, c.BytesOut = b.BytesReceived-min(a.BytesReceived, b.BytesReceived), b.BytesAcked-min(a.BytesAcked, b.BytesAcked)
	}
	return c
}

// holders is who holds a socket, in any order.
func holders(r *table.Row, of func(owner.Holder) string) string {
	var all []string
	for _, h := range r.Owners {
		all = append(all, of(h))
	}
	slices.Sort(all)
	return strings.Join(slices.Compact(all), "\n")
}

func byPID(h owner.Holder) string     { return fmt.Sprint(h.PID, " ", h.Command, " ", h.User) }
func byCommand(h owner.Holder) string { return h.Command + " " + h.User }

// MarshalJSON writes what happened and the rows it happened to.
func (c Change) MarshalJSON() ([]byte, error) {
	r := c.Row()
	j := struct {
		Kind     Kind       `json:"kind"`
		What     []string   `json:"what,omitempty"`
		Protocol string     `json:"protocol"`
		Local    string     `json:"local"`
		Remote   string     `json:"remote"`
		BytesIn  *uint64    `json:"bytes_in,omitempty"`
		BytesOut *uint64    `json:"bytes_out,omitempty"`
		Before   *table.Row `json:"before,omitempty"`
		After    *table.Row `json:"after,omitempty"`
	}{
		Kind: c.Kind, What: c.What, Protocol: r.Protocol.String(), Local: r.LocalEnd().String(), Remote: r.RemoteEnd().String(),
		Before: c.Before, After: c.After,
	}
	if c.Before != nil && c.After != nil && c.Before.Info != nil && c.After.Info != nil {
		j.BytesIn, j.BytesOut = &c.BytesIn, &c.BytesOut
	}
	return json.Marshal(j)
}

package table

import (
	"context"
	"errors"

	"github.com/fivetuple/fivetuple/owner"
)

// join finds the owners of the rows, and their units and containers.
func (r *Reader) join(ctx context.Context, t *Table) error {
	if t.ahead != nil && t.ahead.err == nil {
		t.ahead.own(t)
		return r.joinLate(ctx, t)
	}
	var inodes []uint32
	for i := range t.Rows {
		if n := t.Rows[i].Inode; n != 0 {
			inodes = append(inodes, n)
		}
	}
	found, err := r.finder.Find(ctx, inodes)
	if err != nil {
		return err
	}
	r.own(t, t.Rows, &found)
	return nil
}

// joinLate looks again for the owners of what was opened while the search went on.
func (r *Reader) joinLate(ctx context.Context, t *Table) error {
	var inodes []uint32
	var rows []int
	for i := range t.Rows {
		if row := &t.Rows[i]; row.ownerMayBeLate() {
			inodes, rows = append(inodes, row.Inode), append(rows, i)
		}
	}
	if len(inodes) == 0 {
		return nil
	}
	found, err := r.finder.Find(ctx, inodes)
	if err != nil {
		return err
	}
	for _, i := range rows {
		r.own(t, t.Rows[i:i+1], &found)
	}
	return nil
}

// ownerMayBeLate says whether the socket may have been opened while the search for
// owners went on.
func (r *Row) ownerMayBeLate() bool {
	return r.Inode != 0 && r.NoOwner != Owned && r.NoOwner != Kernel
}

// own fills in what was found of some of the table's rows.
func (r *Reader) own(t *Table, rows []Row, found *owner.Found) {
	t.Unreadable, t.Partial = found.Unreadable, found.Partial
	for i := range rows {
		row := &rows[i]
		row.Owners = found.OfSocket(row.Inode, row.Cookie)
		row.NoOwner = t.Unowned(row)
		row.Unit, row.Container = r.place(row)
	}
}

// ahead is a search for owners that goes on while the table is read, as far as
// that can be done without knowing which sockets there are.
type ahead struct {
	reader *Reader
	done   chan struct{} // closed when these are set:
	found  owner.Found
	err    error // there is nothing in found

	owned int // rows whose owners have been filled in
}

// lookAhead begins to look for the owners of all sockets, or only to prepare that.
func (r *Reader) lookAhead(ctx context.Context, all bool) *ahead {
	a := &ahead{reader: r, done: make(chan struct{}), err: errors.ErrUnsupported}
	go func() {
		defer close(a.done)
		if all {
			a.found, a.err = r.finder.All(ctx)
		} else {
			r.finder.Prepare()
		}
	}()
	return a
}

// ownEvery is after how many rows it is seen whether owners are known by now.
const ownEvery = 1024

// own fills in the owners of the rows so far, if they are known.
func (a *ahead) own(t *Table) (known bool) {
	if a == nil {
		return false
	}
	select {
	case <-a.done:
	default:
		return false
	}
	if a.err == nil {
		a.reader.own(t, t.Rows[a.owned:], &a.found)
		a.owned = len(t.Rows)
	}
	return a.err == nil
}

// forget has the rows from first on filled in again, where it is not known which
// have been.
func (a *ahead) forget(first int) {
	if a != nil {
		a.owned = min(a.owned, first)
	}
}

// place returns the unit and container of a row, by the control group that the
// socket was made in, or where the kernel does not tell by that of its first owner.
func (r *Reader) place(row *Row) (unit, container string) {
	if row.Cgroup != 0 {
		if g, ok := r.finder.Cgroup(row.Cgroup); ok {
			return g.Unit, g.Container
		}
	}
	if len(row.Owners) > 0 {
		return r.placeOf(row.Owners[0].Process)
	}
	return "", ""
}

// placeOf keeps what it was told of a process.
func (r *Reader) placeOf(p owner.Process) (unit, container string) {
	g, known := r.groups[p]
	if !known {
		g, _ = owner.CgroupOf(p.PID) // what cannot be read is of no known group
		if r.groups == nil {
			r.groups = map[owner.Process]owner.Cgroup{}
		}
		r.groups[p] = g
	}
	return g.Unit, g.Container
}

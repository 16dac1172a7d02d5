package table

import (
	"context"
	"errors"

	"github.com/fivetuple/fivetuple/owner"
)

// join finds the owners of the rows, and their units and containers.
func (r *Reader) join(ctx context.Context, t *Table) error {
	inodes := make([]uint32, 0, len(t.Rows))
	for i := range t.Rows {
		if n := t.Rows[i].Inode; n != 0 {
			inodes = append(inodes, n)
		}
	}
	found, err := r.finder.Find(ctx, inodes)
	if err != nil {
		return err
	}
	r.own(t, found)
	return nil
}

// lookAhead begins to look for owners, of all sockets or just as far as it can
// without knowing which are wanted, while the table is read; wait ends that.
func (r *Reader) lookAhead(ctx context.Context, all bool) (wait func() (owner.Found, error)) {
	var found owner.Found
	err := errors.ErrUnsupported
	done := make(chan struct{})
	go func() {
		defer close(done)
		if all {
			found, err = r.finder.All(ctx)
		} else {
			r.finder.Prepare()
		}
	}()
	return func() (owner.Found, error) { <-done; return found, err }
}

// joinFound is join with what was found while the table was read, and looks
// again for the owners of what was opened meanwhile.
func (r *Reader) joinFound(ctx context.Context, t *Table, found owner.Found) error {
	r.own(t, found)
	var late []uint32
	var rows []*Row
	for i := range t.Rows {
		if row := &t.Rows[i]; row.Inode != 0 && row.NoOwner != Owned && row.NoOwner != Kernel {
			late, rows = append(late, row.Inode), append(rows, row)
		}
	}
	if len(late) == 0 {
		return nil
	}
	again, err := r.finder.Find(ctx, late)
	if err != nil {
		return err
	}
	t.Unreadable = again.Unreadable
	for _, row := range rows {
		r.ownRow(t, row, again)
	}
	return nil
}

// own fills in what was found.
func (r *Reader) own(t *Table, found owner.Found) {
	t.Unreadable, t.Partial = found.Unreadable, found.Partial
	for i := range t.Rows {
		r.ownRow(t, &t.Rows[i], found)
	}
}

func (r *Reader) ownRow(t *Table, row *Row, found owner.Found) {
	row.Owners = found.OfSocket(row.Inode, row.Cookie)
	row.NoOwner = t.Unowned(row)
	row.Unit, row.Container = r.place(row)
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

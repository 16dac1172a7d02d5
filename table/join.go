package table

import (
	"context"

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
	t.Unreadable, t.Partial = found.Unreadable, found.Partial
	for i := range t.Rows {
		row := &t.Rows[i]
		row.Owners = found.OfSocket(row.Inode, row.Cookie)
		row.NoOwner = t.Unowned(row)
		row.Unit, row.Container = r.place(row)
	}
	return nil
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

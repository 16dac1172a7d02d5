package table

import (
	"context"
	"errors"
	"fmt"

	"github.com/fivetuple/fivetuple/netns"
	"github.com/fivetuple/fivetuple/sockdiag"
)

// Each calls each with the rows of a query until it returns false, as the kernel
// gives them, so that they need not all be in memory; the row is only valid
// until each returns. It is not told twice of a dump that was interrupted: the
// error is [sockdiag.ErrInterrupted] then. What needs the whole table, peers,
// rates, several namespaces and filters on owners, is not to be had: the error
// wraps [errors.ErrUnsupported].
func Each(ctx context.Context, q Query, each func(*Row) bool) error {
	p := q.plan()
	if p.late || q.Peers || q.Rates || q.Servers || len(q.Namespaces) > 0 {
		return fmt.Errorf("read the socket table row by row: peers, rates, namespaces and filters on owners need the whole: %w", errors.ErrUnsupported)
	}
	if p.none {
		return nil
	}
	here, _ := netns.Current()
	if p.owners {
		return eachOwned(ctx, q, &here, each)
	}
	row := Row{Namespace: &here}
	for s, err := range sockdiag.Dump(ctx, p.query) {
		if err != nil {
			return err
		}
		row.Socket = s
		if p.match.Match(&row) && !each(&row) {
			break
		}
	}
	return nil
}

// eachOwned is [Each] of rows with owners. They wait until those are known, which
// is long before the kernel has told of all the sockets of a large machine.
func eachOwned(ctx context.Context, q Query, here *netns.Namespace, each func(*Row) bool) error {
	var r Reader
	defer r.Close()
	t := &Table{here: here.ID, ahead: r.lookAhead(ctx, q.Filter == nil && q.States == 0)}
	defer func() { <-t.ahead.done }()
	late := &Table{here: here.ID} // rows of nobody yet: their owners may have come later
	p := q.plan()
	for s, err := range sockdiag.Dump(ctx, p.query) {
		if err != nil {
			return err
		}
		t.Rows = append(t.Rows, Row{Socket: s, Namespace: here})
		row := &t.Rows[len(t.Rows)-1]
		if !p.match.Match(row) {
			t.Rows = t.Rows[:len(t.Rows)-1]
			continue
		}
		t.keepInfo(row)
		if len(t.Rows)%ownEvery == 0 && t.ahead.own(t) && !t.handOver(late, each) {
			return nil
		}
	}
	<-t.ahead.done
	if !t.ahead.own(t) {
		late.Rows = t.Rows
	} else if !t.handOver(late, each) {
		return nil
	}
	if err := r.join(ctx, late); err != nil {
		return err
	}
	for i := range late.Rows {
		if !each(&late.Rows[i]) {
			break
		}
	}
	return nil
}

// handOver gives the rows away, whose owners have been filled in, but for those
// that are to be looked for again.
func (t *Table) handOver(late *Table, each func(*Row) bool) (more bool) {
	for i := range t.Rows {
		if row := &t.Rows[i]; row.ownerMayBeLate() {
			late.Rows = append(late.Rows, *row)
		} else if !each(row) {
			return false
		}
	}
	t.Rows, t.ahead.owned = t.Rows[:0], 0
	return true
}

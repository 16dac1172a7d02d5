package lease

import (
	"fmt"
	"time"

	"github.com/fivetuple/fivetuple/internal/claims"
)

// isOver says whether a lease that has not been ended yet should be: it has
// expired, or its owner has died.
func (t *txn) isOver(r row) bool {
	return t.hasExpired(r) || t.hasEnded(r.Owner)
}

func (t *txn) hasExpired(r row) bool {
	return !r.expires.wall.IsZero() && t.now.minus(r.expires) >= 0
}

// present is the lease as callers see it: the time at which it expires is by
// the clock on the wall as it goes now.
func (t *txn) present(r row) Lease {
	r.Expires = time.Time{}
	if !r.expires.wall.IsZero() {
		r.Expires = t.now.wall.Add(r.expires.minus(t.now))
	}
	return r.Lease
}

// current finds a lease that has not ended.
func (t *txn) current(l Lease) (row, error) {
	rows, err := t.all("fence = ? AND protocol = ? AND address = ? AND port = ? AND ended IS NULL",
		l.Fence, l.Protocol.Protocol().String(), l.Address.String(), l.Port)
	if err != nil {
		return row{}, t.wrap(err)
	}
	if len(rows) == 0 || t.isOver(rows[0]) {
		return row{}, stale(l)
	}
	return rows[0], nil
}

func stale(l Lease) error {
	return fmt.Errorf("lease %d of %s %s: %w: it was released or has expired, or its owner has died", l.Fence, l.Protocol, l.AddrPort(), ErrStale)
}

// end ends a lease: now, as one does not know since when its owner is dead, or
// when it expired.
func (t *txn) end(r row) error {
	t.freed = append(t.freed, r.slot)
	r.ended = t.now
	if t.hasExpired(r) {
		r.ended = r.expires
	}
	return t.wrap(t.setEnded(r))
}

// collect ends the leases that are over.
func (t *txn) collect() (ended []Lease, err error) {
	rows, err := t.all("ended IS NULL")
	if err != nil {
		return nil, t.wrap(err)
	}
	for _, r := range rows {
		if !t.isOver(r) {
			continue
		}
		if err := t.end(r); err != nil {
			return nil, err
		}
		ended = append(ended, t.present(r))
	}
	if t.board != nil {
		t.warnBoard(t.board.Sweep(func(c claims.Claim) bool { return !t.claimIsOver(c) }))
	}
	return ended, t.wrap(t.forgetOld())
}

package lease

import (
	"fmt"
	"time"
)

// txn is one look at the registry, or one change of it: at a moment, from a
// network namespace, by a process that sees certain others.
type txn struct {
	*Shared
	*living
	now       moment
	namespace string

	slot    int   // of the lease that is being granted
	claimed bool  // there is a claim in it
	renewed bool  // the claim of another lease was changed
	freed   []int // slots of the leases that were ended
}

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
	rows, err := t.all("fence = ? AND ended IS NULL", l.Fence)
	if err != nil {
		return row{}, t.wrap(err)
	}
	if len(rows) == 0 || t.isOver(rows[0]) {
		return row{}, fmt.Errorf("lease %d of %s %s: %w: it was released or has expired, or its owner has died", l.Fence, l.Protocol, l.AddrPort(), ErrStale)
	}
	return rows[0], nil
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
	return ended, t.wrap(t.forgetOld())
}

// adopt makes the leases of the machine's main network namespace those of the
// same namespace after a restart, when it has another name.
func (t *txn) adopt() error {
	former, err := t.formerNamespace()
	if err != nil || former == t.namespace {
		return t.wrap(err)
	}
	if former != "" {
		if err := t.exec("UPDATE leases SET namespace = ?, reserved = 0 WHERE namespace = ?", t.namespace, former); err != nil {
			return t.wrap(err)
		}
		t.republish()
	}
	return t.wrap(t.exec("UPDATE machine SET main_namespace = ?", t.namespace))
}

// formerNamespace is the name that this network namespace had before the
// machine was started again, "" if it was not used then; or the name it has.
func (t *txn) formerNamespace() (former string, err error) {
	if bootOf(t.namespace) == "" || !inMainNamespace() {
		return t.namespace, nil
	}
	if err := t.queryRow("SELECT main_namespace FROM machine").Scan(&former); err != nil {
		return "", err
	}
	if former != t.namespace && bootOf(former) == bootOf(t.namespace) {
		return "", nil // the main one of a container, and this of another
	}
	return former, nil
}

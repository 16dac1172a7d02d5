package lease

import (
	"fmt"
	"time"

	"github.com/fivetuple/fivetuple/internal/claims"
)

// txn is one look at the registry, or one change of it: at a moment, from a
// network namespace, by a process that sees certain others.
type txn struct {
	*Shared
	*living
	now       moment
	namespace string
	isMain    bool   // it is the machine's main one
	former    string // the name that it had before the machine was started again, or namespace

	slot        int   // of the lease that is being granted
	claimed     bool  // there is a claim in it
	renewed     bool  // the claim of another lease was changed
	freed       []int // slots of the leases that were ended
	unpublished bool  // not all claims are known to be in order
	others      map[uint16]bool
}

// look finds out what a transaction goes by, also what the registry knows of
// this network namespace. It is called within the transaction, as
// that may have had to wait.
func (t *txn) look() error {
	if err := t.lookAround(); err != nil {
		return err
	}
	var main string
	if err := t.queryRow("SELECT main_namespace FROM machine").Scan(&main); err != nil {
		return t.wrap(err)
	}
	if t.isMain && bootOf(main) != bootOf(t.namespace) {
		t.former = main
	}
	return nil
}

// lookAround finds out the time, and where this thread is.
func (t *txn) lookAround() (err error) {
	t.living = newLiving(t.view)
	t.now = moment{time.Now(), clockOf(t.view), sinceBoot()}
	t.namespace, err = networkNamespace(bootOf(t.view))
	t.former, t.isMain = t.namespace, inMainNamespace()
	return err
}

// begin makes the registry that of this file, this start of the machine, and
// this namespace.
func (t *txn) begin() error {
	if err := t.look(); err != nil {
		return err
	}
	if err := t.openBoard(); err != nil {
		return err
	}
	if t.former != t.namespace {
		return t.adopt()
	}
	return nil
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

// adopt makes the leases of the machine's main network namespace those of the
// same namespace after a restart, when it has another name.
func (t *txn) adopt() error {
	err := t.exec("UPDATE machine SET main_namespace = ?", t.namespace)
	if err == nil && t.former != "" {
		err = t.exec("UPDATE leases SET namespace = ?, reserved = 0 WHERE namespace = ?", t.namespace, t.former)
		t.republish()
	}
	return t.wrap(err)
}

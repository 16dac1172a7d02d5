package lease

import "time"

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

package table

import (
	"strings"

	"github.com/fivetuple/fivetuple"
)

// Unowned says why a row has no owner.
type Unowned uint8

// The reasons, and no reason: the row has an owner.
const (
	Owned       Unowned = iota
	TimeWait            // the connection is over; the kernel keeps its ports for a minute
	Handshake           // a peer's SYN was answered; there is no full socket yet
	NotAccepted         // established by the kernel, its program has not called accept(2)
	Orphan              // its program closed it, the peer has not yet acknowledged all
	Denied              // of a process that may not be looked into; needs CAP_SYS_PTRACE
	Hidden              // of a process that /proc does not show here, or of the kernel itself
	Kernel              // the kernel's own
	Elsewhere           // as Hidden, in another network namespace than this process's
)

var unownedNames = [...]string{"", "TIME_WAIT", "handshake", "not accepted", "orphan", "no permission", "not in /proc, or the kernel's", "the kernel's own", "other namespace"}

// String returns the reason in a word or two, "" for Owned.
func (u Unowned) String() string { return unownedNames[u] }

// Unowned says why the row has no owner, with what the table knows of the
// processes it could not look into.
func (t *Table) Unowned(r *Row) Unowned {
	switch {
	case len(r.Owners) > 0:
		return Owned
	case r.State == fivetuple.StateTimeWait:
		return TimeWait
	case r.State == fivetuple.StateSynRecv || r.State == fivetuple.StateNewSynRecv:
		return Handshake
	case r.Inode == 0 && (r.State == fivetuple.StateEstablished || r.State == fivetuple.StateCloseWait):
		return NotAccepted
	case r.Inode == 0 && r.State.Phase() == fivetuple.PhaseClosing:
		return Orphan
	case r.Protocol == fivetuple.Netlink && strings.HasSuffix(r.Name, ":kernel"):
		return Kernel
	case t.Unreadable > 0 && r.Inode != 0:
		return Denied
	case r.Namespace != nil && t.here != 0 && r.Namespace.ID != t.here:
		return Elsewhere
	}
	return Hidden
}

// CountUnowned counts the rows without an owner, by reason.
func (t *Table) CountUnowned() map[Unowned]int {
	counts := map[Unowned]int{}
	for i := range t.Rows {
		if u := t.Unowned(&t.Rows[i]); u != Owned {
			counts[u]++
		}
	}
	return counts
}

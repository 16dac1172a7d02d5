// Package claims lets the registries of different users, or of one user with
// several state directories, see which ports the others have leased, though
// none of them may write, or read, another's data. Each registry keeps a
// public file of its current leases, its claims, in a directory where everyone
// may create files and remove only their own (/var/tmp), and reads those of all
// others.
//
//	board, err := claims.Open("/var/tmp", id)
//	...
//	err = board.Put(slot, claim) // claims.ErrMissing: board.Reset(all of them)
//	skipped, err := board.Others(func(uid uint32, c claims.Claim) bool {
//		overlap = live(c) && overlaps(c, claim)
//		return !overlap
//	})
//	if overlap {
//		err = board.Clear(slot)
//	}
//
// A registry that puts its claim first and then reads those of the others
// cannot be granted a port together with another that does the same: at least
// one of them sees both claims. At worst each sees the other's and both withdraw.
//
// The directory must be local. What is read there was written by others, and
// any of them may be hostile: a claim says no more than that the owner of its
// file wants it believed. Whose process is gone, or who may not have that port
// anyway, is for the caller to judge.
//
// The package stands on open(2), openat2(2) and the sticky bit (inode(7)). On
// systems that are no Unix there is no such directory: a [Board] does nothing
// there, and ports are shared out among the leases of each registry alone.
package claims

import (
	"errors"
	"fmt"
	"net/netip"
)

// Claim is the lease of a port, as far as others need to know it.
type Claim struct {
	Protocol  uint8          // IPPROTO_TCP or IPPROTO_UDP
	V6Only    bool           // :: without IPv4
	ReusePort bool           // the owner's user may join with SO_REUSEPORT
	At        netip.AddrPort // without zone
	Zone      uint32         // index of the interface of a link-local address, or 0
	NetNS     [16]byte       // identity of the network namespace
	PID       int32          // of the lease's owner, in the PID namespace that Process implies
	Process   [16]byte       // identity of that process beside its number
	Expires   int64          // by a clock that they know who see the same processes
	Until     int64          // the same by the clock on the wall
}

// Slots is how many claims a registry can have at a time, one in each of the
// slots 0 to Slots-1: as many as there are TCP and UDP ports.
const Slots = 2 << 16

// ErrMissing: the directory does not hold all claims of this registry, be it
// that it never did, or that the file was removed, or that a Reset was cut
// short. Reset puts them there.
var ErrMissing = errors.New("the claims of this registry are missing")

// Skipped counts what Others has passed over.
type Skipped struct {
	// Files that cannot be read or hold no claims. As each belongs to a user
	// who made it so, none but that user's own claims can be missing.
	Files int
	// Records that are damaged.
	Records int
	// Unread files were left out, or read in part, as their owner has more than
	// 1024 of them or more than Slots claims, or all owners together have more
	// than 16 times that. Claims can be missing that are not of that owner.
	Unread int
	// First is the reason for the first one passed over.
	First error
}

// Err returns nil if nothing was passed over, and otherwise a text for a warning.
func (s Skipped) Err() error {
	if s.Files+s.Records+s.Unread == 0 {
		return nil
	}
	return fmt.Errorf("passed over %d files that hold no claims of ports, %d damaged claims and %d files beyond the limits; the first: %w",
		s.Files, s.Records, s.Unread, s.First)
}

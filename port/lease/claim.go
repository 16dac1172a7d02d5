package lease

import (
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"os/user"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/fivetuple/fivetuple"
	"github.com/fivetuple/fivetuple/internal/claims"
	"github.com/fivetuple/fivetuple/internal/printable"
	"github.com/fivetuple/fivetuple/owner"
)

// take makes the port this request's: no other registry claims it, and it can
// be bound. The claim stays only if so.
func (t *txn) take(ctx context.Context, r Request, port uint16) error {
	if err := t.claim(ctx, r, port); err != nil {
		return err
	}
	err := r.bind(ctx, port)
	if err != nil {
		t.withdraw()
	}
	return err
}

// claim lets the other registries know that this one is about to grant the
// port, and then looks whether one of them has it. Where two do so at a time
// both can withdraw, so a port that was asked for by number is tried again.
func (t *txn) claim(ctx context.Context, r Request, port uint16) error {
	if t.board == nil {
		return nil
	}
	tries := 1
	if r.Port != 0 {
		tries = 3
	}
	for {
		t.claimed = true
		t.put(t.slot, t.claimOf(row{Lease: r.lease(port, t.now.wall, 0), expires: t.expiry(r.TTL)}))
		holder, ok := t.otherHolder(r, port)
		if !ok {
			return nil
		}
		t.withdraw()
		if tries--; tries == 0 {
			return &ConflictError{Protocol: r.Protocol, Wanted: netip.AddrPortFrom(r.Address, port), Holder: holder}
		}
		select {
		case <-time.After(rand.N(5 * time.Millisecond)):
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// putAgain makes known what is new about a lease.
func (t *txn) putAgain(r row) {
	if t.board != nil {
		t.renewed = true
		t.put(r.slot, t.claimOf(r))
	}
}

func (t *txn) put(slot int, c claims.Claim) {
	err := t.board.Put(slot, c)
	if errors.Is(err, claims.ErrMissing) {
		if err = t.resetClaims(); err == nil {
			err = t.board.Put(slot, c)
		}
	}
	t.warnBoard(err)
}

func (t *txn) withdraw() {
	if t.claimed {
		t.claimed = false
		t.warnBoard(t.board.Clear(t.slot))
	}
}

// settleClaims withdraws the claims of leases that have ended, once that is
// committed; or, if it was not, puts things as they were.
func (t *txn) settleClaims(committed bool) {
	if t.board == nil {
		return
	}
	if !committed {
		if t.withdraw(); t.renewed || len(t.freed) > 0 {
			t.republish() // the slot of one that was to end may have been taken
		}
		return
	}
	for _, slot := range t.freed {
		if !t.claimed || slot != t.slot {
			t.warnBoard(t.board.Clear(slot))
		}
	}
	if left, err := t.hasLeases(); len(t.freed) > 0 && err == nil && !left {
		t.warnBoard(t.board.Remove())
	}
}

// republish puts the claims in order, whatever is there.
func (t *txn) republish() {
	if t.board == nil {
		return
	}
	left, err := t.hasLeases()
	switch {
	case err != nil:
	case left:
		err = t.resetClaims()
	default:
		err = t.board.Remove()
	}
	t.warnBoard(err)
}

// resetClaims writes the claims of all leases anew.
func (t *txn) resetClaims() error {
	rows, err := t.all("ended IS NULL")
	if err != nil {
		return err
	}
	return t.board.Reset(func(yield func(int, claims.Claim) bool) {
		for _, r := range rows {
			if r.slot < claims.Slots && !yield(r.slot, t.claimOf(r)) {
				return
			}
		}
	})
}

func (t *txn) hasLeases() (has bool, err error) {
	err = t.queryRow("SELECT EXISTS (SELECT 1 FROM leases WHERE ended IS NULL)").Scan(&has)
	return has, err
}

// warnBoard tells of what keeps registries from seeing each other's leases,
// once. Granting ports goes on: it is no reason to stop all work of a user.
func (s *Shared) warnBoard(err error) {
	if err == nil || s.warned || errors.Is(err, claims.ErrMissing) {
		return
	}
	s.warned = true
	s.options.Warn(fmt.Errorf("other users' registries of ports and this one do not see each other's leases: %w", err))
}

// openBoard opens the directory of claims, if there is to be one.
func (s *Shared) openBoard() {
	dir := cmp.Or(s.options.Claims, os.Getenv("FT_CLAIMS_DIR"), "/var/tmp")
	if s.readOnly || dir == "none" {
		return
	}
	var id string
	err := s.queryRow("SELECT claims FROM machine").Scan(&id)
	if err == nil {
		s.board, err = claims.Open(dir, id)
	}
	s.warnBoard(err)
}

// claimOf is what others are to know of a lease. They compare the namespace,
// and where the process was seen from, with theirs.
func (t *txn) claimOf(r row) claims.Claim {
	c := claims.Claim{
		Protocol:  syscall.IPPROTO_TCP,
		V6Only:    r.Protocol != r.Protocol.Protocol(),
		ReusePort: r.ReusePort,
		At:        netip.AddrPortFrom(r.Address.WithZone(""), r.Port),
		Zone:      zoneIndex(r.Address.Zone()),
		NetNS:     digest(cmp.Or(r.namespace, t.namespace)),
		PID:       int32(r.Owner.PID),
	}
	if r.Protocol.IsDatagram() {
		c.Protocol = syscall.IPPROTO_UDP
	}
	if slash := strings.LastIndexByte(r.Owner.Start, '/'); slash >= 0 {
		c.Process = processID(r.Owner.Start[:slash], r.Owner.Start[slash+1:])
	}
	if !r.expires.wall.IsZero() {
		c.Expires = int64(t.now.since + r.expires.minus(t.now))
	}
	return c
}

func digest(s string) (d [16]byte) {
	sum := sha256.Sum256([]byte(s))
	copy(d[:], sum[:])
	return d
}

// processID is where a process was seen from, shortened, and the tick at which it started.
func processID(view, ticks string) (id [16]byte) {
	seen := digest(view)
	copy(id[:8], seen[:])
	n, _ := strconv.ParseUint(ticks, 10, 64)
	binary.BigEndian.PutUint64(id[8:], n)
	return id
}

func zoneIndex(zone string) uint32 {
	if n, err := strconv.ParseUint(zone, 10, 32); err == nil {
		return uint32(n)
	}
	if device, err := net.InterfaceByName(zone); err == nil {
		return uint32(device.Index)
	}
	return 0
}

// otherHolder returns a lease of another registry that rules out granting the port.
func (t *txn) otherHolder(r Request, port uint16) (holder Lease, found bool) {
	here := digest(t.namespace)
	skipped, err := t.board.Others(func(uid uint32, c claims.Claim) bool {
		if c.NetNS != here || c.At.Port() != port || t.claimIsOver(c) || !mayClaim(uid, port) {
			return true
		}
		holder = leaseOf(uid, c)
		found = holder.conflicts(r, port)
		return !found
	})
	if skipped.Unread > 0 { // what else is passed over hides only claims of whoever made it so
		err = errors.Join(err, skipped.Err())
	}
	t.warnBoard(err)
	return holder, found
}

// claimIsOver says whether the lease behind a claim has expired, or lost its owner.
func (t *txn) claimIsOver(c claims.Claim) bool {
	if c.Expires != 0 && time.Duration(c.Expires) <= t.now.since {
		return true
	}
	start := binary.BigEndian.Uint64(c.Process[8:])
	if c.PID <= 0 || c.Process != processID(t.view, strconv.FormatUint(start, 10)) {
		return false
	}
	return t.hasEnded(Owner{PID: int(c.PID), Start: fmt.Sprintf("%s/%d", t.view, start)})
}

// mayClaim says whether a user can have the port at all, and so keep others from it.
func mayClaim(uid uint32, port uint16) bool {
	if uid == 0 {
		return true
	}
	start, err := unprivilegedPortStart()
	return err != nil || int(port) >= start
}

// leaseOf is the lease behind a claim, as far as it is known.
func leaseOf(uid uint32, c claims.Claim) Lease {
	l := Lease{Protocol: fivetuple.TCP, Address: c.At.Addr(), Port: c.At.Port(), ReusePort: c.ReusePort}
	if c.Protocol == syscall.IPPROTO_UDP {
		l.Protocol = fivetuple.UDP
	}
	if c.V6Only {
		l.Protocol = narrowed[l.Protocol]
	}
	if c.Zone != 0 {
		l.Address = l.Address.WithZone(strconv.FormatUint(uint64(c.Zone), 10))
	}
	id := strconv.FormatUint(uint64(uid), 10)
	l.Owner.User = id
	if u, err := user.LookupId(id); err == nil {
		l.Owner.User = printable.Escape(u.Username)
	}
	if p, err := owner.ProcessOf(int(c.PID)); err == nil {
		l.Owner.PID, l.Owner.Command = p.PID, p.Command
	}
	return l
}

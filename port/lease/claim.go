package lease

import (
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
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
		holder, found := t.otherHolder(r, port)
		if !found {
			return nil
		}
		t.withdraw()
		if tries--; tries == 0 {
			return &ConflictError{Protocol: r.Protocol, Wanted: netip.AddrPortFrom(r.Address, port), Holder: holder, Elsewhere: true}
		}
		select {
		case <-time.After(rand.N(5 * time.Millisecond)):
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// putAgain makes known what is new about a lease, and then ends it if another
// registry has granted the port, to which it seemed to be over.
func (t *txn) putAgain(r row) error {
	if t.renewed = true; t.board == nil {
		return nil
	}
	t.put(r.slot, t.claimOf(r))
	request := Request{Protocol: r.Protocol, Address: r.Address, Port: r.Port, ReusePort: r.ReusePort, Owner: r.Owner}
	if _, found := t.otherHolder(request, r.Port); !found {
		return nil
	}
	if err := t.end(r); err != nil {
		return err
	}
	return stale(r.Lease)
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
		t.unpublished = true
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
	t.unpublished = false // unless it fails
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
func (t *txn) warnBoard(err error) {
	if err == nil || errors.Is(err, claims.ErrMissing) {
		return
	}
	t.unpublished = true
	if t.warned {
		return
	}
	t.warned = true
	t.options.Warn(fmt.Errorf("other users' registries of ports and this one do not see each other's leases: %w", err))
}

// Claimed returns the leases that the registries of this machine, of this user
// and others, show each other (see [Options]), in this network namespace. It
// knows no names, and the processes that can be seen from here.
func Claimed(o Options) ([]Lease, error) {
	s := &Shared{options: o.withDefaults()}
	if s.options.Claims == noClaims {
		return nil, nil
	}
	t := &txn{Shared: s}
	var err error
	if s.view, err = owner.View(); err == nil {
		err = t.lookAround()
	}
	if err == nil {
		s.board, err = claims.Open(s.options.Claims, "0") // no registry's
	}
	if err != nil {
		return nil, fmt.Errorf("see the leases of other registries: %w", err)
	}
	defer s.closeBoard()
	var leases []Lease
	err = t.eachClaim(func(uid uint32, c claims.Claim) bool {
		if !t.claimIsOver(c) && mayClaim(uid, c.At.Port()) {
			leases = append(leases, t.leaseOf(uid, c))
		}
		return true
	})
	sortLeases(leases)
	return leases, err
}

// openBoard opens the directory of claims, if there is to be one. A file that
// is a copy of another registry's gets an id of its own.
func (t *txn) openBoard() error {
	dir := t.options.Claims
	if dir == noClaims {
		return nil
	}
	var file, id string
	if err := t.queryRow("SELECT file, claims FROM machine").Scan(&file, &id); err != nil {
		return t.wrap(err)
	}
	if now := fileID(t.file); file != now {
		if file != "" {
			other := digest(id + now) // the same if this is tried again
			id = hex.EncodeToString(other[:8])
		}
		if err := t.exec("UPDATE machine SET file = ?, claims = ?", now, id); err != nil {
			return t.wrap(err)
		}
		t.unpublished = t.unpublished || file != ""
	}
	if t.board != nil && t.boardID == id {
		return nil
	}
	t.closeBoard()
	board, err := claims.Open(dir, id)
	if err != nil {
		t.warnBoard(err)
		return nil
	}
	t.board, t.boardID = board, id
	return nil
}

func (s *Shared) closeBoard() {
	if s.board != nil {
		s.board.Close()
		s.board = nil
	}
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
		NetNS:     t.place(r),
		PID:       int32(r.Owner.PID),
	}
	if r.Protocol.IsDatagram() {
		c.Protocol = syscall.IPPROTO_UDP
	}
	c.Process = processID(t.view, "")
	if slash := strings.LastIndexByte(r.Owner.Start, '/'); slash >= 0 {
		c.Process = processID(r.Owner.Start[:slash], r.Owner.Start[slash+1:])
	}
	if !r.expires.wall.IsZero() {
		left := r.expires.minus(t.now)
		c.Expires, c.Until = int64(t.now.since+left), t.now.wall.Add(left).UnixNano()
	}
	return c
}

// place is the network namespace of a lease as others are to know it. Only
// leases that are no process's can outlive the machine, in its main namespace.
func (t *txn) place(r row) [16]byte {
	namespace := cmp.Or(r.namespace, t.namespace)
	if r.IsDetached() && t.isMain && namespace == t.namespace {
		return mainPlace()
	}
	return digest(namespace)
}

func mainPlace() [16]byte {
	machine, _ := os.ReadFile("/etc/machine-id") // machine-id(5); without one all are one
	return digest("main/" + string(machine))
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
	err := t.eachClaim(func(uid uint32, c claims.Claim) bool {
		if c.At.Port() == port && !t.claimIsOver(c) && mayClaim(uid, port) {
			holder = t.leaseOf(uid, c)
			found = holder.conflicts(r, port)
		}
		return !found
	})
	t.warnBoard(err)
	return holder, found
}

// otherPorts are those that other registries have leased. They are a hint:
// other claims come and go.
func (t *txn) otherPorts(r Request) map[uint16]bool {
	ports := make(map[uint16]bool)
	t.warnBoard(t.eachClaim(func(uid uint32, c claims.Claim) bool {
		port := c.At.Port()
		if r.Range.Contains(port) && !t.claimIsOver(c) && mayClaim(uid, port) && t.leaseOf(uid, c).conflicts(r, port) {
			ports[port] = true
		}
		return true
	}))
	return ports
}

// eachClaim calls see with the claims of other registries in this network
// namespace, until that returns false.
func (t *txn) eachClaim(see func(uid uint32, c claims.Claim) bool) error {
	here, main := digest(t.namespace), mainPlace()
	skipped, err := t.board.Others(func(uid uint32, c claims.Claim) bool {
		if c.NetNS == here || t.isMain && c.NetNS == main {
			return see(uid, c)
		}
		return true
	})
	if skipped.Unread > 0 { // what else is passed over hides only claims of whoever made it so
		err = errors.Join(err, skipped.Err())
	}
	return err
}

// claimIsOver says whether the lease behind a claim has expired, or lost its owner.
func (t *txn) claimIsOver(c claims.Claim) bool {
	start := binary.BigEndian.Uint64(c.Process[8:])
	seen := c.Process == processID(t.view, strconv.FormatUint(start, 10)) // from here, so by the same clock
	switch {
	case c.Expires != 0 && seen && time.Duration(c.Expires) <= t.now.since:
		return true
	case c.Expires != 0 && !seen && c.Until <= t.now.wall.UnixNano():
		return true
	case c.PID <= 0 || !seen:
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
func (t *txn) leaseOf(uid uint32, c claims.Claim) Lease {
	l := Lease{Protocol: fivetuple.TCP, Address: c.At.Addr(), Port: c.At.Port(), ReusePort: c.ReusePort}
	if c.Protocol == syscall.IPPROTO_UDP {
		l.Protocol = fivetuple.UDP
	}
	if c.V6Only {
		l.Protocol = narrowed[l.Protocol]
	}
	if c.Zone != 0 {
		l.Address = l.Address.WithZone(zoneName(strconv.FormatUint(uint64(c.Zone), 10)))
	}
	id := strconv.FormatUint(uint64(uid), 10)
	l.Owner.User = id
	if u, err := user.LookupId(id); err == nil {
		l.Owner.User = printable.Escape(u.Username)
	}
	p, err := owner.ProcessOf(int(c.PID))
	if err == nil && c.Process == processID(t.view, strconv.FormatUint(p.Start, 10)) {
		l.Owner.PID, l.Owner.Command = p.PID, p.Command
	}
	return l
}

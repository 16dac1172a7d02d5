// Package lease says who may use which port: it grants ports that are really
// free, remembers to whom, and takes them back.
//
//	ports := lease.NewMemory()
//	l, err := ports.Acquire(ctx, lease.Request{Port: 8080, Name: "api"}) // or no Port: the next free one
//	...
//	err = ports.Release(ctx, l)
//
// A port is granted if it is not leased on an overlapping address, this process
// may bind it, and binding it succeeds. Both answers are the kernel's own, to a
// bind(2) made for the purpose: it knows of capabilities, of user and network
// namespaces and of security modules what no look at the user id could tell. A
// [Request] can bring the socket to be bound, so that there is no gap between
// being granted a port and having it.
//
// On Linux the package also reads the sysctls of the network namespace
// (ip(7), ip_local_reserved_ports and ip_unprivileged_port_start), the
// process's capabilities (capget(2)) and the socket table ([sockdiag]); on
// other systems the bind alone decides, no port counts as reserved, and
// [Status] counts leases only.
//
// The functions act in the network namespace of the calling thread.
package lease

import (
	"context"
	"fmt"
	"net/netip"
	"time"

	"github.com/fivetuple/fivetuple"
	"github.com/fivetuple/fivetuple/sockdiag"
)

// Registry keeps leases. Its methods can be called from several goroutines.
type Registry interface {
	// Acquire grants a port. The error wraps [ErrLeased] (as a
	// [*ConflictError]), [ErrInUse], [ErrNotPermitted], [ErrExhausted] (as an
	// [*ExhaustedError]) or [ErrInvalid]; any other is a failure of the system
	// or of ctx, and says nothing about the port.
	Acquire(ctx context.Context, r Request) (Lease, error)
	// Renew lets a lease last ttl from now, 0 until it is released. It fails
	// with [ErrStale] if the lease has ended.
	Renew(ctx context.Context, l Lease, ttl time.Duration) (Lease, error)
	// Release ends a lease. It fails with [ErrStale] if the lease has ended,
	// also if the port is leased again since.
	Release(ctx context.Context, l Lease) error
	// List returns the leases that have not ended, by protocol, port and address.
	List(ctx context.Context) ([]Lease, error)
	// Status counts the ports in use and those left.
	Status(ctx context.Context) (Status, error)
}

// Lease is a port that was granted.
type Lease struct {
	// Protocol is TCP or UDP; TCP6 or UDP6 if the address is :: without IPv4.
	Protocol fivetuple.Network `json:"protocol"`
	// Address to bind. 0.0.0.0 is IPv4 only, :: is both unless Protocol narrows
	// it. Mind that Go's net package makes 0.0.0.0 dual-stack, too, unless the
	// network is "tcp4" or "udp4".
	Address netip.Addr `json:"address"`
	Port    uint16     `json:"port"`
	Name    string     `json:"name"`
	Purpose string     `json:"purpose,omitempty"`
	Owner   Owner      `json:"owner"`
	// ReusePort is set if others of the owner's user may join with SO_REUSEPORT.
	ReusePort bool `json:"reuse_port,omitempty"`
	// Reserved is set if ip_local_reserved_ports lists the port for this lease.
	Reserved bool      `json:"reserved,omitempty"`
	Granted  time.Time `json:"granted"`
	Expires  time.Time `json:"expires,omitzero"` // zero: never
	// Fence grows with every lease that the registry grants. It tells this
	// lease from earlier and later ones of the same port.
	Fence uint64 `json:"fence"`
}

// AddrPort returns the address and port.
func (l Lease) AddrPort() netip.AddrPort { return netip.AddrPortFrom(l.Address, l.Port) }

// IsDetached says whether the lease is no process's, and outlives all.
func (l Lease) IsDetached() bool { return l.Owner.PID == 0 }

// Covers says whether a socket bound there would need this lease: the protocol
// and port are the same and the addresses overlap, as the kernel judges it
// ([sockdiag.Socket.Holds]). :: is dual-stack unless protocol is TCP6 or UDP6.
func (l Lease) Covers(protocol fivetuple.Network, at netip.AddrPort) bool {
	return sockdiag.Socket{
		Protocol: l.Protocol.Protocol(),
		Local:    l.AddrPort(),
		V6Only:   l.Protocol != l.Protocol.Protocol(),
	}.Holds(protocol, at)
}

// String returns "tcp 127.0.0.1:8080, leased to api (node, pid 12, user alice)".
func (l Lease) String() string {
	s := fmt.Sprintf("%s %s, leased to ", l.Protocol, l.AddrPort())
	if l.Name != "" {
		return s + fmt.Sprintf("%s (%s)", l.Name, l.Owner)
	}
	return s + l.Owner.String()
}

// expired says whether the lease has ended by time. Monotonic readings decide
// where both times have them.
func (l Lease) expired(now time.Time) bool {
	return !l.Expires.IsZero() && !now.Before(l.Expires)
}

// conflicts says whether the lease rules out granting another one there.
func (l Lease) conflicts(r Request, port uint16) bool {
	at := netip.AddrPortFrom(r.Address, port)
	switch {
	case !l.Covers(r.Protocol, at):
		return false
	case r.shares() && l.ReusePort && l.Owner.User == r.Owner.User:
		return false
	case r.isGroup() && l.Address == r.Address: // each member of a multicast group gets its own copy
		return false
	}
	return true
}

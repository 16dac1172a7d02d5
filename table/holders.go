// Package table joins the kernel's socket table with the processes that hold
// the sockets. It stands on sock_diag(7) and /proc; elsewhere its functions
// return an error that wraps [errors.ErrUnsupported].
package table

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"syscall"

	"github.com/fivetuple/fivetuple"
	"github.com/fivetuple/fivetuple/owner"
	"github.com/fivetuple/fivetuple/sockdiag"
)

// Held is what holds an address and port.
type Held struct {
	Rows []Row
	// Unreadable is how many processes could not be looked into for lack of
	// permission: one of them may be an owner that Rows lacks.
	Unreadable int
}

// Holders returns the sockets that keep at from being bound: those that listen
// there or are bound, on the address itself or on a wildcard, and if there are
// none those of connections that use the port.
func Holders(ctx context.Context, protocol fivetuple.Network, at netip.AddrPort) (Held, error) {
	held, err := holders(ctx, sockdiag.Query{LocalPort: at.Port()}, []Place{{protocol, at}})
	if err != nil {
		return Held{}, err
	}
	return held[0], nil
}

// Place is where a socket can be bound.
type Place struct {
	Protocol fivetuple.Network
	At       netip.AddrPort
}

// HoldersOf is [Holders] of several places, in their order. It looks at the
// socket table and at the processes once for all of them.
func HoldersOf(ctx context.Context, places []Place) ([]Held, error) {
	return holders(ctx, sockdiag.Query{}, places)
}

func holders(ctx context.Context, q sockdiag.Query, places []Place) ([]Held, error) {
	for _, p := range places {
		if protocol := p.Protocol.Protocol(); !slices.Contains(q.Protocols, protocol) {
			q.Protocols = append(q.Protocols, protocol)
		}
	}
	held := make([][]sockdiag.Socket, len(places))
	for _, q.States = range []sockdiag.States{sockdiag.ListeningOrBound, 0} {
		if !slices.ContainsFunc(held, func(s []sockdiag.Socket) bool { return len(s) == 0 }) {
			break
		}
		sockets, err := sockdiag.List(ctx, q)
		if err != nil {
			return nil, err
		}
		byPort := map[uint16][]sockdiag.Socket{}
		for _, s := range sockets {
			byPort[s.Local.Port()] = append(byPort[s.Local.Port()], s)
		}
		for i, p := range places {
			if len(held[i]) == 0 {
				held[i] = slices.DeleteFunc(slices.Clone(byPort[p.At.Port()]), func(s sockdiag.Socket) bool { return !s.Holds(p.Protocol, p.At) })
			}
		}
	}
	return join(ctx, held...)
}

// List returns the sockets of a query with their owners.
func List(ctx context.Context, q sockdiag.Query) (Held, error) {
	sockets, err := sockdiag.List(ctx, q)
	if err != nil {
		return Held{}, err
	}
	return joinOne(ctx, sockets)
}

func joinOne(ctx context.Context, sockets []sockdiag.Socket) (Held, error) {
	held, err := join(ctx, sockets)
	if err != nil {
		return Held{}, err
	}
	return held[0], nil
}

// join finds the owners of several groups of sockets.
func join(ctx context.Context, groups ...[]sockdiag.Socket) ([]Held, error) {
	var inodes []uint32
	for _, sockets := range groups {
		for _, s := range sockets {
			inodes = append(inodes, s.Inode) // 0, which stands for none, is passed over
		}
	}
	found, err := owner.Find(ctx, inodes...)
	if err != nil {
		return nil, err
	}
	held := make([]Held, len(groups))
	for i, sockets := range groups {
		held[i].Unreadable = found.Unreadable
		for _, s := range sockets {
			held[i].Rows = append(held[i].Rows, Row{Socket: s, Owners: found.Of(s.Inode)})
		}
	}
	return held, nil
}

// String names the holders: `"nginx" (pid 123, user www-data)`.
func (h Held) String() string {
	var names []string
	for _, row := range h.Rows {
		for _, o := range row.Owners {
			if name := o.String(); !slices.Contains(names, name) {
				names = append(names, name)
			}
		}
	}
	switch {
	case len(names) > 0:
		return strings.Join(names, ", ")
	case len(h.Rows) == 0:
		return "nobody any more"
	case slices.ContainsFunc(h.Rows, func(r Row) bool { return r.Inode != 0 }):
		if h.Unreadable > 0 {
			return "a process of another user (run as root to see which)"
		}
		return "a process that /proc does not show here (run as root on the host to see which), or the kernel itself"
	}
	s := fmt.Sprintf("a socket in state %s that no process holds", h.Rows[0].State)
	if h.Rows[0].State == fivetuple.StateTimeWait {
		s += " (it ends by itself within a minute)"
	}
	return s
}

// InUseError is an "address already in use" that knows who uses it.
type InUseError struct {
	Endpoint fivetuple.Endpoint // what was to be listened on
	Held     Held
	err      error
}

func (e *InUseError) Error() string {
	s := fmt.Sprintf("listen on %s: address already in use: ", e.Endpoint)
	if len(e.Held.Rows) == 0 {
		return s + "nobody holds it any more: try again"
	}
	s += fmt.Sprintf("held by %s", e.Held)
	for _, row := range e.Held.Rows {
		if row.Inode != 0 { // a socket of somebody, who can be stopped
			return s + ": stop it, or choose another"
		}
	}
	return s
}

func (e *InUseError) Unwrap() error { return e.err }

// ExplainInUse makes an [InUseError] of an "address already in use" error. Any
// other comes back as it is, and so does this one if the socket table cannot be read.
func ExplainInUse(ctx context.Context, err error, e fivetuple.Endpoint) error {
	if !errors.Is(err, syscall.EADDRINUSE) {
		return err
	}
	held, lookErr := holdersOf(ctx, e)
	if lookErr != nil {
		return err
	}
	return &InUseError{Endpoint: e, Held: held, err: err}
}

// holdersOf returns what holds an endpoint that was to be listened on.
func holdersOf(ctx context.Context, e fivetuple.Endpoint) (Held, error) {
	if e.Network.IsUnix() {
		sockets, err := sockdiag.List(ctx, sockdiag.Query{
			Protocols: []fivetuple.Network{fivetuple.Unix, fivetuple.Unixgram, fivetuple.Seqpacket}, States: sockdiag.ListeningOrBound,
		})
		if err != nil {
			return Held{}, err
		}
		return joinOne(ctx, slices.DeleteFunc(sockets, func(s sockdiag.Socket) bool { return s.Name != e.Path }))
	}
	a, ok := e.Addr() // the zero Addr stands for all
	if !ok && e.Host == "" {
		a = netip.AddrFrom4([4]byte{127, 0, 0, 1})
	}
	return Holders(ctx, e.Network, netip.AddrPortFrom(a, e.Ports.First))
}

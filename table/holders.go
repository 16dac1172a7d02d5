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

// Row is a socket and the processes that hold it.
type Row struct {
	sockdiag.Socket
	Owners []owner.Holder
}

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
	q := sockdiag.Query{Protocols: []fivetuple.Network{protocol.Protocol()}, LocalPort: at.Port(), States: sockdiag.ListeningOrBound}
	sockets, err := holding(ctx, q, protocol, at)
	if err == nil && len(sockets) == 0 {
		q.States = 0
		sockets, err = holding(ctx, q, protocol, at)
	}
	if err != nil {
		return Held{}, err
	}
	return join(ctx, sockets)
}

func holding(ctx context.Context, q sockdiag.Query, protocol fivetuple.Network, at netip.AddrPort) ([]sockdiag.Socket, error) {
	all, err := sockdiag.List(ctx, q)
	return slices.DeleteFunc(all, func(s sockdiag.Socket) bool { return !s.Holds(protocol, at) }), err
}

// List returns the sockets of a query with their owners.
func List(ctx context.Context, q sockdiag.Query) (Held, error) {
	sockets, err := sockdiag.List(ctx, q)
	if err != nil {
		return Held{}, err
	}
	return join(ctx, sockets)
}

func join(ctx context.Context, sockets []sockdiag.Socket) (Held, error) {
	var inodes []uint32
	for _, s := range sockets {
		if s.Inode != 0 {
			inodes = append(inodes, s.Inode)
		}
	}
	found, err := owner.Find(ctx, inodes...)
	if err != nil {
		return Held{}, err
	}
	h := Held{Unreadable: found.Unreadable}
	for _, s := range sockets {
		row := Row{Socket: s}
		if s.Inode != 0 {
			row.Owners = found.Holders[s.Inode]
		}
		h.Rows = append(h.Rows, row)
	}
	return h, nil
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
	case h.Unreadable > 0:
		return "a process of another user (run as root to see which)"
	}
	return fmt.Sprintf("a socket in state %s that no process holds", h.Rows[0].State)
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
	return s + fmt.Sprintf("held by %s: stop it, or choose another", e.Held)
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
		return join(ctx, slices.DeleteFunc(sockets, func(s sockdiag.Socket) bool { return s.Name != e.Path }))
	}
	a, ok := e.Addr() // the zero Addr stands for all
	if !ok && e.Host == "" {
		a = netip.AddrFrom4([4]byte{127, 0, 0, 1})
	}
	return Holders(ctx, e.Network, netip.AddrPortFrom(a, e.Ports.First))
}

package table

import (
	"context"
	"errors"
	"fmt"
	"io/fs"

	"github.com/fivetuple/fivetuple/netns"
	"github.com/fivetuple/fivetuple/sockdiag"
)

// Closed is how a socket was closed.
type Closed uint8

// The ways to close a socket of another process.
const (
	NotClosed Closed = iota
	Destroyed        // by the kernel (SOCK_DESTROY): a TCP peer is sent a reset, the holders read an error
	ShutDown         // with shutdown(2) through a holder's descriptor: peer and holders read the end
	Gone             // it was closed already
)

var closedNames = [...]string{"not closed", "closed", "shut down", "was gone"}

// String returns the way in a word or two.
func (c Closed) String() string { return closedNames[c] }

// MarshalText implements [encoding.TextMarshaler].
func (c Closed) MarshalText() ([]byte, error) { return []byte(c.String()), nil }

// Close closes the row's socket, and no other that has its addresses by now. It
// asks the kernel to, which needs CAP_NET_ADMIN and of Unix sockets is not to be
// had; failing that it shuts the socket down as its holders could, which needs
// the right to trace one of them. The descriptors stay with the holders.
func Close(ctx context.Context, r *Row) (Closed, error) {
	err := inNamespace(r, func() error { return sockdiag.Destroy(ctx, r.Socket) })
	switch {
	case err == nil:
		return Destroyed, nil
	case errors.Is(err, fs.ErrNotExist):
		return Gone, nil
	case len(r.Owners) == 0:
		return NotClosed, fmt.Errorf("close %v: %w; and nobody is known who holds it", r.Tuple(), err)
	}
	for _, h := range r.Owners {
		shutErr := shutDown(r, h)
		if shutErr == nil {
			return ShutDown, nil
		}
		err = errors.Join(err, shutErr)
	}
	return NotClosed, fmt.Errorf("close %v: %w", r.Tuple(), err)
}

// inNamespace runs f in the row's network namespace. It needs no privilege if
// that is this process's own.
func inNamespace(r *Row, f func() error) error {
	if r.Namespace == nil {
		return f()
	}
	if here, err := netns.Current(); err != nil || here.ID == r.Namespace.ID {
		return f()
	}
	return r.Namespace.Do(f)
}

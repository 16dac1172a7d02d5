package table

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"

	"github.com/fivetuple/fivetuple"
	"github.com/fivetuple/fivetuple/netns"
	"github.com/fivetuple/fivetuple/sockdiag"
)

// Closed is what became of a socket that was to be closed.
type Closed uint8

// What can become of it. Whatever it is, the descriptors stay with the holders,
// and the port of a listener is bound until they close them.
const (
	NotClosed Closed = iota // the error says why
	Destroyed               // by the kernel (SOCK_DESTROY): a TCP peer is sent a reset, the holders read an error
	Aborted                 // a UDP socket that was bound to a port by its number: the holders read one error, and can go on receiving
	ShutDown                // with shutdown(2) through a holder's descriptor: peer and holders read the end
	Gone                    // it was closed already, or has other ends by now
)

var closedNames = [...]string{"not closed", "closed", "still bound", "shut down", "was gone"}

// String returns it in a word or two.
func (c Closed) String() string { return closedNames[c] }

// MarshalText implements [encoding.TextMarshaler].
func (c Closed) MarshalText() ([]byte, error) { return []byte(c.String()), nil }

// Close closes the row's socket, and no other that has its addresses by now. It
// asks the kernel to, which needs CAP_NET_ADMIN and can be had of TCP and UDP
// sockets only. Failing that it shuts the socket down as its holders could, which
// needs the right to trace one of them.
//
// What is neither connected nor listens, a UDP or raw socket say, is not shut down:
// its holders would read an empty end again and again, and still have the socket.
// The error is on one line. It wraps [fs.ErrPermission] if the right is missing,
// and [errors.ErrUnsupported] if nobody but its holders can close the socket.
func Close(ctx context.Context, r *Row) (Closed, error) {
	result := NotClosed
	err := inNamespace(r, func() (err error) {
		result, err = destroy(ctx, r.Socket)
		return err
	})
	switch {
	case err == nil:
		return result, nil
	case r.Protocol.IsInet() && r.State == fivetuple.StateClose:
		next := "stop the process that holds it"
		if errors.Is(err, fs.ErrPermission) {
			next += ", or run as root"
		}
		return NotClosed, fmt.Errorf("%w; it is not connected, so it cannot be shut down: %s", err, next)
	case len(r.Owners) == 0:
		return NotClosed, fmt.Errorf("%w; no process is seen that holds it: run as root on the host to see more", err)
	}
	var why error
	for _, h := range r.Owners {
		shutErr := shutDown(r, h)
		if shutErr == nil {
			return ShutDown, nil
		}
		if why == nil || errors.Is(why, fs.ErrNotExist) { // of a holder that has let go of it
			why = shutErr
		}
	}
	return NotClosed, fmt.Errorf("%w; %w", err, why)
}

// destroy asks the kernel to close a socket of the calling thread's network
// namespace, and looks what became of it.
func destroy(ctx context.Context, s sockdiag.Socket) (Closed, error) {
	err := sockdiag.Destroy(ctx, s)
	if errors.Is(err, fs.ErrNotExist) {
		return Gone, nil
	}
	if err == nil {
		if s.Protocol != fivetuple.UDP && s.Protocol != fivetuple.UDPLite {
			return Destroyed, nil
		}
		s.Remote = netip.AddrPort{} // udp_abort of net/ipv4/udp.c disconnects, and unbinds but what was bound with bind(2)
	}
	_, getErr := sockdiag.Get(ctx, s, 0)
	switch gone := errors.Is(getErr, fs.ErrNotExist); {
	case err == nil && gone:
		return Destroyed, nil
	case err == nil:
		return Aborted, nil
	case gone:
		return Gone, nil
	}
	return NotClosed, err
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

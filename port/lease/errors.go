package lease

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"strings"

	"github.com/fivetuple/fivetuple"
)

var (
	// ErrLeased: the port is leased on an overlapping address. The error is a [*ConflictError].
	ErrLeased = errors.New("the port is leased")
	// ErrInUse: a socket is bound there, of whatever process, and no lease says so.
	ErrInUse = errors.New("the port is in use")
	// ErrNotPermitted: this process may not bind the port.
	ErrNotPermitted = errors.New("the port may not be bound")
	// ErrExhausted: no port of the range can be granted. The error is an [*ExhaustedError].
	ErrExhausted = errors.New("no port is free")
	// ErrStale: the lease has ended; its fencing number is not that of a current one.
	ErrStale = errors.New("the lease has ended")
	// ErrInvalid: the request itself is wrong.
	ErrInvalid = errors.New("bad request for a port")
)

// ConflictError says whose lease stands in the way. It wraps [ErrLeased].
type ConflictError struct {
	Protocol fivetuple.Network
	Wanted   netip.AddrPort
	Holder   Lease
	// Elsewhere: in another registry, of this user or another one. The holder's
	// name is not known then, and its process only if it can be seen from here.
	Elsewhere bool
}

func (e *ConflictError) Error() string {
	if e.Elsewhere {
		return fmt.Sprintf("%s %s overlaps %s in another registry of ports: take another port, or release it there", e.Protocol, e.Wanted, e.Holder)
	}
	return fmt.Sprintf("%s %s overlaps %s: release that lease or take another port", e.Protocol, e.Wanted, e.Holder)
}

func (e *ConflictError) Unwrap() error { return ErrLeased }

// ExhaustedError says what became of each port of a range. It wraps
// [ErrExhausted], and [ErrNotPermitted] if ports were refused for that.
type ExhaustedError struct {
	Protocol fivetuple.Network
	Address  netip.Addr
	Range    fivetuple.PortRange
	// Leased, resting (freed a short while ago), in use, denied and reserved
	// ports (ip_local_reserved_ports) add up to the range.
	Leased, Resting, InUse, Denied, Reserved int

	denial error // the last one
}

func (e *ExhaustedError) Error() string {
	var counts []string
	for _, c := range []struct {
		n   int
		are string
	}{{e.Leased, "leased"}, {e.Resting, "freed only now and at rest"}, {e.InUse, "in use"}, {e.Denied, "not permitted"}, {e.Reserved, "reserved by the kernel"}} {
		if c.n > 0 {
			counts = append(counts, fmt.Sprintf("%d %s", c.n, c.are))
		}
	}
	s := fmt.Sprintf("no %s port of %s is free on %s: %s", e.Protocol, e.Range, e.Address, strings.Join(counts, ", "))
	if e.denial != nil {
		return s + " (" + e.denial.Error() + ")"
	}
	return s + ": take a larger range or release a lease"
}

func (e *ExhaustedError) Unwrap() []error {
	if e.denial != nil {
		return []error{ErrExhausted, e.denial}
	}
	return []error{ErrExhausted}
}

// bindError is a bind(2) that failed, with what that says about the port.
type bindError struct {
	protocol fivetuple.Network
	at       netip.AddrPort
	kind     error // ErrInUse or ErrNotPermitted, nil for a failure that says nothing about the port
	err      error
	advice   string
}

func (e *bindError) Error() string {
	s := fmt.Sprintf("bind %s %s: %v", e.protocol, e.at, e.err)
	if e.advice != "" {
		s += ": " + e.advice
	}
	return s
}

func (e *bindError) Unwrap() []error {
	if e.kind == nil {
		return []error{e.err}
	}
	return []error{e.kind, e.err}
}

// explain turns the error of binding a socket into one of this package.
func explain(protocol fivetuple.Network, at netip.AddrPort, err error) error {
	if call := (*os.SyscallError)(nil); errors.As(err, &call) && call.Syscall == "bind" {
		err = call.Err // "bind" is said already
	}
	e := &bindError{protocol: protocol, at: at, err: err}
	switch {
	case err == nil:
		return nil
	case isInUse(err):
		e.kind = ErrInUse
	case isDenied(err):
		e.kind, e.advice = ErrNotPermitted, denialAdvice(at.Port())
	case isNoAddress(err):
		e.advice = "the address is none of this machine's"
	}
	return e
}

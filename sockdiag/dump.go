package sockdiag

import (
	"context"
	"errors"
	"fmt"
	"iter"

	"github.com/fivetuple/fivetuple"
)

// Query chooses sockets. The zero value asks for all.
type Query struct {
	// Protocols are TCP, UDP, Unix, Unixgram, Seqpacket, and those that run
	// over them (TLS over TCP; the address family of TCP4 does not narrow).
	// None means all five.
	Protocols []fivetuple.Network
	// States to list, from [StatesOf]. 0 means all.
	States States
	// LocalPort and RemotePort narrow to IP sockets of that port. 0 means any.
	LocalPort, RemotePort uint16
	// Program narrows IP sockets in the kernel: struct inet_diag_bc_op of
	// include/uapi/linux/inet_diag.h, as package filter makes it. Other
	// sockets, and those that the kernel does not run it on, are not narrowed.
	Program []byte
	// Details to ask for. Each costs time for every socket.
	Details Details
}

// Details are parts of a [Socket] that are read only if asked for.
type Details uint16

// The details, with the fields that they fill.
const (
	WithInfo       Details = 1 << iota // Info
	WithMemory                         // Memory
	WithCongestion                     // Congestion
	WithCgroup                         // Cgroup
	WithMark                           // Mark, with CAP_NET_ADMIN only
	WithTOS                            // TOS, TClass
)

// States is a set of socket states, one bit for each as the kernel numbers them.
type States uint32

// ListeningOrBound are the states of sockets that wait for peers: listening
// TCP and Unix sockets, UDP sockets that are not connected, TCP sockets that
// are bound and no more. Of Unix datagram sockets it misses those that
// another one has connected to (see [Socket].State).
const ListeningOrBound States = 1<<fivetuple.StateListen | 1<<fivetuple.StateClose

// StatesOf makes a set of the states.
func StatesOf(states ...fivetuple.State) States {
	var set States
	for _, s := range states {
		set |= 1 << s
	}
	return set
}

// ErrInterrupted ends a dump during which the table changed in such a way that
// sockets may be missing from what was read, or be in it twice.
var ErrInterrupted = errors.New("the socket table changed while it was read")

// Dump reads the table, one socket at a time as the kernel sends them; it
// keeps none and allocates nothing for an IP socket. An error ends the
// sequence: ctx is done, a protocol cannot be listed, or [ErrInterrupted].
//
// The kernel takes no snapshot: a socket that changes its state during the
// dump can be listed twice, with the same Cookie, or not at all.
func Dump(ctx context.Context, q Query) iter.Seq2[Socket, error] {
	return func(yield func(Socket, error) bool) {
		err := dump(ctx, q, func(s *Socket) bool { return yield(*s, nil) })
		if err != nil {
			yield(Socket{}, err)
		}
	}
}

// List reads the whole table into memory, and again if that was interrupted.
func List(ctx context.Context, q Query) ([]Socket, error) {
	return list(func() iter.Seq2[Socket, error] { return Dump(ctx, q) })
}

// listTries is how often an interrupted dump is made before giving up.
const listTries = 5

func list(dump func() iter.Seq2[Socket, error]) ([]Socket, error) {
	var all []Socket
	var err error
	for range listTries {
		all = all[:0]
		if all, err = collect(all, dump()); !errors.Is(err, ErrInterrupted) {
			break
		}
	}
	if err != nil {
		return nil, err
	}
	return all, nil
}

func collect(all []Socket, sockets iter.Seq2[Socket, error]) ([]Socket, error) {
	for s, err := range sockets {
		if err != nil {
			return all, err
		}
		all = append(all, s)
	}
	return all, nil
}

// wants says which protocols the query asks for.
type wants struct{ tcp, udp, unix, unixgram, seqpacket bool }

func (q Query) wants() (wants, error) {
	if len(q.Protocols) == 0 {
		return wants{true, true, true, true, true}, nil
	}
	var w wants
	for _, p := range q.Protocols {
		switch p.Protocol() {
		case fivetuple.TCP:
			w.tcp = true
		case fivetuple.UDP:
			w.udp = true
		case fivetuple.Unix:
			w.unix = true
		case fivetuple.Unixgram:
			w.unixgram = true
		case fivetuple.Seqpacket:
			w.seqpacket = true
		default:
			return wants{}, fmt.Errorf("list %s sockets: want tcp, udp, unix, unixgram or seqpacket: %w", p, errors.ErrUnsupported)
		}
	}
	return w, nil
}

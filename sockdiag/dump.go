package sockdiag

import (
	"context"
	"errors"
	"fmt"
	"iter"

	"github.com/fivetuple/fivetuple"
	"github.com/fivetuple/fivetuple/sockopt"
)

// Query chooses sockets. The zero value asks for all.
type Query struct {
	// Protocols are TCP, MPTCP, UDP, UDPLite, SCTP, Raw, ICMP, Unix, Unixgram,
	// Seqpacket, Packet, Netlink, Vsock, and what runs over them (TLS over TCP;
	// the address family of TCP4 does not narrow). None means all. Those that the
	// kernel cannot list are left out, unless there are no others: that is an error.
	//
	// TCP without MPTCP lists the subflows of Multipath TCP among the others.
	Protocols []fivetuple.Network
	// States to list, from [StatesOf]. 0 means all.
	States States
	// LocalPort and RemotePort narrow to sockets with that port, so to TCP,
	// MPTCP, UDP, UDPLite and SCTP. 0 means any.
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

// Listening are the states of [ListeningOrBound] without the TCP sockets that
// are bound and no more. To find those the kernel goes through all TCP sockets,
// connections too, which takes it some 15 ms for 100,000; listeners it keeps
// apart, so that to ask for Listening costs the same whatever else is open.
const Listening States = ListeningOrBound | notBound

// notBound keeps CLOSE from asking for bound TCP sockets. "All states but some"
// has the bit too, but also that by which the kernel is asked for those.
const notBound States = 1 << 31

// StatesOf makes a set of the states.
func StatesOf(states ...fivetuple.State) States {
	var set States
	for _, s := range states {
		set |= 1 << s
	}
	return set
}

func (s States) orAll() States {
	if s == 0 {
		return ^s
	}
	return s
}

func (s States) include(state fivetuple.State) bool { return s.orAll()&(1<<state) != 0 }

// ErrInterrupted ends a dump during which the table changed in such a way that
// sockets may be missing from what was read, or be in it twice.
var ErrInterrupted = errors.New("the socket table changed while it was read")

// Dump reads the table, one socket at a time as the kernel sends them; it
// keeps none and allocates nothing for an IP socket. Info is valid until the
// next one. An error ends the sequence: ctx is done, none of the protocols can
// be listed, the kernel refuses the Program, or [ErrInterrupted], after the last
// socket: who keeps what was read should read all of it again, as [List] does.
//
// TCP sockets that are bound and no more come last. The kernel takes no
// snapshot: a socket that changes its state during the dump can be listed
// twice, with the same Cookie, or not at all.
func Dump(ctx context.Context, q Query) iter.Seq2[Socket, error] {
	return func(yield func(Socket, error) bool) {
		err := dump(ctx, q, func(s *Socket) bool { return yield(*s, nil) })
		if err != nil {
			yield(Socket{}, err)
		}
	}
}

// List reads the whole table into memory, and again if that was interrupted.
// Each Info is the caller's to keep.
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

// infoChunk is how many TCP_INFO are allocated together, about 100 KiB.
const infoChunk = 256

func collect(all []Socket, sockets iter.Seq2[Socket, error]) ([]Socket, error) {
	var infos []sockopt.TCPInfo
	for s, err := range sockets {
		if err != nil {
			return all, err
		}
		if s.Info != nil {
			if len(infos) == cap(infos) {
				infos = make([]sockopt.TCPInfo, 0, infoChunk)
			}
			infos = append(infos, *s.Info)
			s.Info = &infos[len(infos)-1]
		}
		all = append(all, s)
	}
	return all, nil
}

// kinds is a set of the protocols that sockets are listed by.
type kinds uint32

const allKinds kinds = 1<<fivetuple.TCP | 1<<fivetuple.UDP | 1<<fivetuple.Unix | 1<<fivetuple.Unixgram | 1<<fivetuple.Seqpacket |
	1<<fivetuple.Vsock | 1<<fivetuple.MPTCP | 1<<fivetuple.SCTP | 1<<fivetuple.UDPLite | 1<<fivetuple.Raw | 1<<fivetuple.ICMP |
	1<<fivetuple.Packet | 1<<fivetuple.Netlink

func (k kinds) has(protocol fivetuple.Network) bool { return k&(1<<protocol) != 0 }

func (q Query) kinds() (kinds, error) {
	if len(q.Protocols) == 0 {
		return allKinds, nil
	}
	var all kinds
	for _, p := range q.Protocols {
		if !allKinds.has(p.Protocol()) {
			return 0, fmt.Errorf("list %s sockets: the kernel's table has no such sockets: %w", p, errors.ErrUnsupported)
		}
		all |= 1 << p.Protocol()
	}
	return all, nil
}

package table

import (
	"net/netip"
	"time"

	"github.com/fivetuple/fivetuple"
	"github.com/fivetuple/fivetuple/netns"
	"github.com/fivetuple/fivetuple/owner"
	"github.com/fivetuple/fivetuple/sockdiag"
)

// Row is a socket and what is known of it beyond the kernel's table.
type Row struct {
	sockdiag.Socket
	// Namespace is the network namespace that the socket belongs to.
	Namespace *netns.Namespace
	// Owners are the processes that hold the socket, if they were looked for,
	// and NoOwner says why none was found.
	Owners  []owner.Holder
	NoOwner Unowned
	// Unit and Container are the systemd unit and the container of the control
	// group that the socket was made in, or else of the one its first owner is in.
	Unit, Container string
	// PeerName is what the peer of a Unix socket is bound to, if it was looked for.
	PeerName string
	// Peers are the processes that hold the other end of a connection within
	// the machine, if they were looked for.
	Peers []owner.Holder
	// Opened is when the socket was first seen, by something that watches. The
	// kernel does not tell: it is the zero Time in a table that was read once.
	Opened time.Time
	// Rate is what was measured between two readings of the table.
	Rate Rate
}

// Rate is how much data a TCP socket moved, in bytes per second.
type Rate struct {
	Known   bool // there was something to compare with
	In, Out uint64
}

// ID names a socket for as long as the machine runs: two rows of the same ID
// are the same socket at two times, or in two states.
type ID struct {
	Protocol fivetuple.Network
	Netns    uint64
	Cookie   uint64
	// Of sockets that the kernel gives no cookie, in TIME_WAIT say.
	Local, Remote netip.AddrPort
	Inode         uint32
}

// ID returns the name of the row's socket.
func (r *Row) ID() ID {
	id := ID{Protocol: r.Protocol, Netns: r.netns(), Cookie: r.Cookie}
	if id.Cookie == 0 {
		id.Local, id.Remote, id.Inode = r.Local, r.Remote, r.Inode
	}
	return id
}

func (r *Row) netns() uint64 {
	if r.Namespace == nil {
		return 0
	}
	return r.Namespace.ID
}

// LocalEnd and RemoteEnd are the two ends of the socket; the remote one of a
// Unix socket is known only if its peer was looked for.
func (r *Row) LocalEnd() fivetuple.Address {
	return fivetuple.Address{AddrPort: r.Local, Name: r.Name}
}

// RemoteEnd is the other end of [Row.LocalEnd].
func (r *Row) RemoteEnd() fivetuple.Address {
	return fivetuple.Address{AddrPort: r.Remote, Name: r.PeerName}
}

// Listens says whether the socket waits for peers rather than talks to one: it
// listens, or it is a datagram socket that is bound and not connected.
func (r *Row) Listens() bool {
	switch r.Protocol {
	case fivetuple.TCP, fivetuple.MPTCP, fivetuple.SCTP, fivetuple.Unix, fivetuple.Seqpacket, fivetuple.Vsock:
		return r.State == fivetuple.StateListen
	case fivetuple.UDP, fivetuple.UDPLite:
		return r.State == fivetuple.StateClose && r.Local.Port() != 0
	case fivetuple.Unixgram:
		return r.Name != ""
	}
	return r.State == fivetuple.StateClose
}

// UIDKnown says whether UID is the user that made the socket. The kernel gives 0
// for what is not a full socket: connections in SYN_RECV and TIME_WAIT, and those
// in FIN_WAIT2 that their program has closed; and for netlink sockets.
func (r *Row) UIDKnown() bool {
	switch r.State {
	case fivetuple.StateTimeWait, fivetuple.StateSynRecv, fivetuple.StateNewSynRecv:
		return false
	case fivetuple.StateFinWait2:
		return r.Inode != 0
	}
	return r.Protocol != fivetuple.Netlink
}

// QueueFull says whether a listener's accept queue is full, so that the kernel
// drops what completes a handshake. The kernel takes one connection more than the backlog.
func (r *Row) QueueFull() bool {
	return r.State == fivetuple.StateListen && r.RecvQueue > r.SendQueue
}

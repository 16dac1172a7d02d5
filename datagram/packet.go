package datagram

import (
	"net/netip"

	"github.com/fivetuple/fivetuple"
)

// MaxSize is the most that a datagram carries, in bytes: 65,535 less the UDP
// header over IPv6 (RFC 8200 section 3), 65,507 over IPv4.
const MaxSize = 65527

// Packet is a datagram that was received.
type Packet struct {
	Data []byte
	From fivetuple.Address // who sent it; zero if a Unix socket without a name
	// To is where it was sent to: an address of this host, a group or a
	// broadcast address. The socket's own address where the system does not say.
	To        fivetuple.Address
	Interface int // index of the interface it came in on; 0 if the system does not say

	grows  bool // Data was made by Receive, which may make a longer one
	conn   *Conn
	route  route
	server *Server // nil if received without one
	peer   *peer   // nil if not tracked
	isNew  bool    // the peer's first

	// Control messages, aligned like the pointers before them.
	controlIn  [controlIn]byte
	controlOut [controlOut]byte
}

// route is how a reply reaches the sender of a datagram.
type route struct {
	source  netip.Addr // the address it leaves from; the zero Addr leaves it to the kernel
	ifindex int        // the interface it leaves by, for link-local addresses; 0 leaves it to the routes
}

// Tuple names the exchange that the datagram belongs to; Local is this side.
func (p *Packet) Tuple() fivetuple.Tuple {
	return fivetuple.Tuple{Protocol: p.conn.protocol(), Local: p.To, Remote: p.From}
}

// Peer is the id of the peer that sent it, for [Server.Send]; 0 if the server
// does not track the sender.
func (p *Packet) Peer() uint64 {
	if p.peer == nil {
		return 0
	}
	return p.peer.id
}

// Server is what received it, nil if that was a [Conn] alone.
func (p *Packet) Server() *Server { return p.server }

// Reply sends b to the sender, from the address that the sender wrote to. A
// reply to a datagram that went to a group or to a broadcast address leaves
// from this host's address towards the sender. The error is ErrUnnamed if the
// sender is a Unix socket without a name. While the queue of one is full Reply
// waits as [Conn.SendTo] does, or within a [Server] for a tenth of a second and
// then no more, so that a peer that does not read does not hold up the others.
func (p *Packet) Reply(b []byte) error {
	return target{p.server, p.peer, p.conn, p.From, p.route}.send(b, p.controlOut[:])
}

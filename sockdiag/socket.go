// Package sockdiag reads the kernel's table of sockets: every TCP, UDP, Unix,
// raw, packet and netlink socket of the network namespace, and others, with its
// addresses, state, queues, owner's uid and inode. It closes sockets of any
// process, and tells when sockets end.
//
//	for s, err := range sockdiag.Dump(ctx, sockdiag.Query{LocalPort: 8080}) {
//		...
//	}
//
// It stands on sock_diag(7), the netlink family NETLINK_SOCK_DIAG; only to
// close sockets and to see their marks takes a privilege. The network namespace
// is that of the calling thread. Ports, states and programs narrow in the
// kernel. Raw and packet sockets are read from /proc/net where the kernel was
// built without their diagnostics, ping sockets always. On other systems every
// call fails with an error wrapping [errors.ErrUnsupported], and so it does
// where the kernel can list none of the protocols asked for.
//
// A Multipath TCP socket is listed once, as MPTCP, when both MPTCP and TCP are
// asked for. Its subflows, TCP sockets with the inode that its process holds,
// are then left out. When TCP alone is asked for they are listed, as ss -t does.
// Some parts of Multipath TCP are listed as TCP in any case: a subflow in
// TIME_WAIT or SYN_RECV, which belongs to no socket; a socket that is bound and
// no more; and further subflows (RFC 8684 section 3.2) of a connection without
// an inode, so one not yet accepted or closed by its process.
package sockdiag

import (
	"net/netip"
	"time"

	"github.com/fivetuple/fivetuple"
	"github.com/fivetuple/fivetuple/sockopt"
)

// Socket is one row of the kernel's socket table. It is comparable.
type Socket struct {
	// Protocol is one of those listed at [Query].
	Protocol fivetuple.Network
	// State of a UDP or Unix socket is ESTABLISHED if it is connected, LISTEN
	// if it listens, otherwise CLOSE; but a Unix datagram socket becomes
	// ESTABLISHED also when another one connects to it. A TCP socket in CLOSE
	// is bound and neither listens nor connects; the kernel lists those since
	// Linux 6.8. It gives SYN_RECV for NEW_SYN_RECV. Other sockets are in
	// ESTABLISHED or CLOSE; an association of SCTP is in the like of TCP.
	State fivetuple.State
	// V6Only is set on an IPv6 socket that takes no IPv4 (IPV6_V6ONLY,
	// ipv6(7)). The kernel tells it in LISTEN and CLOSE only.
	V6Only bool
	// Interface is the index of the network interface that an IP socket is
	// bound to, by SO_BINDTODEVICE or by a link-local address; 0 for any.
	Interface uint32

	// Local and Remote are the ends of an IP socket. IPv4 mapped into IPv6 is
	// given as IPv4, link-local IPv6 with the name of its interface as zone
	// (the index, if the interface is gone). Remote is the zero AddrPort of a
	// socket that has no peer.
	Local, Remote netip.AddrPort

	// Name is what a Unix socket is bound to, "" if to nothing: the path as it
	// was given to bind(2), or "@name" in the abstract name space. A name
	// that does not print is escaped as in a Go string; no other is changed.
	//
	// Of a packet socket it is the EtherType and interface ("arp:eth0", "*:*"
	// for all), of a netlink socket the family and port id ("route:1234",
	// "route:kernel"), of a vsock socket CID and port ("2:1024", "*:1024").
	Name string
	// PeerInode is the Inode of the Unix socket that this one is connected to, 0 for none.
	PeerInode uint32

	// Cookie names the socket until the machine restarts. It is never reused.
	// What is read from /proc has none, 0: ping sockets, and raw and packet
	// sockets where the kernel has no diagnostics for them.
	Cookie uint64
	// Inode is what /proc/PID/fd shows as "socket:[inode]". It is 0 if no
	// process can hold the socket: in TIME_WAIT, in SYN_RECV, a connection
	// not yet accepted, or one closed by its process and not yet by its peer.
	Inode uint32
	// UID is the user that created the socket. It means nothing in TIME_WAIT.
	// Of Unix sockets the kernel tells it since Linux 5.3, before it is 0. Of
	// netlink and vsock sockets it does not tell it: 0.
	UID uint32

	// RecvQueue is what waits to be received. TCP: bytes not yet read. UDP:
	// bytes of kernel memory that the waiting datagrams take, which is more
	// than they carry. Unix streams and packets: bytes; datagrams: bytes of
	// the first one. Others: bytes of memory. In LISTEN: connections that wait
	// for accept(2).
	RecvQueue uint32
	// SendQueue is what waits to be sent. TCP: bytes that the peer has not yet
	// acknowledged. Others: bytes of kernel memory. In LISTEN: the
	// backlog, how many connections may wait for accept(2).
	SendQueue uint32

	// Timer is what a TCP socket waits for.
	Timer Timer

	// Number tells sockets without ports apart: of a raw or ICMP socket the
	// IP protocol, of a packet socket the EtherType (0x0003 for all), of a
	// netlink socket the netlink family.
	Number uint16

	// What [Details] ask for. Each is the zero value where the kernel does not
	// tell it of this kind of socket.

	// Info is TCP_INFO of a TCP socket that is not in TIME_WAIT or SYN_RECV.
	Info *sockopt.TCPInfo
	// Memory is the kernel memory that the socket takes, and its bounds. Of
	// what is read from /proc, RecvAlloc, SendAlloc and Drops.
	Memory Memory
	// Congestion is the congestion control algorithm of a TCP or MPTCP socket.
	Congestion string
	// Cgroup is the id of the control group (v2) that an IP socket was made in,
	// the inode number of its directory; since Linux 5.9.
	Cgroup uint64
	Mark   uint32 // SO_MARK of an IP socket
	TOS    uint8  // IP_TOS
	TClass uint8  // IPV6_TCLASS
}

// Timer is the timer of a TCP socket (inet_diag_msg, tcp(7)).
type Timer struct {
	Kind TimerKind
	// Retransmits counts how often it ran out without an answer.
	Retransmits uint8
	Expires     time.Duration // from now, to the millisecond
}

// TimerKind says what runs out.
type TimerKind uint8

// The kernel's timers, as it numbers them.
const (
	TimerOff        TimerKind = iota
	TimerRetransmit           // an acknowledgement is waited for
	TimerKeepalive            // or, in SYN_RECV and FIN_WAIT2, an answer
	TimerTimeWait             // the connection is forgotten then
	TimerProbe                // the peer's window is closed and will be probed
)

// Memory is what a socket takes of the kernel's memory (struct sk_meminfo,
// sock_diag(7)), in bytes.
type Memory struct {
	RecvAlloc, RecvBuffer uint32 // taken, and the bound (SO_RCVBUF)
	SendAlloc, SendBuffer uint32 // in packets on their way, and the bound (SO_SNDBUF)
	SendQueued            uint32
	Forward               uint32 // set aside
	Option                uint32
	Backlog               uint32
	Drops                 uint32 // packets dropped for want of room; of a TCP listener, connections
}

// Tuple names the socket by its two ends. Of a Unix socket the remote end is
// not filled in: it takes another row to know it, the one with the inode PeerInode.
func (s Socket) Tuple() fivetuple.Tuple {
	return fivetuple.Tuple{
		Protocol: s.Protocol,
		Local:    fivetuple.Address{AddrPort: s.Local, Name: s.Name},
		Remote:   fivetuple.Address{AddrPort: s.Remote},
	}
}

// Holds says whether an IP socket stands in the way of one that is to be bound
// to addr: the protocol and port are the same and the addresses overlap.
//
// A wildcard overlaps every address of its families. 0.0.0.0 is IPv4 only; ::
// and the zero Addr mean both, unless the socket is V6Only or the protocol
// narrows addr: TCP4 and UDP4 to IPv4, TCP6 and UDP6 to IPv6, as the net
// package binds them.
//
// Neither state nor options are looked at. Sockets in LISTEN and CLOSE always
// stand in the way unless both sides set SO_REUSEPORT; connections do when
// they were bound or connected without SO_REUSEADDR (socket(7)), which the
// table does not show. To name a holder ask for [ListeningOrBound] first, and
// for connections only if that finds none.
func (s Socket) Holds(protocol fivetuple.Network, addr netip.AddrPort) bool {
	if !s.Protocol.IsIP() || s.Protocol != protocol.Protocol() || addr.Port() == 0 || s.Local.Port() != addr.Port() {
		return false
	}
	mine, its := s.Local.Addr().Unmap(), addr.Addr().Unmap()
	mine4, mine6 := families(mine, s.V6Only)
	its4, its6 := families(its, protocol == fivetuple.TCP6 || protocol == fivetuple.UDP6)
	if protocol == fivetuple.TCP4 || protocol == fivetuple.UDP4 {
		its6 = false
	}
	if !(mine4 && its4) && !(mine6 && its6) {
		return false
	}
	return isWildcard(mine) || isWildcard(its) || mine == its ||
		(mine.Zone() == "" || its.Zone() == "") && mine.WithZone("") == its.WithZone("")
}

// families says of which IP versions a socket bound to a takes packets.
func families(a netip.Addr, v6only bool) (v4, v6 bool) {
	switch {
	case a.Is4():
		return true, false
	case isWildcard(a):
		return !v6only, true
	}
	return false, true
}

func isWildcard(a netip.Addr) bool { return !a.IsValid() || a.IsUnspecified() }

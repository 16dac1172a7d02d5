package fivetuple

import (
	"fmt"
	"strings"
)

// Network is the kind of socket an endpoint or a tuple names: the transport
// and, where it was asked for, the address family.
type Network uint8

// The networks of the endpoint grammar. The zero value names none.
const (
	NetworkNone Network = iota
	TCP                 // SOCK_STREAM over IPv4 or IPv6, tcp(7)
	TCP4                // TCP over IPv4 only
	TCP6                // TCP over IPv6 only
	UDP                 // SOCK_DGRAM over IPv4 or IPv6, udp(7)
	UDP4                // UDP over IPv4 only
	UDP6                // UDP over IPv6 only
	TLS                 // TLS over TCP, RFC 8446
	Unix                // AF_UNIX SOCK_STREAM, unix(7)
	Unixgram            // AF_UNIX SOCK_DGRAM
	Seqpacket           // AF_UNIX SOCK_SEQPACKET
	Vsock               // AF_VSOCK SOCK_STREAM, vsock(7)
	Stdio               // standard input and output, written "-"
)

// The protocols of other sockets, which the kernel's table lists and no endpoint names.
const (
	MPTCP   = Stdio + 1 + iota // Multipath TCP, RFC 8684: a connection made of TCP subflows
	SCTP                       // RFC 9260
	UDPLite                    // RFC 3828
	Raw                        // SOCK_RAW of IPv4 or IPv6, raw(7)
	ICMP                       // SOCK_DGRAM of IPPROTO_ICMP or IPPROTO_ICMPV6: an unprivileged ping, icmp(7)
	Packet                     // AF_PACKET, packet(7)
	Netlink                    // AF_NETLINK, netlink(7)
)

var networkNames = [...]string{
	NetworkNone: "", TCP: "tcp", TCP4: "tcp4", TCP6: "tcp6", UDP: "udp", UDP4: "udp4", UDP6: "udp6",
	TLS: "tls", Unix: "unix", Unixgram: "unixgram", Seqpacket: "seqpacket", Vsock: "vsock", Stdio: "-",
	MPTCP: "mptcp", SCTP: "sctp", UDPLite: "udplite", Raw: "raw", ICMP: "icmp", Packet: "packet", Netlink: "netlink",
}

// String returns the name used as the scheme of an endpoint: "tcp", "udp4", "unix".
func (n Network) String() string {
	if int(n) < len(networkNames) {
		return networkNames[n]
	}
	return fmt.Sprintf("network(%d)", uint8(n))
}

// ParseNetwork is the inverse of [Network.String], in any case of letters.
func ParseNetwork(s string) (Network, error) {
	for n, name := range networkNames {
		if name != "" && strings.EqualFold(s, name) {
			return Network(n), nil
		}
	}
	return NetworkNone, fmt.Errorf("unknown network %q: want tcp, tcp4, tcp6, udp, udp4, udp6, tls, unix, unixgram, seqpacket, vsock, mptcp, sctp, udplite, raw, icmp, packet or netlink", s)
}

// Protocol drops the address family and what runs inside: TCP4, TCP6 and TLS
// are TCP. Tuples carry protocols, so that the same socket has the same tuple
// however it was opened.
func (n Network) Protocol() Network {
	switch n {
	case TCP4, TCP6, TLS:
		return TCP
	case UDP4, UDP6:
		return UDP
	}
	return n
}

// IsIP says whether endpoints of the network have IP addresses and ports.
func (n Network) IsIP() bool { return n >= TCP && n <= TLS }

// IsInet says whether sockets of the network are of AF_INET or AF_INET6: those
// of [Network.IsIP], and MPTCP, SCTP, UDPLite, Raw and ICMP.
func (n Network) IsInet() bool { return n.IsIP() || n >= MPTCP && n <= ICMP }

// IsUnix says whether sockets of the network are of the Unix domain.
func (n Network) IsUnix() bool { return n == Unix || n == Unixgram || n == Seqpacket }

// IsDatagram says whether the network keeps message boundaries and makes no connection.
func (n Network) IsDatagram() bool { return n.Protocol() == UDP || n == Unixgram }

// family returns 4 or 6 for a network bound to one IP version, else 0.
func (n Network) family() int {
	switch n {
	case TCP4, UDP4:
		return 4
	case TCP6, UDP6:
		return 6
	}
	return 0
}

// MarshalText implements [encoding.TextMarshaler].
func (n Network) MarshalText() ([]byte, error) { return []byte(n.String()), nil }

// UnmarshalText implements [encoding.TextUnmarshaler]. Empty text is NetworkNone.
func (n *Network) UnmarshalText(b []byte) (err error) {
	if len(b) == 0 {
		*n = NetworkNone
		return nil
	}
	*n, err = ParseNetwork(string(b))
	return err
}

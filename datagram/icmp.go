package datagram

import (
	"fmt"
	"net/netip"
	"syscall"

	"github.com/fivetuple/fivetuple"
)

// ICMPError is what a router, or the other host, or this host's own IP layer
// answered to a datagram that was sent earlier: RFC 792, RFC 4443. It wraps
// the error number that Linux makes of it: ECONNREFUSED for a port that nobody
// has open, EHOSTUNREACH, ENETUNREACH, EMSGSIZE and others.
type ICMPError struct {
	To         fivetuple.Address // where the datagram was sent to
	From       netip.Addr        // who says so, the zero Addr if not known
	Type, Code uint8             // of ICMP, or of ICMPv6 if To is IPv6
	MTU        int               // what the path takes, in bytes with the IP header, if EMSGSIZE; else 0
	Errno      syscall.Errno
}

// Error names the endpoint, what it means and who said it.
func (e *ICMPError) Error() string {
	s := fmt.Sprintf("udp %s: %v (ICMP %s", e.To, e.Errno, e.name())
	if e.From.IsValid() {
		s += fmt.Sprintf(" from %s", e.From)
	}
	if e.MTU > 0 {
		s += fmt.Sprintf(", the path takes packets of %d bytes", e.MTU)
	}
	s += ")"
	if e.Errno == syscall.ECONNREFUSED {
		s += ": nobody has the port open"
	}
	return s
}

// Unwrap returns Errno.
func (e *ICMPError) Unwrap() error { return e.Errno }

// name is the type and code as the RFCs call it.
func (e *ICMPError) name() string {
	names := icmpNames
	if e.To.AddrPort.Addr().Is6() {
		names = icmp6Names
	}
	for _, n := range names {
		if n.icmpType == e.Type && n.code == e.Code {
			return n.name
		}
	}
	return fmt.Sprintf("type %d code %d", e.Type, e.Code)
}

type icmpName struct {
	icmpType, code uint8
	name           string
}

// RFC 792, RFC 1812 section 5.2.7.1.
var icmpNames = []icmpName{
	{3, 0, "net unreachable"}, {3, 1, "host unreachable"}, {3, 2, "protocol unreachable"}, {3, 3, "port unreachable"},
	{3, 4, "fragmentation needed"}, {3, 9, "net prohibited"}, {3, 10, "host prohibited"}, {3, 13, "administratively prohibited"},
	{11, 0, "time to live exceeded"}, {11, 1, "fragment reassembly time exceeded"}, {12, 0, "parameter problem"},
}

// RFC 4443 section 3.
var icmp6Names = []icmpName{
	{1, 0, "no route to destination"}, {1, 1, "administratively prohibited"}, {1, 2, "beyond scope of source address"},
	{1, 3, "address unreachable"}, {1, 4, "port unreachable"}, {1, 5, "source address failed policy"}, {1, 6, "route rejected"},
	{2, 0, "packet too big"}, {3, 0, "hop limit exceeded"}, {3, 1, "fragment reassembly time exceeded"}, {4, 0, "parameter problem"},
}

// Package dnat reads which rules of the packet filter send a port elsewhere
// (DNAT, redirect) before any socket of this machine sees what arrives for it: the
// ports that container engines publish, mostly.
//
// It stands on nf_tables over netlink (include/uapi/linux/netfilter/nf_tables.h),
// as nft(8) does, and reads also the rules that iptables-nft wrote, whose matches
// and targets are those of x_tables. The kernel shows rules only to those who have
// CAP_NET_ADMIN. Rules of the older iptables-legacy cannot be read this way. On
// other systems than Linux, and on kernels without nf_tables, the error wraps
// [errors.ErrUnsupported].
package dnat

import (
	"context"
	"fmt"
	"net/netip"
	"strings"
)

// The protocols that have ports, by their numbers.
const (
	TCP  = 6
	UDP  = 17
	SCTP = 132
)

// Port is what a packet is sent to.
type Port struct {
	Protocol uint8
	Number   uint16
}

// Rule is a rule that sends what is for a port elsewhere.
type Rule struct {
	Port Port // it is asked about
	// Incoming and Local say what the rule is asked about: what arrives from
	// other machines (hook prerouting), and what is sent by this one (hook output).
	Incoming, Local bool
	// Family is 4 or 6, 0 for both.
	Family int
	Table  string // "ip nat"
	Chain  string
	// To is where it is sent; the zero Addr is this machine, by a redirect.
	// Ports are First to Last, any of which may be taken; First is 0 if the port
	// stays the same. Unread is set if a map says where to, and it is not read.
	To          netip.Addr
	First, Last uint16
	Unread      bool
	// Only is the destination address that the rule is for; the zero Prefix is any.
	Only netip.Prefix
	// Conditions are what else must hold: "not from device docker0".
	Conditions []string
}

// Target returns where the rule sends to: "172.17.0.2:80", "port 9000 of this machine".
func (r Rule) Target() string {
	ports := fmt.Sprint(r.First)
	if r.Last > r.First {
		ports = fmt.Sprintf("%d-%d", r.First, r.Last)
	}
	if r.First == 0 {
		ports = fmt.Sprint(r.Port.Number)
	}
	switch {
	case r.Unread:
		return ""
	case !r.To.IsValid():
		return "port " + ports + " of this machine"
	case r.To.Is6():
		return "[" + r.To.String() + "]:" + ports
	}
	return r.To.String() + ":" + ports
}

// String returns "table ip nat, chain DOCKER", with the conditions.
func (r Rule) String() string {
	s := "table " + r.Table + ", chain " + r.Chain
	if len(r.Conditions) > 0 {
		s += " (" + strings.Join(r.Conditions, ", ") + ")"
	}
	return s
}

// Find returns the rules that send any of the ports elsewhere, of the network
// namespace of the calling thread, in the order that the kernel asks them. A rule
// is found if it may match: its conditions about addresses and devices are not judged.
// The error wraps [fs.ErrPermission] without CAP_NET_ADMIN.
func Find(ctx context.Context, ports []Port) ([]Rule, error) {
	if len(ports) == 0 {
		return nil, nil
	}
	return find(ctx, ports)
}

// Legacy says whether iptables-legacy has a table of NAT rules here, which [Find]
// does not see.
func Legacy() bool { return legacy() }

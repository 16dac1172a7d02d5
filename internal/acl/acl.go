// Package acl decides by its source address who is served.
package acl

import "net/netip"

// List is an access list. The longest prefix of both lists that holds an
// address decides, Deny on a tie. An address that none holds is allowed if
// Allow is empty. The zero List allows everyone.
type List struct {
	Allow, Deny []netip.Prefix
}

// Allows says whether an address may be served. IPv4 mapped into IPv6 counts
// as IPv4, a zone does not count. The zero Addr, of a socket that has no IP
// address, is allowed.
func (l List) Allows(a netip.Addr) bool {
	if !a.IsValid() {
		return true
	}
	a = a.Unmap().WithZone("")
	allowed, denied := longest(l.Allow, a), longest(l.Deny, a)
	if denied >= 0 && denied >= allowed {
		return false
	}
	return len(l.Allow) == 0 || allowed >= 0
}

// longest returns the length of the longest prefix that holds a, or -1.
func longest(prefixes []netip.Prefix, a netip.Addr) int {
	n := -1
	for _, p := range prefixes {
		if p.Contains(a) {
			n = max(n, p.Bits())
		}
	}
	return n
}

// Source is what limits for each source count by: an IPv4 address, or an IPv6
// /64, which is what one customer gets (RFC 6177).
func Source(ap netip.AddrPort) netip.Addr {
	a := ap.Addr().Unmap().WithZone("")
	if !a.Is6() {
		return a
	}
	p, _ := a.Prefix(64)
	return p.Addr()
}

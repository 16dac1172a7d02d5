package acl

import (
	"net/netip"
	"strings"
	"testing"
)

func TestAllows(t *testing.T) {
	for _, tt := range []struct {
		allow, deny, addr string
		want              bool
	}{
		{"", "", "192.0.2.1", true},
		{"10.0.0.0/8", "", "10.1.2.3", true},
		{"10.0.0.0/8", "", "192.0.2.1", false},
		{"", "10.0.0.0/8", "10.1.2.3", false},
		{"", "10.0.0.0/8", "192.0.2.1", true},
		// the longer prefix decides, whichever list it is in
		{"10.0.0.0/8", "10.1.0.0/16", "10.1.2.3", false},
		{"10.0.0.0/8", "10.1.0.0/16", "10.2.2.3", true},
		{"10.1.2.0/24", "10.0.0.0/8", "10.1.2.3", true},
		{"10.0.0.0/8 10.1.2.3/32", "10.1.0.0/16", "10.1.2.3", true},
		{"10.0.0.0/8", "10.0.0.0/8", "10.1.2.3", false},
		{"0.0.0.0/0", "10.0.0.0/8", "192.0.2.1", true},
		// the families are apart
		{"10.0.0.0/8", "", "::1", false},
		{"", "0.0.0.0/0", "::1", true},
		{"fd00::/8", "", "fd00::1", true},
		{"fe80::/10", "", "fe80::1%eth0", true},
		{"10.0.0.0/8", "", "::ffff:10.1.2.3", true},
		{"", "10.0.0.0/8", "::ffff:10.1.2.3", false},
	} {
		l := List{prefixes(tt.allow), prefixes(tt.deny)}
		if got := l.Allows(netip.MustParseAddr(tt.addr)); got != tt.want {
			t.Errorf("allow %q, deny %q: %s: got %v, want %v", tt.allow, tt.deny, tt.addr, got, tt.want)
		}
	}
}

func TestNoAddressIsAllowed(t *testing.T) {
	l := List{Allow: prefixes("10.0.0.0/8"), Deny: prefixes("0.0.0.0/0 ::/0")}
	if !l.Allows(netip.Addr{}) {
		t.Error("got false, want true")
	}
}

func prefixes(s string) (list []netip.Prefix) {
	for _, p := range strings.Fields(s) {
		list = append(list, netip.MustParsePrefix(p))
	}
	return list
}

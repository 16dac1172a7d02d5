package scan_test

import (
	"context"
	"errors"
	"net/netip"
	"slices"
	"testing"

	"github.com/fivetuple/fivetuple/scan"
)

func TestParseTargets(t *testing.T) {
	for _, tt := range []struct {
		text, want  string
		first, last string
		len         uint64
	}{
		{"10.0.0.7", "10.0.0.7", "10.0.0.7", "10.0.0.7", 1},
		{"::1", "::1", "::1", "::1", 1},
		{"fe80::1%eth0", "fe80::1%eth0", "fe80::1%eth0", "fe80::1%eth0", 1},
		{"fe80::1%br-lan", "fe80::1%br-lan", "fe80::1%br-lan", "fe80::1%br-lan", 1},
		{"::ffff:10.0.0.7", "10.0.0.7", "10.0.0.7", "10.0.0.7", 1},
		{"10.0.0.0/30", "10.0.0.0-10.0.0.3", "10.0.0.0", "10.0.0.3", 4},
		{"10.0.0.7/30", "10.0.0.4-10.0.0.7", "10.0.0.4", "10.0.0.7", 4},
		{"10.0.0.7/32", "10.0.0.7", "10.0.0.7", "10.0.0.7", 1},
		{"10.0.0.254-10.0.1.1", "10.0.0.254-10.0.1.1", "10.0.0.254", "10.0.1.1", 4},
		{"fd00::/125", "fd00::-fd00::7", "fd00::", "fd00::7", 8},
		{"fe80::1%2-fe80::3%2", "fe80::1%2-fe80::3%2", "fe80::1%2", "fe80::3%2", 3},
		{"192.168.0.0/16", "192.168.0.0-192.168.255.255", "192.168.0.0", "192.168.255.255", 1 << 16},
	} {
		targets, err := scan.ParseTargets(t.Context(), tt.text)
		if err != nil || len(targets) != 1 {
			t.Errorf("%q: got %v, %v, want one target", tt.text, targets, err)
			continue
		}
		got := targets[0]
		addrs := slices.Collect(got.Addrs())
		if got.String() != tt.want || got.Len() != tt.len || uint64(len(addrs)) != tt.len {
			t.Errorf("%q: got %v, Len %d, %d addresses, want %s, %d", tt.text, got, got.Len(), len(addrs), tt.want, tt.len)
		}
		if first, last := addrs[0].String(), addrs[len(addrs)-1].String(); first != tt.first || last != tt.last {
			t.Errorf("%q: got %s to %s, want %s to %s", tt.text, first, last, tt.first, tt.last)
		}
	}
}

func TestHostNameIsAllItsAddresses(t *testing.T) {
	targets, err := scan.ParseTargets(t.Context(), "localhost", "10.0.0.1")
	if err != nil || len(targets) < 2 {
		t.Fatalf("got %v, %v, want two targets at least", targets, err)
	}
	names := targets[:len(targets)-1]
	for _, target := range names {
		if target.Name != "localhost" || !target.First.IsLoopback() || target.Len() != 1 {
			t.Errorf("got %v, want a loopback address named localhost", target)
		}
	}
	want := scan.Target{Name: "localhost", First: netip.MustParseAddr("127.0.0.1")}
	if !slices.Contains(names, want) {
		t.Errorf("got %v, want %v among them", names, want)
	}
	if got, want := want.String(), "localhost (127.0.0.1)"; got != want {
		t.Errorf("String: got %s, want %s", got, want)
	}
}

func TestParseTargetsSaysWhatIsWrong(t *testing.T) {
	for _, tt := range []struct{ text, want string }{
		{"", `target "": is neither an address nor a host name`},
		{"10.0.0.256", `target "10.0.0.256": is neither an address nor a host name`},
		{"10.0.0.1.", `target "10.0.0.1.": is neither an address nor a host name`},
		{"localhost:80", `target "localhost:80": is neither an address nor a host name: ports are given apart from the target`},
		{"10.0.0.0/33", `target "10.0.0.0/33": is not a network: write address/bits, such as 10.0.0.0/24`},
		{"localhost/8", `target "localhost/8": is not a network: write address/bits, such as 10.0.0.0/24`},
		{"::ffff:10.0.0.0/120", `target "::ffff:10.0.0.0/120": is IPv4 written as IPv6: write the IPv4 network`},
		{"10.0.0.1-9", `target "10.0.0.1-9": "9" is not an address: write both ends of a range in full: 10.0.0.7-10.0.0.9`},
		{"10.0.0.9-10.0.0.1", `target "10.0.0.9-10.0.0.1": runs backwards: write the lower address first`},
		{"10.0.0.1-::1", `target "10.0.0.1-::1": runs from one network to another`},
		{"fe80::1%1-fe80::2%2", `target "fe80::1%1-fe80::2%2": runs from one network to another`},
		{"fe80::1", `target "fe80::1": a link-local address needs an interface: write fe80::1%eth0`},
		{"0.0.0.0", `target "0.0.0.0": is not the address of one host`},
		{"::", `target "::": is not the address of one host`},
		{"239.1.1.1", `target "239.1.1.1": is not the address of one host`},
		{"255.255.255.255", `target "255.255.255.255": is not the address of one host`},
		{"10.0.0.0/7", `target "10.0.0.0/7": has more addresses than can be scanned, 16777216: write a smaller network`},
		{"fd00::/64", `target "fd00::/64": has more addresses than can be scanned, 16777216: write a smaller network`},
		{"fd00::/63", `target "fd00::/63": has more addresses than can be scanned, 16777216: write a smaller network`},
	} {
		if _, err := scan.ParseTargets(t.Context(), "10.0.0.1", tt.text); err == nil || err.Error() != tt.want {
			t.Errorf("got %v, want %s", err, tt.want)
		}
	}
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := scan.ParseTargets(ended, "name.invalid"); !errors.Is(err, context.Canceled) {
		t.Errorf("after the context's end: got %v, want %v", err, context.Canceled)
	}
}

// Scans that are let through have ended before they can send anything.
func TestPublicAddressesAreRefused(t *testing.T) {
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	for _, tt := range []struct {
		text   string
		public bool
	}{
		{"127.0.0.1", false}, {"127.255.255.255", false}, {"126.255.255.255", true}, {"128.0.0.0", true},
		{"10.0.0.0/8", false}, {"9.255.255.255", true}, {"11.0.0.0", true}, {"10.255.255.255-11.0.0.0", true},
		{"172.16.0.0/12", false}, {"172.15.255.255", true}, {"172.32.0.0", true},
		{"192.168.0.0/16", false}, {"192.167.255.255", true}, {"192.168.0.0-192.169.0.0", true},
		{"169.254.0.0/16", false}, {"169.255.0.0", true},
		{"100.64.0.0/10", false}, {"100.63.255.255", true}, {"100.128.0.0", true},
		{"8.8.8.8", true}, {"::ffff:8.8.8.8", true}, {"240.0.0.1", true},
		{"::1", false}, {"::2", true}, {"::1-::2", true},
		{"fc00::1", false}, {"fdff::1", false}, {"fe00::1", true}, {"fbff::1", true},
		{"fe80::1%lo", false}, {"fec0::1", true}, {"2001:db8::1", true}, {"64:ff9b::a00:1", true},
	} {
		targets, err := scan.ParseTargets(t.Context(), "127.0.0.1", tt.text)
		if err != nil {
			t.Errorf("%s: %v", tt.text, err)
			continue
		}
		for _, public := range []bool{false, true} {
			want := context.Canceled
			if tt.public && !public {
				want = scan.ErrPublic
			}
			s := scan.Scanner{Public: public}
			for r, err := range s.Scan(ended, targets, scan.Ports(1)) {
				if !errors.Is(err, want) {
					t.Errorf("%s, public allowed %v: got %v, %v, want %v", tt.text, public, r, err, want)
				}
			}
		}
	}
}

func TestMalformedTargetsOfTheCallerAreRefused(t *testing.T) {
	addr := netip.MustParseAddr
	for _, tt := range []struct {
		target scan.Target
		want   string
	}{
		{scan.Target{}, "scan: target invalid IP: has no address"},
		{scan.Target{First: addr("::ffff:127.0.0.1")}, "scan: target ::ffff:127.0.0.1: is IPv4 written as IPv6: write the IPv4 address"},
		{scan.Target{First: addr("10.0.0.2"), Last: addr("10.0.0.1")}, "scan: target 10.0.0.2-10.0.0.1: runs backwards: write the lower address first"},
		{scan.Target{First: addr("fe80::1")}, "scan: target fe80::1: a link-local address needs an interface: write fe80::1%eth0"},
	} {
		s := scan.Scanner{Public: true}
		got := 0
		for r, err := range s.Scan(t.Context(), []scan.Target{tt.target}, scan.Ports(1)) {
			got++
			if err == nil || err.Error() != tt.want {
				t.Errorf("got %v, %v, want %s", r, err, tt.want)
			}
		}
		if got != 1 {
			t.Errorf("%v: got %d yields, want one", tt.target, got)
		}
	}
}

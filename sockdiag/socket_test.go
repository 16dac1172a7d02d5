package sockdiag

import (
	"net/netip"
	"testing"

	"github.com/fivetuple/fivetuple"
)

func TestHoldsWhatABindWouldCollideWith(t *testing.T) {
	const v6only = true
	for _, c := range []struct {
		protocol fivetuple.Network
		local    string
		v6only   bool
		asked    fivetuple.Network
		addr     string
		want     bool
	}{
		{fivetuple.TCP, "127.0.0.1:80", false, fivetuple.TCP, "127.0.0.1:80", true},
		{fivetuple.TCP, "127.0.0.1:80", false, fivetuple.TLS, "127.0.0.1:80", true},
		{fivetuple.TCP, "127.0.0.1:80", false, fivetuple.TCP, "[::ffff:127.0.0.1]:80", true},
		{fivetuple.TCP, "127.0.0.1:80", false, fivetuple.TCP, "127.0.0.1:81", false},
		{fivetuple.TCP, "127.0.0.1:80", false, fivetuple.TCP, "127.0.0.2:80", false},
		{fivetuple.TCP, "127.0.0.1:80", false, fivetuple.UDP, "127.0.0.1:80", false},
		{fivetuple.TCP, "127.0.0.1:80", false, fivetuple.Unix, "127.0.0.1:80", false},
		{fivetuple.UDP, "127.0.0.1:53", false, fivetuple.UDP, "0.0.0.0:53", true},

		{fivetuple.TCP, "127.0.0.1:80", false, fivetuple.TCP, "0.0.0.0:80", true},
		{fivetuple.TCP, "127.0.0.1:80", false, fivetuple.TCP, "[::]:80", true},
		{fivetuple.TCP, "127.0.0.1:80", false, fivetuple.TCP6, "[::]:80", false},
		{fivetuple.TCP, "[::1]:80", false, fivetuple.TCP, "0.0.0.0:80", false},
		{fivetuple.TCP, "[::1]:80", false, fivetuple.TCP4, "0.0.0.0:80", false},
		{fivetuple.TCP, "[::1]:80", false, fivetuple.TCP, "[::]:80", true},
		{fivetuple.TCP, "[::1]:80", false, fivetuple.TCP6, "[::]:80", true},

		{fivetuple.TCP, "0.0.0.0:80", false, fivetuple.TCP, "127.0.0.1:80", true},
		{fivetuple.TCP, "0.0.0.0:80", false, fivetuple.TCP, "[::1]:80", false},
		{fivetuple.TCP, "0.0.0.0:80", false, fivetuple.TCP, "[::]:80", true},
		{fivetuple.TCP, "0.0.0.0:80", false, fivetuple.TCP6, "[::]:80", false},
		{fivetuple.TCP, "[::]:80", false, fivetuple.TCP, "127.0.0.1:80", true},
		{fivetuple.TCP, "[::]:80", false, fivetuple.TCP4, "0.0.0.0:80", true},
		{fivetuple.TCP, "[::]:80", v6only, fivetuple.TCP, "127.0.0.1:80", false},
		{fivetuple.TCP, "[::]:80", v6only, fivetuple.TCP, "[::1]:80", true},
		{fivetuple.TCP, "[::]:80", v6only, fivetuple.TCP4, "0.0.0.0:80", false},
		{fivetuple.TCP, "[::]:80", v6only, fivetuple.TCP, "[::]:80", true},

		{fivetuple.TCP, "[fe80::1%eth0]:80", false, fivetuple.TCP, "[fe80::1%eth0]:80", true},
		{fivetuple.TCP, "[fe80::1%eth0]:80", false, fivetuple.TCP, "[fe80::1%eth1]:80", false},
		{fivetuple.TCP, "[fe80::1%eth0]:80", false, fivetuple.TCP, "[fe80::1]:80", true},
	} {
		s := Socket{Protocol: c.protocol, Local: netip.MustParseAddrPort(c.local), V6Only: c.v6only}
		if got := s.Holds(c.asked, netip.MustParseAddrPort(c.addr)); got != c.want {
			t.Errorf("%s %s (v6only %v) holds %s %s: got %v, want %v", c.protocol, c.local, c.v6only, c.asked, c.addr, got, c.want)
		}
	}
}

func TestHoldsTakesTheZeroAddrAsEveryAddress(t *testing.T) {
	port := netip.AddrPortFrom(netip.Addr{}, 80)
	for _, local := range []string{"127.0.0.1:80", "[::1]:80", "0.0.0.0:80", "[::]:80"} {
		s := Socket{Protocol: fivetuple.TCP, Local: netip.MustParseAddrPort(local)}
		if !s.Holds(fivetuple.TCP, port) {
			t.Errorf("%s does not hold port 80 of every address", local)
		}
		if s.Local.Addr().Is6() && !s.Local.Addr().IsUnspecified() && s.Holds(fivetuple.TCP4, port) {
			t.Errorf("%s holds port 80 of every IPv4 address", local)
		}
	}
	unbound := Socket{Protocol: fivetuple.UDP, Local: netip.MustParseAddrPort("0.0.0.0:0")}
	if unbound.Holds(fivetuple.UDP, netip.MustParseAddrPort("0.0.0.0:0")) {
		t.Error("a socket that is not bound holds port 0")
	}
}

func TestTupleNamesTheSocketAsTheRootPackageDoes(t *testing.T) {
	for _, c := range []struct {
		socket Socket
		want   string
	}{
		{Socket{Protocol: fivetuple.TCP, Local: netip.MustParseAddrPort("127.0.0.1:80")}, "tcp 127.0.0.1:80"},
		{Socket{Protocol: fivetuple.UDP, Local: netip.MustParseAddrPort("[::1]:1"), Remote: netip.MustParseAddrPort("[::1]:2")}, "udp [::1]:1 > [::1]:2"},
		{Socket{Protocol: fivetuple.Unix, Name: "@a", PeerInode: 7}, "unix @a"},
		{Socket{Protocol: fivetuple.Unixgram}, "unixgram unnamed"},
	} {
		if got := c.socket.Tuple().String(); got != c.want {
			t.Errorf("got %q, want %q", got, c.want)
		}
	}
}

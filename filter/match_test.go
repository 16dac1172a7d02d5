package filter

import (
	"net/netip"
	"testing"
	"time"

	"github.com/fivetuple/fivetuple"
)

func TestMatch(t *testing.T) {
	listener := &fakeSocket{protocol: fivetuple.TCP, state: fivetuple.StateListen,
		local: netip.MustParseAddrPort("[::]:80"), peer: netip.MustParseAddrPort("[::]:0")}
	listener4 := &fakeSocket{protocol: fivetuple.TCP, state: fivetuple.StateListen,
		local: netip.MustParseAddrPort("0.0.0.0:80"), peer: netip.MustParseAddrPort("0.0.0.0:0")}
	only6 := &fakeSocket{protocol: fivetuple.MPTCP, state: fivetuple.StateListen, v6only: true,
		local: netip.MustParseAddrPort("[::]:80"), peer: netip.MustParseAddrPort("[::]:0")}
	conn := &fakeSocket{protocol: fivetuple.TCP, state: fivetuple.StateEstablished, device: 1,
		local: netip.MustParseAddrPort("[::ffff:10.0.0.1]:80"), peer: netip.MustParseAddrPort("[::ffff:10.0.0.2]:4000"),
		more: map[Field][]Value{
			FieldPID: {{Number: 7}, {Number: 8}}, FieldCommand: {{Text: "nginx"}, {Text: "a-very-long-nam"}},
			FieldUnit: {{Text: "nginx.service"}}, FieldContainer: {{Text: "4f5e6d7c8b9a"}, {Text: "web"}},
			FieldRTT: {{Number: uint64(60 * time.Millisecond)}}, FieldNetns: {{Number: 5, Text: "blue"}}, FieldSendQueue: {{Number: 65537}},
			FieldCookie: {{Number: 0x1f}}, FieldUser: {{Number: 33}},
		}}
	udp := &fakeSocket{protocol: fivetuple.UDP, state: fivetuple.StateClose, mark: 0x12,
		local: netip.MustParseAddrPort("[fe80::1%eth0]:53"), peer: netip.MustParseAddrPort("[::]:0")}
	// A subject may carry a zone.
	zoned := subject{FieldLocalAddr: {{Addr: netip.MustParseAddr("fe80::1%eth0")}}}
	sock := &fakeSocket{protocol: fivetuple.Unixgram, state: fivetuple.StateClose, name: "/run/systemd/notify"}

	for _, c := range []struct {
		text string
		s    Subject
		want bool
	}{
		{"", conn, true},
		{"tcp", conn, true}, {"tcp", only6, true}, {"mptcp", only6, true}, {"mptcp", conn, false}, {"udp", udp, true}, {"unix", sock, true}, {"unixgram", sock, true},
		{"ip", listener, true}, {"ip6", listener, true}, {"ip", only6, false}, {"ip", conn, true}, {"ip6", conn, false}, {"ip", sock, false}, {"not ip", sock, true},
		{"port 80", conn, true}, {"port 4000", conn, true}, {"src port 4000", conn, false}, {"dst port 4000", conn, true}, {"src and dst port 80", conn, false},
		{"port != 80", conn, false}, {"port != 81", conn, true}, {"port != 4000", conn, false}, {"not port 81", sock, true}, {"port != 81", sock, false},
		{"dport != 443", listener, false}, {"not dport = 443", listener, true}, {"dport != 443", conn, true}, {"dport >= 0", listener, false},
		{"src and dst port != 5", conn, true}, {"src and dst port != 80", conn, false}, {"src and dst port != 5", listener, false},
		{"port > 3999", conn, true}, {"port < 80", conn, false}, {"sport <= 80", conn, true}, {"sport < 80", conn, false}, {"sport > 80", conn, false}, {"sport >= 80", conn, true},
		{"port 70-90", conn, true}, {"port 1,80", conn, true}, {"port 1,2", conn, false},
		{"host 10.0.0.2", conn, true}, {"src 10.0.0.0/8", conn, true}, {"src ::/0", conn, false}, {"src ::ffff:0:0/96", conn, true}, {"dst 10.0.0.2:4000", conn, true},
		{"dst 10.0.0.2:4001", conn, false}, {"host 10.0.0.2:80", conn, false}, {"src != 10.0.0.1", conn, false}, {"dst != 10.0.0.1", conn, true}, {"dst != 10.0.0.1", listener, false},
		{"src fe80::1", zoned, true}, {"src fe80::1%eth0", zoned, true}, {"src fe80::1%eth1", zoned, false}, {"src fe80::/10", zoned, true},
		{"src 10.0.0.9", subject{FieldLocalAddr: {{Addr: netip.MustParseAddr("::ffff:10.0.0.9")}}}, true},
		{"state listen", listener, true}, {"state synchronized", conn, true}, {"state big", conn, true}, {"exclude established", conn, false}, {"state != listen", conn, true},
		{"80", listener, true}, {"80", conn, true}, {"80", only6, true}, {"80", udp, false}, {"53", udp, true}, {"tcp://:53", udp, false}, {"70-90", conn, true},
		{"10.0.0.1:80", conn, true}, {"10.0.0.1:80", listener, true}, {"10.0.0.1:80", listener4, true}, {"10.0.0.1:80", only6, false}, {"10.0.0.2:80", conn, false},
		{"[fd00::1]:80", listener, true}, {"[fd00::1]:80", only6, true}, {"[fd00::1]:80", listener4, false}, {"[fd00::1]:80", conn, false},
		{"0.0.0.0:80", listener4, true}, {"0.0.0.0:80", listener, true}, {"0.0.0.0:80", conn, false}, {"[::]:80", listener, true}, {"[::]:80", listener4, false},
		{"tcp6://[::]:80", listener, true}, {"tcp4://:80", only6, false}, {"10.0.0.2:4000", conn, false},
		{"tcp 10.0.0.1:80 > 10.0.0.2:4000", conn, true}, {"tcp 10.0.0.1:80 > 10.0.0.2:4001", conn, false}, {"udp 10.0.0.1:80 > 10.0.0.2:4000", conn, false},
		{"/run/systemd/notify", sock, true}, {"unix:///run/systemd/*", sock, true}, {"seqpacket:///run/systemd/notify", sock, false}, {"path /run/?ystemd/not*fy", sock, true},
		{"pid 8", conn, true}, {"pid 9", conn, false}, {"pid != 9", conn, true}, {"pid != 8", conn, false}, {"pid != 8", listener, false}, {"not pid 8", listener, true},
		{"proc nginx", conn, true}, {"proc ngin", conn, false}, {"proc n*x", conn, true}, {"proc a-very-long-name-it-is", conn, true}, {"proc apache,nginx", conn, true},
		{"unit nginx", conn, true}, {"unit nginx.service", conn, true}, {"unit ngin", conn, false}, {"unit ngin*", conn, true},
		{"container web", conn, true}, {"container 4f5e", conn, true}, {"container 4f5", conn, false}, {"container we", conn, false},
		{"netns blue", conn, true}, {"netns 5", conn, true}, {"netns red", conn, false}, {"dev lo", conn, true}, {"dev 1", conn, true}, {"dev eth0", conn, false},
		{"rtt > 50ms", conn, true}, {"rtt > 60ms", conn, false}, {"rtt >= 60ms", conn, true}, {"rtt > 1ns", udp, false}, {"not rtt > 1ns", udp, true},
		{"sendq > 64KiB", conn, true}, {"sendq > 1MB", conn, false}, {"cookie 1F", conn, true}, {"user 33", conn, true}, {"user != 33", conn, false},
		{"mark 0x12", udp, true}, {"mark 0x2/0xf", udp, true}, {"mark 0x1/0xf", udp, false},
		{"tcp and (port 1 or port 80) and not udp", conn, true},
	} {
		if got := mustParse(t, c.text).Match(c.s); got != c.want {
			t.Errorf("%q: got %v, want %v", c.text, got, c.want)
		}
	}
}

// subject has what it says and nothing else.
type subject map[Field][]Value

func (s subject) Any(f Field, test func(Value) bool) bool {
	for _, v := range s[f] {
		if test(v) {
			return true
		}
	}
	return false
}

func TestGlob(t *testing.T) {
	for _, c := range []struct {
		pattern, text string
		want          bool
	}{
		{"", "", true}, {"", "a", false}, {"*", "", true}, {"*", "abc", true}, {"a*c", "abbc", true}, {"a*c", "abcb", false}, {"?", "", false},
		{"a?c", "abc", true}, {"*a*b*", "xxaxxbxx", true}, {"*a*b*", "xxbxxaxx", false}, {"**", "a", true}, {"ab*ab", "abab", true}, {"ab*ab", "ab", false},
		{"a*a*a*a*a*a*a*a*b", "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa", false},
	} {
		if got := glob(c.pattern, c.text); got != c.want {
			t.Errorf("glob(%q, %q): got %v, want %v", c.pattern, c.text, got, c.want)
		}
	}
}

func TestMatchAllocatesNothing(t *testing.T) {
	s := benchSocket()
	for _, text := range []string{"tcp and dst port 443 and not src 10.0.0.0/8", "127.0.0.1:80 or proc n*x or cgroup / or mark 1/1", "port != 80"} {
		f := mustParse(t, text)
		plan := f.Sockets()
		if n := testing.AllocsPerRun(100, func() { f.Match(s); plan.Match(s) }); n != 0 {
			t.Errorf("%s: %v allocations", text, n)
		}
	}
}

func benchSocket() *fakeSocket {
	return &fakeSocket{protocol: fivetuple.TCP, state: fivetuple.StateEstablished,
		local: netip.MustParseAddrPort("192.168.0.1:50000"), peer: netip.MustParseAddrPort("1.1.1.1:443")}
}

func BenchmarkMatch(b *testing.B) {
	s := benchSocket()
	for _, text := range []string{"dport = 443", "tcp and dst port 443 and state established and not src 10.0.0.0/8"} {
		f := mustParse(b, text)
		b.Run(text, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				f.Match(s)
			}
		})
	}
}

package filter

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"reflect"
	"strings"
	"testing"
)

// fakeNames are lookups that ask nobody.
func fakeNames() *lookups {
	cgroup := func(path string) uint64 { return map[string]uint64{"/": 42}[path] }
	return &lookups{ctx: context.Background(), cgroup: cgroup, host: func(_ context.Context, name string) ([]netip.Addr, error) {
		switch name {
		case "web", "web.example":
			return []netip.Addr{netip.MustParseAddr("fd00::7"), netip.MustParseAddr("10.0.0.7"), netip.MustParseAddr("::ffff:10.0.0.7")}, nil
		case "db":
			return []netip.Addr{netip.MustParseAddr("10.0.0.8")}, nil
		}
		return nil, &net.DNSError{Err: "no such host", Name: name, IsNotFound: true}
	}}
}

func mustParse(t testing.TB, text string) *Filter {
	t.Helper()
	f, err := parse(fakeNames(), text)
	if err != nil {
		t.Fatalf("parse %q: %v", text, err)
	}
	return f
}

func TestParseReadsBothHabitsAndTargets(t *testing.T) {
	for _, c := range []struct{ text, want string }{
		{"", ""}, {" \t\n", ""},
		// pcap-filter(7)
		{"tcp", "tcp"}, {"TCP", "tcp"}, {"ip6", "ip6"},
		{"tcp dst port 443", "tcp and dport = 443"},
		{"udp port 53", "udp and port 53"},
		{"ip6 host ::1", "ip6 and host ::1"},
		{"src 10.0.0.0/8", "src 10.0.0.0/8"},
		{"src net 10", "src 10.0.0.0/8"},
		{"net 192.168", "host 192.168.0.0/16"},
		{"net 10.1.2.3/8", "host 10.0.0.0/8"},
		{"src or dst port 80", "port 80"},
		{"src and dst port 80", "src and dst port 80"},
		{"src and dst net 10.0.0.0/8", "src and dst host 10.0.0.0/8"},
		{"portrange 8000-8090", "port 8000-8090"},
		{"port 80 or 443", "port 80 or port 443"},
		{"tcp dst port 80 or 443 or 8080", "(tcp and dport = 80) or (tcp and dport = 443) or (tcp and dport = 8080)"},
		{"port http or https", "port 80 or port 443"},
		{"host 10.0.0.1 or db", "host 10.0.0.1 or host 10.0.0.8"},
		{"host 10.0.0.1 and 10.0.0.2", "host 10.0.0.1 and host 10.0.0.2"},
		{"not host db and 10.0.0.2", "not host 10.0.0.8 and host 10.0.0.2"},
		{"port (80 or 443)", "port 80,443"},
		{"not tcp port 80", "not (tcp and port 80)"},
		{"src 1.2.3.4 or dst 5.6.7.8", "src 1.2.3.4 or dst 5.6.7.8"},
		// ss(8)
		{"sport = :22", "sport = 22"}, {"sport = 22", "sport = 22"}, {"sport :22", "sport = 22"}, {"sport eq :ssh", "sport = 22"},
		{"dport != :https", "dport != 443"}, {"dport neq 443", "dport != 443"},
		{"sport >= :1024", "sport >= 1024"}, {"sport geq 1024", "sport >= 1024"}, {"sport gt 5", "sport > 5"},
		{"sport le 5", "sport <= 5"}, {"sport lt :5", "sport < 5"},
		{"( dport = :80 or dport = :443 )", "dport = 80 or dport = 443"},
		{"dport = :80 or :443", "dport = 80 or dport = 443"},
		{"sport = :22 dport = :80", "sport = 22 and dport = 80"},
		{"sport = :22 && ! dport = :80 || tcp", "(sport = 22 and not dport = 80) or tcp"},
		{"dst 192.168.1.5", "dst 192.168.1.5"},
		{"dst 10.0.0.1:443", "dst 10.0.0.1 and dport = 443"},
		{"dst [::1]:443", "dst ::1 and dport = 443"}, {"dst [::1]", "dst ::1"}, {"dst ::1", "dst ::1"},
		{"src :22", "sport = 22"}, {"src *:22", "sport = 22"},
		{"src = 1.2.3.4", "src 1.2.3.4"}, {"src != 1.2.3.4", "src != 1.2.3.4"},
		{"src ::ffff:1.2.3.4", "src 1.2.3.4"}, {"src ::ffff:10.0.0.0/104", "src 10.0.0.0/8"},
		{"src fe80::1%eth0", "src fe80::1%eth0"},
		{"state established", "state established"}, {"state ESTAB,close_wait", "state established,close-wait"},
		{"state established state time-wait", "state established,time-wait"},
		{"state established and state time-wait", "state established and state time-wait"},
		{"state connected", "state established,syn-sent,syn-recv,fin-wait1,fin-wait2,time-wait,close-wait,last-ack,closing"},
		{"state bucket", "state syn-recv,time-wait"}, {"state all", "state all"}, {"state listening", "state listen"},
		{"state != listen", "state != listen"}, {"exclude listen", "not state listen"}, {"state listen or close", "state listen or state close"},
		{"dev = eth0", "dev eth0"}, {"dev 3", "dev 3"}, {"fwmark = 0x10/0xff", "mark 0x10/0xff"}, {"mark 16", "mark 0x10"}, {"mark 0x11/0x10", "mark 0x10/0x10"},
		{"cgroup /sys/fs/cgroup/no/such", "cgroup /no/such"}, {"cgroup = no/such/", "cgroup /no/such"}, {"cgroup /sys/fs/cgroup", "cgroup /"},
		// sockets
		{"proc nginx*", "proc nginx*"}, {`proc "my prog"`, `proc "my prog"`}, {"proc tcp", "proc tcp"}, {`proc "eq"`, `proc "eq"`},
		{"pid 1,2", "pid 1,2"}, {"pid != 1,2", "pid != 1,2"}, {"user root", "user 0"}, {"uid >= 1000", "user >= 1000"},
		{"unit nginx", "unit nginx"}, {"container web", "container web"}, {"netns blue", "netns blue"}, {"netns 4026531840", "netns 4026531840"},
		{"rtt > 50ms", "rtt > 50ms"}, {"age > 1d", "age > 24h0m0s"}, {"retrans > 0", "retrans > 0"},
		{"send-q > 64KiB", "sendq > 64KiB"}, {"sendq > 65536", "sendq > 64KiB"}, {"recvq >= 1.5k", "recvq >= 1536"}, {"sent > 1MB", "sent > 1000000"},
		{"rate > 1MiB/s", "rate > 1MiB/s"}, {"rate > 8Mbit/s", "rate > 1000000/s"}, {"recvq = 0", "recvq 0"},
		{"path /run/x.sock", "path /run/x.sock"}, {"peer @x", "peer @x"}, {"inode 12", "inode 12"}, {"cookie 0x1F", "cookie 1f"},
		{"proc nginx or apache", "proc nginx or proc apache"},
		// targets
		{"8080", ":8080"}, {":8080", ":8080"}, {"*:8080", ":8080"}, {"8000-8090", ":8000-8090"}, {":https", ":443"}, {"80 or 443", ":80 or :443"},
		{"127.0.0.1:80", "127.0.0.1:80"}, {"[::1]:80", "[::1]:80"}, {"[::ffff:1.2.3.4]:80", "1.2.3.4:80"}, {"web:80", "10.0.0.7:80 or [fd00::7]:80"},
		{"udp://:53", "udp://:53"}, {"UDP://:domain", "udp://:53"}, {"tcp4://127.0.0.1:80", "tcp4://127.0.0.1:80"}, {"tcp :80", "tcp://:80"}, {"sctp 80", "sctp://:80"},
		{"unix:///run/a.sock", "unix:///run/a.sock"}, {"unix://@name", "unix://@name"}, {"/run/a.sock", "/run/a.sock"}, {"@name", "@name"},
		{"unixgram @n", "unixgram://@n"}, {`"/run/a b"`, `"/run/a b"`},
		{"pid:123", "pid 123"}, {"proc:nginx", "proc nginx"}, {"unit:nginx.service", "unit nginx.service"}, {"container:web", "container web"},
		{"user:root", "user 0"}, {"cookie:1f", "cookie 1f"}, {"netns:blue", "netns blue"}, {"inode:9", "inode 9"}, {"pid:1,2", "pid 1,2"},
		{"tcp 127.0.0.1:5 > 1.2.3.4:80", "tcp://127.0.0.1:5 > 1.2.3.4:80"}, {"not udp [::1]:5 > [::1]:80", "not udp://[::1]:5 > [::1]:80"},
		{"unix @a > @b", "unix://@a > @b"},
		// structure
		{"dst 10.0.0.1 and (10.0.0.1:80)", "dst 10.0.0.1 and (10.0.0.1:80)"}, {"sport = 1 or not (:80)", "sport = 1 or not (:80)"},
		{"path /a or /b", "path /a or path /b"}, {"path /a or (/b)", "path /a or (/b)"}, {"tcp and :80", "tcp and :80"},
		{"TCP PORT 80 OR 443 And NOT Src Host 1.2.3.4", "(tcp and port 80) or (tcp and port 443 and not src 1.2.3.4)"}, {"Net 10", "host 10.0.0.0/8"},
		{"State LISTEN Sport GE 5 PID:1", "state listen and sport >= 5 and pid 1"}, {"proc OR", "proc OR"},
		{"8080 and 127.0.0.1:8080", ":8080 and 127.0.0.1:8080"}, {"(80 or 81) 81-82", "(:80 or :81) and :81-82"}, {"80 pid:1 tcp", ":80 and pid 1 and tcp"},
		{"(((tcp)))", "tcp"}, {"not not tcp", "not not tcp"}, {"! ( tcp or udp )", "not (tcp or udp)"},
		{"tcp and (udp and icmp)", "tcp and udp and icmp"}, {"tcp or udp and icmp", "tcp or (udp and icmp)"},
		{"host web", "host 10.0.0.7,fd00::7"}, {"host web:80", "(src 10.0.0.7 and sport = 80) or (dst 10.0.0.7 and dport = 80) or (src fd00::7 and sport = 80) or (dst fd00::7 and dport = 80)"},
	} {
		f, err := parse(fakeNames(), c.text)
		if err != nil {
			t.Errorf("parse %q: %v", c.text, err)
			continue
		}
		if got := f.String(); got != c.want {
			t.Errorf("parse %q: got %q, want %q", c.text, got, c.want)
		}
		checkCanonical(t, f)
	}
}

// checkCanonical parses what a filter is written as, and wants the same tree.
func checkCanonical(t testing.TB, f *Filter) {
	t.Helper()
	again, err := parse(fakeNames(), f.String())
	if err != nil {
		t.Errorf("%q does not parse again: %v", f, err)
		return
	}
	if (f == nil) != (again == nil) || f != nil && !reflect.DeepEqual(f.tree, again.tree) {
		t.Errorf("%q parses to another filter: %q", f, again)
	}
}

func TestErrorsPointAtTheColumn(t *testing.T) {
	for _, c := range []struct {
		text   string
		column int
		want   string
	}{
		{"prot 80", 1, `did you mean "port"`},
		{"tcp prot 80", 5, `did you mean "port"`},
		{"tcp and", 8, "want a term"},
		{"tcp or or udp", 8, "want a term"},
		{"(tcp", 1, "has no )"},
		{"tcp)", 4, "has no ( before it"},
		{"()", 2, "want a term"},
		{"tcp, udp", 4, `write "or" between terms`},
		{"8080,8081", 5, `write "or" between terms`},
		{"/run/a,b.sock", 7, "double quotes"},
		{"8080 8081", 6, `write "or"`},
		{"tcp 8080 udp 53", 10, `write "or"`},
		{"web:80 /run/a.sock", 8, `write "or"`},
		{"udp:53", 1, `write "udp port 53"`},
		{"not TCP:https", 5, `write "TCP port https"`},
		{"sport", 6, "want a port"},
		{"sport = =", 9, "want a port"},
		{"sport = 70000", 9, "out of range"},
		{"sport > 1-5", 9, "one port, not a range"},
		{"sport > 1,2", 10, "takes one value"},
		{"port 90-80", 6, "backwards"},
		{"port htps", 6, `did you mean "https"`},
		{"port 80 443", 9, `write "or" or a comma`},
		{"src 10.0.0.256", 5, "not an address"},
		{"src 22", 5, `"port 22"`},
		{"src 10.0.0.0/33", 5, "0 to 32"},
		{"src > 10.0.0.1", 5, "no order"},
		{"src != 10.0.0.1:80", 17, `write "not src 10.0.0.1:80"`},
		{"host nowhere", 6, "no such host"},
		{"host a%b", 6, "neither an IP address nor a host name"},
		{"state estblished", 7, `did you mean "established"`},
		{"state nonsense", 7, "want one of all, connected"},
		{"state > listen", 7, "no order"},
		{"listen", 1, `write "state listen"`},
		{"10.0.0.1", 1, `"host 10.0.0.1"`},
		{"nginx", 1, `"proc:nginx"`},
		{"user nobodyisthis", 6, "unknown user"},
		{"pid x", 5, "not a number"},
		{"pid 99999999999999999999", 5, "too large"},
		{"rtt > 50", 7, "write the unit too, 50ms or 50s"},
		{"rtt > -5ms", 7, "not a duration"},
		{"sendq > 5 apples", 11, "unknown word"},
		{"proc > x", 8, "no order"},
		{`proc ""`, 6, "empty"},
		{`proc "abc`, 6, "quote is not closed"},
		{"tcp\x01", 4, "does not print"}, {"tcp\u00a0port 80", 4, "does not print"},
		{"tcp \xff", 5, "UTF-8"},
		{"frob://:80", 1, "unknown scheme"},
		{"vsock://2:80", 1, "no sockets of the table"},
		{"raw 80", 5, "not an endpoint of raw sockets"},
		{"tcp 127.0.0.1:5 > x", 19, "remote end"},
		{"unix://", 1, "names no path"},
		{"äö prot 80", 1, "unknown word"},
		{"host db äö prot 80", 9, `write "or" or a comma`},
		{"pid 5 äö", 7, "unknown word"},
		{strings.Repeat("(", 2000), 1001, "too many parentheses"},
		{strings.Repeat("not ", 200) + "tcp", 1, "nested more than 100"},
		{strings.Repeat("x", maxText+1), 1, "the most is"},
	} {
		_, err := parse(fakeNames(), c.text)
		e, ok := errors.AsType[*SyntaxError](err)
		if !ok {
			t.Errorf("parse %.40q: got error %v, want a SyntaxError", c.text, err)
			continue
		}
		if e.Column != c.column || !strings.Contains(e.Message, c.want) {
			t.Errorf("parse %.40q: got column %d: %s, want column %d: ...%s...", c.text, e.Column, e.Message, c.column, c.want)
		}
	}
}

func TestErrorShowsTheTextWithAMark(t *testing.T) {
	for _, c := range []struct{ text, want string }{
		{"tcp prot 80", "\n  tcp prot 80\n      ^"},
		{"tcp\tprot 80", "\n  tcp\tprot 80\n     \t^"},
		{"host db prot 80\nand tcp", "\n  host db prot 80 and tcp\n          ^"},
		{"proc äöü prot 80", "\n  proc äöü prot 80\n           ^"},
		{strings.Repeat("tcp ", 50) + "prot 80 " + strings.Repeat("and tcp ", 50), "^"},
	} {
		_, err := parse(fakeNames(), c.text)
		if err == nil || !strings.HasSuffix(err.Error(), c.want) {
			t.Errorf("parse %q: got error\n%v\nwant it to end in\n%s", c.text, err, c.want)
		}
		lines := strings.Split(err.Error(), "\n")
		mark := strings.IndexByte(lines[len(lines)-1], '^')
		if line := []rune(lines[len(lines)-2]); mark < 0 || !strings.HasPrefix(string(line[len([]rune(lines[len(lines)-1][:mark])):]), "prot") {
			t.Errorf("parse %q: the mark is not below the word:\n%v", c.text, err)
		}
	}
}

func TestErrorsCannotSpeakToTheTerminal(t *testing.T) {
	for _, text := range []string{"tcp \x1b[31m", "tcp \u009b31m", "nonsense\u202e", "proc \"a\u009b\""} {
		if _, err := parse(fakeNames(), text); err == nil || strings.ContainsAny(err.Error(), "\x1b\u009b\u202e") {
			t.Errorf("parse %q: got error %q, want one that prints", text, err)
		}
	}
}

func TestErrorOfAHostNameKeepsItsCause(t *testing.T) {
	_, err := parse(fakeNames(), "host nowhere")
	if dns, ok := errors.AsType[*net.DNSError](err); !ok || !dns.IsNotFound {
		t.Errorf("got %v, want an error that wraps a DNSError", err)
	}
}

func TestParseEndsWithItsContext(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := Parse(ctx, "host some.name.invalid"); !errors.Is(err, context.Canceled) && !strings.Contains(err.Error(), "cancel") {
		t.Errorf("got %v, want an error of the context", err)
	}
}

func TestUsesNamesTheFieldsOfAllTerms(t *testing.T) {
	f := mustParse(t, "(proc nginx or not rtt > 5ms) and 127.0.0.1:80")
	for _, field := range []Field{FieldCommand, FieldRTT, FieldProtocol, FieldLocalAddr, FieldLocalPort, FieldFamily} {
		if !f.Uses(field) {
			t.Errorf("%s does not use field %d", f, field)
		}
	}
	for _, field := range []Field{FieldNone, FieldPID, FieldRemotePort, FieldDrops} {
		if f.Uses(field) {
			t.Errorf("%s uses field %d", f, field)
		}
	}
	if (*Filter)(nil).Uses(FieldPID) {
		t.Error("the nil filter uses a field")
	}
}

func FuzzParse(f *testing.F) {
	for _, seed := range []string{
		"tcp dst port 80 or 443", "state established and not src 10.0.0.0/8", "( dport = :80 or :https ) rtt > 50ms", `proc "a b" pid:1,2`,
		"tcp 127.0.0.1:5 > [::1]:80", "unix://@a > @b", "host web:80", "mark 0x10/0xff dev lo", "! 8000-8090 && user root", "src and dst net 10/8",
		"sendq > 1.5MiB rate >= 8Mbit/s age < 2d", "cgroup /a/* netns 5 cookie:ff", `"/run/a b"`, "tcp4://web:80", "src fe80::1%eth0", "exclude listen state all",
	} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, text string) {
		filter, err := parse(fakeNames(), text)
		if err != nil {
			if e, ok := errors.AsType[*SyntaxError](err); !ok || e.Column < 1 || e.Error() == "" {
				t.Fatalf("parse %q: odd error %#v", text, err)
			}
			return
		}
		checkCanonical(t, filter)
		plan := filter.Sockets(NetAdmin)
		audit(t, plan.Program)
		if plan.explain() == "" {
			t.Error("nothing explained")
		}
	})
}

func BenchmarkParse(b *testing.B) {
	for b.Loop() {
		if _, err := Parse(b.Context(), "tcp and dst port 443 and state established and not src 10.0.0.0/8"); err != nil {
			b.Fatal(err)
		}
	}
}

package daemon

import (
	"net/netip"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/fivetuple/fivetuple"
	"github.com/fivetuple/fivetuple/relay"
	"github.com/fivetuple/fivetuple/relay/faults"
	"github.com/fivetuple/fivetuple/relay/upstream"
	"github.com/fivetuple/fivetuple/stream"
)

const wholeRule = `
services:
  - name: web
    listen: "*:8000"
    kind: forward
    to: [10.0.0.5:9000, "tcp://[2001:db8::5]:9000"]
    balance: source-hash
    check: {interval: 2s, timeout: 1s, rise: 3, fall: 4}
    max_fails: off
    fail_for: 20s
    names: {"a.example": [10.0.0.6:9000], "*.b.example": [10.0.0.7:9000, 10.0.0.8:9000]}
    connect_timeout: 3s
    half_closed: 30s
    send_proxy: 2
    accept_proxy: [10.1.0.0/16]
    source: 192.0.2.7:4000
    interface: eth0
    target_options: [nodelay=off]
    rate: 1MiB
    faults: {seed: 7, delay: 50ms, jitter: 5ms, loss: 1%, reorder: 0.5, bandwidth: 64KiB, cut_after: 10MiB, cut_time: 1m}
    limits: {connections: 100, per_source: 10, accept_rate: 50, first_byte: 10s}
    deny: [10.2.0.0/16]
  - listen: udp://:53
    kind: forward
    to: [10.0.0.2:53, "udp6://[2001:db8::2]:53"]
    first_reply: 5s
    limits: {connections: 1000, per_source: 50, accept_rate: 100, idle: 40s}
`

func TestParseConfigReadsARule(t *testing.T) {
	c := parse(t, wholeRule)
	e := fivetuple.MustParseEndpoint
	web := c.Services[0]
	want := relay.Config{
		Listen:  e("*:8000"),
		Targets: []fivetuple.Endpoint{e("10.0.0.5:9000"), e("[2001:db8::5]:9000")},
		Policy:  upstream.SourceHash, Check: upstream.Check{Interval: 2 * time.Second, Timeout: time.Second, Rise: 3, Fall: 4},
		MaxFails: -1, FailFor: 20 * time.Second,
		Names: map[string][]fivetuple.Endpoint{
			"a.example": {e("10.0.0.6:9000")}, "*.b.example": {e("10.0.0.7:9000"), e("10.0.0.8:9000")},
		},
		ConnectTimeout: 3 * time.Second, HalfClosed: 30 * time.Second, ProxyVersion: 2,
		Source: netip.MustParseAddrPort("192.0.2.7:4000"), Interface: "eth0", Rate: 1 << 20,
		Faults: faults.Config{
			Seed: 7, Delay: 50 * time.Millisecond, Jitter: 5 * time.Millisecond, Loss: 0.01, Reorder: 0.5,
			Bandwidth: 64 << 10, CutAfter: 10 << 20, CutTime: time.Minute,
		},
	}
	got := web.rule()
	if len(got.Options) != 1 || got.Options[0].String() != "nodelay=off" {
		t.Errorf("options of targets are %v", got.Options)
	}
	got.Options = nil
	if !reflect.DeepEqual(got, want) {
		t.Errorf("got  %+v\nwant %+v", got, want)
	}
	if l := web.limits(); l.MaxConns != 100 || l.MaxPerSource != 10 || l.AcceptRate != 50 || l.FirstByteTimeout != 10*time.Second || l.IdleTimeout != time.Hour || len(l.Deny) != 1 {
		t.Errorf("limits are %+v", l)
	}
	if len(web.AcceptProxy) != 1 || len(web.ports()) != 1 || web.Name != "web" {
		t.Errorf("the rest is %+v", web)
	}
	dns := c.Services[1]
	want = relay.Config{
		Listen: e("udp://:53"), Targets: []fivetuple.Endpoint{e("udp://10.0.0.2:53"), e("udp6://[2001:db8::2]:53")},
		FirstReply: 5 * time.Second, Idle: 40 * time.Second,
	}
	if got := dns.rule(); !reflect.DeepEqual(got, want) {
		t.Errorf("got  %+v\nwant %+v", got, want)
	}
	if l := dns.limits(); l.MaxConns != 1000 || l.MaxPerSource != 50 || l.AcceptRate != 100 {
		t.Errorf("limits of UDP are %+v", l)
	}
}

func TestARuleOfAProgramIsTakenAsItIs(t *testing.T) {
	s := Service{
		Kind: "forward", Listen: Endpoint{fivetuple.MustParseEndpoint("udp://0")},
		Forward: Forward{
			Rule:   &relay.Config{Targets: []fivetuple.Endpoint{fivetuple.MustParseEndpoint("udp://127.0.0.1:9")}},
			Bounds: &stream.Limits{MaxConns: 7, IdleTimeout: time.Minute},
		},
	}
	c := Config{Services: []Service{s}}
	if err := c.check(); err != nil {
		t.Error(err)
	}
	if r := s.rule(); len(r.Targets) != 1 || r.Idle != time.Minute || r.Listen != s.Listen.Endpoint {
		t.Errorf("the rule is %+v", r)
	}
	if l := s.limits(); l.MaxConns != 7 {
		t.Errorf("the limits are %+v", l)
	}
	s.Listen = Endpoint{fivetuple.MustParseEndpoint("0")}
	if l := s.limits(); l.MaxConns != 7 || l.IdleTimeout != time.Minute {
		t.Errorf("the limits of a stream are %+v", l)
	}
}

func TestARelayLeavesDescriptorsForBothSidesAndForPipes(t *testing.T) {
	relayed, served := (&Service{Kind: "forward"}).limits(), (&Service{Kind: "echo"}).limits()
	if relayed.MaxConns*5 > served.MaxConns*2 || relayed.MaxConns < served.MaxConns/4 || relayed.MaxPerSource > relayed.MaxConns*3/4+1 {
		t.Errorf("a relay takes %+v, where an echo server takes %+v", relayed, served)
	}
	off := Service{Kind: "forward", Limits: Limits{Connections: Count{}, Idle: Duration{}}}
	if err := off.Limits.Connections.UnmarshalText([]byte("off")); err != nil {
		t.Fatal(err)
	}
	if err := off.Limits.Idle.UnmarshalText([]byte("off")); err != nil {
		t.Fatal(err)
	}
	if l := off.limits(); l.MaxConns != 0 || l.MaxPerSource != 0 || l.IdleTimeout != 0 {
		t.Errorf("without limits: %+v", l)
	}
}

func TestParseConfigRefusesRulesThatCannotWork(t *testing.T) {
	rule := func(more string) string {
		return "services:\n  - {listen: 8080, kind: forward, to: [10.0.0.5:80], " + more + "}\n"
	}
	udp := func(more string) string {
		return "services:\n  - {listen: 'udp://8080', kind: forward, to: [10.0.0.5:80], " + more + "}\n"
	}
	for _, tt := range []struct{ name, in, want string }{
		{"no target", "services:\n  - {listen: 8080, kind: forward}\n", "line 2: service forward-8080: forward needs targets"},
		{"a rule for another kind", "services:\n  - {listen: 8080, to: [10.0.0.5:80]}\n", "line 2: service echo-8080: to is for kind: forward"},
		{"faults for another kind", "services:\n  - listen: 8080\n    faults: {loss: 0.1}\n", "faults is for kind: forward"},
		{"a bad target", "services:\n  - listen: 8080\n    kind: forward\n    to:\n      - nowhere\n", `line 5: endpoint "nowhere": has no port`},
		{"one target", "services:\n  - {listen: 8080, kind: forward, to: 10.0.0.5:80}\n", "line 2: a value of another kind is needed here"},
		{"an unknown key of a check", rule("check: {every: 1s}"), `line 2: unknown key "every": check has no such setting`},
		{"an unknown key of faults", rule("faults: {lose: 1}"), `line 2: unknown key "lose": faults has no such setting`},
		{"an unknown key of TLS", rule("target_tls: {cafile: x}"), `line 2: unknown key "cafile": target_tls has no such setting`},
		{"an unknown key of tls", "services:\n  - {listen: 'tls://1', tls: {certificate: x}}\n", `line 2: unknown key "certificate": tls has no such setting`},
		{"balance", rule("balance: fair"), `line 2: balance "fair": want one of round-robin`},
		{"a source", rule("source: eth0"), `line 2: "eth0" is not an address to connect from`},
		{"a chance", rule("faults: {loss: 2}"), `line 2: "2" is not a share`},
		{"no chance", rule("faults: {loss: nan}"), "is not a share"},
		{"a version", rule("send_proxy: 3"), "version 3 of the PROXY protocol"},
		{"transparent with a source", rule("transparent: true, source: 10.0.0.1"), "exclude each other"},
		{"no end of connecting", rule("connect_timeout: off"), "connect_timeout cannot be off"},
		{"a check without interval", rule("check: {fall: 2}"), "check needs an interval"},
		{"checks without end", rule("check: {interval: off}"), "check: interval cannot be off"},
		{"no rise", rule("check: {interval: 1s, rise: off}"), "check: rise cannot be off"},
		{"a reply to a stream", rule("first_reply: 1s"), "first_reply is for UDP alone"},
		{"half a datagram", udp("half_closed: 1s"), "half_closed is not for UDP"},
		{"names of UDP", udp("names: {a.example: [10.0.0.1:1]}"), "server names are for streams"},
		{"a bad name", rule("names: {A.example: [10.0.0.1:1]}"), "write it in lower case"},
		{"streams to UDP", "services:\n  - {listen: 8080, kind: forward, to: ['udp://10.0.0.5:80']}\n", "streams go on to tcp, tls or unix"},
		{"datagrams to TCP", "services:\n  - {listen: 'udp://8080', kind: forward, to: ['tcp://10.0.0.5:80']}\n", "datagrams go on to udp"},
		{"itself", "services:\n  - {listen: 8080, kind: forward, to: [8080]}\n", "that is where the rule itself listens"},
		{"an option of UDP", rule("target_options: [gro]"), "target option gro is for udp"},
		{"peer_rate", udp("limits: {peer_rate: 1}"), "limit peer_rate is for UDP alone, and not for kind: forward"},
		{"first_byte", udp("limits: {first_byte: 1s}"), "limit first_byte is not for UDP"},
		{"write_queue", rule("limits: {write_queue: 1MiB}"), "limit write_queue is not for UDP and kind: forward"},
		{"a proxy before UDP", udp("accept_proxy: [10.0.0.0/8]"), "accept_proxy is for streams"},
		{"a certificate for TCP", rule("tls: {cert: x}"), "tls goes with listen: tls://"},
		{"TLS without one", "services:\n  - {listen: 'tls://1', kind: forward, to: ['10.0.0.5:80']}\n", "needs a certificate"},
		{"port 0 and more", "services:\n  - {listen: 0-5, kind: forward, to: [10.0.0.5:80]}\n", "a range of ports begins at 1"},
		{"ranges that overlap", "services: [{name: a, listen: 8000-8010, kind: forward, to: [10.0.0.5:80]}, {name: b, listen: 8010}]", "services a and b overlap: 8000-8010 and 8010 have ports in common"},
		{"all addresses of a range", "services: [{name: a, listen: 8000}, {name: b, listen: ':7990-8010', kind: forward, to: [10.0.0.5:80]}]", "services b and a overlap"},
		{"tls and tcp", "services:\n  - {name: a, listen: 'tls://1', tls: {cert: x}}\n  - {name: b, listen: 1}\n", "line 3: service b: another service listens on 1, at line 2"},
	} {
		_, err := ParseConfig([]byte(tt.in))
		if err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%s: got %v, want %q", tt.name, err, tt.want)
		}
	}
}

func TestCheckFilesReadsCertificates(t *testing.T) {
	missing := filepath.Join(t.TempDir(), "no.pem")
	for _, s := range []string{
		"services: [{name: a, listen: 'tls://1', tls: {cert: " + missing + "}}]",
		"services: [{name: a, listen: 1, kind: forward, to: ['tls://10.0.0.5:443'], target_tls: {ca: " + missing + "}}]",
	} {
		c := parse(t, s)
		if err := c.CheckFiles(); err == nil || !strings.Contains(err.Error(), missing) || !strings.Contains(err.Error(), "service a") {
			t.Errorf("%s: got %v", s, err)
		}
	}
	c := parse(t, wholeRule)
	if err := c.CheckFiles(); err != nil {
		t.Error(err)
	}
}

func TestTargetsAreVerifiedByTheirOwnNamesUnlessOneIsGiven(t *testing.T) {
	for given, want := range map[string]string{"": "", "server_name: a.example": "a.example"} {
		c := parse(t, "services: [{listen: 1, kind: forward, to: ['tls://10.0.0.5:443'], target_tls: {insecure: true, "+given+"}}]")
		rule, err := c.Services[0].loadRule()
		if err != nil || rule.TLS == nil || rule.TLS.ServerName != want || !rule.TLS.InsecureSkipVerify {
			t.Errorf("%q: got %+v, %v", given, rule.TLS, err)
		}
	}
}

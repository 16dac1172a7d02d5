package daemon

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/fivetuple/fivetuple/sockopt"
)

const wholeConfig = `
services:
  - name: chat
    listen: "*:7000"
    kind: chat
    options: [keepalive=30s/10s/3, nodelay=off]
    limits: {connections: 100, per_source: off, accept_rate: 50, idle: 1h, first_byte: 10s, write_queue: 1MiB}
    allow: [10.0.0.0/8, "::1"]
    deny: [10.1.0.0/16]
  - listen: udp://7001
    limits: {connections: 10, idle: 5s, peer_rate: 7}
  - listen: unix:///run/x.sock
    kind: daytime
    mode: "0660"
history: {path: /tmp/h.db, keep: 7d, max_size: 64MiB}
drain: 3s
`

func TestParseConfigReadsEverySetting(t *testing.T) {
	c, err := ParseConfig([]byte(wholeConfig))
	if err != nil {
		t.Fatal(err)
	}
	chat := c.Services[0]
	if got := chat.String(); got != "chat on *:7000" {
		t.Errorf("got %s", got)
	}
	l := chat.limits()
	if l.MaxConns != 100 || l.MaxPerSource != 0 || l.AcceptRate != 50 || l.IdleTimeout != time.Hour || l.FirstByteTimeout != 10*time.Second || l.WriteQueue != 1<<20 {
		t.Errorf("limits are %+v", l)
	}
	if len(l.Allow) != 2 || l.Allow[1].String() != "::1/128" || len(l.Deny) != 1 {
		t.Errorf("access lists are %v, %v", l.Allow, l.Deny)
	}
	if got := chat.Options[0].String() + " " + chat.Options[1].String(); got != "keepalive=30s/10s/3 nodelay=off" {
		t.Errorf("options are %s", got)
	}
	if udp := c.Services[1]; udp.Kind != "echo" || udp.Name != "echo-udp://7001" {
		t.Errorf("defaults of the second are %+v", udp)
	}
	if l := c.Services[1].limits(); l.MaxConns != 10 || l.IdleTimeout != 5*time.Second || c.Services[1].Limits.PeerRate.bound() != 7 {
		t.Errorf("limits of the second are %+v", l)
	}
	if unix := c.Services[2]; unix.Mode.FileMode != 0o660 || unix.Name != "daytime-unix:///run/x.sock" {
		t.Errorf("the third is %+v", unix)
	}
	if c.DrainTime() != 3*time.Second || c.History.Keep.Duration != 7*24*time.Hour || c.History.MaxSize.Bytes != 64<<20 {
		t.Errorf("the rest is %+v", c)
	}
}

func TestParseConfigNamesTheLineAndTheRemedy(t *testing.T) {
	for _, tt := range []struct{ name, in, want string }{
		{"unknown key", "services:\n  - listen: 8080\n    port: 1\n", `line 3: unknown key "port": a service has no such setting`},
		{"unknown key at the top", "service: []\n", `line 1: unknown key "service": a configuration has no such setting`},
		{"unknown limit", "services:\n  - listen: 8080\n    limits:\n      conns: 1\n", `line 4: unknown key "conns": limits has no such setting`},
		{"bad endpoint", "services:\n  - name: a\n    listen: localhost\n", "line 3: endpoint \"localhost\": has no port"},
		{"no listen", "services:\n\n  - name: a\n", "line 3: service a: has no listen"},
		{"unknown kind", "services:\n  - {listen: 8080, kind: eko}\n", `line 2: service eko-8080: kind "eko" is unknown over tcp: want one of echo`},
		{"same name twice", "services:\n  - {name: a, listen: 1}\n  - {name: a, listen: 2}\n", "line 3: service a: another service has this name, at line 2"},
		{"same socket twice", "services:\n  - {name: a, listen: 1}\n  - {name: b, listen: 1}\n", "line 3: service b: another service listens on 1, at line 2"},
		{"unknown option", "services:\n  - listen: 1\n    options: [nodlay]\n", "line 3: unknown socket option"},
		{"option out of range", "services:\n  - listen: 1\n    options: [ttl=300]\n", "line 3: bad value"},
		{"bad prefix", "services:\n  - listen: 1\n    allow: [10.0.0.1/8]\n", "line 3: 10.0.0.1/8 has bits set behind the prefix: write 10.0.0.0/8"},
		{"bad duration", "drain: 5\nservices: [{listen: 1}]\n", `line 1: "5" is not a time span`},
		{"negative duration", "drain: -5s\n", `line 1: "-5s" is not a time span`},
		{"bad size", "history: {max_size: lots}\n", `line 1: "lots" is not a size`},
		{"bad count", "services:\n  - {listen: 1, limits: {connections: 0}}\n", `line 2: "0" is not a number above zero`},
		{"bad mode", "services:\n  - {listen: 'unix:///a', mode: '999'}\n", "line 2: mode \"999\" is not an octal number"},
		{"rubbish after the mode", "services:\n  - {listen: 'unix:///a', mode: '600junk'}\n", "is not an octal number"},
		{"mode of a port", "services:\n  - {listen: 1, mode: '0600'}\n", "mode goes with unix://"},
		{"a range", "services:\n  - listen: 8000-8010\n", "names 11 ports: a service takes one"},
		{"an empty file", "", "has no services"},
		{"an option of another kind", "services:\n  - {listen: 'udp://1', options: [nodelay]}\n", "line 2: service echo-udp://1: option nodelay is for tcp sockets"},
		{"an overlap", "services: [{name: a, listen: 8080}, {name: b, listen: ':8080'}]", "services b and a overlap"},
		{"unixgram", "services:\n  - listen: unixgram:///a\n", "this version serves"},
		{"tls", "services:\n  - listen: tls://*:443\n", "line 2: service echo-tls://*:443: listen tls://*:443 needs a certificate: write tls: {cert: FILE, key: FILE}"},
		{"a list for a scalar", "services:\n  - listen: [1]\n", "line 2: one value is needed here"},
		{"a scalar for a list", "services: 8080\n", "line 1: a value of another kind is needed here"},
		{"two documents", "services: [{listen: 1}]\n---\ndrain: 2s\n", "more than one YAML document"},
		{"no YAML", "services: [\n", "line"},
		{"a control character", "services:\n  - {name: \"a\\u009bb\", listen: 1}\n", "does not print"},
		{"a stream's limit for UDP", "services:\n  - {listen: 'udp://1', limits: {first_byte: 1s}}\n", "limit first_byte is not for UDP"},
		{"no limit for UDP", "services:\n  - {listen: 'udp://1', limits: {idle: off}}\n", "limit idle: off is not for UDP"},
		{"UDP's limit for a stream", "services:\n  - {listen: 1, limits: {peer_rate: 1}}\n", "limit peer_rate is for UDP alone"},
	} {
		_, err := ParseConfig([]byte(tt.in))
		if err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%s: got %v, want %q", tt.name, err, tt.want)
		}
	}
}

func TestConnectionsOffHasNoLimitForASourceEither(t *testing.T) {
	c, err := ParseConfig([]byte("services: [{listen: 1, limits: {connections: off}}]"))
	if err != nil {
		t.Fatal(err)
	}
	if l := c.Services[0].limits(); l.MaxConns != 0 || l.MaxPerSource != 0 {
		t.Errorf("got %+v", l)
	}
	if l := (&Service{}).limits(); l.MaxConns < 1 || l.MaxPerSource < 1 || l.MaxPerSource > l.MaxConns {
		t.Errorf("the defaults are %+v", l)
	}
}

func TestDefaultNamesDiffer(t *testing.T) {
	if _, err := ParseConfig([]byte("services: [{listen: '127.0.0.1:80'}, {listen: '[::1]:80'}, {listen: ':http'}, {listen: ':https'}, {listen: 'unix:///a'}, {listen: 'unix:///b'}]")); err != nil {
		t.Error(err)
	}
}

func TestLoadConfigNamesTheFile(t *testing.T) {
	path := filepath.Join(t.TempDir(), "ft.yaml")
	if _, err := LoadConfig(path); err == nil || !strings.Contains(err.Error(), path) {
		t.Errorf("got %v", err)
	}
	os.WriteFile(path, []byte("nonsense: 1"), 0o600)
	if _, err := LoadConfig(path); err == nil || !strings.HasPrefix(err.Error(), path+": line 1") {
		t.Errorf("got %v", err)
	}
}

func TestAddOptionsReachesTheServicesThatHaveThem(t *testing.T) {
	c := DefaultConfig("/run/x")
	var o sockopt.Settings
	if err := o.Set("nodelay=off,rcvbuf=1MiB"); err != nil {
		t.Fatal(err)
	}
	if err := c.AddOptions(o); err != nil {
		t.Fatal(err)
	}
	for i, want := range []int{2, 1, 1} {
		if got := len(c.Services[i].Options); got != want {
			t.Errorf("%s got %d options, want %d", c.Services[i].Name, got, want)
		}
	}
	c.Services = c.Services[1:2]
	if err := c.AddOptions(o); err == nil || !strings.Contains(err.Error(), "no service has a socket it belongs to") {
		t.Errorf("nodelay on UDP alone: %v", err)
	}
}

func FuzzParseConfig(f *testing.F) {
	f.Add(wholeConfig)
	f.Add("services:\n  - listen: 8080\n    limits: {idle: off}\n")
	f.Fuzz(func(t *testing.T, s string) {
		c, err := ParseConfig([]byte(s))
		if err != nil {
			return
		}
		for _, s := range c.Services {
			s.limits()
			s.rule()
		}
	})
}

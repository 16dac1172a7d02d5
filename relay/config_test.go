package relay

import (
	"strings"
	"testing"
	"time"

	"github.com/fivetuple/fivetuple"
	"github.com/fivetuple/fivetuple/relay/faults"
)

func endpoints(t testing.TB, texts ...string) (all []fivetuple.Endpoint) {
	t.Helper()
	for _, s := range texts {
		e, err := fivetuple.ParseEndpoint(s)
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, e)
	}
	return all
}

func TestRulesThatCannotWorkAreRefusedWithTheReason(t *testing.T) {
	for _, tt := range []struct {
		listen, target string
		change         func(*Config)
		want           string // "" is accepted
	}{
		{"8080", "10.0.0.5:80", nil, ""},
		{"8080", "db:https", nil, ""},
		{"8080", "unix:///run/a.sock", nil, ""},
		{"unix:///run/a.sock", "unix://@b", nil, ""},
		{"udp://53", "udp://10.0.0.2:53", nil, ""},
		{"8000-8010", "10.0.0.5:9000", nil, ""},
		{"8000-8010", "10.0.0.5:9000-9010", nil, ""},
		{"8080", "8081", nil, ""},
		{"8080", "udp://10.0.0.2:53", nil, "streams go on to tcp, tls or unix, not to udp"},
		{"udp://53", "10.0.0.2:53", nil, "datagrams go on to udp, not to tcp"},
		{"8000-8010", "10.0.0.5:9000-9003", nil, "11 ports go on to 4"},
		{"8000-8010", "10.0.0.5:65530", nil, "there are none above 65535"},
		{"8000-8010", "unix:///run/a.sock", nil, "a range of ports goes on to ports"},
		{"8080", "8080", nil, "it would connect to itself"},
		{":8080", "127.0.0.1:8080", nil, "it would connect to itself"},
		{":8080", "10.0.0.1:8080", nil, ""}, // perhaps another host
		{"unix:///a", "unix:///a", nil, "it would connect to itself"},
		{"8080", "*:80", nil, "name one"},
		{"8080", "0.0.0.0:80", nil, "name one"},
		{"8000-8010", "10.0.0.5:9000", func(c *Config) { c.Check.Interval = time.Second }, "a check is for one port"},
		{"8080", "10.0.0.5:0", nil, "needs a port"},
		{"-", "10.0.0.5:80", nil, "a rule listens on"},
		{"seqpacket:///a", "10.0.0.5:80", nil, "a rule listens on"},
		{"tls://8443", "10.0.0.5:80", nil, "TLS needs a certificate"},
		{"8080", "10.0.0.5:80", func(c *Config) { c.ProxyVersion = 3 }, "want 1 or 2"},
		{"udp://53", "udp://10.0.0.5:53", func(c *Config) { c.ProxyVersion = 2 }, "for streams"},
		{"8080", "10.0.0.5:80", func(c *Config) { c.Rate = -1 }, "want 1 or more"},
		{"unix:///a", "10.0.0.5:80", func(c *Config) { c.Transparent = true }, "clients come by unix"},
		{"8080", "unix:///a", func(c *Config) { c.Transparent = true }, "a Unix socket is not connected to from an address"},
		{"8080", "10.0.0.5:80", func(c *Config) { c.Faults = faults.Config{Loss: 2} }, "loss"},
		{"8080", "10.0.0.5:80", func(c *Config) { c.Names = map[string][]fivetuple.Endpoint{"A.example": endpoints(t, "1.2.3.4:5")} }, "in lower case"},
		{"8080", "10.0.0.5:80", func(c *Config) { c.Names = map[string][]fivetuple.Endpoint{"a.*.example": endpoints(t, "1.2.3.4:5")} }, "*.example"},
		{"8080", "10.0.0.5:80", func(c *Config) { c.Names = map[string][]fivetuple.Endpoint{"a.example": nil} }, "no target"},
		{"udp://53", "udp://10.0.0.5:53", func(c *Config) {
			c.Names = map[string][]fivetuple.Endpoint{"a.example": endpoints(t, "udp://1.2.3.4:5")}
		}, "not for datagrams"},
		{"8080", "10.0.0.5:80", func(c *Config) { c.Targets = nil }, "no target"},
	} {
		listen := endpoints(t, tt.listen)[0]
		c := Config{Listen: listen, Targets: endpoints(t, tt.target)}
		if tt.change != nil {
			tt.change(&c)
		}
		err := c.CheckFor(listen, false)
		switch {
		case tt.want == "" && err != nil:
			t.Errorf("%s to %s: %v", tt.listen, tt.target, err)
		case tt.want != "" && (err == nil || !strings.Contains(err.Error(), tt.want)):
			t.Errorf("%s to %s: got %v, want an error with %q", tt.listen, tt.target, err, tt.want)
		}
	}
}

func TestEventLoopsCarryOnlyWhatNeedNotBeLookedAt(t *testing.T) {
	for _, tt := range []struct {
		listen, target string
		change         func(*Config)
		want           bool
	}{
		{"8080", "10.0.0.5:80", nil, true},
		{"unix:///a", "10.0.0.5:80", nil, true},
		{"8080", "unix:///a", nil, true},
		{"tls://8443", "10.0.0.5:80", nil, false},
		{"8080", "tls://10.0.0.5:443", nil, false},
		{"8080", "10.0.0.5:80", func(c *Config) { c.Faults.Seed = 1 }, true}, // a seed alone is no fault
		{"8080", "10.0.0.5:80", func(c *Config) { c.Faults.Loss = 0.1 }, false},
		{"8080", "10.0.0.5:80", func(c *Config) {
			c.Names = map[string][]fivetuple.Endpoint{"a.example": endpoints(t, "tls://1.2.3.4:5")}
		}, false},
		{"vsock://*:5000", "10.0.0.5:80", nil, false},
	} {
		c := Config{Targets: endpoints(t, tt.target)}
		if tt.change != nil {
			tt.change(&c)
		}
		if got := c.Splices(endpoints(t, tt.listen)[0].Network); got != tt.want {
			t.Errorf("%s to %s: got %v, want %v", tt.listen, tt.target, got, tt.want)
		}
	}
}

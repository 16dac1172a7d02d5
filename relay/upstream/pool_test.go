package upstream

import (
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/net/dns/dnsmessage"

	"github.com/fivetuple/fivetuple"
)

func TestConfigurationsThatCannotWork(t *testing.T) {
	for _, tt := range []struct {
		name string
		c    Config
		says string
	}{
		{"no target", Config{}, "no target"},
		{"too many", Config{Targets: endpoints(numbered(MaxAddresses + 1)...)}, "257 targets: there may be 256"},
		{"port 0", Config{Targets: endpoints("10.0.0.1:0")}, "target 10.0.0.1:0: port 0 cannot be connected to"},
		{"unixgram", Config{Targets: endpoints("unixgram:///run/a")}, "target unixgram:///run/a: connections go on to tcp, tls, udp and unix"},
		{"vsock", Config{Targets: endpoints("vsock://3:80")}, "connections go on to"},
		{"stdio", Config{Targets: endpoints("-")}, "connections go on to"},
		{"zero", Config{Targets: make([]fivetuple.Endpoint, 1)}, "connections go on to"},
		{"unknown service", Config{Targets: endpoints("10.0.0.1:nonesuch-at-all")}, "unknown service"},
		{"streams and datagrams", Config{Targets: endpoints("80", "udp://80")}, "the targets 80 and udp://80 do not go together"},
		{"check of UDP", Config{Targets: endpoints("udp://10.0.0.1:53"), Check: Check{Interval: 1}}, "target udp://10.0.0.1:53: a check connects, which nobody answers over UDP"},
		{"interval", Config{Targets: endpoints("80"), Check: Check{Interval: -1}}, "a check has times"},
		{"fall", Config{Targets: endpoints("80"), Check: Check{Fall: -1}}, "a check has times"},
		{"policy", Config{Targets: endpoints("80"), Policy: 9}, "unknown policy(9)"},
		{"fail for", Config{Targets: endpoints("80"), FailFor: -1}, "want a time of at most 24h"},
		{"fail for ever", Config{Targets: endpoints("80"), FailFor: 1<<63 - 1}, "want a time of at most 24h"},
		{"refresh", Config{Targets: endpoints("80"), Refresh: -1}, "refresh"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			_, err := New(tt.c)
			wantErr(t, err, tt.says)
			p := newPool(t, Config{Targets: endpoints("10.0.0.1:80"), Policy: LeastConnections})
			wantErr(t, p.Set(tt.c), tt.says)
			if got := sorted(p); got != "10.0.0.1:80" || p.current.Load().policy != LeastConnections {
				t.Errorf("after the error the pool has changed: %s", got)
			}
		})
	}
}

func TestPolicyIsWrittenAsItIsRead(t *testing.T) {
	for _, policy := range policies {
		var got Policy
		if err := got.Set(policy.String()); err != nil || got != policy {
			t.Errorf("%s: got %s, %v", policy, got, err)
		}
	}
	err := new(Policy).Set("random")
	wantErr(t, err, "want one of round-robin, least-connections, source-hash")
}

func TestSetKeepsWhatIsKnownOfTargetsThatStay(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := newNameServer("db.test", a(600, "10.0.1.1", "10.0.1.2")...)
		c := Config{Targets: endpoints("db.test:80", "10.0.0.1:80", "10.0.0.2:80"), DNS: n.pipe, FailFor: time.Minute}
		p := resolvedPool(t, c)
		named, plain := the(t, p, "10.0.1.1:80"), the(t, p, "10.0.0.2:80")
		establish(named)
		eject(plain)
		asked := n.asked(dnsmessage.TypeA)

		c.Targets = endpoints("10.0.0.3:80", "10.0.0.2:80", "db.test:80")
		c.Policy = LeastConnections
		if err := p.Set(c); err != nil {
			t.Fatal(err)
		}
		if got, want := sorted(p), "10.0.0.2:80 10.0.0.3:80 10.0.1.1:80 10.0.1.2:80"; got != want {
			t.Errorf("got %s, want %s", got, want)
		}
		if the(t, p, "10.0.1.1:80") != named || the(t, p, "10.0.0.2:80") != plain {
			t.Error("addresses that stay are others")
		}
		for range 20 {
			if a := first(t, p, ""); a == named || a == plain {
				t.Fatalf("%s is the first choice: it has a connection, or was left out", a)
			}
		}
		synctest.Wait()
		if again := n.asked(dnsmessage.TypeA); again != asked {
			t.Errorf("a name that stays was asked for %d times more", again-asked)
		}
		c.MaxFails = -1
		if err := p.Set(c); err != nil {
			t.Fatal(err)
		}
		if s := p.Status()[1]; s.State != Good {
			t.Errorf("when nothing is to be left out any more, %s is %s", s.Address, s.State)
		}
	})
}

func TestNameThatIsNoTargetAnyMoreIsAskedForNoMore(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := newNameServer("db.test", a(5, "10.0.0.1")...)
		p := resolvedPool(t, Config{Targets: endpoints("db.test:80"), DNS: n.pipe})
		if err := p.Set(Config{Targets: endpoints("10.0.0.9:80"), DNS: n.pipe}); err != nil {
			t.Fatal(err)
		}
		asked := n.asked(dnsmessage.TypeA)
		time.Sleep(time.Minute)
		if again := n.asked(dnsmessage.TypeA); again != asked {
			t.Errorf("asked for %d times more", again-asked)
		}
		if got := sorted(p); got != "10.0.0.9:80" {
			t.Errorf("got %s", got)
		}
	})
}

func TestLookupThatIsEndedIsNoFailure(t *testing.T) {
	for _, tt := range []struct {
		name string
		end  func(*testing.T, *Pool)
	}{
		{"Close", func(_ *testing.T, p *Pool) { p.Close() }},
		{"Set", func(t *testing.T, p *Pool) {
			if err := p.Set(Config{Targets: endpoints("80"), Sink: p.config.Sink}); err != nil {
				t.Fatal(err)
			}
		}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				var told events
				n := newNameServer("db.test")
				n.hush(dnsmessage.TypeA, dnsmessage.TypeAAAA)
				p := newPool(t, Config{Targets: endpoints("db.test:80"), DNS: n.pipe, Sink: &told})
				synctest.Wait()
				tt.end(t, p)
				synctest.Wait()
				told.want(t)
			})
		})
	}
}

func TestClosedPoolKeepsItsAddresses(t *testing.T) {
	n := newNameServer("db.test", a(5, "10.0.0.1")...)
	p := resolvedPool(t, Config{Targets: endpoints("db.test:80", "80"), DNS: n.pipe})
	p.Close()
	if got := len(way(p, "")); got != 2 {
		t.Errorf("%d addresses, want 2", got)
	}
	a := first(t, p, "")
	establish(a)
	a.Failed(errRefused)
	a.Closed()
	if err := p.Wait(t.Context()); err != nil {
		t.Errorf("Wait: %v", err)
	}
}

func TestStatusHasTheKeysOfEveryCommand(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := newNameServer("db.test", a(30, "10.0.0.1")...)
		p := resolvedPool(t, Config{Targets: endpoints("tcp4://db.test:80", "none.test:80", "unix:///run/a.sock"), DNS: n.pipe, FailFor: time.Minute})
		named := the(t, p, "10.0.0.1:80")
		establish(named)
		establish(named)
		named.Closed()
		eject(named)
		got, err := json.MarshalIndent(p.Status(), "", "  ")
		if err != nil {
			t.Fatal(err)
		}
		const want = `[
  {
    "target": "tcp4://db.test:80",
    "address": "10.0.0.1:80",
    "state": "ejected",
    "reason": "connection refused",
    "until": "2000-01-01T00:01:00Z",
    "connections": 1,
    "opened": 2,
    "failed": 3,
    "last_error": "connection refused",
    "last_failure": "2000-01-01T00:00:00Z",
    "resolved": "2000-01-01T00:00:00Z",
    "next_lookup": "2000-01-01T00:00:30Z"
  },
  {
    "target": "none.test:80",
    "state": "unresolved",
    "reason": "lookup none.test on SERVER: no such host",
    "connections": 0,
    "opened": 0,
    "failed": 0,
    "next_lookup": "2000-01-01T00:00:01Z",
    "lookup_error": "lookup none.test on SERVER: no such host"
  },
  {
    "target": "unix:///run/a.sock",
    "address": "/run/a.sock",
    "state": "good",
    "connections": 0,
    "opened": 0,
    "failed": 0
  }
]`
		text := string(got)
		if _, rest, ok := strings.Cut(text, " on "); ok { // the name server of this machine
			server, _, _ := strings.Cut(rest, ": no such host")
			text = strings.ReplaceAll(text, server, "SERVER")
		}
		if text != want {
			t.Errorf("got %s\nwant %s", text, want)
		}
		time.Sleep(time.Minute)
		if s := p.Status()[0]; s.State != Trial || s.Reason != "connection refused" {
			t.Errorf("when its time is over: %+v", s)
		}
	})
}

func TestManyUseAPoolAtOnce(t *testing.T) {
	s := serve(t, "tcp", "127.0.0.1:0", nil)
	n := newNameServer("db.test", a(0, "10.0.0.1", "10.0.0.2", "10.0.0.3")...)
	config := func() Config {
		targets := append(numbered(1+rand.IntN(8)), "tcp4://db.test:80", s.Addr().String())
		return Config{
			Targets: endpoints(targets...), Policy: policies[rand.IntN(len(policies))], DNS: n.pipe, FailFor: time.Microsecond,
			Check: Check{Interval: time.Duration(rand.IntN(2)) * time.Millisecond, Timeout: time.Second}, MaxFails: rand.IntN(3) - 1, Sink: &events{},
		}
	}
	p := newPool(t, config())
	var workers sync.WaitGroup
	errs := make(chan error, 100)
	for worker := range 4 {
		workers.Go(func() {
			for i := range 2000 {
				seen := map[*Address]bool{}
				for c := p.Choose(netip.AddrFrom4([4]byte{10, 0, byte(worker), byte(i)})); ; {
					a, ok := c.Next()
					if !ok {
						break
					}
					if seen[a] {
						errs <- fmt.Errorf("%s comes twice", a)
						return
					}
					seen[a] = true
					if rand.IntN(3) > 0 {
						a.Failed(errRefused)
						a.Closed()
						continue
					}
					a.Opened()
					defer a.Closed()
					break
				}
			}
		})
	}
	workers.Go(func() {
		for i := range 100 {
			if err := p.Set(config()); err != nil {
				errs <- err
				return
			}
			n.set("db.test", a(0, fmt.Sprintf("10.0.0.%d", i+1))...)
		}
	})
	workers.Go(func() {
		for range 200 {
			p.Status()
			p.Err()
			p.Find(addrPort("10.0.0.1:3"), "").Conns()
		}
	})
	workers.Wait()
	close(errs)
	for err := range errs {
		t.Error(err)
	}
	p.Close()
	for _, a := range p.known {
		if n := a.Conns(); n != 0 {
			t.Errorf("%s has %d connections at the end", a, n)
		}
	}
}

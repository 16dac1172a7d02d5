package upstream

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"
	"testing"
)

func addrPort(s string) (ap netip.AddrPort) {
	if s != "" {
		ap = netip.MustParseAddrPort(s)
	}
	return ap
}

var errRefused = errors.New("connection refused")

var policies = []Policy{RoundRobin, LeastConnections, SourceHash}

// numbered is n targets on ports 1, 2, ...
func numbered(n int) (targets []string) {
	for i := range n {
		targets = append(targets, fmt.Sprintf("10.0.0.1:%d", i+1))
	}
	return targets
}

// eject fails an address until it is left out.
func eject(a *Address) {
	for range DefaultMaxFails {
		a.Failed(errRefused)
	}
}

func clientOf(n int) string { return netip.AddrFrom4([4]byte{192, 0, byte(n >> 8), byte(n)}).String() }

func TestEachAddressComesOnceAndThoseThatWorkFirst(t *testing.T) {
	for _, policy := range policies {
		for _, n := range []int{1, 2, 3, 7, 64, 65, MaxAddresses} {
			t.Run(fmt.Sprintf("%s, %d", policy, n), func(t *testing.T) {
				p := newPool(t, Config{Targets: endpoints(numbered(n)...), Policy: policy})
				all := p.current.Load().addresses
				out := map[*Address]bool{}
				for _, i := range rand.Perm(n)[:n/3] {
					out[all[i]] = true
					if i%2 == 0 {
						eject(all[i])
					} else {
						all[i].bad.Store(true)
					}
				}
				for client := range 20 {
					got := way(p, clientOf(client))
					if len(got) != n {
						t.Fatalf("%d addresses, want %d", len(got), n)
					}
					seen := map[*Address]bool{}
					for i, a := range got {
						if seen[a] {
							t.Errorf("%s comes twice", a)
						}
						seen[a] = true
						if out[a] != (i >= n-len(out)) {
							t.Errorf("%s is number %d of %d, of which %d do not work", a, i+1, n, len(out))
						}
					}
				}
			})
		}
	}
}

func TestRoundRobinGivesEveryAddressTheSame(t *testing.T) {
	n := newNameServer("db.test", a(60, "10.0.1.1", "10.0.1.2", "10.0.1.3")...)
	p := resolvedPool(t, Config{Targets: endpoints("tcp4://db.test:80", "10.0.0.1:80"), DNS: n.pipe})
	count := func() string {
		counts := map[string]int{}
		for range 120 {
			counts[first(t, p, "").place().String()]++
		}
		return fmt.Sprint(counts)
	}
	if got, want := count(), "map[10.0.0.1:80:30 10.0.1.1:80:30 10.0.1.2:80:30 10.0.1.3:80:30]"; got != want {
		t.Errorf("got %s, want %s", got, want)
	}
	// The neighbour of one that is left out must not get its part as well.
	eject(the(t, p, "10.0.1.2:80"))
	if got, want := count(), "map[10.0.0.1:80:40 10.0.1.1:80:40 10.0.1.3:80:40]"; got != want {
		t.Errorf("with one left out: got %s, want %s", got, want)
	}
}

func TestLeastConnectionsGoesWhereTheFewestAre(t *testing.T) {
	p := newPool(t, Config{Targets: endpoints(numbered(3)...), Policy: LeastConnections})
	all := p.current.Load().addresses
	for i, n := range []int{5, 2, 3} {
		for range n {
			all[i].Begun()
		}
	}
	if got, want := fmt.Sprint(texts(way(p, ""))), "[10.0.0.1:2 10.0.0.1:3 10.0.0.1:1]"; got != want {
		t.Errorf("got %s, want %s", got, want)
	}
	for range 5 { // those that are being made count, too
		c := p.Choose(netip.Addr{})
		if _, ok := c.Next(); !ok {
			t.Fatal("there is no address")
		}
	}
	for i, a := range all {
		if a.Conns() != 5 {
			t.Errorf("address %d has %d connections, want 5", i, a.Conns())
		}
	}
	counts := map[*Address]int{}
	for range 30 {
		counts[first(t, p, "")]++
	}
	for _, a := range all {
		if counts[a] != 10 {
			t.Errorf("of equals %s came %d times of 30, want 10", a, counts[a])
		}
	}
}

// chosen is the address of each of a number of clients.
func chosen(t *testing.T, p *Pool, clients int) (list []*Address) {
	t.Helper()
	for i := range clients {
		list = append(list, first(t, p, clientOf(i)))
	}
	return list
}

func TestSourceHashSpreadsSources(t *testing.T) {
	const clients = 6000
	p := newPool(t, Config{Targets: endpoints(numbered(6)...), Policy: SourceHash})
	counts := map[*Address]int{}
	for _, a := range chosen(t, p, clients) {
		counts[a]++
	}
	for _, a := range p.current.Load().addresses {
		// A binomial distribution has 1000 give or take 29: these are five times that.
		if counts[a] < 855 || counts[a] > 1145 {
			t.Errorf("%s has %d of %d sources, want a sixth", a, counts[a], clients)
		}
	}
}

func TestSourceStaysAndOnlyThoseOfALostAddressMove(t *testing.T) {
	const clients = 2000
	for _, tt := range []struct {
		name       string
		lose, back func(*testing.T, *Pool, *Address)
	}{
		{"left out", func(_ *testing.T, _ *Pool, a *Address) { eject(a) }, func(_ *testing.T, _ *Pool, a *Address) { a.Opened() }},
		{"bad", func(_ *testing.T, _ *Pool, a *Address) { a.bad.Store(true) }, func(_ *testing.T, _ *Pool, a *Address) { a.bad.Store(false) }},
		{"no target any more", func(t *testing.T, p *Pool, a *Address) {
			targets := slices.DeleteFunc(numbered(5), func(s string) bool { return s == a.place().String() })
			if err := p.Set(Config{Targets: endpoints(targets...), Policy: SourceHash}); err != nil {
				t.Fatal(err)
			}
		}, func(t *testing.T, p *Pool, _ *Address) {
			targets := numbered(5)
			slices.Reverse(targets)
			if err := p.Set(Config{Targets: endpoints(targets...), Policy: SourceHash}); err != nil {
				t.Fatal(err)
			}
		}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			p := newPool(t, Config{Targets: endpoints(numbered(5)...), Policy: SourceHash})
			lost := the(t, p, "10.0.0.1:3")
			before := chosen(t, p, clients)
			if again := chosen(t, p, clients); !slices.Equal(before, again) {
				t.Fatal("a source moved while nothing changed")
			}
			tt.lose(t, p, lost)
			heirs := map[*Address]int{}
			for i, a := range chosen(t, p, clients) {
				switch {
				case before[i] == lost && a == lost:
					t.Fatalf("source %s stays at the lost address", clientOf(i))
				case before[i] == lost:
					heirs[a]++
				case a != before[i]:
					t.Fatalf("source %s moved from %s to %s", clientOf(i), before[i], a)
				}
			}
			if len(heirs) != 4 {
				t.Errorf("the sources of the lost address went to %d others, want all 4", len(heirs))
			}
			tt.back(t, p, lost)
			for i, a := range chosen(t, p, clients) {
				if a.place() != before[i].place() {
					t.Fatalf("when all is as before source %s is at %s, not at %s", clientOf(i), a, before[i])
				}
			}
		})
	}
}

func TestSourceIsTheAddressAlone(t *testing.T) {
	p := newPool(t, Config{Targets: endpoints(numbered(16)...), Policy: SourceHash})
	for _, same := range [][]string{
		{"192.0.2.7", "::ffff:192.0.2.7"},
		{"fe80::1", "fe80::1%eth0", "fe80::1%2"},
	} {
		for _, client := range same {
			if got, want := first(t, p, client), first(t, p, same[0]); got != want {
				t.Errorf("%s goes to %s, and %s to %s", client, got, same[0], want)
			}
		}
	}
	seen := map[*Address]bool{}
	for range 200 {
		seen[first(t, p, "")] = true
	}
	if len(seen) < 12 {
		t.Errorf("clients without an address go to %d addresses of 16", len(seen))
	}
}

// Two relays, or one and its successor, must choose alike.
func TestSourceHashIsTheSameInEveryProcess(t *testing.T) {
	p := newPool(t, Config{Targets: endpoints(append(numbered(4), "unix:///run/a.sock", "[2001:db8::1]:80")...), Policy: SourceHash})
	var got []string
	for _, client := range []string{"192.0.2.1", "192.0.2.2", "192.0.2.3", "2001:db8::7", "2001:db8::8"} {
		got = append(got, first(t, p, client).place().String())
	}
	const want = "10.0.0.1:3 /run/a.sock /run/a.sock [2001:db8::1]:80 [2001:db8::1]:80"
	if s := strings.Join(got, " "); s != want {
		t.Errorf("got %s, want %s", s, want)
	}
}

func TestChoiceKeepsToTheAddressesItBeganWith(t *testing.T) {
	p := newPool(t, Config{Targets: endpoints(numbered(3)...)})
	c := p.Choose(netip.Addr{})
	if err := p.Set(Config{Targets: endpoints("10.0.0.9:9")}); err != nil {
		t.Fatal(err)
	}
	seen := map[*Address]bool{}
	for a, ok := c.Next(); ok; a, ok = c.Next() {
		seen[a] = true
	}
	if len(seen) != 3 {
		t.Errorf("%d addresses, want the 3 of before", len(seen))
	}
	if _, ok := new(Choice).Next(); ok {
		t.Error("the zero Choice has an address")
	}
}

func TestChoosingAllocatesNothing(t *testing.T) {
	client := netip.MustParseAddr("2001:db8::1")
	for _, policy := range policies {
		p := newPool(t, Config{Targets: endpoints(numbered(8)...), Policy: policy})
		eject(p.current.Load().addresses[2])
		if n := testing.AllocsPerRun(100, func() { oneConnection(p, client) }); n != 0 {
			t.Errorf("%s: %v allocations for a connection", policy, n)
		}
	}
}

func oneConnection(p *Pool, client netip.Addr) {
	c := p.Choose(client)
	if a, ok := c.Next(); ok {
		a.Opened()
		a.Closed()
	}
}

func BenchmarkConnection(b *testing.B) {
	client := netip.MustParseAddr("192.0.2.1")
	for _, policy := range policies {
		for _, n := range []int{1, 4, 32, MaxAddresses} {
			b.Run(fmt.Sprintf("%s/%d", policy, n), func(b *testing.B) {
				p := newPool(b, Config{Targets: endpoints(numbered(n)...), Policy: policy})
				b.ReportAllocs()
				for b.Loop() {
					oneConnection(p, client)
				}
			})
		}
	}
}

func BenchmarkFailedConnection(b *testing.B) {
	p := newPool(b, Config{Targets: endpoints(numbered(4)...)})
	b.ReportAllocs()
	for b.Loop() {
		for c := p.Choose(netip.Addr{}); ; {
			a, ok := c.Next()
			if !ok {
				break
			}
			a.Failed(errRefused)
			a.Closed()
		}
	}
}

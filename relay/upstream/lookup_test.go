package upstream

import (
	"context"
	"errors"
	"fmt"
	"net"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/net/dns/dnsmessage"

	"github.com/fivetuple/fivetuple"
)

func TestNameIsAskedForAgainWhenItsAnswerHasAged(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := newNameServer("db.test", a(20, "10.0.0.1", "10.0.0.2")...)
		p := resolvedPool(t, Config{Targets: endpoints("db.test:80"), DNS: n.pipe})
		n.set("db.test", a(20, "10.0.0.2", "10.0.0.3")...)
		time.Sleep(19 * time.Second)
		if got, want := sorted(p), "10.0.0.1:80 10.0.0.2:80"; got != want {
			t.Errorf("before the answer has aged: got %s, want %s", got, want)
		}
		time.Sleep(2 * time.Second)
		if got, want := sorted(p), "10.0.0.2:80 10.0.0.3:80"; got != want {
			t.Errorf("after it has aged: got %s, want %s", got, want)
		}
	})
}

// Name servers turn the order around with every answer.
func TestOrderOfTheAnswerChangesNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := newNameServer("db.test", a(20, "10.0.0.1", "10.0.0.2", "10.0.0.3")...)
		p := resolvedPool(t, Config{Targets: endpoints("db.test:80"), DNS: n.pipe})
		before := p.current.Load()
		n.set("db.test", a(20, "10.0.0.3", "10.0.0.1", "10.0.0.2", "10.0.0.1")...)
		time.Sleep(21 * time.Second)
		if p.current.Load() != before || n.asked(dnsmessage.TypeA) != 2 {
			t.Errorf("after %d lookups the addresses are %v", n.asked(dnsmessage.TypeA), texts(p.current.Load().addresses))
		}
	})
}

func TestTimeBetweenLookups(t *testing.T) {
	for _, tt := range []struct {
		name    string
		records []record
		want    time.Duration
	}{
		{"one second", a(1, "10.0.0.1"), time.Second},
		{"none is a second", a(0, "10.0.0.1"), time.Second},
		{"a week is an hour", a(7*24*3600, "10.0.0.1"), time.Hour},
		{"a sign is none", a(1<<31+100, "10.0.0.1"), time.Second},
		{"the smallest of addresses", append(a(100, "10.0.0.1"), a(50, "10.0.0.2")...), 50 * time.Second},
		{"the smallest of families", append(a(100, "10.0.0.1"), a(40, "2001:db8::1")...), 40 * time.Second},
		{"that of an alias", append([]record{{ttl: 30, alias: "real.test"}}, a(100, "10.0.0.1")...), 30 * time.Second},
		{"that behind an alias", append([]record{{ttl: 100, alias: "real.test"}}, a(35, "10.0.0.1")...), 35 * time.Second},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				n := newNameServer("db.test", tt.records...)
				p := resolvedPool(t, Config{Targets: endpoints("db.test:80"), DNS: n.pipe, Refresh: time.Minute})
				s := p.Status()[0]
				if got := s.NextLookup.Sub(s.Resolved); got != tt.want {
					t.Errorf("the next lookup is %v after the last, want %v", got, tt.want)
				}
				time.Sleep(10*tt.want + tt.want/2)
				if got := n.asked(dnsmessage.TypeA); got != 11 {
					t.Errorf("asked %d times in ten and a half times %v, want 11", got, tt.want)
				}
			})
		})
	}
}

func TestNameOfTheHostsFileIsAskedForAgainAfterRefresh(t *testing.T) {
	n := newNameServer("db.test")
	for _, tt := range []struct{ refresh, want time.Duration }{{0, DefaultRefresh}, {time.Minute, time.Minute}} {
		p := resolvedPool(t, Config{Targets: endpoints("tcp4://localhost:80"), DNS: n.pipe, Refresh: tt.refresh})
		s := p.Status()[0]
		if got := s.NextLookup.Sub(s.Resolved); got != tt.want || s.Address.String() != "127.0.0.1:80" {
			t.Errorf("Refresh %v: %s is asked for again after %v, want %v", tt.refresh, s.Address, got, tt.want)
		}
	}
	if n.asked(dnsmessage.TypeA) != 0 {
		t.Error("a name server was asked for localhost")
	}
}

func TestFailedLookupLeavesTheLastAddressesInUse(t *testing.T) {
	for _, tt := range []struct {
		name string
		fail func(*nameServer)
		says string
	}{
		{"no such name", func(n *nameServer) { n.fail(dnsmessage.RCodeNameError) }, "no such host; its last addresses stay in use"},
		{"the server's failure", func(n *nameServer) { n.fail(dnsmessage.RCodeServerFailure) }, "server misbehaving; its last addresses stay in use"},
		{"no addresses", func(n *nameServer) { n.set("db.test") }, "no such host; its last addresses stay in use"},
		{"silence", func(n *nameServer) { n.hush(dnsmessage.TypeA, dnsmessage.TypeAAAA) }, "i/o timeout; its last addresses stay in use"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				var told events
				n := newNameServer("db.test", a(5, "10.0.0.1")...)
				p := resolvedPool(t, Config{Targets: endpoints("db.test:80"), DNS: n.pipe, Sink: &told})
				before := first(t, p, "")
				establish(before)
				tt.fail(n)
				time.Sleep(20 * time.Minute)
				told.want(t, "target db.test:80: lookup db.test") // once
				if got := n.asked(dnsmessage.TypeA); got > 500 {
					t.Errorf("asked %d times in 20 minutes of failures, want one in half a minute or fewer", got)
				}
				if s := p.Status()[0]; s.State != Good || !strings.Contains(s.LookupError, "lookup db.test") {
					t.Errorf("the status is %+v", s)
				}
				n.do(func() { n.rcode, n.silent = nil, nil })
				n.set("db.test", a(5, "10.0.0.1", "10.0.0.2")...)
				time.Sleep(2 * time.Minute)
				told.want(t, "target db.test:80: the name has addresses again: 10.0.0.1:80, 10.0.0.2:80")
				if after := the(t, p, "10.0.0.1:80"); after != before || after.Conns() != 1 {
					t.Errorf("the address that stayed is another, with %d connections", after.Conns())
				}
				if err := p.Err(); err != nil {
					t.Errorf("Err is %v", err)
				}
			})
		})
		t.Run(tt.name+", told", func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				var told events
				n := newNameServer("db.test", a(5, "10.0.0.1")...)
				resolvedPool(t, Config{Targets: endpoints("db.test:80"), DNS: n.pipe, Sink: &told})
				tt.fail(n)
				time.Sleep(2 * time.Minute)
				told.want(t, tt.says)
			})
		})
	}
}

// And not that this side closed the connection.
func TestSilenceIsATimeout(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := newNameServer("db.test")
		n.hush(dnsmessage.TypeA, dnsmessage.TypeAAAA)
		p := resolvedPool(t, Config{Targets: endpoints("db.test:80"), DNS: n.pipe})
		for range 40 {
			wantErr(t, p.Err(), "i/o timeout")
			time.Sleep(time.Minute)
		}
	})
}

func TestAnotherReasonIsToldOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var told events
		n := newNameServer("db.test", a(5, "10.0.0.1")...)
		n.fail(dnsmessage.RCodeNameError)
		p := resolvedPool(t, Config{Targets: endpoints("db.test:80"), DNS: n.pipe, Sink: &told})
		time.Sleep(time.Minute)
		n.fail(dnsmessage.RCodeServerFailure)
		time.Sleep(5 * time.Minute)
		told.want(t, "no such host", "server misbehaving")
		wantErr(t, p.Err(), "target db.test:80: lookup db.test", "server misbehaving")
	})
}

// Name servers that do not answer for IPv6 are met in the field; others fail for a moment.
func TestFamilyThatFailsForAMomentTakesNoAddressAway(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var told events
		n := newNameServer("db.test", append(a(60, "10.0.0.1"), a(60, "2001:db8::1")...)...)
		p := resolvedPool(t, Config{Targets: endpoints("db.test:80"), DNS: n.pipe, Sink: &told})
		both := "10.0.0.1:80 [2001:db8::1]:80"
		n.do(func() {
			n.rcode = map[dnsmessage.Type]dnsmessage.RCode{dnsmessage.TypeAAAA: dnsmessage.RCodeServerFailure}
		})
		time.Sleep(61 * time.Second)
		if got := sorted(p); got != both {
			t.Errorf("after one failure: got %s, want %s", got, both)
		}
		time.Sleep(time.Hour)
		if got, want := sorted(p), "10.0.0.1:80"; got != want {
			t.Errorf("after many failures: got %s, want %s", got, want)
		}
		told.want(t, "its last addresses stay in use", "the name has addresses again")
		n.do(func() { n.rcode = nil })
		time.Sleep(61 * time.Second)
		if got := sorted(p); got != both {
			t.Errorf("when it answers again: got %s, want %s", got, both)
		}
		told.want(t)
	})
}

func TestFamilyOfATargetIsTheOnlyOneAskedFor(t *testing.T) {
	for _, tt := range []struct {
		target string
		want   string
		v4, v6 bool
	}{
		{"tcp://db.test:80", "10.0.0.1:80 [2001:db8::1]:80", true, true},
		{"tls://db.test:80", "10.0.0.1:80 [2001:db8::1]:80", true, true},
		{"tcp4://db.test:80", "10.0.0.1:80", true, false},
		{"tcp6://db.test:80", "[2001:db8::1]:80", false, true},
		{"udp4://db.test:80", "10.0.0.1:80", true, false},
		{"udp6://db.test:80", "[2001:db8::1]:80", false, true},
	} {
		t.Run(tt.target, func(t *testing.T) {
			n := newNameServer("db.test", append(a(60, "10.0.0.1"), a(60, "2001:db8::1")...)...)
			p := resolvedPool(t, Config{Targets: endpoints(tt.target), DNS: n.pipe})
			if got := sorted(p); got != tt.want {
				t.Errorf("got %s, want %s", got, tt.want)
			}
			v4, v6 := n.asked(dnsmessage.TypeA) > 0, n.asked(dnsmessage.TypeAAAA) > 0
			if v4 != tt.v4 || v6 != tt.v6 {
				t.Errorf("asked for IPv4: %v, for IPv6: %v, want %v, %v", v4, v6, tt.v4, tt.v6)
			}
		})
	}
}

func TestTruncatedAnswerIsAskedForOverTCP(t *testing.T) {
	var addrs []string
	for i := range 100 {
		addrs = append(addrs, fmt.Sprintf("10.0.1.%d", i))
	}
	n := newNameServer("db.test", a(77, addrs...)...)
	n.truncate = true
	p := resolvedPool(t, Config{Targets: endpoints("tcp4://db.test:80"), DNS: n.listen(t)})
	if got := len(p.current.Load().addresses); got != len(addrs) {
		t.Errorf("%d addresses, want %d", got, len(addrs))
	}
	s := p.Status()[0]
	if got := s.NextLookup.Sub(s.Resolved); got != 77*time.Second {
		t.Errorf("the next lookup is after %v, want the 77 s of the answer that was used", got)
	}
}

func TestAnswersOverUDPAreHeard(t *testing.T) {
	n := newNameServer("db.test", a(77, "10.0.0.1")...)
	p := resolvedPool(t, Config{Targets: endpoints("db.test:80"), DNS: n.listen(t)})
	s := p.Status()[0]
	if got := s.NextLookup.Sub(s.Resolved); got != 77*time.Second || s.Address.String() != "10.0.0.1:80" {
		t.Errorf("%s is asked for again after %v, want 10.0.0.1:80 after 77 s", s.Address, got)
	}
}

func TestForgedAnswersDoNotCount(t *testing.T) {
	for _, wrongID := range []bool{true, false} {
		synctest.Test(t, func(t *testing.T) {
			n := newNameServer("db.test", a(50, "10.0.0.1")...)
			n.forge, n.wrongID = make([][]byte, 3), wrongID
			p := resolvedPool(t, Config{Targets: endpoints("tcp4://db.test:80"), DNS: n.pipe})
			s := p.Status()[0]
			if got := s.NextLookup.Sub(s.Resolved); got != 50*time.Second || sorted(p) != "10.0.0.1:80" {
				t.Errorf("wrong id %v: %s is asked for again after %v, want 10.0.0.1:80 after 50 s", wrongID, sorted(p), got)
			}
		})
	}
}

func TestNameWithVeryManyAddressesHasItsShare(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var many []string
		for i := range 700 {
			many = append(many, fmt.Sprintf("10.0.%d.%d", i/250, i%250))
		}
		n := newNameServer("many.test", a(10, many...)...)
		n.set("few.test", a(10, "10.1.0.1")...)
		n.truncate = true
		p := resolvedPool(t, Config{Targets: endpoints("tcp4://many.test:80"), DNS: n.pipe})
		if got := len(way(p, "")); got != MaxAddresses {
			t.Errorf("one name has %d addresses, want %d", got, MaxAddresses)
		}
		was := slices.Clone(p.current.Load().addresses)
		slices.Reverse(many)
		n.set("many.test", a(10, many...)...)
		time.Sleep(11 * time.Second)
		if !slices.Equal(was, p.current.Load().addresses) {
			t.Error("the order of the answer chose other addresses")
		}
		if err := p.Set(Config{Targets: endpoints("tcp4://many.test:80", "tcp4://few.test:80"), DNS: n.pipe}); err != nil {
			t.Fatal(err)
		}
		wait(t, p)
		if got, want := len(way(p, "")), MaxAddresses/2+1; got != want {
			t.Errorf("two names have %d addresses, want %d", got, want)
		}
	})
}

func TestAddressKeepsItsConnectionsWhileItIsNoneOfTheName(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := newNameServer("db.test", a(5, "10.0.0.1", "10.0.0.2")...)
		p := resolvedPool(t, Config{Targets: endpoints("db.test:80"), DNS: n.pipe})
		used, unused := the(t, p, "10.0.0.1:80"), the(t, p, "10.0.0.2:80")
		establish(used)
		n.set("db.test", a(5, "10.0.0.3")...)
		time.Sleep(6 * time.Second)
		if got, want := sorted(p), "10.0.0.3:80"; got != want {
			t.Fatalf("got %s, want %s", got, want)
		}
		if p.Find(used.Addr, "") != used {
			t.Error("an address that has connections is not found any more")
		}
		n.set("db.test", a(5, "10.0.0.1", "10.0.0.2")...)
		time.Sleep(6 * time.Second)
		if again := the(t, p, "10.0.0.1:80"); again != used || again.Conns() != 1 {
			t.Error("the address came back as another while it had a connection")
		}
		if the(t, p, "10.0.0.2:80") == unused {
			t.Error("an address without connections was kept")
		}
	})
}

func TestAddressThatWasFoundBeforeItsNameResolvesIsThatOfTheName(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := newNameServer("db.test", a(5, "10.0.0.1")...)
		n.fail(dnsmessage.RCodeServerFailure)
		p := resolvedPool(t, Config{Targets: endpoints("db.test:80"), DNS: n.pipe})
		found := p.Find(addrPort("10.0.0.1:80"), "")
		establish(found)
		if found.Target.Network != fivetuple.TCP || found.Addr != addrPort("10.0.0.1:80") {
			t.Errorf("found %+v", found)
		}
		n.do(func() { n.rcode = nil })
		time.Sleep(time.Minute)
		if got := the(t, p, "10.0.0.1:80"); got != found || got.Conns() != 1 {
			t.Error("the name has another address")
		}
		if p.Find(addrPort("10.0.0.1:80"), "") != found {
			t.Error("it is found as another")
		}
		for _, stranger := range []*Address{p.Find(addrPort("10.9.9.9:99"), ""), p.Find(addrPort(""), "/run/gone.sock")} {
			establish(stranger)
			stranger.Failed(errors.New("gone"))
			stranger.Closed()
			if again := p.Find(stranger.Addr, stranger.Path); again != stranger {
				t.Errorf("%s is found as another", stranger)
			}
		}
	})
}

func TestErrSaysWhyThereIsNoAddress(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := newNameServer("db.test", a(5, "10.0.0.1")...)
		n.fail(dnsmessage.RCodeNameError)
		n.hush(dnsmessage.TypeA, dnsmessage.TypeAAAA)
		p := newPool(t, Config{Targets: endpoints("db.test:80", "tcp4://web.test:81"), DNS: n.pipe})
		wantErr(t, p.Err(), "target db.test:80: the name is being looked up", "target tcp4://web.test:81: the name is being looked up")
		if s := p.Status(); len(s) != 2 || s[0].State != Unresolved || s[0].Reason == "" {
			t.Errorf("the status is %+v", s)
		}
		if all := way(p, ""); all != nil {
			t.Errorf("there is an address: %v", all)
		}
		n.hush()
		wait(t, p)
		time.Sleep(time.Minute)
		wantErr(t, p.Err(), "target db.test:80: lookup db.test", "no such host", "lookup web.test")
		n.do(func() { n.rcode = nil })
		time.Sleep(time.Minute)
		if err := p.Err(); err != nil {
			t.Errorf("one name has an address, and Err is %v", err)
		}
	})
}

func TestWaitEndsWithItsContextAndWithThePool(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := newNameServer("db.test")
		n.hush(dnsmessage.TypeA, dnsmessage.TypeAAAA)
		p := newPool(t, Config{Targets: endpoints("db.test:80"), DNS: n.pipe})
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if err := p.Wait(ctx); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("got %v, want %v", err, context.DeadlineExceeded)
		}
		closed := make(chan error)
		go func() { closed <- p.Wait(context.Background()) }()
		synctest.Wait()
		p.Close()
		if err := <-closed; !errors.Is(err, errClosed) {
			t.Errorf("after Close: got %v, want %v", err, errClosed)
		}
	})
}

// The bubble of synctest does not end before its goroutines, and time would show.
func TestCloseEndsALookupThatNobodyAnswers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := newNameServer("db.test", a(5, "10.0.0.1")...)
		n.hush(dnsmessage.TypeA, dnsmessage.TypeAAAA)
		p := newPool(t, Config{Targets: endpoints("db.test:80"), DNS: n.pipe})
		time.Sleep(time.Second)
		began := time.Now()
		p.Close()
		synctest.Wait()
		n.mu.Lock()
		asked := n.queries[dnsmessage.TypeA]
		n.mu.Unlock()
		time.Sleep(time.Hour)
		if again := n.asked(dnsmessage.TypeA); again != asked {
			t.Errorf("asked %d more times after Close", again-asked)
		}
		if took := time.Since(began) - time.Hour; took != 0 {
			t.Errorf("Close took %v", took)
		}
		p.Close()
		if err := p.Set(Config{Targets: endpoints("80")}); !errors.Is(err, errClosed) {
			t.Errorf("Set after Close: %v", err)
		}
	})
}

func TestCloseEndsALookupOnTheNetwork(t *testing.T) {
	n := newNameServer("db.test", a(5, "10.0.0.1")...)
	n.hush(dnsmessage.TypeA, dnsmessage.TypeAAAA)
	p := newPool(t, Config{Targets: endpoints("db.test:80"), DNS: n.listen(t)})
	until(t, "a query", func() bool { return n.asked(dnsmessage.TypeA) > 0 })
	p.Close() // goleak sees what is left
}

func TestDNSThatCannotBeReachedIsTold(t *testing.T) {
	p := resolvedPool(t, Config{Targets: endpoints("db.test:80"), DNS: func(context.Context, string, string) (net.Conn, error) {
		return nil, errors.New("the network is down")
	}})
	wantErr(t, p.Err(), "target db.test:80: lookup db.test", "the network is down")
}

func wantErr(t testing.TB, err error, parts ...string) {
	t.Helper()
	if err == nil {
		t.Fatalf("no error, want %q", parts)
	}
	for _, part := range parts {
		if !strings.Contains(err.Error(), part) {
			t.Errorf("got %v, want it to say %q", err, part)
		}
	}
}

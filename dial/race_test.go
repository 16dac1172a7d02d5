package dial

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/fivetuple/fivetuple"
)

const ms = time.Millisecond

// never is later than any test waits.
const never = time.Hour

// reply is what a resolver answers for one family, and when.
type reply struct {
	after time.Duration
	addrs []string
	err   error
}

// names is a Resolver for one name.
type names struct{ v6, v4 *reply }

func (n names) LookupPort(context.Context, string, string) (int, error) { return 80, nil }

func (n names) LookupNetIP(ctx context.Context, network, host string) ([]netip.Addr, error) {
	r := n.v4
	if network == "ip6" {
		r = n.v6
	}
	if r == nil {
		panic("nobody was to ask for " + network)
	}
	if !sleep(ctx, r.after) {
		return nil, &net.DNSError{Err: "gave up", Name: host, IsTimeout: true}
	}
	var addrs []netip.Addr
	for _, a := range r.addrs {
		addrs = append(addrs, netip.MustParseAddr(a))
	}
	return addrs, r.err
}

func notFound() error {
	return &net.DNSError{Err: "no such host", Name: "h.test", IsNotFound: true}
}

// world is how addresses answer: after how long, and with what error. One that is not
// in it takes the connection after a millisecond.
type world struct {
	after  map[string]time.Duration
	err    map[string]error
	late   bool // connections are made also when their context has ended
	mu     sync.Mutex
	began  time.Time
	trace  []string // "0ms 2001:db8::1"
	closed int
	open   int
}

func (w *world) connect(_ Dialer, ctx context.Context, to netip.AddrPort) (connection, error) {
	addr := to.Addr().String()
	w.mu.Lock()
	w.trace = append(w.trace, fmt.Sprintf("%d %s", time.Since(w.began).Milliseconds(), addr))
	w.mu.Unlock()
	began := time.Now()
	after, ok := w.after[addr]
	if !ok {
		after = ms
	}
	if !sleep(ctx, after) && !w.late {
		return connection{}, cutSince(ctx, began, Dialer{}.silent(), ctx.Err())
	}
	if err := w.err[addr]; err != nil {
		return connection{}, err
	}
	w.mu.Lock()
	w.open++
	w.mu.Unlock()
	return connection{Conn: &fakeConn{world: w, addr: addr}}, nil
}

type fakeConn struct {
	net.Conn
	world *world
	addr  string
}

func (c *fakeConn) Close() error {
	c.world.mu.Lock()
	c.world.closed++
	c.world.mu.Unlock()
	return nil
}

func TestRaceOfAddresses(t *testing.T) {
	const a6, b6, c6, a4, b4 = "2001:db8::a", "2001:db8::b", "2001:db8::c", "192.0.2.1", "192.0.2.2"
	refused := syscall.ECONNREFUSED
	for _, tt := range []struct {
		name   string
		v6, v4 reply
		after  map[string]time.Duration
		err    map[string]error
		trace  string // when each address was tried, in ms
		won    string
		at     time.Duration
	}{
		{name: "IPv6 is preferred", v6: reply{addrs: []string{a6}}, v4: reply{addrs: []string{a4}},
			trace: "0 " + a6, won: a6, at: ms},
		{name: "IPv6 without an answer costs 250 ms", v6: reply{addrs: []string{a6}}, v4: reply{addrs: []string{a4}},
			after: map[string]time.Duration{a6: never},
			trace: "0 " + a6 + ", 250 " + a4, won: a4, at: 251 * ms},
		{name: "a failure brings the next at once", v6: reply{addrs: []string{a6}}, v4: reply{addrs: []string{a4}},
			after: map[string]time.Duration{a6: 20 * ms}, err: map[string]error{a6: refused},
			trace: "0 " + a6 + ", 20 " + a4, won: a4, at: 21 * ms},
		{name: "after a failure the next but one waits 250 ms again", v6: reply{addrs: []string{a6}}, v4: reply{addrs: []string{a4, b4}},
			after: map[string]time.Duration{a6: 200 * ms, a4: never}, err: map[string]error{a6: refused},
			trace: "0 " + a6 + ", 200 " + a4 + ", 450 " + b4, won: b4, at: 451 * ms},
		{name: "the families take turns", v6: reply{addrs: []string{a6, b6, c6}}, v4: reply{addrs: []string{a4, b4}},
			after: map[string]time.Duration{a6: never, a4: never, b6: never, b4: never},
			trace: "0 " + a6 + ", 250 " + a4 + ", 500 " + b6 + ", 750 " + b4 + ", 1000 " + c6, won: c6, at: 1001 * ms},
		{name: "the first that answers wins, not the first tried", v6: reply{addrs: []string{a6}}, v4: reply{addrs: []string{a4}},
			after: map[string]time.Duration{a6: 300 * ms, a4: 100 * ms},
			trace: "0 " + a6 + ", 250 " + a4, won: a6, at: 300 * ms},
		{name: "IPv4 waits 50 ms for the addresses of IPv6", v6: reply{after: never}, v4: reply{after: 10 * ms, addrs: []string{a4}},
			trace: "60 " + a4, won: a4, at: 61 * ms},
		{name: "IPv6 that comes within 50 ms goes first", v6: reply{after: 40 * ms, addrs: []string{a6}}, v4: reply{addrs: []string{a4}},
			trace: "40 " + a6, won: a6, at: 41 * ms},
		{name: "IPv6 that comes later joins", v6: reply{after: 100 * ms, addrs: []string{a6}}, v4: reply{addrs: []string{a4, b4}},
			after: map[string]time.Duration{a4: never},
			trace: "50 " + a4 + ", 300 " + a6, won: a6, at: 301 * ms},
		{name: "IPv6 that comes after all have failed is tried at once", v6: reply{after: 100 * ms, addrs: []string{a6}}, v4: reply{addrs: []string{a4}},
			err:   map[string]error{a4: refused},
			trace: "50 " + a4 + ", 100 " + a6, won: a6, at: 101 * ms},
		{name: "a name without IPv6 does not wait", v6: reply{err: notFound()}, v4: reply{after: ms, addrs: []string{a4}},
			trace: "1 " + a4, won: a4, at: 2 * ms},
		{name: "a name without IPv6 ends the wait", v6: reply{after: 20 * ms, err: notFound()}, v4: reply{addrs: []string{a4}},
			trace: "20 " + a4, won: a4, at: 21 * ms},
		{name: "addresses are tried once, mapped ones as IPv4", v6: reply{err: notFound()}, v4: reply{addrs: []string{"::ffff:" + a4, b4, a4}},
			err:   map[string]error{a4: refused},
			trace: "0 " + a4 + ", 1 " + b4, won: b4, at: 2 * ms},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := &world{after: tt.after, err: tt.err, began: time.Now()}
				d := Dialer{Resolver: names{&tt.v6, &tt.v4}, connect: w.connect}
				conn, err := d.Dial(t.Context(), fivetuple.MustParseEndpoint("h.test:80"))
				if err != nil {
					t.Fatal(err)
				}
				if got := conn.(*fakeConn).addr; got != tt.won {
					t.Errorf("got the connection of %s, want %s", got, tt.won)
				}
				if got := time.Since(w.began); got != tt.at {
					t.Errorf("took %v, want %v", got, tt.at)
				}
				if got := strings.Join(w.trace, ", "); got != tt.trace {
					t.Errorf("tried %s\nwant  %s", got, tt.trace)
				}
			})
		})
	}
}

func TestLoserThatConnectsTooLateIsClosed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := &world{began: time.Now(), late: true, after: map[string]time.Duration{"2001:db8::a": never}}
		d := Dialer{Resolver: names{&reply{addrs: []string{"2001:db8::a"}}, &reply{addrs: []string{"192.0.2.1"}}}, connect: w.connect}
		if _, err := d.Dial(t.Context(), fivetuple.MustParseEndpoint("h.test:80")); err != nil {
			t.Fatal(err)
		}
		if w.open != 2 || w.closed != 1 {
			t.Errorf("got %d connections, %d of them closed, want 2 and 1", w.open, w.closed)
		}
	})
}

func TestEveryAddressHasItsReason(t *testing.T) {
	for _, tt := range []struct {
		name    string
		v6, v4  reply
		after   map[string]time.Duration
		err     map[string]error
		timeout time.Duration
		is      []error
		want    string
	}{
		{name: "all fail", v6: reply{addrs: []string{"2001:db8::a"}}, v4: reply{addrs: []string{"192.0.2.1"}},
			err: map[string]error{"2001:db8::a": syscall.ENETUNREACH, "192.0.2.1": syscall.ECONNREFUSED},
			is:  []error{syscall.ENETUNREACH, syscall.ECONNREFUSED},
			want: "connect h.test:80: no address took the connection\n" +
				"  [2001:db8::a]:80: network is unreachable (after 1ms)\n" +
				"  192.0.2.1:80: connection refused (after 1ms)"},
		{name: "one address", v6: reply{err: notFound()}, v4: reply{addrs: []string{"192.0.2.1"}},
			err:  map[string]error{"192.0.2.1": syscall.ECONNREFUSED},
			is:   []error{syscall.ECONNREFUSED},
			want: "connect h.test:80: 192.0.2.1:80: connection refused"},
		{name: "the time runs out", v6: reply{addrs: []string{"2001:db8::a", "2001:db8::b"}}, v4: reply{addrs: []string{"192.0.2.1"}},
			after: map[string]time.Duration{"2001:db8::a": never, "192.0.2.1": never}, timeout: 400 * ms,
			is: []error{context.DeadlineExceeded, os.ErrDeadlineExceeded},
			want: "connect h.test:80: no address took the connection\n" +
				"  [2001:db8::a]:80: timed out after 400ms: " + Dialer{}.silent() + "\n" +
				"  192.0.2.1:80: timed out after 150ms: " + Dialer{}.silent() + "\n" +
				"  [2001:db8::b]:80: not tried: the time ran out"},
		{name: "the names do not come", v6: reply{after: never}, v4: reply{after: never}, timeout: 1500 * ms,
			is:   []error{context.DeadlineExceeded, os.ErrDeadlineExceeded},
			want: "connect h.test:80: timed out after 1.5s: the addresses of h.test were not to be had"},
		{name: "no such name", v6: reply{err: notFound()}, v4: reply{err: notFound()},
			want: "connect h.test:80: lookup h.test: no such host: check the spelling, or give an address"},
		{name: "the resolver is broken for one family", v6: reply{err: &net.DNSError{Err: "server misbehaving", Name: "h.test"}}, v4: reply{err: notFound()},
			want: "connect h.test:80: lookup h.test: server misbehaving"},
		{name: "the resolver is broken for one family, the other fails", v6: reply{err: &net.DNSError{Err: "server misbehaving", Name: "h.test"}}, v4: reply{addrs: []string{"192.0.2.1"}},
			err: map[string]error{"192.0.2.1": syscall.ECONNREFUSED},
			want: "connect h.test:80: no address took the connection\n" +
				"  192.0.2.1:80: connection refused (after 1ms)\n" +
				"  lookup h.test: server misbehaving"},
		{name: "the resolver answers with nothing",
			want: "connect h.test:80: the resolver has no address for h.test"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := &world{after: tt.after, err: tt.err, began: time.Now()}
				d := Dialer{Resolver: names{&tt.v6, &tt.v4}, connect: w.connect, Timeout: tt.timeout}
				_, err := d.Dial(t.Context(), fivetuple.MustParseEndpoint("h.test:80"))
				if err == nil || err.Error() != tt.want {
					t.Fatalf("got  %v\nwant %s", err, tt.want)
				}
				for _, is := range tt.is {
					if !errors.Is(err, is) {
						t.Errorf("%v is not %v", err, is)
					}
				}
				if tt.timeout > 0 && time.Since(w.began) != tt.timeout {
					t.Errorf("took %v, want %v", time.Since(w.began), tt.timeout)
				}
			})
		})
	}
}

func TestAttemptsCarryAddressReasonAndTime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := &world{began: time.Now(), after: map[string]time.Duration{"192.0.2.1": 7 * ms}, err: map[string]error{"192.0.2.1": syscall.ECONNREFUSED}}
		_, err := Dialer{connect: w.connect}.Dial(t.Context(), fivetuple.MustParseEndpoint("192.0.2.1:80"))
		var e *Error
		if !errors.As(err, &e) {
			t.Fatalf("got %v, want an *Error", err)
		}
		want := []Attempt{{netip.MustParseAddrPort("192.0.2.1:80"), syscall.ECONNREFUSED, 7 * ms}}
		if !slices.Equal(e.Attempts, want) {
			t.Errorf("got %v, want %v", e.Attempts, want)
		}
	})
}

func TestFamilyNotWantedIsNotAskedFor(t *testing.T) {
	for _, tt := range []struct{ endpoint, source, won string }{
		{"tcp4://h.test:80", "", "192.0.2.1"},
		{"tcp6://h.test:80", "", "2001:db8::a"},
		{"h.test:80", "192.0.2.9", "192.0.2.1"},
		{"tls://h.test:80", "2001:db8::9", "2001:db8::a"},
		{"8080", "127.0.0.1", "127.0.0.1"},
		{"8080", "", "::1"},
	} {
		t.Run(tt.endpoint+" "+tt.source, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				resolver := names{}
				if strings.Contains(tt.won, ":") {
					resolver.v6 = &reply{addrs: []string{tt.won}}
				} else {
					resolver.v4 = &reply{addrs: []string{tt.won}}
				}
				w := &world{began: time.Now()}
				d := Dialer{Resolver: resolver, connect: w.connect}
				if tt.source != "" {
					d.Source = netip.AddrPortFrom(netip.MustParseAddr(tt.source), 0)
				}
				e := fivetuple.MustParseEndpoint(tt.endpoint)
				conn, err := d.dialDirect(t.Context(), e)
				if err != nil {
					t.Fatal(err)
				}
				if got := conn.Conn.(*fakeConn).addr; got != tt.won {
					t.Errorf("got %s, want %s", got, tt.won)
				}
			})
		})
	}
}

func TestDialEndsWhenItsContextIsCancelled(t *testing.T) {
	for _, tt := range []struct {
		name  string
		names names
	}{
		{"asking for the name", names{&reply{after: never}, &reply{after: never}}},
		{"connecting", names{&reply{addrs: []string{"2001:db8::a"}}, &reply{err: notFound()}}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := &world{began: time.Now(), after: map[string]time.Duration{"2001:db8::a": never}}
				ctx, cancel := context.WithCancel(t.Context())
				time.AfterFunc(100*ms, cancel)
				_, err := Dialer{Resolver: tt.names, connect: w.connect, Timeout: time.Minute}.Dial(ctx, fivetuple.MustParseEndpoint("h.test:80"))
				wantError(t, err, context.Canceled)
				if want := "connect h.test:80: context canceled"; err.Error() != want || time.Since(w.began) != 100*ms {
					t.Errorf("got %v after %v, want %s after 100ms", err, time.Since(w.began), want)
				}
			})
		})
	}
}

package upstream

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/fivetuple/fivetuple"
	"github.com/fivetuple/fivetuple/internal/lab"
	"github.com/fivetuple/fivetuple/stats"
)

const patience = 10 * time.Second

func TestMain(m *testing.M) {
	lab.Enter()
	// Package net keeps a channel for reading resolv.conf(5), which must not be one of a
	// synctest bubble.
	r := net.Resolver{PreferGo: true, Dial: func(context.Context, string, string) (net.Conn, error) {
		return nil, errors.New("there is no name server")
	}}
	r.LookupHost(context.Background(), "first.test")
	goleak.VerifyTestMain(m)
}

func endpoints(texts ...string) (list []fivetuple.Endpoint) {
	for _, text := range texts {
		list = append(list, fivetuple.MustParseEndpoint(text))
	}
	return list
}

// newPool makes a pool that is closed with the test.
func newPool(t testing.TB, c Config) *Pool {
	t.Helper()
	p, err := New(c)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(p.Close)
	return p
}

// resolvedPool waits until every name was asked for.
func resolvedPool(t testing.TB, c Config) *Pool {
	t.Helper()
	p := newPool(t, c)
	wait(t, p)
	return p
}

func wait(t testing.TB, p *Pool) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	if err := p.Wait(ctx); err != nil {
		t.Fatalf("wait: %v", err)
	}
}

// way is all addresses of one choice, in order, of which none is used.
func way(p *Pool, client string) (list []*Address) {
	var from netip.Addr
	if client != "" {
		from = netip.MustParseAddr(client)
	}
	c := p.Choose(from)
	for {
		a, ok := c.Next()
		if !ok {
			return list
		}
		a.Closed()
		list = append(list, a)
	}
}

// first is the address that a client gets.
func first(t testing.TB, p *Pool, client string) *Address {
	t.Helper()
	all := way(p, client)
	if len(all) == 0 {
		t.Fatalf("there is no address: %v", p.Err())
	}
	return all[0]
}

// establish makes a connection to an address that nobody chose.
func establish(a *Address) {
	a.Begun()
	a.Opened()
}

// texts are the places of addresses.
func texts(list []*Address) (all []string) {
	for _, a := range list {
		all = append(all, a.place().String())
	}
	return all
}

// sorted is what the pool has, in order of text.
func sorted(p *Pool) string {
	return strings.Join(slices.Sorted(slices.Values(texts(p.current.Load().addresses))), " ")
}

// the is the address of the pool that is in a place.
func the(t testing.TB, p *Pool, place string) *Address {
	t.Helper()
	for _, a := range p.current.Load().addresses {
		if a.place().String() == place {
			return a
		}
	}
	t.Fatalf("%s is none of %s", place, sorted(p))
	return nil
}

// until waits for a condition.
func until(t testing.TB, what string, done func() bool) {
	t.Helper()
	for deadline := time.Now().Add(patience); !done(); time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("%s: not after %v", what, patience)
		}
	}
}

// events collects what a pool tells.
type events struct {
	mu   sync.Mutex
	list []stats.Event
}

func (e *events) Record(event stats.Event) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.list = append(e.list, event)
}

// take returns the texts told since the last call.
func (e *events) take() (texts []string) {
	e.mu.Lock()
	defer e.mu.Unlock()
	for _, event := range e.list {
		texts = append(texts, event.Err)
	}
	e.list = nil
	return texts
}

// some says whether anything was told since the last call of take.
func (e *events) some() bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	return len(e.list) > 0
}

// want checks that the pool has told these things, each by a part of the text, and no others.
func (e *events) want(t testing.TB, parts ...string) {
	t.Helper()
	got := e.take()
	if len(got) != len(parts) {
		t.Errorf("told %q, want %q", got, parts)
		return
	}
	for i, part := range parts {
		if !strings.Contains(got[i], part) {
			t.Errorf("told %q, want it to say %q", got[i], part)
		}
	}
}

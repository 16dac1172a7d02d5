package datagram

import (
	"context"
	"errors"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/fivetuple/fivetuple"
	"github.com/fivetuple/fivetuple/internal/lab"
	"github.com/fivetuple/fivetuple/sockopt"
	"github.com/fivetuple/fivetuple/stats"
)

func TestMain(m *testing.M) {
	lab.Enter()
	goleak.VerifyTestMain(m)
}

const patience = 10 * time.Second

// events collects what a server or client reports.
type events struct {
	mu   sync.Mutex
	list []stats.Event
	more chan struct{}
}

func newEvents() *events { return &events{more: make(chan struct{}, 1)} }

func (e *events) Record(event stats.Event) {
	e.mu.Lock()
	e.list = append(e.list, event)
	e.mu.Unlock()
	select {
	case e.more <- struct{}{}:
	default:
	}
}

func (e *events) of(kind stats.Kind) (list []stats.Event) {
	e.mu.Lock()
	defer e.mu.Unlock()
	for _, event := range e.list {
		if event.Kind == kind {
			list = append(list, event)
		}
	}
	return list
}

// wait waits for so many events of a kind.
func (e *events) wait(t testing.TB, kind stats.Kind, n int) []stats.Event {
	t.Helper()
	deadline := time.After(patience)
	for {
		if list := e.of(kind); len(list) >= n {
			return list
		}
		select {
		case <-e.more:
		case <-deadline:
			e.mu.Lock()
			defer e.mu.Unlock()
			t.Fatalf("waited %v for %d %v events, got %+v", patience, n, kind, e.list)
		}
	}
}

// serve runs s on a socket for the endpoint until the test ends.
func serve(t testing.TB, s *Server, endpoint string) *Conn {
	t.Helper()
	return serveOn(t, s, listen(t, endpoint))
}

func serveOn(t testing.TB, s *Server, c *Conn) *Conn {
	t.Helper()
	done := make(chan error, 1)
	go func() { done <- s.Serve(c) }()
	t.Cleanup(func() {
		if err := s.Shutdown(context.Background()); err != nil {
			t.Errorf("shutdown: %v", err)
		}
		if err := <-done; !errors.Is(err, ErrServerClosed) {
			t.Errorf("serve: got %v, want %v", err, ErrServerClosed)
		}
	})
	return c
}

func listen(t testing.TB, endpoint string) *Conn {
	t.Helper()
	c, err := ListenConfig{}.Listen(t.Context(), parse(t, endpoint))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

// dial opens a socket whose receiving does not outlast the test's patience.
func dial(t testing.TB, endpoint string) *Conn {
	t.Helper()
	return dialWith(t, Dialer{}, endpoint)
}

// dialWith is dial in a way of its own.
func dialWith(t testing.TB, d Dialer, endpoint string) *Conn {
	t.Helper()
	c, err := d.Dial(t.Context(), parse(t, endpoint))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	c.SetReadDeadline(time.Now().Add(patience))
	return c
}

func parse(t testing.TB, endpoint string) fivetuple.Endpoint {
	t.Helper()
	e, err := fivetuple.ParseEndpoint(endpoint)
	if err != nil {
		t.Fatal(err)
	}
	return e
}

func settings(t testing.TB, text string) (s sockopt.Settings) {
	t.Helper()
	if text == "" {
		return nil
	}
	if err := s.Set(text); err != nil {
		t.Fatal(err)
	}
	return s
}

func udp(c *Conn) string { return "udp://" + c.local.String() }

// endpointOf is where to dial a socket.
func endpointOf(c *Conn) string { return c.protocol().String() + "://" + c.local.String() }

func send(t testing.TB, c *Conn, text string) {
	t.Helper()
	if err := c.Send([]byte(text)); err != nil {
		t.Fatal(err)
	}
}

// want receives a datagram and checks it.
func want(t testing.TB, c *Conn, text string) Packet {
	t.Helper()
	var p Packet
	if err := c.Receive(&p); err != nil {
		t.Fatalf("receive, want %q: %v", text, err)
	}
	if string(p.Data) != text {
		t.Errorf("received %q, want %q", p.Data, text)
	}
	return p
}

func wantError(t testing.TB, err error, target error, words ...string) {
	t.Helper()
	if !errors.Is(err, target) {
		t.Errorf("got error %v, want %v", err, target)
		return
	}
	for _, w := range words {
		if !strings.Contains(err.Error(), w) {
			t.Errorf("got error %q, want %q in it", err, w)
		}
	}
}

// eventually fails the test if the condition does not come true.
func eventually(t testing.TB, what string, condition func() bool) {
	t.Helper()
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	for deadline := time.Now().Add(patience); !condition(); <-tick.C {
		if time.Now().After(deadline) {
			t.Fatalf("after %v still not: %s", patience, what)
		}
	}
}

package stream

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/fivetuple/fivetuple/stats"
)

// slowReader reads everything after a pause that is longer than Shutdown's idea
// of quiet.
func slowReader(c net.Conn, pause time.Duration) (int, error) {
	time.Sleep(pause) // the client's slowness is what is tested
	n, err := io.Copy(io.Discard, c)
	return int(n), err
}

func TestShutdownLetsASlowClientHaveAllThatWasWritten(t *testing.T) {
	const size = 30 << 20
	ev := newEvents()
	s := &Server{Sink: ev, Handler: HandlerFunc(func(_ context.Context, c *Conn) error {
		_, err := c.Write(make([]byte, size))
		return err
	})}
	ln := serve(t, s, "0")
	c := connect(t, ln)
	ev.wait(t, "accept", kindIs(stats.Accept))
	done := make(chan error, 1)
	go func() {
		ctx, cancel := context.WithTimeout(context.Background(), 15*time.Second)
		defer cancel()
		done <- s.Shutdown(ctx)
	}()
	if n, err := slowReader(c, 600*time.Millisecond); n != size || err != nil {
		t.Errorf("got %d bytes of %d, %v", n, size, err)
	}
	if err := <-done; err != nil {
		t.Errorf("Shutdown: %v", err)
	}
	if end := ev.wait(t, "disconnect", kindIs(stats.Disconnect)); end.BytesOut != size {
		t.Errorf("got %+v", end)
	}
}

func TestAWriteThatMovesIsNotIdle(t *testing.T) {
	const size = 8 << 20
	s := &Server{Limits: Limits{IdleTimeout: 300 * time.Millisecond}, Handler: HandlerFunc(func(_ context.Context, c *Conn) error {
		_, err := c.Write(make([]byte, size))
		return err
	})}
	c := connect(t, serve(t, s, "unix://@stream-test-slow"))
	got := 0
	for b := make([]byte, 512<<10); ; time.Sleep(50 * time.Millisecond) { // slow, but never silent for long
		n, err := io.ReadFull(c, b)
		got += n
		if err != nil {
			break
		}
	}
	if got != size {
		t.Errorf("got %d bytes of %d", got, size)
	}
}

func TestDataNeverFollowsDisconnect(t *testing.T) {
	ev := newEvents()
	s := &Server{}
	s.events.Sink = ev
	s.SetLimits(Limits{})
	a, b := net.Pipe()
	defer b.Close()
	c := newConn(s, 1, a)
	c.moved(&c.in, 10)
	c.reportData(0)
	c.moved(&c.in, 10)
	c.finish(io.ErrUnexpectedEOF)
	c.reportData(0) // the sweeper, with a list of connections from before
	var kinds []stats.Kind
	for _, e := range ev.snapshot() {
		kinds = append(kinds, e.Kind)
	}
	if want := []stats.Kind{stats.Data, stats.Disconnect}; !slices.Equal(kinds, want) {
		t.Errorf("got %v, want %v", kinds, want)
	}
}

func TestAServerThatEndsTheConnectionIsItsCause(t *testing.T) {
	ev := newEvents()
	c := connect(t, serve(t, &Server{Handler: Daytime(), Sink: ev}, "0"))
	c.Write([]byte("unread by the server")) // must not make it reset the answer away
	if b, err := io.ReadAll(c); err != nil || len(b) == 0 {
		t.Errorf("got %q, %v", b, err)
	}
	c.Close()
	if end := ev.wait(t, "disconnect", kindIs(stats.Disconnect)); end.Cause != causeDone {
		t.Errorf("cause is %q, want %q", end.Cause, causeDone)
	}
}

func TestABroadcastLargerThanTheQueueReachesIdleClients(t *testing.T) {
	s := &Server{Handler: Discard(), Limits: Limits{WriteQueue: 1000}}
	ln := serve(t, s, "0")
	c := connect(t, ln)
	ids := waitForConns(t, s, 1)
	if n := s.Broadcast(bytes.Repeat([]byte("b"), 300_000)); n != 1 {
		t.Errorf("reached %d", n)
	}
	readFull(t, c, 300_000)
	for range 100_000 {
		if err := s.Send(ids[0], nil); err != nil {
			t.Fatal(err)
		}
	}
}

func waitForConns(t *testing.T, s *Server, n int) []uint64 {
	t.Helper()
	for deadline := time.Now().Add(10 * time.Second); ; time.Sleep(time.Millisecond) { // until the accept loop has come round
		if ids := s.Conns(); len(ids) == n {
			slices.Sort(ids)
			return ids
		}
		if time.Now().After(deadline) {
			t.Fatalf("%d connections, want %d", len(s.Conns()), n)
		}
	}
}

func TestMaxConnsHoldsOverSeveralListeners(t *testing.T) {
	s := &Server{Handler: Echo(), Limits: Limits{MaxConns: 1}}
	a, b := serve(t, s, "0"), serve(t, s, "0")
	first := connect(t, a)
	first.Write([]byte("1"))
	readFull(t, first, 1)
	second := connect(t, b)
	second.Write([]byte("2"))
	second.SetReadDeadline(time.Now().Add(50 * time.Millisecond))
	if _, err := second.Read(make([]byte, 1)); !isTimeout(err) {
		t.Errorf("the second was served: %v", err)
	}
	first.Close()
	second.SetReadDeadline(time.Now().Add(10 * time.Second))
	readFull(t, second, 1)
}

// upper is a connection whose Read is its own.
type upper struct{ *net.TCPConn }

func (u upper) Read(b []byte) (int, error) {
	n, err := u.TCPConn.Read(b)
	copy(b, bytes.ToUpper(b[:n]))
	return n, err
}

type upperListener struct{ net.Listener }

func (l upperListener) Accept() (net.Conn, error) {
	c, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	return upper{c.(*net.TCPConn)}, nil
}

func TestHandlersReadThroughWrappedConnections(t *testing.T) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	serveOn(t, &Server{Handler: Echo()}, upperListener{ln})
	c := connect(t, ln)
	c.Write([]byte("abc"))
	if got := readFull(t, c, 3); string(got) != "ABC" {
		t.Errorf("got %q", got)
	}
}

func TestClientNamesTheEndpointWhenItsContextEnds(t *testing.T) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ln.Close()
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	c := &Client{Endpoint: endpoint(t, ln.Addr().String())}
	err = c.Connect(ctx)
	if !errors.Is(err, context.DeadlineExceeded) || !strings.Contains(err.Error(), "connection refused") || !strings.Contains(err.Error(), ln.Addr().String()) {
		t.Errorf("got %v", err)
	}
}

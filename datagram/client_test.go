package datagram

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"syscall"
	"testing"
	"time"

	"github.com/fivetuple/fivetuple"
	"github.com/fivetuple/fivetuple/stats"
)

// received is what a client's OnData was called with.
type received struct {
	text string
	from fivetuple.Address
}

// connect makes a client that hands on what it is called back with.
func connect(t *testing.T, endpoint string) (c *Client, data chan received, errs chan error, sink *events) {
	t.Helper()
	data, errs, sink = make(chan received, 1000), make(chan error, 1000), newEvents()
	c = &Client{Endpoint: parse(t, endpoint), Service: "client", Sink: sink,
		OnData:  func(b []byte, from fivetuple.Address) { data <- received{string(b), from} },
		OnError: func(err error) { errs <- err },
	}
	if err := c.Connect(context.Background()); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c, data, errs, sink
}

func next[T any](t *testing.T, what string, c <-chan T) (v T) {
	t.Helper()
	select {
	case v = <-c:
	case <-time.After(patience):
		t.Fatalf("no %s after %v", what, patience)
	}
	return v
}

func TestClientSendsAndReceives(t *testing.T) {
	s := serve(t, &Server{Handler: Echo()}, "udp://127.0.0.1:0")
	c, data, _, sink := connect(t, udp(s))
	for _, text := range []string{"one", "", "three"} {
		if err := c.Send([]byte(text)); err != nil {
			t.Fatal(err)
		}
		if got, want := next(t, "datagram", data), (received{text, s.local}); got != want {
			t.Errorf("got %v, want %v", got, want)
		}
	}
	tuple := c.Tuple()
	if tuple.Remote != s.local || tuple.Protocol != fivetuple.UDP {
		t.Errorf("tuple: got %v", tuple)
	}
	if err := c.Connect(t.Context()); err == nil {
		t.Error("connect again: got no error")
	}
	if err := c.Close(); err != nil {
		t.Error(err)
	}
	next(t, "end", c.Done())
	wantError(t, c.Send(nil), ErrNotConnected, "send to udp://127.0.0.1:")
	e := sink.of(stats.Disconnect)[0]
	if e.Tuple != tuple || e.Service != "client" || e.Cause != "closed" || e.BytesIn != 8 || e.BytesOut != 8 || e.PacketsIn != 3 || e.PacketsOut != 3 || e.Duration <= 0 {
		t.Errorf("disconnect: got %+v", e)
	}
	if got := sink.of(stats.Connect); len(got) != 1 || got[0].Tuple != tuple {
		t.Errorf("connect events: got %+v", got)
	}
}

func TestClientEndsWithItsContext(t *testing.T) {
	s := serve(t, &Server{Handler: Echo()}, "udp://127.0.0.1:0")
	ctx, cancel := context.WithCancel(t.Context())
	c := &Client{Endpoint: parse(t, udp(s))}
	if err := c.Connect(ctx); err != nil {
		t.Fatal(err)
	}
	cancel()
	next(t, "end", c.Done())
	wantError(t, c.Send(nil), ErrNotConnected)
	if err := c.Close(); err != nil {
		t.Error(err)
	}
}

func TestClientReportsThatNobodyListens(t *testing.T) {
	for _, address := range []string{"127.0.0.1:9", "[::1]:9"} { // nobody in the tests' own network namespace
		c, data, errs, sink := connect(t, "udp://"+address)
		for range 3 { // the error is no end
			if err := c.Send([]byte("anybody there?")); err != nil {
				t.Fatal(err)
			}
			err := next(t, "error", errs)
			wantError(t, err, syscall.ECONNREFUSED, "udp "+address+": connection refused (ICMP port unreachable from", "nobody has the port open")
			var icmp *ICMPError
			if !errors.As(err, &icmp) || icmp.To != fivetuple.ParseAddress(address) || icmp.From != icmp.To.AddrPort.Addr() {
				t.Errorf("got %+v", icmp)
			}
		}
		s := serve(t, &Server{Handler: Echo()}, "udp://"+address)
		if err := c.Send([]byte("and now?")); err != nil {
			t.Fatal(err)
		}
		if got, want := next(t, "datagram", data), (received{"and now?", s.local}); got != want {
			t.Errorf("got %v, want %v", got, want)
		}
		if e := sink.of(stats.Error); len(e) != 3 || e[0].Tuple != c.Tuple() {
			t.Errorf("error events: got %+v, want 3", e)
		}
	}
}

// An ICMP error that waits at the socket fails the next system call, whatever
// it sends: the client must then send again.
func TestClientSendIsNotFailedByEarlierDatagrams(t *testing.T) {
	c, _, errs, _ := connect(t, "udp://127.0.0.1:9")
	for i := range 200 {
		if err := c.Send([]byte("x")); err != nil {
			t.Fatalf("send %d: %v", i, err)
		}
	}
	for range 150 {
		wantError(t, next(t, "error", errs), syscall.ECONNREFUSED)
	}
}

func TestDialedSocketReportsErrorsAndDeadlines(t *testing.T) {
	c := dial(t, "udp://127.0.0.1:9")
	send(t, c, "x")
	var p Packet
	wantError(t, c.Receive(&p), syscall.ECONNREFUSED, "nobody has the port open")
	c.SetReadDeadline(time.Unix(1, 0))
	wantError(t, c.Receive(&p), os.ErrDeadlineExceeded, c.String())
	c.Close()
	wantError(t, c.Receive(&p), net.ErrClosed)
	wantError(t, c.Send(nil), net.ErrClosed)
}

func TestConnectFails(t *testing.T) {
	sink := newEvents()
	c := &Client{Endpoint: parse(t, "udp://127.0.0.1:0"), Sink: sink}
	err := c.Connect(t.Context())
	if err == nil {
		t.Fatal("port 0: got no error")
	}
	if e := sink.of(stats.Error); len(e) != 1 || e[0].Err != err.Error() {
		t.Errorf("error events: got %+v, want %v", e, err)
	}
	next(t, "end", c.Done())
	if err := c.Close(); err != nil {
		t.Error(err)
	}
	c.Endpoint = parse(t, udp(listen(t, "udp://127.0.0.1:0")))
	if err := c.Connect(t.Context()); err != nil {
		t.Errorf("connect again: %v", err)
	}
	if err := c.Send([]byte("x")); err != nil {
		t.Error(err)
	}
	if err := c.Close(); err != nil {
		t.Error(err)
	}
	next(t, "end", c.Done())
}

func TestICMPErrorText(t *testing.T) {
	for _, tt := range []struct {
		err  ICMPError
		want string
	}{
		{ICMPError{Type: 3, Code: 1, Errno: syscall.EHOSTUNREACH}, "udp 10.0.0.9:9: no route to host (ICMP host unreachable)"},
		{ICMPError{Type: 3, Code: 4, Errno: syscall.EMSGSIZE, MTU: 1280}, "udp 10.0.0.9:9: message too long (ICMP fragmentation needed, the path takes packets of 1280 bytes)"},
		{ICMPError{Type: 3, Code: 99, Errno: syscall.EHOSTUNREACH}, "udp 10.0.0.9:9: no route to host (ICMP type 3 code 99)"},
	} {
		tt.err.To = fivetuple.ParseAddress("10.0.0.9:9")
		if got := fmt.Sprint(&tt.err); got != tt.want {
			t.Errorf("got %q, want %q", got, tt.want)
		}
	}
}

package datagram

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/fivetuple/fivetuple/stats"
)

func TestOneSocketServesThreeClients(t *testing.T) {
	sink := newEvents()
	s := &Server{Service: "echo", Handler: Echo(), Sink: sink}
	c := listen(t, "udp://127.0.0.1:0")
	done := make(chan error, 1)
	go func() { done <- s.Serve(c) }()
	var clients []*Conn
	for i := range 3 {
		client := dial(t, udp(c))
		clients = append(clients, client)
		for j := range i + 1 {
			text := fmt.Sprintf("client %d, datagram %d", i, j)
			send(t, client, text)
			if p := want(t, client, text); p.From != c.local {
				t.Errorf("answered from %v, want %v", p.From, c.local)
			}
		}
	}
	peers := s.Peers()
	for i, client := range clients {
		got := peers[2-i] // the one heard from last is the first
		if got.Tuple.Remote != client.local || got.Tuple.Local != c.local || got.ID != uint64(i+1) ||
			got.PacketsIn != uint64(i+1) || got.PacketsOut != uint64(i+1) || got.BytesIn != uint64(20*(i+1)) || got.BytesOut != got.BytesIn {
			t.Errorf("peer of client %d at %v: got %+v", i, client.local, got)
		}
	}
	if err := s.Shutdown(t.Context()); err != nil {
		t.Errorf("shutdown: %v", err)
	}
	if err := <-done; !errors.Is(err, ErrServerClosed) {
		t.Errorf("serve: got %v, want %v", err, ErrServerClosed)
	}
	for kind, want := range map[stats.Kind]int{stats.Listen: 1, stats.Accept: 3, stats.Disconnect: 3, stats.Error: 0, stats.Close: 1} {
		if got := sink.of(kind); len(got) != want {
			t.Errorf("%v events: got %d, want %d: %+v", kind, len(got), want, got)
		}
	}
	for _, e := range sink.of(stats.Disconnect) {
		if e.Cause != "closed" || e.Service != "echo" || e.PacketsIn != e.Conn || e.PacketsOut != e.Conn || e.BytesIn != 20*e.Conn || e.BytesOut != 20*e.Conn {
			t.Errorf("disconnect: got %+v", e)
		}
	}
	if err := s.Serve(listen(t, "udp://127.0.0.1:0")); !errors.Is(err, ErrServerClosed) {
		t.Errorf("serve after shutdown: got %v, want %v", err, ErrServerClosed)
	}
}

func TestDatagramsOfEverySizeComeBackWhole(t *testing.T) {
	for _, tt := range []struct {
		endpoint string
		largest  int
	}{{"udp://127.0.0.1:0", 65507}, {"udp://[::1]:0", MaxSize}} {
		c := serve(t, &Server{Handler: Echo()}, tt.endpoint)
		client := dial(t, udp(c))
		for _, size := range []int{0, 1, 512, 1500, 9000, tt.largest} {
			send(t, client, string(bytes.Repeat([]byte{'x'}, size)))
			var p Packet
			if err := client.Receive(&p); err != nil || len(p.Data) != size {
				t.Errorf("%s: got %d bytes, %v, want %d", tt.endpoint, len(p.Data), err, size)
			}
		}
		err := client.Send(make([]byte, tt.largest+1))
		if err == nil || !strings.Contains(err.Error(), "at most 65,507 over IPv4") {
			t.Errorf("%s: send of %d bytes: got %v, want an error with the limit", tt.endpoint, tt.largest+1, err)
		}
		send(t, client, "still there")
		want(t, client, "still there")
	}
}

func TestTruncationIsAnError(t *testing.T) {
	c := listen(t, "udp://127.0.0.1:0")
	client := dial(t, udp(c))
	send(t, client, "0123456789")
	send(t, client, "next")
	p := Packet{Data: make([]byte, 4)}
	err := c.Receive(&p)
	wantError(t, err, ErrTruncated, "to 4 bytes", client.local.String())
	if got := string(p.Data); got != "0123" {
		t.Errorf("got %q, want what fits", got)
	}
	if err := c.Receive(&p); err != nil || string(p.Data) != "next" {
		t.Errorf("the next one: got %q, %v", p.Data, err)
	}
}

func TestSendToPeersAndOthers(t *testing.T) {
	s := &Server{Handler: Discard(), Sink: newEvents()}
	c := serve(t, s, "udp://127.0.0.1:0")
	a, b, stranger := dial(t, udp(c)), dial(t, udp(c)), dial(t, udp(c))
	send(t, a, "hello")
	send(t, b, "hello")
	s.Sink.(*events).wait(t, stats.Accept, 2)
	if n := s.Broadcast([]byte("to all")); n != 2 {
		t.Errorf("broadcast: got %d, want 2", n)
	}
	want(t, a, "to all")
	want(t, b, "to all")
	if err := s.SendTo(a.local, []byte("to a")); err != nil {
		t.Error(err)
	}
	want(t, a, "to a")
	if err := s.Send(s.Peers()[1].ID, []byte("to a by id")); err != nil {
		t.Error(err)
	}
	want(t, a, "to a by id")
	if err := s.SendTo(stranger.local, []byte("to a stranger")); err != nil {
		t.Error(err)
	}
	want(t, stranger, "to a stranger")
	wantError(t, s.Send(99, nil), ErrNoPeer, "peer 99")
	six := dial(t, udp(listen(t, "udp://[::1]:0")))
	wantError(t, s.SendTo(six.local, nil), ErrNoSocket, six.local.String())
	for _, p := range s.Peers() {
		if want := map[bool]uint64{true: 3, false: 1}[p.Tuple.Remote == a.local]; p.PacketsOut != want {
			t.Errorf("sent to %v: got %d, want %d", p.Tuple.Remote, p.PacketsOut, want)
		}
	}
}

func TestServersOfOneServiceShareIDs(t *testing.T) {
	var ids atomic.Uint64
	for want := range uint64(3) {
		s := &Server{Handler: Echo(), Sink: newEvents(), IDs: &ids}
		send(t, dial(t, udp(serve(t, s, "udp://127.0.0.1:0"))), "x")
		if e := s.Sink.(*events).wait(t, stats.Accept, 1)[0]; e.Conn != want+1 {
			t.Errorf("peer of server %d: got id %d, want %d", want, e.Conn, want+1)
		}
	}
}

func TestSendToTakesASocketOfTheFamily(t *testing.T) {
	four, six := dial(t, udp(listen(t, "udp://127.0.0.1:0"))), dial(t, udp(listen(t, "udp://[::1]:0")))
	for _, tt := range []struct {
		listen, options string
		four            bool
	}{{"udp6://*:0", "", false}, {"udp://*:0", "", true}, {"udp://*:0", "v6only=on", false}, {"udp6://*:0", "v6only=off", true}} {
		c, err := ListenConfig{Options: settings(t, tt.options)}.Listen(t.Context(), parse(t, tt.listen))
		if err != nil {
			t.Fatal(err)
		}
		s := &Server{Handler: Discard(), Sink: newEvents()}
		serveOn(t, s, c)
		s.Sink.(*events).wait(t, stats.Listen, 1)
		if err := s.SendTo(six.local, []byte("x")); err != nil {
			t.Errorf("%s %s: %v", tt.listen, tt.options, err)
		}
		if err := s.SendTo(four.local, []byte("x")); tt.four != (err == nil) || !tt.four && !errors.Is(err, ErrNoSocket) {
			t.Errorf("%s %s: IPv4: got %v, want it sent: %v", tt.listen, tt.options, err, tt.four)
		}
		serveOn(t, s, listen(t, "udp4://*:0"))
		s.Sink.(*events).wait(t, stats.Listen, 2)
		if err := s.SendTo(four.local, []byte("x")); err != nil {
			t.Errorf("%s %s and udp4: %v", tt.listen, tt.options, err)
		}
	}
}

func TestSilentPeerTimesOut(t *testing.T) {
	sink := newEvents()
	s := &Server{Handler: Echo(), Sink: sink, Limits: Limits{PeerTimeout: 50 * time.Millisecond}}
	client := dial(t, udp(serve(t, s, "udp://127.0.0.1:0")))
	send(t, client, "a")
	want(t, client, "a")
	got := sink.wait(t, stats.Disconnect, 1)[0]
	if got.Cause != "idle timeout" || got.Tuple.Remote != client.local || got.PacketsIn != 1 || got.PacketsOut != 1 || got.Conn != 1 {
		t.Errorf("got %+v", got)
	}
	if peers := s.Peers(); len(peers) != 0 {
		t.Errorf("peers: got %v, want none", peers)
	}
	send(t, client, "b")
	if e := sink.wait(t, stats.Accept, 2)[1]; e.Conn != 2 || e.Tuple.Remote != client.local {
		t.Errorf("accept of one who came back: got %+v", e)
	}
	want(t, client, "b")
}

func TestHandlerErrorsAreCountedAndNotTheEnd(t *testing.T) {
	sink := newEvents()
	failed := make(chan struct{}, 100)
	s := &Server{Sink: sink, Handler: HandlerFunc(func(p *Packet) error {
		defer func() { failed <- struct{}{} }()
		return errors.New("no luck with " + string(p.Data))
	})}
	client := dial(t, udp(serve(t, s, "udp://127.0.0.1:0")))
	for range 30 {
		send(t, client, "x")
		<-failed
	}
	if e := sink.of(stats.Error)[0]; e.Err != "no luck with x" || e.Tuple.Remote != client.local {
		t.Errorf("got %+v", e)
	}
	recorded, counted := 0, 0
	eventually(t, "all errors are recorded or counted", func() bool {
		recorded, counted = 0, 0
		for _, e := range sink.of(stats.Error) {
			var n int
			if _, err := fmt.Sscanf(e.Err, "%d more errors", &n); err == nil {
				counted += n
			} else {
				recorded++
			}
		}
		return recorded+counted == 30
	})
	if counted == 0 {
		t.Errorf("recorded all %d errors, want most of them counted", recorded)
	}
}

func TestServeReturnsWhenTheSocketIsClosedByAnother(t *testing.T) {
	s := &Server{Handler: Echo()}
	c := listen(t, "udp://127.0.0.1:0")
	done := make(chan error)
	go func() { done <- s.Serve(c) }()
	c.Close()
	if err := <-done; !errors.Is(err, net.ErrClosed) {
		t.Errorf("got %v, want %v", err, net.ErrClosed)
	}
	if err := s.Shutdown(t.Context()); err != nil {
		t.Error(err)
	}
}

func TestShutdownWaitsForTheHandler(t *testing.T) {
	entered, release := make(chan struct{}), make(chan struct{})
	s := &Server{Handler: HandlerFunc(func(p *Packet) error {
		close(entered)
		<-release
		return p.Reply([]byte("late"))
	})}
	c := listen(t, "udp://127.0.0.1:0")
	served, down := make(chan error, 1), make(chan error, 1)
	go func() { served <- s.Serve(c) }()
	client := dial(t, udp(c))
	send(t, client, "x")
	<-entered
	go func() { down <- s.Shutdown(context.Background()) }()
	eventually(t, "the server is shutting down", s.isClosed)
	select {
	case err := <-down:
		t.Fatalf("shutdown returned %v while the handler ran", err)
	default:
	}
	close(release)
	want(t, client, "late")
	if err := <-down; err != nil {
		t.Errorf("shutdown: %v", err)
	}
	<-served
}

func TestShutdownClosesTheSocketUnderABusyHandler(t *testing.T) {
	entered, release := make(chan struct{}), make(chan struct{})
	replied := make(chan error, 1)
	s := &Server{Handler: HandlerFunc(func(p *Packet) error {
		close(entered)
		<-release
		replied <- p.Reply([]byte("too late"))
		return nil
	})}
	c := listen(t, "udp://127.0.0.1:0")
	served := make(chan error, 1)
	go func() { served <- s.Serve(c) }()
	send(t, dial(t, udp(c)), "x")
	<-entered
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	down := make(chan error)
	go func() { down <- s.Shutdown(ctx) }()
	eventually(t, "the socket is closed", func() bool { return closed(c) })
	close(release)
	if err := <-replied; !errors.Is(err, net.ErrClosed) {
		t.Errorf("reply: got %v, want %v", err, net.ErrClosed)
	}
	if err := <-down; !errors.Is(err, context.Canceled) {
		t.Errorf("shutdown: got %v, want %v", err, context.Canceled)
	}
	<-served
}

func closed(c *Conn) bool { return errors.Is(c.SetWriteDeadline(time.Time{}), net.ErrClosed) }

func TestEchoOfAKnownPeerAllocatesNothing(t *testing.T) {
	for _, endpoint := range []string{"udp://127.0.0.1:0", "udp://[::1]:0", "udp://*:0", "unixgram://@allocs"} {
		c := serve(t, &Server{Handler: Echo(), Sink: stats.SinkFunc(func(stats.Event) {})}, endpoint)
		roundTrip := roundTrips(t, c)
		roundTrip()
		if got := testing.AllocsPerRun(500, roundTrip); got != 0 {
			t.Errorf("%s: got %v allocations for a datagram, want 0", endpoint, got)
		}
	}
}

// roundTrips returns a function that has one datagram echoed and allocates nothing itself.
func roundTrips(t testing.TB, c *Conn) func() {
	endpoint := endpointOf(c)
	if c.local.AddrPort.Addr().IsUnspecified() { // IPv4 to a dual-stack socket
		endpoint = fmt.Sprintf("udp://127.0.0.1:%d", c.local.AddrPort.Port())
	}
	client := dial(t, endpoint)
	client.SetReadDeadline(time.Time{})
	in, out := make([]byte, 128), make([]byte, 64)
	return func() {
		if _, err := client.Write(out); err != nil {
			t.Fatal(err)
		}
		if n, err := client.Read(in); n != len(out) {
			t.Fatal(n, err)
		}
	}
}

func BenchmarkEcho(b *testing.B) {
	for _, endpoint := range []string{"udp://127.0.0.1:0", "unixgram://@bench"} {
		network, _, _ := strings.Cut(endpoint, ":")
		b.Run(network, func(b *testing.B) {
			roundTrip := roundTrips(b, serve(b, &Server{Handler: Echo()}, endpoint))
			roundTrip()
			b.ReportAllocs()
			for b.Loop() {
				roundTrip()
			}
		})
	}
}

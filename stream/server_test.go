package stream

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"go.uber.org/goleak"
	"golang.org/x/net/nettest"

	"github.com/fivetuple/fivetuple"
	"github.com/fivetuple/fivetuple/internal/lab"
	"github.com/fivetuple/fivetuple/secure"
	"github.com/fivetuple/fivetuple/sockopt"
	"github.com/fivetuple/fivetuple/stats"
)

func TestMain(m *testing.M) {
	if f := children[os.Getenv("STREAM_TEST_CHILD")]; f != nil {
		f()
		return
	}
	lab.Enter() // where no other program takes ports
	goleak.VerifyTestMain(m)
}

// children are what the test binary does when a test has started it again.
var children = map[string]func(){}

// events collects what a server says happened.
type events struct {
	mu  sync.Mutex
	all []stats.Event
	new chan struct{}
}

func newEvents() *events { return &events{new: make(chan struct{}, 1)} }

func (e *events) Record(ev stats.Event) {
	e.mu.Lock()
	e.all = append(e.all, ev)
	e.mu.Unlock()
	select {
	case e.new <- struct{}{}:
	default:
	}
}

// wait returns the first event of which is true, waiting up to ten seconds for it.
func (e *events) wait(t *testing.T, what string, is func(stats.Event) bool) stats.Event {
	t.Helper()
	late := time.After(10 * time.Second)
	for {
		e.mu.Lock()
		i := slices.IndexFunc(e.all, is)
		if i >= 0 {
			defer e.mu.Unlock()
			return e.all[i]
		}
		e.mu.Unlock()
		select {
		case <-e.new:
		case <-late:
			t.Fatalf("no event %q within ten seconds; got %+v", what, e.all)
		}
	}
}

func (e *events) snapshot() []stats.Event {
	e.mu.Lock()
	defer e.mu.Unlock()
	return slices.Clone(e.all)
}

func (e *events) clear() {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.all = nil
}

func kindIs(k stats.Kind) func(stats.Event) bool {
	return func(e stats.Event) bool { return e.Kind == k }
}

func endpoint(t testing.TB, s string) fivetuple.Endpoint {
	t.Helper()
	e, err := fivetuple.ParseEndpoint(s)
	if err != nil {
		t.Fatal(err)
	}
	return e
}

// serve starts s on an endpoint and shuts it down when the test ends.
func serve(t testing.TB, s *Server, where string) net.Listener {
	t.Helper()
	ln, err := ListenConfig{}.Listen(t.Context(), endpoint(t, where))
	if err != nil {
		t.Fatal(err)
	}
	serveOn(t, s, ln)
	return ln
}

func serveOn(t testing.TB, s *Server, ln net.Listener) {
	served := make(chan error, 1)
	go func() { served <- s.Serve(ln) }()
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), time.Second)
		defer cancel()
		s.Shutdown(ctx)
		if err := <-served; !errors.Is(err, ErrServerClosed) {
			t.Errorf("Serve returned %v", err)
		}
	})
}

func connect(t testing.TB, ln net.Listener) net.Conn {
	t.Helper()
	c, err := net.Dial(ln.Addr().Network(), ln.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	c.SetDeadline(time.Now().Add(20 * time.Second))
	return c
}

func readFull(t testing.TB, c net.Conn, n int) []byte {
	t.Helper()
	b := make([]byte, n)
	if _, err := io.ReadFull(c, b); err != nil {
		t.Fatal(err)
	}
	return b
}

func TestEchoOverEveryTransportReturnsTheBytesAndThenEOF(t *testing.T) {
	dir := t.TempDir()
	for _, where := range []string{"0", "tcp6://0", "tcp4://0", "unix://" + dir + "/e", "unix://@stream-test-echo"} {
		t.Run(where, func(t *testing.T) {
			ev := newEvents()
			ln := serve(t, &Server{Service: "e", Handler: Echo(), Sink: ev}, where)
			c := connect(t, ln)
			sent := make([]byte, 300_000)
			rand.NewChaCha8([32]byte{1}).Read(sent)
			go func() {
				for b := range slices.Chunk(sent, 70_001) {
					c.Write(b)
				}
				c.(interface{ CloseWrite() error }).CloseWrite()
			}()
			got, err := io.ReadAll(c)
			if err != nil || !bytes.Equal(got, sent) {
				t.Fatalf("got %d bytes, %v, want the %d sent", len(got), err, len(sent))
			}
			end := ev.wait(t, "disconnect", kindIs(stats.Disconnect))
			if end.Cause != causePeerClosed || end.BytesIn != 300_000 || end.BytesOut != 300_000 || end.Service != "e" || end.Conn != 1 || end.Err != "" {
				t.Errorf("disconnect event is %+v", end)
			}
			if tcp := strings.HasPrefix(ln.Addr().Network(), "tcp"); tcp != (end.TCP != nil && end.TCP.MSS > 0) {
				t.Errorf("final TCP_INFO is %+v", end.TCP)
			}
			if want := fivetuple.AddressOf(ln.Addr()); end.Tuple.Local != want {
				t.Errorf("local end is %v, want %v", end.Tuple.Local, want)
			}
		})
	}
}

func TestCloseWriteIsTheEndForThePeerOnly(t *testing.T) {
	for _, where := range []string{"0", "tls://0", "unix://@stream-test-half", "seqpacket://@stream-test-half"} {
		t.Run(where, func(t *testing.T) {
			rest, socket := make(chan string, 1), make(chan net.Conn, 1)
			s := &Server{Handler: HandlerFunc(func(_ context.Context, c *Conn) error {
				fmt.Fprint(c, "bye")
				if err := c.CloseWrite(); err != nil {
					t.Error(err)
				}
				b, _ := io.ReadAll(c)
				rest <- string(b)
				socket <- secure.NetConn(c)
				return nil
			})}
			if strings.HasPrefix(where, "tls") {
				s.TLS = selfSigned(t)
			}
			c := connect(t, serve(t, s, where))
			if s.TLS != nil {
				c = tls.Client(c, trusting())
			}
			if b, err := io.ReadAll(c); string(b) != "bye" || err != nil {
				t.Errorf("client got %q, %v", b, err)
			}
			fmt.Fprint(c, "not yet")
			c.(interface{ CloseWrite() error }).CloseWrite()
			if got := <-rest; got != "not yet" {
				t.Errorf("then the server got %q", got)
			}
			below := <-socket
			if _, ok := below.(syscall.Conn); !ok {
				t.Errorf("the socket below is a %T", below)
			}
		})
	}
}

func TestEventsOfOneConnectionComeInOrder(t *testing.T) {
	ev := newEvents()
	s := &Server{Handler: Discard(), Sink: ev}
	ln, err := ListenConfig{}.Listen(t.Context(), endpoint(t, "0"))
	if err != nil {
		t.Fatal(err)
	}
	served := make(chan error)
	go func() { served <- s.Serve(ln) }()
	c := connect(t, ln)
	c.Close()
	ev.wait(t, "disconnect", kindIs(stats.Disconnect))
	s.Shutdown(t.Context())
	if err := <-served; err != ErrServerClosed {
		t.Errorf("Serve returned %v", err)
	}
	var kinds []stats.Kind
	for _, e := range ev.snapshot() {
		kinds = append(kinds, e.Kind)
		if e.Time.IsZero() {
			t.Errorf("event without a time: %+v", e)
		}
	}
	if want := []stats.Kind{stats.Listen, stats.Accept, stats.Disconnect, stats.Close}; !slices.Equal(kinds, want) {
		t.Errorf("got %v, want %v", kinds, want)
	}
}

func TestPeerResetIsItsCause(t *testing.T) {
	ev := newEvents()
	ln := serve(t, &Server{Handler: Echo(), Sink: ev}, "0")
	c := connect(t, ln)
	c.Write([]byte("x"))
	readFull(t, c, 1)
	c.(*net.TCPConn).SetLinger(0)
	c.Close()
	if end := ev.wait(t, "disconnect", kindIs(stats.Disconnect)); end.Cause != causePeerReset || end.Err == "" {
		t.Errorf("got %+v", end)
	}
}

func TestBroadcastReachesAllAndDropsOnlyTheClientThatNeverReads(t *testing.T) {
	ev := newEvents()
	s := &Server{Handler: Discard(), Sink: ev, Limits: Limits{WriteQueue: 1 << 20}}
	ln := serve(t, s, "0")
	stuck := connect(t, ln)
	stuck.(*net.TCPConn).SetReadBuffer(4096)
	readers := []net.Conn{connect(t, ln), connect(t, ln)}
	for range 3 {
		ev.wait(t, "three accepts", func(e stats.Event) bool { return e.Kind == stats.Accept && e.Conn == 3 })
	}
	block := bytes.Repeat([]byte("b"), 256<<10)
	const rounds = 200 // 50 MiB: more than the queue and the kernel's buffers hold
	var wg sync.WaitGroup
	got := make([]chan struct{}, len(readers))
	for i, c := range readers {
		got[i] = make(chan struct{}, rounds)
		wg.Go(func() {
			for range rounds {
				readFull(t, c, len(block))
				got[i] <- struct{}{}
			}
		})
	}
	for range rounds {
		s.Broadcast(block)
		for i := range readers {
			<-got[i]
		}
	}
	wg.Wait()
	end := ev.wait(t, "drop", kindIs(stats.Disconnect))
	if end.Cause != causeSlow || end.Tuple.Remote != fivetuple.AddressOf(stuck.LocalAddr()) {
		t.Errorf("got %+v, want the stuck client dropped as %q", end, causeSlow)
	}
	if n := len(s.Conns()); n != 2 {
		t.Errorf("%d connections left, want 2", n)
	}
}

func TestSendGoesToOne(t *testing.T) {
	ev := newEvents()
	s := &Server{Handler: Discard(), Sink: ev}
	ln := serve(t, s, "0")
	a, b := connect(t, ln), connect(t, ln)
	accepted := ev.wait(t, "accept of b", func(e stats.Event) bool {
		return e.Kind == stats.Accept && e.Tuple.Remote == fivetuple.AddressOf(b.LocalAddr())
	})
	if err := s.Send(accepted.Conn, []byte("for b")); err != nil {
		t.Fatal(err)
	}
	if got := readFull(t, b, 5); string(got) != "for b" {
		t.Errorf("got %q", got)
	}
	s.Broadcast([]byte("all"))
	if got := readFull(t, a, 3); string(got) != "all" {
		t.Errorf("a got %q, want only the broadcast", got)
	}
	if err := s.Send(99, []byte("x")); !errors.Is(err, ErrNoConn) {
		t.Errorf("sending to nobody: %v", err)
	}
}

func TestClientsThatNeverReadOrDripDoNotHoldUpOthers(t *testing.T) {
	ln := serve(t, &Server{Handler: Echo()}, "0")
	for range 20 {
		stuck := connect(t, ln)
		go func() { // fills both directions until it blocks
			b := make([]byte, 1<<20)
			for {
				if _, err := stuck.Write(b); err != nil {
					return
				}
			}
		}()
		drip := connect(t, ln)
		drip.Write([]byte("d"))
	}
	c := connect(t, ln)
	for range 100 {
		c.Write([]byte("hello"))
		if got := readFull(t, c, 5); string(got) != "hello" {
			t.Fatalf("got %q", got)
		}
	}
}

func TestMaxConnsLetsTheNextWaitInTheBacklog(t *testing.T) {
	ev := newEvents()
	ln := serve(t, &Server{Handler: Echo(), Sink: ev, Limits: Limits{MaxConns: 1}}, "0")
	first := connect(t, ln)
	first.Write([]byte("1"))
	readFull(t, first, 1)
	second := connect(t, ln)
	second.Write([]byte("2"))
	second.SetReadDeadline(time.Now().Add(50 * time.Millisecond))
	if n, err := second.Read(make([]byte, 1)); !isTimeout(err) {
		t.Fatalf("the second was served: %d bytes, %v", n, err)
	}
	if said := ev.wait(t, "full", kindIs(stats.Error)); !strings.Contains(said.Err, "full with 1 connections") {
		t.Errorf("got %+v", said)
	}
	first.Close()
	second.SetReadDeadline(time.Now().Add(10 * time.Second))
	readFull(t, second, 1)
}

func TestMaxPerSourceResetsTheNextFromThatSourceOnly(t *testing.T) {
	ev := newEvents()
	ln := serve(t, &Server{Handler: Echo(), Sink: ev, Limits: Limits{MaxPerSource: 1}}, ":0")
	_, port, _ := net.SplitHostPort(ln.Addr().String())
	from := func(ip string) net.Conn {
		d := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP(ip)}}
		c, err := d.Dial("tcp", "127.0.0.1:"+port)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { c.Close() })
		c.SetDeadline(time.Now().Add(10 * time.Second))
		return c
	}
	first := from("127.0.0.1")
	first.Write([]byte("1"))
	readFull(t, first, 1)
	if err := answer("127.0.0.1:"+port, "127.0.0.1"); !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("second connection from the source: %v, want a reset", err)
	}
	refused := ev.wait(t, "refusal", kindIs(stats.Error))
	if !strings.Contains(refused.Err, "refused: more than 1 connections from 127.0.0.1, the limit per source") {
		t.Errorf("got %+v", refused)
	}
	other := from("127.0.0.2")
	other.Write([]byte("2"))
	readFull(t, other, 1)
}

// answer connects from an address and returns what the first read fails with.
// A server that resets at once may be seen by connect already.
func answer(to, from string) error {
	d := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP(from)}}
	c, err := d.Dial("tcp", to)
	if err != nil {
		return err
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(10 * time.Second))
	_, err = c.Read(make([]byte, 1))
	return err
}

func TestDeniedSourcesAreReset(t *testing.T) {
	ln := serve(t, &Server{Handler: Echo(), Limits: Limits{Deny: []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8")}}}, "0")
	if err := answer(ln.Addr().String(), "127.0.0.1"); !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("got %v, want a reset", err)
	}
}

func TestShutdownClosesQuietConnectionsAndResetsBusyOnes(t *testing.T) {
	ev := newEvents()
	s := &Server{Handler: Echo(), Sink: ev}
	ln, err := ListenConfig{}.Listen(t.Context(), endpoint(t, "0"))
	if err != nil {
		t.Fatal(err)
	}
	served := make(chan error, 1)
	go func() { served <- s.Serve(ln) }()
	quiet, busy := connect(t, ln), connect(t, ln)
	quiet.Write([]byte("q"))
	readFull(t, quiet, 1)
	var wg sync.WaitGroup
	wg.Go(func() { // and reads nothing, so that the echo cannot get rid of it
		for {
			if _, err := busy.Write(make([]byte, chunkSize)); err != nil {
				return
			}
		}
	})
	waitFor(t, "the echo is stuck", func() bool { return slices.ContainsFunc(s.snapshot(), (*Conn).sending) })
	ctx, cancel := context.WithTimeout(t.Context(), time.Second)
	defer cancel()
	if err := s.Shutdown(ctx); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("Shutdown with a busy connection returned %v", err)
	}
	wg.Wait()
	<-served
	if _, err := quiet.Read(make([]byte, 1)); err != io.EOF {
		t.Errorf("the quiet client saw %v, want EOF", err)
	}
	causes := map[string]int{}
	for _, e := range ev.snapshot() {
		if e.Kind == stats.Disconnect {
			causes[e.Cause]++
		}
	}
	if causes[causeDrained] != 1 || causes[causeShutdown] != 1 {
		t.Errorf("got causes %v", causes)
	}
	if _, err := net.Dial("tcp", ln.Addr().String()); !errors.Is(err, syscall.ECONNREFUSED) {
		t.Errorf("the port still answers: %v", err)
	}
	if err := s.Shutdown(t.Context()); err != nil {
		t.Errorf("second Shutdown: %v", err)
	}
}

func TestOptionsHoldOnAcceptedConnections(t *testing.T) {
	var opts sockopt.Settings
	if err := opts.Set("nodelay=off,keepalive=31s/7s/4,rcvbuf=64KiB"); err != nil {
		t.Fatal(err)
	}
	ln, err := ListenConfig{Options: opts}.Listen(t.Context(), endpoint(t, "0"))
	if err != nil {
		t.Fatal(err)
	}
	got := make(chan string, 1)
	serveOn(t, &Server{Options: opts, Handler: HandlerFunc(func(_ context.Context, c *Conn) error {
		raw, err := c.Conn.(*net.TCPConn).SyscallConn()
		if err != nil {
			return err
		}
		return raw.Control(func(fd uintptr) {
			var s []string
			for _, name := range []string{"nodelay", "keepalive", "rcvbuf"} {
				v, err := sockopt.Get(int(fd), name)
				s = append(s, fmt.Sprint(v, err))
			}
			got <- strings.Join(s, " ")
		})
	})}, ln)
	connect(t, ln)
	if g, want := <-got, "nodelay=off <nil> keepalive=31s/7s/4 <nil> rcvbuf=128KiB <nil>"; g != want {
		t.Errorf("got %s, want %s", g, want)
	}
}

func TestConnIsANetConn(t *testing.T) {
	nettest.TestConn(t, func() (c1, c2 net.Conn, stop func(), err error) {
		ln, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			return nil, nil, nil, err
		}
		conns, done := make(chan *Conn), make(chan struct{})
		s := &Server{Handler: HandlerFunc(func(_ context.Context, c *Conn) error {
			conns <- c
			<-done
			return nil
		})}
		served := make(chan error)
		go func() { served <- s.Serve(ln) }()
		c2, err = net.Dial("tcp", ln.Addr().String())
		if err != nil {
			return nil, nil, nil, err
		}
		c1 = <-conns
		return c1, c2, func() {
			close(done)
			c1.Close()
			c2.Close()
			s.Shutdown(context.Background())
			<-served
		}, nil
	})
}

func TestClosingTheListenerEndsServeButNotItsConnections(t *testing.T) {
	s := &Server{Handler: Echo()}
	ln, err := ListenConfig{}.Listen(t.Context(), endpoint(t, "0"))
	if err != nil {
		t.Fatal(err)
	}
	served := make(chan error, 1)
	go func() { served <- s.Serve(ln) }()
	c := connect(t, ln)
	c.Write([]byte("1"))
	readFull(t, c, 1)
	ln.Close()
	if err := <-served; !errors.Is(err, net.ErrClosed) {
		t.Errorf("Serve returned %v", err)
	}
	c.Write([]byte("2"))
	readFull(t, c, 1)
	if err := s.Shutdown(t.Context()); err != nil {
		t.Error(err)
	}
}

func TestListenRefusesWhatItCannotSpeak(t *testing.T) {
	for _, where := range []string{"udp://0", "unixgram:///x", "-", "8000-8001", "*%lo:0", "127.0.0.1%lo:0"} {
		if ln, err := (ListenConfig{}).Listen(t.Context(), endpoint(t, where)); err == nil {
			ln.Close()
			t.Errorf("listened on %s", where)
		}
	}
}

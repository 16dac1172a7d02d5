package relay

import (
	"bufio"
	"bytes"
	"context"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"io"
	"net"
	"net/netip"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/fivetuple/fivetuple"
	"github.com/fivetuple/fivetuple/internal/proxyheader"
	"github.com/fivetuple/fivetuple/secure"
	"github.com/fivetuple/fivetuple/stats"
	"github.com/fivetuple/fivetuple/stream"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// events collects what is recorded.
type events struct {
	mu  sync.Mutex
	all []stats.Event
}

func (e *events) Record(ev stats.Event) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.all = append(e.all, ev)
}

func (e *events) of(k stats.Kind) (got []stats.Event) {
	e.mu.Lock()
	defer e.mu.Unlock()
	for _, ev := range e.all {
		if ev.Kind == k {
			got = append(got, ev)
		}
	}
	return got
}

// relayed serves a rule with goroutines and returns where.
func relayed(t *testing.T, c Config, srv *stream.Server, sink stats.Sink) string {
	t.Helper()
	r, err := New(c, Options{Service: "test", Sink: sink})
	if err != nil {
		t.Fatal(err)
	}
	if srv == nil {
		srv = &stream.Server{}
	}
	srv.Handler, srv.Sink = r, sink
	ln, err := stream.ListenConfig{}.Listen(t.Context(), fivetuple.MustParseEndpoint("127.0.0.1:0"))
	if err != nil {
		t.Fatal(err)
	}
	var served sync.WaitGroup
	served.Go(func() { srv.Serve(ln) })
	t.Cleanup(func() {
		ctx, cancel := context.WithCancel(context.Background())
		cancel()
		srv.Shutdown(ctx)
		served.Wait()
		r.Close()
	})
	return ln.Addr().String()
}

// target accepts connections on a port of its own and hands each to serve.
func target(t *testing.T, serve func(c *net.TCPConn)) fivetuple.Endpoint {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var served sync.WaitGroup
	served.Go(func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			served.Go(func() {
				defer c.Close()
				serve(c.(*net.TCPConn))
			})
		}
	})
	t.Cleanup(func() { ln.Close(); served.Wait() })
	return endpoints(t, ln.Addr().String())[0]
}

// answerAtEnd answers what it got, once it has all.
func answerAtEnd(c *net.TCPConn) {
	b, err := io.ReadAll(c)
	if err == nil {
		c.Write(append([]byte("got "), b...))
	}
}

func connect(t *testing.T, addr string) *net.TCPConn {
	t.Helper()
	c, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	c.SetDeadline(time.Now().Add(20 * time.Second))
	return c.(*net.TCPConn)
}

// ask sends b and end of file, and returns the answer.
func ask(t *testing.T, c interface {
	net.Conn
	CloseWrite() error
}, b []byte) ([]byte, error) {
	t.Helper()
	wrote := make(chan error, 1)
	go func() {
		_, err := c.Write(b)
		c.CloseWrite()
		wrote <- err
	}()
	got, err := io.ReadAll(c)
	if werr := <-wrote; err == nil {
		err = werr // a reset is told once, to whoever comes first
	}
	return got, err
}

// call connects and asks. That may fail at once, where the relay resets it.
func call(t *testing.T, addr string, b []byte) ([]byte, error) {
	t.Helper()
	c, err := net.Dial("tcp", addr)
	if err != nil {
		return nil, err
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(20 * time.Second))
	return ask(t, c.(*net.TCPConn), b)
}

func TestTheAnswerAfterTheClientsEndArrives(t *testing.T) {
	to := target(t, answerAtEnd)
	addr := relayed(t, Config{Targets: []fivetuple.Endpoint{to}}, nil, nil)
	want := make([]byte, 3<<20)
	rand.Read(want)
	got, err := ask(t, connect(t, addr), want)
	if err != nil || !bytes.Equal(got, append([]byte("got "), want...)) {
		t.Fatalf("got %d bytes, %v", len(got), err)
	}
}

func TestTLSEndsAtTheRelay(t *testing.T) {
	to := target(t, answerAtEnd)
	config, roots := certificate(t)
	addr := relayed(t, Config{Targets: []fivetuple.Endpoint{to}}, &stream.Server{TLS: config}, nil)
	c, err := secure.Connect(t.Context(), connect(t, addr), &tls.Config{RootCAs: roots, ServerName: "localhost"})
	if err != nil {
		t.Fatal(err)
	}
	if got, err := ask(t, c, []byte("hello")); err != nil || string(got) != "got hello" {
		t.Errorf("got %q, %v", got, err)
	}
}

// certificate is a self-signed one for localhost, and the roots that trust it.
func certificate(t *testing.T) (*tls.Config, *x509.CertPool) {
	t.Helper()
	config, err := secure.Server{SelfSigned: true}.Config()
	if err != nil {
		t.Fatal(err)
	}
	roots := x509.NewCertPool()
	roots.AddCert(config.Certificates[0].Leaf)
	return config, roots
}

func TestTLSBeginsAtTheRelayAfterThePROXYHeader(t *testing.T) {
	config, roots := certificate(t)
	header := make(chan proxyheader.Header, 1)
	to := target(t, func(c *net.TCPConn) {
		b := make([]byte, 28) // version 2, IPv4
		if _, err := io.ReadFull(c, b); err != nil {
			return
		}
		h, n, err := proxyheader.Parse(b)
		if err != nil || n != len(b) {
			t.Errorf("the target got %q: %d, %v", b, n, err)
		}
		header <- h
		secured, err := secure.Accept(t.Context(), c, config)
		if err != nil {
			t.Error(err)
			return
		}
		got, _ := io.ReadAll(secured)
		secured.Write(append([]byte("got "), got...))
		secured.CloseWrite()
	})
	to.Network = fivetuple.TLS
	addr := relayed(t, Config{Targets: []fivetuple.Endpoint{to}, ProxyVersion: 2, TLS: &tls.Config{RootCAs: roots}}, nil, nil)
	c := connect(t, addr)
	if got, err := ask(t, c, []byte("hello")); err != nil || string(got) != "got hello" {
		t.Errorf("got %q, %v", got, err)
	}
	want := proxyheader.Header{Client: netip.MustParseAddrPort(c.LocalAddr().String()), Destination: netip.MustParseAddrPort(addr)}
	if h := <-header; h != want {
		t.Errorf("the header said %+v, want %+v", h, want)
	}
}

func TestATargetWhoseCertificateIsWrongIsNoTarget(t *testing.T) {
	config, _ := certificate(t)
	to := target(t, func(c *net.TCPConn) { secure.Accept(t.Context(), c, config) })
	to.Network = fivetuple.TLS
	ev := &events{}
	addr := relayed(t, Config{Targets: []fivetuple.Endpoint{to}}, nil, ev)
	if _, err := call(t, addr, []byte("hello")); !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("the client got %v, want a reset", err)
	}
	errs := ev.of(stats.Error)
	if len(errs) == 0 || !strings.Contains(errs[0].Err, "certificate") {
		t.Errorf("recorded %v, want what is wrong with the certificate", errs)
	}
}

func TestClientsAreSentByTheServerNameTheyAskFor(t *testing.T) {
	config, roots := certificate(t)
	named := func(name string) fivetuple.Endpoint {
		return target(t, func(c *net.TCPConn) {
			begin := bufio.NewReader(c)
			if first, err := begin.Peek(1); err != nil || first[0] != 22 { // no TLS record of a handshake
				io.WriteString(c, name)
				io.Copy(io.Discard, begin)
				return
			}
			secured, err := secure.Accept(t.Context(), begun{c, begin}, config)
			if err != nil {
				t.Error(err)
				return
			}
			io.WriteString(secured, name)
			secured.CloseWrite()
			io.Copy(io.Discard, secured)
		})
	}
	addr := relayed(t, Config{
		Targets: []fivetuple.Endpoint{named("others")},
		Names: map[string][]fivetuple.Endpoint{
			"a.example": {named("a")}, "*.example": {named("any")}, "*.deep.example": {named("deep")},
		},
	}, nil, nil)
	for name, want := range map[string]string{
		"a.example": "a", "b.example": "any", "x.deep.example": "deep", "x.y.deep.example": "deep", "c.test": "others",
	} {
		c, err := secure.Connect(t.Context(), connect(t, addr), &tls.Config{RootCAs: roots, ServerName: name, InsecureSkipVerify: true})
		if err != nil {
			t.Fatal(err)
		}
		if got, err := ask(t, c, nil); err != nil || string(got) != want {
			t.Errorf("%s: got %q, %v, want %q", name, got, err, want)
		}
	}
	plain, err := ask(t, connect(t, addr), []byte("GET / HTTP/1.0\r\n\r\n"))
	if err != nil || string(plain) != "others" {
		t.Errorf("without TLS: got %q, %v", plain, err)
	}
}

// begun is a connection of which something was read already.
type begun struct {
	net.Conn
	from io.Reader
}

func (b begun) Read(p []byte) (int, error) { return b.from.Read(p) }

func TestTheNextTargetIsTriedAndTheLastFailureIsAReset(t *testing.T) {
	closed := endpoints(t, closedPort(t))[0]
	to := target(t, answerAtEnd)
	ev := &events{}
	addr := relayed(t, Config{Targets: []fivetuple.Endpoint{closed, to}}, nil, ev)
	for range 4 {
		if got, err := ask(t, connect(t, addr), []byte("x")); err != nil || string(got) != "got x" {
			t.Errorf("got %q, %v", got, err)
		}
	}
	if errs := ev.of(stats.Error); len(errs) != 0 {
		t.Errorf("errors were recorded although a target took each: %v", errs)
	}

	addr = relayed(t, Config{Targets: []fivetuple.Endpoint{closed}}, nil, ev)
	if _, err := call(t, addr, []byte("x")); !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("the client got %v, want a reset", err)
	}
	if errs := ev.of(stats.Error); len(errs) != 1 || !strings.Contains(errs[0].Err, closed.String()) || !strings.Contains(errs[0].Err, "refused") {
		t.Errorf("recorded %v, want one refused connection to %s", errs, closed)
	}
}

// closedPort is a port of loopback that nobody listens on, and nobody else can take.
func closedPort(t *testing.T) string {
	t.Helper()
	fd, err := syscall.Socket(syscall.AF_INET, syscall.SOCK_STREAM|syscall.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { syscall.Close(fd) })
	if err := syscall.Bind(fd, &syscall.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}}); err != nil {
		t.Fatal(err)
	}
	sa, err := syscall.Getsockname(fd)
	if err != nil {
		t.Fatal(err)
	}
	return netip.AddrPortFrom(netip.AddrFrom4([4]byte{127, 0, 0, 1}), uint16(sa.(*syscall.SockaddrInet4).Port)).String()
}

func TestAResetOfOneSideIsAResetOfTheOther(t *testing.T) {
	t.Run("target", func(t *testing.T) {
		to := target(t, func(c *net.TCPConn) {
			io.ReadFull(c, make([]byte, 1))
			c.SetLinger(0)
		})
		addr := relayed(t, Config{Targets: []fivetuple.Endpoint{to}}, nil, nil)
		c := connect(t, addr)
		c.Write([]byte("x"))
		if _, err := io.ReadAll(c); !errors.Is(err, syscall.ECONNRESET) {
			t.Errorf("the client got %v, want a reset", err)
		}
	})
	t.Run("client", func(t *testing.T) {
		got := make(chan error, 1)
		to := target(t, func(c *net.TCPConn) {
			_, err := io.ReadAll(c)
			got <- err
		})
		addr := relayed(t, Config{Targets: []fivetuple.Endpoint{to}}, nil, nil)
		c := connect(t, addr)
		c.Write([]byte("x"))
		c.SetLinger(0)
		c.Close()
		if err := <-got; !errors.Is(err, syscall.ECONNRESET) {
			t.Errorf("the target got %v, want a reset", err)
		}
	})
}

func TestAHalfClosedConnectionThatIsSilentEnds(t *testing.T) {
	to := target(t, func(c *net.TCPConn) {
		for range 3 {
			c.Write([]byte("."))
			time.Sleep(150 * time.Millisecond) // together longer than the bound
		}
		<-t.Context().Done() // does not end its side, though the client has
	})
	addr := relayed(t, Config{Targets: []fivetuple.Endpoint{to}, HalfClosed: 300 * time.Millisecond}, nil, nil)
	got, err := ask(t, connect(t, addr), []byte("x"))
	if string(got) != "..." || !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("got %q, %v: want all that was said, though it took longer than the bound, and then a reset", got, err)
	}
}

func TestAPortOfARangeGoesToTheSameOfTheTargets(t *testing.T) {
	r, err := New(Config{Listen: endpoints(t, "127.0.0.1:8000-8010")[0], Targets: endpoints(t, "127.0.0.1:9000-9010")}, Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	if got := r.Streams().FirstPort; got != 8000 {
		t.Errorf("the first port of the route is %d, want 8000", got)
	}
	if got := r.Datagrams().FirstPort; got != 8000 {
		t.Errorf("the first port of the datagrams' route is %d, want 8000", got)
	}
}

func TestFlowsShowWhatIsRelayed(t *testing.T) {
	to := target(t, func(c *net.TCPConn) { io.Copy(c, c) })
	r, err := New(Config{Targets: []fivetuple.Endpoint{to}}, Options{})
	if err != nil {
		t.Fatal(err)
	}
	srv := &stream.Server{Handler: r}
	ln, err := stream.ListenConfig{}.Listen(t.Context(), fivetuple.MustParseEndpoint("127.0.0.1:0"))
	if err != nil {
		t.Fatal(err)
	}
	go srv.Serve(ln)
	defer func() {
		srv.Shutdown(t.Context())
		r.Close()
	}()
	c := connect(t, ln.Addr().String())
	c.Write([]byte("hello"))
	if _, err := io.ReadFull(c, make([]byte, 5)); err != nil {
		t.Fatal(err)
	}
	all := r.Flows()
	if len(all) != 1 || all[0].Up.Bytes != 5 || all[0].Down.Bytes != 5 || all[0].Target != to.String() || all[0].ClientTCP == nil || all[0].TargetTCP == nil {
		t.Errorf("got %+v", all)
	}
	c.Close()
	for late := time.Now().Add(20 * time.Second); len(r.Flows()) > 0; time.Sleep(time.Millisecond) { // nothing else tells
		if time.Now().After(late) {
			t.Fatalf("still there: %+v", r.Flows())
		}
	}
}

func TestARuleThatCannotWorkLeavesTheOldOne(t *testing.T) {
	to, other := target(t, answerAtEnd), target(t, answerAtEnd)
	r, err := New(Config{Targets: []fivetuple.Endpoint{to}}, Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	err = r.Set(Config{Targets: []fivetuple.Endpoint{other}, Names: map[string][]fivetuple.Endpoint{"a.example": endpoints(t, "127.0.0.1:nosuchservice")}})
	if err == nil {
		t.Fatal("a service that there is not was accepted")
	}
	way := r.Streams().Pool.Choose(netip.Addr{})
	if a, ok := way.Next(); !ok || a.Target != to {
		t.Errorf("connections go to %v, want %v as before", a, to)
	}
}

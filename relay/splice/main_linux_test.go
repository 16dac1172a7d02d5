package splice

import (
	"bytes"
	"context"
	"errors"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"slices"
	"sync"
	"syscall"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/fivetuple/fivetuple"
	"github.com/fivetuple/fivetuple/internal/lab"
	"github.com/fivetuple/fivetuple/relay/upstream"
	"github.com/fivetuple/fivetuple/stats"
	"github.com/fivetuple/fivetuple/stream"
)

func TestMain(m *testing.M) {
	if f := children[os.Getenv("SPLICE_TEST_CHILD")]; f != nil {
		f()
		return
	}
	lab.Enter() // where no other program takes ports
	goleak.VerifyTestMain(m)
}

// ownShare makes root another user, until the test ends, in what is counted for
// each user as the pages of pipes are (pipe(7)): tests of other packages, which run
// at the same time, have pipes, too.
func ownShare(t *testing.T) {
	t.Helper()
	if os.Getuid() != 0 {
		return
	}
	err := syscall.Setresuid(60000+rand.IntN(5000), 0, 0)
	if err == syscall.EINVAL { // the lab of an ordinary user has no other
		return
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { syscall.Setresuid(0, 0, 0) })
}

// children are what the test binary does when a test has started it again.
var children = map[string]func(){}

func listen(t testing.TB, where string) net.Listener {
	t.Helper()
	e, err := fivetuple.ParseEndpoint(where)
	if err != nil {
		t.Fatal(err)
	}
	var lc stream.ListenConfig
	ln, err := lc.Listen(t.Context(), e)
	if err != nil {
		t.Fatal(err)
	}
	return ln
}

// targets listens for what a server relays, and serves each connection with f.
// It waits for all f when the test ends.
func targets(t testing.TB, where string, f func(c net.Conn)) net.Listener {
	t.Helper()
	ln := listen(t, where)
	serveTargets(t, ln, f)
	return ln
}

func serveTargets(t testing.TB, ln net.Listener, f func(c net.Conn)) {
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			wg.Go(func() {
				defer c.Close()
				c.SetDeadline(time.Now().Add(40 * time.Second))
				f(c)
			})
		}
	})
	t.Cleanup(func() {
		ln.Close()
		wg.Wait()
	})
}

// echoBack sends back what comes. Package net would splice it, and keep the pipes:
// of those an ordinary user has few.
func echoBack(c net.Conn) {
	io.Copy(struct{ io.Writer }{c}, struct{ io.Reader }{c})
}

// endpoint is how the configuration names a listener.
func endpoint(ln net.Listener) fivetuple.Endpoint {
	a := fivetuple.AddressOf(ln.Addr())
	if a.Name != "" {
		return fivetuple.MustParseEndpoint("unix://" + a.Name)
	}
	return fivetuple.MustParseEndpoint(a.String())
}

func poolOf(t testing.TB, targets ...fivetuple.Endpoint) *upstream.Pool {
	t.Helper()
	p, err := upstream.New(upstream.Config{Targets: targets})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(p.Close)
	return p
}

// start serves on an endpoint until the test ends.
func start(t testing.TB, s *Server, where string) net.Listener {
	t.Helper()
	ln := listen(t, where)
	startOn(t, s, ln)
	return ln
}

func startOn(t testing.TB, s *Server, ln net.Listener) {
	served := make(chan error, 1)
	go func() { served <- s.Serve(ln) }()
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), time.Second)
		defer cancel()
		s.Shutdown(ctx)
		if err := <-served; !errors.Is(err, stream.ErrServerClosed) {
			t.Errorf("Serve returned %v", err)
		}
	})
}

// relayTo is a server that relays to a listener.
func relayTo(t testing.TB, ln net.Listener, sink stats.Sink) *Server {
	t.Helper()
	return &Server{Service: "s", Sink: sink, Route: Route{Pool: poolOf(t, endpoint(ln))}}
}

func dial(t testing.TB, ln net.Listener) net.Conn {
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
	if got, err := io.ReadFull(c, b); err != nil {
		t.Fatalf("%d bytes of %d: %v", got, n, err)
	}
	return b
}

// echoes fails unless what is sent comes back.
func echoes(t testing.TB, c net.Conn, b []byte) {
	t.Helper()
	if _, err := c.Write(b); err != nil {
		t.Fatal(err)
	}
	if got := readFull(t, c, len(b)); !bytes.Equal(got, b) {
		t.Fatalf("sent %.100q, got %.100q", b, got)
	}
}

func closeWrite(c net.Conn) { c.(interface{ CloseWrite() error }).CloseWrite() }

// abort resets a TCP connection.
func abort(c net.Conn) {
	if c, ok := c.(*net.TCPConn); ok {
		c.SetLinger(0)
	}
	c.Close()
}

// eventually waits until a condition holds.
func eventually(t testing.TB, what string, is func() bool) {
	t.Helper()
	for deadline := time.Now().Add(15 * time.Second); !is(); time.Sleep(time.Millisecond) { // between looks
		if time.Now().After(deadline) {
			t.Fatalf("not within fifteen seconds: %s", what)
		}
	}
}

func waitForPairs(t testing.TB, s *Server, n int) {
	t.Helper()
	eventually(t, "the number of pairs", func() bool { return s.Len() == n })
}

// events collects what a server says happened.
type events struct {
	mu  sync.Mutex
	all []stats.Event
}

func (e *events) Record(ev stats.Event) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.all = append(e.all, ev)
}

func (e *events) snapshot() []stats.Event {
	e.mu.Lock()
	defer e.mu.Unlock()
	return slices.Clone(e.all)
}

// wait returns the first event of a kind.
func (e *events) wait(t testing.TB, k stats.Kind) stats.Event {
	t.Helper()
	return e.waitFor(t, k, 1)[0]
}

// waitFor returns the events of a kind when there are n.
func (e *events) waitFor(t testing.TB, k stats.Kind, n int) []stats.Event {
	t.Helper()
	var of []stats.Event
	eventually(t, "events of kind "+k.String(), func() bool {
		of = slices.DeleteFunc(e.snapshot(), func(ev stats.Event) bool { return ev.Kind != k })
		return len(of) >= n
	})
	return of
}

func isReset(err error) bool {
	return errors.Is(err, syscall.ECONNRESET) || errors.Is(err, syscall.EPIPE)
}

func descriptors(t testing.TB) int {
	entries, err := os.ReadDir("/dev/fd")
	if err != nil {
		t.Fatal(err)
	}
	return len(entries)
}

// cpu is the processor time this process has used.
func cpu() time.Duration {
	var u syscall.Rusage
	syscall.Getrusage(syscall.RUSAGE_SELF, &u)
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

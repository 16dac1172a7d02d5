package loop

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"io"
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
	"github.com/fivetuple/fivetuple/sockopt"
	"github.com/fivetuple/fivetuple/stats"
	"github.com/fivetuple/fivetuple/stream"
)

func TestMain(m *testing.M) {
	if f := children[os.Getenv("LOOP_TEST_CHILD")]; f != nil {
		f()
		return
	}
	lab.Enter() // where no other program takes ports
	goleak.VerifyTestMain(m)
}

// children are what the test binary does when a test has started it again.
var children = map[string]func(){}

// server is what both engines are.
type server interface {
	Shutdown(context.Context) error
	Conns() []uint64
	Send(uint64, []byte) error
	Broadcast([]byte) int
	Cut(uint64) error
	SetLimits(stream.Limits)
	serve(net.Listener) error
}

// config is what both engines are made of.
type config struct {
	kind    string
	sink    stats.Sink
	limits  stream.Limits
	options sockopt.Settings
	peers   *stream.PeerFilter
}

type goroutines struct{ *stream.Server }

func (g goroutines) serve(ln net.Listener) error { return g.Serve(ln) }

type loops struct{ *Server }

func (l loops) serve(ln net.Listener) error { return l.Serve(ln) }

func newGoroutines(c config) server {
	h, err := stream.NewHandler(c.kind)
	if err != nil {
		panic(err)
	}
	return goroutines{&stream.Server{Service: "s", Handler: h, Sink: c.sink, Limits: c.limits, Options: c.options, Peers: c.peers}}
}

func newLoops(c config) server {
	return loops{&Server{Service: "s", Kind: c.kind, Sink: c.sink, Limits: c.limits, Options: c.options, Peers: c.peers}}
}

// both runs a test on both engines.
func both(t *testing.T, test func(t *testing.T, make func(config) server)) {
	t.Run("goroutines", func(t *testing.T) { test(t, newGoroutines) })
	t.Run("loops", func(t *testing.T) { test(t, newLoops) })
}

// bothOver runs a test on both engines over TCP and Unix sockets.
func bothOver(t *testing.T, test func(t *testing.T, make func(config) server, where string)) {
	both(t, func(t *testing.T, make func(config) server) {
		for _, where := range []string{"0", "tcp6://0", "unix://@loop-test"} {
			t.Run(where, func(t *testing.T) { test(t, make, where) })
		}
	})
}

func listen(t testing.TB, where string, options ...string) net.Listener {
	t.Helper()
	e, err := fivetuple.ParseEndpoint(where)
	if err != nil {
		t.Fatal(err)
	}
	var lc stream.ListenConfig
	for _, o := range options {
		if err := lc.Options.Set(o); err != nil {
			t.Fatal(err)
		}
	}
	ln, err := lc.Listen(t.Context(), e)
	if err != nil {
		t.Fatal(err)
	}
	return ln
}

// start serves on an endpoint until the test ends.
func start(t testing.TB, s server, where string) net.Listener {
	t.Helper()
	ln := listen(t, where)
	startOn(t, s, ln)
	return ln
}

func startOn(t testing.TB, s server, ln net.Listener) {
	served := make(chan error, 1)
	go func() { served <- s.serve(ln) }()
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), time.Second)
		defer cancel()
		s.Shutdown(ctx)
		if err := <-served; !errors.Is(err, stream.ErrServerClosed) {
			t.Errorf("Serve returned %v", err)
		}
	})
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
		t.Fatalf("sent %q, got %q", b, got)
	}
}

func closeWrite(c net.Conn) { c.(interface{ CloseWrite() error }).CloseWrite() }

// abort resets a TCP connection.
func abort(c net.Conn) {
	c.(*net.TCPConn).SetLinger(0)
	c.Close()
}

func line(t testing.TB, c net.Conn) string {
	t.Helper()
	var b []byte
	for {
		ch := readFull(t, c, 1)
		if ch[0] == '\n' {
			return string(b)
		}
		b = append(b, ch[0])
	}
}

// eventually waits until a condition holds.
func eventually(t testing.TB, what string, is func() bool) {
	t.Helper()
	for deadline := time.Now().Add(10 * time.Second); !is(); time.Sleep(time.Millisecond) { // between looks
		if time.Now().After(deadline) {
			t.Fatalf("not within ten seconds: %s", what)
		}
	}
}

func waitForConns(t testing.TB, s server, n int) []uint64 {
	t.Helper()
	var ids []uint64
	eventually(t, "the number of connections", func() bool { ids = s.Conns(); return len(ids) == n })
	slices.Sort(ids)
	return ids
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
func (e *events) wait(t testing.TB, k stats.Kind) stats.Event { return e.waitFor(t, k, 1)[0] }

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

func isTimeout(err error) bool { return errors.Is(err, os.ErrDeadlineExceeded) }

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

func newLines(c net.Conn) *bufio.Scanner { return bufio.NewScanner(c) }

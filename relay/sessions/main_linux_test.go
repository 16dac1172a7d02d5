package sessions

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"os"
	"slices"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"
	"golang.org/x/sys/unix"

	"github.com/fivetuple/fivetuple"
	"github.com/fivetuple/fivetuple/datagram"
	"github.com/fivetuple/fivetuple/internal/lab"
	"github.com/fivetuple/fivetuple/relay/upstream"
	"github.com/fivetuple/fivetuple/stats"
)

func TestMain(m *testing.M) {
	lab.Enter() // where no other program takes ports
	goleak.VerifyTestMain(m)
}

// patience is how long a test waits for what must come.
const patience = 10 * time.Second

func listen(t testing.TB, endpoint string, options ...string) *datagram.Conn {
	t.Helper()
	e, err := fivetuple.ParseEndpoint(endpoint)
	if err != nil {
		t.Fatal(err)
	}
	var lc datagram.ListenConfig
	for _, o := range options {
		if err := lc.Options.Set(o); err != nil {
			t.Fatal(err)
		}
	}
	c, err := lc.Listen(context.Background(), e)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func addrOf(c interface{ LocalAddr() net.Addr }) netip.AddrPort {
	a := c.LocalAddr().(*net.UDPAddr).AddrPort()
	return netip.AddrPortFrom(a.Addr().Unmap(), a.Port())
}

// pool is the targets of a route.
func pool(t testing.TB, targets ...netip.AddrPort) *upstream.Pool {
	t.Helper()
	var c upstream.Config
	for _, a := range targets {
		e, err := fivetuple.ParseEndpoint("udp://" + a.String())
		if err != nil {
			t.Fatal(err)
		}
		c.Targets = append(c.Targets, e)
	}
	p, err := upstream.New(c)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(p.Close)
	return p
}

// serve relays what comes to the sockets until the test ends.
func serve(t testing.TB, s *Server, conns ...*datagram.Conn) {
	t.Helper()
	served := make(chan error, 1)
	sockets := s.Stats().Sockets
	go func() { served <- s.Serve(conns...) }()
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), time.Millisecond)
		defer cancel()
		s.Resume()
		s.Shutdown(ctx)
		if err := <-served; !errors.Is(err, datagram.ErrServerClosed) {
			t.Errorf("Serve returned %v", err)
		}
	})
	eventually(t, "all sockets are served", func() bool { return len(s.Stats().Sockets) == len(sockets)+len(conns) })
}

// relay serves on an address of 127.0.0.1 to targets.
func relay(t testing.TB, s *Server, targets ...netip.AddrPort) netip.AddrPort {
	t.Helper()
	if s.Route.Pool == nil {
		s.Route.Pool = pool(t, targets...)
	}
	c := listen(t, "udp://127.0.0.1:0")
	at := addrOf(c)
	serve(t, s, c)
	return at
}

// target is a UDP socket that a relay sends to.
type target struct {
	*net.UDPConn
	addr netip.AddrPort
}

func newTarget(t testing.TB, address string) *target {
	t.Helper()
	c, err := net.ListenUDP("udp", net.UDPAddrFromAddrPort(netip.MustParseAddrPort(address)))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	big(t, c)
	return &target{c, addrOf(c)}
}

// big gives a socket a buffer in which a test's datagrams have room.
func big(t testing.TB, c *net.UDPConn) {
	raw, err := c.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	raw.Control(func(fd uintptr) { raiseBuffer(int(fd), unix.SO_RCVBUF, unix.SO_RCVBUFFORCE, 16<<20) })
}

// take receives one datagram.
func (g *target) take(t testing.TB) ([]byte, netip.AddrPort) {
	t.Helper()
	g.SetReadDeadline(time.Now().Add(patience))
	b := make([]byte, 1<<16)
	n, from, err := g.ReadFromUDPAddrPort(b)
	if err != nil {
		t.Fatalf("target: %v", err)
	}
	return b[:n], from
}

// echoTarget sends everything back.
func echoTarget(t testing.TB, address string) *target {
	t.Helper()
	g := newTarget(t, address)
	var wg sync.WaitGroup
	wg.Go(func() {
		b := make([]byte, 1<<16)
		for {
			n, from, err := g.ReadFromUDPAddrPort(b)
			if errors.Is(err, net.ErrClosed) {
				return
			}
			if err == nil {
				g.WriteToUDPAddrPort(b[:n], from)
			}
		}
	})
	t.Cleanup(func() { g.Close(); wg.Wait() })
	return g
}

// client is a connected socket: it hears only the address it writes to.
func client(t testing.TB, to netip.AddrPort) *net.UDPConn {
	t.Helper()
	c, err := net.DialUDP("udp", nil, net.UDPAddrFromAddrPort(to))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	big(t, c)
	return c
}

func send(t testing.TB, c *net.UDPConn, b []byte) {
	t.Helper()
	if _, _, err := c.WriteMsgUDP(b, nil, nil); err != nil { // Write sends nothing where there is nothing
		t.Fatal(err)
	}
}

func receive(t testing.TB, c *net.UDPConn) []byte {
	t.Helper()
	c.SetReadDeadline(time.Now().Add(patience))
	b := make([]byte, 1<<16)
	n, err := c.Read(b)
	if err != nil {
		t.Fatal(err)
	}
	return b[:n]
}

// echoes fails unless what is sent comes back.
func echoes(t testing.TB, c *net.UDPConn, b []byte) {
	t.Helper()
	send(t, c, b)
	if got := receive(t, c); !slices.Equal(got, b) {
		t.Fatalf("sent %d bytes, %d others came back", len(b), len(got))
	}
}

// eventually waits until a condition holds.
func eventually(t testing.TB, what string, is func() bool) {
	t.Helper()
	for deadline := time.Now().Add(patience); !is(); time.Sleep(time.Millisecond) { // between looks
		if time.Now().After(deadline) {
			t.Fatalf("not within %v: %s", patience, what)
		}
	}
}

// only returns the session there is.
func only(t testing.TB, s *Server) Session {
	t.Helper()
	list := s.Sessions()
	if len(list) != 1 {
		t.Fatalf("%d sessions, want one: %+v", len(list), list)
	}
	return list[0]
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

func (e *events) of(k stats.Kind) []stats.Event {
	e.mu.Lock()
	defer e.mu.Unlock()
	return slices.DeleteFunc(slices.Clone(e.all), func(ev stats.Event) bool { return ev.Kind != k })
}

// wait returns the events of a kind when there are n.
func (e *events) wait(t testing.TB, k stats.Kind, n int) (of []stats.Event) {
	t.Helper()
	eventually(t, "events of kind "+k.String(), func() bool { of = e.of(k); return len(of) >= n })
	return of
}

func descriptors(t testing.TB) int {
	entries, err := os.ReadDir("/dev/fd")
	if err != nil {
		t.Fatal(err)
	}
	return len(entries)
}

package gate

import (
	"cmp"
	"crypto/tls"
	"errors"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/fivetuple/fivetuple/internal/lab"
	"github.com/fivetuple/fivetuple/internal/poll"
	"github.com/fivetuple/fivetuple/stats"
	"github.com/fivetuple/fivetuple/stream"
)

func TestMain(m *testing.M) {
	lab.Enter() // where no other program takes ports
	goleak.VerifyTestMain(m)
}

// server is the least that a server with one loop has: it accepts, and keeps.
type server struct {
	gate     Gate
	recorder stats.Recorder
	accepted chan Newcomer
	stop     chan struct{}
	done     chan struct{}

	mu   sync.Mutex
	errs []string
}

func start(t *testing.T, c Config) *server {
	t.Helper()
	s := &server{accepted: make(chan Newcomer, 100), stop: make(chan struct{}), done: make(chan struct{})}
	s.recorder.Sink = stats.SinkFunc(s.record)
	began := time.Now()
	c.Clock, c.Events = func() int64 { return int64(time.Since(began)) }, &s.recorder
	s.gate.Open(c)
	p, err := poll.New()
	if err != nil {
		t.Fatal(err)
	}
	var mu sync.Mutex // the loop's
	a := s.gate.Acceptor(&mu, p, func(n Newcomer) {
		s.gate.Put(n.ID, Place{Slot: int32(n.ID)})
		s.accepted <- n
	})
	go func() {
		defer close(s.done)
		defer p.Close()
		for timeout := time.Duration(0); ; {
			events := p.Wait(timeout)
			mu.Lock()
			for i := range events {
				a.Notice(events[i].Token())
			}
			look := a.Look(c.Clock())
			mu.Unlock()
			if look {
				a.Accept()
			}
			mu.Lock()
			timeout = -1
			if due := a.Due(); due != poll.Never {
				timeout = time.Duration(max(due-c.Clock(), 0))
			}
			mu.Unlock()
			select {
			case <-s.stop:
				mu.Lock()
				a.Stop()
				mu.Unlock()
				return
			default:
			}
		}
	}()
	t.Cleanup(func() {
		s.gate.Close()
		close(s.stop)
		p.Wake()
		<-s.done
		s.recorder.Flush()
	})
	return s
}

func (s *server) record(e stats.Event) {
	if e.Kind == stats.Error {
		s.mu.Lock()
		defer s.mu.Unlock()
		s.errs = append(s.errs, e.Err)
	}
}

// said returns the errors recorded that hold a text.
func (s *server) said(text string) (n int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, e := range s.errs {
		if strings.Contains(e, text) {
			n++
		}
	}
	return n
}

// serve serves a listener until the test ends, and returns what Serve will.
func (s *server) serve(t *testing.T, ln net.Listener) <-chan error {
	t.Helper()
	ls, err := Listeners([]net.Listener{ln})
	if err != nil {
		t.Fatal(err)
	}
	served := make(chan error, 1)
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		served <- s.gate.Serve(ls)
	}()
	t.Cleanup(func() { s.gate.Close(); <-ended })
	return served
}

func (s *server) next(t *testing.T) Newcomer {
	t.Helper()
	select {
	case n := <-s.accepted:
		t.Cleanup(func() { poll.Close(n.FD) })
		return n
	case <-time.After(10 * time.Second):
		t.Fatal("nothing was accepted in 10 s")
		panic("unreachable")
	}
}

func listen(t *testing.T, network, address string) net.Listener {
	t.Helper()
	var lc net.ListenConfig
	lc.SetMultipathTCP(false)
	ln, err := lc.Listen(t.Context(), network, address)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { ln.Close() })
	return ln
}

func dial(t *testing.T, ln net.Listener) net.Conn {
	t.Helper()
	c, err := net.Dial(ln.Addr().Network(), ln.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

// isReset connects and says whether that ends in a reset.
func isReset(t *testing.T, ln net.Listener) bool {
	t.Helper()
	c, err := net.Dial(ln.Addr().Network(), ln.Addr().String())
	if err == nil {
		defer c.Close()
		c.SetDeadline(time.Now().Add(10 * time.Second))
		_, err = c.Read(make([]byte, 1))
	}
	return errors.Is(err, syscall.ECONNRESET) // which may come before connect(2) has returned
}

func TestWhatIsAcceptedHasItsAddressesAndAnID(t *testing.T) {
	s := start(t, Config{})
	ln := listen(t, "tcp4", "0.0.0.0:0")
	s.serve(t, ln)
	c, err := net.Dial("tcp4", net.JoinHostPort("127.0.0.2", port(ln)))
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	n := s.next(t)
	if got := n.Tuple(); !n.TCP || n.ID != 1 || n.Client().String() != c.LocalAddr().String() || got.Local.AddrPort.String() != c.RemoteAddr().String() {
		t.Errorf("got %+v, %v, want %v->%v", n, got, c.LocalAddr(), c.RemoteAddr())
	}
	if p, ok := s.gate.Find(n.ID); !ok || p.Slot != 1 || s.gate.Len() != 1 {
		t.Errorf("it is in place %+v, %v of %d", p, ok, s.gate.Len())
	}
	s.gate.Leave(n.ID, n.Client())
	if _, ok := s.gate.Find(n.ID); ok || s.gate.Len() != 0 {
		t.Errorf("it is still there, of %d", s.gate.Len())
	}
}

func port(ln net.Listener) string {
	_, p, _ := net.SplitHostPort(ln.Addr().String())
	return p
}

func TestAFullGateOpensWhenOneLeaves(t *testing.T) {
	s := start(t, Config{Limits: stream.Limits{MaxConns: 2}})
	ln := listen(t, "tcp", "127.0.0.1:0")
	s.serve(t, ln)
	for range 4 {
		dial(t, ln)
	}
	first, second := s.next(t), s.next(t)
	for s.said("full with 2 connections") == 0 {
		time.Sleep(time.Millisecond) // until it is recorded
	}
	if n := s.gate.Len(); n != 2 {
		t.Errorf("%d are in, want 2", n)
	}
	s.gate.Leave(first.ID, first.Client())
	s.next(t)
	s.gate.SetLimits(stream.Limits{MaxConns: 3})
	s.next(t)
	s.gate.Leave(second.ID, second.Client())
	if n := s.said("full"); n != 1 {
		t.Errorf("said %d times in a minute that it is full, want once", n)
	}
}

func TestTheRateOfAcceptingIsKept(t *testing.T) {
	s := start(t, Config{Limits: stream.Limits{AcceptRate: 20}})
	ln := listen(t, "tcp", "127.0.0.1:0")
	s.serve(t, ln)
	for range 12 {
		dial(t, ln)
	}
	s.next(t)
	began := time.Now()
	for range 11 {
		s.next(t)
	}
	if took := time.Since(began); took < 400*time.Millisecond { // ten spaced by 50 ms, but for a burst of two
		t.Errorf("11 more took %v at 20 a second", took)
	}
}

func TestAPauseSaysWhenItEnds(t *testing.T) {
	s := start(t, Config{Limits: stream.Limits{AcceptRate: 0.01}})
	ls, err := Listeners([]net.Listener{listen(t, "tcp", "127.0.0.1:0")})
	if err != nil {
		t.Fatal(err)
	}
	dial(t, ls[0].ln)
	dial(t, ls[0].ln)
	n, _, err := s.gate.accept(ls[0])
	if err != nil {
		t.Fatal(err)
	}
	defer poll.Close(n.FD)
	_, _, err = s.gate.accept(ls[0])
	if left := time.Duration(s.gate.pausedUntil() - s.gate.is.Clock()); err != errPaused || left < 50*time.Second || left > 100*time.Second {
		t.Errorf("got %v, and the pause has %v left of 100 s", err, left)
	}
	a := &Acceptor{gate: &s.gate, tryAt: s.gate.pausedUntil()}
	if due := a.Due(); due != a.tryAt {
		t.Errorf("due at %v, want at the pause's end", due)
	}
	s.gate.SetLimits(stream.Limits{})
	if due := a.Due(); due != 0 {
		t.Errorf("due at %v though the pause is over, want at once", due)
	}
	s.gate.Shut()
	if _, _, err := s.gate.accept(ls[0]); err != errNone {
		t.Errorf("a gate that is shut accepts: %v", err)
	}
}

func TestOneTooManyOfASourceIsReset(t *testing.T) {
	s := start(t, Config{Limits: stream.Limits{MaxPerSource: 1}})
	ln := listen(t, "tcp", "127.0.0.1:0")
	s.serve(t, ln)
	dial(t, ln)
	n := s.next(t)
	if !isReset(t, ln) || s.said("refused: more than 1 connections from 127.0.0.1") != 1 {
		t.Error("a second was let in")
	}
	s.gate.Leave(n.ID, n.Client())
	dial(t, ln)
	s.next(t)
}

func TestAClientOfAProxyIsJudgedAndCountedWhenItIsNamed(t *testing.T) {
	limits := stream.Limits{MaxPerSource: 1, Deny: []netip.Prefix{netip.MustParsePrefix("10.0.0.0/8"), netip.MustParsePrefix("127.0.0.0/8")}}
	s := start(t, Config{Limits: limits, Proxies: []netip.Prefix{netip.MustParsePrefix("127.0.0.1/32")}})
	ln := listen(t, "tcp", "127.0.0.1:0")
	s.serve(t, ln)
	dial(t, ln)
	n := s.next(t)
	if !n.Proxied || n.Client().IsValid() {
		t.Errorf("got %+v", n)
	}
	client := netip.MustParseAddrPort("192.0.2.1:5")
	if err := s.gate.Admit(netip.MustParseAddrPort("10.1.1.1:5")); err == nil {
		t.Error("one that is denied was admitted")
	}
	if err := s.gate.Admit(client); err != nil {
		t.Error(err)
	}
	if err := s.gate.Admit(client); err == nil {
		t.Error("two of one source were admitted")
	}
	s.gate.Leave(n.ID, client)
	if err := s.gate.Admit(client); err != nil {
		t.Errorf("after the first has left: %v", err)
	}
}

func TestAProcessThatIsNotAmongPeersIsTurnedAway(t *testing.T) {
	s := start(t, Config{Peers: &stream.PeerFilter{UIDs: []uint32{1 << 30}}})
	ln := listen(t, "unix", filepath.Join(t.TempDir(), "s"))
	s.serve(t, ln)
	c := dial(t, ln)
	c.SetDeadline(time.Now().Add(10 * time.Second))
	if _, err := c.Read(make([]byte, 1)); err == nil || errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("got %v", err)
	}
	if s.said("refused: peer not allowed: pid") != 1 {
		t.Errorf("said %q", s.errs)
	}
}

func TestAnAdoptedConnectionKeepsItsIDUnlessItIsTaken(t *testing.T) {
	s := start(t, Config{Limits: stream.Limits{MaxConns: 1}})
	client := netip.MustParseAddrPort("192.0.2.1:5")
	want := []uint64{7, 8, 3}
	for i, id := range []uint64{7, 7, 3} {
		n := Newcomer{ID: id, Peer: poll.Peer{Addr: client}}
		if err := s.gate.Enter(&n); err != nil || n.ID != want[i] {
			t.Errorf("the %d. got %d, %v, want %d", i+1, n.ID, err, want[i])
		}
	}
	if s.gate.Len() != 0 || s.gate.Unplaced() != 3 || len(s.gate.Conns()) != 0 {
		t.Errorf("%d of %d have a place: %v", s.gate.Len(), s.gate.Unplaced(), s.gate.Conns())
	}
	s.gate.Put(8, Place{Loop: 1, Slot: 0})
	s.gate.Leave(3, client)
	if s.gate.Len() != 1 || s.gate.Unplaced() != 1 || cmp.Or(s.gate.Conns()...) != 8 {
		t.Errorf("%d of %d have a place: %v", s.gate.Len(), s.gate.Unplaced(), s.gate.Conns())
	}
}

func TestAShutGateLetsNobodyIn(t *testing.T) {
	s := start(t, Config{})
	served := s.serve(t, listen(t, "tcp", "127.0.0.1:0"))
	s.gate.Close()
	if err := <-served; err != stream.ErrServerClosed {
		t.Errorf("Serve returned %v", err)
	}
	if err := <-s.serve(t, listen(t, "tcp", "127.0.0.1:0")); err != stream.ErrServerClosed {
		t.Errorf("another Serve returned %v", err)
	}
	if err := s.gate.Enter(&Newcomer{ID: 1}); err != stream.ErrServerClosed || s.gate.Unplaced() != 0 {
		t.Errorf("Enter returned %v", err)
	}
}

func TestReleaseLeavesTheFileOfAUnixSocketAndCloseDoesNot(t *testing.T) {
	for name, tt := range map[string]struct {
		end  func(g *Gate)
		kept bool
	}{"Close": {(*Gate).Close, false}, "Release": {(*Gate).Release, true}} {
		t.Run(name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "s")
			s := start(t, Config{})
			served := s.serve(t, listen(t, "unix", path))
			dial(t, listenAt{"unix", path})
			s.next(t) // it serves
			tt.end(&s.gate)
			if err := <-served; err != stream.ErrServerClosed {
				t.Errorf("Serve returned %v", err)
			}
			if _, err := os.Stat(path); (err == nil) != tt.kept {
				t.Errorf("the file: %v", err)
			}
		})
	}
}

// listenAt is the address of a listener.
type listenAt struct{ network, address string }

func (l listenAt) Accept() (net.Conn, error) { return nil, errors.ErrUnsupported }
func (l listenAt) Close() error              { return nil }
func (l listenAt) Addr() net.Addr            { return &net.UnixAddr{Name: l.address, Net: l.network} }

func TestAListenerClosedByAnotherEndsServe(t *testing.T) {
	s := start(t, Config{})
	ln := listen(t, "tcp", "127.0.0.1:0")
	served := s.serve(t, ln)
	dial(t, ln)
	s.next(t)
	ln.Close()
	if err := <-served; !errors.Is(err, net.ErrClosed) {
		t.Errorf("Serve returned %v", err)
	}
}

func TestOtherListenersAreRefused(t *testing.T) {
	ln := listen(t, "tcp", "127.0.0.1:0")
	if _, err := Listeners([]net.Listener{ln, tls.NewListener(ln, &tls.Config{})}); !errors.Is(err, errors.ErrUnsupported) {
		t.Errorf("got %v", err)
	}
}

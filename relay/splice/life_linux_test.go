package splice

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/fivetuple/fivetuple"
	"github.com/fivetuple/fivetuple/internal/lab"
	"github.com/fivetuple/fivetuple/relay/upstream"
	"github.com/fivetuple/fivetuple/stats"
	"github.com/fivetuple/fivetuple/stream"
)

func init() {
	children["few-descriptors"] = relayWithFewDescriptors
}

// child starts the test binary again as one of children.
func child(t testing.TB, name string, env ...string) *exec.Cmd {
	t.Helper()
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(exe)
	cmd.Env = append(append(os.Environ(), "SPLICE_TEST_CHILD="+name), env...)
	cmd.Stderr = os.Stderr
	return cmd
}

func TestAnAddressThatRefusesIsFollowedByTheNext(t *testing.T) {
	gone := listen(t, "0")
	refuses := endpoint(gone)
	gone.Close()
	target := targets(t, "0", echoBack)
	ev := &events{}
	s := &Server{Sink: ev, Route: Route{Pool: poolOf(t, refuses, endpoint(target), fivetuple.MustParseEndpoint("unix://@splice-nobody"))}}
	ln := start(t, s, "0")
	for range 9 {
		c := dial(t, ln)
		echoes(t, c, []byte("hello"))
		c.Close()
	}
	for _, e := range ev.snapshot() {
		if e.Kind == stats.Error {
			t.Errorf("got %+v", e)
		}
	}
}

func TestAClientWhomNoAddressTakesIsResetAndTheEventSaysWhy(t *testing.T) {
	gone := listen(t, "0")
	refuses := endpoint(gone)
	gone.Close()
	ev := &events{}
	s := &Server{Sink: ev, Route: Route{Pool: poolOf(t, refuses, fivetuple.MustParseEndpoint("unix:///nowhere/x.sock"))}}
	ln := start(t, s, "0")
	if err := answer(ln); !isReset(err) {
		t.Errorf("the client saw %v, want a reset", err)
	}
	failed, end := ev.wait(t, stats.Error), ev.wait(t, stats.Disconnect)
	for _, want := range []string{addressText(refuses) + ": connection refused", "/nowhere/x.sock: no such file"} {
		if !strings.Contains(failed.Err, want) {
			t.Errorf("got error %q, want it to say %q", failed.Err, want)
		}
	}
	if end.Cause != "no target" || end.Conn != failed.Conn || failed.Conn == 0 {
		t.Errorf("got %+v", end)
	}
	if n := conns(s.Route.Pool, refuses); n != 0 {
		t.Errorf("an address that took none counts %d connections", n)
	}
}

// conns is how many connections an address counts.
func conns(p *upstream.Pool, e fivetuple.Endpoint) int {
	return p.Find(netip.MustParseAddrPort(addressText(e)), "").Conns()
}

func addressText(e fivetuple.Endpoint) string {
	return strings.TrimPrefix(e.String(), "tcp://")
}

func TestASilentAddressIsGivenUpAfterTheConnectTimeout(t *testing.T) {
	near, far := lab.NewHost(t, "near"), lab.NewHost(t, "far")
	lab.Link(t, near, far, "10.0.0.0/24")
	far.Drop(t, "tcp", 81)
	target, err := far.Listen("tcp", "10.0.0.2:0")
	if err != nil {
		t.Fatal(err)
	}
	serveTargets(t, target, echoBack)
	ln, err := near.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ev := &events{}
	s := &Server{Sink: ev, Route: Route{
		Pool: poolOf(t, fivetuple.MustParseEndpoint("10.0.0.2:81"), fivetuple.MustParseEndpoint(target.Addr().String())), ConnectTimeout: 300 * time.Millisecond,
	}}
	inside(t, near, s, ln)
	for i := range 2 { // one of them comes to the silent address first
		c, err := near.Dial(t.Context(), "tcp", ln.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		c.SetDeadline(time.Now().Add(20 * time.Second))
		c.Write([]byte("sent before")) // and kept
		if i == 1 {
			closeWrite(c)
		}
		if got := readFull(t, c, 11); string(got) != "sent before" {
			t.Errorf("got %q", got)
		}
		if i == 1 {
			if b, err := io.ReadAll(c); len(b) != 0 || err != nil {
				t.Errorf("got %q, %v at the end", b, err)
			}
		}
	}
}

// inside serves with loops whose threads are in a host.
func inside(t *testing.T, h *lab.Host, s *Server, ln net.Listener) {
	t.Helper()
	h.Do(t, func() {
		if err := s.init(); err != nil {
			t.Fatal(err)
		}
	})
	s.mu.Lock()
	s.begun = true
	for _, l := range s.loops {
		s.wg.Go(func() { h.Do(t, l.run) })
	}
	s.mu.Unlock()
	startOn(t, s, ln)
}

func TestAClientThatGoesWhileItsTargetIsSoughtIsNotWaitedFor(t *testing.T) {
	near, far := lab.NewHost(t, "near"), lab.NewHost(t, "far")
	lab.Link(t, near, far, "10.0.0.0/24")
	far.Drop(t, "tcp", 81)
	ln, err := near.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ev := &events{}
	s := &Server{Sink: ev, Route: Route{Pool: poolOf(t, fivetuple.MustParseEndpoint("10.0.0.2:81")), ConnectTimeout: time.Minute}}
	inside(t, near, s, ln)
	c, err := near.Dial(t.Context(), "tcp", ln.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	waitForPairs(t, s, 1)
	if p := s.Pairs(); len(p) != 1 || p[0].State != "connecting" || p[0].Leg != nil || p[0].Target == "" {
		t.Errorf("got %+v", p)
	}
	abort(c)
	if end := ev.wait(t, stats.Disconnect); end.Cause != "peer reset" {
		t.Errorf("got %+v", end)
	}
}

func TestAConnectionToItsOwnSourcePortIsNone(t *testing.T) {
	h := lab.NewHost(t, "self")
	h.Sysctl(t, "net.ipv4.ip_local_port_range", "40000 40001")
	ln, err := h.Listen("tcp", "127.0.0.1:1000")
	if err != nil {
		t.Fatal(err)
	}
	ev := &events{}
	s := &Server{Sink: ev, Route: Route{Pool: poolOf(t, fivetuple.MustParseEndpoint("127.0.0.1:40000"))}}
	inside(t, h, s, ln)
	for range 8 {
		c, err := h.Dial(t.Context(), "tcp", ln.Addr().String())
		if errors.Is(err, syscall.EADDRNOTAVAIL) || isReset(err) { // the client's own ports, of two
			continue
		}
		if err != nil {
			t.Fatal(err)
		}
		c.SetDeadline(time.Now().Add(10 * time.Second))
		if _, err := c.Read(make([]byte, 1)); !isReset(err) {
			t.Errorf("the client saw %v, want a reset", err)
		}
		c.Close()
	}
	if e := ev.wait(t, stats.Error); !strings.Contains(e.Err, "127.0.0.1:40000") {
		t.Errorf("got %+v", e)
	}
	for _, e := range ev.snapshot() {
		if e.Kind == stats.Forward {
			t.Errorf("got %+v", e)
		}
	}
}

func TestSourcePortsThatAreUsedUpAreNotTheTargetsFault(t *testing.T) {
	h := lab.NewHost(t, "used-up")
	h.Sysctl(t, "net.ipv4.ip_local_port_range", "40000 40003")
	target, err := h.Listen("tcp", "127.0.0.1:1000")
	if err != nil {
		t.Fatal(err)
	}
	serveTargets(t, target, echoBack)
	path := filepath.Join(t.TempDir(), "s")
	ln := listen(t, "unix://"+path)
	ev := &events{}
	s := &Server{Sink: ev, Route: Route{Pool: poolOf(t, endpoint(target)), Source: netip.MustParseAddrPort("127.0.0.1:0")}}
	inside(t, h, s, ln)
	var conns []net.Conn
	for range 4 { // all there are, of one source address
		c := dial(t, ln)
		echoes(t, c, []byte("x"))
		conns = append(conns, c)
	}
	for range 5 { // more than an address may fail
		c := dial(t, ln)
		if b, _ := io.ReadAll(c); len(b) != 0 {
			t.Errorf("got %q", b)
		}
	}
	if e := ev.wait(t, stats.Error); !strings.Contains(e.Err, "used up") {
		t.Errorf("got %+v", e)
	}
	for _, c := range conns {
		c.Close()
	}
	waitForPairs(t, s, 0)
	h.Sysctl(t, "net.ipv4.ip_local_port_range", "40010 40020") // those before wait (TIME_WAIT)
	echoes(t, dial(t, ln), []byte("again"))
}

func TestAUnixTargetWhoseBacklogIsFullIsTriedAgain(t *testing.T) {
	fd, err := syscall.Socket(syscall.AF_UNIX, syscall.SOCK_STREAM, 0)
	if err != nil {
		t.Fatal(err)
	}
	if err := syscall.Bind(fd, &syscall.SockaddrUnix{Name: "@splice-full"}); err != nil {
		t.Fatal(err)
	}
	if err := syscall.Listen(fd, 0); err != nil {
		t.Fatal(err)
	}
	f := os.NewFile(uintptr(fd), "full")
	target, err := net.FileListener(f)
	f.Close()
	if err != nil {
		t.Fatal(err)
	}
	first, err := net.Dial("unix", "@splice-full") // takes the one place
	if err != nil {
		t.Fatal(err)
	}
	defer first.Close()
	s := &Server{Route: Route{Pool: poolOf(t, fivetuple.MustParseEndpoint("unix://@splice-full"))}}
	ln := start(t, s, "0")
	c := dial(t, ln)
	eventually(t, "the pair waits", func() bool { p := s.Pairs(); return len(p) == 1 && p[0].State == "connecting" })
	serveTargets(t, target, echoBack)
	echoes(t, c, []byte("late"))
	c.Close()
}

func TestAnIdleConnectionIsClosed(t *testing.T) {
	target := targets(t, "0", echoBack)
	ev := &events{}
	s := relayTo(t, target, ev)
	s.Limits.IdleTimeout = 600 * time.Millisecond
	ln := start(t, s, "0")
	c := dial(t, ln)
	began := time.Now()
	for range 5 {
		echoes(t, c, []byte("x"))
		time.Sleep(50 * time.Millisecond) // less than the time
	}
	if n, err := c.Read(make([]byte, 1)); n != 0 || err != io.EOF {
		t.Errorf("got %d, %v", n, err)
	}
	if took := time.Since(began); took < 800*time.Millisecond {
		t.Errorf("closed after %v", took)
	}
	if end := ev.wait(t, stats.Disconnect); end.Cause != "idle timeout" {
		t.Errorf("got %+v", end)
	}
}

func TestAClientThatSaysNothingIsClosed(t *testing.T) {
	target := targets(t, "0", func(c net.Conn) { c.Write([]byte("hello")); io.Copy(io.Discard, c) })
	ev := &events{}
	s := relayTo(t, target, ev)
	s.Limits.FirstByteTimeout = 150 * time.Millisecond
	ln := start(t, s, "0")
	io.Copy(io.Discard, dial(t, ln))
	if end := ev.wait(t, stats.Disconnect); end.Cause != "no first byte" || end.BytesOut != 5 {
		t.Errorf("got %+v", end)
	}
}

func TestAHalfClosedConnectionIsBounded(t *testing.T) {
	for _, by := range []string{"client", "target"} {
		t.Run(by, func(t *testing.T) {
			ended := make(chan error, 1)
			target := targets(t, "0", func(c net.Conn) {
				if by == "target" {
					closeWrite(c)
				}
				io.Copy(io.Discard, c)
				<-ended
			})
			ev := &events{}
			s := relayTo(t, target, ev)
			s.Route.HalfClosed = 200 * time.Millisecond
			ln := start(t, s, "0")
			c := dial(t, ln)
			want := "half-closed down"
			if by == "client" {
				closeWrite(c)
				want = "half-closed up"
			}
			eventually(t, "the pair says so", func() bool { p := s.Pairs(); return len(p) == 0 || p[0].State == want })
			end := ev.wait(t, stats.Disconnect)
			if end.Cause != "half-closed too long" || end.Duration < 200*time.Millisecond {
				t.Errorf("got %+v", end)
			}
			close(ended)
		})
	}
}

func TestLimitsOfConnections(t *testing.T) {
	target := targets(t, "0", echoBack)
	ev := &events{}
	s := relayTo(t, target, ev)
	s.Limits = stream.Limits{MaxConns: 2, MaxPerSource: 5}
	ln := start(t, s, "0")
	first, second, third := dial(t, ln), dial(t, ln), dial(t, ln)
	echoes(t, first, []byte("1"))
	echoes(t, second, []byte("2"))
	third.Write([]byte("3"))
	if e := ev.wait(t, stats.Error); !strings.Contains(e.Err, "full with 2 connections") {
		t.Errorf("got %+v", e)
	}
	first.Close()
	if got := readFull(t, third, 1); got[0] != '3' {
		t.Errorf("got %q", got)
	}
	s.SetLimits(stream.Limits{MaxPerSource: 2})
	if err := answer(ln); !isReset(err) {
		t.Errorf("one more of the same source saw %v", err)
	}
	s.SetLimits(stream.Limits{Deny: []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8")}})
	if err := answer(ln); !isReset(err) {
		t.Errorf("a source that is not allowed saw %v", err)
	}
	echoes(t, second, []byte("still there"))
}

// answer is the error that a new connection ends with; package net takes an early
// reset for a failure to connect.
func answer(ln net.Listener) error {
	c, err := net.Dial(ln.Addr().Network(), ln.Addr().String())
	if err != nil {
		return err
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(20 * time.Second))
	_, err = c.Read(make([]byte, 1))
	return err
}

func TestARouteIsChangedForNewConnectionsOnly(t *testing.T) {
	says := func(what string) net.Listener {
		return targets(t, "0", func(c net.Conn) {
			for r := bufio.NewScanner(c); r.Scan(); {
				fmt.Fprintln(c, what)
			}
		})
	}
	one, two := says("one"), says("two")
	s := relayTo(t, one, nil)
	ln := start(t, s, "0")
	ask := func(c net.Conn) string {
		fmt.Fprintln(c, "who")
		return string(readFull(t, c, 4))
	}
	old := dial(t, ln)
	if got := ask(old); got != "one\n" {
		t.Errorf("got %q", got)
	}
	s.SetRoute(Route{Pool: poolOf(t, endpoint(two))})
	if got := ask(dial(t, ln)); got != "two\n" {
		t.Errorf("a new one got %q", got)
	}
	if got := ask(old); got != "one\n" {
		t.Errorf("the old one got %q", got)
	}
}

func TestPortsOfARangeGoToThoseOfTheTarget(t *testing.T) {
	h := lab.NewHost(t, "range")
	var lns []net.Listener
	for _, port := range []string{"8000", "8001"} {
		ln, err := h.Listen("tcp", "127.0.0.1:"+port)
		if err != nil {
			t.Fatal(err)
		}
		lns = append(lns, ln)
		target, err := h.Listen("tcp", "127.0.0.1:9"+port[1:])
		if err != nil {
			t.Fatal(err)
		}
		serveTargets(t, target, func(c net.Conn) { io.WriteString(c, target.Addr().String()) })
	}
	ev := &events{}
	s := &Server{Sink: ev, Route: Route{Pool: poolOf(t, fivetuple.MustParseEndpoint("127.0.0.1:9000")), FirstPort: 8000}}
	inside(t, h, s, lns[0])
	startOn(t, s, lns[1])
	for port, want := range map[string]string{"8000": "127.0.0.1:9000", "8001": "127.0.0.1:9001"} {
		c, err := h.Dial(t.Context(), "tcp", "127.0.0.1:"+port)
		if err != nil {
			t.Fatal(err)
		}
		if b, _ := io.ReadAll(c); string(b) != want {
			t.Errorf("port %s goes to %q, want %s", port, b, want)
		}
		c.Close()
	}
}

func TestCutResetsBothSides(t *testing.T) {
	seen := make(chan error, 1)
	target := targets(t, "0", func(c net.Conn) {
		readFull(t, c, 1)
		c.Write([]byte("x"))
		_, err := c.Read(make([]byte, 1))
		seen <- err
	})
	ev := &events{}
	s := relayTo(t, target, ev)
	ln := start(t, s, "0")
	c := dial(t, ln)
	echoes(t, c, []byte("x"))
	if err := s.Cut(99); !errors.Is(err, stream.ErrNoConn) {
		t.Errorf("got %v", err)
	}
	if err := s.Cut(1); err != nil {
		t.Error(err)
	}
	if _, err := c.Read(make([]byte, 1)); !isReset(err) {
		t.Errorf("the client saw %v", err)
	}
	if err := <-seen; !isReset(err) {
		t.Errorf("the target saw %v", err)
	}
	if end := ev.wait(t, stats.Disconnect); end.Cause != "cut" {
		t.Errorf("got %+v", end)
	}
}

func TestShutdownWaitsForConnectionsToEnd(t *testing.T) {
	target := targets(t, "0", echoBack)
	ev := &events{}
	s := relayTo(t, target, ev)
	ln := listen(t, "0")
	served := make(chan error, 1)
	go func() { served <- s.Serve(ln) }()
	c := dial(t, ln)
	echoes(t, c, []byte("x"))
	down := make(chan error, 1)
	go func() { down <- s.Shutdown(context.Background()) }()
	for range 2 { // a pause is no end
		time.Sleep(400 * time.Millisecond) // longer than what stream.Server takes for one
		echoes(t, c, []byte("more"))
	}
	c.(*net.TCPConn).CloseWrite()
	if n, err := c.Read(make([]byte, 1)); n != 0 || err != io.EOF {
		t.Errorf("got %d, %v", n, err)
	}
	if err := <-down; err != nil {
		t.Error(err)
	}
	if err := <-served; err != stream.ErrServerClosed {
		t.Errorf("Serve returned %v", err)
	}
	if end := ev.wait(t, stats.Disconnect); end.Cause != "peer closed" {
		t.Errorf("got %+v", end)
	}
}

func TestShutdownResetsWhatIsBusyTooLong(t *testing.T) {
	target := targets(t, "0", func(c net.Conn) {
		for {
			if _, err := c.Write(make([]byte, 10_000)); err != nil {
				return
			}
		}
	})
	s := relayTo(t, target, nil)
	ln := listen(t, "0")
	served := make(chan error, 1)
	go func() { served <- s.Serve(ln) }()
	c := dial(t, ln)
	readFull(t, c, 1000)
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	if err := s.Shutdown(ctx); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("got %v", err)
	}
	if _, err := io.Copy(io.Discard, c); !isReset(err) {
		t.Errorf("the client saw %v", err)
	}
	<-served
}

// relayWithFewDescriptors may hold 40 descriptors. It prints its address, and at
// the end of its input how many errors there were, the processor time and the first error.
func relayWithFewDescriptors() {
	if err := syscall.Setrlimit(syscall.RLIMIT_NOFILE, &syscall.Rlimit{Cur: 40, Max: 40}); err != nil {
		panic(err)
	}
	failed := make(chan string, 1000)
	pool, err := upstream.New(upstream.Config{Targets: []fivetuple.Endpoint{fivetuple.MustParseEndpoint(os.Getenv("TO"))}})
	if err != nil {
		panic(err)
	}
	s := &Server{Route: Route{Pool: pool}, Sink: stats.SinkFunc(func(e stats.Event) {
		if e.Kind == stats.Error {
			failed <- e.Err
		}
	})}
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		panic(err)
	}
	go s.Serve(ln)
	fmt.Println(ln.Addr())
	io.Copy(io.Discard, os.Stdin)
	fmt.Println(len(failed), cpu().Milliseconds(), <-failed)
}

func TestDescriptorExhaustionDisturbsNobodyAndIsOverWhenOneEnds(t *testing.T) {
	target := targets(t, "0", echoBack)
	cmd := child(t, "few-descriptors", "TO="+target.Addr().String())
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer cmd.Wait()
	defer in.Close()
	said := bufio.NewScanner(out)
	said.Scan()
	addr := said.Text()
	answered := func(c net.Conn, wait time.Duration) bool {
		c.SetDeadline(time.Now().Add(wait))
		_, err := io.ReadFull(c, make([]byte, 1))
		return err == nil
	}
	var conns []net.Conn
	var waiting net.Conn
	for range 100 { // until one is not served
		c, err := net.Dial("tcp", addr)
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		c.Write([]byte("x"))
		if !answered(c, 500*time.Millisecond) {
			waiting = c
			break
		}
		conns = append(conns, c)
	}
	if waiting == nil || len(conns) < 5 {
		t.Fatalf("%d connections were served by a process of 40 descriptors", len(conns))
	}
	big := make([]byte, 2<<20) // which would have a pipe
	for _, c := range conns[:3] {
		c.SetDeadline(time.Now().Add(20 * time.Second))
		go c.Write(big)
		if n, err := io.CopyN(io.Discard, c, int64(len(big))); err != nil {
			t.Fatalf("%d bytes, %v", n, err)
		}
	}
	for _, c := range conns[3:] {
		c.Close()
	}
	if !answered(waiting, 10*time.Second) {
		t.Error("the one that waited is not served when others have ended")
	}
	in.Close()
	said.Scan()
	var errs, ms int
	if fmt.Sscan(said.Text(), &errs, &ms); errs > 50 || !strings.Contains(said.Text(), "too many open files") {
		t.Errorf("got %q", said.Text())
	}
	runtime.KeepAlive(conns)
}

package splice

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/fivetuple/fivetuple"
	"github.com/fivetuple/fivetuple/relay/upstream"
	"github.com/fivetuple/fivetuple/stats"
	"github.com/fivetuple/fivetuple/stream"
)

// parcel is what another process would get of a connection.
type parcel struct {
	files []*os.File
	state []byte
}

func (p parcel) close() {
	for _, f := range p.files {
		f.Close()
	}
}

// pack hands all connections of a server off.
func pack(t testing.TB, s *Server) (all []parcel) {
	t.Helper()
	err := s.HandOff(func(files []*os.File, state []byte) error {
		all = append(all, parcel{files, state})
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return all
}

func unpack(t testing.TB, s *Server, all []parcel) {
	t.Helper()
	for _, p := range all {
		if err := s.Adopt(p.files, p.state); err != nil {
			t.Fatal(err)
		}
		p.close()
	}
}

// copyOf is another listener of the same socket.
func copyOf(t testing.TB, ln net.Listener) net.Listener {
	t.Helper()
	f, err := ln.(interface{ File() (*os.File, error) }).File()
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	c, err := net.FileListener(f)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// move hands everything from one server to another.
func move(t testing.TB, from, to *Server, ln net.Listener) net.Listener {
	t.Helper()
	next := copyOf(t, ln)
	all := pack(t, from)
	unpack(t, to, all)
	if err := from.Release(); err != nil {
		t.Fatal(err)
	}
	startOn(t, to, next)
	return next
}

func TestBusyPairsMoveAgainAndAgainWithoutALostByte(t *testing.T) {
	every(t, func(t *testing.T, from, to string) {
		conns, moves := 300, 20
		if raceEnabled {
			conns, moves = 50, 8
		}
		before := descriptors(t)
		target := targets(t, to, echoBack)
		pool := poolOf(t, endpoint(target))
		s := &Server{Route: Route{Pool: pool}}
		ln := listen(t, from)
		served := make(chan error, 1)
		go func() { served <- s.Serve(ln) }()
		ctx, stop := context.WithCancel(t.Context())
		var wg sync.WaitGroup
		for i := range conns {
			c, err := net.Dial(ln.Addr().Network(), ln.Addr().String())
			if err != nil {
				t.Fatal(err)
			}
			c.SetDeadline(time.Now().Add(time.Minute))
			wg.Go(func() {
				defer c.Close()
				if err := exchange(ctx, c, uint64(i)); err != nil {
					t.Errorf("client %d: %v", i, err)
				}
			})
		}
		waitForPairs(t, s, conns)
		for range moves {
			next := &Server{Route: Route{Pool: pool}}
			ln = move(t, s, next, ln)
			s = next
			eventually(t, "bytes are moved", func() bool {
				for _, p := range s.Pairs() {
					if p.Idle < 0.05 {
						return true
					}
				}
				return false
			})
		}
		stop()
		wg.Wait()
		if err := <-served; err != stream.ErrServerClosed {
			t.Errorf("the first Serve returned %v", err)
		}
		waitForPairs(t, s, 0)
		s.Shutdown(t.Context())
		target.Close()
		eventually(t, "all descriptors are given back", func() bool { return descriptors(t) <= before })
	})
}

// exchange sends random bytes ahead of their echo, with stalls of both, and checks
// what comes back, until ctx ends; then to the end of file. Only some are far ahead:
// hundreds that fill the buffers are more than the kernel's memory for TCP (tcp_mem,
// tcp(7)) holds, and then it drops what is on its way.
func exchange(ctx context.Context, c net.Conn, seed uint64) error {
	pieces, size := 4, 20_000
	if seed%16 == 0 {
		pieces, size = 16, 200_000
	}
	ahead, sent, stopped := make(chan int, pieces), make(chan int, 1), make(chan struct{})
	defer close(stopped)
	go func() {
		src, r := noise(seed), rand.New(rand.NewPCG(seed, 1))
		b, total := make([]byte, size), 0
		for ctx.Err() == nil {
			n := 1 + r.IntN(len(b))
			select {
			case ahead <- n:
			case <-stopped:
				return
			}
			src.Read(b[:n])
			if _, err := c.Write(b[:n]); err != nil {
				return
			}
			total += n
			time.Sleep(time.Duration(r.IntN(20)) * time.Millisecond) // clients think
		}
		sent <- total
		closeWrite(c)
	}()
	want, r := noise(seed), rand.New(rand.NewPCG(seed, 2))
	got, expected, total, due := make([]byte, 100_000), make([]byte, 100_000), 0, 0
	for {
		n, err := c.Read(got)
		want.Read(expected[:n])
		if string(got[:n]) != string(expected[:n]) {
			return fmt.Errorf("other bytes came back after %d", total)
		}
		total += n
		for total > due { // the piece is back, or begins to be
			due += <-ahead
		}
		if err == io.EOF {
			if all := <-sent; all != total {
				return fmt.Errorf("%d bytes sent, %d came back", all, total)
			}
			return nil
		}
		if err != nil {
			return fmt.Errorf("after %d bytes: %w", total, err)
		}
		if r.IntN(10) == 0 {
			time.Sleep(time.Duration(r.IntN(10)) * time.Millisecond) // and stall
		}
	}
}

func TestWhatWaitedInAPipeIsDeliveredByTheNext(t *testing.T) {
	goOn, sum := make(chan struct{}), make(chan int64, 1)
	target := targets(t, "0", func(c net.Conn) {
		<-goOn
		n, _ := io.Copy(io.Discard, c)
		sum <- n
	})
	ev := &events{}
	pool := poolOf(t, endpoint(target))
	a, b := &Server{Sink: ev, Route: Route{Pool: pool}}, &Server{Sink: ev, Route: Route{Pool: pool}}
	ln := start(t, a, "0")
	c := dial(t, ln)
	n := int64(fill(c))
	if p := a.Pairs(); len(p) != 1 || p[0].Up.InPipe+p[0].Up.InBuffer == 0 {
		t.Fatalf("nothing waits: %+v", p)
	}
	if got := pool.Find(fivetuple.AddressOf(target.Addr()).AddrPort, "").Conns(); got != 1 {
		t.Errorf("the address counts %d connections", got)
	}
	closeWrite(c)
	ln = move(t, a, b, ln)
	if got := pool.Find(fivetuple.AddressOf(target.Addr()).AddrPort, "").Conns(); got != 1 {
		t.Errorf("the address counts %d connections after the move", got)
	}
	move(t, b, &Server{Sink: ev, Route: Route{Pool: pool}}, ln)
	close(goOn)
	if got := <-sum; got != n {
		t.Errorf("%d bytes of %d arrived", got, n)
	}
	end := ev.wait(t, stats.Disconnect)
	if end.BytesIn != uint64(n) || end.Conn != 1 || end.Tuple.Remote.String() != c.LocalAddr().String() {
		t.Errorf("got %+v, want %d bytes in", end, n)
	}
	eventually(t, "the address counts none", func() bool { return pool.Find(fivetuple.AddressOf(target.Addr()).AddrPort, "").Conns() == 0 })
}

func TestAHalfClosedPairStaysSoWhenItMoves(t *testing.T) {
	goOn := make(chan struct{})
	target := targets(t, "0", func(c net.Conn) {
		b, _ := io.ReadAll(c)
		<-goOn
		c.Write(b)
	})
	ev := &events{}
	pool := poolOf(t, endpoint(target))
	a, b := &Server{Sink: ev, Route: Route{Pool: pool}}, &Server{Sink: ev, Route: Route{Pool: pool}}
	ln := start(t, a, "0")
	c := dial(t, ln)
	c.Write([]byte("request"))
	closeWrite(c)
	eventually(t, "it is half-closed", func() bool { p := a.Pairs(); return len(p) == 1 && p[0].State == "half-closed up" })
	move(t, a, b, ln)
	eventually(t, "it is still", func() bool { p := b.Pairs(); return len(p) == 1 && p[0].State == "half-closed up" })
	close(goOn)
	if got, err := io.ReadAll(c); string(got) != "request" || err != nil {
		t.Errorf("got %q, %v", got, err)
	}
	if end := ev.wait(t, stats.Disconnect); end.Cause != "peer closed" || end.BytesIn != 7 || end.BytesOut != 7 {
		t.Errorf("got %+v", end)
	}
}

func TestAClientWhoseGreetingIsNotWholeMoves(t *testing.T) {
	target := targets(t, "0", tellsAll)
	names := map[string]*upstream.Pool{"a.example": poolOf(t, endpoint(target))}
	ev := &events{}
	a := &Server{Sink: ev, Proxies: loopback, Route: Route{Names: names}}
	b := &Server{Sink: ev, Proxies: loopback, Route: Route{Names: names}}
	last := &Server{Sink: ev, Proxies: loopback, Route: Route{Names: names}}
	ln := start(t, a, "0")
	c := dial(t, ln)
	hello := greetingOf(t, "a.example")
	c.Write([]byte(theHeader[:10]))
	eventually(t, "part of the header was read", func() bool { return saidSoFar(a) == 10 })
	ln = move(t, a, b, ln)
	c.Write([]byte(theHeader[10:] + hello[:50]))
	eventually(t, "part of the greeting was read", func() bool { return saidSoFar(b) == 50 })
	move(t, b, last, ln)
	c.Write([]byte(hello[50:]))
	closeWrite(c)
	if got, err := io.ReadAll(c); string(got) != hello || err != nil {
		t.Errorf("got %d bytes of %d, %v", len(got), len(hello), err)
	}
	end := ev.wait(t, stats.Disconnect)
	if end.Tuple.Remote.String() != theClient || len(ev.waitFor(t, stats.Accept, 1)) != 1 {
		t.Errorf("got %+v", end)
	}
}

// saidSoFar is how much the only client of a server has said before it is connected.
func saidSoFar(s *Server) (n int) {
	for _, l := range s.allLoops() {
		l.each(func(p *pair) {
			if p.setup != nil {
				n = len(p.setup.said)
			}
		})
	}
	return n
}

func TestAClientWhoseTargetIsSoughtMoves(t *testing.T) {
	fd, err := syscall.Socket(syscall.AF_UNIX, syscall.SOCK_STREAM, 0)
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(syscall.Bind(fd, &syscall.SockaddrUnix{Name: "@splice-full"}), syscall.Listen(fd, 0)); err != nil {
		t.Fatal(err)
	}
	defer syscall.Close(fd)
	first, err := net.Dial("unix", "@splice-full") // takes the one place
	if err != nil {
		t.Fatal(err)
	}
	defer first.Close()
	full := fivetuple.MustParseEndpoint("unix://@splice-full")
	target := targets(t, "0", echoBack)
	a := &Server{Route: Route{Pool: poolOf(t, full)}}
	b := &Server{Route: Route{Pool: poolOf(t, endpoint(target))}}
	ln := start(t, a, "0")
	c := dial(t, ln)
	c.Write([]byte("before"))
	eventually(t, "it is connecting", func() bool { p := a.Pairs(); return len(p) == 1 && p[0].State == "connecting" })
	move(t, a, b, ln)
	if got := readFull(t, c, 6); string(got) != "before" {
		t.Errorf("got %q", got)
	}
}

func TestResumeGoesOnAsIfNothingHadHappened(t *testing.T) {
	target := targets(t, "0", echoBack)
	s := relayTo(t, target, nil)
	ln := start(t, s, "0")
	c := dial(t, ln)
	ctx, stop := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- exchange(ctx, c, 16) }()
	waitForPairs(t, s, 1)
	for range 20 {
		for _, p := range pack(t, s) {
			for _, f := range p.files {
				syscall.SetNonblock(int(f.Fd()), false) // which all share
			}
			p.close()
		}
		if err := s.Resume(); err != nil {
			t.Fatal(err)
		}
		time.Sleep(5 * time.Millisecond) // of work
	}
	echoes(t, dial(t, ln), []byte("a new one"))
	stop()
	if err := <-done; err != nil {
		t.Error(err)
	}
}

func TestWhatIsAdoptedIsLeftAloneUntilServed(t *testing.T) {
	target := targets(t, "0", echoBack)
	s := relayTo(t, target, nil)
	ln := start(t, s, "0")
	c := dial(t, ln)
	echoes(t, c, []byte("x"))
	all := pack(t, s)
	other := relayTo(t, target, nil)
	unpack(t, other, all)
	c.Write([]byte("later"))
	if err := other.Release(); err != nil {
		t.Fatal(err)
	}
	if err := s.Resume(); err != nil {
		t.Fatal(err)
	}
	if got := readFull(t, c, 5); string(got) != "later" {
		t.Errorf("got %q", got)
	}
}

func TestAdoptRefusesWhatDoesNotBelongTogether(t *testing.T) {
	target := targets(t, "0", echoBack)
	s := relayTo(t, target, nil)
	ln := start(t, s, "0")
	echoes(t, dial(t, ln), []byte("x"))
	all := pack(t, s)
	defer all[0].close()
	other := relayTo(t, target, nil)
	file, err := os.CreateTemp(t.TempDir(), "")
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	before := descriptors(t)
	for what, p := range map[string]parcel{
		"a damaged state": {all[0].files, all[0].state[1:]},
		"no target":       {all[0].files[:1], all[0].state},
		"a file":          {[]*os.File{all[0].files[0], file}, all[0].state},
	} {
		if err := other.Adopt(p.files, p.state); err == nil {
			t.Errorf("%s is adopted", what)
		}
	}
	other.init()
	loops := len(other.loops) * 2
	if n := descriptors(t); n > before+loops {
		t.Errorf("%d descriptors after, %d before", n, before)
	}
	other.Release()
	s.Resume()
}

package loop

import (
	"bytes"
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
	"github.com/fivetuple/fivetuple/stats"
	"github.com/fivetuple/fivetuple/stream"
)

// parcel is what another process would get of a connection.
type parcel struct {
	file  *os.File
	state []byte
}

// pack hands all connections of a server off.
func pack(t testing.TB, s *Server) (all []parcel) {
	t.Helper()
	err := s.HandOff(func(f *os.File, state []byte) error {
		all = append(all, parcel{f, state})
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
		if err := s.Adopt(p.file, p.state); err != nil {
			t.Fatal(err)
		}
		p.file.Close()
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

// move hands everything from one server to another of its kind.
func move(t testing.TB, from, to *Server, ln net.Listener) net.Listener {
	t.Helper()
	next := copyOf(t, ln)
	startOn(t, loops{to}, next)
	all := pack(t, from)
	unpack(t, to, all)
	if err := from.Release(); err != nil {
		t.Fatal(err)
	}
	return next
}

func TestBusyConnectionsMoveAgainAndAgainWithoutALostByte(t *testing.T) {
	for _, where := range []string{"0", "unix://@loop-test"} {
		t.Run(where, func(t *testing.T) {
			conns, moves := 1000, 20
			if raceEnabled {
				conns, moves = 100, 5
			}
			before := descriptors(t)
			s := &Server{Kind: "echo"}
			ln := listen(t, where)
			served := make(chan error, 1)
			go func() { served <- s.Serve(ln) }()
			ctx, stop := context.WithCancel(t.Context())
			var wg sync.WaitGroup
			for i := range conns {
				c := dial(t, ln)
				c.SetDeadline(time.Now().Add(time.Minute))
				wg.Go(func() {
					defer c.Close()
					if err := exchange(ctx, c, uint64(i)); err != nil {
						t.Errorf("client %d: %v", i, err)
					}
				})
			}
			waitForConns(t, loops{s}, conns)
			for range moves {
				next := &Server{Kind: "echo"}
				ln = move(t, s, next, ln)
				s = next
			}
			stop()
			wg.Wait()
			if err := <-served; err != stream.ErrServerClosed {
				t.Errorf("the first Serve returned %v", err)
			}
			s.Shutdown(t.Context())
			eventually(t, "all descriptors are given back", func() bool { return descriptors(t) <= before })
		})
	}
}

// exchange sends random bytes ahead of their echo, with stalls, and checks what
// comes back, until ctx ends; then to the end of file. It is not far ahead: a
// thousand that fill the buffers are more than the kernel's memory for TCP
// (tcp_mem, tcp(7)) holds.
func exchange(ctx context.Context, c net.Conn, seed uint64) error {
	const pieces, size = 4, 10_000
	ahead, sent, stopped := make(chan int, pieces), make(chan int, 1), make(chan struct{})
	defer close(stopped)
	go func() {
		src, piece := rand.NewChaCha8([32]byte{byte(seed), byte(seed >> 8), 1}), rand.New(rand.NewPCG(seed, 2))
		b, total := make([]byte, size), 0
		for ctx.Err() == nil {
			n := 1 + piece.IntN(len(b))
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
			time.Sleep(time.Duration(piece.IntN(20)) * time.Millisecond) // clients think
		}
		sent <- total
		closeWrite(c)
	}()
	want := rand.NewChaCha8([32]byte{byte(seed), byte(seed >> 8), 1})
	got, expected, total, due := make([]byte, size), make([]byte, size), 0, 0
	for {
		n, err := c.Read(got)
		want.Read(expected[:n])
		if !bytes.Equal(got[:n], expected[:n]) {
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
			return err
		}
	}
}

func TestAConnectionIsTheSameAfterItMoved(t *testing.T) {
	ev := &events{}
	a, b := &Server{Kind: "echo", Sink: ev}, &Server{Kind: "echo", Sink: ev}
	ln := start(t, loops{a}, "0")
	first := dial(t, ln)
	echoes(t, first, []byte("123"))
	c := dial(t, ln)
	echoes(t, c, []byte("4567"))
	next := move(t, a, b, ln)
	echoes(t, c, []byte("89"))
	echoes(t, dial(t, next), []byte("new"))
	first.Close()
	c.Close()
	for _, end := range ev.waitFor(t, stats.Disconnect, 2) {
		if end.Conn == 2 && (end.BytesIn != 6 || end.BytesOut != 6 || end.Tuple.Remote != fivetuple.AddressOf(c.LocalAddr()) || end.Tuple.Local != fivetuple.AddressOf(ln.Addr())) {
			t.Errorf("got %+v", end)
		}
	}
	accepts := ev.waitFor(t, stats.Accept, 3)
	if len(accepts) != 3 || accepts[2].Conn != 3 {
		t.Errorf("got accepts %+v", accepts)
	}
}

func TestWhatWasUnsentIsSentByTheNext(t *testing.T) {
	for _, kind := range []string{"echo", "discard"} {
		a, b := &Server{Kind: kind, Limits: stream.Limits{WriteQueue: 64 << 20}}, &Server{Kind: kind}
		ln := start(t, loops{a}, "0")
		c := dial(t, ln)
		waitForConns(t, loops{a}, 1)
		var want []byte
		if kind == "echo" {
			want = make([]byte, fill(c))
		} else {
			want = randomBytes(10 << 20)
			a.Broadcast(want)
		}
		move(t, a, b, ln)
		c.SetDeadline(time.Now().Add(20 * time.Second))
		closeWrite(c)
		if got, err := io.ReadAll(c); err != nil || kind == "discard" && !bytes.Equal(got, want) || len(got) != len(want) {
			t.Errorf("%s: got %d bytes of %d, %v", kind, len(got), len(want), err)
		}
	}
}

func TestAHalfClosedConnectionMovesAndEnds(t *testing.T) {
	ev := &events{}
	a, b := &Server{Kind: "echo"}, &Server{Kind: "echo", Sink: ev}
	ln := start(t, loops{a}, "0")
	c := dial(t, ln)
	sent := fill(c)
	c.SetDeadline(time.Now().Add(20 * time.Second))
	closeWrite(c)
	move(t, a, b, ln)
	if n, err := io.Copy(io.Discard, c); err != nil || int(n) != sent {
		t.Errorf("got %d bytes of %d, %v", n, sent, err)
	}
	if end := ev.wait(t, stats.Disconnect); end.Cause != "peer closed" || int(end.BytesOut) != sent {
		t.Errorf("got %+v", end)
	}
}

func TestAClosingConnectionMovesWithItsCause(t *testing.T) {
	ev := &events{}
	a, b := &Server{Kind: "chat"}, &Server{Kind: "chat", Sink: ev}
	ln := start(t, loops{a}, "0")
	c := dial(t, ln)
	io.WriteString(c, "/quit\n")
	if _, err := io.ReadAll(c); err != nil { // the server waits for our end
		t.Fatal(err)
	}
	move(t, a, b, ln)
	c.Close()
	if end := ev.wait(t, stats.Disconnect); end.Cause != "done" {
		t.Errorf("got %+v", end)
	}
}

func TestAHalfLineOfAChatMoves(t *testing.T) {
	a, b := &Server{Kind: "chat"}, &Server{Kind: "chat"}
	ln := start(t, loops{a}, "0")
	c := dial(t, ln)
	line(t, c)
	io.WriteString(c, "/who\nhel")
	line(t, c)
	move(t, a, b, ln)
	io.WriteString(c, "lo\n")
	if got := line(t, c); got != "[1] hello" {
		t.Errorf("got %q", got)
	}
}

func TestChargenGoesOnWhereItWas(t *testing.T) {
	a, b := &Server{Kind: "chargen"}, &Server{Kind: "chargen"}
	ln := start(t, loops{a}, "0")
	c := dial(t, ln)
	first := readFull(t, c, 1_000_000)
	move(t, a, b, ln)
	rest := readFull(t, c, 20_000_000)
	all := append(first, rest...)
	for i := 0; i+patternSize <= len(all); i += patternSize {
		if !bytes.Equal(all[i:i+patternSize], all[:patternSize]) {
			t.Fatalf("the pattern breaks after %d bytes", i)
		}
	}
}

func TestResumeGoesOnAsIfNothingHadHappened(t *testing.T) {
	s := &Server{Kind: "echo"}
	ln := start(t, loops{s}, "0")
	c := dial(t, ln)
	echoes(t, c, []byte("1"))
	broken := errors.New("the other is gone")
	err := s.HandOff(func(f *os.File, state []byte) error {
		f.Close()
		return broken
	})
	if !errors.Is(err, broken) {
		t.Errorf("HandOff returned %v", err)
	}
	late := dial(t, ln)
	for _, c := range []net.Conn{c, late} {
		c.Write([]byte("2"))
		c.SetReadDeadline(time.Now().Add(50 * time.Millisecond))
		if _, err := c.Read(nilByte()); !isTimeout(err) {
			t.Errorf("served while frozen: %v", err)
		}
		c.SetReadDeadline(time.Now().Add(10 * time.Second))
	}
	if err := s.HandOff(nil); err == nil {
		t.Error("a second HandOff began")
	}
	sent := inBackground(func() error { return s.Send(1, []byte("3")) })
	if err := s.Resume(); err != nil {
		t.Fatal(err)
	}
	if err := <-sent; err != nil {
		t.Errorf("Send over HandOff and Resume: %v", err)
	}
	readFull(t, c, 2)
	readFull(t, late, 1)
	if err := s.Resume(); err != nil {
		t.Errorf("a second Resume: %v", err)
	}
	if err := s.Release(); err == nil {
		t.Error("Release without HandOff")
	}
	echoes(t, c, []byte("4"))
}

func TestShutdownEndsAHandOff(t *testing.T) {
	s := &Server{Kind: "echo"}
	ln := listen(t, "0")
	served := goServe(loops{s}, ln)
	c := dial(t, ln)
	echoes(t, c, []byte("1"))
	for _, p := range pack(t, s) {
		p.file.Close()
	}
	if err := s.Shutdown(t.Context()); err != nil {
		t.Error(err)
	}
	<-served
	if _, err := c.Read(nilByte()); err != io.EOF {
		t.Errorf("got %v", err)
	}
	if err := s.HandOff(nil); !errors.Is(err, stream.ErrServerClosed) {
		t.Errorf("HandOff after Shutdown: %v", err)
	}
}

func TestReleaseDisturbsNeitherConnectionsNorTheSocketFile(t *testing.T) {
	path := t.TempDir() + "/s"
	ev := &events{}
	a := &Server{Kind: "echo", Sink: ev}
	ln := listen(t, "unix://"+path)
	served := goServe(loops{a}, ln)
	c := dial(t, ln)
	echoes(t, c, []byte("1"))
	all := pack(t, a)
	if err := a.Release(); err != nil {
		t.Fatal(err)
	}
	if err := <-served; err != stream.ErrServerClosed {
		t.Errorf("Serve returned %v", err)
	}
	if a.Send(1, []byte("x")) == nil || a.Broadcast([]byte("x")) > 0 || a.Len() != 0 {
		t.Error("the connection is still there")
	}
	c.SetReadDeadline(time.Now().Add(20 * time.Millisecond))
	if _, err := c.Read(nilByte()); !isTimeout(err) {
		t.Errorf("after Release: %v", err)
	}
	c.SetDeadline(time.Now().Add(10 * time.Second))
	if _, err := os.Stat(path); err != nil {
		t.Error(err)
	}
	b := &Server{Kind: "echo"} // which never serves a listener
	unpack(t, b, all)
	if err := b.Resume(); err != nil {
		t.Fatal(err)
	}
	echoes(t, c, []byte("2"))
	if err := b.Shutdown(t.Context()); err != nil {
		t.Error(err)
	}
	for _, e := range ev.snapshot() {
		if e.Kind == stats.Disconnect {
			t.Errorf("got %+v", e)
		}
	}
}

func TestWhatIsAdoptedWaitsForServeAndCanBeLeft(t *testing.T) {
	a, b := &Server{Kind: "echo"}, &Server{Kind: "echo"}
	ln := start(t, loops{a}, "0")
	c := dial(t, ln)
	echoes(t, c, []byte("1"))
	all := pack(t, a)
	c.Write([]byte("2"))
	unpack(t, b, all)
	if b.Len() != 1 {
		t.Errorf("%d connections adopted", b.Len())
	}
	c.SetReadDeadline(time.Now().Add(50 * time.Millisecond))
	if _, err := c.Read(nilByte()); !isTimeout(err) {
		t.Errorf("served before Serve: %v", err)
	}
	c.SetDeadline(time.Now().Add(10 * time.Second))
	if err := b.Release(); err != nil {
		t.Fatal(err)
	}
	if err := a.Resume(); err != nil {
		t.Fatal(err)
	}
	readFull(t, c, 1)
	echoes(t, c, []byte("3"))
	if err := (&Server{Kind: "echo"}).Release(); err != nil {
		t.Errorf("Release of a server that never was: %v", err)
	}
}

func TestLingerDoesNotResetWhatWasHandedOff(t *testing.T) {
	a, b := &Server{Kind: "echo"}, &Server{Kind: "echo"}
	ln := listen(t, "0", "linger=0s")
	startOn(t, loops{a}, ln)
	c := dial(t, ln)
	echoes(t, c, []byte("1"))
	move(t, a, b, ln)
	echoes(t, c, []byte("2"))
}

func TestAPeerThatResetBeforeTheMoveIsADisconnectOfTheNext(t *testing.T) {
	ev := &events{}
	a, b := &Server{Kind: "echo"}, &Server{Kind: "echo", Sink: ev}
	ln := start(t, loops{a}, "0")
	c := dial(t, ln)
	echoes(t, c, []byte("1"))
	all := pack(t, a)
	remote := fivetuple.AddressOf(c.LocalAddr())
	abort(c)
	unpack(t, b, all)
	if err := b.Resume(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { b.Shutdown(context.Background()) })
	if err := a.Release(); err != nil {
		t.Fatal(err)
	}
	if end := ev.wait(t, stats.Disconnect); end.Cause != "peer reset" || end.Tuple.Remote != remote {
		t.Errorf("got %+v", end)
	}
}

func TestAdoptRefusesWhatItCannotServe(t *testing.T) {
	echoState := (&snapshot{kind: "echo"}).encode()
	stream := func() *os.File { return socket(t, syscall.SOCK_STREAM) }
	for name, tt := range map[string]struct {
		file  *os.File
		state []byte
	}{
		"no state":        {stream(), nil},
		"another version": {stream(), []byte{9, 9}},
		"damaged":         {stream(), echoState[:len(echoState)-1]},
		"too much":        {stream(), append(echoState[:len(echoState):len(echoState)], 0)},
		"another kind":    {stream(), (&snapshot{kind: "chat"}).encode()},
		"a datagram":      {socket(t, syscall.SOCK_DGRAM), echoState},
		"no socket":       {os.Stdin, echoState},
	} {
		s := &Server{Kind: "echo"}
		if err := s.Adopt(tt.file, tt.state); err == nil {
			t.Errorf("%s: adopted", name)
		}
		if s.Len() != 0 {
			t.Errorf("%s: %d connections", name, s.Len())
		}
		s.Shutdown(t.Context())
	}
}

func socket(t *testing.T, kind int) *os.File {
	fds, err := syscall.Socketpair(syscall.AF_UNIX, kind|syscall.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	a, b := os.NewFile(uintptr(fds[0]), "a"), os.NewFile(uintptr(fds[1]), "b")
	t.Cleanup(func() { a.Close(); b.Close() })
	return a
}

func TestAdoptedIdsStayUnique(t *testing.T) {
	state := func(id uint64) []byte { return (&snapshot{kind: "echo", id: id}).encode() }
	s := &Server{Kind: "echo"}
	defer s.Shutdown(t.Context())
	for _, id := range []uint64{7, 7, 3} {
		if err := s.Adopt(socket(t, syscall.SOCK_STREAM), state(id)); err != nil {
			t.Fatal(err)
		}
	}
	if ids := waitForConns(t, loops{s}, 3); fmt.Sprint(ids) != "[3 7 8]" {
		t.Errorf("got ids %v", ids)
	}
}

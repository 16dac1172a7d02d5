package splice

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/fivetuple/fivetuple"
	"github.com/fivetuple/fivetuple/stats"
)

// ways are the kinds of sockets a pair can have.
var ways = []struct{ name, from, to string }{
	{"tcp to tcp", "0", "0"},
	{"tcp6 to tcp6", "tcp6://0", "tcp6://0"},
	{"tcp to unix", "0", "unix://@splice-target"},
	{"unix to tcp", "unix://@splice-relay", "0"},
	{"unix to unix", "unix://@splice-relay", "unix://@splice-target"},
}

// every runs a test on every kind of pair.
func every(t *testing.T, test func(t *testing.T, from, to string)) {
	for _, w := range ways {
		t.Run(w.name, func(t *testing.T) { test(t, w.from, w.to) })
	}
}

// script is what one end of a connection does, from a seed that both ends know.
type script struct {
	seed uint64
	size int // bytes it sends
	cut  int // it resets the connection after so many; -1 for not at all
}

// scriptOf is what the client (0) or the target (1) of a seed does. Of eight, one
// is cut short by the client and one by the target.
func scriptOf(seed uint64, end int, most int) script {
	r := rand.New(rand.NewPCG(seed, uint64(end)))
	s := script{seed: seed*2 + uint64(end), cut: -1}
	switch r.IntN(4) {
	case 0: // nothing
	case 1:
		s.size = r.IntN(100)
	default:
		s.size = r.IntN(most)
	}
	if int(seed%8) == end {
		s.cut = r.IntN(s.size + 1)
	}
	return s
}

func noise(seed uint64) *rand.ChaCha8 {
	var key [32]byte
	binary.LittleEndian.PutUint64(key[:], seed)
	return rand.NewChaCha8(key)
}

// send sends what the script has, in pieces, with stalls.
func (s script) send(c net.Conn) {
	src, r := noise(s.seed), rand.New(rand.NewPCG(s.seed, 9))
	b := make([]byte, 200_000)
	for sent := 0; sent < s.size; {
		n := min(1+r.IntN(len(b)), s.size-sent)
		if r.IntN(3) == 0 {
			n = min(n, 1+r.IntN(500))
		}
		if s.cut >= 0 && sent+n > s.cut {
			break
		}
		src.Read(b[:n])
		if _, err := c.Write(b[:n]); err != nil {
			return
		}
		sent += n
		if r.IntN(8) == 0 {
			time.Sleep(time.Duration(r.IntN(5)) * time.Millisecond) // a sender that stalls
		}
	}
	if s.cut >= 0 {
		abort(c)
		return
	}
	closeWrite(c)
}

// check reads what the other end sends, with stalls, to its end. whole says whether the
// end must come, and without an error.
func (s script) check(c net.Conn, whole bool) error {
	src, r := noise(s.seed), rand.New(rand.NewPCG(s.seed, 10))
	got, want, total := make([]byte, 100_000), make([]byte, 100_000), 0
	for {
		n, err := c.Read(got[:1+r.IntN(len(got))])
		src.Read(want[:n])
		if !bytes.Equal(got[:n], want[:n]) {
			return fmt.Errorf("other bytes came after %d", total)
		}
		total += n
		switch {
		case total > s.size:
			return fmt.Errorf("%d bytes came of %d", total, s.size)
		case err == io.EOF && total < s.size && whole:
			return fmt.Errorf("the end came after %d bytes of %d", total, s.size)
		case err == io.EOF:
			return nil
		case errors.Is(err, os.ErrDeadlineExceeded):
			return fmt.Errorf("nothing came after %d bytes of %d", total, s.size)
		case err != nil && whole:
			return fmt.Errorf("after %d bytes of %d: %w", total, s.size, err)
		case err != nil:
			return nil
		}
		if r.IntN(8) == 0 {
			time.Sleep(time.Duration(r.IntN(5)) * time.Millisecond) // a receiver that stalls
		}
	}
}

// play is one end of a connection.
func play(c net.Conn, own, other script) error {
	whole := own.cut < 0 && other.cut < 0
	checked := make(chan error, 1)
	go func() { checked <- other.check(c, whole) }()
	own.send(c)
	return <-checked
}

func TestEveryByteArrivesThroughHalfClosesResetsAndStalls(t *testing.T) {
	every(t, func(t *testing.T, from, to string) {
		most, conns := 1<<20, 200
		if raceEnabled {
			conns = 64
		}
		const base = 1000
		var mu sync.Mutex
		var bad []error
		done := 0
		report := func(err error) {
			mu.Lock()
			defer mu.Unlock()
			if done++; err != nil {
				bad = append(bad, err)
			}
		}
		target := targets(t, to, func(c net.Conn) {
			var seed [8]byte
			if _, err := io.ReadFull(c, seed[:]); err != nil { // cut short before
				report(nil)
				return
			}
			n := binary.LittleEndian.Uint64(seed[:])
			if err := play(c, scriptOf(n, 1, most), scriptOf(n, 0, most)); err != nil {
				report(fmt.Errorf("target %d: %w", n, err))
				return
			}
			report(nil)
		})
		ev := &events{}
		s := relayTo(t, target, ev)
		ln := start(t, s, from)
		var wg sync.WaitGroup
		for i := range conns {
			n := uint64(base + i)
			wg.Go(func() {
				c, err := net.Dial(ln.Addr().Network(), ln.Addr().String())
				if err != nil {
					report(err)
					return
				}
				defer c.Close()
				c.SetDeadline(time.Now().Add(40 * time.Second))
				c.Write(binary.LittleEndian.AppendUint64(nil, n))
				if err := play(c, scriptOf(n, 0, most), scriptOf(n, 1, most)); err != nil {
					report(fmt.Errorf("client %d: %w", n, err))
					return
				}
				report(nil)
			})
		}
		wg.Wait()
		waitForPairs(t, s, 0)
		for _, err := range bad {
			t.Error(err)
		}
		if got := len(ev.waitFor(t, stats.Disconnect, conns)); got != conns {
			t.Errorf("%d ends of %d connections", got, conns)
		}
	})
}

func TestTheReplyAfterAHalfCloseArrives(t *testing.T) {
	every(t, func(t *testing.T, from, to string) {
		target := targets(t, to, func(c net.Conn) {
			b, err := io.ReadAll(c)
			if err != nil {
				t.Error(err)
			}
			c.Write(bytes.Repeat(b, 1000))
		})
		ev := &events{}
		ln := start(t, relayTo(t, target, ev), from)
		c := dial(t, ln)
		c.Write([]byte("request"))
		closeWrite(c)
		got, err := io.ReadAll(c)
		if err != nil || string(got) != strings.Repeat("request", 1000) {
			t.Fatalf("got %d bytes, %v, want 7000", len(got), err)
		}
		end := ev.wait(t, stats.Disconnect)
		if end.Cause != "peer closed" || end.BytesIn != 7 || end.BytesOut != 7000 || end.Err != "" {
			t.Errorf("got %+v", end)
		}
	})
}

func TestATargetThatEndsFirstStillGetsWhatTheClientSends(t *testing.T) {
	every(t, func(t *testing.T, from, to string) {
		got := make(chan string, 1)
		target := targets(t, to, func(c net.Conn) {
			c.Write([]byte("bye"))
			closeWrite(c)
			b, _ := io.ReadAll(c)
			got <- string(b)
		})
		ev := &events{}
		ln := start(t, relayTo(t, target, ev), from)
		c := dial(t, ln)
		if b, err := io.ReadAll(c); string(b) != "bye" || err != nil {
			t.Fatalf("got %q, %v", b, err)
		}
		c.Write([]byte("and so"))
		c.Close()
		if b := <-got; b != "and so" {
			t.Errorf("the target got %q", b)
		}
		if end := ev.wait(t, stats.Disconnect); end.Cause != "target closed" {
			t.Errorf("got %+v", end)
		}
	})
}

func TestAReplyArrivesThoughTheTargetTakesNoMoreOfTheRequest(t *testing.T) {
	every(t, func(t *testing.T, from, to string) {
		target := targets(t, to, func(c net.Conn) { // answers and goes away, unread bytes or not
			readFull(t, c, 5)
			c.Write(bytes.Repeat([]byte("no"), 20_000))
		})
		ln := start(t, relayTo(t, target, nil), from)
		for range 20 {
			c := dial(t, ln)
			c.Write([]byte("hello"))
			stop := make(chan struct{})
			var wg sync.WaitGroup
			wg.Go(func() {
				defer close(stop)
				for {
					if _, err := c.Write(make([]byte, 1000)); err != nil {
						return
					}
				}
			})
			b := make([]byte, 40_000)
			// The target's kernel drops what it had not sent yet when it resets; so much
			// fits the window that a connection begins with.
			if n, err := io.ReadFull(c, b); err != nil {
				t.Fatalf("%d bytes of the answer: %v", n, err)
			}
			<-stop // the client is told that its request was not taken
			wg.Wait()
			c.Close()
		}
	})
}

func TestAResetIsPassedOn(t *testing.T) {
	for _, by := range []string{"client", "target"} {
		t.Run(by, func(t *testing.T) {
			ends := make(chan net.Conn, 1)
			seen := make(chan error, 1)
			target := targets(t, "0", func(c net.Conn) {
				readFull(t, c, 1)
				if by == "target" {
					ends <- c
					<-seen
					return
				}
				_, err := io.Copy(io.Discard, c)
				seen <- err
			})
			ev := &events{}
			ln := start(t, relayTo(t, target, ev), "0")
			c := dial(t, ln)
			c.Write([]byte("x"))
			want := "peer reset"
			if by == "target" {
				abort(<-ends)
				_, err := c.Read(make([]byte, 1))
				want = "target reset"
				seen <- err
				if !isReset(err) {
					t.Errorf("the client saw %v, want a reset", err)
				}
			} else {
				eventually(t, "the pair is connected", func() bool { return len(ev.waitFor(t, stats.Forward, 1)) == 1 })
				abort(c)
				if err := <-seen; !isReset(err) {
					t.Errorf("the target saw %v, want a reset", err)
				}
			}
			if end := ev.wait(t, stats.Disconnect); end.Cause != want || !strings.Contains(end.Err, "connection reset") {
				t.Errorf("got %+v, want %s", end, want)
			}
		})
	}
}

func TestAResetIsPassedOnThoughTheOtherSideStalls(t *testing.T) {
	cut, seen := make(chan struct{}), make(chan error, 1)
	target := targets(t, "0", func(c net.Conn) {
		<-cut
		n, err := io.Copy(io.Discard, c)
		if n < 1<<16 {
			t.Errorf("%d bytes arrived", n)
		}
		seen <- err
	})
	ev := &events{}
	s := relayTo(t, target, ev)
	ln := start(t, s, "0")
	c := dial(t, ln)
	fill(c)
	eventually(t, "bytes wait", func() bool { p := s.Pairs(); return len(p) == 1 && p[0].Up.InPipe+p[0].Up.InBuffer > 0 })
	abort(c)
	eventually(t, "the reset is seen", func() bool { p := s.Pairs(); return len(p) == 1 && p[0].State == "half-closed down" })
	close(cut) // it gets what was sent to it, and then the reset
	if err := <-seen; !isReset(err) {
		t.Errorf("the target saw %v, want a reset", err)
	}
	if end := ev.wait(t, stats.Disconnect); end.Cause != "peer reset" {
		t.Errorf("got %+v", end)
	}
	waitForPairs(t, s, 0)
}

// fill writes until nothing more is taken for a while, and returns how much was.
func fill(c net.Conn) (n int) {
	b := make([]byte, 256<<10)
	for {
		c.SetWriteDeadline(time.Now().Add(300 * time.Millisecond))
		m, err := c.Write(b)
		n += m
		if err != nil {
			c.SetDeadline(time.Now().Add(20 * time.Second))
			return n
		}
	}
}

func TestAReceiverThatStallsHoldsTheSenderUpAndLosesNothing(t *testing.T) {
	every(t, func(t *testing.T, from, to string) {
		goOn, sum := make(chan struct{}), make(chan int64, 1)
		target := targets(t, to, func(c net.Conn) {
			<-goOn
			n, _ := io.Copy(io.Discard, c)
			sum <- n
		})
		s := relayTo(t, target, nil)
		ln := start(t, s, from)
		c := dial(t, ln)
		sent := int64(fill(c))
		pairs := s.Pairs()
		if len(pairs) != 1 || pairs[0].Slow != "target" || pairs[0].Up.Waits != "receiver" {
			t.Errorf("got %+v, want the target to be the slow side", pairs)
		}
		close(goOn)
		closeWrite(c)
		if n := <-sum; n != sent {
			t.Errorf("%d bytes arrived of %d", n, sent)
		}
	})
}

func TestEventsNameBothSidesOfAConnection(t *testing.T) {
	target := targets(t, "0", echoBack)
	ev := &events{}
	ln := start(t, relayTo(t, target, ev), "0")
	c := dial(t, ln)
	echoes(t, c, []byte("12345"))
	c.Close()
	accept, connect, end := ev.wait(t, stats.Accept), ev.wait(t, stats.Forward), ev.wait(t, stats.Disconnect)
	client := fivetuple.Tuple{Protocol: fivetuple.TCP, Local: fivetuple.AddressOf(ln.Addr()), Remote: fivetuple.AddressOf(c.LocalAddr())}
	if accept.Tuple != client || end.Tuple != client || accept.Conn != 1 || end.Conn != 1 || accept.Service != "s" {
		t.Errorf("got accept %+v and disconnect %+v, want %v", accept, end, client)
	}
	if connect.Tuple.Remote != fivetuple.AddressOf(target.Addr()) || connect.Tuple.Local.IsZero() || connect.Conn != 1 {
		t.Errorf("got connect %+v", connect)
	}
	if end.BytesIn != 5 || end.BytesOut != 5 || end.TCP == nil || end.TCP.MSS == 0 || end.Cause != "peer closed" {
		t.Errorf("got disconnect %+v", end)
	}
}

func TestUrgentDataIsPassedOnInItsPlaceAndStopsNothing(t *testing.T) {
	got := make(chan []byte, 1)
	target := targets(t, "0", func(c net.Conn) {
		b, _ := io.ReadAll(c)
		got <- b
	})
	ln := start(t, relayTo(t, target, nil), "0")
	c := dial(t, ln)
	var want []byte
	raw, err := c.(*net.TCPConn).SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	piece := bytes.Repeat([]byte("p"), 300_000)
	for range 10 {
		if _, err := c.Write(piece); err != nil {
			t.Fatal(err)
		}
		want = append(append(want, piece...), '!')
		raw.Write(func(fd uintptr) bool {
			return syscall.Sendto(int(fd), []byte("!"), syscall.MSG_OOB, nil) != syscall.EAGAIN
		})
	}
	closeWrite(c)
	if b := <-got; !bytes.Equal(b, want) {
		t.Errorf("%d bytes came of %d", len(b), len(want))
	}
}

func TestARateHoldsForEachDirection(t *testing.T) {
	const rate, size = 400_000, 200_000
	target := targets(t, "0", echoBack)
	s := relayTo(t, target, nil)
	s.Route.Rate = rate
	ln := start(t, s, "0")
	c := dial(t, ln)
	began := time.Now()
	go c.Write(make([]byte, size))
	readFull(t, c, size)
	// A tenth of a second's worth comes at once.
	if took, least := time.Since(began), time.Second*size/rate-150*time.Millisecond; took < least {
		t.Errorf("%d bytes took %v, want at least %v", size, took, least)
	}
}

package cli

import (
	"encoding/binary"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// fromEnv is a number that a longer run than that of CI gives.
func fromEnv(name string, otherwise int) int {
	if n, err := strconv.Atoi(os.Getenv(name)); err == nil {
		return n
	}
	return otherwise
}

// busy is a connection that has something under way all the time.
type busy struct {
	net.Conn
	moved atomic.Uint64 // bytes that came back
}

// run sends a stream of numbers in pieces of random length until stop is closed,
// checks what comes back, and then that nothing is missing at the end of file.
func (b *busy) run(seed uint64, stop <-chan struct{}) error {
	random := rand.New(rand.NewPCG(seed, 0))
	sent := make(chan uint64, 1)
	window := make(chan struct{}, 2) // pieces under way: with more, buffers overflow and the kernel sends again
	failed := make(chan struct{})
	go func() {
		defer close(sent)
		var total uint64
		piece := make([]byte, 0, 4<<10)
		for {
			select {
			case <-stop:
				b.Conn.(*net.TCPConn).CloseWrite()
				sent <- total
				return
			case <-failed:
				return
			case window <- struct{}{}:
			}
			piece = piece[:8*(1+random.IntN(cap(piece)/8))]
			for i := 0; i < len(piece); i += 8 {
				binary.BigEndian.PutUint64(piece[i:], seed<<32+(total+uint64(i))/8)
			}
			n, err := b.Write(piece)
			total += uint64(n)
			if err != nil {
				return
			}
		}
	}()
	defer close(failed)
	buffer := make([]byte, 32<<10)
	var got uint64
	var word [8]byte
	for {
		b.SetReadDeadline(time.Now().Add(30 * time.Second))
		n, err := b.Read(buffer)
		for _, c := range buffer[:n] {
			if word[got%8] = c; got%8 == 7 && binary.BigEndian.Uint64(word[:]) != seed<<32+got/8 {
				return fmt.Errorf("connection %d: byte %d is not what was sent", seed, got)
			}
			got++
		}
		b.moved.Store(got)
		select {
		case <-window:
		default:
		}
		if err == io.EOF {
			break
		}
		if err != nil {
			return fmt.Errorf("connection %d: after %d bytes: %w", seed, got, err)
		}
	}
	if total, ok := <-sent; !ok || total != got {
		return fmt.Errorf("connection %d: %d of %d bytes came back", seed, got, total)
	}
	return nil
}

// busyConns opens n of them, and returns a function that ends them and waits.
func busyConns(t *testing.T, address string, n int) (conns []*busy, finish func()) {
	t.Helper()
	stop := make(chan struct{})
	errs := make(chan error, n)
	var wg sync.WaitGroup
	for i := range n {
		c, err := net.Dial("tcp", address)
		if err != nil {
			t.Fatal(err)
		}
		b := &busy{Conn: c}
		conns = append(conns, b)
		wg.Go(func() {
			defer c.Close()
			if err := b.run(uint64(i+1), stop); err != nil {
				errs <- err
			}
		})
	}
	return conns, func() {
		t.Helper()
		close(stop)
		wg.Wait()
		close(errs)
		count := 0
		for err := range errs {
			if count++; count <= 5 {
				t.Error(err)
			}
		}
		if count > 0 {
			t.Errorf("%d of %d connections failed", count, n)
		}
	}
}

// allMove waits until bytes have come back on each connection since the call.
func allMove(t *testing.T, conns []*busy) {
	t.Helper()
	moved := make([]*atomic.Uint64, len(conns))
	for i, c := range conns {
		moved[i] = &c.moved
	}
	allRise(t, moved)
}

// allRise waits until each of the counters has risen since the call.
func allRise(t *testing.T, counters []*atomic.Uint64) {
	t.Helper()
	before := make([]uint64, len(counters))
	for i, c := range counters {
		before[i] = c.Load()
	}
	deadline := time.Now().Add(60 * time.Second)
	for i, c := range counters {
		for ; c.Load() == before[i]; time.Sleep(time.Millisecond) { // nothing else tells
			if time.Now().After(deadline) || t.Failed() {
				t.Fatalf("connection %d stands still", i+1)
			}
		}
	}
}

func TestHandoffUnderLoadLosesNothing(t *testing.T) {
	times, n := fromEnv("FT_HANDOFFS", 3), fromEnv("FT_HANDOFF_CONNS", 100)
	args := []string{"127.0.0.1:8611", "echo", "--handoff", filepath.Join(t.TempDir(), "control")}
	l := startListening(t, args...)
	address := l.address
	conns, finish := busyConns(t, address, n)

	// Beside them a client that comes and goes all the time.
	over := make(chan struct{})
	var came atomic.Int64
	var visitor sync.WaitGroup
	visitor.Go(func() {
		for {
			select {
			case <-over:
				return
			default:
			}
			if err := visit(address); err != nil {
				t.Errorf("visitor %d: %v", came.Load(), err)
				return
			}
			came.Add(1)
		}
	})
	for range times {
		allMove(t, conns)
		successor := startListening(t, args...)
		if code := l.exitCode(t); code != exitDone {
			t.Fatalf("the predecessor ended with %d:\n%.1000s", code, &l.said)
		}
		l = successor
	}
	allMove(t, conns)
	close(over)
	visitor.Wait()
	finish()
	if code := l.stop(t); code != exitDone {
		t.Errorf("exit code %d:\n%.1000s", code, &l.said)
	}
	t.Logf("%d connections, %d hand-overs, %d visitors", n, times, came.Load())
}

func visit(address string) error {
	c, err := net.Dial("tcp", address)
	if err != nil {
		return err
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(30 * time.Second))
	io.WriteString(c, "hello")
	c.(*net.TCPConn).CloseWrite()
	b, err := io.ReadAll(c)
	if err == nil && string(b) != "hello" {
		err = fmt.Errorf("got %q", b)
	}
	return err
}

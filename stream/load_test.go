//go:build unix

package stream

import (
	"bufio"
	"bytes"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/fivetuple/fivetuple/stats"
)

func init() {
	children["echo-clients"] = echoClients
	children["few-descriptors"] = serveWithFewDescriptors
}

// child starts the test binary again as one of children.
func child(t *testing.T, name string, env ...string) *exec.Cmd {
	t.Helper()
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(exe)
	cmd.Env = append(append(os.Environ(), "STREAM_TEST_CHILD="+name), env...)
	cmd.Stderr = os.Stderr
	return cmd
}

// TestTenThousandClientsGetEveryByteBackInOrder runs the clients in a process
// of their own, as one process may not hold 20,000 descriptors.
func TestTenThousandClientsGetEveryByteBackInOrder(t *testing.T) {
	clients, size := 10_000, 1<<20
	if raceEnabled { // which is ten times slower: the same test, not the same load
		clients, size = 1_000, 128<<10
	}
	before := descriptors(t)
	goroutines := runtime.NumGoroutine()
	ev := newEvents()
	var counts stats.Sink = stats.SinkFunc(func(e stats.Event) {
		if e.Kind == stats.Error || e.Kind == stats.Disconnect && e.Err != "" {
			ev.Record(e)
		}
	})
	s := &Server{Handler: Echo(), Sink: counts}
	ln, err := ListenConfig{}.Listen(t.Context(), endpoint(t, "0"))
	if err != nil {
		t.Fatal(err)
	}
	served := make(chan error, 1)
	go func() { served <- s.Serve(ln) }()
	began := time.Now()
	cmd := child(t, "echo-clients", "TO="+ln.Addr().String(), fmt.Sprint("CLIENTS=", clients), fmt.Sprint("SIZE=", size))
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("clients: %v", err)
	}
	if want := fmt.Sprintf("ok %d\n", clients); string(out) != want {
		t.Errorf("clients said %q, want %q", out, want)
	}
	t.Logf("%d clients, %d bytes each: %v", clients, size, time.Since(began).Round(time.Millisecond))
	if err := s.Shutdown(t.Context()); err != nil {
		t.Error(err)
	}
	<-served
	if bad := ev.snapshot(); len(bad) > 0 {
		t.Errorf("%d errors, the first: %+v", len(bad), bad[0])
	}
	if now := descriptors(t); now > before {
		t.Errorf("%d descriptors, %d before", now, before)
	}
	if now := runtime.NumGoroutine(); now > goroutines {
		t.Errorf("%d goroutines, %d before", now, goroutines)
	}
}

func descriptors(t *testing.T) int {
	entries, err := os.ReadDir("/dev/fd")
	if err != nil {
		t.Fatal(err)
	}
	return len(entries)
}

// echoClients connects all clients first, then each sends its own random bytes
// in random pieces and checks what comes back.
func echoClients() {
	var n, size int
	fmt.Sscan(os.Getenv("CLIENTS"), &n)
	fmt.Sscan(os.Getenv("SIZE"), &size)
	conns := make([]net.Conn, n)
	for i := range conns {
		c, err := net.Dial("tcp", os.Getenv("TO"))
		if err != nil {
			fmt.Fprintln(os.Stderr, "client", i, err)
			os.Exit(1)
		}
		conns[i] = c
	}
	var wg sync.WaitGroup
	var mu sync.Mutex
	ok := 0
	for i, c := range conns {
		wg.Go(func() {
			if err := echoOnce(c, uint64(i), size); err != nil {
				fmt.Fprintln(os.Stderr, "client", i, err)
				return
			}
			mu.Lock()
			ok++
			mu.Unlock()
		})
	}
	wg.Wait()
	fmt.Println("ok", ok)
}

// echoOnce sends size random bytes in random pieces. It runs ahead of the echo
// by no more than a piece: ten thousand clients that fill their send buffers
// are more than the kernel's memory for TCP (tcp_mem, tcp(7)) holds.
func echoOnce(c net.Conn, seed uint64, size int) error {
	defer c.Close()
	src, piece := rand.NewChaCha8([32]byte{byte(seed), byte(seed >> 8), 1}), rand.New(rand.NewPCG(seed, 2))
	b, back := make([]byte, 40_000), make([]byte, 40_000)
	for left := size; left > 0; {
		n := min(left, 1+piece.IntN(len(b)))
		src.Read(b[:n])
		if _, err := c.Write(b[:n]); err != nil {
			return err
		}
		if _, err := io.ReadFull(c, back[:n]); err != nil {
			return err
		}
		if !bytes.Equal(back[:n], b[:n]) {
			return fmt.Errorf("other bytes came back after %d", size-left)
		}
		left -= n
	}
	if err := c.(*net.TCPConn).CloseWrite(); err != nil {
		return err
	}
	if n, err := c.Read(b); n != 0 || err != io.EOF {
		return fmt.Errorf("after the last byte: %d bytes, %v", n, err)
	}
	return nil
}

// serveWithFewDescriptors is an echo server that may hold 40 descriptors. It
// prints its address, and at the end of its input how often accept failed.
func serveWithFewDescriptors() {
	if err := syscall.Setrlimit(syscall.RLIMIT_NOFILE, &syscall.Rlimit{Cur: 40, Max: 40}); err != nil {
		panic(err)
	}
	failed := make(chan string, 1000)
	s := &Server{Handler: Echo(), Sink: stats.SinkFunc(func(e stats.Event) {
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
	fmt.Println(len(failed), <-failed)
}

func TestDescriptorExhaustionPausesAcceptAndDisturbsNobodyElse(t *testing.T) {
	cmd := child(t, "few-descriptors")
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
	lines := bufio.NewScanner(out)
	lines.Scan()
	addr := lines.Text()
	echoes := func(c net.Conn, wait time.Duration) bool {
		c.SetDeadline(time.Now().Add(wait))
		c.Write([]byte("x"))
		_, err := io.ReadFull(c, make([]byte, 1))
		return err == nil
	}
	var served []net.Conn
	var waiting net.Conn
	for range 100 { // until one is not served
		c, err := net.Dial("tcp", addr)
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		if !echoes(c, 300*time.Millisecond) {
			waiting = c
			break
		}
		served = append(served, c)
	}
	if waiting == nil || len(served) < 10 {
		t.Fatalf("%d clients served at 40 descriptors", len(served))
	}
	for _, c := range served {
		if !echoes(c, 10*time.Second) {
			t.Error("a client already connected was not served")
		}
	}
	served[0].Close()
	if _, err := waiting.Read(make([]byte, 1)); err == nil {
		t.Error("the deadline of the waiting client did not pass")
	}
	if !echoes(waiting, 10*time.Second) {
		t.Error("the waiting client was not served once a descriptor was free")
	}
	in.Close()
	lines.Scan()
	var failures int
	fmt.Sscan(lines.Text(), &failures)
	if failures < 1 || failures > 3 || !strings.Contains(lines.Text(), "too many open files") {
		t.Errorf("accept failures reported: %q, want one or a few", lines.Text())
	}
}

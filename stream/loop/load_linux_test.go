package loop

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
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
	"github.com/fivetuple/fivetuple/stream"
)

func init() {
	children["echo-clients"] = echoClients
	children["idle-clients"] = idleClients
	children["few-descriptors"] = serveWithFewDescriptors
}

// child starts the test binary again as one of children.
func child(t testing.TB, name string, env ...string) *exec.Cmd {
	t.Helper()
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(exe)
	cmd.Env = append(append(os.Environ(), "LOOP_TEST_CHILD="+name), env...)
	cmd.Stderr = os.Stderr
	return cmd
}

// TestTenThousandClientsGetEveryByteBackInOrder runs the clients in a process
// of their own, as one process may not hold 20,000 descriptors.
func TestTenThousandClientsGetEveryByteBackInOrder(t *testing.T) {
	clients, size := 10_000, 128<<10
	if raceEnabled { // which is ten times slower: the same test, not the same load
		clients, size = 1_000, 64<<10
	}
	before := descriptors(t)
	goroutines := runtime.NumGoroutine()
	ev := &events{}
	s := &Server{Kind: "echo", Sink: stats.SinkFunc(func(e stats.Event) {
		if e.Kind == stats.Error || e.Kind == stats.Disconnect && e.Err != "" {
			ev.Record(e)
		}
	})}
	ln := listen(t, "0")
	served := goServe(loops{s}, ln)
	cmd := child(t, "echo-clients", "TO="+ln.Addr().String(), fmt.Sprint("CLIENTS=", clients), fmt.Sprint("SIZE=", size))
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("clients: %v", err)
	}
	if want := fmt.Sprintf("ok %d\n", clients); string(out) != want {
		t.Errorf("clients said %q, want %q", out, want)
	}
	if err := s.Shutdown(t.Context()); err != nil {
		t.Error(err)
	}
	<-served
	if bad := ev.snapshot(); len(bad) > 0 {
		t.Errorf("%d errors, the first: %+v", len(bad), bad[0])
	}
	eventually(t, "descriptors and goroutines are given back", func() bool {
		return descriptors(t) <= before && runtime.NumGoroutine() <= goroutines
	})
}

func connectAll() []net.Conn {
	var n int
	fmt.Sscan(os.Getenv("CLIENTS"), &n)
	conns := make([]net.Conn, n)
	for i := range conns {
		c, err := net.Dial("tcp", os.Getenv("TO"))
		if err != nil {
			fmt.Fprintln(os.Stderr, "client", i, err)
			os.Exit(1)
		}
		conns[i] = c
	}
	return conns
}

// echoClients connects all clients first, then each sends its own random bytes
// and checks what comes back.
func echoClients() {
	var size int
	fmt.Sscan(os.Getenv("SIZE"), &size)
	var wg sync.WaitGroup
	var mu sync.Mutex
	ok := 0
	for i, c := range connectAll() {
		wg.Go(func() {
			if err := echoOnce(c, i, size); err != nil {
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

var errOther = errors.New("other bytes came back")

func echoOnce(c net.Conn, i, size int) error {
	defer c.Close()
	back := make([]byte, 20_000)
	for sent := 0; sent < size; {
		b := bytes.Repeat(fmt.Appendf(nil, "%d.%d ", i, sent), 1+(i+sent)%2000)
		b = b[:min(len(b), len(back))]
		if _, err := c.Write(b); err != nil {
			return err
		}
		if _, err := io.ReadFull(c, back[:len(b)]); err != nil {
			return err
		}
		if !bytes.Equal(back[:len(b)], b) {
			return errOther
		}
		sent += len(b)
	}
	closeWrite(c)
	if n, err := c.Read(back); n != 0 || err != io.EOF {
		return fmt.Errorf("after the last byte: %d bytes, %v", n, err)
	}
	return nil
}

// idleClients connects, says so, and waits for the end of its input.
func idleClients() {
	conns := connectAll()
	fmt.Println("connected")
	io.Copy(io.Discard, os.Stdin)
	runtime.KeepAlive(conns)
}

// serveWithFewDescriptors is an echo server that may hold 40 descriptors. It
// prints its address, and at the end of its input how often accept failed and
// the processor time it took.
func serveWithFewDescriptors() {
	if err := syscall.Setrlimit(syscall.RLIMIT_NOFILE, &syscall.Rlimit{Cur: 40, Max: 40}); err != nil {
		panic(err)
	}
	failed := make(chan string, 1000)
	s := &Server{Kind: "echo", Sink: stats.SinkFunc(func(e stats.Event) {
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
	said := bufio.NewScanner(out)
	said.Scan()
	addr := said.Text()
	served := func(c net.Conn, wait time.Duration) bool {
		c.SetDeadline(time.Now().Add(wait))
		c.Write([]byte("x"))
		_, err := io.ReadFull(c, nilByte())
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
		if !served(c, time.Second) {
			waiting = c
			break
		}
		conns = append(conns, c)
	}
	if waiting == nil || len(conns) < 10 {
		t.Fatalf("%d clients served at 40 descriptors", len(conns))
	}
	for _, c := range conns {
		if !served(c, 10*time.Second) {
			t.Error("a client already connected was not served")
		}
	}
	conns[0].Close()
	waiting.SetDeadline(time.Now().Add(10 * time.Second))
	if _, err := io.ReadFull(waiting, nilByte()); err != nil {
		t.Errorf("the waiting client was not served once a descriptor was free: %v", err)
	}
	in.Close()
	said.Scan()
	var failures, ms int
	fmt.Sscan(said.Text(), &failures, &ms)
	if failures < 1 || failures > 3 || !strings.Contains(said.Text(), "too many open files") {
		t.Errorf("accept failures reported: %q, want one or a few", said.Text())
	}
	if ms > 500 {
		t.Errorf("%d ms of processor time", ms)
	}
}

// TestAServerWithNothingToDoDoesNothing has peers of every troublesome kind.
func TestAServerWithNothingToDoDoesNothing(t *testing.T) {
	for _, kind := range Kinds() {
		for _, where := range []string{"0", "unix://@loop-test"} {
			t.Run(kind+" "+where, func(t *testing.T) {
				s := &Server{Kind: kind, Limits: stream.Limits{IdleTimeout: time.Hour, FirstByteTimeout: time.Hour}}
				ln := start(t, loops{s}, where)
				idle, stalled, half, gone := dial(t, ln), dial(t, ln), dial(t, ln), dial(t, ln)
				idle.Write([]byte("x\n"))
				for _, c := range []net.Conn{stalled, half, gone} {
					fill(c)
				}
				closeWrite(half)
				gone.Close()
				waitForQuiet(t)
			})
		}
	}
}

// waitForQuiet fails if this process does not come to use less than a hundredth
// of a processor.
func waitForQuiet(t *testing.T) {
	t.Helper()
	const window = 200 * time.Millisecond
	for range 30 {
		before := cpu()
		time.Sleep(window) // what is measured
		if cpu()-before < window/100 {
			return
		}
	}
	t.Error("the processor is kept busy")
}

func BenchmarkEcho(b *testing.B) {
	for _, size := range []int{64, 16 << 10} {
		b.Run(fmt.Sprint(size), func(b *testing.B) {
			ln := start(b, loops{&Server{Kind: "echo"}}, "0")
			c := dial(b, ln)
			c.SetDeadline(time.Time{})
			buf := make([]byte, size)
			b.ReportAllocs()
			for b.Loop() {
				c.Write(buf)
				if _, err := io.ReadFull(c, buf); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

func BenchmarkBroker(b *testing.B) {
	ln := start(b, loops{&Server{Kind: "broker"}}, "0")
	from, to := dial(b, ln), dial(b, ln)
	from.SetDeadline(time.Time{})
	to.SetDeadline(time.Time{})
	buf := make([]byte, 64)
	time.Sleep(50 * time.Millisecond) // both are there
	b.ReportAllocs()
	for b.Loop() {
		from.Write(buf)
		if _, err := io.ReadFull(to, buf); err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkIdleMemory reports what user memory an idle connection takes.
func BenchmarkIdleMemory(b *testing.B) {
	const clients = 18_000
	for b.Loop() {
		s := &Server{Kind: "echo"}
		ln := listen(b, "0")
		served := goServe(loops{s}, ln)
		heap, rss := memory(b)
		cmd := child(b, "idle-clients", "TO="+ln.Addr().String(), fmt.Sprint("CLIENTS=", clients))
		in, _ := cmd.StdinPipe()
		out, _ := cmd.StdoutPipe()
		if err := cmd.Start(); err != nil {
			b.Fatal(err)
		}
		bufio.NewReader(out).ReadString('\n')
		waitForConns(b, loops{s}, clients)
		heapNow, rssNow := memory(b)
		b.ReportMetric(float64(heapNow-heap)/clients, "heap-B/conn")
		b.ReportMetric(float64(rssNow-rss)/clients, "rss-B/conn")
		in.Close()
		cmd.Wait()
		s.Shutdown(b.Context())
		<-served
	}
}

// memory is the heap in use after a collection, and what the process holds.
func memory(b *testing.B) (heap, rss int) {
	runtime.GC()
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	status, err := os.ReadFile("/proc/self/status")
	if err != nil {
		b.Fatal(err)
	}
	_, after, _ := strings.Cut(string(status), "RssAnon:")
	fmt.Sscan(after, &rss)
	return int(m.HeapAlloc), rss << 10
}

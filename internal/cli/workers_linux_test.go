package cli

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// startWorkers starts a group and waits until each worker serves.
func startWorkers(t *testing.T, n int, args ...string) (l *listening, workers []int) {
	t.Helper()
	l = startListening(t, append([]string{"127.0.0.1:0", "echo", "--workers", strconv.Itoa(n)}, args...)...)
	l.await(t, fmt.Sprintf(": echo, %d worker", n))
	eventually(t, "all workers run", func() bool { workers = childrenOf(t, l.Process.Pid); return len(workers) == n })
	return l, workers
}

func eventually(t *testing.T, what string, condition func() bool) {
	t.Helper()
	for deadline := time.Now().Add(30 * time.Second); !condition(); time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("after half a minute it is still not so: %s", what)
		}
	}
}

// peersOf are the clients of a process, over IPv4.
func peersOf(t *testing.T, pid int) map[netip.AddrPort]bool {
	t.Helper()
	peers := make(map[netip.AddrPort]bool)
	eachSocket(t, pid, func(fd int) {
		if peer, err := unix.Getpeername(fd); err == nil {
			if a, ok := peer.(*unix.SockaddrInet4); ok {
				peers[netip.AddrPortFrom(netip.AddrFrom4(a.Addr), uint16(a.Port))] = true
			}
		}
	})
	return peers
}

// steady is a client that echoes numbers all the time.
type steady struct {
	busy
	local netip.AddrPort
	ended chan error // how it ended
}

// steadies are many of them.
type steadies struct {
	address string
	stop    chan struct{}
	opened  int
	clients []*steady
}

func (c *steadies) join(t *testing.T) {
	t.Helper()
	conn, err := net.Dial("tcp", c.address)
	if err != nil {
		t.Fatalf("client %d: %v", c.opened, err) // never refused
	}
	c.opened++
	s := &steady{busy: busy{Conn: conn}, local: conn.LocalAddr().(*net.TCPAddr).AddrPort(), ended: make(chan error, 1)}
	seed := uint64(c.opened)
	go func() {
		defer conn.Close()
		s.ended <- s.run(seed, c.stop)
	}()
	c.clients = append(c.clients, s)
}

func newSteadies(t *testing.T, address string, n int) *steadies {
	t.Helper()
	c := &steadies{address: address, stop: make(chan struct{})}
	t.Cleanup(func() {
		for _, s := range c.clients {
			s.Close()
		}
	})
	for range n {
		c.join(t)
	}
	return c
}

// lose takes those out that are among the peers: their connections must break.
func (c *steadies) lose(t *testing.T, peers map[netip.AddrPort]bool) (lost int) {
	t.Helper()
	c.clients = slices.DeleteFunc(c.clients, func(s *steady) bool {
		if !peers[s.local] {
			return false
		}
		select {
		case err := <-s.ended:
			if err == nil {
				t.Error("a client of a killed worker came to its end of file in order")
			}
		case <-time.After(30 * time.Second):
			t.Error("a client of a killed worker is not told")
		}
		lost++
		return true
	})
	return lost
}

// goesOn waits until bytes have come back to each since the call.
func (c *steadies) goesOn(t *testing.T) {
	t.Helper()
	for _, s := range c.clients {
		before := s.moved.Load()
		eventually(t, fmt.Sprintf("the client of port %d goes on after %d bytes", s.local.Port(), before), func() bool {
			select {
			case err := <-s.ended:
				t.Fatalf("the client of port %d has ended: %v", s.local.Port(), err)
			default:
			}
			return s.moved.Load() != before
		})
	}
}

// finish ends all, which must be in order, and returns the bytes that they moved.
func (c *steadies) finish(t *testing.T) (moved uint64) {
	t.Helper()
	close(c.stop)
	for _, s := range c.clients {
		if err := <-s.ended; err != nil {
			t.Error(err)
		}
		moved += s.moved.Load()
	}
	return moved
}

// visitors come and go until stop is called. served came to their end in order.
type visitors struct {
	served, broken atomic.Int64
	over           chan struct{}
	wg             sync.WaitGroup
	stop           func()
}

func newVisitors(t *testing.T, address string, n int) *visitors {
	v := &visitors{over: make(chan struct{})}
	v.stop = sync.OnceFunc(func() {
		close(v.over)
		v.wg.Wait()
	})
	t.Cleanup(v.stop)
	for range n {
		v.wg.Go(func() {
			for {
				select {
				case <-v.over:
					return
				default:
				}
				switch err := visit(address); {
				case err == nil:
					v.served.Add(1)
				case errors.Is(err, syscall.ECONNREFUSED):
					t.Errorf("visitor %d: %v", v.served.Load(), err)
				default:
					v.broken.Add(1)
				}
			}
		})
	}
	return v
}

func TestKillingWorkersUnderLoadDisturbsNobodyElse(t *testing.T) {
	const workers, atOnce = 3, 2
	kills, n := fromEnv("FT_WORKER_KILLS", 5), fromEnv("FT_WORKER_CONNS", 45)
	l, now := startWorkers(t, workers)
	crowd := newSteadies(t, l.address, n)
	guests := newVisitors(t, l.address, atOnce)
	crowd.goesOn(t)
	files := countFiles(t, l.Process.Pid)
	patience := time.Second + 5*startTime(t) // on a machine that has nothing else to do: a second
	lost, probes := 0, 0
	var longest time.Duration
	for i := range kills {
		victim := now[i%workers]
		peers := peersOf(t, victim)
		began := time.Now()
		if err := syscall.Kill(victim, syscall.SIGKILL); err != nil {
			t.Fatal(err)
		}
		took, tries := awaitSuccessor(t, l, now, began)
		longest, probes = max(longest, took), probes+tries
		now = childrenOf(t, l.Process.Pid)
		gone := crowd.lose(t, peers)
		crowd.goesOn(t)
		for range gone {
			crowd.join(t)
		}
		crowd.goesOn(t) // each has its worker before the next one dies
		lost += gone
	}
	if longest > patience {
		t.Errorf("it took %v until a successor served, want %v at most", longest, patience)
	}
	if lost == 0 {
		t.Error("no client was at a worker that was killed: what was tested?")
	}
	guests.stop()
	moved := crowd.finish(t)
	if broken := int(guests.broken.Load()); broken > kills*atOnce {
		t.Errorf("%d visitors were cut off by %d kills", broken, kills)
	}
	if after := countFiles(t, l.Process.Pid); after > files {
		t.Errorf("the parent has %d open files, %d before", after, files)
	}
	if code := l.stop(t); code != exitDone {
		t.Errorf("exit code %d", code)
	}
	sure := crowd.opened + probes + int(guests.served.Load())
	wantTotals(t, l, sure, sure+int(guests.broken.Load()), moved)
	t.Logf("%d kills: %d of %d clients lost theirs, %d visitors, %d cut off; a successor served within %v", kills, lost, crowd.opened, guests.served.Load(), guests.broken.Load(), longest)
}

// awaitSuccessor visits until a process that was not there before has served a
// visitor, and returns how long that took and how many visits.
func awaitSuccessor(t *testing.T, l *listening, before []int, began time.Time) (took time.Duration, visits int) {
	t.Helper()
	eventually(t, "a successor serves", func() bool {
		c, err := net.Dial("tcp", l.address)
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		visits++
		c.SetDeadline(time.Now().Add(30 * time.Second))
		io.WriteString(c, "hello")
		if _, err := io.ReadFull(c, make([]byte, 5)); err != nil {
			t.Fatal(err)
		}
		took = time.Since(began)
		for _, pid := range childrenOf(t, l.Process.Pid) {
			if !slices.Contains(before, pid) && peersOf(t, pid)[c.LocalAddr().(*net.TCPAddr).AddrPort()] {
				return true
			}
		}
		return false
	})
	return took, visits
}

// startTime is how long a program that does nothing takes here and now.
func startTime(t *testing.T) time.Duration {
	t.Helper()
	began := time.Now()
	if err := exec.Command("ft", "--version").Run(); err != nil {
		t.Fatal(err)
	}
	return time.Since(began)
}

func countFiles(t *testing.T, pid int) int {
	t.Helper()
	names, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", pid))
	if err != nil {
		t.Fatal(err)
	}
	return len(names)
}

var totals = regexp.MustCompile(`^served (\d+) connections?, (\S+) (\S+) in, `)

// wantTotals checks what was counted together: so many connections, and so many
// bytes at least, as what a killed worker moved in its last second is not known.
func wantTotals(t *testing.T, l *listening, least, most int, moved uint64) {
	t.Helper()
	line := l.await(t, "served ")
	m := totals.FindStringSubmatch(line)
	if m == nil {
		t.Fatalf("it said %q", line)
	}
	conns, _ := strconv.Atoi(m[1])
	if conns < least || conns > most {
		t.Errorf("%q, want %d to %d connections", line, least, most)
	}
	in, err := strconv.ParseFloat(m[2], 64)
	in *= map[string]float64{"B": 1, "KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30}[m[3]]
	if err != nil || in < 0.99*float64(moved) { // it was rounded
		t.Errorf("%q, want %d bytes at least (%v)", line, moved, err)
	}
}

func TestWorkersEndWithTheirParent(t *testing.T) {
	l, workers := startWorkers(t, 3, "--drain", "100ms")
	crowd := newSteadies(t, l.address, 12)
	crowd.goesOn(t)
	var ends []unix.PollFd
	for _, pid := range workers {
		fd, err := unix.PidfdOpen(pid, 0)
		if err != nil {
			t.Fatal(err)
		}
		defer unix.Close(fd)
		ends = append(ends, unix.PollFd{Fd: int32(fd), Events: unix.POLLIN})
	}
	began := time.Now()
	l.Process.Kill()
	eventually(t, "no worker is left", func() bool {
		n, err := unix.Poll(ends, 0)
		return err == nil && n == len(ends)
	})
	if c, err := net.Dial("tcp", l.address); !errors.Is(err, syscall.ECONNREFUSED) {
		t.Errorf("somebody listens there: %v", err)
		if err == nil {
			c.Close()
		}
	}
	t.Logf("they ended within %v", time.Since(began))
}

func TestWorkersDrainAtSIGTERM(t *testing.T) {
	const size = 4 << 20
	l, _ := startWorkers(t, 3, "--drain", "30s")
	c, err := net.Dial("tcp", l.address)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(60 * time.Second))
	go func() {
		c.Write(bytes.Repeat([]byte("0123456789abcdef"), size/16))
		c.(*net.TCPConn).CloseWrite()
	}()
	if _, err := io.ReadFull(c, make([]byte, 64<<10)); err != nil {
		t.Fatal(err)
	}
	l.Process.Signal(syscall.SIGTERM)
	eventually(t, "nobody is accepted any more", func() bool {
		other, err := net.Dial("tcp", l.address)
		if err == nil {
			other.Close()
		}
		return errors.Is(err, syscall.ECONNREFUSED)
	})
	if len(childrenOf(t, l.Process.Pid)) == 0 {
		t.Error("only when all workers had ended")
	}
	rest, err := io.ReadAll(c)
	if err != nil || len(rest) != size-64<<10 {
		t.Errorf("%d bytes came after the signal, want %d: %v", len(rest), size-64<<10, err)
	}
	if code := l.exitCode(t); code != exitDone {
		t.Errorf("exit code %d", code)
	}
	if said := l.said.String(); strings.Contains(said, "reset") || strings.Contains(said, "takes its place") {
		t.Errorf("it said\n%s", said)
	}
}

// workerGroup is a group of workers that is a process group, too, as the terminal's is.
func workerGroup(t *testing.T, args ...string) (b *background, address string) {
	t.Helper()
	b = runFT(t, func(c *exec.Cmd) { c.SysProcAttr = &syscall.SysProcAttr{Setpgid: true} }, append([]string{"ft", "listen", "127.0.0.1:0", "--workers", "3"}, args...)...)
	return b, b.listens(t)
}

// Ctrl-C reaches the whole process group: the parent, the workers, and these once
// more by the parent.
func TestWorkersEndInOrderAtCtrlC(t *testing.T) {
	b, address := workerGroup(t, "echo")
	clients := 0
	eventually(t, "each worker has a client, and so runs", func() bool {
		c := call(t, "tcp", address, "hello")
		c.SetDeadline(time.Now().Add(30 * time.Second))
		if _, err := io.ReadFull(c, make([]byte, 5)); err != nil {
			t.Fatal(err)
		}
		clients++
		workers := childrenOf(t, b.Process.Pid)
		return len(workers) == 3 && !slices.ContainsFunc(workers, func(pid int) bool { return len(peersOf(t, pid)) == 0 })
	})
	if err := syscall.Kill(-b.Process.Pid, syscall.SIGINT); err != nil {
		t.Fatal(err)
	}
	err := b.Wait()
	text := b.said.text()
	served := fmt.Sprintf("\nserved %d connections, %d B in, %[2]d B out, in ", clients, 5*clients)
	if err != nil || strings.Contains(text, "signal") || strings.Contains(text, "takes its place") || strings.Contains(text, "reset") || !strings.Contains(text, served) {
		t.Errorf("%v, want %q:\n%s", err, served, text)
	}
}

func TestWorkersEndAtOnceAtTheSecondCtrlC(t *testing.T) {
	b, address := workerGroup(t, "chargen", "--drain", "1h")
	c := call(t, "tcp", address, "")
	c.SetDeadline(time.Now().Add(30 * time.Second))
	if _, err := io.ReadFull(c, make([]byte, 1)); err != nil { // and no more: it is busy
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- b.Wait() }()
	again := time.NewTicker(300 * time.Millisecond)
	defer again.Stop()
	for signals := 1; ; signals++ {
		if err := syscall.Kill(-b.Process.Pid, syscall.SIGINT); err != nil {
			t.Fatal(err)
		}
		select {
		case err := <-ended:
			if text := b.said.text(); err != nil || signals < 2 || !strings.Contains(text, "\nconnections were reset, as a second signal came\n") {
				t.Errorf("after %d signals: %v:\n%s", signals, err, text)
			}
			return
		case <-again.C:
		}
		if signals == 100 {
			t.Fatal("it does not end")
		}
	}
}

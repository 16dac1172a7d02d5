package prefork

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"go.uber.org/goleak"
	"golang.org/x/sys/unix"
)

// roleVar makes a process of this binary a worker, or a parent.
const roleVar = "PREFORK_TEST_ROLE"

func TestMain(m *testing.M) {
	switch role := os.Getenv(roleVar); role {
	case "":
		goleak.VerifyTestMain(m)
	case "parent":
		os.Exit(parent())
	default:
		os.Exit(worker(role))
	}
}

const patience = 20 * time.Second

// What a worker counts.
const (
	accepted = iota
	ended
	counters
)

// worker tells each client its number and pid, and then sends back what it gets.
func worker(role string) int {
	if role == "crash" {
		return 3
	}
	term := make(chan os.Signal, 10)
	signal.Notify(term, syscall.SIGTERM, syscall.SIGINT)
	n, sockets, c, err := Inherited()
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	if role == "idle" {
		sockets = nil
		c.Add(accepted, 1)
	}
	for _, f := range sockets {
		if ln, err := net.FileListener(f); err == nil {
			go serve(ln, n, c)
		} else if conn, err := net.FilePacketConn(f); err == nil {
			go servePackets(conn, n, c)
		} else {
			fmt.Fprintln(os.Stderr, err)
			return 1
		}
	}
	if role == "once" {
		c.Add(accepted, 1)
		return 0
	}
	<-term
	if role == "stubborn" {
		select {}
	}
	return 0
}

func serve(ln net.Listener, n int, c *Counters) {
	for {
		conn, err := ln.Accept()
		if err != nil {
			return
		}
		c.Add(accepted, 1)
		go func() {
			fmt.Fprintf(conn, "%d %d\n", n, os.Getpid())
			io.Copy(conn, conn)
			conn.Close()
			c.Add(ended, 1)
		}()
	}
}

func servePackets(conn net.PacketConn, n int, c *Counters) {
	b := make([]byte, 100)
	for {
		_, from, err := conn.ReadFrom(b)
		if err != nil {
			return
		}
		c.Add(accepted, 1)
		conn.WriteTo(fmt.Appendf(nil, "%d %d\n", n, os.Getpid()), from)
	}
}

// parent is a group of two workers of the role in its argument, in a process of its own.
func parent() int {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT)
	defer stop()
	g := &Group{Command: command(os.Args[1]), Workers: 2, Counters: counters}
	for n := range g.Workers {
		g.Sockets = append(g.Sockets, []*os.File{os.NewFile(uintptr(3+n), "socket")})
	}
	if err := g.Run(ctx); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return 0
}

func command(role string) func(int) *exec.Cmd {
	return func(int) *exec.Cmd {
		cmd := exec.Command("/proc/self/exe")
		cmd.Env = append(os.Environ(), roleVar+"="+role, "GORACE=atexit_sleep_ms=10")
		cmd.Stderr = os.Stderr
		return cmd
	}
}

// run runs the group until the test or the returned function ends it.
func run(t *testing.T, g *Group) (stop func() error) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- g.Run(ctx) }()
	stopped := false
	stop = func() error {
		stopped = true
		cancel()
		return <-done
	}
	t.Cleanup(func() {
		if !stopped {
			if err := stop(); err != nil {
				t.Errorf("run: %v", err)
			}
		}
	})
	return stop
}

// tcp is a socket that listens, and its address. With SO_REUSEPORT there may be more
// at the address.
func tcp(t *testing.T, address string) (*os.File, string) {
	t.Helper()
	lc := net.ListenConfig{Control: reusePort}
	lc.SetMultipathTCP(false)
	ln, err := lc.Listen(t.Context(), "tcp", address)
	ok(t, err)
	f, err := ln.(*net.TCPListener).File()
	ok(t, err)
	ok(t, ln.Close())
	t.Cleanup(func() { f.Close() })
	return f, ln.Addr().String()
}

func udp(t *testing.T, address string) (*os.File, string) {
	t.Helper()
	lc := net.ListenConfig{Control: reusePort}
	conn, err := lc.ListenPacket(t.Context(), "udp", address)
	ok(t, err)
	f, err := conn.(*net.UDPConn).File()
	ok(t, err)
	ok(t, conn.Close())
	t.Cleanup(func() { f.Close() })
	return f, conn.LocalAddr().String()
}

func reusePort(_, _ string, c syscall.RawConn) (err error) {
	c.Control(func(fd uintptr) { err = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_REUSEPORT, 1) })
	return err
}

// client is a connection that a worker has accepted.
type client struct {
	net.Conn
	r       *bufio.Reader
	worker  int
	process int
}

func dial(address string) (*client, error) {
	conn, err := net.DialTimeout("tcp", address, patience)
	if err != nil {
		return nil, err
	}
	conn.SetDeadline(time.Now().Add(patience))
	return &client{Conn: conn, r: bufio.NewReader(conn)}, nil
}

// greeted waits for the worker to say who it is.
func (c *client) greeted() error {
	line, err := c.r.ReadString('\n')
	if err != nil {
		return err
	}
	_, err = fmt.Sscan(line, &c.worker, &c.process)
	return err
}

func (c *client) echo() error {
	fmt.Fprintf(c, "hello\n")
	line, err := c.r.ReadString('\n')
	if err == nil && line != "hello\n" {
		err = fmt.Errorf("got %q back", line)
	}
	return err
}

func connect(t *testing.T, address string) *client {
	t.Helper()
	c, err := dial(address)
	ok(t, err)
	t.Cleanup(func() { c.Close() })
	ok(t, c.greeted())
	return c
}

// suspend stops a process, and returns once it is stopped.
func suspend(t *testing.T, pid int) {
	t.Helper()
	ok(t, syscall.Kill(pid, syscall.SIGSTOP))
	eventually(t, "the worker is stopped", func() bool {
		stat, err := os.ReadFile(filepath.Join("/proc", strconv.Itoa(pid), "stat"))
		ok(t, err)
		return strings.HasPrefix(string(stat[strings.LastIndexByte(string(stat), ')'):]), ") T")
	})
}

// watch returns a function that waits for the end of a process of anyone's.
func watch(t *testing.T, pid int) (wait func()) {
	t.Helper()
	fd, err := unix.PidfdOpen(pid, 0)
	ok(t, err)
	t.Cleanup(func() { unix.Close(fd) })
	return func() {
		t.Helper()
		eventually(t, fmt.Sprintf("process %d has ended", pid), func() bool {
			n, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, 0)
			return err == nil && n == 1
		})
	}
}

func eventually(t *testing.T, what string, condition func() bool) {
	t.Helper()
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	for deadline := time.Now().Add(patience); !condition(); <-tick.C {
		if time.Now().After(deadline) {
			t.Fatalf("after %v still not: %s", patience, what)
		}
	}
}

func ok(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

package cli

import (
	"bytes"
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// background is an ft that runs while a test goes on.
type background struct {
	*exec.Cmd
	said saidLines
}

// runFT starts a command, ft or one that becomes ft, which is killed at the end of
// the test. Its standard input has no end, and nobody reads its standard output,
// unless set says otherwise.
func runFT(t *testing.T, set func(*exec.Cmd), args ...string) *background {
	t.Helper()
	b := &background{Cmd: exec.Command(args[0], args[1:]...), said: saidLines{changed: make(chan struct{}, 1)}}
	b.Stderr = &b.said
	open, held, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	unread, out, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	b.Stdin, b.Stdout = open, out
	if set != nil {
		set(b.Cmd)
	}
	err = b.Start()
	open.Close()
	out.Close()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		b.Process.Kill()
		b.Wait()
		held.Close()
		unread.Close()
	})
	return b
}

// listens waits until it listens, and returns where.
func (b *background) listens(t *testing.T) (address string) {
	t.Helper()
	b.said.await(t, func(line string) bool {
		_, rest, ok := strings.Cut(line, "listening on ")
		if !ok {
			return false
		}
		_, address, _ = strings.Cut(rest, " ")
		address, _, _ = strings.Cut(address, ": ")
		return true
	})
	return address
}

func (b *background) says(t *testing.T, text string) {
	t.Helper()
	b.said.await(t, func(line string) bool { return strings.Contains(line, text) })
}

// cpuTime is what a process has used.
func cpuTime(t *testing.T, pid int) time.Duration {
	t.Helper()
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		t.Fatal(err)
	}
	fields := strings.Fields(string(stat[bytes.LastIndexByte(stat, ')')+2:])) // from the third on
	user, _ := strconv.Atoi(fields[11])
	system, _ := strconv.Atoi(fields[12])
	return time.Duration(user+system) * 10 * time.Millisecond // USER_HZ is 100
}

// wantIdle watches processes for a second in which they have nothing to do.
func wantIdle(t *testing.T, pids map[string]int) {
	t.Helper()
	before := make(map[string]time.Duration)
	for what, pid := range pids {
		before[what] = cpuTime(t, pid)
	}
	time.Sleep(time.Second) // what is measured
	for what, pid := range pids {
		if used := cpuTime(t, pid) - before[what]; used >= 50*time.Millisecond {
			t.Errorf("%s: used %v of a processor in a second", what, used)
		}
	}
}

// resetPoints are when a client breaks off.
var resetPoints = map[string]func(c net.Conn, request string){
	"at once": func(net.Conn, string) {},
	"in the middle of the request": func(c net.Conn, request string) {
		io.WriteString(c, request[:len(request)/2])
	},
	"before the answer": func(c net.Conn, request string) { io.WriteString(c, request) },
	"in the middle of the answer": func(c net.Conn, request string) {
		io.WriteString(c, request)
		c.SetReadDeadline(time.Now().Add(200 * time.Millisecond)) // discard has none
		c.Read(make([]byte, 1))
	},
	"after its end of file": func(c net.Conn, request string) {
		io.WriteString(c, request)
		if hc, ok := c.(interface{ CloseWrite() error }); ok {
			hc.CloseWrite()
		}
	},
}

// breakOff resets the connection; a Unix socket's peer sees one if there is
// something unread.
func breakOff(c net.Conn) {
	below := c
	if tc, ok := c.(*tls.Conn); ok {
		below = tc.NetConn()
	}
	if tc, ok := below.(*net.TCPConn); ok {
		tc.SetLinger(0)
	}
	below.Close()
}

func TestServersOutliveClientsThatBreakOff(t *testing.T) {
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "file"), make([]byte, 8<<20), 0o600); err != nil {
		t.Fatal(err)
	}
	line := strings.Repeat("x", 4000) + "\n"
	get := "GET /file HTTP/1.1\r\nHost: x\r\n\r\n"
	pids := make(map[string]int)
	var mu sync.Mutex
	all := t // the servers run until its end
	t.Run("serve", func(t *testing.T) {
		for _, s := range []struct{ name, args, request, answer string }{
			{"echo by event loops", "127.0.0.1:0 echo --engine poll", line, line},
			{"echo by goroutines", "127.0.0.1:0 echo --engine goroutines", line, line},
			{"echo over TLS", "tls://127.0.0.1:0 echo --tls-self-signed", line, line},
			{"echo on a Unix socket by event loops", "unix://DIR/p echo --engine poll", line, line},
			{"echo on a Unix socket by goroutines", "unix://DIR/g echo --engine goroutines", line, line},
			{"echo of records", "seqpacket://DIR/q echo", line, line},
			{"discard", "127.0.0.1:0 discard", line, ""},
			{"chargen by event loops", "127.0.0.1:0 chargen --engine poll", line, ` !"#`},
			{"chargen by goroutines", "127.0.0.1:0 chargen --engine goroutines", line, ` !"#`},
			{"daytime", "127.0.0.1:0 daytime", line, time.Now().Format("Monday, ")},
			{"chat by event loops", "127.0.0.1:0 chat --engine poll", line, ""},
			{"chat by goroutines", "127.0.0.1:0 chat --engine goroutines", line, ""},
			{"broker by event loops", "127.0.0.1:0 broker --engine poll", line, ""},
			{"broker by goroutines", "127.0.0.1:0 broker --engine goroutines", line, ""},
			{"file", "127.0.0.1:0 file DIR/file", line, "\x00\x00"},
			{"http", "127.0.0.1:0 http DIR", get, "HTTP/1.1 200 OK"},
			{"exec", "127.0.0.1:0 exec -- cat", line, line},
			{"exec over TLS", "tls://127.0.0.1:0 exec --tls-self-signed -- cat", line, line},
			{"stdio", "127.0.0.1:0 stdio --keep", line, ""},
			{"workers", "127.0.0.1:0 echo --workers 1", line, line},
		} {
			t.Run(s.name, func(t *testing.T) {
				t.Parallel()
				args := strings.Fields(strings.ReplaceAll(s.args, "DIR", dir))
				b := runFT(all, func(c *exec.Cmd) { c.Stdin, c.Stdout = nil, nil }, append([]string{"ft", "listen"}, args...)...)
				dial := dialerOf(args[0], b.listens(t))
				var files int
				for round := range 3 { // after the first two everything is open that stays so
					wantAnswer(t, dial, s.request, s.answer)
					breakOffEverywhere(t, dial, s.request)
					wantAnswer(t, dial, s.request, s.answer)
					eventually(t, "no connection is left behind", func() bool { return countConnections(t, b.Process.Pid) == 0 })
					if round == 2 {
						eventually(t, "no descriptor is left behind", func() bool { return countFiles(t, b.Process.Pid) <= files })
					}
					files = countFiles(t, b.Process.Pid)
				}
				if !strings.Contains(s.args, "--workers") {
					eventually(t, "no child is left behind", func() bool { return len(childrenOf(t, b.Process.Pid)) == 0 })
				}
				if errors := strings.Count(b.said.text(), " error "); errors > 0 && !strings.Contains(s.args, "tls") {
					t.Errorf("clients that break off are no errors of the server:\n%.1000s", b.said.text())
				}
				mu.Lock()
				pids[s.name] = b.Process.Pid
				mu.Unlock()
			})
		}
	})
	wantIdle(t, pids)
}

// countConnections counts the sockets for connections that a process has, also those
// that are connected no more.
func countConnections(t *testing.T, pid int) (n int) {
	t.Helper()
	eachSocket(t, pid, func(fd int) {
		kind, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_TYPE)
		if err == nil && kind != unix.SOCK_DGRAM && !listens(fd) {
			n++
		}
	})
	return n
}

// breakOffEverywhere connects and breaks off, several times at once, at every point.
func breakOffEverywhere(t *testing.T, dial func() (net.Conn, error), request string) {
	var wg sync.WaitGroup
	for _, play := range resetPoints {
		wg.Go(func() {
			for range 5 {
				if c, err := dial(); err != nil {
					t.Error(err)
				} else {
					play(c, request)
					breakOff(c)
				}
			}
		})
	}
	wg.Wait()
}

// dialerOf connects to what listens.
func dialerOf(endpoint, address string) func() (net.Conn, error) {
	scheme, _, ok := strings.Cut(endpoint, "://")
	if !ok {
		scheme = "tcp"
	}
	network := map[string]string{"tcp": "tcp", "tls": "tcp", "unix": "unix", "seqpacket": "unixpacket"}[scheme]
	return func() (net.Conn, error) {
		c, err := net.Dial(network, address)
		if err != nil {
			return nil, err
		}
		c.SetDeadline(time.Now().Add(30 * time.Second))
		if scheme == "tls" {
			c = tls.Client(c, &tls.Config{InsecureSkipVerify: true})
		}
		return c, nil
	}
}

// wantAnswer asks a server that must be all right.
func wantAnswer(t *testing.T, dial func() (net.Conn, error), request, answer string) {
	t.Helper()
	if err := askFor(dial, request, answer); err != nil {
		t.Error(err)
	}
}

func askFor(dial func() (net.Conn, error), request, answer string) error {
	c, err := dial()
	if err != nil {
		return err
	}
	defer c.Close()
	if _, err := io.WriteString(c, request); err != nil {
		return err
	}
	b := make([]byte, len(answer))
	if n, err := io.ReadFull(c, b); err != nil || string(b) != answer {
		return fmt.Errorf("answered %.100q, %v; want %.100q", b[:n], err, answer)
	}
	return nil
}

// hold accepts connections, does not read them, and closes them at the end of the test.
func hold(t *testing.T, network, address string) string {
	t.Helper()
	ln, err := net.Listen(network, address)
	if err != nil {
		t.Fatal(err)
	}
	var conns []net.Conn
	done := make(chan struct{})
	go func() {
		defer close(done)
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			conns = append(conns, c)
		}
	}()
	t.Cleanup(func() {
		ln.Close()
		<-done
		for _, c := range conns {
			c.Close()
		}
	})
	return ln.Addr().String()
}

// call connects until the end of the test, and says something.
func call(t *testing.T, network, address, text string) net.Conn {
	t.Helper()
	c, err := net.Dial(network, address)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	if _, err := io.WriteString(c, text); err != nil {
		t.Fatal(err)
	}
	return c
}

func TestWhoWaitsUsesNoProcessor(t *testing.T) {
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "file"), make([]byte, 64<<20), 0o600); err != nil {
		t.Fatal(err)
	}
	endless := func(c *exec.Cmd) { // something to send, always
		c.Stdin, _ = os.Open("/dev/zero")
	}
	ended := func(c *exec.Cmd) { c.Stdin = nil }
	silent := hold(t, "tcp", "127.0.0.1:0")
	silentUnix := hold(t, "unix", filepath.Join(dir, "silent"))
	free := freePort(t)
	pids := make(map[string]int)
	listen := func(what string, set func(*exec.Cmd), args string, then func(address string)) {
		t.Helper()
		b := runFT(t, set, append([]string{"ft", "listen"}, strings.Fields(strings.ReplaceAll(args, "DIR", dir))...)...)
		address := b.listens(t)
		if then != nil {
			then(address)
		}
		pids["ft listen "+args+", "+what] = b.Process.Pid
	}
	connect := func(what string, set func(*exec.Cmd), until string, args ...string) {
		t.Helper()
		b := runFT(t, set, append([]string{"ft", "connect"}, args...)...)
		b.says(t, until)
		pids["ft connect "+strings.Join(args, " ")+", "+what] = b.Process.Pid
	}
	clients := func(n int, text string) func(string) {
		return func(address string) {
			for range n {
				call(t, "tcp", address, text)
			}
		}
	}

	listen("nobody comes", nil, "127.0.0.1:0", nil)
	listen("a client that is silent", nil, "127.0.0.1:0", clients(1, ""))
	listen("standard input has ended", ended, "127.0.0.1:0", clients(1, ""))
	listen("a client that does not read", endless, "127.0.0.1:0", clients(1, ""))
	listen("nobody reads standard output", nil, "127.0.0.1:0", func(address string) {
		c := call(t, "tcp", address, "")
		go c.Write(make([]byte, 64<<20))
	})
	listen("the next one waits", nil, "127.0.0.1:0 --keep", clients(2, ""))
	listen("slow", endless, "127.0.0.1:0 --rate 1", clients(1, ""))
	listen("clients that do not read", nil, "127.0.0.1:0 chargen --engine poll", clients(3, ""))
	listen("clients that do not read", nil, "127.0.0.1:0 chargen --engine goroutines", clients(3, ""))
	listen("clients that do not read", nil, "127.0.0.1:0 file DIR/file", clients(3, ""))
	listen("clients that do not read", nil, "127.0.0.1:0 exec -- cat DIR/file", clients(3, ""))
	listen("clients that do not read", nil, "127.0.0.1:0 http DIR", clients(3, "GET /file HTTP/1.0\r\n\r\n"))
	listen("clients that do not speak TLS", nil, "tls://127.0.0.1:0 echo --tls-self-signed", clients(3, ""))
	listen("clients over the limit", nil, "127.0.0.1:0 echo --engine poll --max 2", clients(5, ""))
	listen("clients over the limit", nil, "127.0.0.1:0 echo --engine goroutines --max 2", clients(5, ""))
	listen("clients come too fast", nil, "127.0.0.1:0 echo --engine poll --accept-rate 0.1", clients(5, ""))
	listen("clients come too fast", nil, "127.0.0.1:0 echo --engine goroutines --accept-rate 0.1", clients(5, ""))
	listen("proxies that say nothing", nil, "127.0.0.1:0 echo --proxy-from 127.0.0.1", clients(3, ""))
	listen("nobody comes", nil, "udp://127.0.0.1:0 echo", nil)
	listen("nobody comes", nil, "udp://239.1.1.1%lo:7390", nil)
	listen("nobody comes", nil, "vsock://*:4294967295 echo", nil)
	listen("nobody comes", nil, "unix://DIR/a unixgram://DIR/b seqpacket://DIR/c echo --handoff DIR/control", nil)
	listen("nobody comes", nil, "unix://DIR/d activate -- true", nil)
	listen("nobody comes", nil, "127.0.0.1:0 echo --workers 2", clients(4, ""))

	connect("a silent peer", nil, "connected", "-v", silent)
	connect("standard input has ended", ended, "connected", "-v", silent)
	connect("a peer that does not read", endless, "connected", "-v", silent)
	connect("two that are silent", nil, "connected", "-v", silent, "unix://"+silentUnix)
	connect("nobody there yet", nil, "again in", "--retry", "5", free)
	connect("nobody passes a descriptor", nil, "connected", "-v", "--take-fd", "unix://"+silentUnix)
	connect("a silent peer", nil, "udp", "-v", "udp://127.0.0.1:7392")
	wantIdle(t, pids)
}

// freePort is an address at which nobody listens.
func freePort(t *testing.T) string {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	return ln.Addr().String()
}

// Without a descriptor left no connection can be accepted. The server says so, waits
// without turning round and round, and goes on when clients have left.
func TestServersOutliveTheLackOfDescriptors(t *testing.T) {
	const limit, clients = 40, 60
	pids := make(map[string]int)
	servers := make(map[string]*background)
	conns := make(map[string][]net.Conn)
	for _, args := range []string{
		"127.0.0.1:0 echo --engine poll", "127.0.0.1:0 echo --engine goroutines", "127.0.0.1:0 exec -- cat",
		"127.0.0.1:0 http /", "tls://127.0.0.1:0 echo --tls-self-signed",
	} {
		b := runFT(t, nil, append([]string{"prlimit", "--nofile=" + strconv.Itoa(limit), "ft", "listen"}, strings.Fields(args)...)...)
		address := b.listens(t)
		for range clients {
			conns[args] = append(conns[args], call(t, "tcp", address, ""))
		}
		b.says(t, "too many open files")
		pids[args], servers[args] = b.Process.Pid, b
	}
	wantIdle(t, pids)
	for args, b := range servers {
		if said := strings.Count(b.said.text(), "too many open files"); said > 20 {
			t.Errorf("%s says %d times that there are too many open files", args, said)
		}
		for _, c := range conns[args] {
			c.Close()
		}
		request, answer := "hello\n", "hello\n"
		if strings.Contains(args, "http") {
			request, answer = "GET /nonexistent HTTP/1.0\r\n\r\n", "HTTP/1.0 404"
		}
		endpoint, _, _ := strings.Cut(args, " ")
		dial := dialerOf(endpoint, b.listens(t))
		late := time.Now().Add(patience)
		err := askFor(dial, request, answer)
		for ; err != nil && time.Now().Before(late); time.Sleep(10 * time.Millisecond) { // commands of those that left may still have to end
			err = askFor(dial, request, answer)
		}
		if err != nil {
			t.Errorf("%s: %v", args, err)
		}
	}
}

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
	time.Sleep(time.Second)
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
	line := strings.Repeat("x", 5000) + "\n"
	get := "GET /file HTTP/1.1\r\nHost: x\r\n\r\n"
	pids := make(map[string]int)
	var mu sync.Mutex
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
			{"daytime", "127.0.0.1:0 daytime", line, time.Now().Format("2006-")},
			{"chat by event loops", "127.0.0.1:0 chat --engine poll", line, "* you are "},
			{"chat by goroutines", "127.0.0.1:0 chat --engine goroutines", line, "* you are "},
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
				args := strings.Fields(strings.ReplaceAll(s.args, "DIR", dir))
				b := runFT(t, func(c *exec.Cmd) { c.Stdin, c.Stdout = nil, nil }, append([]string{"ft", "listen"}, args...)...)
				dial := dialerOf(args[0], b.listens(t))
				wantAnswer(t, dial, s.request, s.answer)
				files := countFiles(t, b.Process.Pid)
				var wg sync.WaitGroup
				for _, play := range resetPoints {
					wg.Go(func() {
						for range 5 {
							if c, err := dial(); err != nil {
								t.Error(err)
							} else {
								play(c, s.request)
								breakOff(c)
							}
						}
					})
				}
				wg.Wait()
				wantAnswer(t, dial, s.request, s.answer)
				eventually(t, "no descriptor is left behind", func() bool { return countFiles(t, b.Process.Pid) <= files })
				if !strings.Contains(s.args, "--workers") {
					eventually(t, "no child is left behind", func() bool { return len(childrenOf(t, b.Process.Pid)) == 0 })
				}
				if errors := strings.Count(b.said.text(), " error "); errors > 0 && !strings.Contains(s.args, "tls") {
					t.Errorf("clients that break off are no errors of the server:\n%.1000s", b.said.text())
				}
				mu.Lock()
				pids[s.name] = b.Process.Pid
				mu.Unlock()
				keepUntilEnd(t)
			})
		}
	})
	wantIdle(t, pids)
}

func keepUntilEnd(*testing.T) {}

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
	c, err := dial()
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if _, err := io.WriteString(c, request); err != nil {
		t.Fatal(err)
	}
	b := make([]byte, len(answer))
	if _, err := io.ReadFull(c, b); err != nil || string(b) != answer {
		t.Errorf("answered %.100q, %v; want %.100q", b, err, answer)
	}
}

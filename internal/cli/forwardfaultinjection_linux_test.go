package cli

import (
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// Relays of which one side or the other does nothing use no processor.
func TestForwardThatWaitsUsesNoProcessor(t *testing.T) {
	ownRegistry(t)
	dir := filepath.Dir(socketPath(t))
	silent := hold(t, "tcp", "127.0.0.1:0")
	silentUnix := "unix://" + hold(t, "unix", filepath.Join(dir, "silent"))
	endless := endlessHost(t)
	full := fullBacklog(t)
	nobody := freePort(t)
	sink := newPacketHost(t, "udp")
	pids := make(map[string]int)
	forward := func(what, args string, then func(address string)) {
		t.Helper()
		f := startForward(t, strings.Fields(strings.ReplaceAll(args, "DIR", dir))...)
		if then != nil {
			then(f.address)
		}
		pids["ft forward "+args+", "+what] = f.Process.Pid
	}
	clients := func(n int, text string) func(string) {
		return func(address string) {
			for range n {
				call(t, "tcp", address, text)
			}
		}
	}
	pour := func(address string) { // more than anybody takes
		c := call(t, "tcp", address, "")
		go c.Write(make([]byte, 64<<20))
	}
	for _, engine := range []string{"", " --jitter 1ms"} {
		forward("nobody comes", "127.0.0.1:0 "+silent+engine, nil)
		forward("both are silent", "127.0.0.1:0 "+silent+engine, clients(3, "x"))
		forward("to a Unix socket", "127.0.0.1:0 "+silentUnix+engine, clients(3, "x"))
		forward("a target that never reads", "127.0.0.1:0 "+silent+engine, pour)
		forward("clients that never read", "127.0.0.1:0 "+endless+engine, clients(3, ""))
		forward("a target that does not answer", "127.0.0.1:0 "+full+" --connect-timeout 1m"+engine, clients(3, "early"))
		forward("clients over the limit", "127.0.0.1:0 "+silent+" --max 2"+engine, clients(5, ""))
		forward("clients come too fast", "127.0.0.1:0 "+silent+" --accept-rate 0.1"+engine, clients(5, ""))
		forward("proxies that say nothing", "127.0.0.1:0 "+silent+" --accept-proxy 127.0.0.1"+engine, clients(3, "PROXY"))
		forward("no greeting comes", "127.0.0.1:0 "+silent+" --sni a.test="+silent+engine, clients(3, "\x16"))
		forward("targets that fail are checked", "127.0.0.1:0 "+nobody+" --check 1s"+engine, nil)
		forward("a name that does not resolve", "127.0.0.1:0 no-such-host.invalid:80"+engine, nil)
		forward("a session", "udp://127.0.0.1:0 "+sink.args[0]+engine, func(address string) { call(t, "udp", address, "x") })
		forward("half-closed", "127.0.0.1:0 "+silent+engine, func(address string) {
			call(t, "tcp", address, "x").(*net.TCPConn).CloseWrite()
		})
	}
	forward("rate is used up", "127.0.0.1:0 "+endless+" --rate 1", clients(3, ""))
	wantIdle(t, pids)
}

// endlessHost sends to each client as long as it takes anything.
func endlessHost(t *testing.T) (address string) {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var serving sync.WaitGroup
	var mu sync.Mutex
	var all []net.Conn
	serving.Go(func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			mu.Lock()
			all = append(all, c)
			mu.Unlock()
			serving.Go(func() {
				for b := make([]byte, 64<<10); err == nil; {
					_, err = c.Write(b)
				}
			})
		}
	})
	t.Cleanup(func() {
		ln.Close()
		mu.Lock()
		for _, c := range all {
			c.Close()
		}
		mu.Unlock()
		serving.Wait()
	})
	return ln.Addr().String()
}

// few is how many sockets a relay may open for itself after it has said that it listens.
const few = 2

// forwardScrapes are relays for tests in which much fails, by what they are.
var forwardScrapes = map[string]struct{ flags, network string }{
	"event loops": {"", "tcp"},
	"goroutines":  {"--jitter 1ms", "tcp"},
	"datagrams":   {"", "udp"},
}

// Without a descriptor left no client can be accepted or no target connected to. The
// relay says so, does not turn round and round, and goes on when others have left.
func TestForwardOutlivesTheLackOfDescriptors(t *testing.T) {
	ownRegistry(t)
	const limit, clients = 40, 60
	echo := startListening(t, "127.0.0.1:0", "echo")
	packets := echoPackets(t)
	for name, s := range forwardScrapes {
		t.Run(name, func(t *testing.T) {
			target := echo.address
			if s.network == "udp" {
				target = "udp://" + packets
			}
			if s.network == "tcp" {
				s.flags += " --max 1000" // without it ft sets limits by that of descriptors
			}
			args := append([]string{"prlimit", fmt.Sprintf("--nofile=%d", limit), "ft", "forward", s.network + "://127.0.0.1:0", target, "--max-per-source", "1000"}, strings.Fields(s.flags)...)
			b := runFT(t, nil, args...)
			address := b.listens(t)
			var conns []net.Conn
			if s.network == "tcp" {
				t.Cleanup(func() { // whatever still waits in its queue
					for _, c := range conns {
						c.Close()
					}
				})
			}
			for range clients {
				conns = append(conns, call(t, s.network, address, "x"))
			}
			if s.network == "udp" {
				b.says(t, "each new one ends the one used least recently")
			} else {
				b.says(t, "too many open files")
			}
			wantIdle(t, map[string]int{name: b.Process.Pid})
			if said := strings.Count(b.said.text(), "\n"); said > 60 {
				t.Errorf("it says %d lines:\n%.2000s", said, b.said.text())
			}
			for _, c := range conns {
				c.Close()
			}
			eventually(t, "it relays again", func() bool {
				c, err := net.Dial(s.network, address)
				if err != nil {
					return false
				}
				defer c.Close()
				c.SetDeadline(time.Now().Add(time.Second))
				io.WriteString(c, "hello")
				got := make([]byte, 5)
				_, err = io.ReadFull(c, got)
				return err == nil && string(got) == "hello"
			})
			b.Process.Signal(syscall.SIGTERM)
			if err := b.Wait(); err != nil {
				t.Errorf("it ended with %v:\n%.1000s", err, b.said.text())
			}
		})
	}
}

// Thousands of attempts that fail make few lines, and leave nothing behind.
func TestForwardSaysOnceWhatFailsAThousandTimes(t *testing.T) {
	ownRegistry(t)
	const attempts = 1000
	nobody := freePort(t)
	for name, s := range forwardScrapes {
		for what, flags := range map[string]string{"no target": nobody, "denied": nobody + " --deny 127.0.0.0/8"} {
			t.Run(name+" "+what, func(t *testing.T) {
				target := strings.Fields(flags + " " + s.flags)
				if s.network == "udp" {
					target[0] = "udp://" + target[0]
					target = append(target, "--first-reply", "2s") // the kernel sends only so many ICMP errors in a second
				}
				f := startForward(t, append([]string{s.network + "://127.0.0.1:0"}, target...)...)
				before := usageOf(t, f.Process.Pid)
				for range attempts {
					c, err := net.Dial(s.network, f.address)
					if err != nil {
						continue // reset before connect(2) was back
					}
					io.WriteString(c, "x")
					c.Close()
				}
				eventually(t, "nothing is left behind", func() bool { return usageOf(t, f.Process.Pid).sockets <= before.sockets+few })
				if code := f.stop(t); code != exitDone {
					t.Errorf("exit code %d", code)
				}
				if lines := strings.Count(f.said.String(), "\n"); lines > attempts/5 || lines < 3 {
					t.Errorf("%d attempts made %d lines:\n%.1000s", attempts, lines, &f.said)
				}
			})
		}
	}
}

// Bytes that come one by one, each way at once, all arrive.
func TestForwardCarriesSingleBytes(t *testing.T) {
	ownRegistry(t)
	for _, over := range []string{"tcp", "unix", "tls", "faults"} {
		t.Run(over, func(t *testing.T) {
			f := startForwarding(t, over)
			client, target := f.connect(t)
			const n = 3000
			send := func(p *peer) error {
				for i := range n {
					if _, err := p.Write([]byte{byte(i)}); err != nil {
						return err
					}
				}
				return p.Conn.(interface{ CloseWrite() error }).CloseWrite()
			}
			var sent sync.WaitGroup
			for _, p := range []*peer{client, target} {
				sent.Go(func() {
					if err := send(p); err != nil {
						t.Error(err)
					}
				})
			}
			for _, p := range []*peer{target, client} {
				b, err := io.ReadAll(p)
				if err != nil || len(b) != n {
					t.Fatalf("%d of %d bytes came, %v", len(b), n, err)
				}
				for i := range b {
					if b[i] != byte(i) {
						t.Fatalf("byte %d is %d", i, b[i])
					}
				}
			}
			sent.Wait()
		})
	}
}

// A target that dies in the middle of a stream takes nobody else with it, and leaves no
// descriptor behind.
func TestForwardOutlivesTargetsThatAreKilled(t *testing.T) {
	ownRegistry(t)
	for _, flags := range []string{"", "--jitter 1ms"} {
		t.Run("ft forward "+flags, func(t *testing.T) {
			victim := startListening(t, "127.0.0.1:0", "chargen")
			f := startForward(t, append([]string{"127.0.0.1:0", victim.address, "--max-fails", "-1"}, strings.Fields(flags)...)...)
			before := usageOf(t, f.Process.Pid).sockets
			var over sync.WaitGroup
			var moving sync.WaitGroup
			for range 10 {
				c := dialPeer(t, f.address)
				moving.Add(1)
				over.Go(func() {
					b := make([]byte, 4096)
					_, err := c.Read(b)
					moving.Done()
					for err == nil {
						_, err = c.Read(b)
					}
					if err != io.EOF && !isReset(err) {
						t.Errorf("a client got %v, want an end or a reset", err)
					}
					c.Close()
				})
			}
			moving.Wait()
			victim.Process.Kill()
			over.Wait()
			eventually(t, "no socket is left behind", func() bool { return usageOf(t, f.Process.Pid).sockets <= before+few })
			ln, err := net.Listen("tcp", victim.address)
			if err != nil {
				t.Fatal(err)
			}
			defer ln.Close()
			go func() {
				if c, err := ln.Accept(); err == nil {
					io.WriteString(c, "back again")
					c.Close()
				}
			}()
			again := dialPeer(t, f.address)
			if b, err := io.ReadAll(again); err != nil || string(b) != "back again" {
				t.Errorf("when it is back: %q, %v", b, err)
			}
			again.Close()
			if code := f.stop(t); code != exitDone {
				t.Errorf("exit code %d:\n%.1000s", code, &f.said)
			}
		})
	}
}

// FT_RANGE ports in one rule all relay, and stop in good order. With the race detector
// 10,000 take 17 s to open.
func TestForwardRangeOfManyPorts(t *testing.T) {
	ownRegistry(t)
	n := fromEnv("FT_RANGE", 2000)
	const first = 12000
	if limit := fileLimit(t); limit < uint64(n+1000) {
		t.Fatalf("the hard limit of descriptors is %d, which is too few: ulimit -Hn %d", limit, n+1000)
	}
	f := startForward(t, fmt.Sprintf("127.0.0.1:%d-%d", first, first+n-1), "127.0.0.2:30000")
	for _, i := range []int{0, 1, n / 2, n - 1} {
		ln, err := net.Listen("tcp", fmt.Sprintf("127.0.0.2:%d", 30000+i))
		if err != nil {
			t.Fatal(err)
		}
		h := &host{ln, "tcp", nil}
		client := newPeer(t, dialPeer(t, fmt.Sprintf("127.0.0.1:%d", first+i)))
		exchanged(t, client, h.accept(t))
		client.reset()
		ln.Close()
	}
	wantRefusedAt(t, fmt.Sprintf("127.0.0.1:%d", first+n))
	wantIdle(t, map[string]int{"many ports": f.Process.Pid})
	if code := f.stop(t); code != exitDone {
		t.Errorf("exit code %d:\n%.1000s", code, &f.said)
	}
	if lines := strings.Count(f.said.String(), "\n"); lines > 20 {
		t.Errorf("it says %d lines:\n%.1000s", lines, &f.said)
	}
}

// fileLimit is the hard limit of descriptors.
func fileLimit(t *testing.T) uint64 {
	t.Helper()
	var l syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_NOFILE, &l); err != nil {
		t.Fatal(err)
	}
	return l.Max
}

// That nobody hears what it says is no reason to stop.
func TestForwardGoesOnWithoutItsOutput(t *testing.T) {
	ownRegistry(t)
	for name, redirection := range map[string]string{"closed": ">&- 2>&-", "standard input closed, too": "<&- >&- 2>&-", "full": ">/dev/full 2>/dev/full"} {
		t.Run(name, func(t *testing.T) {
			target, address := newHost(t, "tcp"), placeAddress(t)
			p := startShellForward(t, redirection, nil, "-v", address, target.args[0])
			relays(t, p, address, target)
		})
	}
	t.Run("nobody reads", func(t *testing.T) {
		target, address := newHost(t, "tcp"), placeAddress(t)
		r, w := pipe(t)
		r.Close()
		p := startShellForward(t, "", func(c *exec.Cmd) { c.Stdout, c.Stderr = w, w }, "-v", address, target.args[0])
		relays(t, p, address, target)
	})
}

// startShellForward starts ft forward with redirections of a shell.
func startShellForward(t *testing.T, redirections string, set func(*exec.Cmd), args ...string) *process {
	t.Helper()
	return startProcess(t, func(c *exec.Cmd) {
		shell := exec.Command("sh", append([]string{"-c", `exec ft forward "$@" ` + redirections, "sh"}, args...)...)
		c.Path, c.Args = shell.Path, shell.Args
		if set != nil {
			set(c)
		}
	})
}

// relays wants that a relay that says nothing relays all the same, is idle, and ends well.
func relays(t *testing.T, p *process, address string, target *host) {
	t.Helper()
	eventually(t, "it listens", func() bool {
		select {
		case <-p.ended:
			t.Fatalf("it ended with %v", p.ProcessState)
		default:
		}
		c, err := net.Dial("tcp", address)
		if err == nil {
			c.Close()
			target.accept(t).Close()
		}
		return err == nil
	})
	client, accepted := callFT(t, "tcp", address), target.accept(t)
	exchanged(t, client, accepted)
	wantIdle(t, map[string]int{"without its output": p.Process.Pid})
	client.Close()
	accepted.hearEnd(t, "")
	accepted.Close()
	p.signal(syscall.SIGTERM)
	if code := p.code(t); code != "0" {
		t.Errorf("exit code %s", code)
	}
}

// Garbage in the place of whatever is expected first makes no trouble for others.
func TestForwardOutlivesGarbage(t *testing.T) {
	ownRegistry(t)
	echo := startListening(t, "127.0.0.1:0", "echo")
	place := newTLSPlace(t)
	for name, args := range map[string]string{
		"PROXY":                  "127.0.0.1:0 ECHO --accept-proxy 127.0.0.1 --idle 2s",
		"PROXY by goroutines":    "127.0.0.1:0 ECHO --accept-proxy 127.0.0.1 --idle 2s --jitter 1ms",
		"greeting":               "127.0.0.1:0 ECHO --sni a.test=ECHO --idle 2s",
		"greeting by goroutines": "127.0.0.1:0 ECHO --sni a.test=ECHO --idle 2s --jitter 1ms",
		"TLS":                    "tls://127.0.0.1:0 ECHO --tls-cert DIR/localhost.pem --idle 2s",
	} {
		t.Run(name, func(t *testing.T) {
			f := startForward(t, strings.Fields(strings.NewReplacer("ECHO", echo.address, "DIR", place.dir).Replace(args))...)
			before := usageOf(t, f.Process.Pid).sockets
			var clients sync.WaitGroup
			for i := range 100 {
				clients.Go(func() {
					c, err := net.Dial("tcp", f.address)
					if err != nil {
						t.Error(err)
						return
					}
					defer c.Close()
					c.SetDeadline(time.Now().Add(patience))
					beginning := []string{"", "PROXY ", "PROXY TCP4 1.2.3.4", "\r\n\r\n\x00\r\nQUIT\n", "\x16\x03\x01", "\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03"}[i%6]
					c.Write(append([]byte(beginning), randomBytes(byte(i), 1<<(i%16))...))
					switch i % 3 {
					case 0:
						c.(*net.TCPConn).SetLinger(0)
					case 1:
						c.(*net.TCPConn).CloseWrite()
						io.Copy(io.Discard, c)
					}
				})
			}
			clients.Wait()
			eventually(t, "nothing is left behind", func() bool { return usageOf(t, f.Process.Pid).sockets <= before+few })
			wantIdle(t, map[string]int{name: f.Process.Pid})
			if code := f.stop(t); code != exitDone {
				t.Errorf("exit code %d:\n%.1000s", code, &f.said)
			}
			if lines := strings.Count(f.said.String(), "\n"); lines > 120 {
				t.Errorf("it says %d lines for 100 clients", lines)
			}
			if strings.ContainsAny(f.said.String(), "\x16\x00\x1b") {
				t.Error("what it says has control characters of a client")
			}
		})
	}
}

// A rules file that is a directory, a device without an end, or vast is an error and
// nothing else.
func TestForwardRefusesOddRulesFiles(t *testing.T) {
	ownRegistry(t)
	dir := t.TempDir()
	vast := filepath.Join(dir, "vast")
	if err := os.WriteFile(vast, []byte(strings.Repeat("8", 2<<20)), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct{ path, said, code string }{
		{dir, "is a directory", "3"},
		{filepath.Join(dir, "none"), "no such file or directory", "3"},
		{vast, "token too long", "2"},
		{os.DevNull, "there is no rule in it", "2"},
	} {
		if got := startProcess(t, nil, "forward", "-f", tt.path).ends(t, "", tt.said); got != tt.code {
			t.Errorf("%s: exit code %s, want %s", tt.path, got, tt.code)
		}
	}
}

package cli

import (
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// connectRows are ft connect with streams.
var connectRows = map[string]func(t *testing.T, over string) string{
	"connect-stdin-ends": func(t *testing.T, over string) string {
		h := newHost(t, over)
		p := startConnect(t, h.args...)
		c := h.accept(t)
		p.say(t, "question")
		c.hear(t, "question")
		p.end()
		c.hearEnd(t, "")
		c.say(t, "late answer")
		c.Close()
		return p.ends(t, "late answer", "")
	},
	"connect-stdin-empty": func(t *testing.T, over string) string {
		h := newHost(t, over)
		p := startEmpty(t, h.args...)
		c := h.accept(t)
		c.hearEnd(t, "")
		c.say(t, "answer")
		c.Close()
		return p.ends(t, "answer", "")
	},
	"connect-stdin-closed": func(t *testing.T, over string) string {
		h := newHost(t, over)
		p := startShell(t, "<&-", h.args...)
		c := h.accept(t)
		c.hearEnd(t, "")
		c.say(t, "answer")
		c.Close()
		return p.ends(t, "answer", "")
	},
	"connect-stdout-closed": func(t *testing.T, over string) string {
		h := newHost(t, over)
		p := startShell(t, "</dev/null >&-", h.args...)
		c := h.accept(t)
		c.say(t, "answer")
		c.finish(t)
		c.hearEnd(t, "")
		return p.ends(t, "", "")
	},
	"connect-stdin-file": func(t *testing.T, over string) string {
		h := newHost(t, over)
		path := filepath.Join(t.TempDir(), "file")
		content := strings.Repeat("0123456789abcdef", 1<<16)
		if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
		p := startProcess(t, stdinOf(t, path), append([]string{"connect"}, h.args...)...)
		c := h.accept(t)
		c.hearEnd(t, content)
		c.Close()
		return p.ends(t, "", "")
	},
	"connect-stdin-unreadable": func(t *testing.T, over string) string {
		h := newHost(t, over)
		p := startProcess(t, stdinOf(t, t.TempDir()), append([]string{"connect"}, h.args...)...)
		c := h.accept(t)
		c.hearEnd(t, "")
		c.say(t, "answer")
		c.Close()
		return p.ends(t, "answer", "read /dev/stdin: is a directory")
	},
	"connect-peer-ends": func(t *testing.T, over string) string {
		h := newHost(t, over)
		p := startConnect(t, h.args...)
		c := h.accept(t)
		c.say(t, "greeting")
		c.finish(t)
		p.out.await(t, "greeting")
		p.say(t, "more")
		c.hear(t, "more")
		p.end()
		c.hearEnd(t, "")
		return p.ends(t, "greeting", "")
	},
	"connect-terminal-peer-ends": func(t *testing.T, over string) string {
		h := newHost(t, over)
		_, slave := openTTY(t)
		p := startProcess(t, onTerminal(slave), append([]string{"connect"}, h.args...)...)
		c := h.accept(t)
		c.say(t, "greeting")
		c.finish(t)
		c.hearEnd(t, "")
		return p.ends(t, "greeting", "")
	},
	"connect-terminal-ctrl-d": func(t *testing.T, over string) string {
		h := newHost(t, over)
		master, slave := openTTY(t)
		p := startProcess(t, onTerminal(slave), append([]string{"connect"}, h.args...)...)
		c := h.accept(t)
		io.WriteString(master, "line\n\x04")
		c.hearEnd(t, "line\n")
		c.say(t, "late answer")
		c.Close()
		return p.ends(t, "late answer", "")
	},
	"connect-terminal-ctrl-c": func(t *testing.T, over string) string {
		h := newHost(t, over)
		master, slave := openTTY(t)
		p := startProcess(t, onTerminal(slave), append([]string{"connect"}, h.args...)...)
		c := h.accept(t)
		io.WriteString(master, "line\n")
		c.hear(t, "line\n")
		io.WriteString(master, "\x03")
		c.hearEnd(t, "")
		return p.ends(t, "", "")
	},
	"connect-both-end": func(t *testing.T, over string) string {
		h := newHost(t, over)
		p := startEmpty(t, h.args...)
		c := h.accept(t)
		c.say(t, "greeting")
		c.finish(t)
		c.hearEnd(t, "")
		return p.ends(t, "greeting", "")
	},
	"connect-peer-closes": func(t *testing.T, over string) string {
		h := newHost(t, over)
		p := startConnect(t, h.args...)
		c := h.accept(t)
		c.say(t, "greeting")
		c.Close()
		p.out.await(t, "greeting")
		p.sayUntilEnd()
		return p.ends(t, "greeting", "the peer has closed the connection and takes no more")
	},
	"connect-peer-killed": func(t *testing.T, over string) string {
		l := startListening(t, "127.0.0.1:0", "echo")
		p := startConnect(t, l.address)
		p.say(t, "alive")
		p.out.await(t, "alive")
		l.Process.Kill()
		<-l.ended
		p.sayUntilEnd()
		return p.ends(t, "alive", "the peer has closed the connection and takes no more")
	},
	"connect-peer-killed-quiet": func(t *testing.T, over string) string {
		l, address := startStdio(t, over, nil)
		p := startConnect(t, targetOf(over, address)...)
		p.say(t, "question")
		l.out.await(t, "question")
		l.say(t, "half an ans")
		p.out.await(t, "half an ans")
		p.end()
		awaitTCP(t, address, tcpCloseWait)
		l.Process.Kill()
		return p.ends(t, "half an ans", "")
	},
	"connect-peer-killed-unread": func(t *testing.T, over string) string {
		l := startListening(t, "127.0.0.1:0", "chargen", "--engine", "goroutines") // does not read
		p := startProcess(t, func(c *exec.Cmd) { c.Stdout = nil }, "connect", l.address)
		p.say(t, "unread")
		awaitTCP(t, l.address, tcpUnread)
		l.Process.Kill()
		return p.ends(t, "", "connection reset by peer")
	},
	"connect-reset-at-once": func(t *testing.T, over string) string {
		h := newHost(t, over)
		p := startConnect(t, h.args...)
		h.accept(t).reset()
		return p.ends(t, "", "connection reset by peer")
	},
	"connect-reset-after-answer": func(t *testing.T, over string) string {
		h := newHost(t, over)
		p := startConnect(t, h.args...)
		c := h.accept(t)
		p.say(t, "question")
		c.hear(t, "question")
		c.say(t, strings.Repeat("answer ", 1000))
		c.reset()
		return p.ends(t, strings.Repeat("answer ", 1000), "connection reset by peer")
	},
	"connect-reset-while-sending": func(t *testing.T, over string) string {
		h := newHost(t, over)
		p := startProcess(t, stdinOf(t, "/dev/zero"), append([]string{"connect"}, h.args...)...)
		c := h.accept(t)
		if _, err := io.CopyN(io.Discard, c, 1<<20); err != nil {
			t.Fatal(err)
		}
		c.say(t, "stop")
		c.reset()
		return p.ends(t, "stop", "connection reset by peer")
	},
	"connect-reset-for-end": func(t *testing.T, over string) string {
		h := newHost(t, over)
		p := startConnect(t, h.args...)
		c := h.accept(t)
		p.say(t, "question")
		p.end()
		c.hearEnd(t, "question")
		c.reset()
		return p.ends(t, "", "connection reset by peer")
	},
	"connect-unread": func(t *testing.T, over string) string {
		h := newHost(t, over)
		p := startConnect(t, h.args...)
		c := h.accept(t)
		p.say(t, "unread")
		c.awaitUnread(t)
		c.raw.Close()
		return p.ends(t, "", "connection reset by peer")
	},
	"connect-stdout-broken": func(t *testing.T, over string) string {
		h := newHost(t, over)
		p := startProcess(t, brokenStdout(t), append([]string{"connect"}, h.args...)...)
		c := h.accept(t)
		c.sayUntilReset(t)
		return p.ends(t, "", "")
	},
	"connect-stdout-full": func(t *testing.T, over string) string {
		h := newHost(t, over)
		p := startProcess(t, fullStdout(t), append([]string{"connect"}, h.args...)...)
		c := h.accept(t)
		c.say(t, "answer")
		c.hearReset(t)
		return p.ends(t, "", "no space left on device")
	},
	"connect-stdout-slow": func(t *testing.T, over string) string {
		h := newHost(t, over)
		r, w := pipe(t)
		p := startProcess(t, func(c *exec.Cmd) { c.Stdout = w }, append([]string{"connect"}, h.args...)...)
		w.Close()
		c := h.accept(t)
		p.end()
		flooded := flood(t, c, func() { c.finish(t) })
		r.SetReadDeadline(time.Now().Add(patience))
		flooded(r)
		return p.ends(t, "", "")
	},
	"connect-peer-slow": func(t *testing.T, over string) string {
		h := newHost(t, over)
		r, w := pipe(t)
		p := startProcess(t, func(c *exec.Cmd) { c.Stdin = r }, append([]string{"connect"}, h.args...)...)
		r.Close()
		c := h.accept(t)
		w.SetWriteDeadline(time.Now().Add(patience))
		flood(t, w, func() { w.Close() })(c)
		c.Close()
		return p.ends(t, "", "")
	},
	"connect-signal": func(t *testing.T, over string) string {
		return sameTwice(t, func(s os.Signal) string {
			h := newHost(t, over)
			p := startConnect(t, h.args...)
			c := h.accept(t)
			p.say(t, "half a")
			c.hear(t, "half a")
			p.signal(s)
			c.hearEnd(t, "")
			return p.ends(t, "", "")
		})
	},
	"connect-signal-receiving": func(t *testing.T, over string) string {
		h := newHost(t, over)
		p := startProcess(t, func(c *exec.Cmd) { c.Stdout = nil }, append([]string{"connect"}, h.args...)...)
		c := h.accept(t)
		p.say(t, "question")
		c.hear(t, "question")
		c.say(t, strings.Repeat("x", 1<<20))
		p.signal(syscall.SIGTERM)
		c.sayUntilReset(t)
		return p.ends(t, "", "")
	},
	"connect-signal-connecting": func(t *testing.T, over string) string {
		address := fullBacklog(t)
		p := startConnect(t, address, "-v")
		awaitTCP(t, address, tcpSynSent)
		p.signal(syscall.SIGINT)
		return p.ends(t, "", "interrupted")
	},
	"connect-quit-after": func(t *testing.T, over string) string {
		h := newHost(t, over)
		p := startConnect(t, append(h.args, "--quit-after", "200ms")...)
		c := h.accept(t)
		c.say(t, "in time")
		p.out.await(t, "in time")
		p.end()
		c.hearEnd(t, "")
		return p.ends(t, "in time", "")
	},
	"connect-quit-after-peer": func(t *testing.T, over string) string {
		h := newHost(t, over)
		p := startConnect(t, append(h.args, "--quit-after", "200ms")...)
		c := h.accept(t)
		p.say(t, "in time")
		c.hear(t, "in time")
		c.finish(t)
		c.hearEnd(t, "")
		return p.ends(t, "", "")
	},
	"connect-quit-at-once": func(t *testing.T, over string) string {
		h := newHost(t, over)
		p := startConnect(t, append(h.args, "--quit-after", "0")...)
		c := h.accept(t)
		content := strings.Repeat("x", 1<<20)
		go func() {
			io.WriteString(p.in, content)
			p.end()
		}()
		c.hearEnd(t, content)
		return p.ends(t, "", "")
	},
	"connect-idle": func(t *testing.T, over string) string {
		h := newHost(t, over)
		p := startConnect(t, append(h.args, "--idle", "200ms")...)
		h.accept(t).hearEnd(t, "")
		return p.ends(t, "", "no byte in either direction")
	},
	"connect-refused": func(t *testing.T, over string) string {
		p := startConnect(t, nobodyAt(t, over)...)
		return p.ends(t, "", "connection refused")
	},
	"connect-retry": func(t *testing.T, over string) string {
		h := newHost(t, over)
		h.Close()
		p := startEmpty(t, append(h.args, "--retry", "3")...)
		p.err.await(t, "connection refused: nobody listens there, or a firewall rejects it; again in 1.0 s (1 of 3)")
		ln, err := net.Listen("tcp", h.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		h.Listener = ln
		defer ln.Close()
		c := h.accept(t)
		c.say(t, "answer")
		c.Close()
		return p.ends(t, "answer", "again in 1.0 s")
	},
	"connect-timeout": func(t *testing.T, over string) string {
		p := startConnect(t, fullBacklog(t), "--timeout", "200ms")
		return p.ends(t, "", "timed out after ")
	},
	"connect-timeout-handshake": func(t *testing.T, over string) string {
		h := newHost(t, "tcp") // says nothing
		p := startConnect(t, append(targetOf("tls", h.Addr().String()), "--timeout", "200ms")...)
		return p.ends(t, "", "TLS handshake")
	},
	"connect-timeout-proxy": func(t *testing.T, over string) string {
		h := newHost(t, "tcp") // says nothing
		p := startConnect(t, "192.0.2.1:80", "--proxy", "socks5://"+h.Addr().String(), "--timeout", "200ms")
		return p.ends(t, "", "timed out after ")
	},
	"connect-timeout-over": func(t *testing.T, over string) string {
		h := newHost(t, over)
		p := startEmpty(t, append(h.args, "--timeout", "1s")...)
		c := h.accept(t)
		<-time.After(1100 * time.Millisecond) // the answer is later than that
		c.say(t, "answer")
		c.Close()
		return p.ends(t, "answer", "")
	},
	"connect-tls-unclosed": func(t *testing.T, over string) string {
		h := newHost(t, over)
		p := startEmpty(t, h.args...)
		c := h.accept(t)
		c.hearEnd(t, "")
		c.say(t, "answer")
		c.raw.Close()
		return p.ends(t, "answer", "may be cut short")
	},
	"connect-tls-cut": func(t *testing.T, over string) string {
		h := newHost(t, over)
		p := startEmpty(t, h.args...)
		c := h.accept(t)
		c.hearEnd(t, "")
		c.say(t, "answer")
		c.raw.Write([]byte{23, 3, 3, 0, 100, 'h', 'a', 'l', 'f'})
		c.raw.Close()
		return p.ends(t, "answer", "unexpected EOF")
	},
	"connect-tls-plain": func(t *testing.T, over string) string {
		h := newHost(t, "tcp")
		p := startConnect(t, targetOf(over, h.Addr().String())...)
		c := h.accept(t)
		c.say(t, "220 mail.example ready\r\n")
		c.awaitUnread(t)
		c.Close()
		return p.ends(t, "", `the peer does not speak TLS: it said "220 mail.example ready"`)
	},
	"connect-tls-refused": func(t *testing.T, over string) string {
		h := newHost(t, "tcp")
		p := startConnect(t, targetOf(over, h.Addr().String())...)
		c := h.accept(t)
		c.awaitUnread(t)
		c.reset()
		return p.ends(t, "", "the peer closed the connection during the handshake")
	},
	"connect-tls-untrusted": func(t *testing.T, over string) string {
		h := newHost(t, over)
		p := startConnect(t, "tls://"+h.Addr().String())
		c, err := h.Accept()
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		if err := tls.Server(c, serverTLS(t)).Handshake(); err == nil {
			io.Copy(io.Discard, c)
		}
		return p.ends(t, "", "certificate")
	},
	"join-ends": func(t *testing.T, over string) string {
		a, b := newHost(t, "tcp"), newHost(t, over)
		p := startConnect(t, append(a.args, b.args...)...)
		far, near := b.accept(t), a.accept(t)
		near.say(t, "question")
		near.finish(t)
		far.hearEnd(t, "question")
		far.say(t, "late answer")
		far.Close()
		near.hearEnd(t, "late answer")
		return p.ends(t, "", "")
	},
	"join-reset": func(t *testing.T, over string) string {
		a, b := newHost(t, "tcp"), newHost(t, over)
		p := startConnect(t, append(a.args, b.args...)...)
		far, near := b.accept(t), a.accept(t)
		near.say(t, "half a")
		far.hear(t, "half a")
		near.reset()
		far.hearEnd(t, "")
		return p.ends(t, "", "connection reset by peer")
	},
	"join-refused": func(t *testing.T, over string) string {
		b := newHost(t, over)
		p := startConnect(t, append(nobodyAt(t, "tcp"), b.args...)...)
		b.accept(t).hearEnd(t, "")
		return p.ends(t, "", "connection refused")
	},
	"join-idle": func(t *testing.T, over string) string {
		a, b := newHost(t, "tcp"), newHost(t, over)
		p := startConnect(t, append(append(a.args, b.args...), "--idle", "200ms")...)
		far, near := b.accept(t), a.accept(t)
		far.hearEnd(t, "")
		near.hearEnd(t, "")
		return p.ends(t, "", "no byte in either direction")
	},
	"join-signal": func(t *testing.T, over string) string {
		return sameTwice(t, func(s os.Signal) string {
			a, b := newHost(t, "tcp"), newHost(t, over)
			p := startConnect(t, append(a.args, b.args...)...)
			far, near := b.accept(t), a.accept(t)
			near.say(t, "x")
			far.hear(t, "x")
			p.signal(s)
			far.hearEnd(t, "")
			near.hearEnd(t, "")
			return p.ends(t, "", "")
		})
	},
	"reconnect-peer-ends": func(t *testing.T, over string) string {
		h := newHost(t, over)
		p := startConnect(t, append(h.args, "--reconnect")...)
		c := h.accept(t)
		c.say(t, "first ")
		c.finish(t)
		c.hearEnd(t, "")
		c = h.accept(t)
		p.say(t, "question")
		c.hear(t, "question")
		p.end()
		c.hearEnd(t, "")
		c.say(t, "late answer")
		c.Close()
		return p.ends(t, "first late answer", "lost")
	},
	"reconnect-reset": func(t *testing.T, over string) string {
		h := newHost(t, over)
		p := startConnect(t, append(h.args, "--reconnect")...)
		c := h.accept(t)
		p.say(t, "question")
		c.hear(t, "question")
		c.reset()
		p.err.await(t, "connection reset by peer")
		c = h.accept(t)
		p.end()
		c.hearEnd(t, "")
		c.Close()
		return p.ends(t, "", "lost")
	},
	"reconnect-stdout-broken": func(t *testing.T, over string) string {
		h := newHost(t, over)
		p := startProcess(t, brokenStdout(t), append([]string{"connect", "--reconnect"}, h.args...)...)
		h.accept(t).sayUntilReset(t)
		return p.ends(t, "", "")
	},
	"reconnect-signal": func(t *testing.T, over string) string {
		h := newHost(t, over)
		p := startConnect(t, append(h.args, "--reconnect")...)
		h.accept(t).Close()
		p.err.await(t, "lost")
		p.signal(syscall.SIGINT)
		return p.ends(t, "", "lost")
	},
	"reconnect-stdin-ends": func(t *testing.T, over string) string {
		h := newHost(t, over)
		p := startConnect(t, append(h.args, "--reconnect")...)
		c := h.accept(t)
		c.say(t, "greeting")
		c.finish(t)
		c.hearEnd(t, "")
		p.err.await(t, "lost")
		p.end()
		defer h.nobodyCame(t)
		return p.ends(t, "greeting", "lost")
	},
	"reconnect-refused": func(t *testing.T, over string) string {
		p := startConnect(t, append(nobodyAt(t, over), "--reconnect")...)
		return p.ends(t, "", "connection refused")
	},
	"zero-open": func(t *testing.T, over string) string {
		h := newHost(t, over)
		p := startConnect(t, append(h.args, "-z")...)
		h.accept(t).hearEnd(t, "")
		return p.ends(t, "", "")
	},
	"zero-refused": func(t *testing.T, over string) string {
		return startConnect(t, append(nobodyAt(t, over), "-z")...).ends(t, "", "connection refused")
	},
	"zero-silent": func(t *testing.T, over string) string {
		return startConnect(t, fullBacklog(t), "-z", "--timeout", "200ms").ends(t, "", "timed out after ")
	},
	"zero-not-tls": func(t *testing.T, over string) string {
		h := newHost(t, "tcp")
		p := startConnect(t, append(targetOf("tls", h.Addr().String()), "-z")...)
		h.accept(t).say(t, "220 mail.example ready\r\n")
		return p.ends(t, "", "the peer does not speak TLS")
	},
	"zero-local": func(t *testing.T, over string) string {
		return startConnect(t, "127.0.0.1:9", "-z", "--source", "192.0.2.99").ends(t, "", "cannot assign requested address")
	},
	"zero-datagram": func(t *testing.T, over string) string {
		return startConnect(t, over+"://"+map[string]string{"udp": "127.0.0.1:9", "unixgram": "@none"}[over], "-z").
			ends(t, "", "-z cannot tell whether anybody receives")
	},
}

// startShell starts ft connect with redirections of a shell.
func startShell(t *testing.T, redirections string, args ...string) *process {
	t.Helper()
	return startProcess(t, func(c *exec.Cmd) {
		shell := exec.Command("sh", append([]string{"-c", `exec ft "$@" ` + redirections, "sh", "connect"}, args...)...)
		c.Path, c.Args = shell.Path, shell.Args
	})
}

// sayUntilEnd writes to standard input until the process has ended.
func (p *process) sayUntilEnd() {
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for range tick.C {
		select {
		case <-p.ended:
			return
		default:
			io.WriteString(p.in, "x")
		}
	}
}

// sameTwice does it with SIGTERM and SIGINT, and wants the same of both.
func sameTwice(t *testing.T, f func(os.Signal) string) string {
	t.Helper()
	term, interrupt := f(syscall.SIGTERM), f(syscall.SIGINT)
	if term != interrupt {
		t.Errorf("SIGTERM ended with %s, SIGINT with %s", term, interrupt)
	}
	return term
}

func pipe(t *testing.T) (r, w *os.File) {
	t.Helper()
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { r.Close(); w.Close() })
	return r, w
}

// brokenStdout makes standard output a pipe that nobody reads any more.
func brokenStdout(t *testing.T) func(*exec.Cmd) {
	t.Helper()
	r, w := pipe(t)
	r.Close()
	return func(c *exec.Cmd) { c.Stdout = w }
}

func fullStdout(t *testing.T) func(*exec.Cmd) {
	t.Helper()
	f, err := os.OpenFile("/dev/full", os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	return func(c *exec.Cmd) { c.Stdout = f }
}

// flood writes more to w than can be under way, and then calls end. It returns when
// no more is taken. The function that it returns reads all that was written.
func flood(t *testing.T, w io.Writer, end func()) func(io.Reader) {
	t.Helper()
	const total = 128 << 20 // of buffers, two connections have 72 MiB at most in new kernels: tcp_rmem and tcp_wmem in tcp(7)
	var sent atomic.Int64
	done := make(chan struct{})
	go func() {
		defer close(done)
		for b := make([]byte, 64<<10); sent.Load() < total; {
			n, err := w.Write(b)
			sent.Add(int64(n))
			if err != nil {
				return
			}
		}
		end()
	}()
	for taken := int64(-1); taken != sent.Load(); time.Sleep(200 * time.Millisecond) { // it is full when nothing moves
		taken = sent.Load()
	}
	if sent.Load() == total {
		t.Errorf("%d bytes were taken, and nobody reads them", total)
	}
	return func(r io.Reader) {
		t.Helper()
		if n, err := io.Copy(io.Discard, r); n != total || err != nil {
			t.Errorf("%d of %d bytes came, %v", n, total, err)
		}
		<-done
	}
}

// nobodyAt is an endpoint at which nobody listens any more.
func nobodyAt(t *testing.T, over string) []string {
	t.Helper()
	h := newHost(t, over)
	if ln, ok := h.Listener.(*net.UnixListener); ok {
		ln.SetUnlinkOnClose(false)
	}
	h.Close()
	return h.args
}

// fullBacklog is an address that does not answer: its queue is full.
func fullBacklog(t *testing.T) string {
	t.Helper()
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Close(fd) })
	if err := errors.Join(unix.Bind(fd, &unix.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}}), unix.Listen(fd, 0)); err != nil {
		t.Fatal(err)
	}
	name, err := unix.Getsockname(fd)
	if err != nil {
		t.Fatal(err)
	}
	address := net.TCPAddr{IP: net.IPv4(127, 0, 0, 1), Port: name.(*unix.SockaddrInet4).Port}
	c, err := net.Dial("tcp", address.String()) // a backlog of 0 is one
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return address.String()
}

// What awaitTCP waits for, as /proc/net/tcp shows it: of a socket that connects to
// the port, or of one of the port.
const (
	tcpSynSent   = "02 remote"
	tcpCloseWait = "08 local"
	tcpUnread    = "unread local"
)

// awaitTCP waits until a socket of 127.0.0.1 is in a state.
func awaitTCP(t *testing.T, address, state string) {
	t.Helper()
	ap := netip.MustParseAddrPort(address)
	port := fmt.Sprintf("0100007F:%04X", ap.Port())
	for deadline := time.Now().Add(patience); time.Now().Before(deadline); time.Sleep(2 * time.Millisecond) { // nothing else tells
		text, err := os.ReadFile("/proc/net/tcp")
		if err != nil {
			t.Fatal(err)
		}
		for line := range strings.Lines(string(text)) {
			f := strings.Fields(line) // sl local remote state tx:rx
			local, remote := f[1] == port, f[2] == port
			switch {
			case remote && f[3]+" remote" == state, local && f[3]+" local" == state:
				return
			case local && state == tcpUnread && f[3] == "01" && !strings.HasSuffix(f[4], ":00000000"):
				return
			}
		}
	}
	t.Fatalf("no socket of %s came to %s", address, state)
}

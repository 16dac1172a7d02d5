package cli

import (
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"
	"time"
)

// listenRows are ft listen with standard input and output.
var listenRows = map[string]func(t *testing.T, over string) string{
	"listen-stdin-ends": func(t *testing.T, over string) string {
		p, address := startStdio(t, over, nil)
		c := callFT(t, over, address)
		c.say(t, "question")
		p.out.await(t, "question")
		p.say(t, "answer")
		p.end()
		c.hearEnd(t, "answer")
		c.say(t, " and more")
		c.Close()
		return p.ends(t, "question and more", "listening")
	},
	"listen-stdin-empty": func(t *testing.T, over string) string {
		p, address := startStdio(t, over, stdinOf(t, os.DevNull))
		c := callFT(t, over, address)
		c.hearEnd(t, "")
		c.say(t, "question")
		c.Close()
		return p.ends(t, "question", "listening")
	},
	"listen-client-ends": func(t *testing.T, over string) string {
		p, address := startStdio(t, over, nil)
		c := callFT(t, over, address)
		c.say(t, "question")
		c.finish(t)
		p.out.await(t, "question")
		p.say(t, "late answer")
		p.end()
		c.hearEnd(t, "late answer")
		return p.ends(t, "question", "listening")
	},
	"listen-both-end": func(t *testing.T, over string) string {
		p, address := startStdio(t, over, stdinOf(t, os.DevNull))
		c := callFT(t, over, address)
		c.say(t, "question")
		c.finish(t)
		c.hearEnd(t, "")
		return p.ends(t, "question", "listening")
	},
	"listen-terminal": func(t *testing.T, over string) string {
		_, slave := openTTY(t)
		p, address := startStdio(t, over, onTerminal(slave))
		c := callFT(t, over, address)
		c.say(t, "question")
		c.finish(t)
		c.hearEnd(t, "")
		return p.ends(t, "question", "listening")
	},
	"listen-second": func(t *testing.T, over string) string {
		p, address := startStdio(t, over, nil)
		c := callFT(t, over, address)
		p.say(t, "x")
		c.hear(t, "x")
		for {
			second, err := tryFT(t, over, address)
			if errors.Is(err, syscall.ECONNREFUSED) || errors.Is(err, os.ErrNotExist) {
				break
			}
			if err == nil { // the socket is still to be closed
				_, err = second.Read(make([]byte, 1))
			}
			if err == nil || errors.Is(err, os.ErrDeadlineExceeded) {
				t.Fatalf("the second client was told %v", err)
			}
		}
		c.Close()
		p.end()
		return p.ends(t, "", "listening")
	},
	"listen-reset": func(t *testing.T, over string) string {
		p, address := startStdio(t, over, nil)
		c := callFT(t, over, address)
		c.say(t, "question")
		p.out.await(t, "question")
		c.reset()
		return p.ends(t, "question", "connection reset by peer")
	},
	"listen-reset-at-once": func(t *testing.T, over string) string {
		p, address := startStdio(t, over, nil)
		callFT(t, over, address).reset()
		return p.ends(t, "", "connection reset by peer")
	},
	"listen-client-closes": func(t *testing.T, over string) string {
		p, address := startStdio(t, over, nil)
		c := callFT(t, over, address)
		c.say(t, "question")
		c.Close()
		p.out.await(t, "question")
		p.sayUntilEnd()
		return p.ends(t, "question", "the peer has closed the connection and takes no more")
	},
	"listen-stdout-broken": func(t *testing.T, over string) string {
		p, address := startStdio(t, over, brokenStdout(t))
		callFT(t, over, address).sayUntilReset(t)
		return p.ends(t, "", "listening")
	},
	"listen-quit-after": func(t *testing.T, over string) string {
		p, address := startStdio(t, over, nil, "--quit-after", "200ms")
		c := callFT(t, over, address)
		c.say(t, "question")
		p.out.await(t, "question")
		p.end()
		c.hearEnd(t, "")
		return p.ends(t, "question", "listening")
	},
	"listen-idle": func(t *testing.T, over string) string {
		p, address := startStdio(t, over, nil, "--idle", "200ms")
		callFT(t, over, address).hearEnd(t, "")
		return p.ends(t, "", "no byte in either direction")
	},
	"listen-first-byte": func(t *testing.T, over string) string {
		p, address := startStdio(t, over, nil, "--first-byte", "200ms")
		callFT(t, over, address).hearEnd(t, "")
		return p.ends(t, "", "the client sent nothing within 200.0 ms")
	},
	"listen-signal-waiting": func(t *testing.T, over string) string {
		return sameTwice(t, func(s os.Signal) string {
			p, _ := startStdio(t, over, nil)
			p.signal(s)
			return p.ends(t, "", "listening")
		})
	},
	"listen-signal": func(t *testing.T, over string) string {
		return sameTwice(t, func(s os.Signal) string {
			p, address := startStdio(t, over, nil)
			c := callFT(t, over, address)
			p.say(t, "half an")
			c.hear(t, "half an")
			p.signal(s)
			c.hearEnd(t, "")
			return p.ends(t, "", "listening")
		})
	},
	"listen-not-tls": func(t *testing.T, over string) string {
		p, address := startStdio(t, over, nil)
		stranger := callFT(t, "tcp", address)
		stranger.say(t, "GET / HTTP/1.1\r\n\r\n")
		io.Copy(io.Discard, stranger)
		c := callFT(t, over, address)
		c.say(t, "question")
		c.Close()
		p.end()
		return p.ends(t, "question", "listening")
	},
	"listen-tls-unclosed": func(t *testing.T, over string) string {
		p, address := startStdio(t, over, stdinOf(t, os.DevNull))
		c := callFT(t, over, address)
		c.hearEnd(t, "")
		c.say(t, "question")
		c.raw.Close()
		return p.ends(t, "question", "without the end of TLS: what came may be cut short")
	},
	"keep-next": func(t *testing.T, over string) string {
		p, address := startStdio(t, over, nil, "--keep")
		c := callFT(t, over, address)
		c.say(t, "first ")
		c.finish(t)
		c.hearEnd(t, "")
		c = callFT(t, over, address)
		p.say(t, "hello second")
		c.hear(t, "hello second")
		c.say(t, "second")
		p.out.await(t, "second")
		p.signal(syscall.SIGTERM)
		return p.ends(t, "first second", "listening")
	},
	"keep-waits": func(t *testing.T, over string) string {
		p, address := startStdio(t, over, nil, "--keep", "-v")
		c := callFT(t, over, address)
		p.say(t, "first")
		c.hear(t, "first")
		second := make(chan *peer)
		go func() {
			d, err := tryFT(t, over, address)
			if err != nil {
				t.Error(err)
			}
			second <- d
		}()
		p.say(t, "still the first")
		c.hear(t, "still the first")
		c.Close()
		d := <-second
		p.cause(t)
		p.say(t, "second")
		d.hear(t, "second")
		p.signal(syscall.SIGTERM)
		return p.ends(t, "", "listening")
	},
	"keep-stdin-ended": func(t *testing.T, over string) string {
		p, address := startStdio(t, over, stdinOf(t, os.DevNull), "--keep")
		for _, text := range []string{"first ", "second"} {
			c := callFT(t, over, address)
			c.hearEnd(t, "")
			c.say(t, text)
			c.Close()
			p.out.await(t, text)
		}
		p.signal(syscall.SIGTERM)
		return p.ends(t, "first second", "listening")
	},
	"keep-reset": func(t *testing.T, over string) string {
		p, address := startStdio(t, over, nil, "--keep")
		c := callFT(t, over, address)
		c.say(t, "first ")
		p.out.await(t, "first ")
		c.reset()
		c = callFT(t, over, address)
		c.say(t, "second")
		p.out.await(t, "second")
		p.signal(syscall.SIGTERM)
		return p.ends(t, "first second", "listening")
	},
	"keep-idle": func(t *testing.T, over string) string {
		p, address := startStdio(t, over, nil, "--keep", "--idle", "200ms")
		callFT(t, over, address).hearEnd(t, "")
		callFT(t, over, address).hearEnd(t, "")
		p.signal(syscall.SIGTERM)
		return p.ends(t, "", "listening")
	},
	"keep-stdout-broken": func(t *testing.T, over string) string {
		p, address := startStdio(t, over, brokenStdout(t), "--keep")
		callFT(t, over, address).sayUntilReset(t)
		return p.ends(t, "", "listening")
	},
	"listen-udp-stdin-ends": func(t *testing.T, over string) string {
		p, address := startStdio(t, over, stdinOf(t, os.DevNull))
		c, err := net.Dial(over, address)
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		c.Write([]byte("first "))
		p.out.await(t, "first ")
		c.Write(nil) // is not the end
		c.Write([]byte("second"))
		p.out.await(t, "second")
		p.signal(syscall.SIGTERM)
		return p.ends(t, "first second", "listening")
	},
	"listen-udp-quit-after": func(t *testing.T, over string) string {
		p, _ := startStdio(t, over, stdinOf(t, os.DevNull), "--quit-after", "200ms")
		return p.ends(t, "", "listening")
	},
	"listen-udp-idle": func(t *testing.T, over string) string {
		p, _ := startStdio(t, over, nil, "--idle", "300ms")
		return p.ends(t, "", "no byte in either direction")
	},
}

// startStdio starts ft listen with standard input and output, and returns where.
func startStdio(t *testing.T, over string, set func(*exec.Cmd), flags ...string) (p *process, address string) {
	t.Helper()
	p = startProcess(t, set, append(append([]string{"listen"}, placeOf(t, over)...), flags...)...)
	p.err.await(t, "stdio\n")
	return p, addressIn(p.err.String())
}

// placeOf is the endpoint at which ft listens, with the flags that it needs.
func placeOf(t *testing.T, over string) []string {
	t.Helper()
	switch over {
	case "unix", "seqpacket", "unixgram":
		return []string{over + "://" + socketPath(t)}
	case "tls":
		return []string{"tls://127.0.0.1:0", "--tls-self-signed"}
	case "udp":
		return []string{"udp://127.0.0.1:0"}
	case "poll", "goroutines":
		return []string{"127.0.0.1:0", "--engine", over}
	}
	return []string{"127.0.0.1:0"}
}

// addressIn takes the address out of "listening on tcp 127.0.0.1:80: echo".
func addressIn(line string) string {
	_, line, _ = strings.Cut(line, "listening on ")
	_, line, _ = strings.Cut(line, " ")
	address, _, _ := strings.Cut(line, ": ")
	return address
}

// serveRows are the services of ft listen. They return the cause by which the
// server says the first connection ended.
var serveRows = map[string]func(t *testing.T, over string) string{
	"echo-client-ends": func(t *testing.T, over string) string {
		p, address := startServer(t, over, "echo")
		c := callFT(t, over, address)
		text := strings.Repeat("0123456789abcdef", 1<<12)
		c.say(t, text)
		c.finish(t)
		c.hearEnd(t, text)
		return p.cause(t)
	},
	"echo-reset-at-once": func(t *testing.T, over string) string {
		p, address := startServer(t, over, "echo")
		callFT(t, over, address).reset()
		return p.cause(t)
	},
	"echo-reset": func(t *testing.T, over string) string {
		p, address := startServer(t, over, "echo")
		c := callFT(t, over, address)
		c.say(t, "x")
		c.hear(t, "x")
		other := callFT(t, over, address)
		c.say(t, strings.Repeat("x", 1<<16))
		c.reset()
		cause := p.cause(t)
		other.say(t, "still served")
		other.finish(t)
		other.hearEnd(t, "still served")
		return cause
	},
	"echo-slow": func(t *testing.T, over string) string {
		p, address := startServer(t, over, "echo")
		c := callFT(t, over, address)
		flood(t, c, func() { c.finish(t) })(c)
		return p.cause(t)
	},
	"echo-idle": func(t *testing.T, over string) string {
		p, address := startServer(t, over, "echo", "--idle", "300ms")
		callFT(t, over, address).hearEnd(t, "")
		return p.cause(t)
	},
	"echo-first-byte": func(t *testing.T, over string) string {
		p, address := startServer(t, over, "echo", "--first-byte", "300ms")
		callFT(t, over, address).hearEnd(t, "")
		return p.cause(t)
	},
	"echo-max": func(t *testing.T, over string) string {
		p, address := startServer(t, over, "echo", "--max", "1")
		c := callFT(t, over, address)
		c.say(t, "x")
		c.hear(t, "x")
		second := callFT(t, "tcp", address)
		if over != "tls" {
			second.say(t, "waits")
		}
		second.silentFor(t, 200*time.Millisecond)
		c.Close()
		if over != "tls" {
			second.hear(t, "waits")
		}
		return p.cause(t)
	},
	"echo-per-source": func(t *testing.T, over string) string {
		p, address := startServer(t, over, "echo", "--max-per-source", "1")
		c := callFT(t, over, address)
		c.say(t, "x")
		c.hear(t, "x")
		wantRefused(t, address)
		p.err.await(t, "refused: more than 1 connections from 127.0.0.1")
		c.Close()
		return p.cause(t)
	},
	"echo-denied": func(t *testing.T, over string) string {
		p, address := startServer(t, over, "echo", "--deny", "127.0.0.0/8")
		wantRefused(t, address)
		p.err.await(t, "refused: source not allowed")
		return p.stopped(t)
	},
	"echo-signal": func(t *testing.T, over string) string {
		p, address := startServer(t, over, "echo")
		c := callFT(t, over, address)
		c.say(t, "x")
		c.hear(t, "x")
		p.signal(syscall.SIGTERM)
		c.hearEnd(t, "")
		if code := p.code(t); code != "0" {
			t.Errorf("exit code %s", code)
		}
		return p.cause(t)
	},
	"serve-signal-busy": func(t *testing.T, over string) string {
		p, address := startServer(t, over, "chargen", "--drain", "300ms")
		c := callFT(t, over, address)
		c.awaitUnread(t)
		p.signal(syscall.SIGTERM)
		if code := p.code(t); code != "0" {
			t.Errorf("exit code %s", code)
		}
		c.hearReset(t)
		return p.cause(t)
	},
	"echo-killed": func(t *testing.T, over string) string {
		p, address := startServer(t, over, "echo")
		c := callFT(t, over, address)
		c.say(t, "x")
		c.hear(t, "x")
		p.Process.Kill()
		c.hearEnd(t, "")
		return p.code(t)
	},
	"discard-client-ends": func(t *testing.T, over string) string {
		p, address := startServer(t, over, "discard")
		c := callFT(t, over, address)
		c.say(t, "question")
		c.finish(t)
		c.hearEnd(t, "")
		return p.cause(t)
	},
	"chargen-client-ends": func(t *testing.T, over string) string {
		p, address := startServer(t, over, "chargen")
		c := callFT(t, over, address)
		c.finish(t)
		if _, err := io.CopyN(io.Discard, c, 1<<20); err != nil {
			t.Error(err)
		}
		c.raw.Close()
		return p.cause(t)
	},
	"daytime": func(t *testing.T, over string) string {
		p, address := startServer(t, over, "daytime")
		c := callFT(t, over, address)
		if b, err := io.ReadAll(c); err != nil || len(b) == 0 {
			t.Errorf("got %q, %v", b, err)
		}
		c.Close()
		return p.cause(t)
	},
	"daytime-client-stays": func(t *testing.T, over string) string {
		p, address := startServer(t, over, "daytime")
		c := callFT(t, over, address)
		io.Copy(io.Discard, c)
		return p.cause(t)
	},
	"chat-client-ends": func(t *testing.T, over string) string {
		p, address := startServer(t, over, "chat")
		c := callFT(t, over, address)
		c.hear(t, "* you are 1;")
		other := callFT(t, over, address)
		other.hear(t, chatGreeting)
		c.say(t, "last words")
		c.finish(t)
		other.hear(t, "[1] last words\n")
		if _, err := io.Copy(io.Discard, c); err != nil {
			t.Error(err)
		}
		return p.cause(t)
	},
	"chat-quit": func(t *testing.T, over string) string {
		p, address := startServer(t, over, "chat")
		c := callFT(t, over, address)
		c.say(t, "/quit\n")
		if _, err := io.Copy(io.Discard, c); err != nil {
			t.Error(err)
		}
		c.Close()
		return p.cause(t)
	},
	"chat-slow": slowListener("chat", chatGreeting, "a line\n", "[2] a line\n"),
	"broker-client-ends": func(t *testing.T, over string) string {
		p, address := startServer(t, over, "broker")
		c := callFT(t, over, address)
		p.err.await(t, "accept #1")
		other := callFT(t, over, address)
		p.err.await(t, "accept #2")
		c.say(t, "last words")
		c.finish(t)
		c.hearEnd(t, "")
		other.hear(t, "last words")
		other.silentFor(t, 100*time.Millisecond)
		return p.cause(t)
	},
	"broker-slow": slowListener("broker", "", "a line\n", ""),
	"serve-tls-unclosed": func(t *testing.T, over string) string {
		p, address := startServer(t, over, "echo")
		c := callFT(t, over, address)
		c.say(t, "x")
		c.hear(t, "x")
		c.raw.Close()
		return p.cause(t)
	},
	"serve-tls-garbage": func(t *testing.T, over string) string {
		p, address := startServer(t, over, "echo")
		c := callFT(t, "tcp", address)
		c.say(t, "GET / HTTP/1.1\r\n\r\n")
		io.Copy(io.Discard, c)
		return p.cause(t)
	},
	"serve-tls-silent": func(t *testing.T, over string) string {
		p, address := startServer(t, over, "echo")
		c := callFT(t, "tcp", address)
		c.hearEnd(t, "")
		return p.cause(t)
	},
	"serve-proxy-silent": func(t *testing.T, over string) string {
		p, address := startServer(t, over, "echo", "--proxy-from", "127.0.0.1")
		callFT(t, "tcp", address).hearReset(t)
		p.err.await(t, "refused: ")
		return p.stopped(t)
	},
	"file": func(t *testing.T, over string) string {
		path, content := someFile(t)
		p, address := startServer(t, over, "file", path)
		c := callFT(t, over, address)
		c.hearEnd(t, content)
		c.Close()
		return p.cause(t)
	},
	"file-client-ends": func(t *testing.T, over string) string {
		path, content := someFile(t)
		p, address := startServer(t, over, "file", path)
		c := callFT(t, over, address)
		c.finish(t)
		c.hearEnd(t, content)
		return p.cause(t)
	},
	"file-reset": func(t *testing.T, over string) string {
		p, address := startServer(t, over, "file", bigFile(t))
		c := callFT(t, over, address)
		io.CopyN(io.Discard, c, 1<<20)
		c.reset()
		return p.cause(t)
	},
	"file-cut": func(t *testing.T, over string) string {
		path := bigFile(t)
		p, address := startServer(t, over, "file", path)
		c := callFT(t, over, address)
		io.CopyN(io.Discard, c, 1<<20)
		if err := os.Truncate(path, 1<<20); err != nil {
			t.Fatal(err)
		}
		c.hearReset(t)
		p.err.await(t, "it was cut while it was sent")
		return p.cause(t)
	},
	"exec-client-ends": func(t *testing.T, over string) string {
		p, address := startServer(t, over, "exec", "--", "sh", "-c", "cat; echo late answer")
		c := callFT(t, over, address)
		c.say(t, "question ")
		c.finish(t)
		c.hearEnd(t, "question late answer\n")
		return p.cause(t)
	},
	"exec-ends": func(t *testing.T, over string) string {
		p, address := startServer(t, over, "exec", "--", "echo", "hello")
		c := callFT(t, over, address)
		c.hearEnd(t, "hello\n")
		c.Close()
		return p.cause(t)
	},
	"exec-fails": func(t *testing.T, over string) string {
		p, address := startServer(t, over, "exec", "--", "sh", "-c", "echo half; exit 3")
		c := callFT(t, over, address)
		c.hearEnd(t, "half\n")
		c.Close()
		return p.cause(t)
	},
	"exec-reset": func(t *testing.T, over string) string {
		p, address := startServer(t, over, "exec", "--", "sh", "-c", "trap 'echo hung up >&2; exit' HUP; echo ready; while :; do sleep 0.05; done")
		c := callFT(t, over, address)
		c.hear(t, "ready\n")
		c.reset()
		p.err.await(t, "hung up")
		return p.cause(t)
	},
	"exec-signal": func(t *testing.T, over string) string {
		p, address := startServer(t, over, "exec", "--", "sh", "-c", "trap 'echo hung up >&2; exit' HUP; echo ready; while :; do sleep 0.05; done")
		c := callFT(t, over, address)
		c.hear(t, "ready\n")
		p.signal(syscall.SIGTERM)
		p.err.await(t, "hung up")
		c.hearEnd(t, "")
		if code := p.code(t); code != "0" {
			t.Errorf("exit code %s", code)
		}
		return p.cause(t)
	},
	"exec-killed": func(t *testing.T, over string) string {
		p, address := startServer(t, over, "exec", "--", "cat")
		c := callFT(t, over, address)
		c.say(t, "x")
		c.hear(t, "x")
		p.Process.Kill()
		if over == "goroutines" {
			c.say(t, "still served")
			c.hear(t, "still served")
			c.finish(t)
		}
		c.hearEnd(t, "")
		return p.code(t)
	},
	"http-client-ends": func(t *testing.T, over string) string {
		return serveHTTP(t, over, func(c *peer) { c.finish(t) })
	},
	"http-reset": func(t *testing.T, over string) string {
		return serveHTTP(t, over, func(c *peer) { c.reset() })
	},
	"http-half-close": func(t *testing.T, over string) string {
		dir := t.TempDir()
		if err := os.WriteFile(dir+"/file", []byte("content"), 0o600); err != nil {
			t.Fatal(err)
		}
		p, address := startServer(t, over, "http", dir)
		c := callFT(t, over, address)
		c.say(t, "GET /file HTTP/1.1\r\nHost: x\r\n\r\n")
		c.finish(t)
		if b, err := io.ReadAll(c); err != nil || !strings.HasSuffix(string(b), "\r\n\r\ncontent") {
			t.Errorf("got %q, %v", b, err)
		}
		return p.cause(t)
	},
	"workers-killed": func(t *testing.T, over string) string {
		p, address := startServer(t, over, "echo", "--workers", "2")
		var clients []*peer
		for range 20 {
			c := callFT(t, "tcp", address)
			c.say(t, "x")
			c.hear(t, "x")
			clients = append(clients, c)
		}
		killChild(t, p.Process.Pid)
		p.err.await(t, "another takes its place")
		ended := 0
		for _, c := range clients {
			c.Write([]byte("y"))
			if _, err := c.Read(make([]byte, 1)); err != nil {
				ended++
			}
		}
		if ended == 0 || ended == len(clients) {
			t.Errorf("%d of %d connections ended with one of two workers", ended, len(clients))
		}
		c := callFT(t, "tcp", address)
		c.say(t, "new")
		c.hear(t, "new")
		return p.stopped(t)
	},
	"workers-signal": func(t *testing.T, over string) string {
		p, address := startServer(t, over, "echo", "--workers", "2")
		c := callFT(t, "tcp", address)
		c.say(t, "x")
		c.hear(t, "x")
		p.signal(syscall.SIGTERM)
		c.hearEnd(t, "")
		return p.code(t)
	},
	"udp-echo-silent": func(t *testing.T, over string) string {
		p, address := startServer(t, over, "echo", "--idle", "300ms")
		c, err := net.Dial(over, address)
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		c.SetDeadline(time.Now().Add(patience))
		c.Write(nil)
		if n, err := c.Read(make([]byte, 1)); n != 0 || err != nil {
			t.Errorf("the echo of nothing is %d bytes, %v", n, err)
		}
		return p.cause(t)
	},
}

// startServer starts a service and returns where it listens.
func startServer(t *testing.T, over string, args ...string) (p *process, address string) {
	t.Helper()
	p = startProcess(t, nil, append(append([]string{"listen", "-v"}, placeOf(t, over)...), args...)...)
	p.err.await(t, ": "+args[0])
	return p, addressIn(p.err.String())
}

var causeLine = regexp.MustCompile(` end #1 .*?: (.*?) after [0-9]`)

// cause waits for the end of the first connection and returns why.
func (p *process) cause(t *testing.T) string {
	t.Helper()
	for timeout := time.After(patience); ; {
		p.err.mu.Lock()
		changed := p.err.changed
		p.err.mu.Unlock()
		if m := causeLine.FindStringSubmatch(p.err.String()); m != nil {
			return m[1]
		}
		select {
		case <-changed:
		case <-timeout:
			t.Fatalf("no connection ended:\n%.1000s", p.err)
		}
	}
}

// stopped ends it by SIGTERM and returns the exit code.
func (p *process) stopped(t *testing.T) string {
	t.Helper()
	p.signal(syscall.SIGTERM)
	return p.code(t)
}

const chatGreeting = "* you are 2; /who lists the others, /to ID text speaks to one, /quit leaves\n"

// slowListener is a client that does not take what another sends to all. The other
// is greeted, and hears its own texts, as they come back to it.
func slowListener(kind, greeting, text, back string) func(t *testing.T, over string) string {
	return func(t *testing.T, over string) string {
		p, address := startServer(t, over, kind)
		slow := callFT(t, over, address)
		p.err.await(t, "accept #1")
		slow.raw.(*net.TCPConn).SetReadBuffer(4 << 10)
		sender := callFT(t, over, address)
		sender.hear(t, greeting)
		for !causeLine.MatchString(p.err.String()) {
			sender.say(t, strings.Repeat(text, 1000))
			sender.hear(t, strings.Repeat(back, 1000))
		}
		slow.hearReset(t)
		return p.cause(t)
	}
}

// bigFile has more bytes than a connection holds, and no blocks.
func bigFile(t *testing.T) string {
	t.Helper()
	path := t.TempDir() + "/file"
	if err := os.WriteFile(path, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(path, 1<<30); err != nil {
		t.Fatal(err)
	}
	return path
}

// serveHTTP asks for a file, and ends the connection that waits for the next request.
func serveHTTP(t *testing.T, over string, end func(*peer)) string {
	t.Helper()
	dir := t.TempDir()
	if err := os.WriteFile(dir+"/file", []byte("content"), 0o600); err != nil {
		t.Fatal(err)
	}
	p, address := startServer(t, over, "http", dir)
	c := callFT(t, over, address)
	c.say(t, "GET /file HTTP/1.1\r\nHost: x\r\n\r\n")
	for got := ""; !strings.HasSuffix(got, "\r\n\r\ncontent"); {
		b := make([]byte, 1000)
		n, err := c.Read(b)
		if got += string(b[:n]); err != nil {
			t.Fatalf("got %q, %v", got, err)
		}
	}
	end(c)
	return p.cause(t)
}

// wantRefused connects to a server that resets the connection at once.
func wantRefused(t *testing.T, address string) {
	t.Helper()
	c, err := tryFT(t, "tcp", address)
	if err == nil {
		_, err = c.Read(make([]byte, 1))
	}
	if !isReset(err) {
		t.Errorf("got %v, want a reset", err)
	}
}

// killChild kills a process that another has started.
func killChild(t *testing.T, parent int) {
	t.Helper()
	lists, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/children", parent)) // proc(5): of each thread
	if err != nil {
		t.Fatal(err)
	}
	for _, list := range lists {
		text, err := os.ReadFile(list)
		var child int
		if _, none := fmt.Sscan(string(text), &child); err != nil || none != nil {
			continue
		}
		if err := syscall.Kill(child, syscall.SIGKILL); err != nil {
			t.Fatal(err)
		}
		return
	}
	t.Fatalf("process %d has started no other", parent)
}

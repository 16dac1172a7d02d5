package cli

import (
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"testing"
	"time"
)

// forwardLimitRows are limits, access lists and the PROXY protocol.
var forwardLimitRows = map[string]func(t *testing.T, over string) string{
	"forward-max": func(t *testing.T, over string) string {
		f := startForwarding(t, over, "--max", "1")
		first, firstTarget := f.connect(t)
		exchanged(t, first, firstTarget)
		second := f.call(t)
		second.say(t, "waiting")
		f.target.nobodyCame(t)
		first.Close()
		firstTarget.hearEnd(t, "")
		firstTarget.Close()
		target := f.target.accept(t)
		target.hear(t, "waiting")
		return f.cause(t)
	},
	"forward-per-source": func(t *testing.T, over string) string {
		f := startForwarding(t, over, "--max-per-source", "1")
		first, firstTarget := f.connect(t)
		f.refused(t)
		other := callFrom(t, "127.0.0.9", f.address)
		exchanged(t, other, f.target.accept(t))
		exchanged(t, first, firstTarget)
		first.Close()
		firstTarget.hearEnd(t, "")
		firstTarget.Close()
		cause := f.cause(t)
		eventually(t, "another is served in its place", func() bool { // a moment after the event
			c, err := tryFT(t, f.callKind(), f.address)
			if err != nil {
				return false
			}
			defer c.Close()
			c.SetReadDeadline(time.Now().Add(50 * time.Millisecond))
			_, err = c.Read(make([]byte, 1))
			return errors.Is(err, os.ErrDeadlineExceeded)
		})
		return cause
	},
	"forward-accept-rate": func(t *testing.T, over string) string {
		f := startForwarding(t, over, "--accept-rate", "5")
		began := time.Now()
		for range 8 {
			client, target := f.connect(t)
			exchanged(t, client, target)
		}
		if took := time.Since(began); took < 400*time.Millisecond { // as many as in a second at once, or fewer
			t.Errorf("8 connections at 5 a second took %v", took)
		}
		return f.stopped(t)
	},
	"forward-denied": func(t *testing.T, over string) string {
		f := startForwarding(t, over, "--allow", "127.0.0.0/8", "--deny", "127.0.0.1")
		f.refused(t)
		exchanged(t, callFrom(t, "127.0.0.9", f.address), f.target.accept(t))
		f.says(t, "source not allowed")
		return f.stopped(t)
	},
	"forward-not-allowed": func(t *testing.T, over string) string {
		f := startForwarding(t, over, "--allow", "127.0.0.9")
		f.refused(t)
		exchanged(t, callFrom(t, "127.0.0.9", f.address), f.target.accept(t))
		return f.stopped(t)
	},
	"forward-rate": func(t *testing.T, over string) string {
		f := startForwarding(t, over, "--rate", "1MiB")
		client, target := f.connect(t)
		b := randomBytes(1, 2<<20)
		began := time.Now()
		go func() {
			client.Write(b)
			client.Conn.(interface{ CloseWrite() error }).CloseWrite()
		}()
		go func() {
			target.Write(b)
			target.Conn.(interface{ CloseWrite() error }).CloseWrite()
		}()
		got, err := io.ReadAll(target)
		sameBytes(t, "what came up", got, b)
		if err == nil {
			got, err = io.ReadAll(client)
			sameBytes(t, "what came down", got, b)
		}
		if took := time.Since(began); err != nil || took < 1200*time.Millisecond {
			t.Errorf("2 MiB at 1 MiB a second took %v, %v", took, err)
		}
		if cause := f.cause(t); cause != "target closed" { // whichever ends last
			return cause
		}
		return "peer closed"
	},
	"forward-proxy-in": func(t *testing.T, over string) string {
		f := startForwarding(t, over, "--accept-proxy", "127.0.0.0/8", "--send-proxy", "1")
		for i, header := range []string{
			"PROXY TCP4 192.0.2.7 198.51.100.1 4000 443\r\n",
			"\r\n\r\n\x00\r\nQUIT\n\x21\x11\x00\x0c" + "\xc0\x00\x02\x07\xc6\x33\x64\x01\x0f\xa0\x01\xbb",
			"PROXY TCP4 192.0.2.7 198.51.100.1 4000 443\r\n", // in pieces
		} {
			client := f.call(t)
			if i == 2 {
				for _, b := range []byte(header + "question") {
					client.say(t, string(b))
				}
			} else {
				client.say(t, header+"question")
			}
			target := f.target.accept(t)
			if over == "faults" {
				target.hear(t, "PROXY TCP4 192.0.2.7 ")
				for b := make([]byte, 1); b[0] != '\n'; { // where it wanted to go event loops alone pass on
					if _, err := target.Read(b); err != nil {
						t.Fatal(err)
					}
				}
				target.hear(t, "question")
			} else {
				target.hear(t, "PROXY TCP4 192.0.2.7 198.51.100.1 4000 443\r\nquestion")
			}
			target.say(t, "answer")
			client.hear(t, "answer")
			client.Close()
			target.hearEnd(t, "")
			target.Close()
		}
		return f.cause(t)
	},
	"forward-proxy-in-unlisted": func(t *testing.T, over string) string {
		f := startForwarding(t, over, "--accept-proxy", "192.0.2.0/24")
		client, target := f.connect(t)
		header := "PROXY TCP4 192.0.2.7 198.51.100.1 4000 443\r\n"
		client.say(t, header)
		target.hear(t, header) // it is not believed, and passed on as any other byte
		client.Close()
		target.hearEnd(t, "")
		target.Close()
		return f.cause(t)
	},
	"forward-proxy-in-denied": func(t *testing.T, over string) string {
		f := startForwarding(t, over, "--accept-proxy", "127.0.0.0/8", "--deny", "192.0.2.0/24")
		client := f.call(t)
		client.say(t, "PROXY TCP4 192.0.2.7 198.51.100.1 4000 443\r\n")
		client.hearReset(t)
		f.says(t, "source not allowed")
		f.target.nobodyCame(t)
		return f.stopped(t)
	},
	"forward-proxy-in-garbage": func(t *testing.T, over string) string {
		f := startForwarding(t, over, "--accept-proxy", "127.0.0.0/8")
		for _, garbage := range []string{
			"GET / HTTP/1.1\r\n\r\n", "PROXY TCP4 nonsense\r\n", "PROXY " + strings.Repeat("x", 200), "\r\n\r\n\x00\r\nQUIT\n\x31\x11\x00\x0c",
			"\x00", strings.Repeat("\xff", 100_000),
		} {
			client := f.call(t)
			io.WriteString(client, garbage)
			client.hearReset(t)
		}
		f.says(t, "PROXY")
		f.target.nobodyCame(t)
		return f.stopped(t)
	},
	"forward-proxy-in-silent": func(t *testing.T, over string) string {
		f := startForwarding(t, over, "--accept-proxy", "127.0.0.0/8")
		client := f.call(t)
		client.say(t, "PROXY TCP4")
		began := time.Now()
		client.hearReset(t)
		if took := time.Since(began); took < 4*time.Second {
			t.Errorf("it was reset after %v, want 5 s", took)
		}
		f.target.nobodyCame(t)
		return f.stopped(t)
	},
	"forward-proxy-out": func(t *testing.T, over string) string {
		for _, version := range []string{"1", "2"} {
			raw := newHost(t, "tcp")
			target := raw.Addr().String()
			if over == "to-tls" {
				target = "tls://" + target
			}
			args := []string{target, "--send-proxy", version}
			if over == "to-tls" {
				args = append(args, "--insecure")
			}
			f := startForwardingTo(t, over, raw, args...)
			client := f.call(t)
			got := raw.accept(t)
			from := client.raw.LocalAddr().(*net.TCPAddr)
			_, to, _ := net.SplitHostPort(f.address)
			if version == "1" {
				got.hear(t, fmt.Sprintf("PROXY TCP4 127.0.0.1 127.0.0.1 %d %s\r\n", from.Port, to))
			} else {
				port, _ := strconv.Atoi(to)
				got.hear(t, "\r\n\r\n\x00\r\nQUIT\n\x21\x11\x00\x0c\x7f\x00\x00\x01\x7f\x00\x00\x01"+
					string([]byte{byte(from.Port >> 8), byte(from.Port), byte(port >> 8), byte(port)}))
			}
			if over == "to-tls" { // the header is before TLS
				secured := tls.Server(got.Conn, serverTLS(t))
				if err := secured.HandshakeContext(t.Context()); err != nil {
					t.Fatal(err)
				}
				got.Conn = secured
			}
			exchanged(t, client, got)
			if code := f.stopped(t); code != "0" {
				t.Errorf("version %s: exit code %s", version, code)
			}
		}
		return "0"
	},
	"forward-proxy-out-unix": func(t *testing.T, over string) string {
		f := startForwarding(t, over, "--send-proxy", "1")
		client, target := f.connect(t)
		target.hear(t, "PROXY UNKNOWN\r\n")
		exchanged(t, client, target)
		return f.stopped(t)
	},
}

// callFrom connects over TCP from an address of loopback.
func callFrom(t *testing.T, from, address string) *peer {
	t.Helper()
	d := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP(from)}, Timeout: patience}
	c, err := d.DialContext(t.Context(), "tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	return newPeer(t, c)
}

// forwardTLSRows are TLS that ends or begins at the relay, or is looked into.
var forwardTLSRows = map[string]func(t *testing.T, over string) string{
	"forward-tls-garbage": func(t *testing.T, over string) string {
		f := startForwarding(t, over)
		for _, garbage := range []string{"GET / HTTP/1.1\r\n\r\n", strings.Repeat("\x00", 70_000), "\x16\x03\x01\xff\xff" + strings.Repeat("x", 40_000)} {
			c, err := tryFT(t, "tcp", f.address)
			if err != nil {
				t.Fatal(err)
			}
			io.WriteString(c, garbage)
			c.raw.(*net.TCPConn).CloseWrite()
			io.Copy(io.Discard, c) // an alert, and the end or a reset
		}
		exchanged(t, f.call(t), f.target.accept(t))
		return f.cause(t)
	},
	"forward-tls-untrusted": func(t *testing.T, over string) string {
		target := newHost(t, "tls")
		f := startForwardingTo(t, over, &host{target.Listener, "tcp", nil}, target.args[0]) // without --insecure
		client := f.call(t)
		secured := tls.Server(f.target.accept(t).Conn, serverTLS(t))
		if err := secured.HandshakeContext(t.Context()); err == nil {
			_, err = secured.Read(make([]byte, 1))
			if err == nil {
				t.Error("the target was trusted")
			}
		}
		client.hearReset(t)
		f.says(t, "not trusted here")
		f.refused(t) // also the next is not
		return f.stopped(t)
	},
	"forward-tls-not-tls": func(t *testing.T, over string) string {
		echo := startServing(t, "listen", "127.0.0.1:0", "echo")
		f := startForwardingTo(t, over, nil, "tls://"+echo.address)
		f.refused(t)
		f.says(t, "tls")
		return f.stopped(t)
	},
	"forward-tls-verified": func(t *testing.T, over string) string {
		place := newTLSPlace(t)
		server := startServing(t, "listen", "tls://127.0.0.1:0", "echo", "--tls-cert", place.dir+"/localhost.pem", "--tls-client-ca", place.dir+"/ca.pem")
		f := startForwardingTo(t, over, nil, "tls://"+server.address, "--cafile", place.dir+"/ca.pem", "--cert", place.dir+"/client.pem", "--target-name", "localhost")
		c := f.call(t)
		c.say(t, "question")
		c.finish(t)
		c.hearEnd(t, "question")
		return f.cause(t)
	},
	"forward-tls-client-ca": func(t *testing.T, over string) string {
		place := newTLSPlace(t)
		f := startForwarding(t, over, "--tls-client-ca", place.dir+"/ca.pem")
		curl := exec.Command("openssl", "s_client", "-quiet", "-connect", f.address, "-CAfile", place.dir+"/ca.pem")
		curl.Stdin = strings.NewReader("question\n")
		b, _ := curl.CombinedOutput()
		f.target.nobodyCame(t)
		f.says(t, "certificate")
		if !strings.Contains(string(b), "certificate required") && !strings.Contains(string(b), "alert") {
			t.Errorf("who shows no certificate got %.300q", b)
		}
		return f.stopped(t)
	},
	"forward-sni": func(t *testing.T, over string) string {
		place := newTLSPlace(t)
		server := func(name string) string {
			dir := t.TempDir()
			if err := os.WriteFile(dir+"/name", []byte(name), 0o600); err != nil {
				t.Fatal(err)
			}
			return startServing(t, "listen", "tls://127.0.0.1:0", "http", dir, "--tls-cert", place.dir+"/localhost.pem").address
		}
		p := startProcess(t, nil, "forward", "-v", "--drain", "200ms", "127.0.0.1:0", server("others"),
			"--sni", "a.test="+server("a"), "--sni", "*.b.test="+server("below b"))
		f := &forwarding{process: p, over: over}
		f.awaitForwarding(t)
		_, port, _ := net.SplitHostPort(f.address)
		for host, want := range map[string]string{
			"a.test": "a", "A.TEST": "a", "x.b.test": "below b", "y.x.b.test": "below b", "b.test": "others", "c.test": "others",
		} {
			got := output(t, nil, "curl", "-sSk", "--resolve", host+":"+port+":127.0.0.1", "https://"+host+":"+port+"/name")
			if got != want {
				t.Errorf("who asks for %s gets to %q, want %q", host, got, want)
			}
		}
		printed := output(t, []byte("GET /name HTTP/1.0\r\n\r\n"), "openssl", "s_client", "-quiet", "-connect", f.address, "-servername", "a.test")
		if !strings.HasSuffix(printed, "\r\n\r\na") {
			t.Errorf("openssl s_client got %.300q", printed)
		}
		printed = output(t, nil, "curl", "-sSk", "https://"+f.address+"/name") // an address is no server name
		if printed != "others" {
			t.Errorf("who asks for no name gets to %q", printed)
		}
		return f.stopped(t)
	},
	"forward-sni-nobody": func(t *testing.T, over string) string {
		target := newHost(t, "tcp")
		p := startProcess(t, nil, "forward", "-v", "--drain", "200ms", "127.0.0.1:0", "--sni", "a.test="+target.args[0])
		f := &forwarding{process: p, over: over, target: target}
		f.awaitForwarding(t)
		c := f.call(t)
		err := tls.Client(c.Conn, &tls.Config{ServerName: "c.test", InsecureSkipVerify: true}).HandshakeContext(t.Context())
		if !isReset(err) {
			t.Errorf("who asks for another name got %v, want a reset", err)
		}
		f.says(t, "no target for the server name")
		for _, garbage := range []string{"GET / HTTP/1.1\r\n\r\n", "\x16\x03\x01\x40\x00" + strings.Repeat("x", 60_000)} {
			c := f.call(t)
			io.WriteString(c, garbage)
			c.hearReset(t)
		}
		target.nobodyCame(t)
		return f.stopped(t)
	},
	"forward-sni-garbage": func(t *testing.T, over string) string {
		target := newHost(t, "tcp")
		f := startForwardingTo(t, over, target, target.args[0], "--sni", "a.test="+freePort(t))
		client := f.call(t)
		client.say(t, "SSH-2.0-x\r\n") // no greeting of TLS: goes where all others go
		f.target.accept(t).hear(t, "SSH-2.0-x\r\n")
		ended := f.call(t)
		ended.say(t, "\x16\x03")
		ended.finish(t)
		f.target.accept(t).hearEnd(t, "\x16\x03")
		client.Close()
		return f.stopped(t)
	},
	"forward-sni-silent": func(t *testing.T, over string) string {
		target := newHost(t, "tcp")
		f := startForwardingTo(t, over, target, target.args[0], "--sni", "a.test="+freePort(t))
		client := f.call(t) // waits for the target to speak first
		got := f.target.accept(t)
		got.say(t, "220 greeting")
		client.hear(t, "220 greeting")
		return f.stopped(t)
	},
}

package cli

import (
	"crypto/sha256"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/fivetuple/fivetuple/ancillary"
)

// datagramRows are ft connect with sockets that make no connection.
var datagramRows = map[string]func(t *testing.T, over string) string{
	"udp-stdin-ends": func(t *testing.T, over string) string {
		h := newPacketHost(t, over)
		p := startConnect(t, h.args...)
		p.say(t, "question")
		from := h.receive(t, "question")
		p.end()
		h.send(t, "late answer", from)
		code := p.ends(t, "late answer", "")
		h.receivesNothing(t)
		return code
	},
	"udp-stdin-empty": func(t *testing.T, over string) string {
		h := newPacketHost(t, over)
		code := startEmpty(t, h.args...).ends(t, "", "")
		h.receivesNothing(t)
		return code
	},
	"udp-quit-after": func(t *testing.T, over string) string {
		h := newPacketHost(t, over)
		p := startConnect(t, append(h.args, "--quit-after", "3s")...)
		p.say(t, "question")
		from := h.receive(t, "question")
		p.end()
		<-time.After(1200 * time.Millisecond) // later than without the flag
		h.send(t, "late answer", from)
		return p.ends(t, "late answer", "")
	},
	"udp-peer-empty": func(t *testing.T, over string) string {
		h := newPacketHost(t, over)
		p := startConnect(t, h.args...)
		p.say(t, "question")
		from := h.receive(t, "question")
		h.send(t, "", from)
		h.send(t, "answer", from)
		p.out.await(t, "answer")
		p.say(t, "more")
		h.receive(t, "more")
		p.end()
		return p.ends(t, "answer", "")
	},
	"udp-silent": func(t *testing.T, over string) string {
		h := newPacketHost(t, over)
		p := startConnect(t, append(h.args, "--idle", "300ms")...)
		return p.ends(t, "", "no byte in either direction")
	},
	"udp-signal": func(t *testing.T, over string) string {
		return sameTwice(t, func(s os.Signal) string {
			h := newPacketHost(t, over)
			p := startConnect(t, h.args...)
			p.say(t, "question")
			h.receive(t, "question")
			p.signal(s)
			return p.ends(t, "", "")
		})
	},
	"udp-refused": func(t *testing.T, over string) string {
		h := newPacketHost(t, over)
		p := startConnect(t, h.args...)
		p.say(t, "question")
		from := h.receive(t, "question")
		h.send(t, "answer", from)
		p.out.await(t, "answer")
		h.Close()
		p.say(t, "is anybody there?")
		return p.ends(t, "answer", "connection refused")
	},
	"udp-refused-quiet": func(t *testing.T, over string) string {
		h := newPacketHost(t, over)
		h.Close()
		p := startConnect(t, append(h.args, "--unconnected")...)
		p.say(t, "is anybody there?")
		p.end()
		return p.ends(t, "", "")
	},
	"unixgram-nobody": func(t *testing.T, over string) string {
		h := newPacketHost(t, over)
		h.PacketConn.(*net.UnixConn).Close()
		return startConnect(t, h.args...).ends(t, "", "connect unixgram://")
	},
	"join-datagrams": func(t *testing.T, over string) string {
		a, b := newHost(t, "tcp"), newPacketHost(t, over)
		p := startConnect(t, append(append(a.args, b.args...), "--messages", "line")...)
		near := a.accept(t)
		near.say(t, "question\n")
		from := b.receive(t, "question")
		near.finish(t)
		b.send(t, "late answer", from)
		near.hearEnd(t, "late answer\n")
		return p.ends(t, "", "")
	},
}

// fileRows are transfers of files and of descriptors.
var fileRows = map[string]func(t *testing.T, over string) string{
	"send-file": func(t *testing.T, over string) string {
		h := newHost(t, over)
		path, content := someFile(t)
		p := startEmpty(t, append(h.args, "--send-file", path)...)
		c := h.accept(t)
		c.hearEnd(t, content)
		c.say(t, "thanks")
		c.Close()
		return p.ends(t, "thanks", fmt.Sprintf("sha256 %x", sha256.Sum256([]byte(content))))
	},
	"send-file-reset": func(t *testing.T, over string) string {
		h := newHost(t, over)
		p := startEmpty(t, append(h.args, "--send-file", "/dev/zero")...)
		c := h.accept(t)
		io.CopyN(io.Discard, c, 1<<20)
		c.reset()
		return p.ends(t, "", "connection reset by peer")
	},
	"send-file-unconfirmed": func(t *testing.T, over string) string {
		h := newHost(t, over)
		path, content := someFile(t)
		p := startEmpty(t, append(h.args, "--send-file", path)...)
		c := h.accept(t)
		c.hearEnd(t, content)
		c.reset()
		return p.ends(t, "", "the end was not confirmed")
	},
	"send-file-signal": func(t *testing.T, over string) string {
		h := newHost(t, over)
		p := startEmpty(t, append(h.args, "--send-file", "/dev/zero")...)
		c := h.accept(t)
		io.CopyN(io.Discard, c, 1<<20)
		p.signal(syscall.SIGTERM)
		c.hearReset(t)
		return p.ends(t, "", "interrupted")
	},
	"send-file-missing": func(t *testing.T, over string) string {
		h := newHost(t, over)
		p := startEmpty(t, append(h.args, "--send-file", filepath.Join(t.TempDir(), "none"))...)
		defer h.nobodyCame(t)
		return p.ends(t, "", "no such file or directory")
	},
	"recv-file": func(t *testing.T, over string) string {
		h := newHost(t, over)
		path := filepath.Join(t.TempDir(), "file")
		p := startEmpty(t, append(h.args, "--recv-file", path)...)
		c := h.accept(t)
		c.say(t, "content")
		c.finish(t)
		c.hearEnd(t, "")
		code := p.ends(t, "", fmt.Sprintf("sha256 %x", sha256.Sum256([]byte("content"))))
		if b, err := os.ReadFile(path); err != nil || string(b) != "content" {
			t.Errorf("the file has %q, %v", b, err)
		}
		return code
	},
	"recv-file-reset": func(t *testing.T, over string) string {
		h := newHost(t, over)
		dir := t.TempDir()
		p := startEmpty(t, append(h.args, "--recv-file", filepath.Join(dir, "file"))...)
		c := h.accept(t)
		c.say(t, "half of the con")
		c.reset()
		code := p.ends(t, "", "connection reset by peer")
		wantEmpty(t, dir)
		return code
	},
	"recv-file-signal": func(t *testing.T, over string) string {
		h := newHost(t, over)
		dir := t.TempDir()
		p := startEmpty(t, append(h.args, "--recv-file", filepath.Join(dir, "file"))...)
		c := h.accept(t)
		c.say(t, "half of the con")
		awaitBytes(t, dir, 15)
		p.signal(syscall.SIGTERM)
		c.hearEnd(t, "")
		code := p.ends(t, "", "interrupted")
		wantEmpty(t, dir)
		return code
	},
	"recv-file-unclosed": func(t *testing.T, over string) string {
		h := newHost(t, over)
		dir := t.TempDir()
		p := startEmpty(t, append(h.args, "--recv-file", filepath.Join(dir, "file"))...)
		c := h.accept(t)
		c.say(t, "half of the con")
		c.raw.Close()
		code := p.ends(t, "", "without the end of TLS")
		wantEmpty(t, dir)
		return code
	},
	"take-fd-socket": func(t *testing.T, over string) string {
		h, passed := newHost(t, over), newHost(t, "tcp")
		p := startConnect(t, append(h.args, "--take-fd")...)
		c := h.accept(t)
		near, err := net.Dial("tcp", passed.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		far := passed.accept(t)
		f, err := near.(*net.TCPConn).File()
		near.Close()
		if err != nil {
			t.Fatal(err)
		}
		err = ancillary.SendFiles(c.raw.(*net.UnixConn), []byte("x"), f)
		f.Close()
		if err != nil {
			t.Fatal(err)
		}
		p.say(t, "question")
		p.end()
		far.hearEnd(t, "question")
		far.say(t, "late answer")
		far.Close()
		return p.ends(t, "late answer", "descriptor 1")
	},
	"take-fd-file": func(t *testing.T, over string) string {
		h := newHost(t, over)
		p := startConnect(t, append(h.args, "--take-fd")...)
		path, content := someFile(t)
		f, err := os.Open(path)
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		if err := ancillary.SendFiles(h.accept(t).raw.(*net.UnixConn), []byte("x"), f); err != nil {
			t.Fatal(err)
		}
		return p.ends(t, content, "descriptor 1")
	},
	"take-fd-none": func(t *testing.T, over string) string {
		h := newHost(t, over)
		p := startConnect(t, append(h.args, "--take-fd")...)
		h.accept(t).Close()
		return p.ends(t, "", "the peer closed and passed none")
	},
	"take-fd-bytes": func(t *testing.T, over string) string {
		h := newHost(t, over)
		p := startConnect(t, append(h.args, "--take-fd")...)
		h.accept(t).say(t, "only bytes")
		return p.ends(t, "", "the peer sent bytes without a descriptor")
	},
}

func someFile(t *testing.T) (path, content string) {
	t.Helper()
	path, content = filepath.Join(t.TempDir(), "file"), strings.Repeat("0123456789abcdef", 1<<16)
	if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
	return path, content
}

func wantEmpty(t *testing.T, dir string) {
	t.Helper()
	if entries, err := os.ReadDir(dir); err != nil || len(entries) > 0 {
		t.Errorf("%v is left in the directory, %v", entries, err)
	}
}

// awaitBytes waits until some file of a directory has n bytes.
func awaitBytes(t *testing.T, dir string, n int64) {
	t.Helper()
	for deadline := time.Now().Add(patience); time.Now().Before(deadline); time.Sleep(2 * time.Millisecond) { // nothing else tells
		entries, err := os.ReadDir(dir)
		if err != nil {
			t.Fatal(err)
		}
		for _, e := range entries {
			if info, err := e.Info(); err == nil && info.Size() == n {
				return
			}
		}
	}
	t.Fatalf("no file of %d bytes came", n)
}

// packetHost is a datagram socket of a test, for ft.
type packetHost struct {
	net.PacketConn
	args []string
}

func newPacketHost(t *testing.T, over string) *packetHost {
	t.Helper()
	address := "127.0.0.1:0"
	if over == "unixgram" {
		address = socketPath(t)
	}
	c, err := net.ListenPacket(over, address)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	c.SetDeadline(time.Now().Add(patience))
	return &packetHost{c, targetOf(over, c.LocalAddr().String())}
}

func (h *packetHost) receive(t *testing.T, text string) net.Addr {
	t.Helper()
	b := make([]byte, 2000)
	n, from, err := h.ReadFrom(b)
	if err != nil || string(b[:n]) != text {
		t.Fatalf("got %q (%v), want %q", b[:n], err, text)
	}
	return from
}

func (h *packetHost) receivesNothing(t *testing.T) {
	t.Helper()
	h.SetReadDeadline(time.Now().Add(20 * time.Millisecond))
	if n, _, err := h.ReadFrom(make([]byte, 1)); err == nil {
		t.Errorf("a datagram of %d bytes came, want none", n)
	}
}

func (h *packetHost) send(t *testing.T, text string, to net.Addr) {
	t.Helper()
	if _, err := h.WriteTo([]byte(text), to); err != nil {
		t.Fatal(err)
	}
}

//go:build unix

package stream

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/fivetuple/fivetuple/stats"
)

// content makes a file of random bytes.
func content(t *testing.T, path string, size int) []byte {
	t.Helper()
	b := make([]byte, size)
	rand.NewChaCha8([32]byte{byte(size)}).Read(b)
	if err := os.WriteFile(path, b, 0o600); err != nil {
		t.Fatal(err)
	}
	return b
}

func TestAFileIsServedWholeToEach(t *testing.T) {
	path := filepath.Join(t.TempDir(), "f")
	for _, size := range []int{0, 1, chunkSize, 5_000_001} {
		want := content(t, path, size)
		h, err := File(path)
		if err != nil {
			t.Fatal(err)
		}
		for i, where := range []string{"0", fmt.Sprint("unix://@stream-test-file-", size), "tls://0"} {
			ev := newEvents()
			s := &Server{Handler: h, Sink: ev}
			if i == 2 {
				s.TLS = selfSigned(t)
			}
			ln := serve(t, s, where)
			for id := range uint64(2) {
				c := connect(t, ln)
				if i == 2 {
					c = tls.Client(c, trusting())
				}
				if got, err := io.ReadAll(c); err != nil || !bytes.Equal(got, want) {
					t.Errorf("%s: got %d bytes of %d, %v", where, len(got), size, err)
				}
				c.Close()
				end := ev.wait(t, "disconnect", func(e stats.Event) bool { return e.Kind == stats.Disconnect && e.Conn == id+1 })
				if end.BytesOut != uint64(size) || end.Cause != causeDone {
					t.Errorf("%s: %+v", where, end)
				}
			}
		}
	}
}

func TestWhatIsNotAFileIsRefusedAtTheStart(t *testing.T) {
	dir := t.TempDir()
	fifo := filepath.Join(dir, "fifo")
	if err := syscall.Mkfifo(fifo, 0o600); err != nil {
		t.Fatal(err)
	}
	for path, want := range map[string]string{
		dir:                           "is a directory, not a regular file",
		fifo:                          "is a special file, not a regular file",
		"/dev/null":                   "is a special file, not a regular file",
		filepath.Join(dir, "nothing"): "no such file",
	} {
		if _, err := File(path); err == nil || !strings.HasPrefix(err.Error(), "serve file "+path+": ") || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want %q", path, err, want)
		}
	}
}

func TestAFileThatChangesWhileItIsServed(t *testing.T) {
	const size = 40 << 20 // more than sockets hold
	for _, tt := range []struct {
		name   string
		change func(t *testing.T, path string)
		whole  bool
	}{
		{"is replaced", func(t *testing.T, path string) {
			content(t, path+".new", 3)
			os.Rename(path+".new", path)
		}, true},
		{"grows", func(t *testing.T, path string) {
			f, err := os.OpenFile(path, os.O_APPEND|os.O_WRONLY, 0)
			if err != nil {
				t.Fatal(err)
			}
			defer f.Close()
			f.WriteString("more")
		}, true},
		{"is cut", func(t *testing.T, path string) {
			if err := os.Truncate(path, 100); err != nil {
				t.Fatal(err)
			}
		}, false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "f")
			want := content(t, path, size)
			h, err := File(path)
			if err != nil {
				t.Fatal(err)
			}
			ev := newEvents()
			c := connect(t, serve(t, &Server{Handler: h, Sink: ev}, "0"))
			got := readFull(t, c, 100)
			tt.change(t, path)
			rest, err := io.ReadAll(c)
			c.Close()
			end := ev.wait(t, "disconnect", kindIs(stats.Disconnect))
			if tt.whole {
				if err != nil || !bytes.Equal(append(got, rest...), want) || end.Cause != causeDone {
					t.Errorf("got %d bytes, %v: %+v", 100+len(rest), err, end)
				}
				return
			}
			failed := ev.wait(t, "error", kindIs(stats.Error))
			if !errors.Is(err, syscall.ECONNRESET) || end.Cause != causeFailed || !strings.Contains(failed.Err, "was cut while it was sent") {
				t.Errorf("got %d bytes, %v; %+v; %+v", 100+len(rest), err, end, failed)
			}
		})
	}
}

func TestAFileThatIsGoneResetsTheConnection(t *testing.T) {
	path := filepath.Join(t.TempDir(), "f")
	content(t, path, 1)
	h, err := File(path)
	if err != nil {
		t.Fatal(err)
	}
	os.Remove(path)
	ev := newEvents()
	if err := answer(serve(t, &Server{Handler: h, Sink: ev}, "0").Addr().String(), "127.0.0.1"); !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("got %v, want a reset", err)
	}
	if failed := ev.wait(t, "error", kindIs(stats.Error)); !strings.Contains(failed.Err, "no such file") {
		t.Errorf("got %+v", failed)
	}
}

func TestCopyingToAConnectionTakesWhatTheLimitSays(t *testing.T) {
	path := filepath.Join(t.TempDir(), "f")
	want := content(t, path, 300_000)
	const limit = 200_001
	for _, isFile := range []bool{true, false} {
		for _, where := range []string{"0", fmt.Sprint("unix://@stream-test-copy-", isFile)} {
			ev := newEvents()
			s := &Server{Sink: ev, Handler: HandlerFunc(func(_ context.Context, c *Conn) error {
				f, err := os.Open(path)
				if err != nil {
					return err
				}
				defer f.Close()
				var r io.Reader = f
				if !isFile {
					r = struct{ io.Reader }{f}
				}
				lr := &io.LimitedReader{R: r, N: limit}
				if n, err := io.Copy(c, lr); n != limit || lr.N != 0 || err != nil {
					t.Errorf("copied %d, %d left, %v", n, lr.N, err)
				}
				n, err := io.Copy(c, f)
				if n != int64(len(want)-limit) || err != nil {
					t.Errorf("then copied %d, %v", n, err)
				}
				return err
			})}
			c := connect(t, serve(t, s, where))
			if got, err := io.ReadAll(c); !bytes.Equal(got, want) || err != nil {
				t.Errorf("%s, a file %v: got %d bytes, %v", where, isFile, len(got), err)
			}
			c.Close()
			if end := ev.wait(t, "disconnect", kindIs(stats.Disconnect)); end.BytesOut != uint64(len(want)) {
				t.Errorf("got %+v", end)
			}
		}
	}
}

func TestABrokerHandsOnToAllOthers(t *testing.T) {
	for _, where := range []string{"0", "unix://@stream-test-broker", "seqpacket://@stream-test-broker"} {
		t.Run(where[:1], func(t *testing.T) {
			h, err := NewHandler("broker")
			if err != nil {
				t.Fatal(err)
			}
			s := &Server{Handler: h}
			ln := serve(t, s, where)
			var all []net.Conn
			for i := range 3 {
				all = append(all, connect(t, ln))
				waitForConns(t, s, i+1)
			}
			for i, text := range []string{"from a", "from b!"} {
				all[i].Write([]byte(text))
				for j, c := range all {
					if i != j {
						if got := readFull(t, c, len(text)); string(got) != text {
							t.Errorf("%d got %q, want %q", j, got, text)
						}
					}
				}
			}
		})
	}
}

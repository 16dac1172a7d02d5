//go:build unix

package stream

import (
	"errors"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestAListenerIsTakenOver(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s")
	for _, where := range []string{"0", "tcp6://0", "unix://" + path, "seqpacket://" + path, "unix://@stream-test-over"} {
		t.Run(where, func(t *testing.T) {
			first, err := ListenConfig{}.Listen(t.Context(), endpoint(t, where))
			if err != nil {
				t.Fatal(err)
			}
			f, err := first.(interface{ File() (*os.File, error) }).File()
			if err != nil {
				t.Fatal(err)
			}
			keep, isPath := first.(interface{ SetUnlinkOnClose(bool) })
			if isPath {
				keep.SetUnlinkOnClose(false)
			}
			first.Close()
			second, err := FileListener(f)
			f.Close()
			if err != nil {
				t.Fatal(err)
			}
			serveOn(t, &Server{Handler: Echo()}, second)
			c := connect(t, second)
			c.Write([]byte("x"))
			readFull(t, c, 1)
		})
	}
}

func TestATakenOverSocketFileIsRemovedOnlyIfAsked(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s")
	first, err := ListenConfig{}.Listen(t.Context(), endpoint(t, "unix://"+path))
	if err != nil {
		t.Fatal(err)
	}
	defer first.Close()
	f, err := first.(*unixListener).File()
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	for _, remove := range []bool{false, true} {
		ln, err := FileListener(f)
		if err != nil {
			t.Fatal(err)
		}
		if remove {
			ln.(*unixListener).SetUnlinkOnClose(true)
		}
		ln.Close()
		if _, err := os.Lstat(path); errors.Is(err, fs.ErrNotExist) != remove {
			t.Errorf("asked to remove: %v; then: %v", remove, err)
		}
	}
}

func TestWhatDoesNotListenIsNotTakenOver(t *testing.T) {
	ln := serve(t, &Server{Handler: Echo()}, "0")
	conn, err := connect(t, ln).(*net.TCPConn).File()
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	file, err := os.Open(".")
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	for f, want := range map[*os.File]string{conn: "does not listen", file: "non-socket"} {
		if ln, err := FileListener(f); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, %v", f.Name(), ln, err)
		}
	}
}

package stream

import (
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/fivetuple/fivetuple"
	"github.com/fivetuple/fivetuple/internal/poll"
)

// watched says whether an epoll instance of this process waits for the socket, by
// which Go's runtime does (proc_pid_fdinfo(5)).
func watched(t *testing.T, ln net.Listener) bool {
	t.Helper()
	raw, err := ln.(syscall.Conn).SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	var stat syscall.Stat_t
	if cerr := raw.Control(func(fd uintptr) { err = syscall.Fstat(int(fd), &stat) }); errors.Join(cerr, err) != nil {
		t.Fatal(cerr, err)
	}
	infos, err := filepath.Glob("/proc/self/fdinfo/*")
	if err != nil {
		t.Fatal(err)
	}
	for _, info := range infos {
		text, _ := os.ReadFile(info) // it may be closed meanwhile
		for line := range strings.Lines(string(text)) {
			if strings.HasPrefix(line, "tfd:") && strings.Contains(line, fmt.Sprintf(" ino:%x ", stat.Ino)) {
				return true
			}
		}
	}
	return false
}

func TestUnwatchedListenerIsForEventLoopsAlone(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s")
	for _, at := range []string{"tcp://127.0.0.1:0", "unix://" + path} {
		ln, err := ListenConfig{}.Listen(t.Context(), fivetuple.MustParseEndpoint(at))
		if err != nil {
			t.Fatal(err)
		}
		if !watched(t, ln) {
			t.Fatalf("%s: the test cannot see that Go's runtime waits for it", at)
		}
		u, err := Unwatched(ln)
		if err != nil {
			t.Fatal(err)
		}
		if watched(t, u) {
			t.Fatalf("%s: Go's runtime waits for its connections", at)
		}
		if _, err := ln.Accept(); !errors.Is(err, net.ErrClosed) {
			t.Errorf("%s: what it was made of: %v", at, err)
		}
		if _, err := u.Accept(); !errors.Is(err, errors.ErrUnsupported) {
			t.Errorf("%s: Accept: %v", at, err)
		}
		c, err := net.Dial(u.Addr().Network(), u.Addr().String())
		if err != nil {
			t.Fatalf("%s: %v", at, err)
		}
		c.Close()
		accepted := func() (errno syscall.Errno) {
			raw, _ := u.(syscall.Conn).SyscallConn()
			if err := raw.Control(func(fd uintptr) {
				var n int
				if n, _, errno = poll.Accept(int(fd)); errno == 0 {
					poll.Close(n)
				}
			}); err != nil {
				t.Fatal(err)
			}
			return errno
		}
		if errno := accepted(); errno != 0 {
			t.Errorf("%s: accept: %v", at, errno)
		}
		f, err := u.(interface{ File() (*os.File, error) }).File()
		if err != nil {
			t.Fatal(err)
		}
		again, err := FileListener(f)
		f.Close()
		if err != nil {
			t.Fatal(err)
		}
		if got, want := again.Addr().String(), u.Addr().String(); got != want {
			t.Errorf("a copy listens on %s, want %s", got, want)
		}
		again.Close()
		if same, err := Unwatched(u); same != u || err != nil {
			t.Errorf("%s: unwatched again: %v, %v", at, same, err)
		}
		if err := u.Close(); err != nil {
			t.Error(err)
		}
		if err := u.Close(); !errors.Is(err, net.ErrClosed) {
			t.Errorf("%s: closed twice: %v", at, err)
		}
		if c, err := net.Dial(u.Addr().Network(), u.Addr().String()); err == nil {
			c.Close()
			t.Errorf("%s: it listens when it is closed", at)
		}
	}
	if _, err := os.Lstat(path); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the file of the socket: %v", err)
	}
}

func TestUnwatchedListenerLeavesAFileThatIsNotItsOwn(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s")
	ln, err := ListenConfig{}.Listen(t.Context(), fivetuple.MustParseEndpoint("unix://"+path))
	if err != nil {
		t.Fatal(err)
	}
	u, err := Unwatched(ln)
	if err != nil {
		t.Fatal(err)
	}
	u.(interface{ SetUnlinkOnClose(bool) }).SetUnlinkOnClose(false)
	u.Close()
	if _, err := os.Lstat(path); err != nil {
		t.Error(err)
	}
}

type otherListener struct{ net.Listener }

func TestUnwatchedRefusesWhatItDoesNotKnow(t *testing.T) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	if _, err := Unwatched(otherListener{ln}); !errors.Is(err, errors.ErrUnsupported) {
		t.Errorf("got %v", err)
	}
	c, err := net.Dial("tcp", ln.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	c.Close()
	if c, err := ln.Accept(); err != nil {
		t.Error(err)
	} else {
		c.Close()
	}
}

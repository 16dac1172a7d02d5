//go:build unix

package dial

import (
	"errors"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"syscall"
	"testing"
	"time"

	"github.com/fivetuple/fivetuple"
)

func unixEndpoint(network fivetuple.Network, path string) fivetuple.Endpoint {
	return fivetuple.Endpoint{Network: network, Path: path}
}

func TestUnixSocketsConnect(t *testing.T) {
	for _, tt := range []struct {
		network fivetuple.Network
		path    string
	}{
		{fivetuple.Unix, filepath.Join(t.TempDir(), "s")},
		{fivetuple.Unix, "@fivetuple-dial-stream"},
		{fivetuple.Seqpacket, filepath.Join(t.TempDir(), "p")},
		{fivetuple.Seqpacket, "@fivetuple-dial-seqpacket"},
	} {
		e := unixEndpoint(tt.network, tt.path)
		t.Run(e.String(), func(t *testing.T) {
			network, address, _ := e.ListenArgs()
			acceptAll(t, listen(t, network, address))
			conn, err := Dialer{Timeout: time.Second}.Dial(t.Context(), e)
			if err != nil {
				t.Fatal(err)
			}
			defer conn.Close()
			if err := conn.(*net.UnixConn).CloseWrite(); err != nil {
				t.Error(err)
			}
		})
	}
}

func TestUnixSocketErrorsSayWhatIsThere(t *testing.T) {
	dir := t.TempDir()
	path := func(name string) string { return filepath.Join(dir, name) }
	stale := listen(t, "unix", path("stale")).(*net.UnixListener)
	stale.SetUnlinkOnClose(false)
	stale.Close()
	if err := os.WriteFile(path("file"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	acceptAll(t, listen(t, "unix", path("stream")))
	acceptAll(t, listen(t, "unixpacket", path("packets")))
	grams, err := net.ListenPacket("unixgram", path("grams"))
	if err != nil {
		t.Fatal(err)
	}
	defer grams.Close()
	for _, tt := range []struct {
		name, path string
		network    fivetuple.Network
		is         error
		part       string
	}{
		{"missing", path("missing"), fivetuple.Unix, fs.ErrNotExist, "does the program that listens there run?"},
		{"stale", path("stale"), fivetuple.Unix, syscall.ECONNREFUSED, "has ended"},
		{"file", path("file"), fivetuple.Unix, syscall.ECONNREFUSED, "the path is no socket (its mode is -rw-------)"},
		{"directory", dir, fivetuple.Seqpacket, syscall.ECONNREFUSED, "the path is no socket (its mode is d"},
		{"abstract", "@nobody-listens", fivetuple.Unix, syscall.ECONNREFUSED, "abstract name"},
		{"seqpacket as stream", path("packets"), fivetuple.Unix, syscall.EPROTOTYPE, "write seqpacket://" + path("packets")},
		{"stream as seqpacket", path("stream"), fivetuple.Seqpacket, syscall.EPROTOTYPE, "write unix://" + path("stream")},
		{"datagrams as stream", path("grams"), fivetuple.Unix, syscall.EPROTOTYPE, "write unixgram://" + path("grams")},
		{"too long", "/" + string(make([]byte, 108)), fivetuple.Unix, syscall.EINVAL, "at most 107"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			_, err := Dialer{Timeout: time.Second}.Dial(t.Context(), unixEndpoint(tt.network, tt.path))
			wantError(t, err, tt.is, tt.part)
		})
	}
}

func TestSocketOfAnotherUserNamesItsMode(t *testing.T) {
	err := explainUnix(&net.OpError{Op: "dial", Err: os.NewSyscallError("connect", syscall.EACCES)}, "unix", os.TempDir())
	wantError(t, err, fs.ErrPermission, "permission to write to the socket (its mode is d")
}

// fill connects to a listener that does not accept, until its backlog is full.
func fill(t *testing.T, path string) {
	t.Helper()
	for {
		conn, err := net.Dial("unix", path)
		if errors.Is(err, syscall.EAGAIN) {
			return
		}
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { conn.Close() })
	}
}

// listenShort listens with a backlog of one.
func listenShort(t *testing.T, path string) *net.UnixListener {
	t.Helper()
	ln := listen(t, "unix", path).(*net.UnixListener)
	t.Cleanup(func() { ln.Close() })
	raw, err := ln.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	if cerr := raw.Control(func(fd uintptr) { err = syscall.Listen(int(fd), 0) }); cerr != nil || err != nil {
		t.Fatal(cerr, err)
	}
	return ln
}

func TestFullBacklogIsWaitedFor(t *testing.T) {
	if runtime.GOOS != "linux" {
		return // other kernels refuse
	}
	path := filepath.Join(t.TempDir(), "s")
	ln := listenShort(t, path)
	fill(t, path)
	began := time.Now()
	_, err := Dialer{Timeout: 150 * ms}.Dial(t.Context(), unixEndpoint(fivetuple.Unix, path))
	wantError(t, err, os.ErrDeadlineExceeded, "timed out after ", "the backlog of the socket is full")
	if took := time.Since(began); took < 150*ms {
		t.Errorf("gave up after %v, want 150ms", took)
	}

	type dialed struct {
		net.Conn
		error
	}
	done := make(chan dialed)
	go func() {
		conn, err := Dialer{Timeout: 10 * time.Second}.Dial(t.Context(), unixEndpoint(fivetuple.Unix, path))
		done <- dialed{conn, err}
	}()
	for {
		select {
		case got := <-done:
			if got.error != nil {
				t.Fatal(got.error)
			}
			got.Close()
			return
		default:
		}
		ln.SetDeadline(time.Now().Add(10 * ms))
		if conn, err := ln.Accept(); err == nil {
			conn.Close()
		}
	}
}

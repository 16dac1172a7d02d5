package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// TestShortConnectionsLeaveNothingBehind has FT_SHORT connections pass through ft
// forward, each with a byte there and back, which its client or the target ends.
// None fails, and afterwards the process has the sockets that it had before the first,
// and the other descriptors and the memory that it had after a tenth.
func TestShortConnectionsLeaveNothingBehind(t *testing.T) {
	n := fromEnv("FT_SHORT", 20_000)
	ownRegistry(t)
	target := listenEcho(t)
	l := startForward(t, "127.0.0.1:0", target)
	began, before := time.Now(), usageOf(t, l.Process.Pid)
	shortConnections(t, l.address, 0, n/10)
	tenth := usageAtRest(t, l.Process.Pid, before.sockets)
	shortConnections(t, l.address, n/10, n)
	after := usageAtRest(t, l.Process.Pid, before.sockets)
	t.Logf("%d connections in %v: before the first %v, after a tenth %v, after all %v", n, time.Since(began).Round(time.Millisecond), before, tenth, after)
	// Pipes are pooled, and the heap grows and shrinks by itself. What stays behind
	// shows in a million connections: 16 bytes of each would be too much.
	const moreFiles, moreMemory = 32, 16 << 20
	if after.descriptors > tenth.descriptors+moreFiles || after.memory > tenth.memory+moreMemory {
		t.Errorf("%v became %v, want at most %d descriptors and %d MiB more", tenth, after, moreFiles, moreMemory>>20)
	}
	if code := l.stop(t); code != exitDone {
		t.Errorf("exit code %d", code)
	}
	for line := range strings.Lines(l.said.String()) {
		if strings.Contains(line, "error") || strings.Contains(line, "fail") {
			t.Errorf("said %s", line)
		}
	}
}

// listenEcho serves, until the test ends, clients of which each sends one byte and has
// it back. After an odd byte it is the one that closes.
func listenEcho(t *testing.T) (address string) {
	t.Helper()
	var config net.ListenConfig
	config.SetMultipathTCP(false)
	listener, err := config.Listen(t.Context(), "tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var serving sync.WaitGroup
	serving.Go(func() {
		for {
			conn, err := listener.Accept()
			if err != nil {
				return
			}
			serving.Go(func() {
				defer conn.Close()
				conn.SetDeadline(time.Now().Add(2 * patience))
				var b [1]byte
				for {
					if _, err := conn.Read(b[:]); err != nil {
						return
					}
					if _, err := conn.Write(b[:]); err != nil || b[0]&1 == 1 {
						return
					}
				}
			})
		}
	})
	t.Cleanup(func() {
		listener.Close()
		serving.Wait()
	})
	return listener.Addr().String()
}

// shortConnections makes those with the numbers [from, to), sixteen at a time, from
// addresses that differ, so that their ports do not run out.
func shortConnections(t *testing.T, address string, from, to int) {
	t.Helper()
	ctx, cancel := context.WithCancelCause(t.Context())
	defer cancel(nil)
	next := atomic.Int64{}
	next.Store(int64(from))
	var clients sync.WaitGroup
	for range 16 {
		clients.Go(func() {
			for ctx.Err() == nil {
				i := int(next.Add(1) - 1)
				if i >= to {
					return
				}
				if err := shortConnection(ctx, address, i); err != nil {
					cancel(fmt.Errorf("connection %d: %w", i, err))
				}
			}
		})
	}
	clients.Wait()
	if err := context.Cause(ctx); err != nil {
		t.Fatal(err)
	}
}

func shortConnection(ctx context.Context, address string, i int) error {
	dialer := net.Dialer{Timeout: patience, LocalAddr: &net.TCPAddr{IP: net.IPv4(127, 1, byte(i>>8), byte(i))}}
	conn, err := dialer.DialContext(ctx, "tcp4", address)
	if err != nil {
		return err
	}
	defer conn.Close()
	conn.SetDeadline(time.Now().Add(patience))
	b := [2]byte{byte(i)}
	if _, err := conn.Write(b[:1]); err != nil {
		return err
	}
	if _, err := io.ReadFull(conn, b[1:]); err != nil {
		return err
	}
	if b[1] != b[0] {
		return fmt.Errorf("byte %d came back as %d", b[0], b[1])
	}
	if b[0]&1 == 1 { // the target closes
		if n, err := conn.Read(b[1:]); n > 0 || !errors.Is(err, io.EOF) {
			return fmt.Errorf("after the end of the target: %d bytes, %w", n, err)
		}
	}
	return nil
}

// processUsage is what a process has.
type processUsage struct {
	descriptors, sockets int
	memory               int // bytes: VmRSS of proc_pid_status(5)
}

func (u processUsage) String() string {
	return fmt.Sprintf("%d descriptors (%d sockets) and %.1f MiB", u.descriptors, u.sockets, float64(u.memory)/(1<<20))
}

// usageAtRest waits until the process has so many sockets.
func usageAtRest(t *testing.T, pid, sockets int) (u processUsage) {
	t.Helper()
	eventually(t, fmt.Sprintf("it has %d sockets", sockets), func() bool {
		u = usageOf(t, pid)
		return u.sockets == sockets
	})
	return u
}

func usageOf(t *testing.T, pid int) (u processUsage) {
	t.Helper()
	dir := fmt.Sprintf("/proc/%d/fd/", pid)
	open, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	u.descriptors = len(open)
	for _, fd := range open {
		if is, err := os.Readlink(dir + fd.Name()); err == nil && strings.HasPrefix(is, "socket:") {
			u.sockets++
		}
	}
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		t.Fatal(err)
	}
	_, value, _ := strings.Cut(string(status), "VmRSS:")
	if _, err := fmt.Sscan(value, &u.memory); err != nil {
		t.Fatalf("VmRSS: %v", err)
	}
	u.memory <<= 10 // it is in KiB
	return u
}

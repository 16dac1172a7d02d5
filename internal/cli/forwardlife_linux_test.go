package cli

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// rules writes a file of rules.
func rules(t *testing.T, lines ...string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "rules")
	writeRules(t, path, lines...)
	return path
}

func writeRules(t *testing.T, path string, lines ...string) {
	t.Helper()
	var b []byte
	for _, line := range lines {
		b = append(b, line+"\n"...)
	}
	if err := os.WriteFile(path, b, 0o600); err != nil {
		t.Fatal(err)
	}
}

// TestForwardReloadsUnderLoad changes one of two rules FT_RELOADS times, while the
// other one has connections that are never still.
func TestForwardReloadsUnderLoad(t *testing.T) {
	ownRegistry(t)
	times, n := fromEnv("FT_RELOADS", 10), fromEnv("FT_RELOAD_CONNS", 50)
	echo := startListening(t, "127.0.0.1:0", "echo")
	stable := "127.0.0.1:8621 " + echo.address
	path := rules(t, stable, "127.0.0.1:8622 "+echo.address)
	f := startForward(t, "-f", path)
	conns, finish := busyConns(t, "127.0.0.1:8621", n)
	for i := range times {
		allMove(t, conns)
		changed := []string{
			"127.0.0.1:8622 " + echo.address + " --max 10",
			"127.0.0.1:8623 " + echo.address,
			"127.0.0.1:8622 " + echo.address + " --delay 1ms",
		}[i%3]
		writeRules(t, path, stable, changed)
		f.Process.Signal(syscall.SIGHUP)
		f.awaitTimes(t, "rules read again", i+1)
		if err := visit(changed[:len("127.0.0.1:8622")]); err != nil {
			t.Fatalf("after %d reloads %q does not relay: %v", i+1, changed, err)
		}
	}
	allMove(t, conns)
	finish()
	if code := f.stop(t); code != exitDone {
		t.Errorf("exit code %d:\n%.1000s", code, &f.said)
	}
	t.Logf("%d connections, %d reloads", n, times)
}

// udpSession is a client of a UDP echo that has a datagram under way all the time.
type udpSession struct {
	net.Conn
	came atomic.Uint64
}

// run sends a number, awaits it, and sends the next, until stop is closed.
func (s *udpSession) run(id uint64, stop <-chan struct{}) error {
	defer s.Close()
	b := make([]byte, 16)
	for next := uint64(0); ; next++ {
		select {
		case <-stop:
			return nil
		default:
		}
		binary.BigEndian.PutUint64(binary.BigEndian.AppendUint64(b[:0], id)[8:16], next)
		if _, err := s.Write(b); err != nil {
			return fmt.Errorf("session %d: send %d: %w", id, next, err)
		}
		s.SetReadDeadline(time.Now().Add(10 * time.Second))
		got := make([]byte, 32)
		n, err := s.Read(got)
		if err != nil {
			return fmt.Errorf("session %d: datagram %d is lost: %w", id, next, err)
		}
		if string(got[:n]) != string(b) {
			return fmt.Errorf("session %d: got %x, want %x", id, got[:n], b)
		}
		s.came.Store(next + 1)
	}
}

// echoPackets answers datagrams on the address that it returns. It has room for one of
// each session, where a socket's usual buffer has for some 250.
func echoPackets(t *testing.T) string {
	t.Helper()
	c, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	raw, err := c.(*net.UDPConn).SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	const room = 8 << 20
	if err := raw.Control(func(fd uintptr) {
		if unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, room) != nil { // who is not root has to do with less
			unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_RCVBUF, room)
		}
	}); err != nil {
		t.Fatal(err)
	}
	var served sync.WaitGroup
	served.Go(func() {
		b := make([]byte, 2048)
		for {
			n, from, err := c.(*net.UDPConn).ReadFromUDPAddrPort(b)
			if errors.Is(err, net.ErrClosed) {
				return
			}
			c.(*net.UDPConn).WriteToUDPAddrPort(b[:n], from)
		}
	})
	t.Cleanup(func() {
		c.Close()
		served.Wait()
	})
	return c.LocalAddr().String()
}

// TestForwardHandsOverUnderLoad lets FT_HANDOFFS successors take over a relay that has
// FT_HANDOFF_CONNS TCP connections and as many UDP sessions, none of them ever still.
func TestForwardHandsOverUnderLoad(t *testing.T) {
	ownRegistry(t)
	times, n := fromEnv("FT_HANDOFFS", 3), fromEnv("FT_HANDOFF_CONNS", 100)
	echo := startListening(t, "127.0.0.1:0", "echo", "--engine", "poll")
	target := echoPackets(t)
	args := []string{"-f", rules(t, "127.0.0.1:8631 "+echo.address, "udp://127.0.0.1:8632 udp://"+target),
		"--handoff", filepath.Join(t.TempDir(), "control")}
	f := startForward(t, args...)

	stop := make(chan struct{})
	var sessions []*udpSession
	var wg sync.WaitGroup
	for i := range n {
		c, err := net.Dial("udp", "127.0.0.1:8632")
		if err != nil {
			t.Fatal(err)
		}
		s := &udpSession{Conn: c}
		sessions = append(sessions, s)
		wg.Go(func() {
			if err := s.run(uint64(i), stop); err != nil {
				t.Error(err)
			}
		})
		sessionsMove(t, sessions[i:]) // one after the other: a burst of new ones may overflow any buffer
	}
	conns, finish := busyConns(t, "127.0.0.1:8631", n)
	over := make(chan struct{})
	var came atomic.Int64
	wg.Go(func() { // a client that comes and goes all the time
		for {
			select {
			case <-over:
				return
			default:
			}
			if err := visit("127.0.0.1:8631"); err != nil {
				t.Errorf("visitor %d: %v", came.Load(), err)
				return
			}
			came.Add(1)
		}
	})
	for range times {
		allMove(t, conns)
		sessionsMove(t, sessions)
		successor := startForward(t, args...)
		if code := f.exitCode(t); code != exitDone {
			t.Fatalf("the predecessor ended with %d:\n%.1000s", code, &f.said)
		}
		f = successor
	}
	allMove(t, conns)
	sessionsMove(t, sessions)
	close(over)
	close(stop)
	wg.Wait()
	finish()
	if code := f.stop(t); code != exitDone {
		t.Errorf("exit code %d:\n%.1000s", code, &f.said)
	}
	t.Logf("%d TCP connections, %d UDP sessions, %d hand-overs, %d visitors", n, n, times, came.Load())
}

// sessionsMove waits until a datagram has come back on each since the call.
func sessionsMove(t *testing.T, all []*udpSession) {
	t.Helper()
	came := make([]*atomic.Uint64, len(all))
	for i, s := range all {
		came[i] = &s.came
	}
	allRise(t, came)
}

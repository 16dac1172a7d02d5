package poll

import (
	"bytes"
	"net"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

func newPoller(t testing.TB) *Poller {
	t.Helper()
	p, err := New()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(p.Close)
	return p
}

func pair(t testing.TB) (a, b int) {
	t.Helper()
	fds, err := syscall.Socketpair(syscall.AF_UNIX, syscall.SOCK_STREAM|syscall.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { Close(fds[0]); Close(fds[1]) })
	return fds[0], fds[1]
}

func TestWaitTellsOfEachChangeOnceWithItsToken(t *testing.T) {
	p := newPoller(t)
	a, b := pair(t)
	const token = 0xfedcba9876543210
	if err := p.Add(a, token, In|RdHup|Edge); err != nil {
		t.Fatal(err)
	}
	for range 3 {
		Write(b, []byte("x"), false)
		ev := p.Wait(time.Second)
		if len(ev) != 1 || ev[0].Token() != token || ev[0].Ready() != In {
			t.Fatalf("got %v", ev)
		}
		if ev := p.Wait(0); len(ev) != 0 {
			t.Fatalf("told again: %v", ev)
		}
	}
	if err := p.Change(a, token+1, In|Out|Edge); err != nil {
		t.Fatal(err)
	}
	if ev := p.Wait(time.Second); len(ev) != 1 || ev[0].Token() != token+1 || ev[0].Ready() != In|Out {
		t.Fatalf("after Change: %v", ev)
	}
	if err := p.Remove(a); err != nil {
		t.Fatal(err)
	}
	Write(b, []byte("x"), false)
	if ev := p.Wait(10 * time.Millisecond); len(ev) != 0 {
		t.Fatalf("after Remove: %v", ev)
	}
}

func TestWakeEndsTheWaitNowOrTheNext(t *testing.T) {
	p := newPoller(t)
	for range 1000 {
		go p.Wake()
		p.Wait(-1)
	}
	p.Wake()
	p.Wake()
	if ev := p.Wait(-1); len(ev) != 0 {
		t.Errorf("got %v", ev)
	}
	if began := time.Now(); len(p.Wait(30*time.Millisecond)) != 0 || time.Since(began) < 30*time.Millisecond {
		t.Error("two wakes ended two waits")
	}
	p.Close()
	p.Wake() // of a descriptor that may be another's by now
	p.Close()
}

func TestReadAndWriteDoNotWait(t *testing.T) {
	a, b := pair(t) // in blocking mode
	buf := make([]byte, 100_000)
	if n, errno := Read(a, buf); n != 0 || errno != syscall.EAGAIN {
		t.Errorf("nothing to read: %d, %v", n, errno)
	}
	total := 0
	for {
		n, errno := Write(a, buf, false)
		if total += n; errno != 0 {
			if n != 0 || errno != syscall.EAGAIN {
				t.Errorf("no room: %d, %v", n, errno)
			}
			break
		}
	}
	CloseWrite(a)
	for {
		n, errno := Read(b, buf)
		if total -= n; n == 0 || errno != 0 {
			if n != 0 || errno != 0 {
				t.Errorf("the end: %d, %v", n, errno)
			}
			break
		}
	}
	if total != 0 {
		t.Errorf("%d bytes are lost", total)
	}
	Reset(b)
	if n, errno := Write(a, buf, false); n != 0 || errno != syscall.EPIPE {
		t.Errorf("to nobody: %d, %v", n, errno)
	}
}

func TestDropTakesWhatIsThereOfTCP(t *testing.T) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	c, err := net.Dial("tcp", ln.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	fd, peer := accept(t, ln)
	defer Close(fd)
	if peer.Addr != c.LocalAddr().(*net.TCPAddr).AddrPort() || peer.Name != "" {
		t.Errorf("peer is %+v, want %v", peer, c.LocalAddr())
	}
	if local, err := LocalOf(fd); err != nil || local.Addr != ln.Addr().(*net.TCPAddr).AddrPort() {
		t.Errorf("local end is %+v, %v", local, err)
	}
	c.Write(bytes.Repeat([]byte("x"), 1000))
	if n, errno := Drop(fd, 400); n != 400 || errno != 0 {
		t.Errorf("dropped %d, %v", n, errno)
	}
	if n, errno := Drop(fd, 4000); n != 600 || errno != 0 {
		t.Errorf("dropped %d, %v", n, errno)
	}
	if n, errno := Drop(fd, 4000); n != 0 || errno != syscall.EAGAIN {
		t.Errorf("dropped %d, %v", n, errno)
	}
	if tcp, err := IsStream(fd); !tcp || err != nil {
		t.Errorf("IsStream: %v, %v", tcp, err)
	}
}

func accept(t *testing.T, ln net.Listener) (fd int, peer Peer) {
	t.Helper()
	raw, err := ln.(syscall.Conn).SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	for deadline := time.Now().Add(10 * time.Second); ; time.Sleep(time.Millisecond) { // until the handshake is done
		var errno syscall.Errno
		raw.Control(func(l uintptr) { fd, peer, errno = Accept(int(l)) })
		if errno == 0 {
			return fd, peer
		}
		if errno != syscall.EAGAIN || time.Now().After(deadline) {
			t.Fatal(errno)
		}
	}
}

func TestNamesAreThoseOfTheNetPackage(t *testing.T) {
	dir := t.TempDir()
	for _, name := range []string{dir + "/a", "@poll-test-name", "@" + strings.Repeat("n", 106), ""} {
		ln, err := net.Listen("unix", "@poll-test")
		if err != nil {
			t.Fatal(err)
		}
		var from *net.UnixAddr
		if name != "" {
			from = &net.UnixAddr{Name: name, Net: "unix"}
		}
		c, err := net.DialUnix("unix", from, ln.Addr().(*net.UnixAddr))
		if err != nil {
			t.Fatal(err)
		}
		fd, peer := accept(t, ln)
		if peer.Name != name || peer.Addr.IsValid() {
			t.Errorf("peer is %+v, want %q", peer, name)
		}
		who, err := PeerCredentials(fd)
		if err != nil || who.PID != syscall.Getpid() || int(who.UID) != syscall.Getuid() {
			t.Errorf("credentials are %+v, %v", who, err)
		}
		Close(fd)
		c.Close()
		ln.Close()
	}
}

func TestLingeringIsSeenAndEnded(t *testing.T) {
	a, _ := pair(t)
	if Lingers(a) {
		t.Error("a new socket lingers")
	}
	unix.SetsockoptLinger(a, unix.SOL_SOCKET, unix.SO_LINGER, &unix.Linger{Onoff: 1, Linger: 5})
	if !Lingers(a) {
		t.Error("it does not linger")
	}
	if DoNotLinger(a); Lingers(a) {
		t.Error("it still lingers")
	}
}

func BenchmarkReadWrite(b *testing.B) {
	x, y := pair(b)
	buf := make([]byte, 64)
	b.ReportAllocs()
	for b.Loop() {
		Write(x, buf, false)
		Read(y, buf)
	}
}

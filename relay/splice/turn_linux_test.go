package splice

import (
	"bytes"
	"io"
	"net"
	"syscall"
	"testing"
	"time"
)

// within lets do happen while the loop has one event in hand and not yet seen to it.
func within(t *testing.T, s *Server, first, do func()) {
	t.Helper()
	l := s.allLoops()[0]
	l.mu.Lock()
	first()
	time.Sleep(100 * time.Millisecond) // that it waits for the mutex nothing tells
	do()
	time.Sleep(100 * time.Millisecond) // until all has arrived
	l.mu.Unlock()
}

func TestUrgentDataRightBeforeTheEndIsNotTheEnd(t *testing.T) {
	ownShare(t)
	got := make(chan []byte, 1)
	target := targets(t, "0", func(c net.Conn) {
		b, _ := io.ReadAll(c)
		got <- b
	})
	s := relayTo(t, target, nil)
	s.Loops = 1
	ln := start(t, s, "0")
	c := dial(t, ln)
	raw, err := c.(*net.TCPConn).SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	const much = 4 << 20
	c.Write(make([]byte, much))
	eventually(t, "it is spliced", func() bool { p := s.Pairs(); return len(p) == 1 && p[0].Up.Engine == "splice" && p[0].Up.Bytes == much })
	within(t, s, func() { c.Write([]byte("A")) }, func() {
		c.Write([]byte("B"))
		raw.Write(func(fd uintptr) bool { syscall.Sendto(int(fd), []byte("!"), syscall.MSG_OOB, nil); return true })
		c.Write([]byte("tail"))
		closeWrite(c)
	})
	if b := <-got; !bytes.HasSuffix(b, []byte("AB!tail")) {
		t.Errorf("%d bytes came, the last of them %q", len(b), b[max(0, len(b)-7):])
	}
}

func TestAnAnswerBeforeAResetArrivesThoughTheClientSpeaksToo(t *testing.T) {
	const answer = 64 << 10
	speak := make(chan struct{})
	target := targets(t, "0", func(c net.Conn) {
		<-speak
		c.Write(make([]byte, answer))
		time.Sleep(20 * time.Millisecond) // until the other end of loopback has it
		c.(*net.TCPConn).SetLinger(0)
	})
	s := relayTo(t, target, nil)
	s.Loops = 1
	ln := start(t, s, "0")
	d := net.Dialer{Control: func(_, _ string, raw syscall.RawConn) error {
		return raw.Control(func(fd uintptr) { syscall.SetsockoptInt(int(fd), syscall.SOL_SOCKET, syscall.SO_RCVBUF, 4096) })
	}}
	c, err := d.Dial("tcp", ln.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	other := dial(t, ln)
	eventually(t, "they are connected", func() bool {
		p := s.Pairs()
		return len(p) == 2 && p[0].State == "relaying" && p[1].State == "relaying"
	})
	within(t, s, func() { other.Write([]byte("x")) }, func() { // both sides have an event in the next turn, the client first
		c.Write([]byte("x"))
		close(speak)
	})
	c.SetReadDeadline(time.Now().Add(20 * time.Second))
	if b, err := io.ReadAll(c); len(b) != answer {
		t.Errorf("%d of %d bytes came, then %v", len(b), answer, err)
	}
}

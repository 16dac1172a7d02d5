package cli

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

// forwardFaultRows are faults on purpose.
var forwardFaultRows = map[string]func(t *testing.T, over string) string{
	"forward-delay": func(t *testing.T, over string) string {
		f := startFaulty(t, over, "--delay", "100ms")
		began := time.Now()
		f.ask(t, "question")
		if took := time.Since(began); took < 200*time.Millisecond {
			t.Errorf("with 100 ms each way it took %v", took)
		}
		return f.stopped(t)
	},
	"forward-jitter": func(t *testing.T, over string) string {
		f := startFaulty(t, over, "--jitter", "30ms", "--seed", "7")
		began := time.Now()
		for range 20 { // of which the mean is 30 ms, there and back
			f.ask(t, "question")
		}
		if took := time.Since(began); took < 200*time.Millisecond {
			t.Errorf("20 round trips took %v", took)
		}
		return f.stopped(t)
	},
	"forward-loss": func(t *testing.T, over string) string {
		f := startFaulty(t, over, "--loss", "30%", "--seed", "7")
		if over == "udp" {
			if lost := strings.Count(f.arrive(t, 200), "0"); lost < 20 || lost > 180 {
				t.Errorf("%d of 200 were lost", lost)
			}
			return f.stopped(t)
		}
		began := time.Now()
		for range 10 {
			f.ask(t, "question")
		}
		if took := time.Since(began); took < 200*time.Millisecond { // one at least was lost
			t.Errorf("10 round trips took %v", took)
		}
		return f.stopped(t)
	},
	"forward-seed": func(t *testing.T, over string) string {
		pattern := func(seed string) string {
			f := startFaulty(t, over, "--loss", "0.5", "--seed", seed)
			came := f.arrive(t, 100)
			if code := f.stopped(t); code != "0" {
				t.Errorf("exit code %s", code)
			}
			return came
		}
		first, again, other := pattern("7"), pattern("7"), pattern("8")
		if first != again {
			t.Errorf("the same seed gave %s and %s", first, again)
		}
		if first == other {
			t.Errorf("another seed gave %s as well", other)
		}
		return "0"
	},
	"forward-reorder": func(t *testing.T, over string) string {
		f := startFaulty(t, over, "--reorder", "20%", "--seed", "7")
		const n = 100
		go func() {
			for i := range n {
				fmt.Fprintf(f.client, "%03d", i)
				time.Sleep(time.Millisecond) // at one a moment buffers hold all
			}
		}()
		var got []string
		b := make([]byte, 16)
		for range n {
			size, err := f.client.Read(b)
			if err != nil {
				t.Fatalf("after %d: %v", len(got), err)
			}
			got = append(got, string(b[:size]))
		}
		if slices.IsSorted(got) {
			t.Error("none was overtaken")
		}
		slices.Sort(got)
		for i, text := range got {
			if text != fmt.Sprintf("%03d", i) {
				t.Fatalf("%q came in the place of %d", text, i)
			}
		}
		return f.stopped(t)
	},
	"forward-bandwidth": func(t *testing.T, over string) string {
		f := startFaulty(t, over, "--bandwidth", "200kB")
		began := time.Now()
		b := randomBytes(3, 1000)
		for range 40 { // 40 kB each way, one after the other
			f.ask(t, string(b))
		}
		if took := time.Since(began); took < 200*time.Millisecond {
			t.Errorf("40 kB each way at 200 kB a second took %v", took)
		}
		return f.stopped(t)
	},
	"forward-cut-bytes": func(t *testing.T, over string) string {
		f := startForwarding(t, over, "--cut-after", "100kB")
		client, target := f.connect(t)
		b := randomBytes(4, 300_000)
		go client.Write(b)
		got, err := io.ReadAll(target)
		if len(got) != 100_000 || !isReset(err) || !bytes.Equal(got, b[:len(got)]) {
			t.Errorf("%d bytes came, and %v; want the first 100000 and a reset", len(got), err)
		}
		client.hearReset(t)
		return f.cause(t)
	},
	"forward-cut-time": func(t *testing.T, over string) string {
		f := startForwarding(t, over, "--cut-after", "300ms")
		client, target := f.connect(t)
		exchanged(t, client, target)
		client.hearReset(t)
		target.hearReset(t)
		return f.cause(t)
	},
}

// faulty is a relay to an echo, with a client.
type faulty struct {
	*forwarding
	client net.Conn
}

func startFaulty(t *testing.T, over string, flags ...string) *faulty {
	t.Helper()
	var target string
	if over == "udp" {
		target = "udp://" + echoPackets(t)
	} else {
		target = startServing(t, "listen", "127.0.0.1:0", "echo").address
	}
	f := startForwardingTo(t, over, nil, append([]string{target}, flags...)...)
	c, err := net.Dial(over, f.address)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	c.SetDeadline(time.Now().Add(patience))
	return &faulty{f, c}
}

// ask sends a text and waits until it has come back.
func (f *faulty) ask(t *testing.T, text string) {
	t.Helper()
	if _, err := io.WriteString(f.client, text); err != nil {
		t.Fatal(err)
	}
	b := make([]byte, len(text))
	if n, err := io.ReadFull(f.client, b); err != nil || string(b) != text {
		t.Fatalf("got %.100q, %v", b[:n], err)
	}
}

// arrive sends n datagrams in a row, and has a 1 for each that came back, else a 0.
func (f *faulty) arrive(t *testing.T, n int) string {
	t.Helper()
	for i := range n {
		fmt.Fprintf(f.client, "%d", i)
		time.Sleep(200 * time.Microsecond) // buffers need not hold all at once
	}
	came := bytes.Repeat([]byte("0"), n)
	for b := make([]byte, 100); ; {
		f.client.SetReadDeadline(time.Now().Add(time.Second))
		size, err := f.client.Read(b)
		if err != nil {
			return string(came)
		}
		i, err := strconv.Atoi(string(b[:size]))
		if err != nil || i >= n {
			t.Fatalf("got %q", b[:size])
		}
		came[i] = '1'
	}
}

// udpForwarding is a relay of datagrams with a target of the test.
type udpForwarding struct {
	*forwarding
	target *packetHost
}

func startUDP(t *testing.T, flags ...string) *udpForwarding {
	t.Helper()
	target := newPacketHost(t, "udp")
	return &udpForwarding{startForwardingTo(t, "udp", nil, append(slices.Clone(target.args), flags...)...), target}
}

// client is a new one.
func (f *udpForwarding) client(t *testing.T) *packetPeer {
	t.Helper()
	return f.clientFrom(t, "127.0.0.1")
}

func (f *udpForwarding) clientFrom(t *testing.T, address string) *packetPeer {
	t.Helper()
	d := net.Dialer{LocalAddr: &net.UDPAddr{IP: net.ParseIP(address)}}
	c, err := d.Dial("udp", f.address)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	c.SetDeadline(time.Now().Add(patience))
	return &packetPeer{c}
}

// packetPeer is a client of it. That it is connected checks where answers come from.
type packetPeer struct{ net.Conn }

func (p *packetPeer) say(t *testing.T, text string) {
	t.Helper()
	if _, err := io.WriteString(p, text); err != nil {
		t.Fatal(err)
	}
}

func (p *packetPeer) hear(t *testing.T, text string) {
	t.Helper()
	b := make([]byte, 65536)
	if n, err := p.Read(b); err != nil || string(b[:n]) != text {
		t.Fatalf("the client got %s, %v; want %s", summary(b[:n]), err, summary([]byte(text)))
	}
}

func (p *packetPeer) hearsNothing(t *testing.T) {
	t.Helper()
	p.SetReadDeadline(time.Now().Add(20 * time.Millisecond))
	if n, err := p.Read(make([]byte, 100)); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("the client got %d bytes, %v; want nothing", n, err)
	}
	p.SetReadDeadline(time.Now().Add(patience))
}

// exchange passes a datagram each way, and returns where the relay sends from.
func (f *udpForwarding) exchange(t *testing.T, c *packetPeer, text string) net.Addr {
	t.Helper()
	c.say(t, text)
	from := f.target.receive(t, text)
	f.target.send(t, "re: "+text, from)
	c.hear(t, "re: "+text)
	return from
}

// forwardUDPRows are sessions of datagrams.
var forwardUDPRows = map[string]func(t *testing.T, over string) string{
	"forward-udp-session": func(t *testing.T, over string) string {
		f := startUDP(t, "--idle", "300ms")
		a, b := f.client(t), f.client(t)
		fromA, fromB := f.exchange(t, a, "a"), f.exchange(t, b, "b")
		if fromA.String() == fromB.String() {
			t.Errorf("both clients came from %s", fromA)
		}
		if again := f.exchange(t, a, "a again"); again.String() != fromA.String() {
			t.Errorf("a client came from %s, and then from %s", fromA, again)
		}
		f.exchange(t, a, "") // an empty datagram is one, too
		return f.cause(t)
	},
	"forward-udp-replies-last": func(t *testing.T, over string) string {
		f := startUDP(t, "--idle", "400ms")
		c := f.client(t)
		from := f.exchange(t, c, "subscribe")
		for range 8 { // what comes from the target alone keeps the session, too
			time.Sleep(100 * time.Millisecond)
			f.target.send(t, "news", from)
			c.hear(t, "news")
		}
		return f.cause(t)
	},
	"forward-udp-no-reply": func(t *testing.T, over string) string {
		f := startUDP(t, "--first-reply", "200ms", "--idle", "1h")
		f.client(t).say(t, "anybody?")
		f.target.receive(t, "anybody?")
		return f.cause(t)
	},
	"forward-udp-refused": func(t *testing.T, over string) string {
		f := startUDP(t)
		c := f.client(t)
		f.exchange(t, c, "before")
		address := f.target.LocalAddr().String()
		f.target.Close()
		c.say(t, "lost")
		cause := f.cause(t)
		pc, err := net.ListenPacket("udp", address)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { pc.Close() })
		pc.SetDeadline(time.Now().Add(patience))
		f.target = &packetHost{pc, nil}
		f.exchange(t, c, "after") // by a new session
		return cause
	},
	"forward-udp-next": func(t *testing.T, over string) string {
		good := newPacketHost(t, "udp")
		bad := newPacketHost(t, "udp")
		bad.Close()
		f := &udpForwarding{startForwardingTo(t, "udp", nil, bad.args[0], good.args[0]), good}
		c := f.client(t)
		eventually(t, "a datagram reaches the target that is there", func() bool { // ICMP of the other ends a session
			c.Write([]byte("x"))
			good.SetReadDeadline(time.Now().Add(50 * time.Millisecond))
			_, _, err := good.ReadFrom(make([]byte, 10))
			return err == nil
		})
		return f.stopped(t)
	},
	"forward-udp-unresolvable": func(t *testing.T, over string) string {
		f := startForwardingTo(t, "udp", nil, "udp://no-such-host.invalid:53")
		u := &udpForwarding{f, nil}
		c := u.client(t)
		c.say(t, "x")
		f.says(t, "udp 127.0.0.1")
		f.says(t, "lookup no-such-host.invalid")
		c.hearsNothing(t)
		return f.stopped(t)
	},
	"forward-udp-evicted": func(t *testing.T, over string) string {
		f := startUDP(t, "--max", "2")
		a, b := f.client(t), f.client(t)
		fromA := f.exchange(t, a, "a")
		f.exchange(t, b, "b")
		f.exchange(t, a, "a again") // so that b is the one used least recently
		f.exchange(t, f.client(t), "c")
		cause := f.causeOf(t, 2)
		if again := f.exchange(t, a, "a once more"); again.String() != fromA.String() {
			t.Error("the session used last was ended")
		}
		if n := strings.Count(f.err.String(), "full with 2 sessions"); n != 1 {
			t.Errorf("it says %d times that it is full, want once", n)
		}
		return cause
	},
	"forward-udp-per-source": func(t *testing.T, over string) string {
		f := startUDP(t, "--max-per-source", "1")
		a := f.client(t)
		f.exchange(t, a, "a")
		f.client(t).say(t, "too many")
		f.says(t, "the limit per source")
		f.target.receivesNothing(t)
		f.target.SetReadDeadline(time.Now().Add(patience))
		f.exchange(t, f.clientFrom(t, "127.0.0.9"), "of another")
		f.exchange(t, a, "a again")
		return f.stopped(t)
	},
	"forward-udp-accept-rate": func(t *testing.T, over string) string {
		f := startUDP(t, "--accept-rate", "2")
		for range 30 {
			f.client(t).say(t, "x")
		}
		f.says(t, "refused")
		came := 0
		for b := make([]byte, 10); ; came++ {
			f.target.SetReadDeadline(time.Now().Add(50 * time.Millisecond))
			if _, _, err := f.target.ReadFrom(b); err != nil {
				break
			}
		}
		if came == 0 || came > 15 {
			t.Errorf("%d of 30 sessions were begun at 2 a second", came)
		}
		return f.stopped(t)
	},
	"forward-udp-denied": func(t *testing.T, over string) string {
		f := startUDP(t, "--deny", "127.0.0.1")
		f.client(t).say(t, "x")
		f.says(t, "source not allowed")
		f.target.receivesNothing(t)
		f.target.SetReadDeadline(time.Now().Add(patience))
		f.exchange(t, f.clientFrom(t, "127.0.0.9"), "of another")
		return f.stopped(t)
	},
	"forward-udp-stranger": func(t *testing.T, over string) string {
		f := startUDP(t)
		c := f.client(t)
		from := f.exchange(t, c, "question")
		stranger := newPacketHost(t, "udp")
		stranger.send(t, "spoofed", from) // not from the target: the session's socket is connected
		c.hearsNothing(t)
		f.exchange(t, c, "still there")
		return f.stopped(t)
	},
	"forward-udp-large": func(t *testing.T, over string) string {
		f := startUDP(t)
		c := f.client(t)
		c.Conn.(*net.UDPConn).SetReadBuffer(1 << 20)
		for _, n := range []int{1, 1472, 1473, 9000, 65506, 65507} {
			text := string(randomBytes(byte(n), n))
			c.say(t, text)
			b := make([]byte, 65536)
			size, from, err := f.target.ReadFrom(b)
			if err != nil {
				t.Fatalf("%d bytes: %v", n, err)
			}
			sameBytes(t, "what came up", b[:size], []byte(text))
			f.target.send(t, text, from)
			c.hear(t, text)
		}
		return f.stopped(t)
	},
	"forward-udp-rate": func(t *testing.T, over string) string {
		f := startUDP(t, "--rate", "20kB")
		c := f.client(t)
		for range 100 { // 100 kB at once, of which 50 ms of the rate wait
			c.say(t, strings.Repeat("x", 1000))
		}
		came := 0
		for b := make([]byte, 2000); ; came++ {
			f.target.SetReadDeadline(time.Now().Add(300 * time.Millisecond))
			if _, _, err := f.target.ReadFrom(b); err != nil {
				break
			}
		}
		if came == 0 || came > 50 {
			t.Errorf("%d of 100 datagrams came", came)
		}
		return f.stopped(t)
	},
	"forward-udp-signal": func(t *testing.T, over string) string {
		f := startUDP(t, "--drain", "500ms")
		c := f.client(t)
		f.exchange(t, c, "before")
		f.signal(syscall.SIGTERM)
		cause := f.cause(t)
		if code := f.code(t); code != "0" {
			t.Errorf("exit code %s", code)
		}
		return cause
	},
}

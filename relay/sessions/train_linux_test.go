package sessions

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"net"
	"net/netip"
	"runtime"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// sizes of datagrams: runs of equal ones, with shorter and longer ones between.
var sizes = func() (n []int) {
	for _, run := range []struct{ size, count int }{
		{100, 30}, {0, 2}, {100, 3}, {99, 1}, {1400, 70}, {1, 3}, {1200, 1}, {1400, 1}, {1399, 2}, {65507, 2}, {1000, 65}, {40000, 2}, {8, 200},
	} {
		for range run.count {
			n = append(n, run.size)
		}
	}
	return n
}()

// numbered is the i-th datagram: its number is all through it.
func numbered(i int) []byte {
	b := make([]byte, sizes[i])
	for at := range b {
		b[at] = byte(i*31 + at)
	}
	return b
}

// TestTrainsAreTheSameDatagramsInTheSameOrder holds whatever the kernel can do, and
// whatever it refuses.
func TestTrainsAreTheSameDatagramsInTheSameOrder(t *testing.T) {
	for _, tt := range []struct {
		name    string
		server  func(*Server)
		trains  bool
		gso     string
		shorter bool // sizes that were refused are not tried again
	}{
		{"on", func(*Server) {}, true, "on", false},
		{"without GSO", func(s *Server) { s.without.gso = true }, false, "off: switched off", false},
		{"without GRO", func(s *Server) { s.without.gro = true }, true, "on", false},
		{"refused with EIO", func(s *Server) { s.failGSO = syscall.EIO }, false, "off: sending several datagrams as one: input/output error", false},
		{"refused with EINVAL", func(s *Server) { s.failGSO = syscall.EINVAL }, false, "on", true},
		{"refused with EMSGSIZE", func(s *Server) { s.failGSO = syscall.EMSGSIZE }, false, "on", true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			g := newTarget(t, "127.0.0.1:0")
			s := &Server{}
			tt.server(s)
			c := client(t, relay(t, s, g.addr))
			var back netip.AddrPort
			standStill(t, s, func() { // so that all of it is one batch after the other
				for i := range sizes {
					send(t, c, numbered(i))
				}
			})
			for i := range sizes {
				b, from := g.take(t)
				if !bytes.Equal(b, numbered(i)) {
					t.Fatalf("up: datagram %d: got %d bytes, want %d", i, len(b), sizes[i])
				}
				back = from
			}
			standStill(t, s, func() {
				for i := range sizes {
					g.WriteToUDPAddrPort(numbered(i), back)
				}
			})
			for i := range sizes {
				if b := receive(t, c); !bytes.Equal(b, numbered(i)) {
					t.Fatalf("down: datagram %d: got %d bytes, want %d", i, len(b), sizes[i])
				}
			}
			st, v := s.Stats(), only(t, s)
			if (st.In.Trains > 0) != tt.trains || (st.Out.Trains > 0) != tt.trains || st.GSO != tt.gso {
				t.Errorf("got %+v", st)
			}
			for _, l := range s.allLoops() {
				l.each(func(c *session) {
					if (tt.gso == "on") != l.gso || (c.longestUp < 65535) != tt.shorter || (c.longestDown < 65535) != tt.shorter {
						t.Errorf("trains: %v, of up to %d bytes up, %d down", l.gso, c.longestUp, c.longestDown)
					}
				})
			}
			var bytes uint64
			for _, n := range sizes {
				bytes += uint64(n)
			}
			if n := uint64(len(sizes)); v.PacketsIn != n || v.PacketsOut != n || v.BytesIn != bytes || v.BytesOut != bytes || v.Dropped+st.Dropped != 0 {
				t.Errorf("got %+v", v)
			}
		})
	}
}

// standStill lets datagrams gather before the loops.
func standStill(t testing.TB, s *Server, f func()) {
	t.Helper()
	for _, l := range s.allLoops() {
		l.mu.Lock()
	}
	f()
	for _, l := range s.allLoops() {
		l.mu.Unlock()
	}
}

func TestTrainsThatArriveWholeAreThatManyDatagrams(t *testing.T) {
	for _, gso := range []bool{true, false} {
		for _, gro := range []bool{true, false} {
			t.Run(fmt.Sprintf("GSO %v GRO %v", gso, gro), func(t *testing.T) {
				g := newTarget(t, "127.0.0.1:0")
				s := &Server{}
				s.without.gso, s.without.gro = !gso, !gro
				c := client(t, relay(t, s, g.addr))
				var back netip.AddrPort
				for _, n := range []int{1, 99, 100, 101, 1999, 2000, 5050, 6400} {
					train(t, c, nil, pattern(n), 100)
					for at := 0; at < n; at += 100 {
						b, from := g.take(t)
						if back = from; !bytes.Equal(b, pattern(n)[at:min(at+100, n)]) {
							t.Fatalf("up: %d: got %d bytes at %d", n, len(b), at)
						}
					}
					train(t, g.UDPConn, &back, pattern(n), 100)
					for at := 0; at < n; at += 100 {
						if b := receive(t, c); !bytes.Equal(b, pattern(n)[at:min(at+100, n)]) {
							t.Fatalf("down: %d: got %d bytes at %d", n, len(b), at)
						}
					}
				}
				v := only(t, s)
				if want := uint64(1 + 1 + 1 + 2 + 20 + 20 + 51 + 64); v.PacketsIn != want || v.PacketsOut != want || v.BytesIn != v.BytesOut {
					t.Errorf("got %+v, want %d each way", v, want)
				}
			})
		}
	}
}

// train sends b as datagrams of seg bytes with one call.
func train(t *testing.T, c *net.UDPConn, to *netip.AddrPort, b []byte, seg int) {
	t.Helper()
	control := make([]byte, unix.CmsgSpace(2))
	var buf [controlOut]byte
	copy(control, buf[:writeSegment(&buf, 0, seg)])
	a := netip.AddrPort{}
	if to != nil {
		a = *to
	}
	if _, _, err := c.WriteMsgUDPAddrPort(b, control, a); err != nil {
		t.Fatal(err)
	}
}

func TestReplyIsNoTrainOfTwoSessions(t *testing.T) {
	g := newTarget(t, "127.0.0.1:0")
	s := &Server{}
	at := relay(t, s, g.addr)
	const clients, each = 20, 30
	var cs []*net.UDPConn
	var froms []netip.AddrPort
	for i := range clients {
		c := client(t, at)
		send(t, c, []byte{byte(i)})
		_, from := g.take(t)
		cs, froms = append(cs, c), append(froms, from)
	}
	standStill(t, s, func() {
		for n := range each {
			for i, from := range froms {
				g.WriteToUDPAddrPort([]byte{byte(i), byte(n), 0}, from)
				send(t, cs[i], []byte{byte(i), byte(n), 1})
			}
		}
	})
	for i, c := range cs {
		for n := range each {
			if b := receive(t, c); !bytes.Equal(b, []byte{byte(i), byte(n), 0}) {
				t.Fatalf("client %d got %v, want its %dth", i, b, n)
			}
		}
	}
	next := make([]byte, clients)
	for range clients * each {
		b, from := g.take(t)
		if b[1] != next[b[0]] || from != froms[b[0]] {
			t.Fatalf("got %v from %v", b, from)
		}
		next[b[0]]++
	}
}

func TestTenThousandSessionsGiveTheirMemoryBack(t *testing.T) {
	const n = 10_000
	g := newTarget(t, "127.0.0.1:0")
	s := &Server{Route: Route{Pool: pool(t, g.addr)}, Limits: Limits{FirstReply: time.Hour, Idle: time.Hour}}
	ln := listen(t, "udp4://*:0")
	port := addrOf(ln).Port()
	serve(t, s, ln)
	c := newTarget(t, "0.0.0.0:0")
	write := func(i int) {
		c.WriteToUDPAddrPort([]byte("hello"), netip.AddrPortFrom(netip.AddrFrom4([4]byte{127, 0, byte(i >> 8), byte(i)}), port))
	}
	write(1)
	eventually(t, "one session", func() bool { return s.Len() == 1 })
	before, fds := heap(), descriptors(t)
	b := make([]byte, 100)
	for i := 2; i <= n; i++ {
		write(i)
		g.ReadFromUDPAddrPort(b)
	}
	eventually(t, "all sessions", func() bool { return s.Len() == n })
	held := heap()
	each := (int64(held) - int64(before)) / n
	t.Logf("%d bytes of heap a session", each)
	if each > 500 {
		t.Errorf("a session takes %d bytes, want 500 at most", each)
	}
	s.SetLimits(Limits{FirstReply: time.Millisecond, Idle: time.Hour})
	eventually(t, "all have ended", func() bool { return s.Len() == 0 })
	s.SetLimits(Limits{})
	write(1)
	eventually(t, "one session again", func() bool { return s.Len() == 1 })
	after := heap()
	t.Logf("heap %d, %d with %d sessions, %d after", before, held, n, after)
	if int64(after)-int64(before) > 64<<10 {
		t.Errorf("%d bytes are not given back", int64(after)-int64(before))
	}
	if got := descriptors(t); got > fds {
		t.Errorf("%d descriptors, want %d", got, fds)
	}
}

// heap is what is in use when all garbage is gone.
func heap() uint64 {
	var m runtime.MemStats
	for range 3 {
		runtime.GC()
	}
	runtime.ReadMemStats(&m)
	return m.HeapAlloc
}

func TestControlMessagesOfAnyBytesAreHarmless(t *testing.T) {
	var m message
	good := make([]byte, 64)
	h := writeControlForTest(good, unix.IPPROTO_UDP, unix.UDP_GRO, 4)
	binary.NativeEndian.PutUint32(h, 1200)
	if m.readControl(good); m.seg != 1200 {
		t.Fatalf("got %+v", m)
	}
	for n := range len(good) {
		m.readControl(good[:n])
	}
}

func writeControlForTest(b []byte, level, kind int32, n int) []byte {
	binary.NativeEndian.PutUint64(b, uint64(unix.CmsgLen(n)))
	binary.NativeEndian.PutUint32(b[8:], uint32(level))
	binary.NativeEndian.PutUint32(b[12:], uint32(kind))
	return b[unix.CmsgLen(0):][:n]
}

func FuzzReadControl(f *testing.F) {
	b := make([]byte, 64)
	binary.NativeEndian.PutUint32(writeControlForTest(b, unix.IPPROTO_UDP, unix.UDP_GRO, 4), 1200)
	f.Add(b)
	writeControlForTest(b, unix.IPPROTO_IP, unix.IP_PKTINFO, 12)
	f.Add(b)
	writeControlForTest(b, unix.IPPROTO_IPV6, unix.IPV6_PKTINFO, 20)
	f.Add(b)
	f.Fuzz(func(t *testing.T, b []byte) {
		var m message
		m.readControl(append(make([]byte, 0, len(b)+8), b...))
		_ = received{n: 65507, seg: m.seg}.datagrams()
	})
}

func TestThatTheWaitingAreSentInTheirOrderAndBounded(t *testing.T) {
	var w waiting
	for i := range 1000 {
		if !w.push(late{due: int64(i * 7919 % 101), token: uint64(i), b: make([]byte, 10)}) {
			t.Fatal("no room")
		}
	}
	last := late{}
	for range 1000 {
		d := w.pop()
		if d.due < last.due || d.due == last.due && d.token < last.token && last.order > 0 {
			t.Fatalf("%+v after %+v", d, last)
		}
		last = d
	}
	if w.bytes != 0 || len(w.heap) != 0 {
		t.Errorf("%d bytes of %d are left", w.bytes, len(w.heap))
	}
	b := make([]byte, 1<<20)
	pushed := 0
	for w.push(late{b: b}) {
		pushed++
	}
	if pushed != maxLateBytes>>20 {
		t.Errorf("%d MiB waited, want %d", pushed, maxLateBytes>>20)
	}
}

func BenchmarkRelay(b *testing.B) {
	for _, size := range []int{100, 1400} {
		for _, clients := range []int{1, 50} {
			b.Run(fmt.Sprintf("%dB/%dclients", size, clients), func(b *testing.B) { benchmarkRelay(b, size, clients) })
		}
	}
}

// benchmarkRelay runs a loop's work, a turn at a time, on the benchmark's own
// goroutine: what is measured is the relay, not who has the processor.
func benchmarkRelay(b *testing.B, size, clients int) {
	g := newTarget(b, "127.0.0.1:0")
	s := &Server{}
	at := relay(b, s, g.addr)
	const burst = batch
	out := make([]*net.UDPConn, clients)
	var froms []netip.AddrPort
	for i := range out {
		out[i] = client(b, at)
		send(b, out[i], pattern(size))
		_, from := g.take(b)
		froms = append(froms, from)
	}
	l := s.allLoops()[0]
	l.mu.Lock()
	defer l.mu.Unlock()
	buf := make([]byte, 2000)
	bytes := pattern(size)
	b.ReportAllocs()
	b.ResetTimer()
	var spent time.Duration
	done := 0
	for range b.N {
		b.StopTimer()
		for i := range burst {
			out[i*clients/burst%clients].Write(bytes)
			g.WriteToUDPAddrPort(bytes, froms[i*clients/burst%clients])
		}
		b.StartTimer()
		began := time.Now()
		l.now = s.clock()
		l.fromClients(l.ports[0])
		l.eachNow(func(c *session) { l.fromTarget(c) })
		l.sendDown()
		spent += time.Since(began)
		b.StopTimer()
		done += 2 * burst
		for range burst {
			g.Read(buf)
			out[0].SetReadDeadline(time.Time{})
		}
		for _, c := range out {
			raw, _ := c.SyscallConn()
			raw.Read(func(fd uintptr) bool {
				for {
					if _, _, err := unix.Recvfrom(int(fd), buf, unix.MSG_DONTWAIT); err != nil {
						return true
					}
				}
			})
		}
		b.StartTimer()
	}
	b.ReportMetric(float64(spent.Nanoseconds())/float64(done), "ns/datagram")
}

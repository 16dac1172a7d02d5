package splice

import (
	"io"
	"net"
	"runtime"
	"testing"
	"unsafe"

	"github.com/fivetuple/fivetuple/stream/gate"
)

func TestAPairAtRestTakesLittleMemory(t *testing.T) {
	const conns = 500
	serves := listen(t, "0")
	defer serves.Close()
	s := relayTo(t, serves, nil)
	ln := start(t, s, "0")
	var ends []net.Conn
	both := func() {
		ends = append(ends, dial(t, ln))
		c, err := serves.Accept()
		if err != nil {
			t.Fatal(err)
		}
		ends = append(ends, c)
	}
	both() // what is made once
	if n := unsafe.Sizeof(pair{}); n > 400 {
		t.Errorf("a pair takes %d bytes", n)
	}
	for range conns {
		both()
	}
	waitForPairs(t, s, conns+1)
	if n := s.Stats().Pipes; n != 0 {
		t.Errorf("%d pipes", n)
	}
	eventually(t, "a pair at rest has nothing more", func() bool {
		more := false
		for _, l := range s.allLoops() {
			l.each(func(p *pair) {
				more = more || p.setup != nil || p.extra != nil || p.flows[client].buffer != nil || p.flows[target].buffer != nil
			})
		}
		return !more
	})
	for _, c := range ends {
		c.Close()
	}
}

// BenchmarkIdlePair is the memory of a pair that is connected and at rest, of this
// side's: the pairs are entered without sockets.
func BenchmarkIdlePair(b *testing.B) {
	const pairs = 10_000
	for b.Loop() {
		var before, after runtime.MemStats
		runtime.GC()
		runtime.ReadMemStats(&before)
		s := &Server{Loops: 1}
		if err := s.init(); err != nil {
			b.Fatal(err)
		}
		l := s.loops[0]
		for i := range pairs {
			p := l.table.take()
			l.wheel.Set(int(p.slot), 1)
			n := gate.Newcomer{ID: uint64(i) + 1}
			s.gate.Enter(&n)
			s.gate.Put(n.ID, gate.Place{Slot: p.slot})
		}
		runtime.GC()
		runtime.ReadMemStats(&after)
		b.ReportMetric(float64(after.HeapAlloc-before.HeapAlloc)/pairs, "B/pair")
		runtime.KeepAlive(s)
		l.poller.Close()
	}
}

// BenchmarkRelay moves a MiB a time through a pair, in one direction.
func BenchmarkRelay(b *testing.B) {
	for _, w := range ways {
		b.Run(w.name, func(b *testing.B) {
			moved := make(chan struct{})
			target := targets(b, w.to, func(c net.Conn) {
				buf := make([]byte, 256<<10)
				for got := 0; ; {
					n, err := c.Read(buf)
					if err != nil {
						return
					}
					for got += n; got >= 1<<20; got -= 1 << 20 {
						moved <- struct{}{}
					}
				}
			})
			ln := start(b, relayTo(b, target, nil), w.from)
			c := dial(b, ln)
			piece := make([]byte, 1<<20)
			b.SetBytes(1 << 20)
			b.ReportAllocs()
			for b.Loop() {
				c.Write(piece)
				<-moved
			}
			c.Close()
		})
	}
}

// BenchmarkConnection is a connection made, used once and ended, and nothing else.
func BenchmarkConnection(b *testing.B) {
	target := targets(b, "0", echoBack)
	ln := start(b, relayTo(b, target, nil), "0")
	one := make([]byte, 1)
	b.ReportAllocs()
	for b.Loop() {
		c, err := net.Dial("tcp", ln.Addr().String())
		if err != nil {
			b.Fatal(err)
		}
		c.Write(one)
		if _, err := io.ReadFull(c, one); err != nil {
			b.Fatal(err)
		}
		abort(c)
	}
}

func TestRelayingAllocatesNothing(t *testing.T) {
	most := 0.0
	if raceEnabled { // with which pools forget by chance
		most = 10
	}
	target := targets(t, "0", func(c net.Conn) {
		buf := make([]byte, 256<<10)
		for {
			n, err := io.ReadAtLeast(c, buf, 1)
			if err != nil {
				return
			}
			if buf[n-1] == 'e' {
				c.Write(buf[:1])
			}
		}
	})
	ln := start(t, relayTo(t, target, nil), "0")
	c := dial(t, ln)
	piece, one := make([]byte, 4<<20), make([]byte, 1)
	piece[len(piece)-1] = 'e'
	if n := testing.AllocsPerRun(50, func() {
		c.Write(piece)
		io.ReadFull(c, one)
	}); n > most {
		t.Errorf("%v allocations for 4 MiB", n)
	}
}

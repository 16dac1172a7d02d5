package splice

import (
	"bytes"
	"io"
	"net"
	"os"
	"strings"
	"sync"
	"testing"
	"time"
)

// pipesOf is how many pipes this process has open, by its descriptors.
func pipesOf(t testing.TB) (n int) {
	entries, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		if where, _ := os.Readlink("/proc/self/fd/" + e.Name()); strings.HasPrefix(where, "pipe:") {
			n++
		}
	}
	return n / 2
}

// bulk sends so many bytes through a connection whose target sends them back, and
// fails unless they are the same.
func bulk(t testing.TB, c net.Conn, size int) {
	t.Helper()
	go io.CopyN(struct{ io.Writer }{c}, noise(7), int64(size))
	want, a, b := noise(7), make([]byte, 64<<10), make([]byte, 64<<10)
	for got := 0; got < size; {
		n, err := c.Read(a)
		if err != nil {
			t.Fatalf("after %d bytes of %d: %v", got, size, err)
		}
		if want.Read(b[:n]); !bytes.Equal(a[:n], b[:n]) {
			t.Fatalf("other bytes after %d", got)
		}
		got += n
	}
}

func TestMuchIsSplicedAndLittleIsCopied(t *testing.T) {
	ownShare(t)
	every(t, func(t *testing.T, from, to string) {
		target := targets(t, to, echoBack)
		s := relayTo(t, target, nil)
		ln := start(t, s, from)
		c := dial(t, ln)
		for range 100 {
			echoes(t, c, make([]byte, 1000))
		}
		if p := s.Pairs(); len(p) != 1 || p[0].Up.Engine != "copy" || p[0].Down.Engine != "copy" || s.Stats().Pipes != 0 {
			t.Errorf("got %+v, %+v of little", p, s.Stats())
		}
		bulk(t, c, 8<<20)
		p := s.Pairs()
		if len(p) != 1 || s.Stats().Pipes == 0 || s.Stats().PipeSize < leastPipe {
			t.Errorf("got %+v, %+v of much", p, s.Stats())
		}
		if p[0].Up.PipeSize != 0 || p[0].Down.PipeSize != 0 || s.Stats().Pipes != s.Stats().PipesIdle {
			t.Errorf("a pipe is held at rest: %+v, %+v", p, s.Stats())
		}
	})
}

func TestAThousandConnectionsAtRestHoldNoPipe(t *testing.T) {
	conns := 1000
	if raceEnabled {
		conns = 200
	}
	target := targets(t, "0", echoBack)
	before := pipesOf(t)
	s := relayTo(t, target, nil)
	s.Loops = 2
	ln := start(t, s, "0")
	for range conns {
		c := dial(t, ln)
		echoes(t, c, make([]byte, 200<<10)) // spliced, in part
	}
	waitForPairs(t, s, conns)
	if n := pipesOf(t) - before; n > s.Loops*idlePipes {
		t.Errorf("%d pipes with %d connections at rest", n, conns)
	}
}

func TestWithoutAPipeBytesAreCopied(t *testing.T) {
	ownShare(t)
	goOn := make(chan struct{})
	stalls := targets(t, "0", func(c net.Conn) {
		<-goOn
		io.Copy(io.Discard, c)
	})
	target := targets(t, "0", echoBack)
	s := relayTo(t, stalls, nil)
	if err := s.init(); err != nil {
		t.Fatal(err)
	}
	s.pipes.most.Store(1)
	ln := start(t, s, "0")
	held := dial(t, ln)
	fill(held)
	eventually(t, "the pipe is held", func() bool { p := s.Pairs(); return len(p) == 1 && p[0].Up.InPipe > 0 && p[0].Up.PipeSize > 0 })
	s.SetRoute(Route{Pool: poolOf(t, endpoint(target))})
	c := dial(t, ln)
	bulk(t, c, 4<<20)
	st := s.Stats()
	if st.Pipes != 1 || st.PipesMost != 1 || st.Fallbacks == 0 {
		t.Errorf("got %+v", st)
	}
	for _, p := range s.Pairs() {
		if p.Up.InPipe == 0 && p.Up.Engine == "splice" {
			t.Errorf("got %+v", p.Up)
		}
	}
	close(goOn)
}

func TestPipesAreGivenBackWhateverEndsThePair(t *testing.T) {
	before := descriptors(t)
	target := targets(t, "0", func(c net.Conn) { readFull(t, c, 1); time.Sleep(20 * time.Millisecond) }) // a target that stalls, then goes
	s := relayTo(t, target, nil)
	ln := start(t, s, "0")
	var wg sync.WaitGroup
	for range 30 {
		c := dial(t, ln)
		wg.Go(func() {
			b := make([]byte, 1<<20)
			for {
				if _, err := c.Write(b); err != nil {
					c.Close()
					return
				}
			}
		})
	}
	wg.Wait()
	waitForPairs(t, s, 0)
	if st := s.Stats(); st.Pipes != st.PipesIdle {
		t.Errorf("got %+v", st)
	}
	ln.Close()
	s.Shutdown(t.Context())
	target.Close()
	eventually(t, "descriptors are given back", func() bool { return descriptors(t) <= before })
}

func TestAnOrdinaryUserWithManyConnectionsKeepsItsPipes(t *testing.T) {
	ownShare(t)
	conns := 1000
	if raceEnabled {
		conns = 200
	}
	if mayHavePipes() {
		t.Fatal("the lab's user is no ordinary one")
	}
	target := targets(t, "0", echoBack)
	s := relayTo(t, target, nil)
	ln := start(t, s, "0")
	for range conns {
		echoes(t, dial(t, ln), make([]byte, 200<<10)) // and then rests
	}
	c := dial(t, ln)
	bulk(t, c, 32<<20)
	st := s.Stats()
	if most := int64(64 << 20 / pipeSize); int64(st.PipesMost) > most || st.PipesMost < 1 {
		t.Errorf("%d pipes may be, the user's whole share are %d", st.PipesMost, most)
	}
	for _, p := range s.Pairs() {
		if p.Up.Bytes > 10<<20 && (p.Up.Engine != "splice" || st.PipeSize < leastPipe || st.Fallbacks != 0) {
			t.Errorf("got %+v with %+v", p.Up, st)
		}
	}
}

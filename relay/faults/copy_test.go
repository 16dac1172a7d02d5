package faults

import (
	"bytes"
	"crypto/rand"
	"crypto/sha256"
	"errors"
	"io"
	mathrand "math/rand/v2"
	"net"
	"os"
	"slices"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"testing/synctest"
	"time"
)

// arrival is how much arrived when.
type arrival struct {
	at time.Duration
	n  int
}

// sink notes what arrives when.
type sink struct {
	mu    sync.Mutex
	began time.Time
	all   []arrival
	bytes bytes.Buffer
}

func newSink() *sink { return &sink{began: time.Now()} }

func (s *sink) Write(b []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.all = append(s.all, arrival{time.Since(s.began), len(b)})
	return s.bytes.Write(b)
}

func (s *sink) len() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.bytes.Len()
}

// result of a Copy.
type result struct {
	n   int64
	err error
}

// copying runs a Copy.
func copying(dst io.Writer, src io.Reader, l *Line) <-chan result {
	c := make(chan result, 1)
	go func() {
		n, err := Copy(dst, src, l)
		c <- result{n, err}
	}()
	return c
}

func want(t *testing.T, c <-chan result, n int64, err error) {
	t.Helper()
	if r := <-c; r.n != n || !errors.Is(r.err, err) {
		t.Errorf("copied %d, %v; want %d, %v", r.n, r.err, n, err)
	}
}

func (s *sink) want(t *testing.T, all ...arrival) {
	t.Helper()
	if !slices.Equal(s.all, all) {
		t.Errorf("arrived %v, want %v", s.all, all)
	}
}

func TestAStreamIsDelayedButNotSlowed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		in, src := net.Pipe()
		dst := newSink()
		c := copying(dst, src, Config{Delay: 50 * ms}.Line(1, Up))
		for range 3 {
			in.Write(make([]byte, 5000))
			time.Sleep(20 * ms)
		}
		in.Close()
		want(t, c, 15000, nil)
		if took := time.Since(dst.began); took != 110*ms {
			t.Errorf("the end came after %v, want 110ms", took)
		}
		dst.want(t, arrival{50 * ms, 5000}, arrival{70 * ms, 5000}, arrival{90 * ms, 5000})
	})
}

func TestWhatIsHeldIsBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		in, src := net.Pipe()
		dst := newSink()
		c := copying(dst, src, Config{Delay: time.Second}.Line(1, Up))
		sent := make(chan int)
		go func() {
			n, _ := in.Write(make([]byte, 5<<20))
			in.Close()
			sent <- n
		}()
		time.Sleep(time.Second - 1)
		synctest.Wait()
		if dst.len() != 0 {
			t.Errorf("%d bytes came early", dst.len())
		}
		time.Sleep(time.Nanosecond) // a window a second
		synctest.Wait()
		if dst.len() != maxHeld {
			t.Errorf("%d bytes came after a second, want %d", dst.len(), maxHeld)
		}
		taken := <-sent
		want(t, c, 5<<20, nil)
		if took := time.Since(dst.began); taken != 5<<20 || took < 5*time.Second || took > 6*time.Second {
			t.Errorf("took %d bytes in %v, want five windows a second each", taken, took)
		}
	})
}

func TestManySmallPiecesAreBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		in, src := net.Pipe()
		dst := newSink()
		c := copying(dst, src, Config{Delay: time.Hour}.Line(1, Up))
		var taken atomic.Int64
		go func() {
			for {
				if _, err := in.Write([]byte{1}); err != nil {
					return
				}
				taken.Add(1)
				time.Sleep(time.Nanosecond)
			}
		}()
		time.Sleep(time.Second)
		synctest.Wait()
		if n := taken.Load(); n != maxPieces+1 {
			t.Errorf("%d pieces were taken, want %d and the one that waits", n, maxPieces)
		}
		in.Close()
		want(t, c, maxPieces+1, nil)
	})
}

func TestBandwidthPaces(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		in, src := net.Pipe()
		dst := newSink()
		c := copying(dst, src, Config{Bandwidth: 100_000, Delay: 30 * ms}.Line(1, Up))
		go func() {
			in.Write(make([]byte, 300_000))
			in.Close()
		}()
		time.Sleep(100*ms + 1)
		if n := dst.len(); n < 6000 || n > 7000 { // 1000 bytes each 10 ms, after 30
			t.Errorf("%d bytes in 100ms, want 6000 to 7000", n)
		}
		want(t, c, 300_000, nil)
		if took := time.Since(dst.began); took < 3030*ms || took > 3040*ms {
			t.Errorf("300 kB took %v, want 3.03s", took)
		}
		for i, a := range dst.all {
			if a.n > 1000 {
				t.Fatalf("piece %d has %d bytes", i, a.n)
			}
		}
	})
}

func TestASlowStreamHoldsOneSecondOfIt(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		in, src := net.Pipe()
		dst := newSink()
		c := copying(dst, src, Config{Bandwidth: 20_000, Delay: 500 * ms}.Line(1, Up))
		var taken atomic.Int64
		go func() {
			defer in.Close()
			for range 100 {
				in.Write(make([]byte, 1000))
				taken.Add(1000)
			}
		}()
		time.Sleep(ms)
		synctest.Wait()
		if n := taken.Load(); n != 30_000 {
			t.Errorf("%d bytes were taken at once, want those of 1.5 s", n)
		}
		want(t, c, 100_000, nil)
	})
}

func TestAStreamLosesTimeAndNoBytes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := Config{Seed: 3, Loss: 0.5, Delay: 10 * ms}
		// What the chances are, by themselves.
		var ways []time.Duration
		for l := c.Line(1, Up); len(ways) < 200; {
			way, arrives := l.segment()
			if !arrives {
				t.Fatal("lost for ever")
			}
			ways = append(ways, way)
		}
		for i, want := range map[time.Duration]int{10 * ms: 100, 230 * ms: 50, 670 * ms: 25, 1550 * ms: 12} { // + 220, 440, 880 ms
			if n := count(ways, i); n < want*6/10 || n > want*14/10 {
				t.Errorf("%d of 200 segments take %v, want about %d", n, i, want)
			}
		}
		in, src := net.Pipe()
		dst := newSink()
		done := copying(dst, src, c.Line(1, Up))
		sent := make([]byte, 199*100)
		rand.Read(sent)
		var expected []arrival
		var last time.Duration
		for i := range 199 {
			in.Write(sent[i*100:][:100])
			last = max(last, time.Since(dst.began)+ways[i])
			if k := len(expected) - 1; k >= 0 && expected[k].at == last {
				expected[k].n += 100
			} else {
				expected = append(expected, arrival{last, 100})
			}
			time.Sleep(50 * ms)
		}
		in.Close()
		want(t, done, int64(len(sent)), nil)
		if !bytes.Equal(dst.bytes.Bytes(), sent) {
			t.Error("the bytes are others")
		}
		dst.want(t, expected...)
	})
}

func count[T comparable](all []T, x T) (n int) {
	for _, y := range all {
		if x == y {
			n++
		}
	}
	return n
}

func TestASegmentThatNeverArrivesEndsTheStream(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		in, src := net.Pipe()
		dst := newSink()
		c := copying(dst, src, Config{Loss: 1}.Line(1, Up))
		in.Write(make([]byte, 10))
		in.Write(make([]byte, 10)) // is still taken
		want(t, c, 0, ErrTimeout)
		// 0.2 + 0.4 + ... + 102.4 s, and six times 120 s.
		if took := time.Since(dst.began); took != 204600*ms+6*120*time.Second {
			t.Errorf("after %v", took)
		}
	})
	synctest.Test(t, func(t *testing.T) { // what follows it does not arrive either
		c := Config{Loss: 0.9}
		for ; ; c.Seed++ {
			l := c.Line(1, Up)
			_, first := l.segment()
			if _, second := l.segment(); !first && second {
				break
			}
		}
		in, src := net.Pipe()
		dst := newSink()
		done := copying(dst, src, c.Line(1, Up))
		in.Write(make([]byte, 10))
		in.Write(make([]byte, 10))
		want(t, done, 0, ErrTimeout)
	})
	synctest.Test(t, func(t *testing.T) { // the end of a stream, too
		in, src := net.Pipe()
		c := copying(newSink(), src, Config{Loss: 1}.Line(1, Up))
		in.Close()
		want(t, c, 0, ErrTimeout)
	})
	synctest.Test(t, func(t *testing.T) { // and who gives up earlier is heard
		in, src := net.Pipe()
		began := time.Now()
		c := copying(newSink(), src, Config{Loss: 1}.Line(1, Up))
		in.Write(make([]byte, 10))
		src.Close()
		want(t, c, 0, io.ErrClosedPipe)
		if time.Since(began) != 0 {
			t.Errorf("after %v", time.Since(began))
		}
	})
}

func TestALateSegmentHoldsUpTheNext(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		in, src := net.Pipe()
		dst := newSink()
		c := Config{Seed: 5, Reorder: 0.2, Delay: 10 * ms}
		done := copying(dst, src, c.Line(1, Up))
		late := 0
		var expected []arrival
		var last time.Duration
		for i, l := 0, c.Line(1, Up); i < 100; i++ {
			in.Write([]byte{byte(i)})
			way, _ := l.segment()
			if way == 20*ms {
				late++
			} else if way != 10*ms {
				t.Fatalf("a segment takes %v", way)
			}
			last = max(last, time.Since(dst.began)+way)
			if k := len(expected) - 1; k >= 0 && expected[k].at == last {
				expected[k].n++
			} else {
				expected = append(expected, arrival{last, 1})
			}
			time.Sleep(4 * ms)
		}
		in.Close()
		want(t, done, 100, nil)
		dst.want(t, expected...)
		if late < 10 || late > 30 {
			t.Errorf("%d of 100 segments are late, want 20 or so", late)
		}
		for i, b := range dst.bytes.Bytes() {
			if int(b) != i {
				t.Fatalf("byte %d is %d", i, b)
			}
		}
	})
}

func TestAStreamCanBeReplayed(t *testing.T) {
	course := func(c Config) (all []arrival) {
		synctest.Test(t, func(t *testing.T) {
			in, src := net.Pipe()
			dst := newSink()
			done := copying(dst, src, c.Line(1, Down))
			for i := range 200 {
				in.Write(make([]byte, 1+i*17%4000))
				time.Sleep(ms)
			}
			in.Close()
			<-done
			all = dst.all
		})
		return all
	}
	c := Config{Seed: 1, Delay: 20 * ms, Jitter: 10 * ms, Loss: 0.01, Reorder: 0.01, Bandwidth: 1e6}
	first := course(c)
	if second := course(c); !slices.Equal(first, second) {
		t.Error("the same seed made another course")
	}
	c.Seed = 2
	if other := course(c); slices.Equal(first, other) {
		t.Error("another seed made the same course")
	}
}

func TestDirectionsEndByThemselves(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		client, clientSide := net.Pipe()
		toTarget := newSink()
		target, targetSide := net.Pipe()
		up, down := Config{Delay: 100 * ms}.Lines(1)
		upEnded := copying(toTarget, onlyReader{target}, up)
		downEnded := copying(clientSide, client, down)
		go io.Copy(io.Discard, client)
		targetSide.Close() // the end of what goes up
		want(t, upEnded, 0, nil)
		if took := time.Since(toTarget.began); took != 100*ms {
			t.Errorf("the end took %v", took)
		}
		select {
		case r := <-downEnded:
			t.Errorf("the other direction ended: %+v", r)
		default:
		}
		client.Close()
		want(t, downEnded, 0, io.ErrClosedPipe)
	})
}

// onlyReader hides deadlines.
type onlyReader struct{ io.Reader }

func TestAnErrorOfTheSourceComesAfterWhatWasRead(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		dst := newSink()
		src := io.MultiReader(bytes.NewReader(make([]byte, 100)), failing{syscall.ECONNRESET})
		want(t, copying(dst, src, Config{Delay: 50 * ms}.Line(1, Up)), 100, syscall.ECONNRESET)
		dst.want(t, arrival{50 * ms, 100})
		if took := time.Since(dst.began); took != 50*ms {
			t.Errorf("after %v, want 50ms", took)
		}
	})
}

type failing struct{ err error }

func (f failing) Read([]byte) (int, error)  { return 0, f.err }
func (f failing) Write([]byte) (int, error) { return 0, f.err }

func TestASourceClosedHereEndsAtOnce(t *testing.T) {
	for _, err := range []error{net.ErrClosed, os.ErrDeadlineExceeded, io.ErrClosedPipe} {
		synctest.Test(t, func(t *testing.T) {
			dst := newSink()
			src := io.MultiReader(bytes.NewReader(make([]byte, 100)), failing{err})
			want(t, copying(dst, src, Config{Delay: 50 * ms}.Line(1, Up)), 0, err)
			if took := time.Since(dst.began); took != 0 {
				t.Errorf("after %v", took)
			}
		})
	}
}

func TestAReaderThatReadsNothingIsAnError(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		want(t, copying(newSink(), failing{nil}, Config{Delay: 1}.Line(1, Up)), 0, io.ErrNoProgress)
	})
}

func TestAnErrorOfTheDestinationEndsReadingAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		in, src := net.Pipe()
		c := copying(failing{syscall.EPIPE}, src, Config{Delay: 50 * ms}.Line(1, Up))
		began := time.Now()
		in.Write([]byte("a"))
		want(t, c, 0, syscall.EPIPE)
		if took := time.Since(began); took != 50*ms {
			t.Errorf("after %v, want 50ms", took)
		}
		in.SetDeadline(time.Now().Add(time.Second))
		if _, err := in.Write([]byte("b")); !errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("it reads on: %v", err)
		}
	})
	synctest.Test(t, func(t *testing.T) { // without deadlines, too; the goroutine ends with the source
		src, in := io.Pipe()
		c := copying(failing{syscall.EPIPE}, src, Config{Delay: 50 * ms}.Line(1, Up))
		in.Write([]byte("a"))
		want(t, c, 0, syscall.EPIPE)
		in.Close()
	})
	synctest.Test(t, func(t *testing.T) {
		want(t, copying(short{}, bytes.NewReader(make([]byte, 10)), Config{Delay: 1}.Line(1, Up)), 3, io.ErrShortWrite)
	})
}

type short struct{}

func (short) Write(b []byte) (int, error) { return 3, nil }

// pair is both directions of a relayed connection: what the client writes comes
// to the target, and the other way round.
func pair(l1, l2 *Line) (client, target net.Conn, up, down <-chan result, inner [2]net.Conn) {
	client, a := net.Pipe()
	target, b := net.Pipe()
	return client, target, copying(b, a, l1), copying(a, b, l2), [2]net.Conn{a, b}
}

func TestBothDirectionsShareTheBytesOfACut(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		client, target, up, down, inner := pair(Config{CutAfter: 10_000, Delay: ms}.Lines(1))
		var got [2]int64
		var readers sync.WaitGroup
		for i, c := range []net.Conn{client, target} {
			readers.Go(func() { got[i], _ = io.Copy(io.Discard, c) })
		}
		client.Write(make([]byte, 4000))
		time.Sleep(10 * ms)
		target.Write(make([]byte, 4000))
		time.Sleep(10 * ms)
		client.Write(make([]byte, 4000))
		want(t, up, 6000, ErrCut)
		want(t, down, 4000, ErrCut)
		for _, c := range inner {
			c.Close()
		}
		readers.Wait()
		if got != [2]int64{4000, 6000} {
			t.Errorf("%v bytes came, want 4000 to the client and 6000 to the target", got)
		}
	})
}

func TestTheLastBytesBeforeACutAreWritten(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		client, target, up, down, inner := pair(Config{CutAfter: 100}.Lines(1))
		go client.Write(make([]byte, 100)) // which the target does not read yet
		time.Sleep(ms)
		go target.Write(make([]byte, 100))
		time.Sleep(ms)
		b := make([]byte, 200)
		if n, err := io.ReadFull(target, b[:100]); n != 100 || err != nil {
			t.Errorf("the target got %d, %v", n, err)
		}
		want(t, up, 100, ErrCut)
		want(t, down, 0, ErrCut)
		for _, c := range append(inner[:], client, target) {
			c.Close()
		}
	})
}

func TestATimeCutsWhateverIsUnderWay(t *testing.T) {
	for name, play := range map[string]func(client, target net.Conn){
		"silence":        func(client, target net.Conn) {},
		"bytes held":     func(client, target net.Conn) { client.Write(make([]byte, 100)) },
		"a blocked peer": func(client, target net.Conn) { client.Write(make([]byte, 1<<20+1<<16)) },
		"two of them":    func(client, target net.Conn) { go target.Write(make([]byte, 2<<20)); client.Write(make([]byte, 2<<20)) },
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				c := Config{CutTime: 5 * time.Second, Delay: ms}
				if name == "bytes held" {
					c.Delay = time.Minute
				}
				began := time.Now()
				l1, l2 := c.Lines(1)
				client, target, up, down, inner := pair(l1, l2)
				go play(client, target)
				want(t, up, 0, ErrCut)
				want(t, down, 0, ErrCut)
				<-l1.Done()
				if took := time.Since(began); took != 5*time.Second {
					t.Errorf("after %v", took)
				}
				for _, c := range append(inner[:], client, target) {
					c.Close()
				}
			})
		})
	}
}

func TestCutEndsBothDirectionsAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		began := time.Now()
		src, in := io.Pipe() // without deadlines
		up, down := Config{Delay: time.Minute}.Lines(1)
		a, b := copying(newSink(), src, up), copying(newSink(), src, down)
		go in.Write(make([]byte, 3<<20))
		time.Sleep(time.Second)
		up.Cut()
		up.Cut()
		want(t, a, 0, ErrCut)
		want(t, b, 0, ErrCut)
		if took := time.Since(began); took != time.Second {
			t.Errorf("after %v", took)
		}
		<-down.Done()
		in.Close()
		src.Close()
	})
}

func TestWithoutFaultsCopyIsOfPackageIO(t *testing.T) {
	for _, l := range []*Line{nil, {}, Config{Seed: 3}.Line(1, Up)} {
		var dst readsFrom
		if n, err := Copy(&dst, onlyReader{bytes.NewReader(make([]byte, 100))}, l); n != 7 || err != io.ErrUnexpectedEOF {
			t.Errorf("got %d, %v, want what ReadFrom says", n, err)
		}
	}
}

// readsFrom is an [io.ReaderFrom], as TCP connections are.
type readsFrom struct{ io.Writer }

func (*readsFrom) ReadFrom(io.Reader) (int64, error) { return 7, io.ErrUnexpectedEOF }

// TestBytesStayTheSame moves many, in pieces of all sizes, through a ring that grows and goes round.
func TestBytesStayTheSame(t *testing.T) {
	for _, c := range []Config{
		{Delay: 1},
		{Delay: 20 * ms, Jitter: 30 * ms},
		{Delay: 5 * ms, Jitter: 5 * ms, Loss: 0.05, Reorder: 0.1},
		{Bandwidth: 3_000_000, Delay: 40 * ms, Jitter: 3 * ms},
		{Bandwidth: 150_000},
	} {
		synctest.Test(t, func(t *testing.T) {
			in, src := net.Pipe()
			out, dst := net.Pipe()
			done := copying(dst, src, c.Line(1, Up))
			sent, got := sha256.New(), sha256.New()
			const size = 3 << 20
			go func() {
				chance := mathrand.New(mathrand.NewPCG(1, 2))
				b := make([]byte, 100_000)
				for n := 0; n < size; {
					part := b[:min(1+chance.IntN([]int{10, 2000, 100_000}[chance.IntN(3)]), size-n)]
					for i := range part {
						part[i] = byte(chance.Uint32())
					}
					sent.Write(part)
					in.Write(part)
					n += len(part)
					if chance.IntN(10) == 0 {
						time.Sleep(time.Duration(chance.IntN(30)) * ms)
					}
				}
				in.Close()
			}()
			read := make(chan int64)
			go func() {
				n, _ := io.CopyBuffer(got, onlyReader{out}, make([]byte, 30_000))
				read <- n
			}()
			want(t, done, size, nil)
			dst.Close()
			if n := <-read; n != size || !bytes.Equal(sent.Sum(nil), got.Sum(nil)) {
				t.Errorf("%v: %d bytes came, of %d, or others", c, n, size)
			}
		})
	}
}

func TestOverRealSockets(t *testing.T) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	connect := func() (net.Conn, net.Conn) {
		c, err := net.Dial("tcp", ln.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		s, err := ln.Accept()
		if err != nil {
			t.Fatal(err)
		}
		for _, nc := range []net.Conn{c, s} {
			nc.SetDeadline(time.Now().Add(30 * time.Second))
			t.Cleanup(func() { nc.Close() })
		}
		return c, s
	}
	client, a := connect()
	b, target := connect()
	up, down := Config{Delay: 5 * ms, Jitter: 2 * ms, Reorder: 0.01}.Lines(1)
	ups, downs := copying(b, a, up), copying(a, b, down)
	sent := make([]byte, 8<<20)
	rand.Read(sent)
	go func() {
		client.Write(sent)
		client.(*net.TCPConn).CloseWrite()
	}()
	got := make([]byte, len(sent))
	if _, err := io.ReadFull(target, got); err != nil || !bytes.Equal(got, sent) {
		t.Fatalf("the target got others, %v", err)
	}
	want(t, ups, int64(len(sent)), nil)
	b.(*net.TCPConn).CloseWrite()
	target.Write([]byte("answer")) // after the client's half-close
	target.Close()
	want(t, downs, 6, nil)
	a.(*net.TCPConn).CloseWrite()
	if answer, err := io.ReadAll(client); err != nil || string(answer) != "answer" {
		t.Errorf("the client got %q, %v", answer, err)
	}
}

func BenchmarkCopy(b *testing.B) {
	in, src := net.Pipe()
	out, dst := net.Pipe()
	done := copying(dst, src, Config{Delay: ms}.Line(1, Up))
	go io.Copy(io.Discard, out)
	chunk := make([]byte, 16<<10)
	b.SetBytes(int64(len(chunk)))
	b.ReportAllocs()
	for b.Loop() {
		in.Write(chunk)
	}
	in.Close()
	<-done
	dst.Close()
	out.Close()
}

package loop

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/fivetuple/fivetuple"
	"github.com/fivetuple/fivetuple/sockopt"
	"github.com/fivetuple/fivetuple/stats"
	"github.com/fivetuple/fivetuple/stream"
)

func TestEchoReturnsRandomPiecesAndThenEOF(t *testing.T) {
	bothOver(t, func(t *testing.T, make func(config) server, where string) {
		ev := &events{}
		ln := start(t, make(config{kind: "echo", sink: ev}), where)
		c := dial(t, ln)
		sent := randomBytes(3_000_000)
		go func() {
			piece := rand.New(rand.NewPCG(1, 2))
			for b := sent; len(b) > 0; {
				n := min(len(b), 1+piece.IntN(200_000))
				c.Write(b[:n])
				b = b[n:]
			}
			closeWrite(c)
		}()
		got, err := io.ReadAll(c)
		if err != nil || !bytes.Equal(got, sent) {
			t.Fatalf("got %d bytes, %v, want the %d sent", len(got), err, len(sent))
		}
		end := ev.wait(t, stats.Disconnect)
		if end.Cause != "peer closed" || end.BytesIn != 3_000_000 || end.BytesOut != 3_000_000 || end.Service != "s" || end.Conn != 1 || end.Err != "" {
			t.Errorf("disconnect event is %+v", end)
		}
		if tcp := ln.Addr().Network() == "tcp"; tcp != (end.TCP != nil && end.TCP.MSS > 0) {
			t.Errorf("final TCP_INFO is %+v", end.TCP)
		}
		if end.Tuple.Local != fivetuple.AddressOf(ln.Addr()) || end.Tuple.Remote != fivetuple.AddressOf(c.LocalAddr()) {
			t.Errorf("tuple is %v", end.Tuple)
		}
	})
}

func randomBytes(n int) []byte {
	b := make([]byte, n)
	rand.NewChaCha8([32]byte{1}).Read(b)
	return b
}

func TestAPeerThatReadsOnlyAfterItsEndGetsEverything(t *testing.T) {
	bothOver(t, func(t *testing.T, make func(config) server, where string) {
		c := dial(t, start(t, make(config{kind: "echo"}), where))
		sent := randomBytes(100_000)
		if _, err := c.Write(sent); err != nil {
			t.Fatal(err)
		}
		closeWrite(c)
		if got, err := io.ReadAll(c); err != nil || !bytes.Equal(got, sent) {
			t.Errorf("got %d bytes, %v", len(got), err)
		}
	})
}

func TestUrgentDataDoesNotHoldUpWhatFollows(t *testing.T) {
	both(t, func(t *testing.T, make func(config) server) {
		c := dial(t, start(t, make(config{kind: "echo"}), "0"))
		raw, _ := c.(*net.TCPConn).SyscallConn()
		for range 100 {
			raw.Control(func(fd uintptr) {
				syscall.Sendto(int(fd), []byte("before!"), unix.MSG_OOB, nil) // the last byte is urgent
			})
			c.Write([]byte("after"))
			if got := readFull(t, c, 11); string(got) != "beforeafter" {
				t.Fatalf("got %q", got)
			}
		}
	})
}

func TestDescriptorsInTheStreamDoNotHoldUpWhatFollows(t *testing.T) {
	both(t, func(t *testing.T, make func(config) server) {
		c := dial(t, start(t, make(config{kind: "echo"}), "unix://@loop-test")).(*net.UnixConn)
		echoes(t, c, []byte("x"))
		before := descriptors(t)
		rights := syscall.UnixRights(0)
		for range 100 {
			for _, s := range []string{"ab", "cd", "ef"} {
				if _, _, err := c.WriteMsgUnix([]byte(s), rights, nil); err != nil {
					t.Fatal(err)
				}
			}
			c.Write([]byte("gh"))
			if got := readFull(t, c, 8); string(got) != "abcdefgh" {
				t.Fatalf("got %q", got)
			}
		}
		if now := descriptors(t); now > before {
			t.Errorf("%d descriptors, %d before", now, before)
		}
	})
}

func TestEventsOfOneConnectionComeInOrder(t *testing.T) {
	both(t, func(t *testing.T, make func(config) server) {
		ev := &events{}
		s := make(config{kind: "discard", sink: ev})
		ln := listen(t, "0")
		served := goServe(s, ln)
		c := dial(t, ln)
		c.Close()
		ev.wait(t, stats.Disconnect)
		s.Shutdown(t.Context())
		if err := <-served; err != stream.ErrServerClosed {
			t.Errorf("Serve returned %v", err)
		}
		var kinds []stats.Kind
		for _, e := range ev.snapshot() {
			kinds = append(kinds, e.Kind)
			if e.Time.IsZero() || e.Service != "s" {
				t.Errorf("event without time or service: %+v", e)
			}
		}
		if want := []stats.Kind{stats.Listen, stats.Accept, stats.Disconnect, stats.Close}; !slices.Equal(kinds, want) {
			t.Errorf("got %v, want %v", kinds, want)
		}
	})
}

func goServe(s server, ln net.Listener) chan error {
	served := make(chan error, 1)
	go func() { served <- s.serve(ln) }()
	return served
}

func TestPeerResetIsItsCauseAtEveryPoint(t *testing.T) {
	for _, point := range []struct {
		name string
		kind string
		do   func(t *testing.T, c net.Conn)
	}{
		{"at once", "echo", func(*testing.T, net.Conn) {}},
		{"after an echo", "echo", func(t *testing.T, c net.Conn) { echoes(t, c, []byte("x")) }},
		{"with an echo unread", "echo", func(t *testing.T, c net.Conn) { c.Write(make([]byte, 1000)) }},
		{"while it does not read", "echo", func(t *testing.T, c net.Conn) { fill(c) }},
		{"while it is sent to", "chargen", func(t *testing.T, c net.Conn) { readFull(t, c, 100_000) }},
		{"in a line", "chat", func(t *testing.T, c net.Conn) { io.WriteString(c, "hel") }},
		{"amid others", "broker", func(t *testing.T, c net.Conn) { c.Write(make([]byte, 1000)) }},
		{"thrown away", "discard", func(t *testing.T, c net.Conn) { c.Write(make([]byte, 100_000)) }},
	} {
		t.Run(point.name, func(t *testing.T) {
			both(t, func(t *testing.T, make func(config) server) {
				ev := &events{}
				s := make(config{kind: point.kind, sink: ev})
				c := dial(t, start(t, s, "0"))
				waitForConns(t, s, 1)
				point.do(t, c)
				abort(c)
				if end := ev.wait(t, stats.Disconnect); end.Cause != "peer reset" || end.Err == "" {
					t.Errorf("got %+v", end)
				}
				waitForConns(t, s, 0)
			})
		})
	}
}

// fill writes until nothing more is taken for a while, 32 MiB at most.
func fill(c net.Conn) (n int) {
	b := make([]byte, 256<<10)
	for {
		if n >= 32<<20 {
			return n
		}
		c.SetWriteDeadline(time.Now().Add(100 * time.Millisecond))
		m, err := c.Write(b)
		n += m
		if err != nil {
			return n
		}
	}
}

func TestAPeerThatStopsReadingGetsAllWhenItGoesOn(t *testing.T) {
	bothOver(t, func(t *testing.T, make func(config) server, where string) {
		c := dial(t, start(t, make(config{kind: "echo"}), where))
		sent := fill(c)
		c.SetDeadline(time.Now().Add(20 * time.Second))
		closeWrite(c)
		n, err := io.Copy(io.Discard, c)
		if int(n) != sent || err != nil {
			t.Errorf("sent %d, got %d, %v", sent, n, err)
		}
	})
}

func TestBroadcastReachesAllAndDropsOnlyTheClientThatNeverReads(t *testing.T) {
	both(t, func(t *testing.T, make func(config) server) {
		ev := &events{}
		s := make(config{kind: "discard", sink: ev, limits: stream.Limits{WriteQueue: 1 << 20}})
		ln := start(t, s, "0")
		stuck := dial(t, ln)
		stuck.(*net.TCPConn).SetReadBuffer(4096)
		readers := []net.Conn{dial(t, ln), dial(t, ln)}
		waitForConns(t, s, 3)
		block := randomBytes(256 << 10)
		for range 200 { // 50 MiB: more than the queue and the kernel's buffers hold
			s.Broadcast(block)
			for _, c := range readers {
				if got := readFull(t, c, len(block)); !bytes.Equal(got, block) {
					t.Fatal("other bytes arrived")
				}
			}
		}
		end := ev.wait(t, stats.Disconnect)
		if end.Cause != "too slow" || end.Tuple.Remote != fivetuple.AddressOf(stuck.LocalAddr()) {
			t.Errorf("got %+v, want the stuck client dropped", end)
		}
		waitForConns(t, s, 2)
	})
}

func TestSendGoesToOneAndCutEndsOne(t *testing.T) {
	both(t, func(t *testing.T, make func(config) server) {
		ev := &events{}
		s := make(config{kind: "discard", sink: ev})
		ln := start(t, s, "0")
		a := dial(t, ln)
		idA := waitForConns(t, s, 1)[0]
		b := dial(t, ln)
		idB := waitForConns(t, s, 2)[1]
		if err := s.Send(idB, []byte("for b")); err != nil {
			t.Fatal(err)
		}
		if err := s.Send(idB, nil); err != nil {
			t.Fatal(err)
		}
		if got := readFull(t, b, 5); string(got) != "for b" {
			t.Errorf("got %q", got)
		}
		if n := s.Broadcast([]byte("all")); n != 2 {
			t.Errorf("broadcast reached %d", n)
		}
		if got := readFull(t, a, 3); string(got) != "all" {
			t.Errorf("a got %q, want only the broadcast", got)
		}
		if err := s.Cut(idA); err != nil {
			t.Fatal(err)
		}
		if _, err := a.Read(nilByte()); !isReset(err) {
			t.Errorf("the connection cut sees %v", err)
		}
		if end := ev.wait(t, stats.Disconnect); end.Cause != "cut" || end.Conn != idA {
			t.Errorf("got %+v", end)
		}
		waitForConns(t, s, 1)
		for _, err := range []error{s.Send(99, []byte("x")), s.Cut(99), s.Cut(idA), s.Send(idA, []byte("x"))} {
			if !errors.Is(err, stream.ErrNoConn) {
				t.Errorf("to nobody: %v", err)
			}
		}
	})
}

func nilByte() []byte { return make([]byte, 1) }

func TestABroadcastLargerThanTheQueueReachesIdleClients(t *testing.T) {
	both(t, func(t *testing.T, make func(config) server) {
		s := make(config{kind: "discard", limits: stream.Limits{WriteQueue: 1000}})
		c := dial(t, start(t, s, "0"))
		waitForConns(t, s, 1)
		if n := s.Broadcast(randomBytes(20_000_000)); n != 1 {
			t.Errorf("reached %d", n)
		}
		if got := readFull(t, c, 20_000_000); !bytes.Equal(got, randomBytes(20_000_000)) {
			t.Error("other bytes arrived")
		}
	})
}

func TestClientsThatNeverReadOrDripDoNotHoldUpOthers(t *testing.T) {
	both(t, func(t *testing.T, make func(config) server) {
		ln := start(t, make(config{kind: "echo"}), "0")
		var wg sync.WaitGroup
		defer wg.Wait()
		block := randomBytes(30 << 20)
		for range 20 {
			stuck := dial(t, ln)
			defer stuck.Close()
			wg.Go(func() { stuck.Write(block) }) // blocks
			dial(t, ln).Write([]byte("d"))
		}
		c := dial(t, ln)
		for range 100 {
			echoes(t, c, []byte("hello"))
		}
	})
}

func TestAConnectionThatAlwaysHasDataDoesNotStarveOthers(t *testing.T) {
	both(t, func(t *testing.T, make func(config) server) {
		ln := start(t, make(config{kind: "discard"}), "0")
		echo := start(t, make(config{kind: "echo"}), "0")
		var wg sync.WaitGroup
		defer wg.Wait()
		for range 4 {
			greedy := dial(t, ln)
			defer greedy.Close()
			wg.Go(func() {
				for b := randomBytes(1 << 20); ; {
					if _, err := greedy.Write(b); err != nil {
						return
					}
				}
			})
		}
		c := dial(t, echo)
		for range 200 {
			echoes(t, c, []byte("hello"))
		}
	})
}

func TestMaxConnsLetsTheNextWaitInTheBacklog(t *testing.T) {
	both(t, func(t *testing.T, make func(config) server) {
		ev := &events{}
		s := make(config{kind: "echo", sink: ev, limits: stream.Limits{MaxConns: 1}})
		ln := start(t, s, "0")
		first := dial(t, ln)
		echoes(t, first, []byte("1"))
		second := dial(t, ln)
		second.Write([]byte("2"))
		second.SetReadDeadline(time.Now().Add(50 * time.Millisecond))
		if n, err := second.Read(nilByte()); !isTimeout(err) {
			t.Fatalf("the second was served: %d bytes, %v", n, err)
		}
		if said := ev.wait(t, stats.Error); !strings.Contains(said.Err, "full with 1 connections") {
			t.Errorf("got %+v", said)
		}
		first.Close()
		second.SetReadDeadline(time.Now().Add(10 * time.Second))
		readFull(t, second, 1)
		third := dial(t, ln)
		third.Write([]byte("3"))
		s.SetLimits(stream.Limits{})
		readFull(t, third, 1)
	})
}

func dialFrom(t *testing.T, ip string, ln net.Listener) (net.Conn, error) {
	_, port, _ := net.SplitHostPort(ln.Addr().String())
	d := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP(ip)}}
	c, err := d.Dial("tcp", "127.0.0.1:"+port)
	if err != nil { // a server that resets at once may be seen by connect already
		return nil, err
	}
	t.Cleanup(func() { c.Close() })
	c.SetDeadline(time.Now().Add(10 * time.Second))
	return c, nil
}

// refused fails unless the server resets a connection from ip.
func refused(t *testing.T, ip string, ln net.Listener) {
	t.Helper()
	c, err := dialFrom(t, ip, ln)
	if err == nil {
		_, err = c.Read(nilByte())
	}
	if !isReset(err) {
		t.Errorf("from %s: %v, want a reset", ip, err)
	}
}

func TestMaxPerSourceResetsTheNextFromThatSourceOnly(t *testing.T) {
	both(t, func(t *testing.T, make func(config) server) {
		ev := &events{}
		s := make(config{kind: "echo", sink: ev, limits: stream.Limits{MaxPerSource: 1}})
		ln := start(t, s, ":0")
		first, _ := dialFrom(t, "127.0.0.1", ln)
		echoes(t, first, []byte("1"))
		refused(t, "127.0.0.1", ln)
		if e := ev.wait(t, stats.Error); !strings.Contains(e.Err, "refused: more than 1 connections from 127.0.0.1, the limit per source") {
			t.Errorf("got %+v", e)
		}
		other, _ := dialFrom(t, "127.0.0.2", ln)
		echoes(t, other, []byte("2"))
		if a := ev.wait(t, stats.Accept); a.Tuple.Local.AddrPort.Addr() != netip.MustParseAddr("127.0.0.1") {
			t.Errorf("the local end of a connection to any address is %v", a.Tuple.Local)
		}
		first.Close()
		waitForConns(t, s, 1)
		again, err := dialFrom(t, "127.0.0.1", ln)
		if err != nil {
			t.Fatal(err)
		}
		echoes(t, again, []byte("3"))
	})
}

func TestDenyResets(t *testing.T) {
	both(t, func(t *testing.T, make func(config) server) {
		ev := &events{}
		ln := start(t, make(config{kind: "echo", sink: ev, limits: stream.Limits{
			Allow: []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8")}, Deny: []netip.Prefix{netip.MustParsePrefix("127.0.0.2/32")}}}), ":0")
		refused(t, "127.0.0.2", ln)
		if e := ev.wait(t, stats.Error); e.Err != "refused: source not allowed" || e.Tuple.Remote.AddrPort.Addr() != netip.MustParseAddr("127.0.0.2") {
			t.Errorf("got %+v", e)
		}
		c, _ := dialFrom(t, "127.0.0.1", ln)
		echoes(t, c, []byte("1"))
	})
}

func TestAcceptRateSpacesConnections(t *testing.T) {
	both(t, func(t *testing.T, make func(config) server) {
		ln := start(t, make(config{kind: "echo", limits: stream.Limits{AcceptRate: 50}}), "0")
		began := time.Now()
		for range 20 {
			echoes(t, dial(t, ln), []byte("x"))
		}
		if took := time.Since(began); took < 270*time.Millisecond { // five at once, then 20 ms apart
			t.Errorf("20 connections took %v at 50 a second", took)
		}
	})
}

func TestPeersLetsOnlySomeProcessesIn(t *testing.T) {
	both(t, func(t *testing.T, make func(config) server) {
		for _, tt := range []struct {
			peers stream.PeerFilter
			in    bool
		}{
			{stream.PeerFilter{}, true},
			{stream.PeerFilter{UIDs: []uint32{uint32(os.Getuid())}}, true},
			{stream.PeerFilter{UIDs: []uint32{4321}, GIDs: []uint32{uint32(os.Getgid())}}, true},
			{stream.PeerFilter{UIDs: []uint32{4321}}, false},
		} {
			ev := &events{}
			c := dial(t, start(t, make(config{kind: "echo", sink: ev, peers: &tt.peers}), fmt.Sprintf("unix://@loop-test-%p", ev)))
			c.Write([]byte("x"))
			_, err := c.Read(nilByte())
			if (err == nil) != tt.in {
				t.Errorf("%+v: %v", tt.peers, err)
			}
			if !tt.in {
				ev.wait(t, stats.Error)
			}
		}
	})
}

func TestTimeouts(t *testing.T) {
	for _, tt := range []struct {
		name   string
		limits stream.Limits
		drips  int // 60 ms apart
		want   time.Duration
		cause  string
	}{
		{"a silent client", stream.Limits{IdleTimeout: 200 * time.Millisecond}, 0, 200 * time.Millisecond, "idle timeout"},
		{"a client that stops", stream.Limits{IdleTimeout: 800 * time.Millisecond}, 5, 1100 * time.Millisecond, "idle timeout"},
		{"no first byte", stream.Limits{FirstByteTimeout: 200 * time.Millisecond, IdleTimeout: time.Hour}, 0, 200 * time.Millisecond, "no first byte"},
		{"a first byte in time", stream.Limits{FirstByteTimeout: 600 * time.Millisecond, IdleTimeout: 800 * time.Millisecond}, 1, 860 * time.Millisecond, "idle timeout"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			both(t, func(t *testing.T, make func(config) server) {
				ev := &events{}
				ln := start(t, make(config{kind: "discard", sink: ev, limits: tt.limits}), "0")
				began := time.Now()
				c := dial(t, ln)
				drip := time.NewTicker(60 * time.Millisecond)
				defer drip.Stop()
				for range tt.drips {
					<-drip.C
					c.Write([]byte("."))
				}
				_, err := c.Read(nilByte())
				if after := time.Since(began); err != io.EOF || after < tt.want-5*time.Millisecond {
					t.Errorf("ended after %v with %v, want %v", after, err, tt.want)
				}
				if end := ev.wait(t, stats.Disconnect); end.Cause != tt.cause {
					t.Errorf("cause is %q, want %q", end.Cause, tt.cause)
				}
			})
		})
	}
}

func TestANewIdleTimeoutAppliesToConnectionsThatAre(t *testing.T) {
	both(t, func(t *testing.T, make func(config) server) {
		s := make(config{kind: "echo"})
		c := dial(t, start(t, s, "0"))
		echoes(t, c, []byte("x"))
		s.SetLimits(stream.Limits{IdleTimeout: 50 * time.Millisecond})
		if _, err := c.Read(nilByte()); err != io.EOF {
			t.Errorf("got %v", err)
		}
	})
}

func TestShutdownDrainsTheQuietAndResetsTheBusy(t *testing.T) {
	both(t, func(t *testing.T, make func(config) server) {
		ev := &events{}
		s := make(config{kind: "echo", sink: ev})
		ln := listen(t, "0")
		served := goServe(s, ln)
		quiet, busy := dial(t, ln), dial(t, ln)
		echoes(t, quiet, []byte("q"))
		echoes(t, busy, []byte("b"))
		stop := goBusy(busy)
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if err := s.Shutdown(ctx); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("Shutdown with a busy connection returned %v", err)
		}
		stop()
		<-served
		if _, err := quiet.Read(nilByte()); err != io.EOF {
			t.Errorf("the quiet client saw %v, want EOF", err)
		}
		causes := map[string]int{}
		for _, e := range ev.waitFor(t, stats.Disconnect, 2) {
			causes[e.Cause]++
		}
		if causes["drained"] != 1 || causes["reset at shutdown"] != 1 {
			t.Errorf("got causes %v", causes)
		}
		if _, err := net.Dial("tcp", ln.Addr().String()); !errors.Is(err, syscall.ECONNREFUSED) {
			t.Errorf("the port still answers: %v", err)
		}
		if err := s.Shutdown(t.Context()); err != nil {
			t.Errorf("second Shutdown: %v", err)
		}
		if s.Broadcast([]byte("x")) != 0 || len(s.Conns()) != 0 {
			t.Error("there are connections after Shutdown")
		}
	})
}

// goBusy exchanges bytes until stopped or ended.
func goBusy(c net.Conn) (stop func()) {
	var wg sync.WaitGroup
	done := make(chan struct{})
	wg.Go(func() {
		for b := []byte("b"); ; {
			select {
			case <-done:
				return
			default:
			}
			if _, err := c.Write(b); err != nil {
				return
			}
			if _, err := c.Read(b); err != nil {
				return
			}
		}
	})
	return func() { close(done); wg.Wait() }
}

func TestShutdownLetsASlowClientHaveAllThatWasQueued(t *testing.T) {
	both(t, func(t *testing.T, make func(config) server) {
		const size = 30 << 20
		s := make(config{kind: "discard"})
		ln := listen(t, "0")
		served := goServe(s, ln)
		c := dial(t, ln)
		id := waitForConns(t, s, 1)[0]
		if err := s.Send(id, randomBytes(size)); err != nil {
			t.Fatal(err)
		}
		readFull(t, c, 1) // it is being sent
		done := inBackground(func() error {
			ctx, cancel := context.WithTimeout(context.Background(), 15*time.Second)
			defer cancel()
			return s.Shutdown(ctx)
		})
		time.Sleep(600 * time.Millisecond) // the client's slowness is what is tested
		if n, err := io.Copy(io.Discard, c); n != size-1 || err != nil {
			t.Errorf("got %d bytes of %d, %v", n, size, err)
		}
		if err := <-done; err != nil {
			t.Errorf("Shutdown: %v", err)
		}
		<-served
	})
}

func inBackground(f func() error) chan error {
	c := make(chan error, 1)
	go func() { c <- f() }()
	return c
}

func TestClosingTheListenerEndsServeButNotItsConnections(t *testing.T) {
	both(t, func(t *testing.T, make func(config) server) {
		s := make(config{kind: "echo"})
		ln := listen(t, "0")
		served := goServe(s, ln)
		c := dial(t, ln)
		echoes(t, c, []byte("1"))
		ln.Close()
		if err := <-served; !errors.Is(err, net.ErrClosed) {
			t.Errorf("Serve returned %v", err)
		}
		echoes(t, c, []byte("2"))
		if err := s.Shutdown(t.Context()); err != nil {
			t.Error(err)
		}
	})
}

// Of TCP these are the options that a connection has not from its listener; of a
// Unix socket that is every one.
func TestOptionsHoldOnAcceptedConnections(t *testing.T) {
	bothOver(t, func(t *testing.T, make func(config) server, where string) {
		text := "nodelay=off,keepalive=31s/7s/4,priority=6"
		if strings.HasPrefix(where, "unix") {
			text = "sndbuf=64KiB,rcvtimeo=2s,passcred=on"
		}
		var opts sockopt.Settings
		if err := opts.Set(text); err != nil {
			t.Fatal(err)
		}
		ln := start(t, make(config{kind: "echo", options: opts}), where)
		echoes(t, dial(t, ln), []byte("x"))
		fd := accepted(t, ln)
		for _, want := range opts {
			value := strings.Replace(want.Value(), "64KiB", "128KiB", 1) // the kernel doubles it
			if got, err := sockopt.Get(fd, want.Option().Name); err != nil || got.Value() != value {
				t.Errorf("got %s, want %s (%v)", got, value, err)
			}
		}
	})
}

// accepted is the descriptor of a connection that a listener of this process has accepted.
func accepted(t *testing.T, ln net.Listener) int {
	t.Helper()
	links, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	for _, link := range links {
		fd, _ := strconv.Atoi(link.Name())
		own, err := unix.Getsockname(fd)
		if err != nil {
			continue
		}
		if _, err := unix.Getpeername(fd); err != nil {
			continue
		}
		switch own := own.(type) {
		case *unix.SockaddrInet4:
			if own.Port == ln.Addr().(*net.TCPAddr).Port {
				return fd
			}
		case *unix.SockaddrInet6:
			if own.Port == ln.Addr().(*net.TCPAddr).Port {
				return fd
			}
		case *unix.SockaddrUnix:
			if own.Name == ln.Addr().String() {
				return fd
			}
		}
	}
	t.Fatal("no connection was accepted")
	return -1
}

func TestChatSpeaksToAllAndToOne(t *testing.T) {
	bothOver(t, func(t *testing.T, make func(config) server, where string) {
		ln := start(t, make(config{kind: "chat"}), where)
		a := dial(t, ln)
		if got := line(t, a); got != "* you are 1; /who lists the others, /to ID text speaks to one, /quit leaves" {
			t.Fatalf("got %q", got)
		}
		b := dial(t, ln)
		line(t, b)
		fmt.Fprint(a, "hel")
		fmt.Fprint(a, "lo\r\n/to 2 psst\n/to 9 x\n/to\n/who\n\n")
		for _, want := range []string{"[1] hello", "[1 to you] psst"} {
			if got := line(t, b); got != want {
				t.Errorf("b got %q, want %q", got, want)
			}
		}
		for _, want := range []string{"[1] hello", "* nobody here is 9", "* write /to ID text", "* here: 1 2"} {
			if got := line(t, a); got != want {
				t.Errorf("a got %q, want %q", got, want)
			}
		}
		fmt.Fprint(a, "/quit\nnot said\n")
		if got, err := io.ReadAll(a); err != nil || len(got) > 0 {
			t.Errorf("after /quit: %q, %v", got, err)
		}
		fmt.Fprint(b, strings.Repeat("x", maxLine+1))
		if got, err := io.ReadAll(b); err != nil && !isReset(err) || len(got) > 0 {
			t.Errorf("after too long a line: %q, %v", got, err)
		}
	})
}

func TestTheLastLineOfAChatNeedsNoEnd(t *testing.T) {
	both(t, func(t *testing.T, make func(config) server) {
		ev := &events{}
		s := make(config{kind: "chat", sink: ev})
		ln := start(t, s, "0")
		a := dial(t, ln)
		line(t, a)
		b := dial(t, ln)
		line(t, b)
		io.WriteString(b, "one\ntwo\x1b[31m")
		closeWrite(b)
		io.ReadAll(b)
		for _, want := range []string{"[2] one", "[2] two[31m"} {
			if got := line(t, a); got != want {
				t.Errorf("got %q, want %q", got, want)
			}
		}
		if end := ev.wait(t, stats.Disconnect); end.Cause != "peer closed" || end.Conn != 2 {
			t.Errorf("got %+v", end)
		}
		io.WriteString(a, "/quit\n")
		if got, err := io.ReadAll(a); err != nil || len(got) > 0 {
			t.Errorf("got %q, %v", got, err)
		}
		a.Close()
		if end := ev.waitFor(t, stats.Disconnect, 2)[1]; end.Cause != "done" {
			t.Errorf("got %+v", end)
		}
	})
}

func TestAChatOfManyKeepsTheOrderOfEachSpeaker(t *testing.T) {
	both(t, func(t *testing.T, make func(config) server) {
		const speakers, lines = 8, 200
		s := make(config{kind: "chat", limits: stream.Limits{WriteQueue: 1 << 20}})
		ln := start(t, s, "0")
		var conns []net.Conn
		for range speakers {
			c := dial(t, ln)
			line(t, c)
			conns = append(conns, c)
		}
		var wg sync.WaitGroup
		for _, c := range conns {
			wg.Go(func() {
				for i := range lines {
					fmt.Fprintf(c, "line %d\n", i)
				}
			})
			wg.Go(func() { hearAllInOrder(t, c, speakers, lines) })
		}
		wg.Wait()
	})
}

func hearAllInOrder(t *testing.T, c net.Conn, speakers, lines int) {
	next := map[int]int{}
	for b, n := newLines(c), 0; n < speakers*lines; n++ {
		if !b.Scan() {
			t.Errorf("ended after %d lines", n)
			return
		}
		var id, i int
		if _, err := fmt.Sscanf(b.Text(), "[%d] line %d", &id, &i); err != nil || i != next[id] {
			t.Errorf("got %q, want line %d of %d", b.Text(), next[id], id)
			return
		}
		next[id]++
	}
}

func TestBrokerGivesToAllOthers(t *testing.T) {
	bothOver(t, func(t *testing.T, make func(config) server, where string) {
		s := make(config{kind: "broker", limits: stream.Limits{WriteQueue: 4 << 20}})
		ln := start(t, s, where)
		conns := []net.Conn{dial(t, ln), dial(t, ln), dial(t, ln)}
		waitForConns(t, s, 3)
		sent := randomBytes(1_000_000)
		go func() {
			for b := range slices.Chunk(sent, 30_000) {
				conns[0].Write(b)
			}
		}()
		for _, c := range conns[1:] {
			if got := readFull(t, c, len(sent)); !bytes.Equal(got, sent) {
				t.Error("other bytes arrived")
			}
		}
		conns[1].Write([]byte("back"))
		if got := readFull(t, conns[0], 4); string(got) != "back" { // and nothing of its own
			t.Errorf("got %q", got)
		}
		closeWrite(conns[0])
		if got, err := io.ReadAll(conns[0]); err != nil || len(got) > 0 {
			t.Errorf("after the end: %q, %v", got, err)
		}
	})
}

func TestBrokerDropsTheOneThatNeverReads(t *testing.T) {
	both(t, func(t *testing.T, make func(config) server) {
		ev := &events{}
		s := make(config{kind: "broker", sink: ev})
		ln := start(t, s, "0")
		dial(t, ln)
		c := dial(t, ln)
		waitForConns(t, s, 2)
		go func() {
			for b := randomBytes(64 << 10); ; {
				if _, err := c.Write(b); err != nil {
					return
				}
			}
		}()
		if end := ev.wait(t, stats.Disconnect); end.Cause != "too slow" || end.Conn != 1 {
			t.Errorf("got %+v", end)
		}
		c.Close()
	})
}

func TestDiscardTakesAllAndSaysNothing(t *testing.T) {
	bothOver(t, func(t *testing.T, make func(config) server, where string) {
		ev := &events{}
		c := dial(t, start(t, make(config{kind: "discard", sink: ev}), where))
		const size = 20 << 20
		if _, err := c.Write(randomBytes(size)); err != nil {
			t.Fatal(err)
		}
		closeWrite(c)
		if got, err := io.ReadAll(c); len(got) > 0 || err != nil {
			t.Errorf("got %d bytes, %v", len(got), err)
		}
		if end := ev.wait(t, stats.Disconnect); end.BytesIn != size || end.BytesOut != 0 || end.Cause != "peer closed" {
			t.Errorf("got %+v", end)
		}
	})
}

func TestChargenSendsThePatternAsFastAsItIsRead(t *testing.T) {
	bothOver(t, func(t *testing.T, make func(config) server, where string) {
		c := dial(t, start(t, make(config{kind: "chargen"}), where))
		b := readFull(t, c, 20_000_000)
		if got, want := string(b[:74]), ` !"#$%&'()*+,-./0123456789:;<=>?@ABCDEFGHIJKLMNOPQRSTUVWXYZ[\]^_`+"`abcdefg\r\n"; got != want {
			t.Errorf("first line %q, want %q", got, want)
		}
		for i := 74 * 95; i < len(b); i += 74 * 95 {
			if n := min(74*95, len(b)-i); !bytes.Equal(b[i:i+n], b[:n]) {
				t.Fatalf("the pattern breaks within %d bytes of %d", n, i)
			}
		}
		closeWrite(c) // it goes on
		readFull(t, c, 10_000_000)
	})
}

func TestAConnectionEndsOnlyWhenThePeerHasAll(t *testing.T) {
	both(t, func(t *testing.T, make func(config) server) {
		ev := &events{}
		c := dial(t, start(t, make(config{kind: "echo", sink: ev}), "0"))
		sent := randomBytes(300_000) // more than the peer's buffer, less than the server's
		c.Write(sent)
		closeWrite(c)
		time.Sleep(300 * time.Millisecond) // in which nothing should end
		for _, e := range ev.snapshot() {
			if e.Kind == stats.Disconnect {
				t.Errorf("got %+v before the peer had all", e)
			}
		}
		if got, err := io.ReadAll(c); err != nil || !bytes.Equal(got, sent) {
			t.Errorf("got %d bytes of %d, %v", len(got), len(sent), err)
		}
		if end := ev.wait(t, stats.Disconnect); end.Cause != "peer closed" || end.Duration > flushTimeout {
			t.Errorf("got %+v", end)
		}
	})
}

func TestAPeerThatNeverEndsIsNotWaitedForLong(t *testing.T) {
	for name, make := range map[string]func(config) server{"goroutines": newGoroutines, "loops": newLoops} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			ev := &events{}
			c := dial(t, start(t, make(config{kind: "chat", sink: ev}), "0"))
			io.WriteString(c, "/quit\n")
			if _, err := io.ReadAll(c); err != nil {
				t.Fatal(err)
			}
			end := ev.wait(t, stats.Disconnect)
			if end.Cause != "done" || end.Duration < flushTimeout || end.Duration > 2*flushTimeout {
				t.Errorf("got %+v", end)
			}
		})
	}
}

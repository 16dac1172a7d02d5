package stream

import (
	"context"
	"errors"
	"io"
	"net"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/fivetuple/fivetuple"
	"github.com/fivetuple/fivetuple/stats"
)

// memListener accepts in-memory connections, so that time can be simulated.
type memListener struct {
	conns  chan net.Conn
	closed chan struct{}
	once   sync.Once
}

func newMemListener() *memListener {
	return &memListener{conns: make(chan net.Conn), closed: make(chan struct{})}
}

func (l *memListener) Accept() (net.Conn, error) {
	select {
	case c := <-l.conns:
		return c, nil
	case <-l.closed:
		return nil, net.ErrClosed
	}
}

func (l *memListener) Close() error   { l.once.Do(func() { close(l.closed) }); return nil }
func (l *memListener) Addr() net.Addr { return &net.UnixAddr{Name: "@mem", Net: "unix"} }

func (l *memListener) dial(context.Context) (net.Conn, error) {
	a, b := net.Pipe()
	select {
	case l.conns <- a:
		return b, nil
	case <-l.closed:
		return nil, errors.New("refused")
	}
}

// ended returns after how long the server ends a connection to which drip is
// sent every interval, with the cause.
func ended(t *testing.T, l Limits, interval time.Duration, drips int) (after time.Duration, cause string) {
	synctest.Test(t, func(t *testing.T) {
		ev := newEvents()
		s := &Server{Handler: Discard(), Sink: ev, Limits: l}
		ln := newMemListener()
		go s.Serve(ln)
		began := time.Now()
		c, _ := ln.dial(t.Context())
		var wg sync.WaitGroup
		wg.Go(func() {
			for range drips {
				time.Sleep(interval)
				c.Write([]byte("."))
			}
		})
		c.Read(make([]byte, 1))
		after = time.Since(began)
		c.Close()
		s.Shutdown(t.Context())
		wg.Wait()
		for _, e := range ev.snapshot() {
			if e.Kind == stats.Disconnect {
				cause = e.Cause
			}
		}
	})
	return after, cause
}

func TestTimeouts(t *testing.T) {
	for _, tt := range []struct {
		name     string
		limits   Limits
		interval time.Duration
		drips    int
		want     time.Duration
		cause    string
	}{
		{"a silent client", Limits{IdleTimeout: 40 * time.Second}, 0, 0, 40 * time.Second, causeIdle},
		{"a client that stops", Limits{IdleTimeout: 40 * time.Second}, 30 * time.Second, 3, 130 * time.Second, causeIdle},
		{"no first byte", Limits{FirstByteTimeout: 8 * time.Second, IdleTimeout: time.Hour}, 9 * time.Second, 1, 8 * time.Second, causeNoFirstByte},
		{"a first byte in time", Limits{FirstByteTimeout: 8 * time.Second, IdleTimeout: time.Minute}, time.Second, 1, 61 * time.Second, causeIdle},
	} {
		t.Run(tt.name, func(t *testing.T) {
			after, cause := ended(t, tt.limits, tt.interval, tt.drips)
			if after < tt.want || after > tt.want+2*time.Second || cause != tt.cause {
				t.Errorf("ended after %v as %q, want %v as %q", after, cause, tt.want, tt.cause)
			}
		})
	}
}

func TestLongConnectionsReportTheirTotals(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ev := newEvents()
		s := &Server{Handler: Discard(), Sink: ev}
		ln := newMemListener()
		go s.Serve(ln)
		c, _ := ln.dial(t.Context())
		for range 40 {
			c.Write([]byte("1234567890"))
			time.Sleep(time.Second)
		}
		time.Sleep(time.Minute) // silent: nothing to report
		c.Close()
		s.Shutdown(t.Context())
		var totals []uint64
		for _, e := range ev.snapshot() {
			if e.Kind == stats.Data {
				totals = append(totals, e.BytesIn)
			}
		}
		if len(totals) < 3 || len(totals) > 5 || totals[len(totals)-1] != 400 {
			t.Errorf("reported totals %v, want about four, the last 400", totals)
		}
	})
}

func TestClientReconnectsAsOftenAsItMay(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var attempts []time.Duration
		began := time.Now()
		fail := false
		c := &Client{Endpoint: endpoint(t, "1"), Tries: 6, MaxDelay: 10 * time.Second}
		peers := make(chan net.Conn, 1)
		c.Dial = func(context.Context) (net.Conn, error) {
			attempts = append(attempts, time.Since(began))
			if fail {
				return nil, io.ErrUnexpectedEOF
			}
			a, b := net.Pipe()
			peers <- b
			return a, nil
		}
		var phases []fivetuple.Phase
		c.OnPhase = func(p fivetuple.Phase, err error) {
			if len(phases) == 0 || phases[len(phases)-1] != p {
				phases = append(phases, p)
			}
		}
		if err := c.Send([]byte("x")); !errors.Is(err, ErrNotConnected) {
			t.Errorf("Send before Connect: %v", err)
		}
		if err := c.Connect(t.Context()); err != nil {
			t.Fatal(err)
		}
		lose := func(peer net.Conn) {
			peer.Write([]byte("x")) // a connection that was of use: the tries count anew
			peer.Close()
		}
		lose(<-peers)
		peer := <-peers // reconnected
		synctest.Wait()
		if c.Phase() != fivetuple.PhaseConnected {
			t.Errorf("phase is %v", c.Phase())
		}
		fail = true
		lose(peer)
		synctest.Wait()
		if err := c.Send([]byte("x")); !errors.Is(err, ErrNotConnected) {
			t.Errorf("Send while reconnecting: %v", err)
		}
		<-c.Done()
		if !errors.Is(c.Err(), io.ErrUnexpectedEOF) {
			t.Errorf("gave up with %v", c.Err())
		}
		// 0; 2 s for the reconnection; then 2, 2, 2, 4±20%, 8±20%, 10±20%.
		low := []float64{0, 2, 4, 6, 8, 11.2, 17.6, 25.6}
		high := []float64{0, 2, 4, 6, 8, 12.8, 22.4, 34.4}
		if len(attempts) != len(low) {
			t.Fatalf("attempts at %v, want %d", attempts, len(low))
		}
		for i, at := range attempts {
			if at.Seconds() < low[i] || at.Seconds() > high[i] {
				t.Errorf("attempt %d at %v, want %v to %v s", i, at, low[i], high[i])
			}
		}
		want := []fivetuple.Phase{fivetuple.PhaseConnecting, fivetuple.PhaseConnected, fivetuple.PhaseConnecting,
			fivetuple.PhaseConnected, fivetuple.PhaseConnecting, fivetuple.PhaseClosed}
		if len(phases) != len(want) {
			t.Errorf("phases %v, want %v", phases, want)
		}
	})
}

func TestClientGivesUpOnAServerThatOnlyAcceptsAndCloses(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		attempts := 0
		c := &Client{Endpoint: endpoint(t, "1"), Dial: func(context.Context) (net.Conn, error) {
			attempts++
			a, b := net.Pipe()
			b.Close()
			return a, nil
		}}
		if err := c.Connect(t.Context()); err != nil {
			t.Fatal(err)
		}
		<-c.Done()
		if attempts != 1+DefaultTries || !errors.Is(c.Err(), io.EOF) {
			t.Errorf("%d attempts, then %v; want %d and EOF", attempts, c.Err(), 1+DefaultTries)
		}
	})
}

func TestClientSaysWhichSendBrokeTheConnection(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ev := newEvents()
		a, b := net.Pipe() // nobody reads b
		c := &Client{Endpoint: endpoint(t, "1"), Sink: ev, Tries: -1, Timeout: time.Second,
			Dial: func(context.Context) (net.Conn, error) { return a, nil }}
		if err := c.Connect(t.Context()); err != nil {
			t.Fatal(err)
		}
		if err := c.Send([]byte("x")); !isTimeout(err) {
			t.Errorf("Send: %v, want a timeout", err)
		}
		<-c.Done()
		if !isTimeout(c.Err()) {
			t.Errorf("gave up with %v, want the timeout", c.Err())
		}
		if end := ev.wait(t, "disconnect", kindIs(stats.Disconnect)); end.Cause != causeTimedOut {
			t.Errorf("cause is %q, want %q", end.Cause, causeTimedOut)
		}
		b.Close()
	})
}

func TestClientGivesUpAfterThreeTriesTwoSecondsApart(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		began := time.Now()
		c := &Client{Endpoint: endpoint(t, "1"), Dial: func(context.Context) (net.Conn, error) { return nil, io.EOF }}
		err := c.Connect(t.Context())
		if err == nil || time.Since(began) != 6*time.Second {
			t.Errorf("gave up after %v with %v, want 6s", time.Since(began), err)
		}
		if err := c.Close(); err != nil {
			t.Error(err)
		}
	})
}

func TestClientCloseEndsAnAttempt(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := &Client{Endpoint: endpoint(t, "1"), Dial: func(ctx context.Context) (net.Conn, error) {
			<-ctx.Done()
			return nil, ctx.Err()
		}, Timeout: time.Hour}
		done := make(chan error)
		go func() { done <- c.Connect(t.Context()) }()
		synctest.Wait()
		c.Close()
		if err := <-done; err == nil {
			t.Error("Connect succeeded")
		}
	})
}

func TestClientAgainstARealServer(t *testing.T) {
	ev := newEvents()
	ln := serve(t, &Server{Handler: Echo(), Sink: ev}, "0")
	got := make(chan string, 1)
	c := &Client{Endpoint: endpoint(t, ln.Addr().String()), OnData: func(b []byte) { got <- string(b) }}
	if err := c.Connect(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := c.Send([]byte("hello")); err != nil {
		t.Fatal(err)
	}
	if g := <-got; g != "hello" {
		t.Errorf("got %q", g)
	}
	if c.Tuple().Remote != fivetuple.AddressOf(ln.Addr()) {
		t.Errorf("tuple is %v", c.Tuple())
	}
	c.Close()
	if end := ev.wait(t, "disconnect", kindIs(stats.Disconnect)); end.BytesIn != 5 {
		t.Errorf("got %+v", end)
	}
	if err := c.Send([]byte("x")); !errors.Is(err, ErrNotConnected) {
		t.Errorf("Send after Close: %v", err)
	}
}

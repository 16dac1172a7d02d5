package stream

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/fivetuple/fivetuple"
	"github.com/fivetuple/fivetuple/dial"
	"github.com/fivetuple/fivetuple/secure"
	"github.com/fivetuple/fivetuple/sockopt"
	"github.com/fivetuple/fivetuple/stats"
)

// ErrNotConnected is what sending answers while there is no connection.
var ErrNotConnected = errors.New("not connected")

// Defaults of a [Client].
const (
	DefaultTimeout  = 5 * time.Second
	DefaultTries    = 3
	DefaultDelay    = 2 * time.Second
	DefaultMaxDelay = time.Minute
)

// Client keeps one connection to an endpoint. When it is lost, by end of file
// or by an error, the client connects again. Set the fields, then call Connect.
type Client struct {
	Endpoint fivetuple.Endpoint
	Dialer   dial.Dialer // how it connects: socket options, source, TLS, proxy
	Service  string      // name in events
	Sink     stats.Sink  // where events go; nil discards them
	// Timeout bounds one attempt to connect, and one Send, not counting the wait
	// for other calls of Send. Default 5 s.
	Timeout time.Duration
	// Tries is how many times the client tries to connect again, after the
	// connection was lost or the first attempt failed, before it gives up. They
	// count anew once bytes have arrived or a connection has lasted for Delay: a
	// server that only accepts and closes is given up too. Default 3; negative
	// never tries again.
	Tries int
	// Delay is the pause before each of the first three tries, default 2 s.
	// From the fourth on it doubles, give or take a fifth, up to MaxDelay,
	// default one minute.
	Delay, MaxDelay time.Duration
	// OnData is called with what arrives, in order; the slice is its own until
	// it returns. It must not call Close, which would wait for it.
	OnData func([]byte)
	// OnPhase is called when the phase changes: connecting, connected, closed.
	// err is why a connection, or an attempt, ended. It must not call Close.
	OnPhase func(phase fivetuple.Phase, err error)
	// Dial opens the connection; nil is Dialer's, to Endpoint.
	Dial func(ctx context.Context) (net.Conn, error)

	mu      sync.Mutex
	conn    net.Conn // nil while not connected
	tuple   fivetuple.Tuple
	phase   fivetuple.Phase
	cancel  context.CancelFunc
	done    chan struct{} // closed when the client has given up or is closed
	err     error         // why it gave up
	sendErr error         // what broke this connection, if that was a Send
	sendMu  sync.Mutex    // held by the Send under way
	out     atomic.Uint64 // bytes sent on this connection
}

// Connect makes the first connection, trying again as the fields say. When it
// returns nil the client is connected, and reads and reconnects on its own
// until Close, the end of ctx, or the tries are used up.
func (c *Client) Connect(ctx context.Context) error {
	c.mu.Lock()
	if c.done != nil {
		c.mu.Unlock()
		return errors.New("connect: the client is in use already")
	}
	ctx, c.cancel = context.WithCancel(ctx)
	c.done = make(chan struct{})
	c.mu.Unlock()

	try := 0
	c.setPhase(fivetuple.PhaseConnecting, nil)
	conn, err := c.dial(ctx)
	if err != nil {
		conn, try, err = c.reconnect(ctx, try, err)
	}
	if err != nil {
		c.giveUp(err)
		return err
	}
	go c.run(ctx, conn, try)
	return nil
}

// run reads the connection to its end and replaces it, until it cannot.
func (c *Client) run(ctx context.Context, conn net.Conn, try int) {
	for {
		began := time.Now()
		received, err := c.read(ctx, conn)
		if received > 0 || time.Since(began) >= c.delay(1) {
			try = 0
		}
		if ctx.Err() == nil {
			conn, try, err = c.reconnect(ctx, try, err)
		}
		if ctx.Err() != nil {
			if err == nil && conn != nil {
				conn.Close()
			}
			c.giveUp(nil)
			return
		}
		if err != nil {
			c.giveUp(err)
			return
		}
	}
}

// reconnect tries to connect until it succeeds or the tries are used up, of
// which so many were made before. why is the last thing that went wrong.
func (c *Client) reconnect(ctx context.Context, try int, why error) (net.Conn, int, error) {
	tries := c.Tries
	if tries == 0 {
		tries = DefaultTries
	}
	for try < tries {
		c.setPhase(fivetuple.PhaseConnecting, why)
		try++
		if !sleep(ctx, c.delay(try)) {
			return nil, try, fmt.Errorf("connect %s: %w, after: %w", c.Endpoint, ctx.Err(), why)
		}
		conn, err := c.dial(ctx)
		if err == nil {
			return conn, try, nil
		}
		why = err
	}
	if tries > 0 {
		why = fmt.Errorf("gave up on %s after %d tries: %w", c.Endpoint, tries, why)
	}
	return nil, try, why
}

// delay is the pause before the given try, counted from 1.
func (c *Client) delay(try int) time.Duration {
	d, limit := c.Delay, c.MaxDelay
	if d <= 0 {
		d = DefaultDelay
	}
	if limit <= 0 {
		limit = DefaultMaxDelay
	}
	if try <= DefaultTries {
		return d
	}
	for range try - DefaultTries {
		d = min(2*d, limit)
	}
	return min(time.Duration(float64(d)*(0.8+0.4*rand.Float64())), limit)
}

func sleep(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-ctx.Done():
		return false
	}
}

func (c *Client) dial(ctx context.Context) (net.Conn, error) {
	ctx, cancel := context.WithTimeout(ctx, c.timeout())
	defer cancel()
	connect := c.Dial
	if connect == nil {
		connect = func(ctx context.Context) (net.Conn, error) { return c.Dialer.Dial(ctx, c.Endpoint) }
	}
	conn, err := connect(ctx)
	if err != nil {
		c.record(stats.Event{Kind: stats.Error, Tuple: c.target(), Err: err.Error()})
		return nil, err
	}
	tuple := fivetuple.TupleOf(protocolOf(conn.LocalAddr()), conn)
	c.mu.Lock()
	c.conn, c.tuple, c.sendErr = conn, tuple, nil
	c.out.Store(0)
	c.mu.Unlock()
	c.record(stats.Event{Kind: stats.Connect, Tuple: tuple})
	c.setPhase(fivetuple.PhaseConnected, nil)
	return conn, nil
}

func (c *Client) timeout() time.Duration {
	if c.Timeout > 0 {
		return c.Timeout
	}
	return DefaultTimeout
}

// read hands over what arrives until the connection ends. It returns how much
// that was and why the connection ended.
func (c *Client) read(ctx context.Context, conn net.Conn) (in uint64, err error) {
	stop := context.AfterFunc(ctx, func() { conn.Close() })
	defer stop()
	began := time.Now()
	var reader chunkReader
	reader.init(conn)
	for err == nil {
		var b []byte
		b, err = reader.read()
		in += uint64(len(b))
		if len(b) > 0 {
			if c.OnData != nil {
				c.OnData(b)
			}
			reader.release()
		}
	}
	c.mu.Lock()
	tuple := c.tuple
	c.conn = nil
	if c.sendErr != nil {
		err = c.sendErr
	}
	c.mu.Unlock()
	e := stats.Event{Kind: stats.Disconnect, Tuple: tuple, Cause: causeOf(err), TCP: finalInfo(conn),
		BytesIn: in, BytesOut: c.out.Load(), Duration: time.Since(began)}
	conn.Close()
	if ctx.Err() != nil {
		e.Cause = causeClosed
	} else if e.Cause != causePeerClosed {
		e.Err = err.Error()
	}
	c.record(e)
	return in, err
}

// Send writes b whole. While there is no connection it refuses with
// ErrNotConnected; it keeps nothing for later.
func (c *Client) Send(b []byte) error {
	c.mu.Lock()
	conn := c.conn
	c.mu.Unlock()
	if conn == nil {
		return fmt.Errorf("send to %s: %w", c.Endpoint, ErrNotConnected)
	}
	c.sendMu.Lock()
	defer c.sendMu.Unlock()
	conn.SetWriteDeadline(time.Now().Add(c.timeout()))
	n, err := conn.Write(b)
	c.out.Add(uint64(n))
	if err == nil {
		return nil
	}
	c.mu.Lock()
	if c.conn == conn && c.sendErr == nil {
		c.sendErr = err
	}
	c.mu.Unlock()
	conn.Close() // part of b may be gone: the stream is broken
	return fmt.Errorf("send to %s: %w", c.Endpoint, err)
}

// Phase is closed, connecting or connected.
func (c *Client) Phase() fivetuple.Phase {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.phase
}

// Tuple names the connection, or the last one.
func (c *Client) Tuple() fivetuple.Tuple {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.tuple
}

// TCPInfo is what the kernel knows about the connection. The error is
// ErrNotConnected while there is none.
func (c *Client) TCPInfo() (sockopt.TCPInfo, error) {
	c.mu.Lock()
	conn := c.conn
	c.mu.Unlock()
	if conn == nil {
		return sockopt.TCPInfo{}, ErrNotConnected
	}
	sc, ok := secure.NetConn(conn).(syscall.Conn)
	if !ok {
		return sockopt.TCPInfo{}, fmt.Errorf("get TCP_INFO of %s: %w", c.Endpoint, errors.ErrUnsupported)
	}
	return sockopt.TCPInfoOf(sc)
}

// Done is closed when the client has given up or is closed; nil before Connect.
func (c *Client) Done() <-chan struct{} {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.done
}

// Err is why the client gave up, nil if it did not.
func (c *Client) Err() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.err
}

// Close ends the connection, or the attempts to get one, and waits until both are gone.
func (c *Client) Close() error {
	c.mu.Lock()
	cancel, done := c.cancel, c.done
	c.mu.Unlock()
	if cancel == nil {
		return nil
	}
	cancel()
	<-done
	return nil
}

func (c *Client) giveUp(err error) {
	c.mu.Lock()
	c.err = err
	cancel, done := c.cancel, c.done
	c.mu.Unlock()
	cancel()
	c.setPhase(fivetuple.PhaseClosed, err)
	close(done)
}

func (c *Client) setPhase(p fivetuple.Phase, err error) {
	c.mu.Lock()
	changed := c.phase != p
	c.phase = p
	c.mu.Unlock()
	if c.OnPhase != nil && (changed || err != nil) {
		c.OnPhase(p, err)
	}
}

// target names what is connected to before there is a connection.
func (c *Client) target() fivetuple.Tuple {
	t := fivetuple.Tuple{Protocol: c.Endpoint.Network.Protocol(), Remote: fivetuple.Address{Name: c.Endpoint.Path}}
	if a, ok := c.Endpoint.Addr(); ok {
		t.Remote.AddrPort = netip.AddrPortFrom(a, c.Endpoint.Ports.First)
	}
	return t
}

func (c *Client) record(e stats.Event) {
	if c.Sink == nil {
		return
	}
	e.Time, e.Service = time.Now(), c.Service
	c.Sink.Record(e)
}

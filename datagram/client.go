package datagram

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"github.com/fivetuple/fivetuple"
	"github.com/fivetuple/fivetuple/internal/quota"
	"github.com/fivetuple/fivetuple/sockopt"
	"github.com/fivetuple/fivetuple/stats"
)

// ErrNotConnected is what sending answers before Connect and after Close.
var ErrNotConnected = errors.New("not connected")

// Client talks to one endpoint: a host, a group, a broadcast address, or a Unix
// socket; see [Dialer.Dial]. An error does not end it, since the other side may come back. Set
// the fields, then call Connect.
type Client struct {
	Endpoint fivetuple.Endpoint
	Service  string           // name in events
	Sink     stats.Sink       // where events go; nil discards them
	Options  sockopt.Settings // set on the socket before it is connected
	// OnData is called with each datagram that arrives and where it came from,
	// in order; the slice is its own until it returns.
	OnData func(b []byte, from fivetuple.Address)
	// OnError is called with what fails outside of a call of Send: an
	// [*ICMPError] is what the network says about datagrams sent.
	OnError func(error)

	mu     sync.Mutex
	conn   *Conn // nil before Connect
	errors quota.PerSecond
	cancel context.CancelFunc // nil before Connect, and after one that failed
	done   chan struct{}      // closed when the client is at its end

	bytesIn, bytesOut, packetsIn, packetsOut atomic.Uint64
}

// Connect opens the socket. The client then receives until Close or the end of
// ctx. If it fails it can be called again; once it has succeeded it cannot.
func (c *Client) Connect(ctx context.Context) error {
	c.mu.Lock()
	if c.cancel != nil {
		c.mu.Unlock()
		return errors.New("connect: the client is in use already")
	}
	ctx, cancel := context.WithCancel(ctx)
	c.cancel, c.done = cancel, make(chan struct{})
	c.mu.Unlock()

	conn, err := Dialer{Options: c.Options}.Dial(ctx, c.Endpoint)
	if err != nil {
		c.record(stats.Event{Kind: stats.Error, Tuple: c.target(), Err: err.Error()})
		cancel()
		c.mu.Lock()
		close(c.done)
		c.cancel = nil
		c.mu.Unlock()
		return err
	}
	c.mu.Lock()
	c.conn = conn
	c.mu.Unlock()
	c.record(stats.Event{Kind: stats.Connect, Tuple: conn.tuple()})
	go c.run(ctx, conn)
	return nil
}

// run receives until the socket is closed.
func (c *Client) run(ctx context.Context, conn *Conn) {
	defer close(c.done)
	defer c.cancel()
	context.AfterFunc(ctx, func() { conn.Close() })
	began := time.Now()
	var p Packet
	failures := 0
	for {
		err := conn.Receive(&p)
		if errors.Is(err, net.ErrClosed) {
			break
		}
		if err != nil {
			c.failed(err)
			var icmp *ICMPError                                             // no more of these than datagrams sent
			if failures++; failures > maxErrors && !errors.As(err, &icmp) { // a socket that only fails must not eat a processor
				sleep(ctx, 10*time.Millisecond)
			}
			continue
		}
		failures = 0
		c.bytesIn.Add(uint64(len(p.Data)))
		c.packetsIn.Add(1)
		if c.OnData != nil {
			c.OnData(p.Data, p.From)
		}
	}
	c.record(stats.Event{Kind: stats.Disconnect, Tuple: conn.tuple(), Cause: causeClosed, Duration: time.Since(began),
		BytesIn: c.bytesIn.Load(), BytesOut: c.bytesOut.Load(), PacketsIn: c.packetsIn.Load(), PacketsOut: c.packetsOut.Load()})
}

// failed hands on an error that is no answer to a call.
func (c *Client) failed(err error) {
	c.mu.Lock()
	ok := c.errors.Take(time.Now(), maxErrors)
	c.mu.Unlock()
	if ok {
		c.record(stats.Event{Kind: stats.Error, Tuple: c.Tuple(), Err: err.Error()})
	}
	if c.OnError != nil {
		c.OnError(err)
	}
}

// Send sends b as one datagram. The error is about b: what ICMP says about
// earlier ones goes to OnError.
func (c *Client) Send(b []byte) error {
	c.mu.Lock()
	conn := c.conn
	c.mu.Unlock()
	if conn == nil {
		return fmt.Errorf("send to %s: %w", c.Endpoint, ErrNotConnected)
	}
	err := conn.Send(b)
	switch {
	case errors.Is(err, net.ErrClosed):
		return fmt.Errorf("send to %s: %w", c.Endpoint, ErrNotConnected)
	case err != nil:
		return err
	}
	c.bytesOut.Add(uint64(len(b)))
	c.packetsOut.Add(1)
	return nil
}

// Tuple names the socket; Remote is where it sends to. It is the zero Tuple before Connect.
func (c *Client) Tuple() fivetuple.Tuple {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.conn == nil {
		return fivetuple.Tuple{}
	}
	return c.conn.tuple()
}

// Done is closed when the client is at its end; nil before Connect.
func (c *Client) Done() <-chan struct{} {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.done
}

// Close closes the socket and waits until nothing is called back any more. It
// must not be called from OnData or OnError.
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

// target names what is sent to before there is a socket.
func (c *Client) target() fivetuple.Tuple {
	t := fivetuple.Tuple{Protocol: c.Endpoint.Network.Protocol()}
	if a, ok := c.Endpoint.Addr(); ok {
		t.Remote.AddrPort = netip.AddrPortFrom(a, c.Endpoint.Ports.First)
	}
	if c.Endpoint.Network.IsUnix() {
		t.Remote.Name = c.Endpoint.Path
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

func sleep(ctx context.Context, d time.Duration) {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
	case <-ctx.Done():
	}
}

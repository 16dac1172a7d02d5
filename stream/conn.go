package stream

import (
	"context"
	"crypto/tls"
	"errors"
	"io"
	"math"
	"net"
	"net/netip"
	"os"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/fivetuple/fivetuple"
	"github.com/fivetuple/fivetuple/ancillary"
	"github.com/fivetuple/fivetuple/internal/acl"
	"github.com/fivetuple/fivetuple/internal/quota"
	"github.com/fivetuple/fivetuple/secure"
	"github.com/fivetuple/fivetuple/sockopt"
	"github.com/fivetuple/fivetuple/stats"
)

// Errors of sending to a connection.
var (
	ErrNoConn = errors.New("no such connection")
	ErrSlow   = errors.New("client too slow: its write queue is full, it was dropped")
)

// Why a connection ended, as events and history name it.
const (
	causeDone        = "done"
	causePeerClosed  = "peer closed"
	causePeerReset   = "peer reset"
	causeClosed      = "closed"
	causeFailed      = "failed"
	causeTimedOut    = "timed out"
	causeIdle        = "idle timeout"
	causeNoFirstByte = "no first byte"
	causeSlow        = "too slow"
	causeCut         = "cut"
	causeDrained     = "drained"
	causeShutdown    = "reset at shutdown"
	causeHandshake   = "handshake failed"
	causeCommand     = "command failed"
)

// flushTimeout bounds how long a connection is kept, when its handler is done,
// until the peer has everything that was written to it.
const flushTimeout = 5 * time.Second

// Conn is a connection of a [Server]. It counts what goes through it and knows
// its id. Read, Write and the rest of net.Conn work as usual, from any
// goroutine.
type Conn struct {
	net.Conn          // what handlers read and write: raw, or TLS over it
	raw      net.Conn // as it was accepted
	secured  atomic.Pointer[tls.Conn]
	client   net.Addr // named by a proxy, else nil
	peer     *ancillary.Credentials
	given    givenSocket
	server   *Server
	id       uint64
	tuple    fivetuple.Tuple
	source   netip.Addr
	started  time.Time
	ctx      context.Context
	cancel   context.CancelFunc
	reader   chunkReader
	queue    writeQueue

	in, out atomic.Uint64
	active  atomic.Int64 // nanoseconds since started, when a byte was last moved
	writeMu sync.Mutex   // held by the Write under way
	writing atomic.Int32 // calls of Write under way
	closing sync.WaitGroup
	endOnce sync.Once
	cause   string // set once by endOnce, with end
	end     error

	eventMu  sync.Mutex // orders Data before Disconnect
	ended    bool       // Disconnect is recorded
	reported struct {
		at      time.Time
		in, out uint64
	}
}

var _ net.Conn = (*Conn)(nil)

func newConn(s *Server, id uint64, nc net.Conn) *Conn {
	c := &Conn{Conn: nc, raw: nc, server: s, id: id, started: time.Now()}
	c.tuple = fivetuple.TupleOf(protocolOf(nc.LocalAddr()), nc)
	if ap := c.tuple.Remote.AddrPort; ap.IsValid() {
		c.source = acl.Source(ap)
	}
	c.ctx, c.cancel = context.WithCancel(context.Background())
	c.reader.init(nc)
	c.queue.held = s.TLS != nil
	c.reported.at = c.started
	return c
}

// ID is the connection's number, which its server never uses again.
func (c *Conn) ID() uint64 { return c.id }

// Tuple names the connection; Local is this side. Remote is the client, also if
// it comes by one of Server.Proxies.
func (c *Conn) Tuple() fivetuple.Tuple { return c.tuple }

// RemoteAddr implements net.Conn: it is the Remote of [Conn.Tuple].
func (c *Conn) RemoteAddr() net.Addr {
	if c.client != nil {
		return c.client
	}
	return c.raw.RemoteAddr()
}

// NetConn is the connection below: TLS or the socket itself, as [secure.NetConn]
// finds it. What is read from it or written to it is not counted.
func (c *Conn) NetConn() net.Conn { return c.Conn }

// Server is what accepted the connection.
func (c *Conn) Server() *Server { return c.server }

// Read implements net.Conn.
func (c *Conn) Read(b []byte) (int, error) {
	n, err := c.Conn.Read(b)
	c.moved(&c.in, n)
	return n, err
}

// Write implements net.Conn. Large writes go out in pieces, so that a slow one
// is seen to move; writes of several goroutines do not mix. A record of a
// seqpacket socket is one write.
func (c *Conn) Write(b []byte) (written int, err error) {
	c.writing.Add(1)
	defer c.writing.Add(-1)
	c.writeMu.Lock()
	defer c.writeMu.Unlock()
	for {
		piece := b
		if len(piece) > chunkSize && c.tuple.Protocol != fivetuple.Seqpacket {
			piece = piece[:chunkSize]
		}
		n, err := c.Conn.Write(piece)
		c.moved(&c.out, n)
		written += n
		if b = b[n:]; err != nil || len(b) == 0 {
			return written, err
		}
	}
}

// sending says whether bytes are on their way to the peer.
func (c *Conn) sending() bool {
	if c.writing.Load() > 0 {
		return true
	}
	tc, ok := c.raw.(*net.TCPConn)
	return ok && !delivered(tc)
}

// delivered says whether the peer has acknowledged everything written to it.
func delivered(tc *net.TCPConn) bool {
	i, err := sockopt.TCPInfoOf(tc)
	return err != nil || i.Unacked == 0 && i.NotSentBytes == 0
}

// ReadFrom implements [io.ReaderFrom], for io.Copy: a file goes out by
// sendfile(2) where the connection is plain TCP, and counts as it goes.
func (c *Conn) ReadFrom(r io.Reader) (written int64, err error) {
	limit := int64(math.MaxInt64)
	lr, limited := r.(*io.LimitedReader)
	if limited {
		r, limit = lr.R, lr.N
	}
	f, isFile := r.(*os.File)
	tc, plain := c.Conn.(*net.TCPConn)
	if !isFile || !plain {
		if limited {
			r = lr
		}
		return io.Copy(struct{ io.Writer }{c}, r)
	}
	c.writing.Add(1)
	defer c.writing.Add(-1)
	c.writeMu.Lock()
	defer c.writeMu.Unlock()
	for written < limit {
		n, err := tc.ReadFrom(io.LimitReader(f, min(chunkSize, limit-written)))
		c.moved(&c.out, int(n))
		written += n
		if limited {
			lr.N -= n
		}
		if n == 0 || err != nil {
			return written, err
		}
	}
	return written, nil
}

// Close implements net.Conn.
func (c *Conn) Close() error {
	c.setCause(causeClosed, nil)
	return c.close()
}

func (c *Conn) close() error {
	c.cancel()
	switch t := c.secured.Load(); {
	case c.given.away.Load(): // closed by finish, when it has been taken back
		return nil
	case t != nil:
		return t.Close()
	}
	return c.raw.Close()
}

// CloseWrite sends end of file to the peer and goes on reading, where the
// transport can (TCP, TLS, Unix sockets and vsock).
func (c *Conn) CloseWrite() error { return closeWrite(c.Conn) }

func closeWrite(nc net.Conn) error {
	if hc, ok := nc.(interface{ CloseWrite() error }); ok {
		return hc.CloseWrite()
	}
	return errors.ErrUnsupported
}

func (c *Conn) moved(counter *atomic.Uint64, n int) {
	if n > 0 {
		counter.Add(uint64(n))
		c.active.Store(int64(time.Since(c.started)))
	}
}

// idleFor is how long ago a byte was last moved.
func (c *Conn) idleFor() time.Duration {
	return time.Since(c.started) - time.Duration(c.active.Load())
}

// setCause records why the connection ends; the first reason given stays.
func (c *Conn) setCause(cause string, err error) {
	c.endOnce.Do(func() { c.cause, c.end = cause, err })
}

// closeBecause closes the connection, for a reason that others than its handler
// have. They are not kept waiting by TLS, which says goodbye to the peer.
func (c *Conn) closeBecause(cause string, err error) {
	c.endOnce.Do(func() {
		c.cause, c.end = cause, err
		if c.secured.Load() == nil {
			c.close()
			return
		}
		c.closing.Go(func() { c.close() })
	})
}

func (c *Conn) resetBecause(cause string) {
	c.setCause(cause, nil)
	c.cancel()
	if c.given.away.Load() {
		if tc, ok := c.raw.(*net.TCPConn); ok {
			tc.SetLinger(0) // for the last who closes it
		}
		return
	}
	reset(c.raw)
}

// reset closes a connection at once: TCP sends RST and forgets unsent data.
func reset(nc net.Conn) {
	if tc, ok := nc.(*net.TCPConn); ok {
		tc.SetLinger(0)
	}
	nc.Close()
}

// finish is called once, when the handler has returned.
func (c *Conn) finish(err error) {
	c.setCause(causeOf(err), err)
	c.cancel()
	c.closing.Wait()
	orderly := c.cause == causePeerClosed || c.cause == causeDone
	if orderly || c.cause == causeCommand {
		c.flush()
	}
	c.look()
	info := finalInfo(c.raw)
	c.Conn.Close()
	c.queue.close()
	e := stats.Event{
		Kind: stats.Disconnect, Tuple: c.tuple, Conn: c.id, Cause: c.cause, TCP: info,
		BytesIn: c.in.Load(), BytesOut: c.out.Load(), Duration: time.Since(c.started),
	}
	if c.end != nil && !orderly {
		e.Err = c.end.Error()
	}
	c.eventMu.Lock()
	defer c.eventMu.Unlock()
	c.ended = true
	c.server.events.Record(e)
}

// flush sends what is still queued for the peer and end of file, and waits, at
// most flushTimeout, until the peer has all of it. A plain close would not do:
// what arrives after it is answered by a reset, which makes the peer throw
// away what it has not read yet (RFC 1122 section 4.2.2.13); and a kernel short
// of TCP memory resets closed sockets that still have something to send.
func (c *Conn) flush() {
	deadline := time.Now().Add(flushTimeout)
	c.SetDeadline(deadline)
	c.queue.close()
	if c.CloseWrite() != nil {
		return
	}
	if c.secured.Load() != nil { // some wait for the FIN after TLS has said goodbye
		closeWrite(c.raw)
	}
	for { // to the peer's end of file; not counted, as the handler did not want it
		b, err := c.reader.read()
		if len(b) > 0 {
			c.reader.release()
		}
		if err != nil {
			break
		}
	}
	tc, ok := c.raw.(*net.TCPConn)
	if !ok {
		return
	}
	wait := quota.Backoff{Min: time.Millisecond, Max: 50 * time.Millisecond}
	for time.Now().Before(deadline) {
		if delivered(tc) {
			return
		}
		time.Sleep(wait.Next())
	}
}

func causeOf(err error) string {
	var command *commandError
	switch {
	case err == nil:
		return causeDone
	case errors.As(err, &command):
		return causeCommand
	case errors.Is(err, io.EOF):
		return causePeerClosed
	case errors.Is(err, syscall.ECONNRESET) || errors.Is(err, syscall.EPIPE):
		return causePeerReset
	case errors.Is(err, net.ErrClosed):
		return causeClosed
	case errors.Is(err, syscall.ETIMEDOUT) || isTimeout(err):
		return causeTimedOut
	}
	return causeFailed
}

// finalInfo is the kernel's last view of a TCP connection, nil where there is none.
func finalInfo(nc net.Conn) *stats.TCP {
	tc, ok := secure.NetConn(nc).(*net.TCPConn)
	if !ok {
		return nil
	}
	i, err := sockopt.TCPInfoOf(tc)
	if err != nil {
		return nil
	}
	return &stats.TCP{RTT: i.RTT, RTTVar: i.RTTVar, Retransmits: i.TotalRetrans, Cwnd: i.SndCwnd, MSS: i.SndMSS}
}

// reportData records a Data event if the last is older than every and bytes
// were moved since.
func (c *Conn) reportData(every time.Duration) {
	c.eventMu.Lock()
	defer c.eventMu.Unlock()
	if c.ended || time.Since(c.reported.at) < every {
		return
	}
	in, out := c.in.Load(), c.out.Load()
	if in == c.reported.in && out == c.reported.out {
		return
	}
	c.reported.at, c.reported.in, c.reported.out = time.Now(), in, out
	c.server.events.Record(stats.Event{Kind: stats.Data, Tuple: c.tuple, Conn: c.id, BytesIn: in, BytesOut: out})
}

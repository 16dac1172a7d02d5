package loop

import (
	"fmt"
	"net/netip"
	"os"
	"syscall"
	"time"
	"unique"

	"github.com/fivetuple/fivetuple"
	"github.com/fivetuple/fivetuple/internal/poll"
	"github.com/fivetuple/fivetuple/sockopt"
	"github.com/fivetuple/fivetuple/stats"
)

// conn is a connection. It belongs to a loop, whose mutex guards it, and lies in
// the loop's table: what is small here is small a hundred thousand times. Times
// are the server's clock.
type conn struct {
	id       uint64
	in, out  uint64 // bytes moved
	started  int64
	active   int64 // when a byte was last moved
	reported int64 // when its totals were, in a Data event
	ends     int64 // when a closing one is closed at the latest
	local    unique.Handle[fivetuple.Address]
	remote   netip.AddrPort
	queue    *queue // what waits to be written; nil if nothing does
	extra    *extra // nil for most
	fd       int32
	slot     int32
	gen      uint32 // which of those that had the slot: events of earlier ones may be on their way
	pos      uint16 // chargen: where in the pattern it is
	flags    flags
	state    state
	cause    cause // of a closing one
}

// extra is what few connections have.
type extra struct {
	peerName string // of a Unix socket
	line     []byte // chat: the beginning of a line
}

type state uint8

const (
	free    state = iota
	open          // served
	closing       // all is said: what waits is still written, and the peer takes it
)

type flags uint16

const (
	isTCP      flags = 1 << iota
	lingers          // closing it may wait
	tellsRoom        // the poller tells when there is room to write
	waits            // it is in the loop's list of those to go on with
	readOn           // a short read does not mean that all is read
	unreported       // bytes were moved since reported
	shut             // end of file is sent
	peerEnded        // and received
)

func (c *conn) is(f flags) bool { return c.flags&f != 0 }

// cause is why a connection ended.
type cause uint8

const (
	causeDone cause = iota
	causePeerClosed
	causePeerReset
	causeFailed
	causeTimedOut
	causeIdle
	causeNoFirstByte
	causeSlow
	causeCut
	causeDrained
	causeShutdown
)

// As events of package stream name them.
var causeNames = [...]string{"done", "peer closed", "peer reset", "failed", "timed out", "idle timeout",
	"no first byte", "too slow", "cut", "drained", "reset at shutdown"}

// flushTimeout bounds how long a connection is kept, when all is said, until the
// peer has everything that was written to it.
const flushTimeout = 5 * time.Second

func (c *conn) tuple() fivetuple.Tuple {
	t := fivetuple.Tuple{Protocol: fivetuple.Unix, Local: c.local.Value(), Remote: fivetuple.Address{AddrPort: c.remote}}
	if c.is(isTCP) {
		t.Protocol = fivetuple.TCP
	}
	if c.extra != nil {
		t.Remote.Name = c.extra.peerName
	}
	return t
}

// sending says whether bytes are on their way to the peer.
func (c *conn) sending() bool { return c.queue != nil || !c.delivered() }

// delivered says whether the peer has acknowledged everything written to it.
func (c *conn) delivered() bool {
	if !c.is(isTCP) {
		return true
	}
	i, err := sockopt.GetTCPInfo(int(c.fd))
	return err != nil || i.Unacked == 0 && i.NotSentBytes == 0
}

// moved counts bytes.
func (l *loop) moved(c *conn, counter *uint64, n int) {
	*counter += uint64(n)
	c.active = l.now
	if !c.is(unreported) {
		c.flags |= unreported
		l.arm(c)
	}
}

// write writes b, or as much as there is room for. It reports how much, and
// whether the connection still is.
func (l *loop) write(c *conn, b []byte, more bool) (int, bool) {
	n, errno := poll.Write(int(c.fd), b, more)
	switch {
	case errno == syscall.EAGAIN:
		return 0, true
	case errno != 0:
		l.fail(c, "write", errno)
		return 0, false
	}
	l.moved(c, &c.out, n)
	return n, true
}

// fail ends a connection that a system call failed on.
func (l *loop) fail(c *conn, op string, errno syscall.Errno) {
	if c.state == closing {
		l.close(c, c.cause, nil)
		return
	}
	t := c.tuple()
	err := fmt.Errorf("%s %s %s->%s: %w", op, t.Protocol, t.Local, t.Remote, os.NewSyscallError(op, errno))
	switch errno {
	case syscall.ECONNRESET, syscall.EPIPE:
		l.close(c, causePeerReset, err)
	case syscall.ETIMEDOUT:
		l.close(c, causeTimedOut, err)
	default:
		l.close(c, causeFailed, err)
	}
}

// finish ends a connection on which all is said: because the peer ended its
// side, or this side has no more. A plain close would not do: what arrives
// after it is answered by a reset, which makes the peer throw away what it has
// not read yet (RFC 1122 section 4.2.2.13).
func (l *loop) finish(c *conn, why cause) {
	c.state = closing
	c.cause = why
	c.ends = l.now + int64(flushTimeout)
	if c.extra != nil {
		c.extra.line = nil
	}
	l.flush(c)
	if c.state == closing {
		l.arm(c)
	}
}

// flush goes on with the end of a connection: writes what waits and end of
// file, reads to the peer's, which is not counted, and closes when the peer has
// all. TCP tells by an event when the last of it is acknowledged.
func (l *loop) flush(c *conn) {
	if c.queue != nil && (!l.drainQueue(c) || c.queue != nil) {
		return
	}
	if !c.is(shut) {
		if poll.CloseWrite(int(c.fd)) != nil {
			l.close(c, c.cause, nil)
			return
		}
		c.flags |= shut
	}
	for turn := 0; !c.is(peerEnded); turn++ {
		if turn == readsPerTurn {
			l.goOn(c)
			return
		}
		n, errno := poll.Read(int(c.fd), l.buf)
		switch {
		case errno == syscall.EAGAIN:
			return
		case errno != 0:
			l.close(c, c.cause, nil)
			return
		case n == 0:
			c.flags |= peerEnded
		}
	}
	if c.delivered() {
		l.close(c, c.cause, nil)
	}
}

// reset closes a connection at once: TCP sends RST and forgets unsent data.
func (l *loop) reset(c *conn, why cause) {
	if c.state == closing {
		why = c.cause // the first reason stays
	}
	l.remove(c, why, nil, poll.Reset)
}

// close closes a connection.
func (l *loop) close(c *conn, why cause, err error) {
	if c.state == closing {
		why, err = c.cause, nil
	}
	closeFD := poll.Close
	if c.is(lingers) {
		closeFD = func(fd int) { // the loop has no time to wait
			poll.DoNotLinger(fd)
			poll.Close(fd)
		}
	}
	l.remove(c, why, err, closeFD)
}

func (l *loop) remove(c *conn, why cause, err error, closeFD func(int)) {
	e := stats.Event{
		Kind: stats.Disconnect, Conn: c.id, Cause: causeNames[why],
		BytesIn: c.in, BytesOut: c.out, Duration: time.Duration(l.now - c.started),
	}
	if err != nil {
		e.Err = err.Error()
	}
	if l.server.Sink != nil {
		e.Tuple = c.tuple()
		if c.is(isTCP) {
			e.TCP = tcpOf(int(c.fd))
		}
		l.note(e)
	}
	closeFD(int(c.fd))
	id, client := c.id, c.remote
	l.drop(c)
	l.server.gate.Leave(id, client)
}

// tcpOf is the kernel's last view of a TCP connection, nil if there is none.
func tcpOf(fd int) *stats.TCP {
	i, err := sockopt.GetTCPInfo(fd)
	if err != nil {
		return nil
	}
	return &stats.TCP{RTT: i.RTT, RTTVar: i.RTTVar, Retransmits: i.TotalRetrans, Cwnd: i.SndCwnd, MSS: i.SndMSS}
}

package join

import (
	"errors"
	"net"
	"os"
	"slices"
	"time"

	"github.com/fivetuple/fivetuple/secure"
)

// Keep is the end for one Run of several: its CloseWrite and Close do nothing, and a
// Read that was not finished waits for the next Run, as do bytes that were read and
// could not be written any more. It is for a [Stdio], or a connection with deadlines,
// that serves one peer after the other.
func Keep(e End) *Kept { return &Kept{End: e} }

// Kept is an end from [Keep].
type Kept struct {
	End
	rest []byte // read, and not passed on
	err  error  // of reading, after rest
}

// Read implements [End].
func (k *Kept) Read(p []byte) (int, error) {
	if len(k.rest) > 0 {
		n := copy(p, k.rest)
		k.rest = k.rest[n:]
		return n, nil
	}
	if k.err != nil {
		return 0, k.err
	}
	return k.End.Read(p)
}

// unread gives bytes back to be read first.
func (k *Kept) unread(b []byte) { k.rest = append(slices.Clone(b), k.rest...) }

// Ended says, between two Runs, whether the end has come to its end of file, after
// waiting so long for what it has to say.
func (k *Kept) Ended(patience time.Duration) bool {
	if len(k.rest) > 0 || k.err != nil {
		return len(k.rest) == 0
	}
	interrupted := make(chan struct{})
	stop := time.AfterFunc(patience, func() {
		defer close(interrupted)
		interrupt(k)
	})
	b := make([]byte, 32<<10)
	n, err := k.End.Read(b)
	if !stop.Stop() {
		<-interrupted
		k.Close() // it is over
	}
	k.rest = b[:n]
	if err != nil && !errors.Is(err, os.ErrDeadlineExceeded) {
		k.err = err
	}
	return n == 0 && k.err != nil
}

// Close ends a Run.
func (k *Kept) Close() error {
	switch e := k.End.(type) {
	case *stdio:
		e.resume()
	case deadliner:
		return e.SetDeadline(time.Time{})
	}
	return nil
}

type closeWriter interface{ CloseWrite() error }

type deadliner interface{ SetDeadline(time.Time) error }

// ends says whether the peer of e is told that no more comes. A Unix datagram socket
// has a CloseWrite that tells it nothing.
func ends(e End) bool {
	if c, ok := e.(net.Conn); ok && c.LocalAddr() != nil && c.LocalAddr().Network() == "unixgram" {
		return false
	}
	_, ok := e.(closeWriter)
	return ok
}

// separate says whether reading and writing e fail apart from each other.
func separate(e End) bool {
	if k, ok := e.(*Kept); ok {
		e = k.End
	}
	_, ok := e.(*stdio)
	return ok
}

// interrupt makes every Read and Write of e return.
func interrupt(e End) {
	if k, ok := e.(*Kept); ok {
		e = k.End
	}
	if s, ok := e.(*stdio); ok {
		s.interrupt()
		return
	}
	if d, ok := e.(deadliner); ok && d.SetDeadline(time.Unix(1, 0)) == nil {
		return
	}
	e.Close()
}

// reset closes a TCP connection so that its peer sees what it sent as lost, and
// before TLS can say that all is well.
func reset(e End) {
	c, ok := e.(net.Conn)
	if !ok {
		return
	}
	if tc, ok := secure.NetConn(c).(*net.TCPConn); ok {
		tc.SetLinger(0)
		tc.Close()
	}
}

// closeEnd closes e. A TLS connection says goodbye when it is closed and would wait
// five seconds for a peer that does not read.
func closeEnd(e End) {
	if t, ok := e.(interface{ NetConn() net.Conn }); ok {
		defer time.AfterFunc(250*time.Millisecond, func() { secure.NetConn(t.NetConn()).Close() }).Stop()
	}
	e.Close()
}

// linger waits until the peer of a TCP connection has all that was written to it, for
// a second at most, and reads what comes meanwhile. A connection that is closed with
// bytes unread, or gets some after it, is reset, and what is under way is lost
// (RFC 2525, section 2.17).
func linger(e End) {
	c, ok := e.(net.Conn)
	if !ok {
		return
	}
	c = secure.NetConn(c)
	if c.LocalAddr() == nil || c.LocalAddr().Network() != "tcp" || unsent(c) == 0 {
		return
	}
	if w, ok := e.(closeWriter); !ok || w.CloseWrite() != nil {
		return
	}
	buf := make([]byte, 64<<10)
	for end := time.Now().Add(time.Second); unsent(c) > 0 && time.Now().Before(end); {
		c.SetReadDeadline(time.Now().Add(5 * time.Millisecond))
		if _, err := c.Read(buf); err != nil && !errors.Is(err, os.ErrDeadlineExceeded) {
			return // its end, after which nothing comes, or a reset
		}
	}
}

package datagram

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"sync"
	"time"

	"github.com/fivetuple/fivetuple"
	"github.com/fivetuple/fivetuple/internal/acl"
)

// TalkOptions say with whom a [Talk] is. The zero value is with the first sender.
type TalkOptions struct {
	Keep        bool                    // with anyone; answers go to whom was heard from last
	Allow, Deny []netip.Prefix          // as in [Limits]; what others send is dropped
	OnPeer      func(fivetuple.Address) // called by Read when the sender is another than before; zero for a Unix socket without a name
}

// Talk is a conversation over a socket that waits for somebody to begin it, as
// a net.Conn. Read receives the next datagram of the peer, and Write answers
// it from the address that it wrote to. Somebody must read for Write to have
// somebody to write to.
type Talk struct {
	conn    *Conn
	options TalkOptions

	reading sync.Mutex
	packet  Packet // what Read receives into

	writing sync.Mutex
	control [controlOut]byte

	mu      sync.Mutex
	changed *sync.Cond // on mu: what follows has changed
	heard   bool
	peer    fivetuple.Address
	route   route
	closed  bool
	timer   *time.Timer // until the deadline of Write; nil if there is none
	expired bool        // that deadline has passed
}

var _ net.Conn = (*Talk)(nil)

// Talk makes a conversation of a socket, which it closes at the end.
func (c *Conn) Talk(o TalkOptions) *Talk {
	t := &Talk{conn: c, options: o}
	t.changed = sync.NewCond(&t.mu)
	return t
}

// Read receives one datagram: of the first sender, or with Keep of anyone. It
// returns 0 bytes for an empty datagram, and ErrTruncated with what fits in b
// of a longer one.
func (t *Talk) Read(b []byte) (int, error) {
	if len(b) == 0 {
		return 0, nil
	}
	t.reading.Lock()
	defer t.reading.Unlock()
	p := &t.packet
	for {
		p.Data = b[:0:len(b)]
		err := t.conn.Receive(p)
		n := len(p.Data)
		p.Data = nil
		if errors.Is(err, net.ErrClosed) {
			t.end()
		}
		if err != nil && !errors.Is(err, ErrTruncated) {
			return 0, err
		}
		if t.hear(p) {
			return n, err
		}
	}
}

// hear says whether a datagram belongs to the conversation.
func (t *Talk) hear(p *Packet) bool {
	if !(acl.List{Allow: t.options.Allow, Deny: t.options.Deny}).Allows(p.From.AddrPort.Addr()) {
		return false
	}
	t.mu.Lock()
	isNew := !t.heard || t.peer != p.From
	if t.heard && isNew && !t.options.Keep {
		t.mu.Unlock()
		return false
	}
	t.heard, t.peer, t.route = true, p.From, p.route
	t.mu.Unlock()
	if isNew {
		t.changed.Broadcast()
		if t.options.OnPeer != nil {
			t.options.OnPeer(p.From)
		}
	}
	return true
}

// Write sends b to the peer as one datagram, and waits until there is a peer.
// The error is ErrUnnamed if it cannot be answered.
func (t *Talk) Write(b []byte) (int, error) {
	to, r, err := t.waitPeer()
	if err != nil {
		return 0, fmt.Errorf("send on %s: %w", t.conn, err)
	}
	t.writing.Lock()
	defer t.writing.Unlock()
	if err := t.conn.sendFrom(b, to, r, t.control[:], forever); err != nil {
		return 0, err
	}
	return len(b), nil
}

// waitPeer waits until somebody was heard.
func (t *Talk) waitPeer() (fivetuple.Address, route, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for {
		switch {
		case t.closed:
			return fivetuple.Address{}, route{}, net.ErrClosed
		case t.expired:
			return fivetuple.Address{}, route{}, os.ErrDeadlineExceeded
		case t.heard:
			return t.peer, t.route, nil
		}
		t.changed.Wait()
	}
}

// Close closes the socket.
func (t *Talk) Close() error {
	t.end()
	return t.conn.Close()
}

// end ends the wait for a peer for good.
func (t *Talk) end() {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.closed = true
	if t.timer != nil {
		t.timer.Stop()
	}
	t.changed.Broadcast()
}

// LocalAddr is the socket's.
func (t *Talk) LocalAddr() net.Addr { return t.conn.LocalAddr() }

// RemoteAddr is the peer's; nil if there is none yet, or none that has a name.
func (t *Talk) RemoteAddr() net.Addr {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.conn.netAddr(t.peer)
}

// SetDeadline implements net.Conn.
func (t *Talk) SetDeadline(at time.Time) error {
	if err := t.SetReadDeadline(at); err != nil {
		return err
	}
	return t.SetWriteDeadline(at)
}

// SetReadDeadline implements net.Conn.
func (t *Talk) SetReadDeadline(at time.Time) error { return t.conn.SetReadDeadline(at) }

// SetWriteDeadline implements net.Conn. The wait for a peer ends by it too.
func (t *Talk) SetWriteDeadline(at time.Time) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.timer != nil {
		t.timer.Stop()
	}
	t.timer, t.expired = nil, false
	if !at.IsZero() && !t.closed {
		var timer *time.Timer
		timer = time.AfterFunc(time.Until(at), func() {
			t.mu.Lock()
			defer t.mu.Unlock()
			if t.timer == timer { // else it was set anew
				t.expired = true
				t.changed.Broadcast()
			}
		})
		t.timer = timer
	}
	return t.conn.SetWriteDeadline(at)
}

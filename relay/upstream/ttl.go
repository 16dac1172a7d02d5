package upstream

import (
	"context"
	"encoding/binary"
	"errors"
	"math"
	"net"
	"strings"
	"sync"
	"time"

	"golang.org/x/net/dns/dnsmessage"
)

type dialFunc = func(ctx context.Context, network, address string) (net.Conn, error)

// listener hears what a [net.Resolver] and name servers say to each other, and keeps
// the smallest time to live of what answers. The resolver does not tell it.
type listener struct {
	dial dialFunc

	mu    sync.Mutex // the families are asked for at once
	heard bool
	ttl   uint32 // in seconds
}

// smallest is the smallest time to live that was heard. It is false if no name server
// gave an answer, as for a name of /etc/hosts.
func (l *listener) smallest() (time.Duration, bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return time.Duration(l.ttl) * time.Second, l.heard
}

// connect is the Dial of a resolver.
func (l *listener) connect(ctx context.Context, network, address string) (net.Conn, error) {
	conn, err := l.dial(ctx, network, address)
	if err != nil {
		return nil, err
	}
	c := &heardConn{Conn: conn, listener: l}
	// The resolver itself does not end an exchange before its deadline, and that it
	// ends itself, with an error that says so.
	c.stop = context.AfterFunc(ctx, func() {
		if errors.Is(ctx.Err(), context.Canceled) {
			conn.Close()
		}
	})
	if pc, ok := conn.(net.PacketConn); ok {
		// It has to be one still: that is how the resolver knows that it carries datagrams,
		// and not messages after two bytes with their length (RFC 1035 section 4.2.2).
		return &heardPacketConn{c, pc}, nil
	}
	c.stream = true
	return c, nil
}

// heardConn is a connection to a name server. The resolver uses it for one exchange, from
// one goroutine.
type heardConn struct {
	net.Conn
	listener *listener
	stop     func() bool
	stream   bool
	query    []byte // without the length
	answer   []byte // of a stream: as much as has arrived, with the length
}

type heardPacketConn struct {
	*heardConn
	net.PacketConn
}

func (c *heardPacketConn) Read(b []byte) (int, error)         { return c.heardConn.Read(b) }
func (c *heardPacketConn) Write(b []byte) (int, error)        { return c.heardConn.Write(b) }
func (c *heardPacketConn) Close() error                       { return c.heardConn.Close() }
func (c *heardPacketConn) LocalAddr() net.Addr                { return c.heardConn.LocalAddr() }
func (c *heardPacketConn) SetDeadline(t time.Time) error      { return c.heardConn.SetDeadline(t) }
func (c *heardPacketConn) SetReadDeadline(t time.Time) error  { return c.heardConn.SetReadDeadline(t) }
func (c *heardPacketConn) SetWriteDeadline(t time.Time) error { return c.heardConn.SetWriteDeadline(t) }

func (c *heardConn) Close() error {
	c.stop()
	return c.Conn.Close()
}

func (c *heardConn) Write(b []byte) (int, error) {
	c.query = append([]byte(nil), b...)
	if c.stream && len(b) >= 2 {
		c.query = c.query[2:]
	}
	return c.Conn.Write(b)
}

func (c *heardConn) Read(b []byte) (int, error) {
	n, err := c.Conn.Read(b)
	if c.stream {
		c.readStream(b[:n])
	} else if n > 0 {
		c.listener.hear(c.query, b[:n], false)
	}
	return n, err
}

// readStream puts the first message together, which is the only one.
func (c *heardConn) readStream(b []byte) {
	before := len(c.answer)
	if before > 2+math.MaxUint16 {
		return
	}
	c.answer = append(c.answer, b...)
	if len(c.answer) < 2 {
		return
	}
	end := 2 + int(binary.BigEndian.Uint16(c.answer))
	if before < end && end <= len(c.answer) {
		c.listener.hear(c.query, c.answer[2:end], true)
	}
}

// hear takes notice of an answer to a query, if it is one.
func (l *listener) hear(query, message []byte, stream bool) {
	ttl, ok := smallestTTL(query, message, stream)
	if !ok {
		return
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if !l.heard || ttl < l.ttl {
		l.heard, l.ttl = true, ttl
	}
}

// smallestTTL reads the smallest time to live, in seconds, of the addresses and aliases
// in an answer to a query. It is false for what the resolver does not use either:
// answers to something else, and datagrams that were cut short, which it asks for
// again over TCP.
func smallestTTL(query, message []byte, stream bool) (ttl uint32, ok bool) {
	var asked, p dnsmessage.Parser
	header, err := asked.Start(query)
	if err != nil {
		return 0, false
	}
	question, err := asked.Question()
	if err != nil {
		return 0, false
	}
	answer, err := p.Start(message)
	if err != nil || !answer.Response || answer.ID != header.ID || answer.Truncated && !stream {
		return 0, false
	}
	same, err := p.Question()
	if err != nil || same.Type != question.Type || same.Class != question.Class || !strings.EqualFold(same.Name.String(), question.Name.String()) {
		return 0, false
	}
	if p.SkipAllQuestions() != nil {
		return 0, false
	}
	for {
		h, err := p.AnswerHeader()
		if err != nil {
			return ttl, ok // the end, or a record that is none
		}
		switch h.Type {
		case dnsmessage.TypeA, dnsmessage.TypeAAAA, dnsmessage.TypeCNAME:
			if h.TTL > math.MaxInt32 {
				h.TTL = 0 // RFC 2181 section 8
			}
			if !ok || h.TTL < ttl {
				ttl, ok = h.TTL, true
			}
		}
		if p.SkipAnswer() != nil {
			return ttl, ok
		}
	}
}

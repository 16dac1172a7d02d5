package loop

import (
	"github.com/fivetuple/fivetuple/internal/poll"
)

// kind is what a server does with its connections.
type kind uint8

const (
	echo kind = iota
	discard
	chargen
	chat
	broker
)

var kindNames = [...]string{"echo", "discard", "chargen", "chat", "broker"}

// begin is called when a connection is new.
func (l *loop) begin(c *conn) {
	switch l.server.kind {
	case chargen:
		l.goOn(c)
	case chat:
		l.greet(c)
	}
}

// atEnd is called when the peer has ended its side.
func (l *loop) atEnd(c *conn) {
	if l.server.kind == chat || l.server.kind == broker {
		l.tell(c, nil) // behind what it said before
		return
	}
	l.finish(c, causePeerClosed)
}

// echo sends back what arrives: RFC 862. While the peer does not take it, nothing
// is read.
func (l *loop) echo(c *conn) {
	for range readsPerTurn {
		if c.queue != nil {
			return
		}
		b := l.read(c)
		if b == nil {
			return
		}
		n, ok := l.write(c, b, false)
		if !ok {
			return
		}
		if n < len(b) {
			l.keep(c, b[n:])
			return
		}
		if len(b) < readSize && !c.is(readOn) {
			return
		}
	}
	l.goOn(c)
}

// discard throws away what arrives: RFC 863. TCP does so without a copy.
func (l *loop) discard(c *conn) {
	const size = 1 << 20
	if !c.is(isTCP) {
		for range readsPerTurn {
			if l.read(c) == nil {
				return
			}
		}
		l.goOn(c)
		return
	}
	for range readsPerTurn {
		n, errno := poll.Drop(int(c.fd), size)
		if n == 0 {
			l.readNothing(c, errno)
			return
		}
		l.moved(c, &c.in, n)
		if n < size && !c.is(readOn) {
			return
		}
	}
	l.goOn(c)
}

// generate sends lines of characters until the peer has had enough: RFC 864.
// What arrives is not read.
func (l *loop) generate(c *conn) {
	for range readsPerTurn {
		if c.queue != nil {
			return
		}
		b := pattern[c.pos:][:readSize]
		n, ok := l.write(c, b, false)
		if !ok {
			return
		}
		c.pos = uint16((int(c.pos) + n) % patternSize)
		if n < len(b) {
			l.wantRoom(c)
			return
		}
	}
	l.goOn(c)
}

// patternSize is the length of the pattern RFC 864 recommends: 72 of the 95
// printing ASCII characters a line, each line starting one further.
const patternSize = 95 * 74

// pattern is a piece of it of any phase.
var pattern = func() []byte {
	const printing, width = 95, 72
	b := make([]byte, 0, patternSize+readSize+printing)
	for first := 0; len(b) < patternSize+readSize; first++ {
		for i := range width {
			b = append(b, byte(' '+(first+i)%printing))
		}
		b = append(b, "\r\n"...)
	}
	return b
}()

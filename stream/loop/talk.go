package loop

import (
	"bytes"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"unicode"

	"github.com/fivetuple/fivetuple/stream"
)

// told is what a connection of a chat or broker said: bytes, or nil for the end.
type told struct {
	token uint64
	id    uint64
	bytes []byte
}

// maxLine is how long a line of a chat may be, in bytes.
const maxLine = 4096

// listen reads what a connection of a chat or broker says. It is passed on when
// the mutex is given back, since it may concern connections of other loops.
func (l *loop) listen(c *conn) {
	for range readsPerTurn {
		if l.toldSize >= maxTold || c.is(peerEnded) {
			break
		}
		b := l.read(c)
		if b == nil {
			return
		}
		l.tell(c, b)
		if len(b) < readSize && !c.is(readOn) {
			return
		}
	}
	if !c.is(peerEnded) {
		l.goOn(c)
	}
}

func (l *loop) tell(c *conn, b []byte) {
	if b != nil {
		b = append([]byte(nil), b...) // one copy, shared by all queues
	}
	l.told = append(l.told, told{c.token(), c.id, b})
	l.toldSize += len(b)
}

// passOn hands on what was said in this turn.
func (l *loop) passOn() {
	l.mu.Lock()
	l.told, l.passed = l.passed[:0], l.told
	l.toldSize = 0
	l.mu.Unlock()
	for _, t := range l.passed {
		switch {
		case t.bytes == nil:
			l.lastWords(t)
		case l.server.kind == broker:
			l.server.broadcast(t.bytes, t.id)
		default:
			l.hearLines(t)
		}
	}
	clear(l.passed)
}

// greet tells a new connection of a chat what there is to know.
func (l *loop) greet(c *conn) {
	l.send(c, &message{bytes: fmt.Appendf(nil, "* you are %d; /who lists the others, /to ID text speaks to one, /quit leaves\n", c.id)})
}

// lastWords ends a connection whose peer has.
func (l *loop) lastWords(t told) {
	if l.server.kind == chat {
		if line := l.takeLine(t); len(line) > 0 { // the last line may lack its end
			l.server.chatLine(t.id, line)
		}
	}
	l.server.with(t.id, func(l *loop, c *conn) {
		if c.state == open {
			l.finish(c, causePeerClosed)
		}
	})
}

// hearLines sees to the lines of a chat in what a connection said.
func (l *loop) hearLines(t told) {
	line, b := l.takeLine(t), t.bytes
	for len(b) > 0 {
		part, rest, whole := bytes.Cut(b, []byte("\n"))
		if line, b = append(line, part...), rest; len(line) > maxLine {
			l.server.with(t.id, func(l *loop, c *conn) { l.close(c, causeFailed, fmt.Errorf("a line of over %d bytes", maxLine)) })
			return
		}
		if !whole {
			break
		}
		if !l.server.chatLine(t.id, line) {
			l.server.with(t.id, func(l *loop, c *conn) {
				if c.state == open {
					l.finish(c, causeDone)
				}
			})
			return
		}
		line = line[:0]
	}
	if len(line) > 0 {
		l.server.with(t.id, func(_ *loop, c *conn) {
			if c.state != open {
				return
			}
			if c.extra == nil {
				c.extra = new(extra)
			}
			c.extra.line = bytes.Clone(line)
		})
	}
}

// takeLine takes the beginning of a line from a connection.
func (l *loop) takeLine(t told) []byte {
	l.mu.Lock()
	defer l.mu.Unlock()
	c := l.table.find(t.token)
	if c == nil || c.extra == nil {
		return nil
	}
	line := c.extra.line
	c.extra.line = nil
	return line
}

// chatLine does what a line of a connection asks for. It returns false if that
// is to leave.
func (s *Server) chatLine(id uint64, b []byte) bool {
	line := strings.Map(func(r rune) rune {
		if unicode.IsControl(r) && r != '\t' {
			return -1
		}
		return r
	}, string(b))
	command, rest, _ := strings.Cut(line, " ")
	switch command {
	case "":
	case "/quit":
		return false
	case "/who":
		ids := s.Conns()
		slices.Sort(ids)
		s.Send(id, fmt.Appendf(nil, "* here: %s\n", strings.Trim(fmt.Sprint(ids), "[]")))
	case "/to":
		s.Send(id, []byte(s.chatTo(id, rest)))
	default:
		s.Broadcast(fmt.Appendf(nil, "[%d] %s\n", id, line))
	}
	return true
}

// chatTo does "/to ID text" and returns what to tell the sender, if anything.
func (s *Server) chatTo(from uint64, rest string) string {
	name, text, _ := strings.Cut(rest, " ")
	id, err := strconv.ParseUint(name, 10, 64)
	if err != nil || text == "" {
		return "* write /to ID text\n"
	}
	switch err := s.Send(id, fmt.Appendf(nil, "[%d to you] %s\n", from, text)); {
	case errors.Is(err, stream.ErrNoConn):
		return fmt.Sprintf("* nobody here is %d\n", id)
	case err != nil:
		return fmt.Sprintf("* %d has just been dropped: %v\n", id, err)
	}
	return ""
}

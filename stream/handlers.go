package stream

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode"
)

// OnData makes a handler that calls f with the bytes as they arrive, until the
// peer ends its side, which is io.EOF, or f returns an error. The slice is f's until it returns.
// A connection on which nothing arrives holds no buffer.
func OnData(f func(c *Conn, b []byte) error) Handler {
	return HandlerFunc(func(_ context.Context, c *Conn) error {
		for {
			b, err := c.reader.read()
			c.moved(&c.in, len(b))
			if len(b) > 0 {
				ferr := f(c, b)
				c.reader.release()
				if ferr != nil {
					return ferr
				}
			}
			if err != nil {
				return err
			}
		}
	})
}

// Kinds lists the names of the built-in handlers.
func Kinds() []string { return []string{"echo", "discard", "chargen", "daytime", "chat", "broker"} }

// NewHandler returns the built-in handler of a kind listed by [Kinds]. Each
// server needs a handler of its own.
func NewHandler(kind string) (Handler, error) {
	switch kind {
	case "echo":
		return Echo(), nil
	case "discard":
		return Discard(), nil
	case "chargen":
		return Chargen(), nil
	case "daytime":
		return Daytime(), nil
	case "chat":
		return Chat(), nil
	case "broker":
		return Broker(), nil
	}
	return nil, fmt.Errorf("unknown kind %q: want one of %s", kind, strings.Join(Kinds(), ", "))
}

// Echo sends back what arrives: RFC 862.
func Echo() Handler {
	return OnData(func(c *Conn, b []byte) error {
		_, err := c.Write(b)
		return err
	})
}

// Discard throws away what arrives: RFC 863.
func Discard() Handler {
	return OnData(func(*Conn, []byte) error { return nil })
}

// Chargen sends lines of characters until the peer has had enough: RFC 864.
func Chargen() Handler {
	return HandlerFunc(func(_ context.Context, c *Conn) error {
		lines := chargenLines()
		for {
			if _, err := c.Write(lines); err != nil {
				return err
			}
		}
	})
}

// chargenLines is the pattern RFC 864 recommends: 72 of the 95 printing ASCII
// characters a line, each line starting one further, whole once.
func chargenLines() []byte {
	const printing, width = 95, 72
	var b []byte
	for first := range printing {
		for i := range width {
			b = append(b, byte(' '+(first+i)%printing))
		}
		b = append(b, "\r\n"...)
	}
	return b
}

// Daytime sends the date and time as one line and closes: RFC 867.
func Daytime() Handler {
	return HandlerFunc(func(_ context.Context, c *Conn) error {
		_, err := io.WriteString(c, time.Now().Format("Monday, January 2, 2006 15:04:05-MST")+"\r\n")
		return err
	})
}

// Broker hands the bytes of each connection to all others of the server, as they
// come and without a mark of where they came from; of several that send at once
// the pieces mix, each piece whole. On seqpacket sockets records stay records. A
// connection that does not take what the others send is dropped: Limits.WriteQueue.
func Broker() Handler {
	return OnData(func(c *Conn, b []byte) error {
		c.server.sendToOthers(c, b)
		return nil
	})
}

// maxChatLine is how long a line of a chat may be, in bytes.
const maxChatLine = 4096

// Chat hands every line to all connections of the server, with the sender's id
// before it and without control characters. "/to ID text" goes to one, "/who"
// lists the ids, "/quit" leaves.
func Chat() Handler {
	return HandlerFunc(func(ctx context.Context, c *Conn) error {
		if err := c.Send(fmt.Appendf(nil, "* you are %d; /who lists the others, /to ID text speaks to one, /quit leaves\n", c.ID())); err != nil {
			return err
		}
		var line []byte
		err := OnData(func(c *Conn, b []byte) error {
			for len(b) > 0 {
				part, rest, whole := bytes.Cut(b, []byte("\n"))
				if line, b = append(line, part...), rest; len(line) > maxChatLine {
					return fmt.Errorf("a line of over %d bytes", maxChatLine)
				}
				if !whole {
					break
				}
				if err := chatLine(c, line); err != nil {
					return err
				}
				line = line[:0]
			}
			return nil
		}).ServeConn(ctx, c)
		if errors.Is(err, io.EOF) && len(line) > 0 { // the last line may lack its end
			if err := chatLine(c, line); err != nil {
				return err
			}
		}
		if errors.Is(err, errQuit) {
			return nil
		}
		return err
	})
}

var errQuit = errors.New("quit")

func chatLine(c *Conn, b []byte) error {
	line := strings.Map(func(r rune) rune {
		if unicode.IsControl(r) && r != '\t' {
			return -1
		}
		return r
	}, string(b))
	command, rest, _ := strings.Cut(line, " ")
	switch command {
	case "":
		return nil
	case "/quit":
		return errQuit
	case "/who":
		ids := c.Server().Conns()
		slices.Sort(ids)
		return c.Send(fmt.Appendf(nil, "* here: %s\n", strings.Trim(fmt.Sprint(ids), "[]")))
	case "/to":
		return c.Send([]byte(chatTo(c, rest)))
	}
	c.Server().Broadcast(fmt.Appendf(nil, "[%d] %s\n", c.ID(), line))
	return nil
}

// chatTo does "/to ID text" and returns what to tell the sender, if anything.
func chatTo(c *Conn, rest string) string {
	name, text, _ := strings.Cut(rest, " ")
	id, err := strconv.ParseUint(name, 10, 64)
	if err != nil || text == "" {
		return "* write /to ID text\n"
	}
	switch err := c.Server().Send(id, fmt.Appendf(nil, "[%d to you] %s\n", c.ID(), text)); {
	case errors.Is(err, ErrNoConn):
		return fmt.Sprintf("* nobody here is %d\n", id)
	case err != nil:
		return fmt.Sprintf("* %d has just been dropped: %v\n", id, err)
	}
	return ""
}

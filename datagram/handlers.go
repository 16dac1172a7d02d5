package datagram

import (
	"bytes"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"time"
	"unicode"
)

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

var errLoop = errors.New("not answered: its source would answer the answer, without end")

// answering makes a handler that answers, except where the answer could start
// a loop: a forged source address makes two servers talk to each other for ever
// (CERT CA-1996-01).
func answering(f HandlerFunc) Handler {
	return HandlerFunc(func(p *Packet) error {
		if mayLoop(p) {
			return errLoop
		}
		return f(p)
	})
}

// mayLoop says whether the source of a packet may be a server that answers
// whatever it gets: a small service (RFC 862-865, 867); this server itself by
// any of the host's addresses, or one like it on another host, which both have
// its port; or whom [Server.Suspects] names. A client whose system happens to
// give it the server's port is not answered either: it is to take another.
// Servers on different ports that know nothing of each other, as on two hosts,
// are not seen: [Limits.PeerRate] is what bounds them. Who sends over a Unix
// socket cannot be forged.
func mayLoop(p *Packet) bool {
	from := p.From.AddrPort
	if !from.IsValid() {
		return false
	}
	switch from.Port() {
	case 7, 13, 17, 19, p.To.AddrPort.Port():
		return true
	}
	return p.server != nil && p.server.Suspects != nil && p.server.Suspects(from)
}

// Echo sends back what arrives: RFC 862.
func Echo() Handler {
	return answering(func(p *Packet) error { return p.Reply(p.Data) })
}

// Discard throws away what arrives: RFC 863.
func Discard() Handler {
	return HandlerFunc(func(*Packet) error { return nil })
}

// Chargen answers with lines of characters: RFC 864. The RFC leaves the length
// open, up to 512; it is that of the datagram answered, so that nobody can use
// the server to send more to a forged source than he sends himself.
func Chargen() Handler {
	const printing, width, longest = 95, 72, 512
	var lines []byte // the pattern of the RFC, each line starting one further
	for first := range printing {
		for i := range width {
			lines = append(lines, byte(' '+(first+i)%printing))
		}
		lines = append(lines, "\r\n"...)
	}
	lines = append(lines, lines[:longest]...)
	var next atomic.Uint32
	return answering(func(p *Packet) error {
		line := int(next.Add(1)-1) % printing
		return p.Reply(lines[line*(width+2):][:min(len(p.Data), longest)])
	})
}

// Daytime answers with the date and time as one line: RFC 867. The answer has
// about 40 bytes, which is more than an empty datagram has; a source that is
// forged gets so much more than was sent.
func Daytime() Handler {
	return answering(func(p *Packet) error {
		return p.Reply([]byte(time.Now().Format("Monday, January 2, 2006 15:04:05-MST") + "\r\n"))
	})
}

var errNotLetIn = errors.New("not let in: too many newcomers in this second")

// maxChatLine is how long a line of a chat may be, in bytes.
const maxChatLine = 4096

// Chat hands every line to all peers of the server, with the sender's id
// before it and without control characters. "/to ID text" goes to one, "/who"
// lists the ids, "/quit" leaves; so does who is silent for the peer timeout.
// One datagram is one line: what follows the first line feed is ignored. Every
// line is sent to every peer and sources can be forged: this is for a network
// of friends.
func Chat() Handler {
	return answering(func(p *Packet) error {
		if p.Peer() == 0 {
			return errNotLetIn
		}
		if p.isNew {
			if err := p.Reply(fmt.Appendf(nil, "* you are %d; /who lists the others, /to ID text speaks to one, /quit leaves\n", p.Peer())); err != nil {
				return err
			}
		}
		line, _, _ := bytes.Cut(p.Data, []byte("\n"))
		if len(line) > maxChatLine {
			return fmt.Errorf("a line of over %d bytes", maxChatLine)
		}
		return chatLine(p, line)
	})
}

func chatLine(p *Packet, b []byte) error {
	line := strings.Map(func(r rune) rune {
		if unicode.IsControl(r) && r != '\t' {
			return -1
		}
		return r
	}, strings.ToValidUTF8(string(b), ""))
	command, rest, _ := strings.Cut(line, " ")
	switch command {
	case "":
		return nil
	case "/quit":
		p.server.forget(p.peer, causeLeft)
		return nil
	case "/who":
		var ids []uint64
		for _, other := range p.server.Peers() {
			ids = append(ids, other.ID)
		}
		slices.Sort(ids)
		return p.Reply(fmt.Appendf(nil, "* here: %s\n", strings.Trim(fmt.Sprint(ids), "[]")))
	case "/to":
		id, text, _ := strings.Cut(rest, " ")
		to, err := strconv.ParseUint(id, 10, 64)
		if err != nil || text == "" {
			return p.Reply([]byte("* write /to ID text\n"))
		}
		if err := p.server.Send(to, fmt.Appendf(nil, "[%d to you] %s\n", p.Peer(), text)); err != nil {
			return p.Reply(fmt.Appendf(nil, "* nobody here is %d\n", to))
		}
		return nil
	}
	p.server.Broadcast(fmt.Appendf(nil, "[%d] %s\n", p.Peer(), line))
	return nil
}

// Broker hands every datagram as it is to all other peers of the server. A peer
// is who has sent something, if only an empty datagram, within the peer
// timeout. Sources can be forged: this is for a network of friends.
func Broker() Handler {
	return answering(func(p *Packet) error {
		if p.Peer() == 0 {
			return errNotLetIn
		}
		p.server.sendAll(p.Data, p.peer)
		return nil
	})
}

package join

import (
	"bytes"
	"fmt"
	"io"
	"sync"
)

// Telnet commands (RFC 854) and the options that are agreed to (RFC 857, 858).
const (
	iac  = 255
	dont = 254
	do   = 253
	wont = 252
	will = 251
	sb   = 250
	se   = 240

	optionEcho = 1
	optionSGA  = 3
)

const (
	// maxAnswers bounds the answers for one option and side of it. A peer that asks
	// the same over and over, or takes our answers for questions, is heard no more.
	maxAnswers = 16
	// maxSubnegotiation is far more than any option says at once, which nobody asked
	// for: all are refused but two, which say nothing.
	maxSubnegotiation = 64 << 10
)

// telnetIn takes Telnet's sequences out of what the peer sends and answers its
// negotiation by the rules of RFC 1143 for one who never asks: only what changes an
// option is acknowledged. The peer may echo and suppress go-aheads, and so may we the
// latter; all else is refused.
type telnetIn struct {
	answer func([]byte)
	state  telnetState
	verb   byte // of a negotiation whose option is to come
	length int  // of the subnegotiation
	buf    []byte
	peer   [256]option // what the peer does: WILL, WONT
	us     [256]option // what we do: DO, DONT
}

type option struct {
	on      bool
	answers uint8
}

type telnetState uint8

const (
	inData           telnetState = iota
	afterCR                      // a NUL belongs to the CR: RFC 854, page 11
	afterIAC                     // a command is to come
	afterVerb                    // an option is to come
	inSubnegotiation             // up to IAC SE
	inSubnegotiationIAC
)

func (t *telnetIn) apply(b []byte) ([]byte, error) {
	t.buf = t.buf[:0]
	for len(b) > 0 {
		if t.state == inData {
			n := plain(b)
			t.buf = append(t.buf, b[:n]...)
			if b = b[n:]; len(b) == 0 {
				break
			}
		}
		if err := t.step(b[0]); err != nil {
			return nil, err
		}
		b = b[1:]
	}
	return t.buf, nil
}

// plain is how many bytes are neither IAC nor CR.
func plain(b []byte) int {
	n := len(b)
	for _, c := range []byte{iac, '\r'} {
		if i := bytes.IndexByte(b[:n], c); i >= 0 {
			n = i
		}
	}
	return n
}

func (t *telnetIn) step(c byte) error {
	switch t.state {
	case afterCR:
		t.state = inData
		if c != 0 {
			t.data(c)
		}
	case inData:
		t.data(c)
	case afterIAC:
		t.command(c)
	case afterVerb:
		t.state = inData
		t.negotiate(t.verb, c)
	case inSubnegotiation:
		if c == iac {
			t.state = inSubnegotiationIAC
		}
		if t.length++; t.length > maxSubnegotiation {
			return fmt.Errorf("telnet: a subnegotiation of more than %d bytes: the peer does not speak Telnet", maxSubnegotiation)
		}
	case inSubnegotiationIAC:
		t.state = inSubnegotiation
		if c != iac && c != se {
			t.command(c) // the end was forgotten
		} else if c == se {
			t.state = inData
		}
	}
	return nil
}

func (t *telnetIn) data(c byte) {
	switch c {
	case iac:
		t.state = afterIAC
		return
	case '\r':
		t.state = afterCR
	}
	t.buf = append(t.buf, c)
}

func (t *telnetIn) command(c byte) {
	t.state = inData
	switch c {
	case iac:
		t.buf = append(t.buf, iac)
	case will, wont, do, dont:
		t.state, t.verb = afterVerb, c
	case sb:
		t.state, t.length = inSubnegotiation, 0
	}
}

func (t *telnetIn) negotiate(verb, number byte) {
	switch verb {
	case will:
		t.peer[number].asked(t, number, true, number == optionEcho || number == optionSGA, do, dont)
	case wont:
		t.peer[number].asked(t, number, false, true, do, dont)
	case do:
		t.us[number].asked(t, number, true, number == optionSGA, will, wont)
	case dont:
		t.us[number].asked(t, number, false, true, will, wont)
	}
}

// asked answers that the option be on or off, which we agree to or not.
func (o *option) asked(t *telnetIn, number byte, on, agree bool, yes, no byte) {
	if o.on == on || o.answers >= maxAnswers {
		return
	}
	o.answers++
	verb := no
	if agree {
		o.on = on
		if on {
			verb = yes
		}
	}
	t.answer([]byte{iac, verb, number})
}

// telnetOut makes bytes fit for a Telnet peer: 255 is doubled, and a CR that no LF
// follows is followed by NUL (RFC 854, page 11).
type telnetOut struct {
	buf []byte
	cr  bool // the last byte was a CR
}

func (t *telnetOut) apply(b []byte) ([]byte, error) {
	t.buf = t.buf[:0]
	for len(b) > 0 {
		if t.cr && b[0] != '\n' {
			t.buf = append(t.buf, 0)
		}
		t.cr = false
		n := plain(b)
		t.buf = append(t.buf, b[:n]...)
		if n == len(b) {
			break
		}
		t.buf = append(t.buf, b[n])
		if b[n] == iac {
			t.buf = append(t.buf, iac)
		}
		t.cr = b[n] == '\r'
		b = b[n+1:]
	}
	return t.buf, nil
}

// answering is a writer that two use: one for data, and one for answers, which go
// between two writes of data and are never waited for. So a peer that writes before
// it reads is read on.
type answering struct {
	w       io.Writer
	writing sync.Mutex
	mu      sync.Mutex
	pending []byte // answers to be written by who has or gets the lock of writing
	flushes sync.WaitGroup
}

func (a *answering) Write(b []byte) (int, error) {
	a.writing.Lock()
	n, err := a.w.Write(b)
	a.flush()
	return n, err
}

func (a *answering) answer(b []byte) {
	a.mu.Lock()
	a.pending = append(a.pending, b...)
	a.mu.Unlock()
	if a.writing.TryLock() {
		a.flushes.Go(a.flush)
	}
}

// flush writes the answers and gives back the lock of writing. Their errors are left
// for the data to meet.
func (a *answering) flush() {
	for {
		a.mu.Lock()
		b := a.pending
		a.pending = nil
		if len(b) == 0 {
			a.writing.Unlock() // before an answer is added for which nobody cares
			a.mu.Unlock()
			return
		}
		a.mu.Unlock()
		a.w.Write(b)
	}
}

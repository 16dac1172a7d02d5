// Package join joins two ends: what the one sends the other gets, both ways, until
// both have ended. It is the heart of `ft connect` and of the stdio kind of `ft
// listen`.
//
//	conn, err := dial.Dialer{}.Dial(ctx, endpoint)
//	...
//	result, err := join.Run(ctx, join.Stdio(os.Stdin, os.Stdout), conn, join.Options{})
//
// It stands on read(2), write(2) and shutdown(2) as package net offers them and
// works on every system that Go knows.
//
// # How it ends
//
// X is either end and Y the other:
//
//	what happens                      what Run does
//	X ends (end of file)              writes all that came before it to Y, then CloseWrite of Y; goes on reading Y
//	                                  to its end. QuitAfter bounds that; QuitWithB does not wait when B is first.
//	                                  What Y sends after the bound is lost
//	both have ended                   returns nil
//	X ends, Y has no end of file      nothing is told to Y (UDP, Unix datagrams); only QuitAfter or ctx ends Run,
//	                                  so give a QuitAfter
//	reading X fails (reset)           X is dead both ways: ends both, with the error. What came before it is written
//	reading standard input fails      as its end; the error is returned after the rest of the answer
//	writing Y fails (reset, EPIPE)    X is not read any more; what Y has sent is read to its end. Returns the error
//	writing standard output fails     ends both at once, with the error, X by a reset; SIGPIPE kills nobody
//	writing Y fails, which has no     ends both, with the error
//	end of file
//	a record cannot be passed on      ends both, with the error; no record is cut short
//	TLS ends without close_notify     in the middle of a TLS record as a reset; between two crypto/tls takes it
//	                                  for the end of file, so what came may be less than what was sent
//	no byte either way for Idle       ends both with [ErrIdle]; waiting for Rate is not idle
//	ctx ends                          ends both with its error; the counts are those so far
//
// Where Run ends early, ctx apart, a TCP connection is closed when its peer has what
// was written to it, or after a second. A reset of X reaches a Y that is a socket as
// an ordinary close, unless Y goes on sending: only the error tells.
//
// An empty UDP or Unix datagram is a record of no bytes, not an end. An empty
// seqpacket record reads as the end of file: read(2) does not tell them apart.
//
// For comparison, at the end of standard input nc (OpenBSD) tells the peer nothing
// and stays without -N, and with -q leaves after a time whatever is still to come;
// socat leaves after half a second and loses a late answer without -t; ncat does as
// Run. When the peer ends first and standard input goes on, nc and ncat before 7.95
// stay, socat and later ncat leave: QuitWithB is for a person at a terminal, who
// would wait for nothing.
//
// # Records
//
// An end that keeps records (RecordsA, RecordsB) gives and takes one with each Read
// and Write. Between two of them the records stay as they are. Otherwise Messages
// says how records stand in the bytes of the other end: see [Framing].
package join

import (
	"context"
	"errors"
	"fmt"
	"io"
	"time"
)

// Errors that a caller decides by.
var (
	ErrIdle    = errors.New("no byte in either direction for the idle time")
	ErrQuit    = errors.New("not read to its end") // in a Count: Run quit first
	ErrTooLong = errors.New("record too long")
)

// End is one of the two. A CloseWrite() error is used where it has one, to say that
// no more will be sent. Run ends a blocked Read or Write by SetDeadline where that
// works, by Close otherwise: one of them must do it. For files use [Stdio].
type End interface {
	io.Reader
	io.Writer
	io.Closer
}

// Framing is how records stand in the bytes of the end that keeps none.
type Framing uint8

const (
	// Bytes is Datagrams.
	Bytes Framing = iota
	// Lines: a line without its LF is a record, and so is what follows the last LF.
	// A record becomes its bytes and a LF; one that holds a LF comes out as several
	// lines and is counted in [Count].Multiline.
	Lines
	// Lengths: before each record its length, 4 bytes, big-endian.
	Lengths
	// Datagrams: each read of the bytes, of MaxMessage at most, is a record. A record
	// becomes its bytes alone.
	Datagrams
)

// MaxDatagram is the largest UDP datagram over IPv4 and the default of MaxMessage.
const MaxDatagram = 65507

// Options say how two ends are joined. The zero value copies bytes both ways until
// both have ended.
type Options struct {
	QuitAfter time.Duration // from the first end of a direction until Run returns; 0 no bound, negative at once
	QuitWithB bool          // the end of file of B ends Run at once
	Idle      time.Duration // Run ends with ErrIdle when no byte has moved for so long; 0 never
	Rate      int64         // bytes per second in each direction, in bursts of a tenth of a second's at most; 0 unlimited

	CRLF   bool // a LF from A that follows no CR becomes CR LF
	Telnet bool // B speaks Telnet (RFC 854): its negotiation is answered and taken out, bytes 255 from A are doubled

	RecordsA, RecordsB bool    // the end keeps records: a datagram or seqpacket socket
	Messages           Framing // when one end keeps records and the other does not
	MaxMessage         int     // the longest record, in bytes; 0 is MaxDatagram, at most 1 GiB

	Dump *Dump // shows what passes; nil nothing
}

// Result is what was passed on.
type Result struct{ AToB, BToA Count }

// Count is what was passed on in one direction.
type Count struct {
	Bytes     uint64 // written to the receiving end, framing and CR included, Telnet answers not
	Messages  uint64 // records, where an end keeps them
	Multiline uint64 // of these, records that came out as several lines
	Err       error  // why the direction ended; nil: end of file
}

// Run passes on what a sends to b and what b sends to a until both have ended, as the
// package comment says in full, and closes both; to use an end again give it as
// [Keep] of it. The error is what ended it early: nil when both came to their end of
// file or QuitAfter or QuitWithB was why; otherwise ErrIdle, the cause of ctx, or the
// first of what failed, a Dump that could not be written among it. The result counts
// in every case.
func Run(ctx context.Context, a, b End, o Options) (Result, error) {
	if err := o.check(); err != nil {
		return Result{}, errors.Join(err, a.Close(), b.Close())
	}
	return newJoin(a, b, o).run(ctx)
}

func (o *Options) check() error {
	const maxMessage = 1 << 30
	if o.MaxMessage == 0 {
		o.MaxMessage = MaxDatagram
	}
	records := o.RecordsA || o.RecordsB
	framed := o.RecordsA != o.RecordsB && (o.Messages == Lines || o.Messages == Lengths)
	switch {
	case o.MaxMessage < 0 || o.MaxMessage > maxMessage:
		return fmt.Errorf("join: a longest record of %d bytes: want 1 to %d", o.MaxMessage, maxMessage)
	case o.Rate < 0:
		return fmt.Errorf("join: a rate of %d bytes per second: want 1 or more, or 0 for no limit", o.Rate)
	case o.Messages > Datagrams:
		return fmt.Errorf("join: unknown framing %d", o.Messages)
	case o.Telnet && records:
		return errors.New("join: Telnet is for bytes, and an end keeps records: leave out one of them")
	case o.CRLF && (o.RecordsA || framed):
		return errors.New("join: CR LF is for bytes or whole datagrams: leave it out, or the framing of records")
	}
	return nil
}

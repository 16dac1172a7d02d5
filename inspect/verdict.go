package inspect

import (
	"fmt"

	"github.com/fivetuple/fivetuple"
)

// Verdict says what kept a connection from being faster while it was watched.
type Verdict struct {
	Cause      Cause
	Direction  Direction
	Confidence Confidence // "" when Cause is Unknown or Idle
	Summary    string     // one sentence
	Evidence   []string   // what it rests on, the strongest first
	Shares     Shares     // of a connection that sends
	Delta      Delta
}

// Cause is what limits a connection.
type Cause string

// The causes. The end that they are about is the sender's when the verdict's
// direction is [Sending], the receiver's when it is [Receiving].
const (
	Unknown       Cause = "unknown"        // it cannot be told from here; Summary says why
	Idle          Cause = "idle"           // nothing was to be sent or received
	Application   Cause = "application"    // it writes too little, or does not read
	ReceiveWindow Cause = "receive_window" // the receiver's window is full: the peer's when sending
	SendBuffer    Cause = "send_buffer"    // it is smaller than what the path could hold
	Loss          Cause = "loss"           // segments are lost, though there is no queue
	Congestion    Cause = "congestion"     // the path, or the window that guesses what it bears, is full
)

// Direction is the way in which most of the data goes.
type Direction string

// The directions.
const (
	Sending   Direction = "sending"
	Receiving Direction = "receiving"
)

// Confidence says how sure a verdict is.
type Confidence string

// High: one cause for four fifths of the time, with a counter of the kernel or
// several signs for it. Low: signs that others could explain.
const (
	High   Confidence = "high"
	Medium Confidence = "medium"
	Low    Confidence = "low"
)

// Shares are the parts of the watched time in which a sender waited for each,
// 0 to 1. Window and Buffer are the kernel's own count (tcp_chrono, since
// Linux 4.10: to the timer tick, 1 to 10 ms); the rest of the time with data
// unacknowledged is split between Application and Network as the samples were.
type Shares struct {
	Application float64 `json:"application"` // nothing to send
	Window      float64 `json:"receive_window"`
	Buffer      float64 `json:"send_buffer"`
	Network     float64 `json:"network"` // loss or congestion
}

// Judge says what limited a TCP connection between the first and the last of the
// samples, of which there should be ten or more, over a second or ten round trips.
//
// Where the time went is the kernel's count. Loss and congestion it does not
// tell apart; signs of congestion are ECN marks, round trips well above the
// shortest one, and a delivery rate that stays the same while the window moves.
// A queue that was full all along since the connection began shows in none of
// these. A receiver knows little of what limits the sender: then the verdict is
// [Unknown] with what is known as evidence.
func Judge(samples []Sample) Verdict {
	c, reason := newCourse(samples)
	if reason != "" {
		return Verdict{Cause: Unknown, Summary: "cannot tell: " + reason, Delta: c.Delta}
	}
	var v Verdict
	switch {
	case !c.moved() && c.last.SendQueue == 0 && c.last.RecvQueue == 0:
		v = Verdict{Cause: Idle, Summary: "idle: nothing was sent or received", Evidence: c.idleSince()}
	case c.out() >= c.in():
		v = c.judgeSender()
	default:
		v = c.judgeReceiver()
	}
	v.Delta = c.Delta
	if c.last.State == fivetuple.StateCloseWait {
		v.Evidence = append(v.Evidence, "the peer has closed its side; this side still has to (CLOSE_WAIT)")
	}
	return v
}

// judgeReceiver says what can be known from the end that mostly receives.
func (c course) judgeReceiver() Verdict {
	v := Verdict{Cause: Unknown, Direction: Receiving}
	info := c.last.Info
	stuck, full := 0, 0
	for _, s := range c.samples {
		if s.RecvQueue > 0 {
			stuck++
		}
		if s.RecvQueue > 0 && s.Info.RcvWnd < s.RecvQueue {
			full++
		}
	}
	rate := float64(c.BytesReceived) / c.Over.Seconds()
	switch waits := fmt.Sprintf("%s wait to be read, in %d of %d samples", bytes(uint64(c.last.RecvQueue)), stuck, len(c.samples)); {
	case share(full, len(c.samples)) >= 0.5:
		v.Cause, v.Confidence = Application, confidence(share(full, len(c.samples)))
		v.Summary = "limited by the application: this side does not read fast enough"
		v.Evidence = []string{waits, fmt.Sprintf("the window left to the peer is %s", bytes(uint64(info.RcvWnd)))}
	case c.BytesReceived == 0 && c.last.RecvQueue > 0:
		v.Cause = Idle
		v.Summary = "idle: nothing arrives, though the peer may send"
		v.Evidence = []string{waits, fmt.Sprintf("the window left to the peer is %s, so it is not held up", bytes(uint64(info.RcvWnd)))}
	case info.RcvRTT > 0 && info.RcvWnd > 0 && rate*info.RcvRTT.Seconds() >= 0.7*float64(info.RcvWnd):
		v.Cause, v.Confidence = ReceiveWindow, Medium
		v.Summary = "limited by this side's receive window: rcvbuf is too small for the path"
		v.Evidence = []string{fmt.Sprintf("%s arrive in each round trip of %s, the window is %s",
			bytes(uint64(rate*info.RcvRTT.Seconds())), duration(info.RcvRTT), bytes(uint64(info.RcvWnd)))}
	default:
		v.Summary = "cannot tell: this side reads what arrives; the sender or the path is the limit, inspect the peer's socket"
		v.Evidence = []string{fmt.Sprintf("%s waited to be read at the end, %d of %d samples had any", bytes(uint64(c.last.RecvQueue)), stuck, len(c.samples))}
	}
	v.Evidence = append(v.Evidence, fmt.Sprintf("%s/s arrived", bytes(uint64(rate))))
	if c.OutOfOrder > 0 {
		v.Evidence = append(v.Evidence, fmt.Sprintf("%d of %d segments came out of order: others before them were lost or overtaken", c.OutOfOrder, c.SegsReceived))
	}
	if c.ReceivedCE > 0 {
		v.Evidence = append(v.Evidence, fmt.Sprintf("%d segments came with a congestion mark (ECN)", c.ReceivedCE))
	}
	return v
}

// confidence grows with the share of the time.
func confidence(share float64) Confidence {
	switch {
	case share >= 0.8:
		return High
	case share >= 0.5:
		return Medium
	}
	return Low
}

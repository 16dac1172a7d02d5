// Package faults makes what passes a relay late, incomplete or out of order, as
// bad networks do, in a way that can be repeated: all chance comes from one seed.
//
//	up, down := faults.Config{Seed: 7, Delay: 50 * time.Millisecond, Loss: 0.01}.Lines(conn)
//	due, arrives := up.Datagram(time.Now(), len(b)) // of datagrams: when to send it on
//	n, err := faults.Copy(target, client, up)       // of streams, which lose nothing, but time
//
// It uses no kernel interface and works everywhere.
package faults

import (
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"
)

// Config says what goes wrong. The zero value is nothing.
//
// Order is kept, whatever the delays: only Reorder lets one datagram overtake another.
type Config struct {
	Seed   uint64        // of all chance; 0 is a seed like any other
	Delay  time.Duration // in each direction; at most MaxDelay
	Jitter time.Duration // more delay, evenly spread from 0 to this; at most MaxDelay. What would come too early waits for what is before it
	// Loss, 0 to 1, is how many datagrams are lost. A stream is made of segments, of 1460
	// bytes or what one read brings. A lost one, and all behind it, come after
	// the time that Linux would take to send it again: 200 ms and the round trip, twice
	// Delay, then twice as long for each time that it is lost again, up to 120 s; after
	// 16 times the connection ends with ErrTimeout.
	Loss float64
	// Reorder, 0 to 1, is how many datagrams are late: by 10 ms or half of Delay, whichever is
	// more, and Jitter. Those that follow within that time overtake it. A segment
	// of a stream that is late holds up all behind it.
	Reorder float64
	// Bandwidth is in bytes per second in each direction, of data without headers; 0 is
	// no limit. A datagram that would wait for over a second is dropped, as
	// a router's queue that is full does; a stream is not read until there is place.
	Bandwidth int64
	CutAfter  int64         // bytes passed on in both directions together, after which a connection is reset; 0 is never
	CutTime   time.Duration // time after which it is reset; 0 is never
}

// MaxDelay is the longest delay, and the longest jitter.
const MaxDelay = time.Hour

// The times that come of faults.
const (
	maxQueue    = time.Second
	lateAtLeast = 10 * time.Millisecond
	minRTO      = 200 * time.Millisecond // Linux's TCP_RTO_MIN
	maxRTO      = 120 * time.Second      // TCP_RTO_MAX
	maxLosses   = 16                     // the first time and tcp_retries2, 15
)

// ErrCut ends a Copy whose connection was cut: CutAfter, CutTime or [Line.Cut].
var ErrCut = errors.New("cut on purpose")

// ErrTimeout ends a Copy of which one segment never arrived.
var ErrTimeout = errors.New("timed out on purpose: a segment was lost 16 times in a row")

// Active says whether anything goes wrong at all.
func (c Config) Active() bool { c.Seed = 0; return c != Config{} }

// Validate says which field is out of its bounds.
func (c Config) Validate() error {
	for _, f := range []struct {
		name string
		d    time.Duration
		most time.Duration
	}{{"delay", c.Delay, MaxDelay}, {"jitter", c.Jitter, MaxDelay}, {"cut time", c.CutTime, 0}} {
		switch {
		case f.d < 0:
			return fmt.Errorf("faults: %s %v: want 0 or more", f.name, f.d)
		case f.most > 0 && f.d > f.most:
			return fmt.Errorf("faults: %s %v: want %v at most", f.name, f.d, f.most)
		}
	}
	for _, f := range []struct {
		name  string
		share float64
	}{{"loss", c.Loss}, {"reorder", c.Reorder}} {
		if !(f.share >= 0 && f.share <= 1) { // nor NaN
			return fmt.Errorf("faults: %s %v: want 0 to 1, where 0.01 is 1 %%", f.name, f.share)
		}
	}
	for _, f := range []struct {
		name string
		n    int64
	}{{"bandwidth", c.Bandwidth}, {"cut after", c.CutAfter}} {
		if f.n < 0 {
			return fmt.Errorf("faults: %s %d bytes: want 0 or more", f.name, f.n)
		}
	}
	return nil
}

// String says what goes wrong, and of which seed: "delay 50ms, jitter 10ms, loss 1 %, seed 7".
func (c Config) String() string {
	if !c.Active() {
		return "none"
	}
	var s []string
	add := func(is bool, format string, value any) {
		if is {
			s = append(s, fmt.Sprintf(format, value))
		}
	}
	percent := func(share float64) string { return strconv.FormatFloat(100*share, 'g', 6, 64) }
	add(c.Delay != 0, "delay %v", c.Delay)
	add(c.Jitter != 0, "jitter %v", c.Jitter)
	add(c.Loss != 0, "loss %s %%", percent(c.Loss))
	add(c.Reorder != 0, "reorder %s %%", percent(c.Reorder))
	add(c.Bandwidth != 0, "bandwidth %d B/s", c.Bandwidth)
	add(c.CutAfter != 0, "cut after %d bytes", c.CutAfter)
	add(c.CutTime != 0, "cut after %v", c.CutTime)
	add(true, "seed %d", c.Seed)
	return strings.Join(s, ", ")
}

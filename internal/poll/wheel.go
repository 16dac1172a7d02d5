package poll

import (
	"math"
	"math/bits"
	"time"
)

// Never is a deadline that is not.
const Never = int64(math.MaxInt64)

const (
	wheelTick  = int64(4 * time.Millisecond)
	wheelSlots = 1024 // a turn takes four seconds; later deadlines are looked at once a turn
)

// Wheel holds one deadline for each of many things, which have small numbers.
// Setting and clearing take constant time. Times are nanoseconds on a clock of
// the caller's that does not go back; a deadline is met up to 4 ms late. The
// zero value is ready. A Wheel takes 16 bytes for each number up to the highest.
type Wheel struct {
	heads  [wheelSlots]int32 // the first of a slot's list, plus one
	filled [wheelSlots / 64]uint64
	tick   int64 // what Advance has come to, in ticks
	links  []wheelLink
}

type wheelLink struct {
	due        int64 // 0: not in a list
	next, prev int32 // plus one; prev of the first is minus the slot, less one
}

// Set gives i the deadline due, in place of the one it has. Never clears it.
func (w *Wheel) Set(i int, due int64) {
	w.Clear(i)
	if due == Never {
		return
	}
	for i >= len(w.links) {
		w.links = append(w.links, wheelLink{})
	}
	due = max(due, 1)
	tick := (due + wheelTick - 1) / wheelTick
	tick = min(max(tick, w.tick+1), w.tick+wheelSlots-1)
	slot := int32(tick % wheelSlots)
	next := w.heads[slot]
	w.links[i] = wheelLink{due: due, next: next, prev: -slot - 1}
	if next > 0 {
		w.links[next-1].prev = int32(i) + 1
	}
	w.heads[slot] = int32(i) + 1
	w.filled[slot/64] |= 1 << (slot % 64)
}

// Clear takes the deadline from i.
func (w *Wheel) Clear(i int) {
	if i >= len(w.links) || w.links[i].due == 0 {
		return
	}
	l := w.links[i]
	w.links[i] = wheelLink{}
	if l.next > 0 {
		w.links[l.next-1].prev = l.prev
	}
	if l.prev > 0 {
		w.links[l.prev-1].next = l.next
		return
	}
	slot := -l.prev - 1
	w.heads[slot] = l.next
	if l.next == 0 {
		w.filled[slot/64] &^= 1 << (slot % 64)
	}
}

// Due returns the deadline of i, Never if it has none.
func (w *Wheel) Due(i int) int64 {
	if i >= len(w.links) || w.links[i].due == 0 {
		return Never
	}
	return w.links[i].due
}

// Next returns when to call Advance: no deadline is due before. It is Never if
// there are none.
func (w *Wheel) Next() int64 {
	start := int((w.tick + 1) % wheelSlots)
	for i := range len(w.filled) + 1 {
		word := (start/64 + i) % len(w.filled)
		set := w.filled[word]
		switch i {
		case 0:
			set &= ^uint64(0) << (start % 64)
		case len(w.filled):
			set &^= ^uint64(0) << (start % 64)
		}
		if set != 0 {
			slot := word*64 + bits.TrailingZeros64(set)
			return (w.tick + 1 + int64((slot-start+wheelSlots)%wheelSlots)) * wheelTick
		}
	}
	return Never
}

// Advance clears the deadlines that are due at now and calls fire for each,
// which may set and clear any.
func (w *Wheel) Advance(now int64, fire func(i int)) {
	to := now / wheelTick
	for w.tick < to {
		next := w.Next()
		if next == Never || next/wheelTick > to {
			w.tick = to
			return
		}
		w.tick = next / wheelTick
		slot := w.tick % wheelSlots
		// What is set again while this goes on lands in a later slot.
		for w.heads[slot] > 0 {
			i := int(w.heads[slot] - 1)
			due := w.links[i].due
			w.Clear(i)
			if due > now {
				w.Set(i, due) // another turn
			} else {
				fire(i)
			}
		}
	}
}

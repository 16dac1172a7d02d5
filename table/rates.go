package table

import "time"

// sample is what is kept of a socket to compare with.
type sample struct {
	opened    time.Time // when it was first seen
	at        time.Time
	in, out   uint64 // bytes so far
	hasCounts bool
}

// rates compares the rows with those of the last time, and fills Opened of the
// sockets that were not there then, and Rate.
func (r *Reader) rates(t *Table) {
	now := time.Now()
	first := r.before == nil
	next := make(map[ID]sample, len(t.Rows))
	for i := range t.Rows {
		row := &t.Rows[i]
		s := sample{at: now}
		if row.Info != nil {
			s.in, s.out, s.hasCounts = row.Info.BytesReceived, row.Info.BytesAcked, true
		}
		last, seen := r.before[row.ID()]
		switch {
		case seen:
			s.opened = last.opened
		case !first:
			s.opened = now
		}
		if row.Opened = s.opened; seen && s.hasCounts && last.hasCounts && s.in >= last.in && s.out >= last.out {
			seconds := now.Sub(last.at).Seconds()
			row.Rate = Rate{Known: true, In: uint64(float64(s.in-last.in) / seconds), Out: uint64(float64(s.out-last.out) / seconds)}
		}
		next[row.ID()] = s
	}
	r.before = next
}

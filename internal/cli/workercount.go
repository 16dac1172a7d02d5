package cli

import (
	"sync"

	"github.com/fivetuple/fivetuple/prefork"
	"github.com/fivetuple/fivetuple/stats"
)

// workerCount adds the events of a worker to the counters of all, which outlive it.
type workerCount struct {
	counters *prefork.Counters
	mu       sync.Mutex
	seen     map[uint64]moved // by connections that live long
}

// moved is what was counted of a connection.
type moved struct{ in, out uint64 }

// Record implements stats.Sink.
func (w *workerCount) Record(e stats.Event) {
	switch e.Kind {
	case stats.Accept:
		w.counters.Add(countAccepted, 1)
	case stats.Error:
		w.counters.Add(countErrors, 1)
	case stats.Data:
		w.count(e, false)
	case stats.Disconnect:
		w.count(e, true)
		w.counters.Add(countEnded, 1)
	}
}

// count adds what moved since the connection was last heard of.
func (w *workerCount) count(e stats.Event, last bool) {
	w.mu.Lock()
	before, seen := w.seen[e.Conn]
	if last {
		delete(w.seen, e.Conn)
		if seen && len(w.seen) == 0 {
			w.seen = make(map[uint64]moved) // a map keeps the room of its largest time
		}
	} else {
		w.seen[e.Conn] = moved{e.BytesIn, e.BytesOut}
	}
	w.mu.Unlock()
	w.counters.Add(countIn, e.BytesIn-before.in)
	w.counters.Add(countOut, e.BytesOut-before.out)
}

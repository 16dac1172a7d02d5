package stats

import (
	"fmt"
	"sync"
	"time"

	"github.com/fivetuple/fivetuple"
	"github.com/fivetuple/fivetuple/internal/quota"
)

// Recorder hands the events of one service to a sink, and keeps errors that come
// by the thousand from filling it. Set the fields before the first event; it may
// then be used by many goroutines at once.
type Recorder struct {
	Service string // the name in its events
	Sink    Sink   // nil discards them

	mu     sync.Mutex
	errors quota.PerSecond
	kept   uint64      // errors that were only counted, since it was last said how many
	later  *time.Timer // says how many; nil before the first
}

// maxErrors is how many Error events a Recorder makes in a second.
const maxErrors = 10

// Record records an event, of now if it has no time.
func (r *Recorder) Record(e Event) {
	if r.Sink == nil {
		return
	}
	if e.Time.IsZero() {
		e.Time = time.Now()
	}
	e.Service = r.Service
	r.Sink.Record(e)
}

// Error records an error, up to ten in a second. Further ones are counted, and
// their number is recorded ("12 more errors") a second after the first of them.
func (r *Recorder) Error(tuple fivetuple.Tuple, err error) {
	if r.TakeError() {
		r.Record(Event{Kind: Error, Tuple: tuple, Err: err.Error()})
	}
}

// TakeError says whether another error may be recorded in this second, for those
// who record it themselves. If not, it is counted.
func (r *Recorder) TakeError() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.errors.Take(time.Now(), maxErrors) {
		return true
	}
	r.kept++
	switch {
	case r.later == nil:
		r.later = time.AfterFunc(time.Second, r.Flush)
	case r.kept == 1:
		r.later.Reset(time.Second)
	}
	return false
}

// Flush says how many errors were only counted, if any were. Whoever ends a
// service calls it at the end.
func (r *Recorder) Flush() {
	r.mu.Lock()
	n := r.kept
	r.kept = 0
	if r.later != nil {
		r.later.Stop()
	}
	r.mu.Unlock()
	if n > 0 {
		r.Record(Event{Kind: Error, Err: fmt.Sprintf("%d more errors", n)})
	}
}

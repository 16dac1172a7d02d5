package stats

import (
	"context"
	"sync"
	"sync/atomic"
	"time"
)

// BatchSink is a Sink that would rather take many events at once. RecordBatch
// must not keep the slice.
type BatchSink interface {
	Sink
	RecordBatch([]Event)
}

// QueueOptions tune a [Queue]. The zero value works.
type QueueOptions struct {
	Size  int           // events that may wait; further ones are lost. Default 8192
	Delay time.Duration // how long the first event of a batch waits for more, unless half of Size wait. Default 0: not at all
}

// Queue is a Sink in front of a slow one: it takes events without waiting and
// hands them on from a goroutine of its own, in order, everything that waits
// at a time. When it is full it loses events and counts them. Close it to end
// the goroutine.
type Queue struct {
	deliver func([]Event)
	size    int
	delay   time.Duration
	dropped atomic.Uint64

	mu      sync.Mutex
	pending []Event
	oldest  time.Time // when the first pending event came
	closed  bool

	wake    chan struct{}      // the first event waits
	urgent  chan struct{}      // half of size wait
	flushes chan chan struct{} // each closed once everything that waited is delivered
	closing chan struct{}
	done    chan struct{}
}

// NewQueue starts a queue in front of sink, which gets batches if it is a [BatchSink].
func NewQueue(sink Sink, opts QueueOptions) *Queue {
	if opts.Size <= 0 {
		opts.Size = 8192
	}
	q := &Queue{
		deliver: eachTo(sink),
		size:    opts.Size,
		delay:   opts.Delay,
		wake:    make(chan struct{}, 1),
		urgent:  make(chan struct{}, 1),
		flushes: make(chan chan struct{}),
		closing: make(chan struct{}),
		done:    make(chan struct{}),
	}
	if b, ok := sink.(BatchSink); ok {
		q.deliver = b.RecordBatch
	}
	go q.run()
	return q
}

func eachTo(sink Sink) func([]Event) {
	return func(batch []Event) {
		for _, e := range batch {
			sink.Record(e)
		}
	}
}

// Record queues the event, or drops and counts it if the queue is full or closed.
func (q *Queue) Record(e Event) {
	q.mu.Lock()
	if q.closed || len(q.pending) >= q.size {
		q.mu.Unlock()
		q.dropped.Add(1)
		return
	}
	q.pending = append(q.pending, e)
	n := len(q.pending)
	if n == 1 {
		q.oldest = time.Now()
	}
	q.mu.Unlock()
	if n == 1 {
		notify(q.wake)
	}
	if n == (q.size+1)/2 {
		notify(q.urgent)
	}
}

func notify(c chan<- struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

// Dropped is how many events were lost because the queue was full or closed.
func (q *Queue) Dropped() uint64 { return q.dropped.Load() }

// Flush waits until every event recorded before it is delivered, or until ctx ends.
func (q *Queue) Flush(ctx context.Context) error {
	delivered := make(chan struct{})
	select {
	case q.flushes <- delivered:
	case <-q.done:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
	select {
	case <-delivered:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// Close delivers what waits and ends the queue; later events are dropped. It
// waits as long as the sink takes. Closing again only waits.
func (q *Queue) Close() {
	q.mu.Lock()
	if !q.closed {
		q.closed = true
		close(q.closing)
	}
	q.mu.Unlock()
	<-q.done
}

func (q *Queue) run() {
	defer close(q.done)
	var spare []Event
	for {
		var flushed chan struct{}
		closing := false
		select {
		case <-q.wake:
			flushed = q.gather()
		case flushed = <-q.flushes:
		case <-q.closing:
			closing = true
		}
		batch := q.take(spare)
		if len(batch) > 0 {
			q.deliver(batch)
		}
		clear(batch) // let go of the events' strings
		spare = batch[:0]
		if flushed != nil {
			close(flushed)
		}
		if closing {
			return
		}
	}
}

// gather waits until the oldest event has waited for the delay, or something
// does not want to wait; a flush that came is returned to be answered.
func (q *Queue) gather() (flushed chan struct{}) {
	q.mu.Lock()
	wait := q.delay - time.Since(q.oldest)
	q.mu.Unlock()
	if q.delay <= 0 || wait <= 0 {
		return nil
	}
	t := time.NewTimer(wait)
	defer t.Stop()
	select {
	case <-t.C:
	case <-q.urgent:
	case flushed = <-q.flushes:
	case <-q.closing:
	}
	return flushed
}

// take swaps what is pending for an empty slice. A late urgent belongs to what
// is taken and goes with it.
func (q *Queue) take(empty []Event) []Event {
	q.mu.Lock()
	defer q.mu.Unlock()
	batch := q.pending
	q.pending = empty
	select {
	case <-q.urgent:
	default:
	}
	return batch
}

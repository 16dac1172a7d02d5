package stats

import (
	"context"
	"errors"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// batches is a BatchSink that keeps what it got and can be held up.
type batches struct {
	mu   sync.Mutex
	got  [][]Event
	hold chan struct{} // RecordBatch waits until it is closed
}

func (b *batches) Record(e Event) { b.RecordBatch([]Event{e}) }

func (b *batches) RecordBatch(es []Event) {
	if b.hold != nil {
		<-b.hold
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	b.got = append(b.got, append([]Event(nil), es...))
}

func (b *batches) conns() (ids []uint64) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, batch := range b.got {
		for _, e := range batch {
			ids = append(ids, e.Conn)
		}
	}
	return ids
}

func TestQueueDeliversEverythingInOrder(t *testing.T) {
	const events = 50_000
	var sink batches
	q := NewQueue(&sink, QueueOptions{Size: events})
	for i := range uint64(events) {
		q.Record(Event{Conn: i})
	}
	q.Close()
	ids := sink.conns()
	if len(ids) != events || q.Dropped() != 0 {
		t.Fatalf("got %d events, %d dropped; want %d, 0", len(ids), q.Dropped(), events)
	}
	for i, id := range ids {
		if id != uint64(i) {
			t.Fatalf("event %d is %d: out of order", i, id)
		}
	}
}

func TestQueueOfManyWritersLosesNothingUncounted(t *testing.T) {
	var sink Counters
	q := NewQueue(&sink, QueueOptions{Size: 64})
	var writers sync.WaitGroup
	for range 8 {
		writers.Go(func() {
			for range 5000 {
				q.Record(Event{Kind: Accept})
			}
		})
	}
	writers.Wait()
	q.Close()
	if got := sink.Snapshot()[0].Accepted + q.Dropped(); got != 8*5000 {
		t.Errorf("%d delivered or counted as dropped, want %d", got, 8*5000)
	}
}

func TestQueueNeverWaitsForASlowSink(t *testing.T) {
	sink := batches{hold: make(chan struct{})}
	q := NewQueue(&sink, QueueOptions{Size: 4})
	// The sink is stuck: at most 4 events are with it and 4 wait.
	for i := range uint64(100) {
		q.Record(Event{Conn: i})
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Millisecond)
	defer cancel()
	if err := q.Flush(ctx); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("flush of a stuck sink: got %v, want a deadline", err)
	}
	if d := q.Dropped(); d < 92 || d > 96 {
		t.Errorf("%d dropped of 100, want 92 to 96", d)
	}
	close(sink.hold)
	q.Close()
	if n := uint64(len(sink.conns())); n+q.Dropped() != 100 {
		t.Errorf("%d delivered and %d dropped, want 100 together", n, q.Dropped())
	}
	q.Record(Event{})
	if n := uint64(len(sink.conns())); n+q.Dropped() != 101 {
		t.Error("an event after Close is neither delivered nor counted")
	}
	q.Close()
	if err := q.Flush(t.Context()); err != nil {
		t.Errorf("flush after close: %v", err)
	}
}

func TestQueueFlushWaitsForWhatWasRecorded(t *testing.T) {
	var sink batches
	q := NewQueue(&sink, QueueOptions{Delay: time.Hour})
	defer q.Close()
	for round := range 100 {
		q.Record(Event{})
		if err := q.Flush(t.Context()); err != nil {
			t.Fatal(err)
		}
		if got := len(sink.conns()); got != round+1 {
			t.Fatalf("%d delivered after flush %d", got, round+1)
		}
	}
}

func TestQueueDelayCountsFromTheFirstEvent(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var sink batches
		q := NewQueue(&sink, QueueOptions{Size: 100, Delay: 20 * time.Millisecond})
		defer q.Close()
		q.Record(Event{Conn: 1})
		time.Sleep(15 * time.Millisecond)
		q.Record(Event{Conn: 2})
		synctest.Wait()
		if n := len(sink.conns()); n != 0 {
			t.Fatalf("%d delivered after 15 ms of 20", n)
		}
		time.Sleep(5 * time.Millisecond)
		synctest.Wait()
		if n := len(sink.got); n != 1 || len(sink.got[0]) != 2 {
			t.Fatalf("got batches %v after 20 ms, want one of two events", sink.got)
		}
		for range 50 { // half of Size does not wait
			q.Record(Event{})
		}
		synctest.Wait()
		if n := len(sink.conns()); n != 52 {
			t.Fatalf("%d delivered when the queue was half full, want 52", n)
		}
	})
}

func TestQueueDelayPassesWhileTheSinkIsBusy(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const ms = time.Millisecond
		began := time.Now()
		var delivered []time.Duration
		q := NewQueue(SinkFunc(func(Event) {
			delivered = append(delivered, time.Since(began))
			time.Sleep(30 * ms)
		}), QueueOptions{Delay: 20 * ms})
		q.Record(Event{}) // with the sink from 20 to 50 ms
		time.Sleep(25 * ms)
		q.Record(Event{})
		time.Sleep(60 * ms)
		q.Close()
		if want := []time.Duration{20 * ms, 50 * ms}; !slices.Equal(delivered, want) {
			t.Errorf("delivered at %v, want %v", delivered, want)
		}
	})
}

func BenchmarkQueueRecord(b *testing.B) {
	q := NewQueue(SinkFunc(func(Event) {}), QueueOptions{})
	defer q.Close()
	e := Event{Kind: Accept, Service: "echo"}
	b.ReportAllocs()
	for b.Loop() {
		q.Record(e)
	}
	b.ReportMetric(float64(q.Dropped())/float64(b.N), "dropped/op")
}

func BenchmarkCountersRecord(b *testing.B) {
	var c Counters
	e := Event{Kind: Disconnect, Service: "echo", Conn: 7, BytesIn: 10, Cause: "peer closed", Time: time.Now()}
	b.ReportAllocs()
	for b.Loop() {
		c.Record(e)
	}
}

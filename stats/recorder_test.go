package stats

import (
	"errors"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/fivetuple/fivetuple"
)

// recorded runs f with a recorder, in a time of its own, and returns the errors.
func recorded(t *testing.T, f func(r *Recorder)) (errs []string) {
	synctest.Test(t, func(t *testing.T) {
		var mu sync.Mutex
		r := &Recorder{Service: "web", Sink: SinkFunc(func(e Event) {
			mu.Lock()
			defer mu.Unlock()
			errs = append(errs, e.Err)
		})}
		f(r)
		synctest.Wait()
	})
	return errs
}

func fail(r *Recorder, times int) {
	for range times {
		r.Error(fivetuple.Tuple{}, errors.New("no"))
	}
}

func TestRecorderFillsInServiceAndTime(t *testing.T) {
	var got []Event
	r := &Recorder{Service: "web", Sink: SinkFunc(func(e Event) { got = append(got, e) })}
	r.Record(Event{Kind: Accept, Conn: 1})
	r.Record(Event{Kind: Accept, Time: at(5)})
	r.Error(fivetuple.Tuple{Protocol: fivetuple.TCP}, errors.New("no"))
	if len(got) != 3 || got[0].Service != "web" || time.Since(got[0].Time) > time.Minute || got[0].Conn != 1 || !got[1].Time.Equal(at(5)) {
		t.Errorf("got %+v", got)
	}
	if e := got[2]; e.Kind != Error || e.Err != "no" || e.Tuple.Protocol != fivetuple.TCP || e.Service != "web" {
		t.Errorf("got %+v", e)
	}
}

func TestRecorderWithoutASinkDiscards(t *testing.T) {
	var r Recorder
	r.Record(Event{Kind: Accept})
	fail(&r, 20)
	r.Flush()
}

func TestErrorsAreToldTenASecondAndTheRestCounted(t *testing.T) {
	errs := recorded(t, func(r *Recorder) {
		fail(r, 25)
		time.Sleep(999 * time.Millisecond)
		fail(r, 1)
		time.Sleep(2 * time.Millisecond)
		fail(r, 1)
		time.Sleep(time.Hour)
	})
	want := append(slices.Repeat([]string{"no"}, 10), "16 more errors", "no")
	if !slices.Equal(errs, want) {
		t.Errorf("got %q, want %q", errs, want)
	}
}

func TestAFloodOfErrorsIsToldOfWhileItLasts(t *testing.T) {
	errs := recorded(t, func(r *Recorder) {
		for range 1000 {
			fail(r, 1)
			time.Sleep(10 * time.Millisecond)
		}
		time.Sleep(time.Second)
	})
	more := slices.DeleteFunc(errs, func(s string) bool { return s == "no" })
	if len(more) < 9 || len(more) > 11 {
		t.Errorf("told %d times in 10 s: %q", len(more), more)
	}
}

func TestFlushTellsWhatWasOnlyCountedOnce(t *testing.T) {
	errs := recorded(t, func(r *Recorder) {
		fail(r, 12)
		r.Flush()
		r.Flush()
		time.Sleep(time.Hour)
	})
	if len(errs) != 11 || errs[10] != "2 more errors" {
		t.Errorf("got %q", errs)
	}
}

func TestCountingAnErrorAllocatesNothing(t *testing.T) {
	r := &Recorder{}
	err := errors.New("no")
	fail(r, 20)
	defer r.Flush()
	if n := testing.AllocsPerRun(100, func() { r.Error(fivetuple.Tuple{}, err) }); n > 0 {
		t.Errorf("%v allocations", n)
	}
}

package history

import (
	"fmt"
	"math/rand/v2"
	"path/filepath"
	"testing"
	"time"

	"github.com/fivetuple/fivetuple/stats"
	"github.com/google/go-cmp/cmp"
)

func totals(t testing.TB, d *DB, q Query) []stats.ServiceCounters {
	t.Helper()
	rows, err := d.Totals(t.Context(), q)
	if err != nil {
		t.Fatal(err)
	}
	return rows
}

func TestTotalsOfNothing(t *testing.T) {
	if rows := totals(t, open(t, Options{}), Query{}); len(rows) != 0 {
		t.Errorf("got %v", rows)
	}
}

func TestTotalsAcrossRuns(t *testing.T) {
	at := func(s int64) time.Time { return time.Unix(1_700_000_000+s, 0) }
	d := open(t, Options{MaxAge: -1})
	run := []stats.Event{
		{Time: at(1), Kind: stats.Listen, Service: "web"},
		{Time: at(2), Kind: stats.Accept, Service: "web", Conn: 1},
		{Time: at(3), Kind: stats.Accept, Service: "web", Conn: 2},
		{Time: at(4), Kind: stats.Connect, Service: "web", Conn: 3},
		{Time: at(5), Kind: stats.Data, Service: "web", Conn: 1, BytesIn: 10, PacketsOut: 1},
		{Time: at(6), Kind: stats.Data, Service: "web", Conn: 1, BytesIn: 20, PacketsOut: 2},
		{Time: at(7), Kind: stats.Data, Service: "web", Conn: 2, BytesIn: 100},
		{Time: at(8), Kind: stats.Disconnect, Service: "web", Conn: 2, BytesIn: 101, BytesOut: 5, Cause: "peer closed"},
		{Time: at(9), Kind: stats.Disconnect, Service: "web", Conn: 3, BytesIn: 1000},
		{Time: at(10), Kind: stats.Error, Service: "web"},
		{Time: at(11), Kind: stats.Accept, Service: "none"},
		{Time: at(11), Kind: stats.Accept, Service: "none"},
		{Time: at(11), Kind: stats.Accept, Service: "none"},
		{Time: at(12), Kind: stats.Disconnect, Service: "none", BytesIn: 7},
		{Time: at(12), Kind: stats.Disconnect, Service: "none", BytesIn: 3},
	}
	// Two runs that were killed, one that ended properly with its connections open, one that lives.
	for range 2 {
		s, err := newSession(d.path, d.pool)
		if err != nil {
			t.Fatal(err)
		}
		if err := s.commit(run); err != nil {
			t.Fatal(err)
		}
		s.release()
	}
	record(t, d, run...)
	w := newWriter(t, d)
	defer w.Close()
	for _, e := range run {
		w.Record(e)
	}
	w.Flush(t.Context())

	want := []stats.ServiceCounters{
		{Service: "none", Live: 1, Connections: 12, Accepted: 12, Disconnected: 8, Causes: map[string]uint64{stats.UnknownCause: 8},
			Unfinished: 3, BytesIn: 40, First: at(11), Last: at(12)},
		{Service: "web", Listeners: 1, Live: 1, Connections: 12, Accepted: 8, Connected: 4, Disconnected: 8,
			Causes: map[string]uint64{"peer closed": 4, stats.UnknownCause: 4}, Unfinished: 3, Errors: 4,
			BytesIn: 4 * 1121, BytesOut: 20, PacketsOut: 8, First: at(1), Last: at(10)},
	}
	if diff := cmp.Diff(want, totals(t, d, Query{})); diff != "" {
		t.Errorf("totals (-want +got):\n%s", diff)
	}
	if diff := cmp.Diff(want, totals(t, d, Query{Limit: 1, Kinds: []stats.Kind{stats.Error}})); diff != "" {
		t.Errorf("a limit and kinds make a difference (-want +got):\n%s", diff)
	}
	r, err := OpenReadOnly(t.Context(), d.path, Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	if diff := cmp.Diff(want[1:], totals(t, r, Query{Services: []string{"web"}})); diff != "" {
		t.Errorf("totals of one service, from elsewhere (-want +got):\n%s", diff)
	}
	late := totals(t, d, Query{Since: at(9), Services: []string{"web"}})
	if diff := cmp.Diff([]stats.ServiceCounters{{Service: "web", Disconnected: 4, Causes: map[string]uint64{stats.UnknownCause: 4},
		Errors: 4, BytesIn: 4000, First: at(9), Last: at(10)}}, late); diff != "" {
		t.Errorf("totals since 9 (-want +got):\n%s", diff)
	}
	w.Close()
	if rows := totals(t, d, Query{}); rows[1].Live != 0 || rows[1].Listeners != 0 || rows[1].Unfinished != 4 {
		t.Errorf("after the last writer closed: %+v", rows[1])
	}
}

// What the history adds up is what the counters of the same events say.
func TestTotalsAgreeWithCounters(t *testing.T) {
	for seed := range uint64(5) {
		d := openAt(t, filepath.Join(t.TempDir(), "h.db"), Options{})
		w := newWriter(t, d)
		var counters stats.Counters
		sink := stats.Tee(&counters, w)
		rng := rand.New(rand.NewPCG(seed, 0))
		type conn struct {
			service string
			id, sum uint64
		}
		var live []conn
		for id := range uint64(3000) {
			service := fmt.Sprintf("s%d", rng.IntN(4))
			e := stats.Event{Time: time.Now().Round(0), Service: service}
			switch n := rng.IntN(10); {
			case n < 3 || len(live) == 0:
				e.Kind, e.Conn = []stats.Kind{stats.Accept, stats.Connect}[rng.IntN(2)], id+1
				live = append(live, conn{service, id + 1, 0})
			case n < 8:
				i := rng.IntN(len(live))
				c := &live[i]
				c.sum += rng.Uint64N(1000)
				e.Kind, e.Service, e.Conn = stats.Data, c.service, c.id
				e.BytesIn, e.BytesOut, e.PacketsIn, e.PacketsOut = c.sum, c.sum*2, c.sum/3, c.sum/4
				if rng.IntN(3) == 0 {
					e.Kind, e.Cause = stats.Disconnect, []string{"", "reset", "peer closed"}[rng.IntN(3)]
					live[i] = live[len(live)-1]
					live = live[:len(live)-1]
				}
			default:
				e.Kind = []stats.Kind{stats.Listen, stats.Error}[rng.IntN(2)]
			}
			sink.Record(e)
		}
		if err := w.Flush(t.Context()); err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(counters.Snapshot(), totals(t, d, Query{})); diff != "" {
			t.Errorf("seed %d (-counters +history):\n%s", seed, diff)
		}
		w.Close()
	}
}

package changes

import (
	"net/netip"
	"runtime"
	"testing"
	"time"

	"github.com/fivetuple/fivetuple"
	"github.com/fivetuple/fivetuple/netns"
	"github.com/fivetuple/fivetuple/table"
)

// many is a watcher that knows n connections.
func many(n int) (*watcher, []table.Row) {
	w := newWatcher(Options{})
	w.netns, w.events = &netns.Namespace{ID: 7}, true
	rows := make([]table.Row, n)
	for i := range rows {
		rows[i] = tcp(uint64(i+1), fivetuple.StateEstablished, "10.0.0.1:80", "10.0.0.2:1")
		rows[i].Remote = netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, byte(i >> 24), byte(i >> 16), byte(i >> 8)}), uint16(i))
		rows[i].Namespace = w.netns
	}
	w.compare(rows)
	return w, rows
}

// compare is a look that showed the rows.
func (w *watcher) compare(rows []table.Row) {
	w.look++
	w.before, w.began = w.began, time.Now()
	w.steps, w.ownerless = w.steps[:0], w.ownerless[:0]
	for i := range rows {
		w.see(&rows[i])
	}
	w.gone()
}

func TestLookAtKnownSocketsAllocatesNothing(t *testing.T) {
	w, rows := many(1000)
	if n := testing.AllocsPerRun(10, func() { w.compare(rows) }); n != 0 {
		t.Errorf("%v allocations for 1000 sockets, want 0", n)
	}
}

func TestMemoryForEachSocketIsBounded(t *testing.T) {
	const n, most = 100_000, 1200 // bytes
	var before, after runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&before)
	w, _ := many(n)
	runtime.GC()
	runtime.ReadMemStats(&after)
	each := (after.HeapAlloc - before.HeapAlloc) / n
	if t.Logf("%d bytes for each socket", each); each > most {
		t.Errorf("%d bytes for each socket, want %d at most", each, most)
	}
	if len(w.known) != n {
		t.Errorf("%d are known, want %d", len(w.known), n)
	}
}

// A look takes a fifth of a processor at most, however dear it is.
func TestPauseFollowsTheCostOfALook(t *testing.T) {
	for _, tt := range []struct{ interval, cost, took, want time.Duration }{
		{0, 0, 0, time.Second},
		{time.Second, 50 * time.Millisecond, 50 * time.Millisecond, 950 * time.Millisecond},
		{time.Second, 500 * time.Millisecond, 300 * time.Millisecond, 2 * time.Second},
		{10 * time.Millisecond, 10 * time.Millisecond, 10 * time.Millisecond, 40 * time.Millisecond},
	} {
		w := newWatcher(Options{Interval: tt.interval})
		w.began = time.Now().Add(-tt.took)
		if got := w.pause(tt.cost); got > tt.want || got < tt.want-100*time.Millisecond {
			t.Errorf("interval %v, cost %v: got %v, want %v", tt.interval, tt.cost, got, tt.want)
		}
	}
}

func BenchmarkLookAt100000(b *testing.B) {
	w, rows := many(100_000)
	b.ReportAllocs()
	for b.Loop() {
		w.compare(rows)
	}
}

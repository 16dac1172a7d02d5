package history

import (
	"bytes"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/fivetuple/fivetuple/stats"
)

// lines is a log that can be counted.
type lines struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (l *lines) Write(b []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.buf.Write(b)
}

func (l *lines) logger() *slog.Logger { return slog.New(slog.NewTextHandler(l, nil)) }

// want checks how often each of the messages was logged, and that nothing else was.
func (l *lines) want(t testing.TB, counts map[string]int) {
	t.Helper()
	l.mu.Lock()
	defer l.mu.Unlock()
	text, all := l.buf.String(), 0
	for message, want := range counts {
		if got := strings.Count(text, message); got != want {
			t.Errorf("%q was logged %d times, want %d", message, got, want)
		}
		all += want
	}
	if got := strings.Count(text, "\n"); got != all {
		t.Errorf("%d lines were logged, want %d", got, all)
	}
	if t.Failed() {
		t.Logf("log:\n%s", text)
	}
}

func newWriter(t testing.TB, d *DB) *Writer {
	t.Helper()
	w, err := d.Writer()
	if err != nil {
		t.Fatal(err)
	}
	return w
}

// recordUntil records and flushes until done, within ten seconds, and returns
// how many events it recorded. No Record may take long.
func recordUntil(t testing.TB, w *Writer, done func() bool) (n int) {
	t.Helper()
	deadline := time.Now().Add(10 * time.Second)
	for !done() {
		if time.Now().After(deadline) {
			t.Fatalf("nothing after %d events; stopped by %v, %d lost", n, w.rec.stopped(), w.Lost())
		}
		for range 100 {
			e := sample(n)
			e.Service = fmt.Sprint("service ", n/100%20) // each batch has another, so that there are new ones in a fault
			began := time.Now()
			w.Record(e)
			n++
			if took := time.Since(began); took > 50*time.Millisecond {
				t.Errorf("Record took %v", took)
			}
		}
		w.Flush(t.Context())
	}
	return n
}

// recordBatches records so many batches of 100 events, or until recording stops.
func recordBatches(t testing.TB, w *Writer, n int) (recorded int) {
	return recordUntil(t, w, func() bool { n--; return n < 0 || w.rec.stopped() != nil })
}

func checkIntegrity(t testing.TB, d *DB) {
	t.Helper()
	var result string
	if err := d.handle().QueryRowContext(t.Context(), "PRAGMA integrity_check").Scan(&result); err != nil || result != "ok" {
		t.Errorf("integrity check: %s, %v", result, err)
	}
}

func TestRemovedFilesAreBegunAnew(t *testing.T) {
	for _, suffixes := range [][]string{{"", "-wal", "-shm"}, {""}, {"-wal"}, {"-shm"}} {
		t.Run(strings.Join(suffixes, ","), func(t *testing.T) {
			var log lines
			d := open(t, Options{Log: log.logger()})
			w := newWriter(t, d)
			w.Record(sample(0))
			w.Flush(t.Context())
			for _, suffix := range suffixes {
				if err := os.Remove(d.path + suffix); err != nil {
					t.Fatal(err)
				}
			}
			for i := range 100 {
				w.Record(sample(i))
			}
			if err := w.Flush(t.Context()); err != nil {
				t.Fatal(err)
			}
			want := 100
			if suffixes[0] != "" { // the database itself is still there
				want = 101
			}
			if n := len(query(t, d, Query{})); n != want {
				t.Errorf("%d events in the new file, want %d", n, want)
			}
			if err := w.Close(); err != nil || w.Lost() != 0 {
				t.Errorf("closed with %v, %d lost", err, w.Lost())
			}
			checkIntegrity(t, d)
			d.Close()
			again := openAt(t, d.path, Options{})
			if n := len(query(t, again, Query{})); n != want {
				t.Errorf("%d events when it is opened again, want %d", n, want)
			}
			log.want(t, map[string]int{"was removed or replaced": 1})
		})
	}
}

func TestRemovedDirectoryStopsHistoryOnce(t *testing.T) {
	var log lines
	dir := filepath.Join(t.TempDir(), "state")
	d := openAt(t, filepath.Join(dir, "h.db"), Options{Log: log.logger(), Retry: time.Millisecond})
	w := newWriter(t, d)
	if err := os.RemoveAll(dir); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(dir, nil, 0o600); err != nil { // in the way
		t.Fatal(err)
	}
	lost := recordUntil(t, w, func() bool { return w.Lost() >= 2000 })
	if err := w.Flush(t.Context()); err == nil || w.Lost() != uint64(lost) {
		t.Errorf("Flush: %v; %d lost, want %d", err, w.Lost(), lost)
	}
	log.want(t, map[string]int{"was removed or replaced": 1, "history stops": 1})
	if err := os.Remove(dir); err != nil {
		t.Fatal(err)
	}
	n := recordUntil(t, w, func() bool { return w.rec.stopped() == nil })
	if got := len(query(t, d, Query{})); got+int(w.Lost()) != lost+n || got == 0 {
		t.Errorf("%d events in the file and %d lost, want %d together", got, w.Lost(), lost+n)
	}
	if err := w.Close(); err != nil {
		t.Error(err)
	}
	log.want(t, map[string]int{"was removed or replaced": 1, "history stops": 1, "history goes on": 1})
}

func TestWhatStopsHistoryNamesTheFileOnce(t *testing.T) {
	remove := func(w *Writer) {
		for _, suffix := range []string{"", "-wal", "-shm"} {
			os.Remove(w.rec.db.path + suffix)
		}
	}
	record := func(w *Writer) {
		w.Record(sample(0))
		w.Flush(t.Context())
	}
	breakSession := func(w *Writer, how func(*session)) {
		w.rec.mu.Lock()
		defer w.rec.mu.Unlock()
		how(w.rec.session)
	}
	for name, stop := range map[string]func(w *Writer){
		"a commit":  func(w *Writer) { breakSession(w, func(s *session) { s.insert.Close() }); record(w) },
		"pruning":   func(w *Writer) { breakSession(w, func(s *session) { s.conn.Close() }); w.rec.prune() },
		"reopening": func(w *Writer) { remove(w); os.Mkdir(w.rec.db.path, 0o700); record(w) },
		"a new run": func(w *Writer) {
			remove(w)
			os.Rename(w.rec.db.path+"-runs", w.rec.db.path+"-old")
			os.Mkdir(w.rec.db.path+"-runs", 0o700)
			record(w)
		},
	} {
		t.Run(name, func(t *testing.T) {
			var log lines
			d := open(t, Options{Log: log.logger(), Retry: time.Hour})
			w := newWriter(t, d)
			stop(w)
			err := w.rec.stopped()
			if prefix := "history " + d.path + ": "; err == nil || !strings.HasPrefix(err.Error(), prefix) || strings.Count(err.Error(), prefix) != 1 {
				t.Errorf("stopped by %v, want one %q", err, prefix)
			}
			w.Close()
		})
	}
}

// Whatever is done to the files, the process lives, no Record waits, and the
// file is either whole or refused when it is opened again.
func TestDamageWhileRecording(t *testing.T) {
	truncate := func(suffix string) func(testing.TB, string) {
		return func(t testing.TB, path string) {
			if err := os.Truncate(path+suffix, 0); err != nil {
				t.Fatal(err)
			}
		}
	}
	for name, breakIt := range map[string]func(testing.TB, string){
		"overwritten":         damage,
		"truncated":           truncate(""),
		"truncated log":       truncate("-wal"),
		"truncated log index": truncate("-shm"),
	} {
		t.Run(name, func(t *testing.T) {
			var log lines
			d := open(t, Options{Log: log.logger(), Retry: time.Hour})
			w := newWriter(t, d)
			recordBatches(t, w, 50)
			breakIt(t, d.path)
			recordBatches(t, w, 50)
			stopped := 0
			if w.rec.stopped() != nil {
				stopped = 1
			}
			log.want(t, map[string]int{"history stops": stopped})
			t.Logf("stopped by %v; close: %v; %d lost", w.rec.stopped(), w.Close(), w.Lost())
			d.Close()
			again, err := Open(t.Context(), d.path, Options{})
			if err == nil {
				again.Close()
			} else if !errors.Is(err, ErrDamaged) {
				t.Errorf("opened again: %v", err)
			}
		})
	}
}

func TestRetentionByAge(t *testing.T) {
	d := open(t, Options{MaxAge: time.Hour})
	w := newWriter(t, d)
	now := time.Now()
	for i := range 3000 {
		w.Record(stats.Event{Time: now.Add(-2 * time.Hour), Kind: stats.Accept, Conn: uint64(i)})
	}
	for i := range 10 {
		w.Record(stats.Event{Time: now, Kind: stats.Connect, Conn: uint64(i)})
	}
	w.Flush(t.Context())
	for w.rec.prune() {
	}
	got := query(t, d, Query{})
	if len(got) != 10 || got[0].Kind != stats.Connect {
		t.Errorf("%d events are left, want the 10 new ones", len(got))
	}
	// The newest event stays whatever its age: its id must not be used again.
	last := got[9].ID
	w.rec.db.opts.MaxAge = time.Nanosecond
	for w.rec.prune() {
	}
	w.Record(stats.Event{Kind: stats.Close})
	w.Flush(t.Context())
	if got := query(t, d, Query{After: last}); len(got) != 1 {
		t.Errorf("%d events after the last id, want the one that came after it", len(got))
	}
	w.Close()
}

func TestRetentionBySize(t *testing.T) {
	const limit = 1 << 20
	d := open(t, Options{MaxBytes: limit})
	w := newWriter(t, d)
	for round := range 20 {
		for i := range 2000 {
			w.Record(sample(round*2000 + i))
		}
		w.Flush(t.Context())
		for w.rec.prune() {
		}
	}
	if w.Lost() != 0 {
		t.Fatalf("%d lost", w.Lost())
	}
	entries := query(t, d, Query{})
	if n := len(entries); n < 3000 || n > 20_000 || entries[n-1].ID != 40_000 {
		t.Errorf("%d of 40,000 events are left, the last is %d", n, entries[n-1].ID)
	}
	checkIntegrity(t, d)
	w.Close()
	d.Close()
	info, err := os.Stat(d.path)
	if err != nil || info.Size() > 3*limit {
		t.Errorf("the file is %d bytes (%v), for %d bytes of content", info.Size(), err, limit)
	}
	// A smaller limit shrinks the file itself, a step each second of recording.
	d = openAt(t, d.path, Options{MaxBytes: limit / 8})
	w = newWriter(t, d)
	for range 20 {
		for w.rec.prune() {
		}
	}
	w.Close()
	d.Close()
	smaller, err := os.Stat(d.path)
	if err != nil || smaller.Size() > info.Size()/2 {
		t.Errorf("the file is %d bytes with an eighth of the limit, was %d", smaller.Size(), info.Size())
	}
}

func TestMaintenanceRunsBesideRecording(t *testing.T) {
	d := open(t, Options{MaxBytes: 256 << 10})
	w := newWriter(t, d)
	defer w.Close()
	recordUntil(t, w, func() bool {
		first, _, err := d.span(t.Context(), Query{})
		info, _ := os.Stat(d.path)
		return err == nil && first > 10_000 && info.Size() > 100<<10 // pruned, and copied out of the log
	})
}

// The lag is how long after Record another connection finds the event.
func TestWriterIsAtMost100msBehind(t *testing.T) {
	const rate, events = testRate, testRate * 3 / 2
	d := open(t, Options{MaxBytes: 1 << 20}) // with retention and checkpoints at work
	w := newWriter(t, d)
	defer w.Close()
	recorded := make([]time.Time, events+1) // by id
	var mu sync.Mutex
	known := 0
	var writer sync.WaitGroup
	writer.Go(func() {
		tick := time.NewTicker(time.Millisecond)
		defer tick.Stop()
		for began, n := time.Now(), 0; n < events; <-tick.C {
			mu.Lock()
			for due := int(time.Since(began).Seconds() * rate); n < min(due, events); n++ {
				w.Record(sample(n))
				recorded[n+1] = time.Now()
			}
			known = n
			mu.Unlock()
		}
	})
	var lags []time.Duration
	for seen := 0; seen < events; {
		var id int
		asked := time.Now()
		if err := d.handle().QueryRowContext(t.Context(), "SELECT coalesce(max(id), 0) FROM events").Scan(&id); err != nil {
			t.Fatal(err)
		}
		mu.Lock()
		if id < known {
			lags = append(lags, asked.Sub(recorded[id+1])) // the oldest that is not there yet
		}
		mu.Unlock()
		seen = id
	}
	writer.Wait()
	slices.Sort(lags)
	at := func(p float64) time.Duration { return lags[int(p*float64(len(lags)-1))] }
	t.Logf("age of the oldest event that cannot be read yet, of %d looks at %d events/s: median %v, 99%% %v, worst %v; %d lost",
		len(lags), rate, at(0.5), at(0.99), at(1), w.Lost())
	if at(1) > 100*time.Millisecond || w.Lost() > 0 {
		t.Errorf("the writer was %v behind and lost %d events", at(1), w.Lost())
	}
}

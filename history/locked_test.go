package history

import (
	"context"
	"strings"
	"testing"
	"time"

	"github.com/fivetuple/fivetuple/internal/sqlitefile"
)

// lockFile takes SQLite's lock from another connection, as VACUUM does, and
// returns how to give it back. The writer does not wait the whole BusyTimeout.
func lockFile(t *testing.T, w *Writer) (unlock func()) {
	t.Helper()
	w.rec.mu.Lock()
	defer w.rec.mu.Unlock()
	if _, err := w.rec.session.conn.ExecContext(t.Context(), "PRAGMA busy_timeout = 1"); err != nil {
		t.Fatal(err)
	}
	other, err := format.Open(t.Context(), w.rec.db.path)
	if err != nil {
		t.Fatal(err)
	}
	tx, err := other.BeginTx(t.Context(), nil)
	if err != nil {
		t.Fatal(err)
	}
	return func() {
		tx.Rollback()
		other.Close()
	}
}

func (l *lines) has(text string) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return strings.Contains(l.buf.String(), text)
}

// recordWaiting records events until the log says that the writer waits.
func recordWaiting(t *testing.T, w *Writer, log *lines) (recorded int) {
	t.Helper()
	for deadline := time.Now().Add(10 * time.Second); !log.has("history waits"); recorded++ {
		if time.Now().After(deadline) {
			t.Fatal("the writer does not say that it waits")
		}
		w.Record(sample(recorded))
		ctx, cancel := context.WithTimeout(t.Context(), time.Millisecond)
		w.Flush(ctx)
		cancel()
	}
	return recorded
}

func TestLockedFileLosesOnlyWhatOverflowsTheQueue(t *testing.T) {
	var log lines
	d := open(t, Options{Log: log.logger(), Retry: time.Hour})
	w := newWriter(t, d)
	for _, burst := range []int{batchSize + 1, queueSize + 100} {
		log.buf.Reset()
		unlock := lockFile(t, w)
		recorded := recordWaiting(t, w, &log)
		before, lost := len(query(t, d, Query{})), int(w.Lost())
		for i := range burst {
			w.Record(sample(i))
		}
		unlock()
		if err := w.Flush(t.Context()); err != nil {
			t.Fatal(err)
		}
		lost = int(w.Lost()) - lost
		if overflow := burst > queueSize; overflow != (lost > 0) {
			t.Errorf("%d of %d events lost", lost, burst)
		}
		if got := len(query(t, d, Query{})) - before; got+lost != recorded+burst {
			t.Errorf("%d events can be read and %d are counted as lost, of %d", got, lost, recorded+burst)
		}
		log.want(t, map[string]int{"history waits": 1, "history goes on": 1})
	}
	if err := w.Close(); err != nil {
		t.Error(err)
	}
	checkIntegrity(t, d)
}

func TestLockedFileDoesNotHoldUpClose(t *testing.T) {
	var log lines
	d := open(t, Options{Log: log.logger()})
	w := newWriter(t, d)
	defer lockFile(t, w)()
	recorded := recordWaiting(t, w, &log)
	began := time.Now()
	if err := w.Close(); !isLocked(err) {
		t.Errorf("closed with %v, want that the file is locked", err)
	}
	if took := time.Since(began); took > sqlitefile.BusyTimeout {
		t.Errorf("Close took %v", took)
	}
	if lost := int(w.Lost()); lost != recorded {
		t.Errorf("%d events are counted as lost, want %d", lost, recorded)
	}
	log.want(t, map[string]int{"history waits": 1, "history stops": 1})
}

func TestLockedFileIsPrunedLater(t *testing.T) {
	d := open(t, Options{})
	w := newWriter(t, d)
	defer w.Close()
	unlock := lockFile(t, w)
	if w.rec.prune() || w.rec.stopped() != nil {
		t.Errorf("pruning a locked file stopped history: %v", w.rec.stopped())
	}
	unlock()
}

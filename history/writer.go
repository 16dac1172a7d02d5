package history

import (
	"context"
	"errors"
	"sync"
	"sync/atomic"
	"time"

	"github.com/fivetuple/fivetuple/internal/sqlitefile"
	"github.com/fivetuple/fivetuple/stats"
	sqlite3 "modernc.org/sqlite/lib"
)

const (
	gather    = 20 * time.Millisecond // how long a batch waits for more events
	queueSize = 16384                 // events that may wait for the disk; about 4 MB
	batchSize = 1000                  // events in a transaction, so that the first is not held up by the last
)

// Writer is a Sink that records into a [DB]. Events are committed at most
// 100 ms after Record (about 25 ms as a rule), without Record ever waiting.
//
// When the file cannot be written (the disk is full or read-only, the file
// damaged), the writer says so once in the log, counts what it loses, and
// tries again every Options.Retry. A file that was removed is begun anew.
//
// While another process holds SQLite's lock (a person's VACUUM, say) the writer
// waits, as long as it takes, and nothing is lost until 16,384 events queue up;
// further ones are lost and counted. After 5 s it says so once in the log. Only
// Close does not wait longer than that.
type Writer struct {
	rec      *recorder
	queue    *stats.Queue
	maintain sync.WaitGroup
	stop     context.CancelFunc
	close    sync.Once
	err      error // of close
}

// Writer begins a run and returns its writer. There can be one at a time for
// each DB; several processes may each have one for the same file.
func (d *DB) Writer() (*Writer, error) {
	if d.readOnly {
		return nil, d.wrap(errors.New("is open for reading only"))
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.writer != nil {
		return nil, d.wrap(errors.New("has a writer already"))
	}
	rec := &recorder{db: d}
	s, err := newSession(d.path, d.pool)
	if err != nil {
		return nil, d.wrap(err)
	}
	rec.session, rec.closing = s, make(chan struct{})
	ctx, stop := context.WithCancel(context.Background())
	rec.queue = stats.NewQueue(rec, stats.QueueOptions{Size: queueSize, Delay: gather})
	w := &Writer{rec: rec, stop: stop, queue: rec.queue}
	w.maintain.Go(func() { rec.maintain(ctx) })
	d.writer = w
	return w, nil
}

// Record queues the event. One without a time gets the present.
func (w *Writer) Record(e stats.Event) {
	if e.Time.IsZero() {
		e.Time = time.Now()
	}
	w.queue.Record(e)
}

// Lost is how many events could not be recorded, or came too fast.
func (w *Writer) Lost() uint64 { return w.rec.allLost() }

// Flush waits until everything recorded before is committed. It fails when
// recording has stopped, with what stopped it, or when ctx ends.
func (w *Writer) Flush(ctx context.Context) error {
	if err := w.queue.Flush(ctx); err != nil {
		return err
	}
	return w.rec.stopped()
}

// Close commits what waits, ends the run and frees the DB for another writer.
// It fails when recording had stopped, with what stopped it.
func (w *Writer) Close() error {
	w.close.Do(func() {
		close(w.rec.closing)
		w.queue.Close()
		w.stop()
		w.maintain.Wait()
		w.err = errors.Join(w.rec.stopped(), w.rec.db.wrap(w.rec.close()))
		w.rec.db.mu.Lock()
		w.rec.db.writer = nil
		w.rec.db.mu.Unlock()
	})
	return w.err
}

// recorder is the sink behind the writer's queue.
type recorder struct {
	db      *DB
	queue   *stats.Queue // in front of it
	lost    atomic.Uint64
	idle    atomic.Bool   // nothing was written since maintenance last looked
	closing chan struct{} // closed when the writer is about to be

	mu      sync.Mutex
	session *session // nil while the file could not be opened anew
	waiting bool     // for another process's lock, and that was said
	fault   error    // why recording has stopped
	retry   time.Time
	saved   uint64 // lost when all was last well
}

func (r *recorder) Record(e stats.Event) { r.RecordBatch([]stats.Event{e}) }

func (r *recorder) RecordBatch(batch []stats.Event) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.fault != nil && time.Now().Before(r.retry) {
		r.lost.Add(uint64(len(batch)))
		return
	}
	for len(batch) > 0 {
		chunk := batch[:min(len(batch), batchSize)]
		err := r.commit(chunk)
		switch {
		case err == nil:
			batch = batch[len(chunk):]
		case !isLocked(err) || !r.wait():
			r.fail(err, len(batch))
			return
		}
	}
	r.idle.Store(false)
	lost := r.allLost()
	if r.fault != nil || r.waiting {
		r.db.opts.Log.Info("history goes on", "file", r.db.path, "lost", lost-r.saved)
		r.fault, r.waiting = nil, false
	}
	r.saved = lost
}

func (r *recorder) allLost() uint64 { return r.queue.Dropped() + r.lost.Load() }

func (r *recorder) commit(events []stats.Event) error {
	if err := r.prepare(); err != nil {
		return err
	}
	return r.db.wrap(r.session.commit(events))
}

// isLocked says that another process held the lock for all of sqlitefile.BusyTimeout.
func isLocked(err error) bool {
	return sqlitefile.HasCode(err, sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED)
}

// wait returns whether to try again, and says the first time that the file is
// locked. The waiting is SQLite's, but for a pause in case it did not.
func (r *recorder) wait() bool {
	select {
	case <-r.closing:
		return false
	case <-time.After(gather):
	}
	if !r.waiting {
		r.waiting = true
		r.db.opts.Log.Warn("history waits: another process has locked the file; everything else goes on", "file", r.db.path)
	}
	return true
}

// prepare opens the file anew if it is not open, or not the one that is open any more.
func (r *recorder) prepare() error {
	if r.session != nil && r.session.current() {
		return nil
	}
	if r.session != nil {
		r.db.opts.Log.Warn("history file was removed or replaced: opening it anew", "file", r.db.path)
		r.drop()
	}
	if err := r.db.reopen(context.Background()); err != nil {
		return err
	}
	s, err := newSession(r.db.path, r.db.handle())
	if err != nil {
		return r.db.wrap(errors.Join(err, r.db.handle().Close()))
	}
	r.session = s
	return nil
}

// drop closes the file, before it is opened anew, so that SQLite can save what
// is only in the log.
func (r *recorder) drop() {
	r.session.release()
	r.session = nil
	r.db.handle().Close()
}

// fail counts what is lost, and says so the first time. Unless the error is of
// a kind that passes, the file is opened anew for the next try.
func (r *recorder) fail(err error, lost int) {
	if r.fault == nil {
		r.fault = err
		r.db.opts.Log.Error("history stops; everything else goes on", "err", r.fault, "retry", r.db.opts.Retry)
	}
	r.retry = time.Now().Add(r.db.opts.Retry)
	r.lost.Add(uint64(lost))
	if r.session != nil && !sqlitefile.HasCode(err, sqlite3.SQLITE_FULL, sqlite3.SQLITE_READONLY) && !isLocked(err) {
		r.drop()
	}
}

func (r *recorder) stopped() error {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.fault
}

func (r *recorder) close() error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.session == nil {
		return nil
	}
	var err error
	if r.fault == nil {
		err = r.session.end()
	}
	r.session.release()
	r.session = nil
	return err
}

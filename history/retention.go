package history

import (
	"context"
	"fmt"
	"time"
)

const (
	checkpointAfter = 1000 // pages (4 MiB) written to the log before it is copied to the main file
	maxLog          = 4000 // pages in the log at which it is emptied even if the writer waits a moment
	pruneStep       = 500  // events deleted at a time, between batches
	vacuumStep      = 256  // pages given back to the file system each second
)

// maintain looks after the file while events are written, and each hour, until
// ctx ends: what is expensive happens here in small steps, between the batches.
func (r *recorder) maintain(ctx context.Context) {
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	var last time.Time
	for {
		if !r.idle.Swap(true) || time.Since(last) > time.Hour {
			last = time.Now()
			r.checkpoint(ctx)
			for ctx.Err() == nil && r.prune() {
			}
		}
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
}

// checkpoint copies the log to the main file. Nearly all of the work, and the
// waiting for the disk, is done beside the writer; but only while nobody
// writes can the log be emptied. Errors show in the next batch as well.
func (r *recorder) checkpoint(ctx context.Context) {
	r.mu.Lock()
	due := r.session != nil && r.session.pages >= checkpointAfter
	if due {
		r.session.pages = 0
	}
	r.mu.Unlock()
	if !due {
		return
	}
	const passive = "PRAGMA wal_checkpoint(PASSIVE)"
	var busy, logged, copied int
	if err := r.db.handle().QueryRowContext(ctx, passive).Scan(&busy, &logged, &copied); err != nil || logged < maxLog {
		return
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.session != nil {
		r.session.conn.ExecContext(ctx, passive)
	}
}

// prune takes one step against what is too old or too much, and says whether
// there is more to do.
func (r *recorder) prune() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.session == nil || r.fault != nil {
		return false
	}
	more, err := r.session.prune(r.db.opts)
	if err != nil && !isLocked(err) { // what is locked can be pruned later
		r.fail(r.db.wrap(err), 0)
	}
	return more && err == nil
}

func (s *session) prune(opts Options) (more bool, err error) {
	ctx := context.Background()
	var pages, free int64
	err = s.conn.QueryRowContext(ctx, `SELECT (SELECT page_count FROM pragma_page_count),
		(SELECT freelist_count FROM pragma_freelist_count)`).Scan(&pages, &free)
	if err != nil {
		return false, err
	}
	if opts.MaxAge > 0 {
		more, err = s.delete("time < ? ORDER BY time", time.Now().Add(-opts.MaxAge).UnixNano())
	}
	if !more && err == nil && opts.MaxBytes > 0 && (pages-free)*pageSize > opts.MaxBytes {
		more, err = s.delete("true ORDER BY id")
	}
	if more || err != nil {
		return more, err
	}
	if free > max(pages/4, vacuumStep) {
		_, err = s.conn.ExecContext(ctx, fmt.Sprintf("PRAGMA incremental_vacuum(%d)", vacuumStep))
		s.pages += 2 * vacuumStep
	}
	return false, err
}

// delete removes the first of the events that match, but never the newest, so
// that no id is used twice.
func (s *session) delete(where string, args ...any) (some bool, err error) {
	args = append(args, pruneStep)
	result, err := s.conn.ExecContext(context.Background(), `DELETE FROM events WHERE id IN
		(SELECT id FROM events WHERE `+where+` LIMIT ?) AND id < (SELECT max(id) FROM events)`, args...)
	if err != nil {
		return false, err
	}
	n, err := result.RowsAffected()
	s.pages += int(n) / 8
	return n > 0, err
}

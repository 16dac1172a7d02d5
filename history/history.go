// Package history keeps the events of Fivetuple's sockets in an SQLite file
// and finds them again.
//
// [Open] gives a [DB]; [DB.Writer] is a [stats.Sink] that commits at most
// 100 ms behind, and [DB.Query] and [DB.Totals] read, also while another
// process writes. The file is in WAL mode: killing the process at any moment
// loses only what was not committed, and a power cut at most what was written
// since the last checkpoint; neither damages the file.
//
// It stands on SQLite in pure Go (modernc.org/sqlite), and on Linux on open
// file description locks (fcntl(2)) to know which recording processes are
// alive; elsewhere the newest one that did not end properly counts as alive.
package history

import (
	"context"
	"database/sql"
	"errors"
	"log/slog"
	"path/filepath"
	"sync"
	"time"

	"github.com/fivetuple/fivetuple/internal/sqlitefile"
)

var (
	// ErrDamaged says that the file is not SQLite's or was damaged. Nothing was changed.
	ErrDamaged = sqlitefile.ErrDamaged
	// ErrForeign says that the file is an SQLite database of something else. Nothing was changed.
	ErrForeign = sqlitefile.ErrForeign
	// ErrNewer says that a newer version wrote the file. Nothing was changed.
	ErrNewer = sqlitefile.ErrNewer
)

// Options tune a [DB]. The zero value works.
type Options struct {
	MaxAge   time.Duration // events older than this are deleted; default 30 days, negative: never
	MaxBytes int64         // the oldest events are deleted to keep the file's content below; default 256 MiB, negative: no limit
	Retry    time.Duration // how long a writer that failed waits before it tries again; default 30 s
	Log      *slog.Logger  // told once when recording stops and once when it goes on; default slog.Default()
}

func (o Options) withDefaults() Options {
	if o.MaxAge == 0 {
		o.MaxAge = 30 * 24 * time.Hour
	}
	if o.MaxBytes == 0 {
		o.MaxBytes = 256 << 20
	}
	if o.Retry <= 0 {
		o.Retry = 30 * time.Second
	}
	if o.Log == nil {
		o.Log = slog.Default()
	}
	return o
}

// DB is a history file. Its methods may be called by many goroutines at once.
type DB struct {
	path     string
	opts     Options
	readOnly bool

	mu     sync.Mutex
	pool   *sql.DB // replaced when the file was removed under a writer
	writer *Writer
}

// Open opens the history at path for reading and recording, and creates it and
// its directories (mode 0600 and 0700) if it is not there. It fails with
// [ErrDamaged], [ErrForeign] or [ErrNewer] for files it must not touch.
func Open(ctx context.Context, path string, opts Options) (*DB, error) {
	return openWith(ctx, path, opts, format.Open)
}

// OpenReadOnly opens an existing history for reading; another process may be
// recording into it, and its directory may be read-only. Without a history
// the error wraps [io/fs.ErrNotExist].
func OpenReadOnly(ctx context.Context, path string, opts Options) (*DB, error) {
	d, err := openWith(ctx, path, opts, format.OpenReadOnly)
	if err != nil {
		return nil, err
	}
	d.readOnly = true
	return d, nil
}

func openWith(ctx context.Context, path string, opts Options, open func(context.Context, string) (*sql.DB, error)) (*DB, error) {
	abs, err := filepath.Abs(path)
	if err != nil {
		return nil, format.Wrap(path, err)
	}
	pool, err := open(ctx, abs)
	if err != nil {
		return nil, err
	}
	return &DB{path: abs, opts: opts.withDefaults(), pool: pool}, nil
}

// Close closes the writer, if there is one, and the file.
func (d *DB) Close() error {
	d.mu.Lock()
	w := d.writer
	d.mu.Unlock()
	var werr error
	if w != nil {
		werr = w.Close()
	}
	return errors.Join(werr, d.wrap(d.handle().Close()))
}

func (d *DB) handle() *sql.DB {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.pool
}

// reopen creates or checks the file again and replaces the pool.
func (d *DB) reopen(ctx context.Context) error {
	pool, err := format.Open(ctx, d.path)
	if err != nil {
		return err
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	d.pool = pool
	return nil
}

// wrap names the file and says what to do about SQLite's errors. Those of
// opening it are wrapped already.
func (d *DB) wrap(err error) error { return format.Wrap(d.path, err) }

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
	"fmt"
	"io/fs"
	"log/slog"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"modernc.org/sqlite"
	sqlite3 "modernc.org/sqlite/lib"
)

var (
	// ErrDamaged says that the file is not SQLite's or was damaged. Nothing was changed.
	ErrDamaged = errors.New("the file is damaged or not an SQLite database; it was left as it is: move it away to begin a new history")
	// ErrForeign says that the file is an SQLite database of something else. Nothing was changed.
	ErrForeign = errors.New("the file is an SQLite database but not a history of ft; it was left as it is: name another file")
	// ErrNewer says that a newer version wrote the file. Nothing was changed.
	ErrNewer = errors.New("the file was written by a newer version of ft: use that one, or name another file")
)

// busyTimeout is how long to wait for another process that writes.
const busyTimeout = 5 * time.Second

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
	return openWith(ctx, path, opts, (*DB).open)
}

// OpenReadOnly opens an existing history for reading; another process may be
// recording into it, and its directory may be read-only. Without a history
// the error wraps [fs.ErrNotExist].
func OpenReadOnly(ctx context.Context, path string, opts Options) (*DB, error) {
	return openWith(ctx, path, opts, (*DB).openReadOnly)
}

func openWith(ctx context.Context, path string, opts Options, open func(*DB, context.Context) error) (*DB, error) {
	d := &DB{path: path, opts: opts.withDefaults()}
	var err error
	if d.path, err = filepath.Abs(path); err == nil {
		err = open(d, ctx)
	}
	if err != nil {
		return nil, d.wrap(err)
	}
	return d, nil
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

// open creates or checks the file and replaces the pool.
func (d *DB) open(ctx context.Context) error {
	if err := os.MkdirAll(filepath.Dir(d.path), 0o700); err != nil {
		return err
	}
	if err := createFile(d.path); err != nil {
		return err
	}
	for _, name := range []string{d.path, filepath.Dir(d.path)} {
		if err := checkWritable(name); err != nil {
			return err
		}
	}
	pool, err := connect(ctx, d.path, "_sync=NORMAL&_txlock=immediate"+
		"&_pragma=wal_autocheckpoint(0)"+ // the writer's checkpoints run beside it
		fmt.Sprintf("&_pragma=journal_size_limit(%d)", maxLog*pageSize))
	if err != nil {
		return err
	}
	if err := prepareSchema(ctx, pool); err != nil {
		return errors.Join(err, pool.Close())
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	d.pool = pool
	return nil
}

// createFile makes an empty file with mode 0600, which SQLite's companion
// files inherit. An existing file is only looked at: opening and closing it
// would drop the locks that SQLite holds on it in this process (fcntl(2)).
func createFile(path string) error {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_EXCL|os.O_RDWR, 0o600)
	if err == nil {
		return f.Close()
	}
	if !errors.Is(err, fs.ErrExist) {
		return err
	}
	return checkFile(path)
}

func checkFile(path string) error {
	info, err := os.Stat(path)
	if err != nil {
		return err
	}
	if !info.Mode().IsRegular() {
		return fmt.Errorf("is not a regular file (%s)", info.Mode())
	}
	if n := info.Size(); n > 0 && n < 512 { // SQLite's smallest page; it would take the file for an empty one
		return ErrDamaged
	}
	return nil
}

func (d *DB) openReadOnly(ctx context.Context) error {
	d.readOnly = true
	err := checkFile(d.path)
	if errors.Is(err, fs.ErrNotExist) {
		return errEmpty
	}
	if err == nil {
		err = checkReadable(d.path)
	}
	if err != nil {
		return err
	}
	d.pool, err = connectReadOnly(ctx, d.path, "mode=ro")
	if !hasCode(err, sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_READONLY) {
		return err
	}
	// The directory is read-only. If nobody writes, the companion files that
	// cannot be made there are not needed.
	if hasLog(d.path) {
		return fmt.Errorf("its log (%s-wal) cannot be read in a read-only directory: copy both files to another one (%w)", filepath.Base(d.path), err)
	}
	d.pool, err = connectReadOnly(ctx, d.path, "immutable=1")
	return err
}

func connectReadOnly(ctx context.Context, path, mode string) (*sql.DB, error) {
	pool, err := connect(ctx, path, mode)
	if err != nil {
		return nil, err
	}
	if err := checkSchema(ctx, pool); err != nil {
		return nil, errors.Join(err, pool.Close())
	}
	return pool, nil
}

// hasLog says whether there may be committed events that are not in the main file yet.
func hasLog(path string) bool {
	info, err := os.Stat(path + "-wal")
	return err == nil && info.Size() > 0
}

// connect opens the file at an absolute path.
func connect(ctx context.Context, path, params string) (*sql.DB, error) {
	path = filepath.ToSlash(path)
	if !strings.HasPrefix(path, "/") {
		path = "/" + path // C:/... : https://www.sqlite.org/uri.html
	}
	dsn := "file://" + (&url.URL{Path: path}).EscapedPath() +
		fmt.Sprintf("?_busy_timeout=%d&_error_rc=1&", busyTimeout.Milliseconds()) + params
	pool, err := sql.Open("sqlite", dsn)
	if err != nil {
		return nil, err
	}
	if err := pool.PingContext(ctx); err != nil {
		return nil, errors.Join(err, pool.Close())
	}
	return pool, nil
}

// wrap names the file and says what to do about SQLite's errors.
func (d *DB) wrap(err error) error {
	switch {
	case err == nil:
		return nil
	case hasCode(err, sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB):
		err = fmt.Errorf("%w (%w)", ErrDamaged, err)
	case hasCode(err, sqlite3.SQLITE_FULL), hasCode(err, sqlite3.SQLITE_IOERR_SHMSIZE):
		err = fmt.Errorf("the disk is full: %w", err)
	}
	return fmt.Errorf("history %s: %w", d.path, err)
}

// hasCode says whether err is one of SQLite's with one of the result codes,
// primary or extended (https://www.sqlite.org/rescode.html).
func hasCode(err error, codes ...int) bool {
	var e *sqlite.Error
	if !errors.As(err, &e) {
		return false
	}
	for _, code := range codes {
		if e.Code() == code || e.Code()&0xff == code {
			return true
		}
	}
	return false
}

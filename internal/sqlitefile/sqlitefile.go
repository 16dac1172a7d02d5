// Package sqlitefile opens SQLite files of one format, and refuses, without
// touching them, those that are damaged, another program's or a newer
// version's.
//
// The files are in WAL mode, so that one process writes while others read.
// Killing a process at any moment loses only what was not committed, and a
// power cut at most what was written since the last checkpoint; neither
// damages the file. It stands on SQLite in pure Go (modernc.org/sqlite).
package sqlitefile

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"io/fs"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"time"

	"modernc.org/sqlite"
	sqlite3 "modernc.org/sqlite/lib"
)

// Why a file is refused. The errors returned wrap these and add what to do.
var (
	// ErrDamaged says that the file is not SQLite's or was damaged. Nothing was changed.
	ErrDamaged = errors.New("the file is damaged or not an SQLite database; it was left as it is")
	// ErrForeign says that the file is an SQLite database of another format. Nothing was changed.
	ErrForeign = errors.New("the file is an SQLite database of something else; it was left as it is")
	// ErrNewer says that a newer version wrote the file. Nothing was changed.
	ErrNewer = errors.New("the file was written by a newer version of ft: use that one, or name another file")
)

// BusyTimeout is how long a statement waits for another process that writes.
const BusyTimeout = 5 * time.Second

// Format is what a file holds.
type Format struct {
	Noun    string // what the file is to people: "history"
	Missing string // what to tell who wants to read a file that was not begun yet

	ApplicationID int32  // not 0; tells files of this format apart (https://www.sqlite.org/fileformat2.html#application_id)
	Version       int    // from 1; files of greater ones are refused
	Schema        string // the statements that make an empty file one of this format

	IncrementalVacuum bool     // new files can give pages back: PRAGMA incremental_vacuum
	Pragmas           []string // of each connection that may write: "wal_autocheckpoint(0)"
}

// Open opens the file at path for reading and writing, and creates it and its
// directories (mode 0600 and 0700) if it is not there. Transactions begin
// immediate, so that they wait for another writer before they read; commits do
// not wait for the disk (PRAGMA synchronous = NORMAL), checkpoints do.
// The error names the file, and wraps [ErrDamaged], [ErrForeign] or [ErrNewer]
// if it must not be touched.
func (f Format) Open(ctx context.Context, path string) (*sql.DB, error) {
	return f.openWith(ctx, path, f.open)
}

// OpenReadOnly opens an existing file for reading; another process may be
// writing it, and its directory may be read-only. If the file is not there or
// empty the error wraps [fs.ErrNotExist]; else it is as that of Open.
func (f Format) OpenReadOnly(ctx context.Context, path string) (*sql.DB, error) {
	return f.openWith(ctx, path, f.openReadOnly)
}

func (f Format) openWith(ctx context.Context, path string, open func(context.Context, string) (*sql.DB, error)) (*sql.DB, error) {
	abs, err := filepath.Abs(path)
	if err != nil {
		return nil, f.Wrap(path, err)
	}
	db, err := open(ctx, abs)
	if err != nil {
		return nil, f.Wrap(abs, err)
	}
	return db, nil
}

// Wrap names the file in an error of its use after it was opened, and says
// what to do about SQLite's errors.
func (f Format) Wrap(path string, err error) error {
	switch {
	case err == nil:
		return nil
	case HasCode(err, sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB):
		err = fmt.Errorf("%w (%w)", f.damaged(), err)
	case HasCode(err, sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR_SHMSIZE):
		err = fmt.Errorf("the disk is full: %w", err)
	}
	return fmt.Errorf("%s %s: %w", f.Noun, path, err)
}

// HasCode says whether err is one of SQLite's with one of the result codes,
// primary or extended (https://www.sqlite.org/rescode.html).
func HasCode(err error, codes ...int) bool {
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

func (f Format) open(ctx context.Context, path string) (*sql.DB, error) {
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return nil, err
	}
	if err := f.createFile(path); err != nil {
		return nil, err
	}
	for _, name := range []string{path, filepath.Dir(path)} {
		if err := checkWritable(name); err != nil {
			return nil, err
		}
	}
	params := "_sync=NORMAL&_txlock=immediate"
	for _, p := range f.Pragmas {
		params += "&_pragma=" + url.QueryEscape(p)
	}
	return connect(ctx, path, params, f.prepare)
}

// createFile makes an empty file with mode 0600, which SQLite's companion
// files inherit. An existing file is only looked at: opening and closing it
// would drop the locks that SQLite holds on it in this process (fcntl(2)).
func (f Format) createFile(path string) error {
	file, err := os.OpenFile(path, os.O_CREATE|os.O_EXCL|os.O_RDWR, 0o600)
	if err == nil {
		return file.Close()
	}
	if !errors.Is(err, fs.ErrExist) {
		return err
	}
	return f.checkFile(path)
}

func (f Format) checkFile(path string) error {
	info, err := os.Stat(path)
	if err != nil {
		return err
	}
	if !info.Mode().IsRegular() {
		return fmt.Errorf("is not a regular file (%s)", info.Mode())
	}
	if n := info.Size(); n > 0 && n < 512 { // SQLite's smallest page; it would take the file for an empty one
		return f.damaged()
	}
	return nil
}

func (f Format) damaged() error {
	return fmt.Errorf("%w: move it away to begin a new %s", ErrDamaged, f.Noun)
}

func (f Format) openReadOnly(ctx context.Context, path string) (*sql.DB, error) {
	err := f.checkFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, f.missing()
	}
	if err == nil {
		err = checkReadable(path)
	}
	if err != nil {
		return nil, err
	}
	db, err := connect(ctx, path, "mode=ro", f.check)
	if !HasCode(err, sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_READONLY) {
		return db, err
	}
	// The directory is read-only. If nobody writes, the companion files that
	// cannot be made there are not needed.
	if hasLog(path) {
		return nil, fmt.Errorf("its log (%s-wal) cannot be read in a read-only directory: copy both files to another one (%w)", filepath.Base(path), err)
	}
	return connect(ctx, path, "immutable=1", f.check)
}

// hasLog says whether there may be something committed that is not in the main file yet.
func hasLog(path string) bool {
	info, err := os.Stat(path + "-wal")
	return err == nil && info.Size() > 0
}

// connect opens the file at an absolute path, and closes it if the check fails.
func connect(ctx context.Context, path, params string, check func(context.Context, *sql.DB) error) (*sql.DB, error) {
	path = filepath.ToSlash(path)
	if !strings.HasPrefix(path, "/") {
		path = "/" + path // C:/... : https://www.sqlite.org/uri.html
	}
	db, err := sql.Open("sqlite", "file://"+(&url.URL{Path: path}).EscapedPath()+
		fmt.Sprintf("?_busy_timeout=%d&_error_rc=1&", BusyTimeout.Milliseconds())+params)
	if err != nil {
		return nil, err
	}
	if err := check(ctx, db); err != nil {
		return nil, errors.Join(err, db.Close())
	}
	return db, nil
}

package sqlitefile

import (
	"context"
	"database/sql"
	"fmt"
	"io/fs"
	"time"

	sqlite3 "modernc.org/sqlite/lib"
)

// prepare makes an empty file one of the format, and checks any other.
func (f Format) prepare(ctx context.Context, db *sql.DB) error {
	ctx, cancel := context.WithTimeout(ctx, BusyTimeout)
	defer cancel()
	for {
		isEmpty, err := f.inspect(ctx, db)
		if err != nil || !isEmpty {
			return err
		}
		// Where several processes do this at once, SQLite does not wait for its
		// lock to change the journal mode (it could be for ever).
		if err = f.create(ctx, db); !HasCode(err, sqlite3.SQLITE_BUSY) {
			return err
		}
		select {
		case <-time.After(10 * time.Millisecond):
		case <-ctx.Done():
			return err
		}
	}
}

func (f Format) create(ctx context.Context, db *sql.DB) error {
	conn, err := db.Conn(ctx)
	if err != nil {
		return err
	}
	defer conn.Close()
	// Neither can be done in a transaction, and the first only in an empty file.
	modes := "PRAGMA journal_mode = WAL"
	if f.IncrementalVacuum {
		modes = "PRAGMA auto_vacuum = INCREMENTAL; " + modes
	}
	if _, err := conn.ExecContext(ctx, modes); err != nil {
		return err
	}
	tx, err := conn.BeginTx(ctx, nil)
	if err != nil {
		return err
	}
	defer tx.Rollback()
	isEmpty, err := f.inspect(ctx, tx)
	if err != nil || !isEmpty {
		return err // another process was faster
	}
	for _, statements := range []string{
		f.Schema,
		fmt.Sprintf("PRAGMA application_id = %d; PRAGMA user_version = %d", f.ApplicationID, f.Version),
	} {
		if _, err := tx.ExecContext(ctx, statements); err != nil {
			return err
		}
	}
	return tx.Commit()
}

// check wants a file that can be read.
func (f Format) check(ctx context.Context, db *sql.DB) error {
	isEmpty, err := f.inspect(ctx, db)
	if err == nil && isEmpty {
		return f.missing()
	}
	return err
}

func (f Format) missing() error { return fmt.Errorf("%s: %w", f.Missing, fs.ErrNotExist) }

type queryer interface {
	QueryRowContext(ctx context.Context, query string, args ...any) *sql.Row
}

// inspect says whether the file holds nothing at all, and fails if it holds
// something that is not for this version. It is one statement, so that it sees
// either nothing or all of what another process creates.
func (f Format) inspect(ctx context.Context, q queryer) (isEmpty bool, err error) {
	var id, version, tables int64
	err = q.QueryRowContext(ctx, `SELECT (SELECT application_id FROM pragma_application_id),
		(SELECT user_version FROM pragma_user_version), (SELECT count(*) FROM sqlite_schema)`).Scan(&id, &version, &tables)
	switch {
	case err != nil:
		return false, err
	case id == 0 && version == 0 && tables == 0:
		return true, nil
	case id != int64(f.ApplicationID):
		return false, fmt.Errorf("%w: name another file for the %s", ErrForeign, f.Noun)
	case version > int64(f.Version):
		return false, fmt.Errorf("%w (its format is %d, this version knows %d)", ErrNewer, version, f.Version)
	}
	return false, nil
}

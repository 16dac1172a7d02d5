package history

import (
	"context"
	"database/sql"
	"fmt"
	"io/fs"
	"time"

	sqlite3 "modernc.org/sqlite/lib"
)

const (
	applicationID = 0x66743574 // "ft5t", so that other programs' databases are told apart
	schemaVersion = 1
	pageSize      = 4096 // SQLite's default
)

// schema: times are nanoseconds since 1970, durations nanoseconds, kind and
// protocol the numbers of stats.Kind and fivetuple.Network. An IP address is
// 4 or 16 bytes, or NULL; the name beside it is then an IPv6 zone, else a Unix
// path. rtt is NULL where nothing is known of TCP. The ids of events are their
// order of recording and never used twice.
var schema = fmt.Sprintf(`
CREATE TABLE services (id INTEGER PRIMARY KEY, name TEXT NOT NULL UNIQUE);
CREATE TABLE runs (id INTEGER PRIMARY KEY, started INTEGER NOT NULL, ended INTEGER);
CREATE TABLE events (
	id INTEGER PRIMARY KEY,
	run INTEGER NOT NULL,
	time INTEGER NOT NULL,
	kind INTEGER NOT NULL,
	service INTEGER NOT NULL,
	conn INTEGER NOT NULL,
	protocol INTEGER NOT NULL,
	local_ip BLOB, local_port INTEGER NOT NULL, local_name TEXT NOT NULL,
	remote_ip BLOB, remote_port INTEGER NOT NULL, remote_name TEXT NOT NULL,
	bytes_in INTEGER NOT NULL, bytes_out INTEGER NOT NULL,
	packets_in INTEGER NOT NULL, packets_out INTEGER NOT NULL,
	duration INTEGER NOT NULL, cause TEXT NOT NULL, error TEXT NOT NULL,
	rtt INTEGER, rttvar INTEGER NOT NULL, retransmits INTEGER NOT NULL, cwnd INTEGER NOT NULL, mss INTEGER NOT NULL
);
CREATE INDEX events_time ON events (time);
PRAGMA application_id = %d;
PRAGMA user_version = %d;`, applicationID, schemaVersion)

// prepareSchema creates the tables in an empty file, and checks any other.
func prepareSchema(ctx context.Context, pool *sql.DB) error {
	ctx, cancel := context.WithTimeout(ctx, busyTimeout)
	defer cancel()
	for {
		isEmpty, err := inspect(ctx, pool)
		if err != nil || !isEmpty {
			return err
		}
		// Where several processes do this at once, SQLite does not wait for its
		// lock to change the journal mode (it could be for ever).
		if err = create(ctx, pool); !hasCode(err, sqlite3.SQLITE_BUSY) {
			return err
		}
		select {
		case <-time.After(10 * time.Millisecond):
		case <-ctx.Done():
			return err
		}
	}
}

func create(ctx context.Context, pool *sql.DB) error {
	conn, err := pool.Conn(ctx)
	if err != nil {
		return err
	}
	defer conn.Close()
	// Neither can be done in a transaction, and the first only in an empty file.
	if _, err := conn.ExecContext(ctx, "PRAGMA auto_vacuum = INCREMENTAL; PRAGMA journal_mode = WAL"); err != nil {
		return err
	}
	tx, err := conn.BeginTx(ctx, nil)
	if err != nil {
		return err
	}
	defer tx.Rollback()
	isEmpty, err := inspect(ctx, tx)
	if err != nil || !isEmpty {
		return err // another process was faster
	}
	if _, err := tx.ExecContext(ctx, schema); err != nil {
		return err
	}
	return tx.Commit()
}

// checkSchema wants a file that can be read.
func checkSchema(ctx context.Context, pool *sql.DB) error {
	isEmpty, err := inspect(ctx, pool)
	if err == nil && isEmpty {
		return errEmpty
	}
	return err
}

// errEmpty says that there is no file, or that no history was begun in it.
var errEmpty = fmt.Errorf("nothing was recorded yet: start `ft serve`, or name another file: %w", fs.ErrNotExist)

type queryer interface {
	QueryRowContext(ctx context.Context, query string, args ...any) *sql.Row
}

// inspect says whether the file holds nothing at all, and fails if it holds
// something that is not for this version.
func inspect(ctx context.Context, q queryer) (isEmpty bool, err error) {
	var id, version, tables int64
	err = q.QueryRowContext(ctx, `SELECT (SELECT application_id FROM pragma_application_id),
		(SELECT user_version FROM pragma_user_version), (SELECT count(*) FROM sqlite_schema)`).Scan(&id, &version, &tables)
	switch {
	case err != nil:
		return false, err
	case id == 0 && version == 0 && tables == 0:
		return true, nil
	case id != applicationID:
		return false, ErrForeign
	case version > schemaVersion:
		return false, fmt.Errorf("%w (its format is %d, this version knows %d)", ErrNewer, version, schemaVersion)
	}
	return false, nil
}

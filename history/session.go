package history

import (
	"context"
	"database/sql"
	"io"
	"os"
	"time"

	"github.com/fivetuple/fivetuple/stats"
)

// maxRuns are remembered; a service that crashes every second makes many.
const maxRuns = 10_000

// session is a run's open connection to one database file.
type session struct {
	conn     *sql.Conn
	insert   *sql.Stmt
	run      int64
	alive    io.Closer
	services map[string]int64 // ids of the names in the file
	files    map[string]os.FileInfo
	args     []any
	pages    int // estimate of what was written to the log since the last checkpoint
}

// newSession registers a run. The connection is taken out of the pool.
func newSession(path string, pool *sql.DB) (*session, error) {
	s := &session{services: map[string]int64{}, files: map[string]os.FileInfo{}}
	if err := s.begin(path, pool); err != nil {
		s.release()
		return nil, err
	}
	return s, nil
}

func (s *session) begin(path string, pool *sql.DB) (err error) {
	ctx := context.Background()
	if s.conn, err = pool.Conn(ctx); err != nil {
		return err
	}
	result, err := s.conn.ExecContext(ctx, "INSERT INTO runs (started) VALUES (?)", time.Now().UnixNano())
	if err != nil {
		return err
	}
	if s.run, err = result.LastInsertId(); err != nil {
		return err
	}
	if _, err := s.conn.ExecContext(ctx, "DELETE FROM runs WHERE id < ?", s.run-maxRuns); err != nil {
		return err
	}
	if s.alive, err = lockRun(path, s.run); err != nil {
		return err
	}
	if s.insert, err = s.conn.PrepareContext(ctx, insertEvent); err != nil {
		return err
	}
	for _, suffix := range []string{"", "-wal", "-shm"} {
		if s.files[path+suffix], err = os.Stat(path + suffix); err != nil {
			return err
		}
	}
	return nil
}

// current says whether the files of the database are still those that are
// open. SQLite would go on writing to removed ones, where nobody finds it.
func (s *session) current() bool {
	for name, opened := range s.files {
		now, err := os.Stat(name)
		if err != nil || !os.SameFile(now, opened) {
			return false
		}
	}
	return true
}

// commit records the events in one transaction.
func (s *session) commit(events []stats.Event) (err error) {
	ctx := context.Background()
	if _, err := s.conn.ExecContext(ctx, "BEGIN IMMEDIATE"); err != nil {
		return err
	}
	defer func() {
		if err != nil {
			s.conn.ExecContext(ctx, "ROLLBACK") // fails where SQLite has done so itself
			clear(s.services)                   // some may have been rolled back
		}
	}()
	for i := range events {
		service, err := s.serviceID(ctx, events[i].Service)
		if err != nil {
			return err
		}
		s.args = appendColumns(s.args[:0], s.run, service, &events[i])
		if _, err := s.insert.ExecContext(ctx, s.args...); err != nil {
			return err
		}
	}
	if _, err := s.conn.ExecContext(ctx, "COMMIT"); err != nil {
		return err
	}
	s.pages += 4 + len(events)/16
	return nil
}

func (s *session) serviceID(ctx context.Context, name string) (id int64, err error) {
	if id, ok := s.services[name]; ok {
		return id, nil
	}
	// The update that changes nothing makes RETURNING work for a name that is there.
	err = s.conn.QueryRowContext(ctx,
		"INSERT INTO services (name) VALUES (?) ON CONFLICT DO UPDATE SET name = excluded.name RETURNING id", name).Scan(&id)
	if err == nil {
		s.services[name] = id
	}
	return id, err
}

// end marks the run as properly ended.
func (s *session) end() error {
	_, err := s.conn.ExecContext(context.Background(), "UPDATE runs SET ended = ? WHERE id = ?", time.Now().UnixNano(), s.run)
	return err
}

// release gives everything back; the run counts as over from now on.
func (s *session) release() {
	if s.insert != nil {
		s.insert.Close()
	}
	if s.conn != nil {
		s.conn.Close()
	}
	if s.alive != nil {
		s.alive.Close()
	}
}

package sqlitefile

import (
	"bytes"
	"context"
	"database/sql"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	sqlite3 "modernc.org/sqlite/lib"
)

var notes = Format{
	Noun:          "book of notes",
	Missing:       "nothing was noted yet",
	ApplicationID: 0x6e6f7465,
	Version:       3,
	Schema:        "CREATE TABLE notes (id INTEGER PRIMARY KEY, text TEXT); -- the comment ends here",
}

func newPath(t testing.TB) string { return filepath.Join(t.TempDir(), "notes.db") }

func open(t testing.TB, path string) *sql.DB {
	t.Helper()
	db, err := notes.Open(t.Context(), path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { db.Close() })
	return db
}

func insert(ctx context.Context, db *sql.DB) error {
	_, err := db.ExecContext(ctx, "INSERT INTO notes (text) VALUES ('x')")
	return err
}

// write opens the file, inserts a row and closes it.
func write(t testing.TB, path string) {
	t.Helper()
	db := open(t, path)
	if err := errors.Join(insert(t.Context(), db), db.Close()); err != nil {
		t.Fatal(err)
	}
}

func count(t testing.TB, db *sql.DB) (n int) {
	t.Helper()
	if err := db.QueryRowContext(t.Context(), "SELECT count(*) FROM notes").Scan(&n); err != nil {
		t.Fatal(err)
	}
	return n
}

func TestOpenMakesPrivateFiles(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "state", "ft")
	path := filepath.Join(dir, "what? 100%#1 'x'.db") // characters that URIs and SQL know
	if err := insert(t.Context(), open(t, path)); err != nil {
		t.Fatal(err)
	}
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, e := range entries {
		info, _ := e.Info()
		if info.Mode() != 0o600 {
			t.Errorf("%s has mode %s, want 0600", e.Name(), info.Mode())
		}
		names = append(names, e.Name())
	}
	base := filepath.Base(path)
	if want := []string{base, base + "-shm", base + "-wal"}; !slices.Equal(names, want) {
		t.Errorf("got files %q, want %q", names, want)
	}
	for _, made := range []string{dir, filepath.Dir(dir)} {
		if info, _ := os.Stat(made); info.Mode().Perm() != 0o700 {
			t.Errorf("%s has mode %s, want 0700", made, info.Mode())
		}
	}
}

func TestSettings(t *testing.T) {
	other := notes
	other.IncrementalVacuum = true
	other.Pragmas = []string{"wal_autocheckpoint(7)", "journal_size_limit(4096)"}
	for _, tc := range []struct {
		format Format
		want   map[string]string
	}{
		{notes, map[string]string{"auto_vacuum": "0", "wal_autocheckpoint": "1000", "journal_size_limit": "-1"}},
		{other, map[string]string{"auto_vacuum": "2", "wal_autocheckpoint": "7", "journal_size_limit": "4096"}},
	} {
		path := newPath(t)
		for _, state := range []string{"new", "existing"} {
			db, err := tc.format.Open(t.Context(), path)
			if err != nil {
				t.Fatal(err)
			}
			tc.want["journal_mode"], tc.want["synchronous"], tc.want["busy_timeout"] = "wal", "1", "5000"
			tc.want["application_id"], tc.want["user_version"] = "1852798053", "3"
			for name, want := range tc.want {
				var got string
				if err := db.QueryRowContext(t.Context(), "PRAGMA "+name).Scan(&got); err != nil || got != want {
					t.Errorf("%s file: %s is %s, %v; want %s", state, name, got, err, want)
				}
			}
			db.Close()
		}
	}
}

// A transaction that read before it had to wait could not write afterwards.
func TestTransactionsBeginImmediate(t *testing.T) {
	path := newPath(t)
	tx, err := open(t, path).BeginTx(t.Context(), nil)
	if err != nil {
		t.Fatal(err)
	}
	defer tx.Rollback()
	db := open(t, path)
	db.SetMaxOpenConns(1)
	if _, err := db.ExecContext(t.Context(), "PRAGMA busy_timeout = 1"); err != nil {
		t.Fatal(err)
	}
	if _, err := db.BeginTx(t.Context(), nil); !HasCode(err, sqlite3.SQLITE_BUSY) {
		t.Errorf("a second transaction began: %v", err)
	}
}

func TestOpenRefusesOtherFiles(t *testing.T) {
	exec := func(path, statements string) {
		db, err := sql.Open("sqlite", path)
		if err != nil {
			t.Fatal(err)
		}
		defer db.Close()
		if _, err := db.Exec(statements); err != nil {
			t.Fatal(err)
		}
	}
	text := func(content string) func(string) {
		return func(path string) {
			if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
				t.Fatal(err)
			}
		}
	}
	const anew, elsewhere, newer = "move it away to begin a new book of notes", "name another file for the book of notes", "its format is 4, this version knows 3"
	for name, tc := range map[string]struct {
		prepare func(path string)
		want    error
		advice  string
	}{
		"text":             {text(strings.Repeat("not a database\n", 1000)), ErrDamaged, anew},
		"short text":       {text("x"), ErrDamaged, anew},
		"some text":        {text(strings.Repeat("x", 600)), ErrDamaged, anew},
		"damaged":          {func(path string) { write(t, path); damage(t, path) }, ErrDamaged, anew},
		"another's":        {func(path string) { exec(path, "CREATE TABLE t (x)") }, ErrForeign, elsewhere},
		"another's number": {func(path string) { exec(path, "PRAGMA application_id = 5") }, ErrForeign, elsewhere},
		"another's format": {func(path string) { exec(path, "PRAGMA user_version = 3") }, ErrForeign, elsewhere},
		"newer":            {func(path string) { write(t, path); exec(path, "PRAGMA user_version = 4") }, ErrNewer, newer},
		"directory":        {func(path string) { os.Mkdir(path, 0o700) }, nil, "is not a regular file"},
	} {
		t.Run(name, func(t *testing.T) {
			path := newPath(t)
			tc.prepare(path)
			before, _ := os.ReadFile(path)
			for how, open := range map[string]func(context.Context, string) (*sql.DB, error){"Open": notes.Open, "OpenReadOnly": notes.OpenReadOnly} {
				_, err := open(t.Context(), path)
				if err == nil || tc.want != nil && !errors.Is(err, tc.want) {
					t.Fatalf("%s: got error %v, want %v", how, err, tc.want)
				}
				if !strings.HasPrefix(err.Error(), "book of notes "+path+": ") || !strings.Contains(err.Error(), tc.advice) {
					t.Errorf("%s: got %q, want the file and %q in it", how, err, tc.advice)
				}
				if n := strings.Count(err.Error(), path); n != 1 {
					t.Errorf("%s: %q names the file %d times", how, err, n)
				}
			}
			if after, _ := os.ReadFile(path); !bytes.Equal(before, after) {
				t.Error("the file was changed")
			}
			if info, err := os.Stat(path + "-wal"); err == nil && info.Size() > 0 {
				t.Error("something was written to a log beside the file")
			}
		})
	}
}

// damage overwrites all pages but the header's 100 bytes.
func damage(t testing.TB, path string) {
	t.Helper()
	f, err := os.OpenFile(path, os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := f.WriteAt(bytes.Repeat([]byte("garbage!"), 4000), 100); err != nil {
		t.Fatal(err)
	}
}

func TestDamageFoundLaterIsWrapped(t *testing.T) {
	path := newPath(t)
	db := open(t, path)
	for range 100 {
		if _, err := db.ExecContext(t.Context(), "INSERT INTO notes (text) VALUES (hex(zeroblob(1000)))"); err != nil {
			t.Fatal(err)
		}
	}
	db.Close()
	f, err := os.OpenFile(path, os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := f.WriteAt(bytes.Repeat([]byte("garbage!"), 4000), 8192); err != nil { // after the schema and the table's root
		t.Fatal(err)
	}
	_, err = open(t, path).ExecContext(t.Context(), "SELECT sum(length(text)) FROM notes")
	if err = notes.Wrap(path, err); !errors.Is(err, ErrDamaged) || !strings.Contains(err.Error(), "begin a new book of notes") {
		t.Errorf("got error %v, want ErrDamaged", err)
	}
	if err := notes.Wrap(path, nil); err != nil {
		t.Errorf("no error was wrapped as %v", err)
	}
}

func TestOpenReadOnly(t *testing.T) {
	path := newPath(t)
	missing := func(state string) {
		t.Helper()
		if _, err := notes.OpenReadOnly(t.Context(), path); !errors.Is(err, fs.ErrNotExist) || !strings.Contains(err.Error(), "nothing was noted yet") {
			t.Errorf("%s: got error %v", state, err)
		}
	}
	missing("no file")
	if _, err := os.Stat(path); err == nil {
		t.Error("the file was created")
	}
	if err := os.WriteFile(path, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	missing("an empty file")
	// As a process leaves it that is killed while it creates the file.
	half, err := sql.Open("sqlite", path)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := half.ExecContext(t.Context(), "PRAGMA journal_mode = WAL"); err != nil {
		t.Fatal(err)
	}
	half.Close()
	missing("a file without tables")

	db := open(t, path)
	r, err := notes.OpenReadOnly(t.Context(), path)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	for i := range 5 {
		if err := insert(t.Context(), db); err != nil {
			t.Fatal(err)
		}
		if n := count(t, r); n != i+1 {
			t.Errorf("the reader sees %d of %d rows", n, i+1)
		}
	}
	if err := insert(t.Context(), r); !HasCode(err, sqlite3.SQLITE_READONLY) {
		t.Errorf("writing to it: %v", err)
	}
}

func TestHasCode(t *testing.T) {
	_, err := open(t, newPath(t)).ExecContext(t.Context(), "INSERT INTO notes (id) VALUES (1), (1)")
	err = notes.Wrap("some file", err)
	for code, want := range map[int]bool{
		sqlite3.SQLITE_CONSTRAINT:            true,
		sqlite3.SQLITE_CONSTRAINT_PRIMARYKEY: true,
		sqlite3.SQLITE_CONSTRAINT_UNIQUE:     false,
		sqlite3.SQLITE_BUSY:                  false,
	} {
		if got := HasCode(err, sqlite3.SQLITE_NOMEM, code); got != want {
			t.Errorf("code %d in %v: got %v, want %v", code, err, got, want)
		}
	}
	if HasCode(fs.ErrExist, sqlite3.SQLITE_ERROR) {
		t.Error("an error that is not SQLite's has a code")
	}
}

// SQLite does not wait for a lock to change the journal mode.
func TestOpenWaitsWhereAnotherCreatesTheFile(t *testing.T) {
	path := newPath(t)
	other, err := sql.Open("sqlite", path+"?_txlock=immediate")
	if err != nil {
		t.Fatal(err)
	}
	defer other.Close()
	tx, err := other.BeginTx(t.Context(), nil)
	if err != nil {
		t.Fatal(err)
	}
	unlock := time.AfterFunc(50*time.Millisecond, func() { tx.Rollback() })
	defer unlock.Stop()
	write(t, path)
}

func TestManyOpenANewFileAtOnce(t *testing.T) {
	for range 10 {
		path := newPath(t)
		var wg sync.WaitGroup
		for range 8 {
			wg.Go(func() {
				db, err := notes.Open(t.Context(), path)
				if err != nil {
					t.Error(err)
					return
				}
				defer db.Close()
				if err := insert(t.Context(), db); err != nil {
					t.Error(err)
				}
			})
		}
		wg.Wait()
		if n := count(t, open(t, path)); n != 8 {
			t.Fatalf("%d rows, want 8", n)
		}
	}
}

func BenchmarkOpen(b *testing.B) {
	path := newPath(b)
	db := open(b, path)
	opens := map[string]func(context.Context, string) (*sql.DB, error){"Open": notes.Open, "OpenReadOnly": notes.OpenReadOnly}
	for _, state := range []string{"open elsewhere", "closed"} {
		for how, open := range opens {
			b.Run(how+"/"+state, func(b *testing.B) {
				for b.Loop() {
					db, err := open(b.Context(), path)
					if err != nil {
						b.Fatal(err)
					}
					db.Close()
				}
			})
		}
		db.Close()
	}
	b.Run("Open and write/closed", func(b *testing.B) {
		for b.Loop() {
			write(b, path)
		}
	})
	b.Run("Open/new", func(b *testing.B) {
		for b.Loop() {
			for _, suffix := range []string{"", "-wal", "-shm"} {
				os.Remove(path + suffix)
			}
			db, err := notes.Open(b.Context(), path)
			if err != nil {
				b.Fatal(err)
			}
			db.Close()
		}
	})
}

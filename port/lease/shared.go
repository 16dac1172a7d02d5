package lease

import (
	"cmp"
	"context"
	"database/sql"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"time"

	"github.com/fivetuple/fivetuple/internal/claims"
	"github.com/fivetuple/fivetuple/internal/sqlitefile"
	"github.com/fivetuple/fivetuple/internal/statedir"
	"github.com/fivetuple/fivetuple/owner"
)

// Shared is a registry in a file, for all processes of a user. It is made by
// [Open]. Registries of other users are kept from granting the same ports by
// claims (see [Options]).
//
// A lease ends by [Shared.Release], when it expires, and when its owner dies,
// which is looked at whenever the lease matters. An owner that forked has died
// when it has, whatever its children do. A port that is freed rests: it is not
// chosen for another name for a while, and by its number it can be had at once.
//
// Ports of different network namespaces are different ports: a registry grants
// and lists those of the calling thread's. Expiry and rest go by the machine's
// clock since it was started, so that setting the time of day ends nothing and
// prolongs nothing.
//
// On Windows and macOS leases end by release and expiry only.
type Shared struct {
	path     string
	options  Options
	readOnly bool
	view     string // owner.View
	self     Owner

	turn       chan struct{} // full while a goroutine uses what follows
	pool       *sql.DB
	conn       *sql.Conn
	file       os.FileInfo // that conn has open
	statements map[string]*sql.Stmt
	closed     bool
	guard      fileLock
	board      *claims.Board // nil if there is none
	boardID    string        // of this registry, on the board
	warned     bool          // about the board
}

// Options of a [Shared] registry. The zero value works.
type Options struct {
	Rest time.Duration // how long a freed port is not chosen for another name; default 60 s, negative: not at all
	Wait time.Duration // how long to wait while another process changes the registry; default 5 s
	// Claims is the directory in which registries, of this user and others, let
	// each other know of their leases, so that none grants what another has;
	// "none" if they should not. Default $FT_CLAIMS_DIR, or /var/tmp.
	Claims string
	// Warn is told once if that cannot be done; default is to log it with slog.
	Warn func(error)
}

const (
	defaultRest = time.Minute
	noClaims    = "none"
)

func (o Options) withDefaults() Options {
	if o.Rest == 0 {
		o.Rest = defaultRest
	}
	if o.Wait <= 0 {
		o.Wait = 5 * time.Second
	}
	o.Claims = cmp.Or(o.Claims, os.Getenv("FT_CLAIMS_DIR"), "/var/tmp")
	if o.Warn == nil {
		o.Warn = func(err error) { slog.Warn(err.Error()) }
	}
	return o
}

var _ Registry = (*Shared)(nil)

var (
	// ErrDamaged says that the registry is not SQLite's file or was damaged. Nothing was changed.
	ErrDamaged = sqlitefile.ErrDamaged
	// ErrForeign says that the file is an SQLite database of something else. Nothing was changed.
	ErrForeign = sqlitefile.ErrForeign
	// ErrNewer says that a newer version wrote the registry. Nothing was changed.
	ErrNewer = sqlitefile.ErrNewer
	// ErrReadOnly says that this user may read the registry and not write it.
	ErrReadOnly = errors.New("the registry of ports may be read only")
)

// DefaultPath is where this user's registry is, the one that `ft port` uses.
func DefaultPath() (string, error) { return statedir.Path("ports.db") }

// Open opens the registry at path, and creates it and its directory (mode 0600
// and 0700) if it is not there.
func Open(ctx context.Context, path string, o Options) (*Shared, error) {
	return openShared(ctx, path, o, false)
}

// OpenReadOnly opens a registry to look at it: Acquire, Renew, Release and
// Collect fail with [ErrReadOnly]. If there is none yet the error wraps
// [fs.ErrNotExist].
func OpenReadOnly(ctx context.Context, path string, o Options) (*Shared, error) {
	return openShared(ctx, path, o, true)
}

func openShared(ctx context.Context, path string, o Options, readOnly bool) (*Shared, error) {
	s := &Shared{
		path: path, options: o.withDefaults(), readOnly: readOnly, self: self(),
		turn: make(chan struct{}, 1), guard: fileLock{path: path + "-lock"},
	}
	view, err := owner.View()
	if err != nil && !errors.Is(err, errors.ErrUnsupported) {
		return nil, fmt.Errorf("registry of ports: %w", err)
	}
	s.view = view
	if err := s.create(ctx); err != nil {
		return nil, err
	}
	if err := s.connect(ctx); err != nil {
		return nil, errors.Join(err, s.guard.close())
	}
	return s, nil
}

// create begins a file, alone among all processes. What SQLite keeps beside one
// that was removed while somebody had it open would be taken for the new one's.
func (s *Shared) create(ctx context.Context) error {
	if _, err := os.Lstat(s.path); s.readOnly || !errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err := os.MkdirAll(filepath.Dir(s.path), 0o700); err != nil {
		return s.wrap(err)
	}
	if err := s.guard.lock(ctx, s.options.Wait); err != nil {
		return s.explainLock(err)
	}
	defer s.guard.unlock()
	if _, err := os.Lstat(s.path); !errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	for _, suffix := range []string{"-wal", "-shm"} {
		if err := os.Remove(s.path + suffix); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return s.wrap(err)
		}
	}
	return s.connect(ctx)
}

// connect opens the file. The connection is one, as one process changes the
// registry at a time.
func (s *Shared) connect(ctx context.Context) error {
	if s.conn != nil {
		return nil // create did it
	}
	open := registryFormat.Open
	if s.readOnly {
		open = registryFormat.OpenReadOnly
	}
	pool, err := open(ctx, s.path)
	if err != nil {
		return err
	}
	conn, err := pool.Conn(ctx)
	if err != nil {
		return errors.Join(s.wrap(err), pool.Close())
	}
	file, err := os.Stat(s.path)
	if err == nil && !s.readOnly {
		err = checkOurs(file)
	}
	if err != nil {
		return errors.Join(s.wrap(err), conn.Close(), pool.Close())
	}
	s.pool, s.conn, s.file = pool, conn, file
	s.statements = make(map[string]*sql.Stmt)
	return nil
}

// Close closes the file. Leases stay.
func (s *Shared) Close() error {
	s.turn <- struct{}{}
	defer s.endTurn()
	if s.closed {
		return nil
	}
	s.closed = true
	return errors.Join(s.disconnect(), s.guard.close())
}

// takeTurn waits until no other goroutine uses the registry.
func (s *Shared) takeTurn(ctx context.Context) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	select {
	case s.turn <- struct{}{}:
	case <-ctx.Done():
		return ctx.Err()
	}
	if s.closed {
		s.endTurn()
		return fmt.Errorf("registry of ports %s: %w", s.path, os.ErrClosed)
	}
	return nil
}

func (s *Shared) endTurn() { <-s.turn }

func (s *Shared) disconnect() error {
	s.closeBoard()
	if s.conn == nil {
		return nil // the last connect failed
	}
	for _, stmt := range s.statements {
		stmt.Close()
	}
	err := errors.Join(s.wrap(s.conn.Close()), s.wrap(s.pool.Close()))
	s.conn = nil
	return err
}

// follow opens the file that is at the path now, if another one is open: SQLite
// would go on with one that was removed, where nobody else looks.
func (s *Shared) follow(ctx context.Context) error {
	now, err := os.Stat(s.path)
	if err == nil && s.conn != nil && os.SameFile(now, s.file) {
		return nil
	}
	if err := s.disconnect(); err != nil {
		return err
	}
	return s.connect(ctx)
}

func (s *Shared) wrap(err error) error { return registryFormat.Wrap(s.path, err) }

// change runs f in a transaction, alone among all processes.
func (s *Shared) change(ctx context.Context, f func(*txn) error) error {
	if err := s.takeTurn(ctx); err != nil {
		return err
	}
	defer s.endTurn()
	if s.readOnly {
		return fmt.Errorf("%s: %w", s.path, ErrReadOnly)
	}
	if _, err := os.Stat(s.path); errors.Is(err, fs.ErrNotExist) { // removed since
		if err := errors.Join(s.disconnect(), s.create(ctx)); err != nil {
			return err
		}
	}
	if err := s.guard.lock(ctx, s.options.Wait); err != nil {
		return s.explainLock(err)
	}
	defer s.guard.unlock()
	if err := s.follow(ctx); err != nil {
		return err
	}
	wasCut := s.guard.isDirty()
	if err := s.guard.setDirty(true); err != nil {
		return s.wrap(err)
	}
	t := &txn{Shared: s, unpublished: wasCut}
	committed, err := t.run(f)
	errTidy := t.unreserve()
	if errTidy == nil && !t.unpublished {
		errTidy = s.guard.setDirty(false)
	}
	if errTidy != nil && committed {
		s.options.Warn(errTidy) // the next change does it
		return err
	}
	return errors.Join(err, errTidy)
}

// run commits what f does if it succeeds, and if its error is an answer: with a
// no, too, leases of the dead may have been ended. Claims are put in order also
// if f, which calls a [Request.Bind], panics.
func (t *txn) run(f func(*txn) error) (committed bool, err error) {
	if err := t.exec("BEGIN IMMEDIATE"); err != nil {
		return false, t.wrap(err)
	}
	defer func() {
		if !committed {
			t.conn.ExecContext(context.Background(), "ROLLBACK") // fails where SQLite has done so itself
		}
		t.settleClaims(committed)
	}()
	if err := t.begin(); err != nil {
		return false, err
	}
	if t.unpublished {
		t.republish()
	}
	err = f(t)
	if err != nil && !isAnswer(err) {
		return false, err
	}
	if err := t.exec("COMMIT"); err != nil {
		return false, t.wrap(err)
	}
	return true, err
}

// isAnswer says whether an error is the registry's answer, and no failure.
func isAnswer(err error) bool {
	for _, answer := range []error{ErrLeased, ErrInUse, ErrNotPermitted, ErrExhausted, ErrStale} {
		if errors.Is(err, answer) {
			return true
		}
	}
	var r *refusal
	return errors.As(err, &r)
}

// refusal is an answer that has no error of its own.
type refusal struct{ error }

func (r *refusal) Unwrap() error { return r.error }

// explainLock says who keeps the registry locked.
func (s *Shared) explainLock(err error) error {
	if !errors.Is(err, os.ErrDeadlineExceeded) {
		return fmt.Errorf("lock the registry of ports %s: %w", s.path, err)
	}
	holder := lockHolder(s.guard.path)
	if holder == "" {
		holder = "another process"
	}
	return fmt.Errorf("the registry of ports %s has been locked for %v by %s", s.path, s.options.Wait, holder)
}

// Acquire implements [Registry].
func (s *Shared) Acquire(ctx context.Context, r Request) (Lease, error) {
	r, err := r.normal(s.self)
	if err != nil {
		return Lease{}, err
	}
	var l Lease
	err = s.change(ctx, func(t *txn) error {
		l, err = t.grant(ctx, r)
		return err
	})
	if err == nil && l.Reserved {
		err = s.change(ctx, func(t *txn) error { return t.reserve(l) })
		if err != nil && !isAnswer(err) { // then it is released already
			err = errors.Join(err, s.Release(context.WithoutCancel(ctx), l))
		}
	}
	if err != nil {
		return Lease{}, err
	}
	return l, nil
}

// Renew implements [Registry].
func (s *Shared) Renew(ctx context.Context, l Lease, ttl time.Duration) (Lease, error) {
	if err := checkTTL(ttl, l.IsDetached()); err != nil {
		return Lease{}, err
	}
	var renewed Lease
	err := s.change(ctx, func(t *txn) error {
		r, err := t.current(l)
		if err != nil {
			return err
		}
		if err := checkTTL(ttl, r.IsDetached()); err != nil {
			return err
		}
		r.expires = t.expiry(ttl)
		renewed = t.present(r)
		if err := t.putAgain(r); err != nil {
			return err
		}
		return s.wrap(t.setExpiry(r.Fence, r.expires))
	})
	return renewed, err
}

// Transfer makes another process the owner of a lease, which ends with that
// one from now on. It fails with [ErrStale] if the lease has ended.
func (s *Shared) Transfer(ctx context.Context, l Lease, to Owner) (Lease, error) {
	if to.PID <= 0 {
		return Lease{}, invalid("the owner's pid is %d, which is no process's", to.PID)
	}
	to, err := to.complete()
	if err != nil {
		return Lease{}, err
	}
	var passed Lease
	err = s.change(ctx, func(t *txn) error {
		r, err := t.current(l)
		if err != nil {
			return err
		}
		r.Owner = to
		passed = t.present(r)
		if err := t.putAgain(r); err != nil {
			return err
		}
		return s.wrap(t.setOwner(r.Fence, to))
	})
	return passed, err
}

// Release implements [Registry].
func (s *Shared) Release(ctx context.Context, l Lease) error {
	return s.change(ctx, func(t *txn) error {
		r, err := t.current(l)
		if err != nil {
			return err
		}
		return t.end(r)
	})
}

// Collect ends the leases that have expired or whose owner has died, of all
// network namespaces, and returns them. Nothing depends on it being called.
func (s *Shared) Collect(ctx context.Context) ([]Lease, error) {
	var ended []Lease
	err := s.change(ctx, func(t *txn) (err error) {
		ended, err = t.collect()
		return err
	})
	return ended, err
}

// List implements [Registry].
func (s *Shared) List(ctx context.Context) ([]Lease, error) {
	if err := s.takeTurn(ctx); err != nil {
		return nil, err
	}
	defer s.endTurn()
	if err := s.follow(ctx); err != nil {
		return nil, err
	}
	t := &txn{Shared: s}
	if err := t.look(); err != nil {
		return nil, err
	}
	var leases []Lease
	err := s.each(func(r row) bool {
		if !t.isOver(r) {
			leases = append(leases, t.present(r))
		}
		return true
	}, "ended IS NULL AND namespace IN (?, ?)", t.namespace, t.former)
	sortLeases(leases)
	return leases, s.wrap(err)
}

// Status implements [Registry].
func (s *Shared) Status(ctx context.Context) (Status, error) {
	leases, err := s.List(ctx)
	if err != nil {
		return Status{}, err
	}
	return statusOf(ctx, leases)
}

package lease

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"sync"
	"time"

	"github.com/fivetuple/fivetuple/internal/claims"
	"github.com/fivetuple/fivetuple/internal/sqlitefile"
	"github.com/fivetuple/fivetuple/internal/statedir"
	"github.com/fivetuple/fivetuple/owner"
)

// Shared is a registry in a file, for all processes of a user, or of all users
// who may write the file. It is made by [Open].
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

	mu         sync.Mutex
	pool       *sql.DB
	conn       *sql.Conn
	file       os.FileInfo // that conn has open
	statements map[string]*sql.Stmt
	closed     bool
	guard      fileLock
	board      *claims.Board // nil if there is none
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

const defaultRest = time.Minute

func (o Options) withDefaults() Options {
	if o.Rest == 0 {
		o.Rest = defaultRest
	}
	if o.Wait <= 0 {
		o.Wait = 5 * time.Second
	}
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
	s := &Shared{path: path, options: o.withDefaults(), readOnly: readOnly, self: self(), guard: fileLock{path: path + "-lock"}}
	view, err := owner.View()
	if err != nil && !errors.Is(err, errors.ErrUnsupported) {
		return nil, fmt.Errorf("registry of ports: %w", err)
	}
	s.view = view
	if err := s.connect(ctx); err != nil {
		return nil, err
	}
	return s, nil
}

// connect opens the file. The connection is one, as one process changes the
// registry at a time.
func (s *Shared) connect(ctx context.Context) error {
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
	if err != nil {
		return errors.Join(err, conn.Close(), pool.Close())
	}
	s.pool, s.conn, s.file = pool, conn, file
	s.statements = make(map[string]*sql.Stmt)
	s.openBoard()
	return nil
}

// Close closes the file. Leases stay.
func (s *Shared) Close() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return nil
	}
	s.closed = true
	return errors.Join(s.disconnect(), s.guard.close())
}

func (s *Shared) disconnect() error {
	if s.conn == nil {
		return nil // the last connect failed
	}
	for _, stmt := range s.statements {
		stmt.Close()
	}
	if s.board != nil {
		s.board.Close()
		s.board = nil
	}
	err := errors.Join(s.wrap(s.conn.Close()), s.wrap(s.pool.Close()))
	s.conn = nil
	return err
}

// follow opens the file that is at the path now, if another one is open: SQLite
// would go on with one that was removed, where nobody else looks.
func (s *Shared) follow(ctx context.Context) error {
	if s.closed {
		return fmt.Errorf("registry of ports %s: %w", s.path, os.ErrClosed)
	}
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
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.readOnly {
		return fmt.Errorf("%s: %w", s.path, ErrReadOnly)
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	if err := s.guard.lock(ctx, s.options.Wait); err != nil {
		return s.explainLock(err)
	}
	defer s.guard.unlock()
	if err := s.follow(ctx); err != nil {
		return err
	}
	t, err := s.here()
	if err != nil {
		return err
	}
	wasCut := s.guard.isDirty()
	if err := s.guard.setDirty(true); err != nil {
		return s.wrap(err)
	}
	err = s.transact(func() error {
		if err := t.adopt(); err != nil {
			return err
		}
		if wasCut {
			t.republish()
		}
		return f(t)
	}, t.settleClaims)
	if errReserved := t.unreserve(); errReserved != nil {
		return errors.Join(err, errReserved)
	}
	return errors.Join(err, s.guard.setDirty(false))
}

// transact commits what f does if it succeeds, and if its error is an answer:
// with a no, too, leases of the dead may have been ended. It says what became
// of it also where f, which calls a [Request.Bind], panics.
func (s *Shared) transact(f func() error, settle func(committed bool)) error {
	if err := s.exec("BEGIN IMMEDIATE"); err != nil {
		return s.wrap(err)
	}
	committed := false
	defer func() {
		if !committed {
			s.conn.ExecContext(context.Background(), "ROLLBACK") // fails where SQLite has done so itself
		}
		settle(committed)
	}()
	err := f()
	if err != nil && !isAnswer(err) {
		return err
	}
	if err := s.exec("COMMIT"); err != nil {
		return s.wrap(err)
	}
	committed = true
	return err
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

// here is what a transaction goes by: the time, and where this thread is.
func (s *Shared) here() (*txn, error) {
	boot := bootOf(s.view)
	namespace, err := networkNamespace(boot)
	if err != nil {
		return nil, err
	}
	return &txn{Shared: s, namespace: namespace, now: moment{time.Now(), boot, sinceBoot()}, living: newLiving(s.view)}, nil
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
		if err != nil {
			s.Release(context.WithoutCancel(ctx), l) // unless that is done
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
		r.expires = t.expiry(ttl)
		renewed = t.present(r)
		t.putAgain(r)
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
	var passed Lease
	err := s.change(ctx, func(t *txn) error {
		r, err := t.current(l)
		if err != nil {
			return err
		}
		r.Owner = to
		passed = t.present(r)
		t.putAgain(r)
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
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	if err := s.follow(ctx); err != nil {
		return nil, err
	}
	t, err := s.here()
	if err != nil {
		return nil, err
	}
	former, err := t.formerNamespace()
	if err != nil {
		return nil, s.wrap(err)
	}
	var leases []Lease
	err = s.each(func(r row) bool {
		if !t.isOver(r) {
			leases = append(leases, t.present(r))
		}
		return true
	}, "ended IS NULL AND namespace IN (?, ?)", t.namespace, former)
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

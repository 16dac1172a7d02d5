package lease

import (
	"context"
	"database/sql"
	"fmt"
	"net/netip"
	"time"

	"github.com/fivetuple/fivetuple"
	"github.com/fivetuple/fivetuple/internal/sqlitefile"
)

// registryFormat: a lease is a row until it ends, and from then on the memory
// of which port a name had, and of when the port was freed. Times are
// nanoseconds since 1970, the columns *_since nanoseconds since the start of the
// machine that boot names. Reserved stays set on a lease that has ended until its
// port is taken out of ip_local_reserved_ports. The slot is that of its claim. The namespaces are
// network namespaces; one row of machine remembers which is the main one. The
// fencing numbers begin at the milliseconds since 1970, so that they grow also
// from a file that was removed to the next.
var registryFormat = sqlitefile.Format{
	Noun:          "registry of ports",
	Missing:       "no port was leased yet",
	ApplicationID: 0x6674706f, // "ftpo", so that other programs' databases are told apart
	Version:       1,
	Schema: `
CREATE TABLE leases (
	fence INTEGER PRIMARY KEY AUTOINCREMENT,
	namespace TEXT NOT NULL,
	protocol TEXT NOT NULL, v6only INTEGER NOT NULL, address TEXT NOT NULL, port INTEGER NOT NULL,
	name TEXT NOT NULL, purpose TEXT NOT NULL,
	pid INTEGER NOT NULL, start TEXT NOT NULL, command TEXT NOT NULL, user TEXT NOT NULL,
	reuse_port INTEGER NOT NULL, reserved INTEGER NOT NULL, slot INTEGER NOT NULL,
	boot TEXT NOT NULL, granted INTEGER NOT NULL,
	expires INTEGER, expires_since INTEGER,
	ended INTEGER, ended_since INTEGER
);
CREATE INDEX leases_port ON leases (namespace, protocol, port);
CREATE INDEX leases_name ON leases (protocol, name);
CREATE INDEX leases_reserved ON leases (namespace, port) WHERE reserved;
CREATE UNIQUE INDEX leases_slot ON leases (slot) WHERE ended IS NULL;
INSERT INTO sqlite_sequence (name, seq) VALUES ('leases', CAST(unixepoch('subsec') * 1000 AS INTEGER));
CREATE TABLE free_slots (slot INTEGER PRIMARY KEY);
CREATE TABLE machine (id INTEGER PRIMARY KEY CHECK (id = 1), file TEXT NOT NULL, claims TEXT NOT NULL, main_namespace TEXT NOT NULL);
INSERT INTO machine VALUES (1, '', lower(hex(randomblob(8))), '');`,
}

const columns = `fence, namespace, protocol, v6only, address, port, name, purpose, pid, start, command, user,
	reuse_port, reserved, slot, boot, granted, expires, expires_since, ended, ended_since`

// row is a lease as it is kept.
type row struct {
	Lease
	namespace string
	slot      int
	boot      string // of both moments
	expires   moment // its wall is zero if never
	ended     moment // likewise if it has not
}

func (r row) isCurrent() bool { return r.ended.wall.IsZero() }

// each calls f with the rows that the query finds, until f returns false.
func (s *Shared) each(f func(row) bool, where string, args ...any) error {
	stmt, err := s.prepare("SELECT " + columns + " FROM leases WHERE " + where)
	if err != nil {
		return err
	}
	rows, err := stmt.Query(args...)
	if err != nil {
		return err
	}
	defer rows.Close()
	for rows.Next() {
		r, err := scanRow(rows)
		if err != nil {
			return err
		}
		if !f(r) {
			break
		}
	}
	return rows.Err()
}

func (s *Shared) all(where string, args ...any) (found []row, err error) {
	err = s.each(func(r row) bool { found = append(found, r); return true }, where, args...)
	return found, err
}

func scanRow(rows *sql.Rows) (row, error) {
	var r row
	var protocol, address string
	var v6only bool
	var granted int64
	var expires, expiresSince, ended, endedSince sql.NullInt64
	err := rows.Scan(&r.Fence, &r.namespace, &protocol, &v6only, &address, &r.Port, &r.Name, &r.Purpose,
		&r.Owner.PID, &r.Owner.Start, &r.Owner.Command, &r.Owner.User,
		&r.ReusePort, &r.Reserved, &r.slot, &r.boot, &granted, &expires, &expiresSince, &ended, &endedSince)
	if err != nil {
		return r, err
	}
	if r.Address, err = netip.ParseAddr(address); err != nil {
		return r, fmt.Errorf("lease %d: %w", r.Fence, err)
	}
	if r.Protocol, err = fivetuple.ParseNetwork(protocol); err != nil {
		return r, fmt.Errorf("lease %d: %w", r.Fence, err)
	}
	if !r.Protocol.IsIP() {
		return r, fmt.Errorf("lease %d is of protocol %s: want tcp or udp", r.Fence, r.Protocol)
	}
	if v6only {
		r.Protocol = narrowed[r.Protocol]
	}
	r.Granted = time.Unix(0, granted)
	r.expires, r.ended = readMoment(r.boot, expires, expiresSince), readMoment(r.boot, ended, endedSince)
	r.Expires = r.expires.wall
	return r, nil
}

// narrowed are the protocols for IPv6 alone.
var narrowed = map[fivetuple.Network]fivetuple.Network{fivetuple.TCP: fivetuple.TCP6, fivetuple.UDP: fivetuple.UDP6}

func readMoment(boot string, wall, since sql.NullInt64) moment {
	if !wall.Valid {
		return moment{}
	}
	return moment{time.Unix(0, wall.Int64), boot, time.Duration(since.Int64)}
}

// columns of a moment in the file, NULL if it is none.
func (m moment) wallColumn() any {
	if m.wall.IsZero() {
		return nil
	}
	return m.wall.UnixNano()
}

func (m moment) sinceColumn() any {
	if m.wall.IsZero() {
		return nil
	}
	return int64(m.since)
}

// insert writes a new lease and returns its fencing number.
func (t *txn) insert(r row) (fence uint64, err error) {
	l := r.Lease
	err = t.queryRow(`INSERT INTO leases (namespace, protocol, v6only, address, port, name, purpose, pid, start, command, user,
		reuse_port, reserved, slot, boot, granted, expires, expires_since) VALUES (?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?) RETURNING fence`,
		t.namespace, l.Protocol.Protocol().String(), l.Protocol != l.Protocol.Protocol(), l.Address.String(), l.Port, l.Name, l.Purpose,
		l.Owner.PID, l.Owner.Start, l.Owner.Command, l.Owner.User,
		l.ReusePort, l.Reserved, r.slot, t.now.boot, l.Granted.UnixNano(), r.expires.wallColumn(), r.expires.sinceColumn()).Scan(&fence)
	return fence, err
}

// setExpiry writes when a lease ends; the zero moment is never.
func (t *txn) setExpiry(fence uint64, expires moment) error {
	return t.exec("UPDATE leases SET boot = ?, expires = ?, expires_since = ? WHERE fence = ?",
		t.now.boot, expires.wallColumn(), expires.sinceColumn(), fence)
}

func (t *txn) setOwner(fence uint64, o Owner) error {
	return t.exec("UPDATE leases SET pid = ?, start = ?, command = ?, user = ? WHERE fence = ?", o.PID, o.Start, o.Command, o.User, fence)
}

// setEnded writes that a lease has ended.
func (t *txn) setEnded(r row) error {
	err := t.forget(r.namespace, r.Lease)
	if err != nil {
		return err
	}
	err = t.exec("UPDATE leases SET boot = ?, ended = ?, ended_since = ? WHERE fence = ?",
		r.ended.boot, r.ended.wallColumn(), r.ended.sinceColumn(), r.Fence)
	if err != nil {
		return err
	}
	return t.exec("INSERT INTO free_slots VALUES (?)", r.slot)
}

// forget removes what is remembered of the lease's address and port, but for
// other names that had it.
func (t *txn) forget(namespace string, l Lease) error {
	return t.exec("DELETE FROM leases WHERE namespace = ? AND protocol = ? AND port = ? AND address = ? AND name IN (?, '') AND ended IS NOT NULL AND NOT reserved",
		namespace, l.Protocol.Protocol().String(), l.Port, l.Address.String(), l.Name)
}

// maxNames is how many ended leases are remembered for their names alone.
const maxNames = 1024

// forgetOld removes what is remembered, but for the newest names, and for ports
// that are at rest.
func (t *txn) forgetOld() error {
	return t.exec(`DELETE FROM leases WHERE ended IS NOT NULL AND NOT reserved AND NOT (boot = ? AND ended_since > ?)
		AND fence < (SELECT fence FROM leases WHERE ended IS NOT NULL ORDER BY fence DESC LIMIT 1 OFFSET ?)`,
		t.now.boot, int64(t.now.since-t.options.Rest), maxNames)
}

// rememberedPort is the port that a name had last, in this network namespace
// or in another; 0 if none is known.
func (t *txn) rememberedPort(protocol fivetuple.Network, name string) (port uint16, err error) {
	err = t.queryRow("SELECT port FROM leases WHERE protocol = ? AND name = ? AND ended IS NOT NULL ORDER BY (namespace = ?) DESC, fence DESC LIMIT 1",
		protocol.String(), name, t.namespace).Scan(&port)
	if err == sql.ErrNoRows {
		return 0, nil
	}
	return port, err
}

// nextSlot is a number that no current lease has: one that was given back, or
// if there is none the next. It is free until useSlot.
func (t *txn) nextSlot() (slot int, err error) {
	err = t.queryRow("SELECT coalesce((SELECT max(slot) FROM free_slots), (SELECT max(slot) + 1 FROM leases WHERE ended IS NULL), 0)").Scan(&slot)
	return slot, err
}

func (t *txn) useSlot(slot int) error { return t.exec("DELETE FROM free_slots WHERE slot = ?", slot) }

func (s *Shared) exec(query string, args ...any) error {
	stmt, err := s.prepare(query)
	if err != nil {
		return err
	}
	_, err = stmt.Exec(args...)
	return err
}

func (s *Shared) queryRow(query string, args ...any) *sql.Row {
	stmt, err := s.prepare(query)
	if err != nil {
		return s.conn.QueryRowContext(context.Background(), query, args...) // fails the same way
	}
	return stmt.QueryRow(args...)
}

// prepare returns a statement that is compiled once.
func (s *Shared) prepare(query string) (*sql.Stmt, error) {
	if stmt := s.statements[query]; stmt != nil {
		return stmt, nil
	}
	stmt, err := s.conn.PrepareContext(context.Background(), query)
	if err == nil {
		s.statements[query] = stmt
	}
	return stmt, err
}

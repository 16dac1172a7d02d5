package history

import (
	"cmp"
	"context"
	"database/sql"
	"fmt"
	"slices"
	"time"

	"github.com/fivetuple/fivetuple/stats"
)

// Totals adds up by service the events that the query wants, sorted by name;
// Kinds and Limit are ignored. Of each connection the last totals seen count,
// be they of its end or of a report while it lived, with what it carried before
// q.Since too. Live and Listeners are those that were seen to begin and not to
// end in processes that are alive; connections that others left open are Unfinished.
func (d *DB) Totals(ctx context.Context, q Query) ([]stats.ServiceCounters, error) {
	rows, err := d.totals(ctx, q)
	return rows, d.wrap(err)
}

func (d *DB) totals(ctx context.Context, q Query) ([]stats.ServiceCounters, error) {
	q.Kinds, q.Limit = nil, 0
	first, last, err := d.span(ctx, q)
	if err != nil {
		return nil, err
	}
	alive, err := d.aliveRuns(ctx)
	if err != nil {
		return nil, err
	}
	s := sums{alive: alive, services: map[string]*stats.ServiceCounters{}}
	c := conditionsOf(q, first, last)
	if err := d.each(ctx, s.addEvents, sumEvents(c), c.args...); err != nil {
		return nil, err
	}
	if err := d.each(ctx, s.addConnections, sumConnections(c), c.args...); err != nil {
		return nil, err
	}
	return s.sorted(), nil
}

// aliveRuns finds the runs that record now, in this process or another.
func (d *DB) aliveRuns(ctx context.Context) (map[int64]bool, error) {
	var runs []int64
	err := d.each(ctx, func(rows *sql.Rows) error {
		var run int64
		err := rows.Scan(&run)
		runs = append(runs, run)
		return err
	}, "SELECT id FROM runs WHERE ended IS NULL ORDER BY id")
	if err != nil {
		return nil, err
	}
	return aliveRuns(d.path, runs)
}

func (d *DB) each(ctx context.Context, add func(*sql.Rows) error, query string, args ...any) error {
	rows, err := d.handle().QueryContext(ctx, query, args...)
	if err != nil {
		return err
	}
	defer rows.Close()
	for rows.Next() {
		if err := add(rows); err != nil {
			return err
		}
	}
	return rows.Err()
}

// sums are the totals while they are added up.
type sums struct {
	alive    map[int64]bool
	services map[string]*stats.ServiceCounters
}

func (s *sums) service(name string) *stats.ServiceCounters {
	c := s.services[name]
	if c == nil {
		c = &stats.ServiceCounters{Service: name}
		s.services[name] = c
	}
	return c
}

func (s *sums) sorted() []stats.ServiceCounters {
	rows := make([]stats.ServiceCounters, 0, len(s.services))
	for _, c := range s.services {
		rows = append(rows, *c)
	}
	slices.SortFunc(rows, func(a, b stats.ServiceCounters) int { return cmp.Compare(a.Service, b.Service) })
	return rows
}

const serviceName = "(SELECT name FROM services WHERE id = service)"

// sumEvents counts by service, kind and cause.
func sumEvents(c conditions) string {
	return "SELECT " + serviceName + ", kind, cause, count(*), min(time), max(time) FROM events" + c.where() +
		" GROUP BY service, kind, cause"
}

func (s *sums) addEvents(rows *sql.Rows) error {
	var (
		name, cause string
		kind        stats.Kind
		n           uint64
		from, to    int64
	)
	if err := rows.Scan(&name, &kind, &cause, &n, &from, &to); err != nil {
		return err
	}
	sum := stats.ServiceCounters{First: time.Unix(0, from), Last: time.Unix(0, to)}
	switch kind {
	case stats.Connect:
		sum.Connected, sum.Connections = n, n
	case stats.Accept:
		sum.Accepted, sum.Connections = n, n
	case stats.Disconnect:
		if cause == "" {
			cause = stats.UnknownCause
		}
		sum.Disconnected, sum.Causes = n, map[string]uint64{cause: n}
	case stats.Error:
		sum.Errors = n
	}
	s.service(name).Add(sum)
	return nil
}

// sumConnections looks at each connection: was it seen to end, and what did it
// carry. The totals in its events only grow, so the greatest are the last.
// What has no connection id (0) cannot be told apart: beginnings are weighed
// against ends, and of the totals only those of ends count.
func sumConnections(c conditions) string {
	total := func(column string) string {
		return fmt.Sprintf("CASE conn WHEN 0 THEN sum(iif(kind = %d, %s, 0)) ELSE max(%[2]s) END AS %[2]s", stats.Disconnect, column)
	}
	return fmt.Sprintf(`SELECT run, `+serviceName+`, sum(listening), sum(open),
			sum(bytes_in), sum(bytes_out), sum(packets_in), sum(packets_out)
		FROM (SELECT run, service,
				max(0, sum(kind = %d) - sum(kind = %d)) AS listening,
				max(0, sum(kind IN (%d, %d)) - sum(kind = %d)) AS open,
				%s, %s, %s, %s
			FROM events %s GROUP BY run, service, conn)
		GROUP BY run, service`,
		stats.Listen, stats.Close, stats.Accept, stats.Connect, stats.Disconnect,
		total("bytes_in"), total("bytes_out"), total("packets_in"), total("packets_out"), c.where())
}

func (s *sums) addConnections(rows *sql.Rows) error {
	var (
		run             int64
		name            string
		listening, open uint64
		sum             stats.ServiceCounters
	)
	err := rows.Scan(&run, &name, &listening, &open, &sum.BytesIn, &sum.BytesOut, &sum.PacketsIn, &sum.PacketsOut)
	if err != nil {
		return err
	}
	if s.alive[run] {
		sum.Listeners, sum.Live = listening, open
	} else {
		sum.Unfinished = open
	}
	s.service(name).Add(sum)
	return nil
}

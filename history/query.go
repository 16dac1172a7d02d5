package history

import (
	"context"
	"iter"
	"net/netip"
	"strings"
	"time"

	"github.com/fivetuple/fivetuple/stats"
)

// Query says which events are wanted: those that meet every condition. Zero
// fields are no conditions; in a list, any one suffices.
type Query struct {
	Since    time.Time // events at or after it
	Until    time.Time // events before it
	Services []string  // of one of these services; "" stands for events of none
	Kinds    []stats.Kind
	Host     netip.Prefix // with an address of either end in it; netip.PrefixFrom(a, a.BitLen()) is one host
	Port     uint16       // with this port at either end

	LocalPort, RemotePort uint16 // with this port at that end

	After int64 // recorded after the entry with this id: what is new since the last look
	Limit int   // only the newest so many of them; 0 is all
}

// pageRows are read at a time, so that no read transaction is open, holding up
// the emptying of the log, while the caller looks at an entry.
const pageRows = 1000

// Query yields the entries in the order they were recorded, oldest first;
// with a Limit the newest so many, still oldest first. This is the order of
// time except where the clock was set, or where several processes recorded
// within the same tenth of a second. It ends with what was there when it
// began, and after the first error.
func (d *DB) Query(ctx context.Context, q Query) iter.Seq2[Entry, error] {
	return func(yield func(Entry, error) bool) {
		first, last, err := d.span(ctx, q)
		for err == nil && first <= last {
			var page []Entry
			page, err = d.page(ctx, q, first, last)
			for _, e := range page {
				if !yield(e, nil) {
					return
				}
			}
			if len(page) < pageRows {
				break
			}
			first = page[len(page)-1].ID + 1
		}
		if err != nil {
			yield(Entry{}, d.wrap(err))
		}
	}
}

// span finds the ids between which all entries lie that are wanted, and no
// more than Limit of them. It is empty if there are none.
func (d *DB) span(ctx context.Context, q Query) (first, last int64, err error) {
	sql, args := "SELECT coalesce((SELECT min(id) FROM events), 1), coalesce((SELECT max(id) FROM events), 0)", []any(nil)
	if !q.Since.IsZero() || !q.Until.IsZero() {
		var c conditions
		c.during(q, "time")
		sql, args = "SELECT coalesce(min(id), 1), coalesce(max(id), 0) FROM events INDEXED BY events_time"+c.where(), c.args
	}
	if err := d.handle().QueryRowContext(ctx, sql, args...).Scan(&first, &last); err != nil {
		return 0, 0, err
	}
	first = max(first, q.After+1)
	if q.Limit <= 0 || first > last {
		return first, last, nil
	}
	c := conditionsOf(q, first, last)
	err = d.handle().QueryRowContext(ctx, "SELECT coalesce(min(id), 1), coalesce(max(id), 0) FROM (SELECT id FROM events"+
		c.where()+" ORDER BY id DESC LIMIT ?)", append(c.args, q.Limit)...).Scan(&first, &last)
	return first, last, err
}

func (d *DB) page(ctx context.Context, q Query, first, last int64) ([]Entry, error) {
	c := conditionsOf(q, first, last)
	rows, err := d.handle().QueryContext(ctx, selectEvent+c.where()+" ORDER BY id LIMIT ?", append(c.args, pageRows)...)
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	var page []Entry
	for rows.Next() {
		e, err := scanEntry(rows)
		if err != nil {
			return page, err
		}
		page = append(page, e)
	}
	return page, rows.Err()
}

// conditions are the terms of a WHERE clause and their arguments.
type conditions struct {
	terms []string
	args  []any
}

func (c *conditions) add(term string, args ...any) {
	c.terms = append(c.terms, term)
	c.args = append(c.args, args...)
}

func (c *conditions) where() string {
	if len(c.terms) == 0 {
		return ""
	}
	return " WHERE " + strings.Join(c.terms, " AND ")
}

// conditionsOf turns the query into SQL for the ids from first to last. The
// plus keeps SQLite from going by time, where it would have to sort by id.
func conditionsOf(q Query, first, last int64) conditions {
	var c conditions
	c.add("id BETWEEN ? AND ?", first, last)
	c.during(q, "+time")
	c.anyOf("kind", anys(q.Kinds, func(k stats.Kind) any { return int64(k) }), "")
	c.anyOf("service", anys(q.Services, func(s string) any { return s }), "SELECT id FROM services WHERE name IN ")
	if q.Host.IsValid() {
		lo, hi := bounds(q.Host)
		c.add("(length(local_ip) = ? AND local_ip BETWEEN ? AND ? OR length(remote_ip) = ? AND remote_ip BETWEEN ? AND ?)",
			len(lo), lo, hi, len(lo), lo, hi)
	}
	if q.Port != 0 {
		c.add("(local_port = ? OR remote_port = ?)", int64(q.Port), int64(q.Port))
	}
	if q.LocalPort != 0 {
		c.add("local_port = ?", int64(q.LocalPort))
	}
	if q.RemotePort != 0 {
		c.add("remote_port = ?", int64(q.RemotePort))
	}
	return c
}

func (c *conditions) during(q Query, column string) {
	if !q.Since.IsZero() {
		c.add(column+" >= ?", nanoseconds(q.Since))
	}
	if !q.Until.IsZero() {
		c.add(column+" < ?", nanoseconds(q.Until))
	}
}

// anyOf adds "column IN (?, ...)", or with a subquery in front "column IN (subquery (?, ...))".
func (c *conditions) anyOf(column string, values []any, subquery string) {
	if len(values) == 0 {
		return
	}
	list := "(?" + strings.Repeat(", ?", len(values)-1) + ")"
	if subquery != "" {
		list = "(" + subquery + list + ")"
	}
	c.add(column+" IN "+list, values...)
}

func anys[T any](values []T, convert func(T) any) []any {
	as := make([]any, len(values))
	for i, v := range values {
		as[i] = convert(v)
	}
	return as
}

// bounds returns the first and the last address of the prefix, 4 or 16 bytes.
func bounds(p netip.Prefix) (lo, hi []byte) {
	if p.Addr().Is4In6() && p.Bits() >= 96 {
		p = netip.PrefixFrom(p.Addr().Unmap(), p.Bits()-96)
	}
	lo = p.Masked().Addr().AsSlice()
	hi = p.Masked().Addr().AsSlice()
	for bit := p.Bits(); bit < len(hi)*8; bit++ {
		hi[bit/8] |= 0x80 >> (bit % 8)
	}
	return lo, hi
}

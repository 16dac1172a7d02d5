package cli

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"iter"
	"net/netip"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/fivetuple/fivetuple/history"
	"github.com/fivetuple/fivetuple/stats"
)

type historyCommandFlags struct {
	historyFlags
	kinds []string
	host  string
	port  string
	limit int
}

func (a *app) history() *cobra.Command {
	var f historyCommandFlags
	c := &cobra.Command{
		Use:   "history",
		Short: "What happened on the sockets of ft serve",
		Long: `Prints the events that ft serve recorded, oldest first: listen, connect, accept,
data, disconnect, error, close. Times are local ones; the address is the remote
one, if there is one; -o wide shows both. The exit code is 1 if there are none.`,
		Example: `  ft history                            the last 50 events
  ft history --since 1h --kind error    the errors of the last hour
  ft history --host 10.0.0.0/8 --limit 0 -o csv`,
		Args: noArgs,
		RunE: func(c *cobra.Command, _ []string) error { return a.showHistory(c.Context(), f) },
	}
	f.register(c)
	c.Flags().StringSliceVar(&f.kinds, "kind", nil, "only events of this `kind`; several with commas")
	c.Flags().StringVar(&f.host, "host", "", "only events with this `address`, or one of this network, at either end")
	c.Flags().StringVar(&f.port, "port", "", "only events with this `port`, by number or by service name, at either end")
	c.Flags().IntVar(&f.limit, "limit", 50, "only the newest `n` of them; 0 for all")
	return c
}

func (a *app) showHistory(ctx context.Context, f historyCommandFlags) error {
	q, err := f.query(a, time.Now())
	if err != nil {
		return &codeError{exitUsage, err}
	}
	return f.read(ctx, func(db *history.DB) (int, error) { return a.printHistory(db.Query(ctx, q)) })
}

func (f *historyCommandFlags) query(a *app, now time.Time) (history.Query, error) {
	q, err := f.historyFlags.query(now)
	if err != nil {
		return q, err
	}
	if f.limit < 0 {
		return q, fmt.Errorf("--limit %d: want the number of events, or 0 for all", f.limit)
	}
	q.Limit = f.limit
	for _, name := range f.kinds {
		kind, err := stats.ParseKind(name)
		if err != nil {
			return q, fmt.Errorf("--kind: %w", err)
		}
		q.Kinds = append(q.Kinds, kind)
	}
	if f.host != "" {
		if q.Host, err = parseHost(f.host); err != nil {
			return q, err
		}
	}
	if f.port != "" {
		if q.Port, err = a.parsePortOrName(f.port); err != nil {
			return q, fmt.Errorf("--port: %w", err)
		}
	}
	return q, nil
}

// parseHost reads an address or a network.
func parseHost(s string) (netip.Prefix, error) {
	if p, err := netip.ParsePrefix(s); err == nil {
		return p, nil
	}
	addr, err := netip.ParseAddr(s)
	if err != nil {
		return netip.Prefix{}, fmt.Errorf("--host %q: want an address or a network, such as 10.0.0.7 or 10.0.0.0/8", s)
	}
	return netip.PrefixFrom(addr, addr.BitLen()), nil
}

// historyFlags are those of every command that reads the history.
type historyFlags struct {
	db       string
	since    string
	until    string
	services []string
}

func (f *historyFlags) register(c *cobra.Command) {
	c.Flags().StringVar(&f.since, "since", "", "only events since this `time`: 10m, 1h30m or 2d ago, a date, or RFC 3339")
	c.Flags().StringVar(&f.until, "until", "", "only events before this `time`, written as in --since")
	c.Flags().StringArrayVar(&f.services, "service", nil, "only events of the service of this `name`; give it several times for several")
	c.Flags().StringVar(&f.db, "db", "", "`file` of the history (default: that of ft serve)")
}

func (f *historyFlags) query(now time.Time) (q history.Query, err error) {
	if q.Since, err = parseTime(f.since, now); err != nil {
		return q, fmt.Errorf("--since: %w", err)
	}
	if q.Until, err = parseTime(f.until, now); err != nil {
		return q, fmt.Errorf("--until: %w", err)
	}
	if !q.Until.IsZero() && !q.Since.Before(q.Until) {
		return q, fmt.Errorf("--since %s is not before --until %s", f.since, f.until)
	}
	q.Services = f.services
	return q, nil
}

// read opens the history for print, which returns how many rows it printed. That
// there are none is an answer.
func (f *historyFlags) read(ctx context.Context, print func(*history.DB) (int, error)) error {
	db, err := f.open(ctx)
	if err != nil {
		return err
	}
	defer db.Close()
	n, err := print(db)
	if err == nil && n == 0 {
		return no("no event matches")
	}
	return err
}

// open opens the history. That there is none is an answer, unless it was named.
func (f *historyFlags) open(ctx context.Context) (*history.DB, error) {
	path := f.db
	if path == "" {
		var err error
		if path, err = historyPath(); err != nil {
			return nil, err
		}
	}
	db, err := history.OpenReadOnly(ctx, path, history.Options{})
	if errors.Is(err, fs.ErrNotExist) && f.db != "" {
		return nil, fmt.Errorf("history %s: no such file", f.db)
	}
	if errors.Is(err, fs.ErrNotExist) {
		return nil, &codeError{exitNo, err}
	}
	return db, err
}

// parseTime reads how long ago something was, or a local or RFC 3339 time. The
// zero time is that of "".
func parseTime(s string, now time.Time) (time.Time, error) {
	if s == "" {
		return time.Time{}, nil
	}
	if ago, ok := parseAgo(s); ok {
		return now.Add(-ago), nil
	}
	if t, err := time.Parse(time.RFC3339Nano, s); err == nil {
		return t, nil
	}
	for _, layout := range []string{time.DateOnly, "2006-01-02 15:04", time.DateTime} {
		if t, err := time.ParseInLocation(layout, s, now.Location()); err == nil {
			return t, nil
		}
	}
	return time.Time{}, fmt.Errorf("bad time %q: want 10m, 1h30m or 2d ago, 2006-01-02, \"2006-01-02 15:04:05\", or RFC 3339", s)
}

// parseAgo reads a duration that may begin with days: 2d, 1d12h, 90s.
func parseAgo(s string) (time.Duration, bool) {
	const day = 24 * time.Hour
	var ago time.Duration
	if days, rest, ok := strings.Cut(s, "d"); ok {
		n, err := strconv.ParseUint(days, 10, 16) // so many days fit a Duration
		if err != nil {
			return 0, false
		}
		ago, s = time.Duration(n)*day, rest
	}
	if s != "" {
		d, err := time.ParseDuration(s)
		if err != nil || d < 0 || d > 100*365*day {
			return 0, false
		}
		ago += d
	}
	return ago, true
}

// printHistory prints events and returns how many there were.
func (a *app) printHistory(entries iter.Seq2[history.Entry, error]) (int, error) {
	return printRows(a, "events", entries, historyColumns)
}

var historyColumns = []column[history.Entry]{
	{head: "time", slim: true, text: func(e history.Entry) string { return shortTime(e.Time, time.Now()) }},
	{
		head: "time", wide: true, text: func(e history.Entry) string { return e.Time.Local().Format("2006-01-02 15:04:05.000") },
		value: func(e history.Entry) string { return e.Time.Format(time.RFC3339Nano) },
	},
	{head: "kind", text: func(e history.Entry) string { return e.Kind.String() }},
	{head: "service", text: func(e history.Entry) string { return e.Service }},
	{head: "run", right: true, wide: true, text: func(e history.Entry) string { return fmt.Sprint(e.Run) }},
	{head: "conn", right: true, wide: true, text: func(e history.Entry) string { return countText(e.Conn) }},
	{head: "protocol", wide: true, text: func(e history.Entry) string { return protocolText(e.Tuple.Protocol) }},
	{head: "address", slim: true, text: func(e history.Entry) string { return cmp.Or(e.Tuple.Remote, e.Tuple.Local).String() }},
	{head: "local", wide: true, text: func(e history.Entry) string { return e.Tuple.Local.String() }},
	{head: "remote", wide: true, text: func(e history.Entry) string { return e.Tuple.Remote.String() }},
	{
		head: "in", right: true, text: func(e history.Entry) string { return bytesText(e, e.BytesIn) },
		key: "bytes_in", value: func(e history.Entry) string { return fmt.Sprint(e.BytesIn) },
	},
	{
		head: "out", right: true, text: func(e history.Entry) string { return bytesText(e, e.BytesOut) },
		key: "bytes_out", value: func(e history.Entry) string { return fmt.Sprint(e.BytesOut) },
	},
	{head: "packets in", right: true, wide: true, text: func(e history.Entry) string { return countText(e.PacketsIn) }},
	{head: "packets out", right: true, wide: true, text: func(e history.Entry) string { return countText(e.PacketsOut) }},
	{
		head: "duration", right: true, text: func(e history.Entry) string { return durationText(e.Duration) },
		key: "duration_s", value: func(e history.Entry) string { return secondsText(e.Duration) },
	},
	{
		head: "cause", text: causeText,
		value: func(e history.Entry) string { return e.Cause },
	},
	{head: "error", wide: true, text: func(e history.Entry) string { return e.Err }},
}

// shortTime leaves out the date of today.
func shortTime(t, now time.Time) string {
	t, now = t.Local(), now.Local()
	if t.YearDay() == now.YearDay() && t.Year() == now.Year() {
		return t.Format(time.TimeOnly)
	}
	return t.Format(time.DateTime)
}

// causeText is why a connection ended, with what failed.
func causeText(e history.Entry) string {
	if e.Cause != "" && e.Err != "" {
		return e.Cause + ": " + e.Err
	}
	return e.Cause + e.Err
}

// bytesText writes the bytes of the kinds of event that carry them.
func bytesText(e history.Entry, n uint64) string {
	if e.Kind != stats.Data && e.Kind != stats.Disconnect {
		return ""
	}
	return stats.FormatBytes(n)
}

// countText writes a count, "" for 0.
func countText(n uint64) string {
	if n == 0 {
		return ""
	}
	return fmt.Sprint(n)
}

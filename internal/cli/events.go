package cli

import (
	"context"
	"encoding/csv"
	"fmt"
	"iter"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/spf13/cobra"

	"github.com/fivetuple/fivetuple/filter"
	"github.com/fivetuple/fivetuple/internal/printable"
	"github.com/fivetuple/fivetuple/stats"
	"github.com/fivetuple/fivetuple/table"
	"github.com/fivetuple/fivetuple/table/changes"
)

type eventsFlags struct {
	kindFlags
	interval, until time.Duration
	count           int
}

func (a *app) events() *cobra.Command {
	var f eventsFlags
	c := &cobra.Command{
		Use:   "events [FILTER]",
		Short: "Tell what opens and closes, as it happens",
		Long: `Tells which connections open and close, and what begins and ends to listen, as it
happens, until it is interrupted. A close comes with how long the connection was
open, what it received and sent, its round-trip time and how many segments were
sent again.

The end of a TCP or UDP socket is told by the kernel, at once and whole: nobody
closes unseen. All else is noticed by looking at the table, every --interval and
less often where a look is dear, so that the looks take no more than a fifth of a
processor. What opens and closes between two looks has no open and no process, only
a close, and its duration is known as "less than". Of Unix and other sockets it is
missed. Without the kernel's events so it is of all, and bytes are those of the
last look. "> 5 s" is how long a socket was open that may have been so for much
longer. A TIME_WAIT is closed. When the kernel drops events, a line says so.

The filter is asked about the socket as the event has it: a closed one in the
state it was last seen in, with the processes that held it. One that was never
seen has no process: a filter for one passes it over.

The exit code is 1 if --for is over and nothing happened.

` + filterHelp,
		Example: `  ft events -t dst port 443          TCP to port 443
  ft events proc:nginx --for 1m      what one program does
  ft events 'retrans > 0' -o ndjson  only ends of connections that lost segments`,
		RunE: func(c *cobra.Command, args []string) error { return a.runEvents(c.Context(), args, f) },
	}
	f.add(c)
	c.Flags().DurationVar(&f.interval, "interval", time.Second, "look at the table so often at most")
	c.Flags().DurationVar(&f.until, "for", 0, "stop after this `time` (default: when interrupted)")
	c.Flags().IntVar(&f.count, "count", 0, "stop after `n` events")
	return c
}

// minInterval keeps a watch from doing nothing but looking.
const minInterval = 10 * time.Millisecond

func (a *app) runEvents(ctx context.Context, args []string, f eventsFlags) error {
	switch {
	case f.interval < minInterval:
		return usage("--interval %s: want %s or more", f.interval, minInterval)
	case f.until < 0:
		return usage("--for %s: want a duration above 0", f.until)
	case f.count < 0:
		return usage("--count %d: want how many events, or 0 for no end", f.count)
	}
	expr, err := parseFilter(ctx, args)
	if err != nil {
		return err
	}
	ctx, stop := context.WithCancel(ctx)
	defer stop()
	w := eventWatch{app: a, flags: f, filter: expr, counts: map[changes.EventKind]int{}, stop: stop}
	err = w.print(w.events(ctx))
	if w.start.IsZero() {
		return err
	}
	fmt.Fprintln(a.err, w.summary())
	if over := f.until > 0 && time.Since(w.start) >= f.until; err == nil && w.total == 0 && over {
		return answerIsNo
	}
	return err
}

// eventWatch is a watch, and what it has told so far.
type eventWatch struct {
	app    *app
	flags  eventsFlags
	filter *filter.Filter
	stop   func()
	start  time.Time // when the first look at the table was over; zero before
	counts map[changes.EventKind]int
	total  int
}

func (w *eventWatch) events(ctx context.Context) iter.Seq2[changes.Event, error] {
	return func(yield func(changes.Event, error) bool) {
		o := changes.Options{Filter: w.filter, Protocols: w.flags.protocols(), Interval: w.flags.interval, Started: w.begun}
		for e, err := range changes.Watch(ctx, o) {
			if err == nil {
				w.counts[e.Kind]++
				w.total++
			}
			if !yield(e, err) || w.total == w.flags.count {
				return
			}
		}
	}
}

// begun says what can be missed. The time of --for begins.
func (w *eventWatch) begun(s changes.Start) {
	w.start = time.Now()
	if w.flags.until > 0 {
		time.AfterFunc(w.flags.until, w.stop)
	}
	a, every := w.app, stats.FormatDuration(w.flags.interval)
	if s.NoEvents != nil {
		a.warn("%v", s.NoEvents)
		a.warn("watching %s by looking every %s: what opens and closes between two looks is missed", plural(s.Sockets, "socket"), every)
	} else {
		a.warn("watching %s; what opens and closes within %s is told at its end only, of Unix sockets not at all", plural(s.Sockets, "socket"), every)
	}
	a.warnUnseen(s.Unreadable, s.Partial)
}

// summary returns "3 opened, 2 closed, 1 listening, 0 lost in 12.3 s".
func (w *eventWatch) summary() string {
	n := w.counts
	text := fmt.Sprintf("%d opened, %d closed", n[changes.Open], n[changes.Close])
	if n[changes.Listen]+n[changes.Unlisten] > 0 {
		text += fmt.Sprintf(", %d began to listen, %d ended it", n[changes.Listen], n[changes.Unlisten])
	}
	if n[changes.Lost] > 0 {
		text += ", events lost " + plural(n[changes.Lost], "time")
	}
	return text + " in " + stats.FormatDuration(time.Since(w.start))
}

func (w *eventWatch) print(events iter.Seq2[changes.Event, error]) error {
	a := w.app
	switch a.format {
	case formatTable, formatWide:
		return a.printEventLines(events)
	case formatCSV:
		return a.printEventCSV(events)
	}
	_, err := printRows(a, "events", events, eventColumns)
	return err
}

// printEventLines prints each event when it comes, so columns are as wide as
// most need, and wider for what does not fit.
func (a *app) printEventLines(events iter.Seq2[changes.Event, error]) error {
	columns := visible(eventColumns, a.format == formatWide)
	widths := make([]int, len(columns))
	line := make([]string, len(columns))
	for i, c := range columns {
		line[i] = strings.ToUpper(c.head)
		widths[i] = max(eventWidths[c.head], len(c.head))
	}
	head := line
	for e, err := range events {
		if err != nil {
			return err
		}
		if head != nil {
			if err := a.printEventLine(head, widths, columns); err != nil {
				return err
			}
			head, line = nil, make([]string, len(columns))
		}
		for i, c := range columns {
			line[i] = printable.Escape(c.text(e))
		}
		if err := a.printEventLine(line, widths, columns); err != nil {
			return err
		}
	}
	return nil
}

var eventWidths = map[string]int{"time": 12, "kind": 8, "proto": 5, "local": 21, "remote": 21, "duration": 8, "in": 9, "out": 9, "rtt": 8, "process": 14}

func (a *app) printEventLine(line []string, widths []int, columns []column[changes.Event]) error {
	fitted := make([]int, len(widths))
	for i := range widths {
		fitted[i] = max(widths[i], utf8.RuneCountInString(line[i]))
	}
	var b strings.Builder
	writeLine(&b, line, fitted, columns)
	_, err := a.out.Write([]byte(b.String()))
	return err
}

func (a *app) printEventCSV(events iter.Seq2[changes.Event, error]) error {
	columns, terminal := visible(eventColumns, true), isTerminal(a.out)
	w := csv.NewWriter(a.out)
	record := make([]string, len(columns))
	for i, c := range columns {
		record[i] = c.csvKey()
	}
	w.Write(record)
	w.Flush()
	for e, err := range events {
		if err != nil {
			return err
		}
		for i, c := range columns {
			if record[i] = c.csvValue(e); terminal {
				record[i] = printable.Escape(record[i])
			}
		}
		w.Write(record)
		if w.Flush(); w.Error() != nil {
			return w.Error()
		}
	}
	return w.Error()
}

var eventColumns = []column[changes.Event]{
	{
		head: "time", text: func(e changes.Event) string { return e.Time.Local().Format("15:04:05.000") },
		value: func(e changes.Event) string { return e.Time.Format(time.RFC3339Nano) },
	},
	{head: "kind", text: func(e changes.Event) string { return string(e.Kind) }},
	{
		head: "proto", key: "protocol", text: ofRow(func(r *table.Row) string { return r.Protocol.String() }),
	},
	{head: "local", text: ofColumn("local"), value: ofRow(func(r *table.Row) string { return r.LocalEnd().String() })},
	{head: "remote", text: ofColumn("remote"), value: ofRow(func(r *table.Row) string { return r.RemoteEnd().String() })},
	{head: "process", text: ofColumn("process"), key: "owners"},
	{
		head: "duration", right: true, text: eventDuration,
		key: "duration_s", value: func(e changes.Event) string { return knownSeconds(e.Duration, e.Seen && ends(e)) },
	},
	{
		head: "max duration", wide: true, right: true, text: func(e changes.Event) string { return durationText(e.MaxDuration) },
		key: "duration_max_s", value: func(e changes.Event) string { return knownSeconds(e.MaxDuration, e.MaxDuration > 0) },
	},
	{head: "in", right: true, text: eventBytes(false, stats.FormatBytes), key: "bytes_in", value: eventBytes(false, formatCount)},
	{head: "out", right: true, text: eventBytes(true, stats.FormatBytes), key: "bytes_out", value: eventBytes(true, formatCount)},
	{head: "rtt", right: true, text: eventRTT(durationText), key: "rtt_s", value: eventRTT(secondsText)},
	{head: "retrans", right: true, text: func(e changes.Event) string {
		if _, _, known := e.Bytes(); !known || !ends(e) {
			return ""
		}
		return fmt.Sprint(e.Row.Info.TotalRetrans)
	}},
	{head: "unit", wide: true, text: ofRow(func(r *table.Row) string { return r.Unit })},
	{head: "container", wide: true, text: ofRow(func(r *table.Row) string { return r.Container })},
	{head: "cookie", wide: true, text: ofColumn("cookie")},
	{head: "error", text: func(e changes.Event) string { return e.Err }},
}

func ends(e changes.Event) bool { return e.Kind == changes.Close || e.Kind == changes.Unlisten }

func ofRow(text func(*table.Row) string) func(changes.Event) string {
	return func(e changes.Event) string {
		if e.Row == nil {
			return ""
		}
		return text(e.Row)
	}
}

// ofColumn is what `ft ls` shows of a row.
func ofColumn(name string) func(changes.Event) string {
	return ofRow(func(r *table.Row) string { return rowText(name, r) })
}

func rowText(name string, r *table.Row) string {
	c, _ := table.ColumnNamed(name)
	return string(c.Text(nil, r))
}

// eventDuration says also what is known only within bounds.
func eventDuration(e changes.Event) string {
	switch {
	case !ends(e):
		return ""
	case (!e.Seen || e.Duration == 0) && e.MaxDuration > 0:
		return "< " + stats.FormatDuration(e.MaxDuration)
	case !e.Seen:
		return ""
	case e.MaxDuration == 0 || e.MaxDuration > 2*e.Duration:
		return "> " + stats.FormatDuration(e.Duration)
	}
	return stats.FormatDuration(e.Duration)
}

func knownSeconds(d time.Duration, known bool) string {
	if !known {
		return ""
	}
	return strconv.FormatFloat(d.Seconds(), 'f', -1, 64)
}

func eventBytes(out bool, text func(uint64) string) func(changes.Event) string {
	return func(e changes.Event) string {
		received, sent, known := e.Bytes()
		switch {
		case !known || !ends(e):
			return ""
		case out:
			return text(sent)
		}
		return text(received)
	}
}

func formatCount(n uint64) string { return strconv.FormatUint(n, 10) }

func eventRTT(text func(time.Duration) string) func(changes.Event) string {
	return func(e changes.Event) string {
		if _, _, known := e.Bytes(); !known || !ends(e) {
			return ""
		}
		return text(e.Row.Info.RTT)
	}
}

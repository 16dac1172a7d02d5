package cli

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/fivetuple/fivetuple/history"
	"github.com/fivetuple/fivetuple/stats"
)

func (a *app) stats() *cobra.Command {
	var f historyFlags
	c := &cobra.Command{
		Use:   "stats",
		Short: "Connections, bytes and errors of each service",
		Long: `Adds up what ft serve recorded, by service: connections, bytes received and sent,
errors, and what is open now. Bytes of open connections are up to ten seconds
behind; a UDP client is open until a minute after its last datagram. The table
ends with the total of all services. The exit code is 1 if nothing was recorded.`,
		Example: `  ft stats                 since the history began
  ft stats --since 1d      of the last day
  ft stats -o wide         with packets, causes, first and last event`,
		Args: noArgs,
		RunE: func(c *cobra.Command, _ []string) error { return a.showStats(c.Context(), f) },
	}
	f.register(c)
	return c
}

func (a *app) showStats(ctx context.Context, f historyFlags) error {
	q, err := f.query(time.Now())
	if err != nil {
		return &codeError{exitUsage, err}
	}
	return f.read(ctx, func(db *history.DB) (int, error) {
		stop := a.progress(func(took time.Duration) string {
			return "adding up events for " + stats.FormatDuration(took.Round(time.Second))
		})
		services, err := db.Totals(ctx, q)
		stop()
		if err != nil {
			return 0, err
		}
		return a.printStats(services)
	})
}

// printStats prints the sums of services, in tables with their total, and
// returns how many services there are.
func (a *app) printStats(services []stats.ServiceCounters) (int, error) {
	rows := services
	if len(rows) > 0 && (a.format == formatTable || a.format == formatWide) {
		total := stats.Total(services)
		total.Service = "total"
		rows = append(slices.Clone(services), total)
	}
	_, err := printRows(a, "services", each(rows), statsColumns)
	return len(services), err
}

var statsColumns = []column[stats.ServiceCounters]{
	{head: "service", text: func(s stats.ServiceCounters) string { return s.Service }},
	{head: "listeners", right: true, wide: true, text: func(s stats.ServiceCounters) string { return fmt.Sprint(s.Listeners) }},
	{head: "live", right: true, text: func(s stats.ServiceCounters) string { return fmt.Sprint(s.Live) }},
	{head: "connections", right: true, text: func(s stats.ServiceCounters) string { return fmt.Sprint(s.Connections) }},
	{head: "accepted", right: true, wide: true, text: func(s stats.ServiceCounters) string { return fmt.Sprint(s.Accepted) }},
	{head: "connected", right: true, wide: true, text: func(s stats.ServiceCounters) string { return fmt.Sprint(s.Connected) }},
	{head: "disconnected", right: true, wide: true, text: func(s stats.ServiceCounters) string { return fmt.Sprint(s.Disconnected) }},
	{head: "unfinished", right: true, wide: true, text: func(s stats.ServiceCounters) string { return fmt.Sprint(s.Unfinished) }},
	{head: "errors", right: true, text: func(s stats.ServiceCounters) string { return fmt.Sprint(s.Errors) }},
	{
		head: "in", right: true, text: func(s stats.ServiceCounters) string { return stats.FormatBytes(s.BytesIn) },
		key: "bytes_in", value: func(s stats.ServiceCounters) string { return fmt.Sprint(s.BytesIn) },
	},
	{
		head: "out", right: true, text: func(s stats.ServiceCounters) string { return stats.FormatBytes(s.BytesOut) },
		key: "bytes_out", value: func(s stats.ServiceCounters) string { return fmt.Sprint(s.BytesOut) },
	},
	{head: "packets in", right: true, wide: true, text: func(s stats.ServiceCounters) string { return fmt.Sprint(s.PacketsIn) }},
	{head: "packets out", right: true, wide: true, text: func(s stats.ServiceCounters) string { return fmt.Sprint(s.PacketsOut) }},
	{head: "causes", wide: true, text: causesText},
	{head: "first", wide: true, text: func(s stats.ServiceCounters) string { return secondText(s.First) }, value: func(s stats.ServiceCounters) string { return rfc3339(s.First) }},
	{head: "last", text: func(s stats.ServiceCounters) string { return secondText(s.Last) }, value: func(s stats.ServiceCounters) string { return rfc3339(s.Last) }},
}

// causesText is why connections ended: "peer closed: 12, idle timeout: 1".
func causesText(s stats.ServiceCounters) string {
	var parts []string
	for _, cause := range slices.Sorted(maps.Keys(s.Causes)) {
		parts = append(parts, fmt.Sprintf("%s: %d", cause, s.Causes[cause]))
	}
	return strings.Join(parts, ", ")
}

// secondText writes a time for people, to the second, "" for none.
func secondText(t time.Time) string {
	if t.IsZero() {
		return ""
	}
	return t.Local().Format(time.DateTime)
}

// rfc3339 writes a time for programs, "" for none.
func rfc3339(t time.Time) string {
	if t.IsZero() {
		return ""
	}
	return t.Format(time.RFC3339Nano)
}

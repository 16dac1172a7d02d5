package cli

import (
	"context"
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	"github.com/fivetuple/fivetuple/stats"
	"github.com/fivetuple/fivetuple/table"
	"github.com/fivetuple/fivetuple/table/changes"
)

func (a *app) diff() *cobra.Command {
	var exitCode bool
	c := &cobra.Command{
		Use:   "diff A [B]",
		Short: "What opened, closed and changed since a snapshot",
		Long: `Compares two files of ft snapshot save, or one with the sockets that there are now:
what opened, what closed, and what changed its state, its ends or the processes
that hold it. Queues and counters always move and are no change; a TIME_WAIT is no
socket any more. B is "now" if it is not given; one of the two may be -, standard
input. A filter that A was made with chooses of now's sockets, too.

After a restart of the machine, and between machines or network namespaces, no
socket is the same any more: sockets are then compared by protocol and addresses.

The exit code is 0 whether or not there are differences, unless --exit-code is
given: then it is 1 if there are.`,
		Example: `  ft snapshot save before.ndjson; systemctl restart nginx; ft diff before.ndjson
  ft diff monday.ndjson tuesday.ndjson -o csv`,
		Args: func(c *cobra.Command, args []string) error {
			if len(args) > 2 {
				return usage("ft diff takes two files at most, not %d: see `ft diff --help`", len(args))
			}
			return minArgs(1)(c, args)
		},
		RunE: func(c *cobra.Command, args []string) error { return a.runDiff(c.Context(), args, exitCode) },
	}
	c.Flags().BoolVar(&exitCode, "exit-code", false, "exit with 1 if there are differences")
	return c
}

func (a *app) runDiff(ctx context.Context, args []string, exitCode bool) error {
	before, err := a.loadSnapshot(args[0])
	if err != nil {
		return err
	}
	var after *changes.Snapshot
	if len(args) < 2 || args[1] == "now" {
		after, err = takeSnapshot(ctx, []string{before.Filter})
	} else {
		after, err = a.loadSnapshot(args[1])
	}
	if err != nil {
		return err
	}
	if why, ok := before.Comparable(after); !ok {
		a.warn("%s: sockets are compared by protocol and addresses, processes by name", why)
	}
	if before.Filter != after.Filter {
		a.warn("they were made with different filters, %q and %q: what only one of them chose looks opened or closed", before.Filter, after.Filter)
	}
	if before.Time.After(after.Time) {
		a.warn("the first is of %s, later than the second, of %s", snapshotTitle(before), snapshotTitle(after))
	}
	differences := before.Diff(after)
	n, err := printRows(a, "changes", each(differences), changeColumns)
	if err != nil {
		return err
	}
	if a.format == formatTable || a.format == formatWide {
		fmt.Fprintln(a.err, changesSummary(differences, before, after))
	}
	if exitCode && n > 0 {
		return answerIsNo
	}
	return nil
}

// changesSummary returns "2 opened, 1 closed, 0 changed of 10 sockets in 3.0 s".
func changesSummary(all []changes.Change, before, after *changes.Snapshot) string {
	counts := map[changes.Kind]int{}
	for _, c := range all {
		counts[c.Kind]++
	}
	return fmt.Sprintf("%d opened, %d closed, %d changed of %s in %s", counts[changes.Opened], counts[changes.Closed], counts[changes.Changed],
		plural(len(before.Rows), "socket"), stats.FormatDuration(after.Time.Sub(before.Time)))
}

var changeColumns = []column[changes.Change]{
	{head: "kind", text: func(c changes.Change) string { return string(c.Kind) }},
	{head: "proto", key: "protocol", text: func(c changes.Change) string { return c.Row().Protocol.String() }},
	{head: "state", text: fromTo("state"), value: func(c changes.Change) string { return c.Row().State.String() }},
	{head: "local", text: fromTo("local"), value: func(c changes.Change) string { return c.Row().LocalEnd().String() }},
	{head: "remote", text: fromTo("remote"), value: func(c changes.Change) string { return c.Row().RemoteEnd().String() }},
	{head: "process", text: fromTo("process"), key: "owners", value: func(c changes.Change) string { return rowText("process", c.Row()) }},
	{head: "in", right: true, wide: true, text: movedText(func(c changes.Change) uint64 { return c.BytesIn }), key: "bytes_in"},
	{head: "out", right: true, wide: true, text: movedText(func(c changes.Change) uint64 { return c.BytesOut }), key: "bytes_out"},
	{head: "cookie", wide: true, text: func(c changes.Change) string { return rowText("cookie", c.Row()) }},
	{head: "what", wide: true, text: func(c changes.Change) string { return strings.Join(c.What, ",") }},
}

// fromTo shows a column before and after, if that differs.
func fromTo(name string) func(changes.Change) string {
	column, _ := table.ColumnNamed(name)
	return func(c changes.Change) string {
		now := string(column.Text(nil, c.Row()))
		if c.Before == nil || c.After == nil {
			return now
		}
		if was := string(column.Text(nil, c.Before)); was != now {
			return was + " -> " + now
		}
		return now
	}
}

func movedText(of func(changes.Change) uint64) func(changes.Change) string {
	return func(c changes.Change) string {
		if c.Before == nil || c.After == nil || c.Before.Info == nil || c.After.Info == nil {
			return ""
		}
		return fmt.Sprint(of(c))
	}
}

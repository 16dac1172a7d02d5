package cli

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/spf13/cobra"

	"github.com/fivetuple/fivetuple/sockdiag"
	"github.com/fivetuple/fivetuple/stats"
	"github.com/fivetuple/fivetuple/table"
	"github.com/fivetuple/fivetuple/table/changes"
)

func (a *app) snapshot() *cobra.Command {
	c := &cobra.Command{
		Use:   "snapshot",
		Short: "Keep the socket table in a file, for ft diff",
		Example: `  ft snapshot save before.ndjson
  ft snapshot show before.ndjson state listen
  ft diff before.ndjson              what changed since`,
		Args: noArgs,
		RunE: showHelp,
	}
	c.AddCommand(a.snapshotSave(), a.snapshotShow())
	return c
}

func (a *app) snapshotSave() *cobra.Command {
	return &cobra.Command{
		Use:   "save FILE [FILTER]",
		Short: "Write every socket to a file",
		Long: `Writes every socket, or those that a filter matches, to a file, with the processes
that hold them and TCP_INFO. FILE is written whole or not at all, and replaced if it
is there; - is standard output. Only its owner may read it (mode 0600), since it
tells what the processes of all users talk to.

The file is one JSON object a line: when and where it was made, the sockets as
ft ls -o ndjson prints them, and how many they are.

` + filterHelp,
		Example: `  ft snapshot save before.ndjson
  ft snapshot save web.ndjson port 443`,
		Args: minArgs(1),
		RunE: func(c *cobra.Command, args []string) error { return a.saveSnapshot(c.Context(), args[0], args[1:]) },
	}
}

func (a *app) saveSnapshot(ctx context.Context, path string, filter []string) error {
	s, err := takeSnapshot(ctx, filter)
	if err != nil {
		return err
	}
	if path == "-" {
		return s.Write(a.out)
	}
	if err := s.Save(path); err != nil {
		return err
	}
	fmt.Fprintf(a.err, "%s saved to %s\n", plural(len(s.Rows), "socket"), path)
	a.warnUnseen(s.Unreadable, s.Partial)
	return nil
}

// warnUnseen says why sockets have no process that should have one.
func (a *app) warnUnseen(unreadable int, partial string) {
	switch {
	case unreadable == 1:
		a.warn("1 process may not be looked into: its sockets are shown without it; root sees all")
	case unreadable > 1:
		a.warn("%d processes may not be looked into: their sockets are shown without them; root sees all", unreadable)
	}
	if partial != "" {
		a.warn("%s: their sockets are shown without them", partial)
	}
}

// takeSnapshot reads the table now.
func takeSnapshot(ctx context.Context, filter []string) (*changes.Snapshot, error) {
	expr, err := parseFilter(ctx, filter)
	if err != nil {
		return nil, err
	}
	t, err := table.Read(ctx, table.Query{Filter: expr, Owners: true, Details: sockdiag.WithInfo})
	if err != nil {
		return nil, err
	}
	return changes.New(t, expr.String()), nil
}

func (a *app) snapshotShow() *cobra.Command {
	var f kindFlags
	c := &cobra.Command{
		Use:   "show FILE [FILTER]",
		Short: "List the sockets of a file",
		Long: `Lists the sockets of a snapshot, or those of them that a filter matches, as
ft ls -a does. - is standard input. The exit code is 1 if a filter matches nothing.

` + filterHelp,
		Example: `  ft snapshot show before.ndjson
  ft snapshot show before.ndjson proc:nginx -o csv`,
		Args: minArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			return a.showSnapshot(c.Context(), args[0], args[1:], f)
		},
	}
	f.add(c)
	return c
}

func (a *app) showSnapshot(ctx context.Context, path string, filter []string, f kindFlags) error {
	expr, err := parseFilter(ctx, filter)
	if err != nil {
		return err
	}
	s, err := a.loadSnapshot(path)
	if err != nil {
		return err
	}
	l, err := lsFlags{all: true, kindFlags: f}.listing(expr, a.format == formatWide)
	if err != nil {
		return err
	}
	l.order(s.Rows)
	p := a.socketPrinter(l)
	shown := 0
	for i := range s.Rows {
		row := &s.Rows[i]
		if !expr.Match(row) || !f.has(row) {
			continue
		}
		shown++
		if err := p.row(row); err != nil {
			return err
		}
	}
	if err := p.end(); err != nil {
		return err
	}
	if a.format == formatTable || a.format == formatWide {
		fmt.Fprintf(a.err, "%s of %s\n", plural(shown, "socket"), snapshotTitle(s))
	}
	if expr != nil && shown == 0 {
		return answerIsNo
	}
	return nil
}

func (k kindFlags) has(r *table.Row) bool {
	all := k.protocols()
	for _, p := range all {
		if p == r.Protocol {
			return true
		}
	}
	return len(all) == 0
}

// snapshotTitle returns "web1 on 2026-01-02 15:04:05, filter tcp".
func snapshotTitle(s *changes.Snapshot) string {
	title := fmt.Sprintf("%s on %s", s.Host, s.Time.Local().Format(time.DateTime))
	if s.Filter != "" {
		title += ", filter " + s.Filter
	}
	return title
}

func (a *app) loadSnapshot(path string) (s *changes.Snapshot, err error) {
	stop := a.progress(func(took time.Duration) string {
		return "reading " + path + " for " + stats.FormatDuration(took.Round(time.Second))
	})
	defer stop()
	if path == "-" {
		if s, err = changes.Read(a.in); err != nil {
			err = fmt.Errorf("read snapshot from standard input: %w", err)
		}
	} else {
		s, err = changes.Load(path)
	}
	if errors.Is(err, changes.ErrForeign) {
		return nil, usage("%w: `ft snapshot save FILE` makes one", err)
	}
	return s, err
}

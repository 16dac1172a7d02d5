package cli

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/fivetuple/fivetuple"
	"github.com/fivetuple/fivetuple/inspect"
	"github.com/fivetuple/fivetuple/internal/printable"
	"github.com/fivetuple/fivetuple/sockopt"
	"github.com/fivetuple/fivetuple/stats"
	"github.com/fivetuple/fivetuple/table"
)

type inspectFlags struct {
	settings              sockopt.Settings
	over, interval, again time.Duration
	netns                 string
}

func (a *app) inspect() *cobra.Command {
	var f inspectFlags
	c := &cobra.Command{
		Use:   "inspect TARGET",
		Short: "Show one socket whole, what limits it, and set its options",
		Long: `Shows one socket of any process: its options, queues, and TCP_INFO in words; of
a connection also what it waited for while it was watched, and so what limits
it: the application, the peer's window, the send buffer, loss, or congestion.

TARGET is a filter that one socket matches. Of several the commands are printed
that choose one.

Options are read through the owner's descriptor: those of other users' sockets
take root, or CAP_SYS_PTRACE. --set changes an option of the live socket and
prints what the kernel made of it; the owner is not told.`,
		Example: `  ft inspect 8080                             the socket on port 8080
  ft inspect 'dport = 443 and proc:curl' -w   what limits this transfer, live
  ft inspect cookie:3f2a --set keepalive=30s  change an option of it`,
		Args: minArgs(1),
		RunE: func(c *cobra.Command, args []string) error { return a.runInspect(c.Context(), args, f) },
	}
	c.Flags().Var(&f.settings, "set", "socket option to change, such as keepalive=30s/10s/3; ft opts lists them all")
	c.Flags().DurationVar(&f.over, "for", 2*time.Second, "how long to watch a connection for the verdict")
	c.Flags().DurationVar(&f.interval, "interval", 100*time.Millisecond, "`time` between samples")
	c.Flags().DurationVarP(&f.again, "watch", "w", 0, "show again and again, each `time` with a verdict over it: --watch=5s")
	c.Flags().Lookup("watch").NoOptDefVal = "1s"
	c.Flags().StringVar(&f.netns, "netns", "", "network `namespace`: a name of ip-netns, a number, or all")
	return c
}

const leastInterval = time.Millisecond

func (f inspectFlags) check(format string) error {
	switch {
	case f.over < 0 || f.again < 0:
		return usage("a time cannot be below zero")
	case f.interval < leastInterval:
		return usage("--interval %s: want %s at least", f.interval, leastInterval)
	case format == formatCSV:
		return usage("-o csv has rows of one kind, a socket is not: use -o json")
	case f.again > 0 && format == formatJSON:
		return usage("--watch -o json would be no single document: use -o ndjson")
	case f.again > 0 && len(f.settings) > 0:
		return usage("--set and --watch are two commands: set first, then watch")
	}
	return nil
}

func (a *app) runInspect(ctx context.Context, args []string, f inspectFlags) error {
	if err := f.check(a.format); err != nil {
		return err
	}
	row, err := a.oneSocket(ctx, args, f.netns)
	if err != nil {
		return err
	}
	if len(f.settings) > 0 {
		return a.setOptions(row, f.settings)
	}
	if f.again == 0 {
		return a.inspectOnce(ctx, row, f.over, f.interval, "")
	}
	between := ""
	for ctx.Err() == nil {
		if err := a.inspectOnce(ctx, row, f.again, f.interval, between); err != nil {
			if ctx.Err() != nil {
				return nil
			}
			return err
		}
		switch {
		case a.format == formatNDJSON:
		case isTerminal(a.out):
			between = "\x1b[H\x1b[2J" // the next screen takes the place of this one
		default:
			between = "\n"
		}
	}
	return nil
}

// oneSocket finds the one that the target names, with its owners and peers.
func (a *app) oneSocket(ctx context.Context, args []string, netns string) (*table.Row, error) {
	expr, err := parseFilter(ctx, args)
	if err != nil {
		return nil, err
	}
	q := table.Query{Filter: expr, Owners: true, Peers: true}
	if q.Namespaces, err = namespaces(netns); err != nil {
		return nil, err
	}
	t, err := table.Read(ctx, q)
	if err != nil {
		return nil, err
	}
	switch target := strings.Join(args, " "); len(t.Rows) {
	case 0:
		return nil, no("no socket matches %q: `ft ls -a` lists those there are", target)
	case 1:
		return &t.Rows[0], nil
	default:
		return nil, &codeError{exitUsage, errors.New(choices(target, t.Rows))}
	}
}

// choices tells how to name one of several sockets.
func choices(target string, rows []table.Row) string {
	const most = 20
	var b strings.Builder
	fmt.Fprintf(&b, "%d sockets match %q: choose one", len(rows), target)
	for i := range rows {
		if i == most {
			fmt.Fprintf(&b, "\n  and %d more: add to the filter, as in \"... and state established\"", len(rows)-most)
			break
		}
		r := &rows[i]
		name := fmt.Sprintf("cookie:%x", r.Cookie)
		if r.Cookie == 0 { // the kernel gives raw sockets none
			name = fmt.Sprintf("'inode = %d'", r.Inode)
		}
		fmt.Fprintf(&b, "\n  ft inspect %s   # %s", name, socketLine(r))
		for j, o := range r.Owners {
			if j == 0 {
				fmt.Fprintf(&b, " %s (pid %d)", o.Command, o.PID)
			}
		}
	}
	return b.String()
}

// socketLine is a socket in one line: "tcp ESTABLISHED 10.0.0.1:1 -> 10.0.0.2:2".
func socketLine(r *table.Row) string {
	ends := cmp.Or(r.Name, "(no name)")
	if r.Protocol.IsInet() {
		ends = r.Local.String()
		if r.Remote.IsValid() {
			ends += " -> " + r.Remote.String()
		}
	} else if r.PeerName != "" {
		ends += " -> " + r.PeerName
	}
	return fmt.Sprintf("%s %s %s", r.Protocol, r.State, ends)
}

// inspectOnce reads the socket, watches it, and prints it. What was seen until
// an interrupt, or until the socket was closed, is printed, behind before.
func (a *app) inspectOnce(ctx context.Context, row *table.Row, over, interval time.Duration, before string) error {
	s, err := inspect.Read(ctx, *row)
	if errors.Is(err, fs.ErrNotExist) {
		return no("%v: it was closed meanwhile", err)
	}
	if err != nil {
		return err
	}
	r := inspected{Socket: s}
	if s.State == fivetuple.StateListen {
		if c, err := inspect.ReadCounters(ctx, *row); err == nil {
			r.counters = &c
		}
	}
	if over > 0 && s.State != fivetuple.StateListen {
		r.verdict = a.judge(ctx, row, s, over, interval)
	}
	if a.format == formatJSON || a.format == formatNDJSON {
		return writeJSON(a.out, r, "\n")
	}
	_, err = io.WriteString(a.out, before+a.socketScreen(r))
	return err
}

// inspected is a socket with all that is said of it.
type inspected struct {
	*inspect.Socket
	counters *inspect.Counters // of a listener
	verdict  *inspect.Verdict  // of a connection
}

// judge watches a connection and moves s on to its last state. Sockets that have
// no notion of a connection get no verdict.
func (a *app) judge(ctx context.Context, row *table.Row, s *inspect.Socket, over, interval time.Duration) *inspect.Verdict {
	var samples []inspect.Sample
	switch {
	case s.Protocol == fivetuple.MPTCP || s.Protocol == fivetuple.SCTP: // why it cannot be told
		samples = []inspect.Sample{{Socket: s.Socket}, {Socket: s.Socket}}
	case s.Info == nil:
		return nil
	default:
		var err error
		if samples, err = a.watchSocket(ctx, row, over, interval); err != nil {
			a.warnOf(err) // it was closed: what was seen until then is shown
		}
		if len(samples) > 0 {
			last := samples[len(samples)-1]
			s.State, s.Timer, s.Info, s.Memory = last.State, last.Timer, last.Info, last.Memory
			s.RecvQueue, s.SendQueue = last.RecvQueue, last.SendQueue
		}
	}
	v := inspect.Judge(samples)
	return &v
}

// watchSocket takes samples for as long as over, with one at its end.
func (a *app) watchSocket(ctx context.Context, row *table.Row, over, interval time.Duration) (samples []inspect.Sample, err error) {
	interval = min(interval, over)
	total := uint64(over / interval)
	stop := a.progress(func(took time.Duration) string {
		return fmt.Sprintf("watched for %s of %s", stats.FormatDuration(took.Round(time.Second)), stats.FormatDuration(over))
	})
	defer stop()
	for s, err := range inspect.Samples(ctx, *row, interval) {
		if err != nil {
			return samples, err
		}
		samples = append(samples, s)
		if uint64(len(samples)) > total {
			break
		}
	}
	return samples, nil
}

// setOptions changes options and prints what came of each.
func (a *app) setOptions(row *table.Row, settings sockopt.Settings) error {
	changes, err := inspect.Set(*row, settings...)
	if len(changes) > 0 || a.format == formatJSON {
		perr := a.printChanges(changes)
		err = cmp.Or(err, perr)
	}
	for _, c := range changes {
		if c.Less {
			a.warn("%s: the kernel granted less than was asked: %s", c.Option.Name, c.Note)
		}
	}
	return err
}

func (a *app) printChanges(changes []inspect.Change) error {
	_, err := printRows(a, "changes", each(changeRows(changes)), []column[changeRow]{
		{head: "option", text: func(c changeRow) string { return c.Name }},
		{head: "before", text: func(c changeRow) string { return c.Before }},
		{head: "asked", text: func(c changeRow) string { return c.Asked }},
		{head: "after", text: func(c changeRow) string { return c.After }},
		{head: "note", text: func(c changeRow) string { return printable.Escape(c.Note) }},
	})
	return err
}

// changeRow is [inspect.Change] as it is printed.
type changeRow struct {
	Name   string `json:"name"`
	Before string `json:"before"`
	Asked  string `json:"asked"`
	After  string `json:"after"`
	Note   string `json:"note"`
	Less   bool   `json:"less"` // granted less than asked
}

func changeRows(changes []inspect.Change) []changeRow {
	rows := make([]changeRow, len(changes))
	for i, c := range changes {
		rows[i] = changeRow{c.Option.Name, c.Before, c.Asked, c.Got, c.Note, c.Less}
	}
	return rows
}

package cli

import (
	"context"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/fivetuple/fivetuple"
	"github.com/fivetuple/fivetuple/filter"
	"github.com/fivetuple/fivetuple/netns"
	"github.com/fivetuple/fivetuple/sockdiag"
	"github.com/fivetuple/fivetuple/table"
)

type lsFlags struct {
	kindFlags
	all, listening, info bool
	columns, sort        []string
	group                string
	netns                string
	watch                time.Duration
	explain              bool
}

func (a *app) ls() *cobra.Command {
	var f lsFlags
	c := &cobra.Command{
		Use:   "ls [FILTER]",
		Short: "List sockets, and the processes that hold them",
		Long: `Lists what listens, or what a filter matches, or with -a every socket of the
machine. Without a filter or a flag Unix sockets are left out.

` + filterHelp + `

Rows are sorted by protocol and port up to ` + fmt.Sprint(sortedRows) + ` of them; more come as the kernel
gives them, unless --sort is there. The exit code is 1 if a filter matches nothing.

` + columnHelp(),
		Example: `  ft ls                                    what listens, and who holds it
  ft ls -i 'dst port 443 and rtt > 50ms'   connections, with TCP_INFO
  ft ls -a --group port                    each port with its connections`,
		RunE: func(c *cobra.Command, args []string) error { return a.runLs(c.Context(), args, f) },
	}
	f.kindFlags.add(c)
	c.Flags().BoolVarP(&f.all, "all", "a", false, "every kind of socket in every state")
	c.Flags().BoolVarP(&f.listening, "listening", "l", false, "only what waits for peers, also with a filter")
	c.Flags().BoolVarP(&f.info, "info", "i", false, "TCP_INFO: round-trip time, congestion window, retransmissions, bytes")
	c.Flags().StringSliceVar(&f.columns, "columns", nil, "`names` of the columns to show, with commas; +NAME adds one")
	c.Flags().StringSliceVar(&f.sort, "sort", nil, "`names` of the columns to sort by; -NAME for the largest first")
	c.Flags().StringVar(&f.group, "group", "", "put together by `what`: port, process, peer or state")
	c.Flags().StringVar(&f.netns, "netns", "", "network `namespace`: a name of ip-netns, a number, or all")
	c.Flags().DurationVarP(&f.watch, "watch", "w", 0, "list again and again, every second or as said: --watch=5s")
	c.Flags().Lookup("watch").NoOptDefVal = "1s"
	c.Flags().BoolVar(&f.explain, "explain", false, "print which part of the filter runs in the kernel, and list nothing")
	for _, habit := range []string{"numeric", "processes"} { // of ss and netstat: ft ls -tlnp
		c.Flags().BoolP(habit, habit[:1], false, "")
		c.Flags().MarkHidden(habit)
	}
	return c
}

// listing is a list of sockets as the flags ask for it.
type listing struct {
	query   table.Query
	columns []table.Column
	chosen  bool // by --columns
	sort    []sortKey
	by      string // of --group
	matched bool   // a filter was there: none found is exit code 1
}

// sortKey is a column to sort by.
type sortKey struct {
	table.Column
	reverse bool
}

func (a *app) runLs(ctx context.Context, args []string, f lsFlags) error {
	expr, err := parseFilter(ctx, args)
	if err != nil {
		return err
	}
	if f.explain {
		_, err := fmt.Fprintln(a.out, strings.TrimRight(expr.Explain(), "\n"))
		return err
	}
	l, err := f.listing(expr, a.format == formatWide)
	if err != nil {
		return err
	}
	if l.query.Namespaces, err = namespaces(f.netns); err != nil {
		return err
	}
	if f.watch > 0 {
		return a.watchSockets(ctx, l, f.watch)
	}
	var r table.Reader
	defer r.Close()
	return a.listSockets(ctx, &r, l)
}

// listing makes out what to read and what to show of it.
func (f lsFlags) listing(expr *filter.Filter, wide bool) (listing, error) {
	l := listing{query: table.Query{Filter: expr, Protocols: f.protocols()}, by: f.group, matched: expr != nil}
	listeners := f.listening || expr == nil && !f.all
	if listeners {
		l.query.States = sockdiag.Listening
		if f.protocols() == nil && expr == nil {
			l.query.Protocols = []fivetuple.Network{fivetuple.TCP, fivetuple.MPTCP, fivetuple.UDP, fivetuple.UDPLite, fivetuple.SCTP}
		}
	}
	names := strings.Fields("proto state recvq sendq local remote process")
	if listeners {
		names = strings.Fields("proto local queue process")
	}
	switch {
	case listeners && wide:
		names = strings.Fields("proto state local queue drops process user unit container cookie")
	case wide:
		names = append(names, "timer", "unit", "container", "cookie")
	}
	if f.info {
		names = append(names, "rtt", "cwnd", "unacked", "retrans", "delivery", "sent", "received")
	}
	if f.netns != "" {
		names = append([]string{"netns"}, names...)
	}
	if len(f.columns) > 0 && !strings.HasPrefix(f.columns[0], "+") {
		names, l.chosen = nil, true
	}
	for _, n := range f.columns {
		names = append(names, strings.TrimPrefix(n, "+"))
	}
	for _, n := range names {
		c, err := columnNamed(n)
		if err != nil {
			return l, err
		}
		l.columns = append(l.columns, c)
	}
	for _, n := range f.sort {
		c, err := columnNamed(strings.TrimPrefix(n, "-"))
		if err != nil {
			return l, err
		}
		l.sort = append(l.sort, sortKey{c, strings.HasPrefix(n, "-")})
	}
	if l.by != "" && !slices.Contains(table.Groupings(), l.by) {
		return l, usage("unknown --group %q: want %s", l.by, strings.Join(table.Groupings(), ", "))
	}
	for _, c := range l.columns {
		l.needs(c)
	}
	for _, k := range l.sort {
		l.needs(k.Column)
	}
	l.query.Owners = l.query.Owners || l.by != ""
	return l, nil
}

func (l *listing) needs(c table.Column) {
	l.query.Details |= c.Needs
	l.query.Owners = l.query.Owners || c.Owners
	l.query.Peers = l.query.Peers || c.Peers
}

func columnNamed(name string) (table.Column, error) {
	c, ok := table.ColumnNamed(name)
	if !ok {
		return c, usage("unknown column %q: `ft ls --help` lists them", name)
	}
	return c, nil
}

// columnHelp lists the columns for the help.
func columnHelp() string {
	var b strings.Builder
	b.WriteString("Columns:")
	for _, c := range table.Columns() {
		fmt.Fprintf(&b, "\n\n  %-10s %s", c.Name, c.Doc)
	}
	return strings.ReplaceAll(b.String(), "\n\n ", "\n ")
}

// namespaces finds those that --netns names; none is this process's own.
func namespaces(name string) ([]netns.Namespace, error) {
	if name == "" {
		return nil, nil
	}
	all, err := netns.All()
	if err != nil || name == "all" {
		return all, err
	}
	for _, n := range all {
		if n.Name == name || fmt.Sprint(n.ID) == name {
			return []netns.Namespace{n}, nil
		}
	}
	return nil, usage("no network namespace %q: `ft ls --netns all --columns netns` shows those there are", name)
}

// sortedRows is up to how many rows are sorted without being asked to.
const sortedRows = 10_000

func (l *listing) order(rows []table.Row) {
	keys := l.sort
	if len(keys) == 0 {
		if len(rows) > sortedRows {
			return
		}
		for _, n := range []string{"proto", "local", "state", "remote"} {
			c, _ := table.ColumnNamed(n)
			keys = append(keys, sortKey{Column: c})
		}
	}
	slices.SortStableFunc(rows, func(a, b table.Row) int {
		for _, k := range keys {
			if x := k.Compare(&a, &b); x != 0 {
				if k.reverse {
					return -x
				}
				return x
			}
		}
		return 0
	})
}

// listSockets reads the table and prints it.
func (a *app) listSockets(ctx context.Context, r *table.Reader, l listing) error {
	if l.streams() {
		n, err := a.streamSockets(ctx, l)
		if err == nil && n == 0 && l.matched {
			err = answerIsNo
		}
		return err
	}
	t, err := r.Read(ctx, l.query)
	if err != nil {
		return err
	}
	if l.by != "" {
		err = a.printGroups(t, l)
	} else {
		l.order(t.Rows)
		err = a.printSockets(t, l)
	}
	if err == nil && len(t.Rows) == 0 && l.matched {
		err = answerIsNo
	}
	return err
}

// watchSockets lists again and again until the command is interrupted.
func (a *app) watchSockets(ctx context.Context, l listing, every time.Duration) error {
	var r table.Reader
	defer r.Close()
	l.matched = false // none now may be some later
	l.query.Rates = true
	tick := time.NewTicker(every)
	defer tick.Stop()
	for first := true; ; first = false {
		if isTerminal(a.out) {
			io.WriteString(a.out, "\x1b[H\x1b[2J")
		} else if !first && (a.format == formatTable || a.format == formatWide) {
			io.WriteString(a.out, "\n")
		}
		if err := a.listSockets(ctx, &r, l); err != nil {
			return err
		}
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
	}
}

package cli

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"runtime/debug"
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

A table is sorted by protocol and port if it has no more than ` + fmt.Sprint(sortedRows) + ` rows; longer
ones, and what is printed for programs, may come as the kernel gives them. --sort
sorts any. The exit code is 1 if a filter matches nothing.

` + columnHelp(),
		Example: `  ft ls                                    what listens, and who holds it
  ft ls -i 'dst port 443 and rtt > 50ms'   connections, with TCP_INFO
  ft ls -a --group port                    each port with its connections`,
		RunE: func(c *cobra.Command, args []string) error {
			if c.Flags().Changed("watch") && f.watch <= 0 {
				return usage("--watch=%v: want a time above zero between two lists, such as --watch=5s", f.watch)
			}
			return a.runLs(c.Context(), args, f)
		},
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
	lines   int    // of a table at most, 0 for no bound
}

// sortKey is a column to sort by.
type sortKey struct {
	table.Column
	reverse bool
}

func (a *app) runLs(ctx context.Context, args []string, f lsFlags) error {
	expr, err := parseFilter(ctx, args)
	if err != nil {
		if every, ok := strayDuration(args); ok && f.watch > 0 {
			return usage("write --watch=%s: what stands apart from the flag is read as a filter: %w", every, err)
		}
		return err
	}
	if f.explain {
		_, err := fmt.Fprintln(a.out, strings.TrimRight(expr.Explain(), "\n"))
		return err
	}
	if f.watch == 0 && (expr.Uses(filter.FieldRate) || expr.Uses(filter.FieldAge)) {
		return usage("rate and age are known only to what watches: use ft ls --watch or ft top")
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
	restore := collectLate()
	defer restore()
	var r table.Reader
	defer r.Close()
	return a.listSockets(ctx, &r, l)
}

// collectLate has garbage collected from 1 GiB of memory on, for what ends soon:
// to go through the rows while they are read costs more than it gives back.
func collectLate() (restore func()) {
	limit, percent := debug.SetMemoryLimit(1<<30), debug.SetGCPercent(-1)
	return func() {
		debug.SetMemoryLimit(limit)
		debug.SetGCPercent(percent)
	}
}

// strayDuration finds the 5s of "--watch 5s" among the arguments.
func strayDuration(args []string) (string, bool) {
	i := slices.IndexFunc(args, func(arg string) bool { _, err := time.ParseDuration(arg); return err == nil })
	if i < 0 {
		return "", false
	}
	return args[i], true
}

// listing makes out what to read and what to show of it.
func (f lsFlags) listing(expr *filter.Filter, wide bool) (listing, error) {
	l := listing{query: table.Query{Filter: expr, Protocols: f.protocols()}, by: f.group, matched: expr != nil}
	if l.by != "" {
		if err := f.checkGroup(); err != nil {
			return l, err
		}
	}
	bare := expr == nil && !f.all
	if bare && f.protocols() == nil {
		l.query.Protocols = []fivetuple.Network{fivetuple.TCP, fivetuple.MPTCP, fivetuple.UDP, fivetuple.UDPLite, fivetuple.SCTP}
	}
	listeners := f.listening || bare && l.by == "" // a group counts connections too
	if listeners {
		l.query.States = sockdiag.Listening
	}
	if err := l.choose(f.defaultColumns(listeners, wide), f.columns); err != nil {
		return l, err
	}
	for _, n := range f.sort {
		c, err := columnNamed(strings.TrimPrefix(n, "-"))
		if err != nil {
			return l, err
		}
		l.sort = append(l.sort, sortKey{c, strings.HasPrefix(n, "-")})
	}
	for _, c := range l.columns {
		l.needs(c)
	}
	for _, k := range l.sort {
		l.needs(k.Column)
	}
	l.query.Owners = l.query.Owners || l.by != ""
	l.query.Servers = l.by == "port"
	return l, nil
}

func (f lsFlags) checkGroup() error {
	if !slices.Contains(table.Groupings(), f.group) {
		return usage("unknown --group %q: want %s", f.group, strings.Join(table.Groupings(), ", "))
	}
	if len(f.columns) > 0 || len(f.sort) > 0 || f.info {
		return usage("--group has columns and an order of its own: leave out --columns, --sort and --info")
	}
	return nil
}

func (f lsFlags) defaultColumns(listeners, wide bool) []string {
	names := strings.Fields("proto state recvq sendq local remote process")
	switch {
	case listeners && wide:
		names = strings.Fields("proto state local queue drops process user unit container cookie")
	case listeners:
		names = strings.Fields("proto local queue process")
	case wide:
		names = append(names, "timer", "unit", "container", "cookie")
	}
	if f.info {
		names = append(names, "rtt", "cwnd", "unacked", "retrans", "delivery", "sent", "received")
	}
	if f.netns != "" {
		names = append([]string{"netns"}, names...)
	}
	return names
}

// choose takes the columns that were asked for. If the first of them is +NAME
// they are added to the others; one that is there already is there once.
func (l *listing) choose(others, asked []string) error {
	if l.chosen = len(asked) > 0 && !strings.HasPrefix(asked[0], "+"); l.chosen {
		others = nil
	}
	for i, name := range slices.Concat(others, asked) {
		c, err := columnNamed(strings.TrimPrefix(name, "+"))
		if err != nil {
			return err
		}
		switch at := slices.IndexFunc(l.columns, func(other table.Column) bool { return other.Name == c.Name }); {
		case at < 0:
			l.columns = append(l.columns, c)
		case at >= len(others) && i >= len(others):
			return usage("column %q is there twice in --columns", c.Name)
		}
	}
	return nil
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
	b.WriteString("Columns:\n")
	for _, c := range table.Columns() {
		fmt.Fprintf(&b, "\n  %-10s %s", c.Name, strings.TrimLeft(wrap(c.Doc, strings.Repeat(" ", 13)), " "))
	}
	return b.String()
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

// order sorts the rows as --sort says, or by protocol and address if they are
// not too many.
func (l *listing) order(rows []table.Row) {
	compare := byAddress
	switch {
	case len(l.sort) > 0:
		compare = l.bySort
	case len(rows) > sortedRows:
		return
	}
	order := make([]*table.Row, len(rows)) // rows are large: pointers are moved sooner
	for i := range rows {
		order[i] = &rows[i]
	}
	slices.SortStableFunc(order, compare)
	sorted := make([]table.Row, len(rows))
	for i, r := range order {
		sorted[i] = *r
	}
	copy(rows, sorted)
}

func (l *listing) bySort(a, b *table.Row) int {
	for _, k := range l.sort {
		if x := k.Compare(a, b); x != 0 {
			if k.reverse {
				return -x
			}
			return x
		}
	}
	return 0
}

func byAddress(a, b *table.Row) int {
	if a.Protocol != b.Protocol {
		return cmp.Compare(a.Protocol.String(), b.Protocol.String())
	}
	if x := a.Local.Compare(b.Local); x != 0 {
		return x
	}
	return cmp.Or(cmp.Compare(a.Name, b.Name), cmp.Compare(a.State, b.State), a.Remote.Compare(b.Remote), cmp.Compare(a.PeerName, b.PeerName))
}

// listSockets reads the table and prints it.
func (a *app) listSockets(ctx context.Context, r *table.Reader, l listing) error {
	n, err := 0, errors.ErrUnsupported
	if l.streams(a.isTable()) {
		n, err = a.streamSockets(ctx, l)
	}
	if n == 0 && errors.Is(err, errors.ErrUnsupported) {
		var t *table.Table
		if t, err = r.Read(ctx, l.query); err == nil {
			n, err = len(t.Rows), a.showSockets(t, l, 0)
		}
	}
	if err == nil && n == 0 && l.matched {
		err = answerIsNo
	}
	return err
}

// showSockets prints what was read, a table in no more than so many lines
// unless they are 0.
func (a *app) showSockets(t *table.Table, l listing, lines int) error {
	if l.by != "" {
		return a.printGroups(t, l, lines)
	}
	l.order(t.Rows)
	return a.printSockets(t, l, lines)
}

// watchSockets lists again and again until the command is interrupted.
func (a *app) watchSockets(ctx context.Context, l listing, every time.Duration) error {
	var r table.Reader
	defer r.Close()
	l.query.Rates = true
	tick := time.NewTicker(every)
	defer tick.Stop()
	for first := true; ; first = false {
		t, err := r.Read(ctx, l.query)
		if ctx.Err() != nil {
			return nil
		}
		if err != nil {
			return err
		}
		lines := 0
		if a.isTable() && isTerminal(a.out) {
			lines = terminalHeight(a.out)
			io.WriteString(a.out, "\x1b[H\x1b[2J") // only now: an empty screen would be seen
		} else if a.isTable() && !first {
			io.WriteString(a.out, "\n")
		}
		if err := a.showSockets(t, l, lines); err != nil {
			return err
		}
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
	}
}

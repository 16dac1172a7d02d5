package cli

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/fivetuple/fivetuple"
	"github.com/fivetuple/fivetuple/filter"
	"github.com/fivetuple/fivetuple/table"
)

type killFlags struct {
	kindFlags
	dryRun, yes bool
	netns       string
}

func (a *app) kill() *cobra.Command {
	var f killFlags
	c := &cobra.Command{
		Use:   "kill FILTER",
		Short: "Close sockets of any process, and leave the process running",
		Long: `Shows which sockets a filter matches, asks, and closes these and no others: a
connection that has their addresses later is left alone.

The kernel closes TCP and UDP sockets (SOCK_DESTROY), for which root or
CAP_NET_ADMIN is needed: the peer gets a reset, the program an error. Others,
Unix sockets among them, and an ordinary user's own connections are shut down
through the descriptor of a process that holds them.

The process keeps its descriptor: the port of a listener is bound until it closes
that. A bound UDP socket goes on receiving after the error and is called "still
bound". Only stopping the process helps there.

The exit code is 1 if nothing matches, and 3 if a socket is not closed.

` + filterHelp,
		Example: `  ft kill --dry-run dst 203.0.113.7         what would be closed
  ft kill state close-wait and proc:api     after a question
  ft kill --yes cookie:1a2b                 without one, in a script`,
		RunE: func(c *cobra.Command, args []string) error { return a.killSockets(c.Context(), args, f) },
	}
	f.kindFlags.add(c)
	c.Flags().BoolVar(&f.dryRun, "dry-run", false, "only show what would be closed")
	c.Flags().BoolVarP(&f.yes, "yes", "y", false, "do not ask")
	c.Flags().StringVar(&f.netns, "netns", "", "network `namespace`: a name of ip-netns, a number, or all")
	return c
}

func (a *app) killSockets(ctx context.Context, args []string, f killFlags) error {
	expr, err := parseFilter(ctx, args)
	if err != nil {
		return err
	}
	switch {
	case expr == nil:
		return usage("ft kill needs a filter that says which sockets to close: see `ft kill --help`")
	case expr.Uses(filter.FieldAge) || expr.Uses(filter.FieldRate):
		return usage("rate and age are known only to what watches: find the socket with ft top, and name it by its cookie")
	}
	l, err := f.listing(expr, a.format)
	if err != nil {
		return err
	}
	if l.query.Namespaces, err = namespaces(f.netns); err != nil {
		return err
	}
	t, err := table.Read(ctx, l.query)
	if err != nil {
		return err
	}
	leftOut := leaveOutUnknown(t, expr)
	if leftOut > 0 {
		a.warn("left out %s: the filter asks for the holder, which is not known; run as root on the host to see more", plural(leftOut, "socket"))
	}
	switch {
	case len(t.Rows) == 0 && leftOut > 0:
		return answerIsNo
	case len(t.Rows) == 0:
		return no("no socket matches %q: `ft ls -a` lists those there are", strings.Join(args, " "))
	}
	l.order(t.Rows)
	if f.dryRun {
		return a.printTargets(t, l)
	}
	if !f.yes {
		if err := a.askToKill(ctx, t, l); err != nil {
			return err
		}
	}
	return a.closeSockets(ctx, t.Rows)
}

func (f killFlags) listing(expr *filter.Filter, format string) (listing, error) {
	ls := lsFlags{kindFlags: f.kindFlags, all: true, netns: f.netns, columns: strings.Fields("proto state local remote process")}
	if format == formatWide || format == formatCSV {
		ls.columns = append(ls.columns, "cookie")
	}
	if f.netns != "" {
		ls.columns = append([]string{"netns"}, ls.columns...)
	}
	l, err := ls.listing(expr, false)
	l.chosen = false // JSON has all keys
	return l, err
}

// leaveOutUnknown takes out the rows that the filter may match only because
// their holder is not known, as "not proc:nginx" does with other users' sockets.
func leaveOutUnknown(t *table.Table, expr *filter.Filter) int {
	processes := expr.Uses(filter.FieldPID) || expr.Uses(filter.FieldCommand)
	groups := expr.Uses(filter.FieldUnit) || expr.Uses(filter.FieldContainer)
	before := len(t.Rows)
	t.Rows = slices.DeleteFunc(t.Rows, func(r table.Row) bool {
		switch t.Unowned(&r) {
		case table.Denied, table.Hidden, table.Elsewhere:
			return processes || groups && r.Unit == "" && r.Container == ""
		}
		return false
	})
	return before - len(t.Rows)
}

// printTargets prints the sockets that are to be closed.
func (a *app) printTargets(t *table.Table, l listing) error {
	p := a.socketPrinter(l)
	for i := range t.Rows {
		if err := p.row(&t.Rows[i]); err != nil {
			return err
		}
	}
	return p.end()
}

// askToKill shows the sockets and asks whether they are to be closed.
func (a *app) askToKill(ctx context.Context, t *table.Table, l listing) error {
	if !isTerminal(a.in) || !isTerminal(a.err) {
		return usage("%s would be closed, and there is no terminal to ask on: see which with --dry-run, then say --yes", plural(len(t.Rows), "socket"))
	}
	shown := *a
	shown.out = a.err // what is asked about is no result
	if a.format != formatWide {
		shown.format = formatTable
	}
	if err := shown.printTargets(t, l); err != nil {
		return err
	}
	if own, ok := ownConnection(t.Rows); ok {
		a.warn("%v is the connection that you are using", own)
	}
	fmt.Fprintf(a.err, "Close %s? [y/N] ", plural(len(t.Rows), "socket"))
	switch answer, err := a.readAnswer(ctx); {
	case ctx.Err() != nil:
		fmt.Fprintln(a.err)
		return errors.New("interrupted: nothing was closed")
	case err != nil && err != io.EOF:
		return fmt.Errorf("read the answer: %w: nothing was closed", err)
	case answer == "y" || answer == "yes":
		return nil
	}
	return no("nothing was closed")
}

// readAnswer reads a line, or returns when ctx is done. A read of a terminal
// cannot be ended: it is left to the end of the program.
func (a *app) readAnswer(ctx context.Context) (string, error) {
	type line struct {
		text string
		err  error
	}
	read := make(chan line, 1)
	go func() {
		text, err := bufio.NewReader(a.in).ReadString('\n')
		read <- line{text, err}
	}()
	select {
	case <-ctx.Done():
		return "", ctx.Err()
	case l := <-read:
		return strings.ToLower(strings.TrimSpace(l.text)), l.err
	}
}

// ownConnection finds the ssh connection that this shell came by (sshd(8)).
func ownConnection(rows []table.Row) (fivetuple.Tuple, bool) {
	var host string
	var port uint16
	fmt.Sscan(os.Getenv("SSH_CONNECTION"), &host, &port) // "CLIENT PORT SERVER PORT"
	addr, err := netip.ParseAddr(host)
	peer := netip.AddrPortFrom(addr.Unmap(), port)
	i := slices.IndexFunc(rows, func(r table.Row) bool { return r.Remote == peer })
	if err != nil || i < 0 {
		return fivetuple.Tuple{}, false
	}
	return rows[i].Tuple(), true
}

// killRow is what became of a socket.
type killRow struct {
	Row    *table.Row   `json:"socket"`
	Result table.Closed `json:"result"`
	Error  string       `json:"error,omitempty"`
}

func (a *app) closeSockets(ctx context.Context, rows []table.Row) error {
	var failed, bound int
	results := func(yield func(killRow, error) bool) {
		for i := range rows {
			if err := ctx.Err(); err != nil {
				yield(killRow{}, err)
				return
			}
			result := killRow{Row: &rows[i]}
			var err error
			if result.Result, err = table.Close(ctx, result.Row); err != nil {
				failed++
				result.Error = err.Error()
			} else if result.Result == table.Aborted {
				bound++
			}
			if !yield(result, nil) {
				return
			}
		}
	}
	if _, err := printRows(a, "sockets", results, killColumns); err != nil {
		return err
	}
	switch all := plural(len(rows), "socket"); {
	case failed > 0:
		return fmt.Errorf("%d of %s could not be closed", failed+bound, all)
	case bound > 0:
		return fmt.Errorf("%d of %s still bound: the program read an error, and can go on receiving; stop it to free the port", bound, all)
	}
	return nil
}

var killColumns = []column[killRow]{
	{head: "protocol", text: func(k killRow) string { return k.Row.Protocol.String() }},
	{head: "local", text: func(k killRow) string { return k.Row.LocalEnd().String() }},
	{head: "remote", text: func(k killRow) string { return k.Row.RemoteEnd().String() }},
	{head: "cookie", wide: true, text: func(k killRow) string { return fmt.Sprintf("%x", k.Row.Cookie) }},
	{head: "result", text: func(k killRow) string { return k.Result.String() }},
	{head: "error", text: func(k killRow) string { return k.Error }},
}

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
Unix sockets among them, are shut down through the descriptor of a process that
holds them. The exit code is 1 if nothing matches.

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
	if expr == nil {
		return usage("ft kill needs a filter that says which sockets to close: see `ft kill --help`")
	}
	l, err := f.listing(expr)
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
	if len(t.Rows) == 0 {
		return no("no socket matches %s", expr)
	}
	l.order(t.Rows)
	if f.dryRun {
		return a.printSockets(t, l)
	}
	if !f.yes {
		if err := a.askToKill(t, l); err != nil {
			return err
		}
	}
	return a.closeSockets(ctx, t.Rows)
}

func (f killFlags) listing(expr *filter.Filter) (listing, error) {
	ls := lsFlags{kindFlags: f.kindFlags, all: true, netns: f.netns, columns: strings.Fields("proto state local remote process cookie")}
	return ls.listing(expr, false)
}

// askToKill shows the sockets and asks whether they are to be closed.
func (a *app) askToKill(t *table.Table, l listing) error {
	if !isTerminal(a.in) {
		return usage("%s would be closed, and there is no terminal to ask on: see which with --dry-run, then say --yes", plural(len(t.Rows), "socket"))
	}
	shown := *a
	shown.out, shown.format = a.err, formatTable // what is asked about is no result
	if err := shown.printSockets(t, l); err != nil {
		return err
	}
	if own, ok := ownConnection(t.Rows); ok {
		a.warn("%v is the connection that you are using", own)
	}
	fmt.Fprintf(a.err, "Close %s? [y/N] ", plural(len(t.Rows), "socket"))
	answer, err := bufio.NewReader(a.in).ReadString('\n')
	if err != nil && !errors.Is(err, io.EOF) {
		return err
	}
	switch strings.ToLower(strings.TrimSpace(answer)) {
	case "y", "yes":
		return nil
	}
	return no("nothing was closed")
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
	failed := 0
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
			}
			if !yield(result, nil) {
				return
			}
		}
	}
	if _, err := printRows(a, "sockets", results, killColumns); err != nil {
		return err
	}
	if failed > 0 {
		return fmt.Errorf("%d of %s could not be closed", failed, plural(len(rows), "socket"))
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

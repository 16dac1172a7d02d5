package cli

import (
	"context"
	"fmt"

	"github.com/spf13/cobra"

	"github.com/fivetuple/fivetuple/port/lease"
	"github.com/fivetuple/fivetuple/table/who"
)

func (a *app) who() *cobra.Command {
	return &cobra.Command{
		Use:   "who TARGET",
		Short: "All about one port: who holds it, who is connected, how to free it",
		Long: `Shows on one screen who holds a port, since when and on behalf of what, from
where it can be reached, how full its queue is, who is connected, what sends it
elsewhere (proxies, rules of the packet filter), and how to free it. Of a process,
a unit or a user it shows that of each port they listen on, as a list if there
are more than ` + fmt.Sprint(whoScreens) + `.

If nobody holds the port the exit code is 1, and it says what can be in the way
of listening there: connections in TIME_WAIT, a lease, a privilege that is
missing.

` + filterHelp,
		Example: `  ft who 8080             all about one port
  ft who udp://:53        of UDP only
  ft who unit:nginx.service`,
		Args: minArgs(1),
		RunE: func(c *cobra.Command, args []string) error { return a.aboutTarget(c.Context(), args) },
	}
}

// whoScreens is of how many ports all is shown; more are a list.
const whoScreens = 3

func (a *app) aboutTarget(ctx context.Context, args []string) error {
	expr, err := parseFilter(ctx, args)
	if err != nil {
		return err
	}
	if expr == nil {
		return usage("ft who needs a target, such as 8080: see `ft who --help`")
	}
	report, err := who.About(ctx, who.Query{Filter: expr, Leases: a.everyLease})
	if err != nil {
		return err
	}
	switch {
	case a.format == formatJSON || a.format == formatNDJSON:
		err = a.printWho(report)
	case a.format == formatCSV || len(report.Ports) > whoScreens:
		_, err = printRows(a, "ports", each(report.Ports), whoColumns)
		a.tellUnknown(report)
	default:
		err = a.showWho(report)
		a.tellUnknown(report)
	}
	if err == nil && !report.Held() {
		if len(report.Ports) == 0 {
			return no("no socket matches %s", expr)
		}
		err = answerIsNo
	}
	return err
}

// everyLease returns the leases of the registry, and those that other registries show.
func (a *app) everyLease(ctx context.Context) ([]lease.Lease, error) {
	leases, err := listLeases(ctx)
	if err != nil {
		return nil, err
	}
	claimed, err := lease.Claimed(lease.Options{})
	if err != nil {
		a.warn("%v", err)
	}
	return append(leases, without(claimed, leases)...), nil
}

// printWho prints the report as one document, on one line with -o ndjson.
func (a *app) printWho(r *who.Report) error {
	document := struct {
		Schema int `json:"schema"`
		*who.Report
	}{schema, r}
	return writeJSON(a.out, document, "\n")
}

func (a *app) tellUnknown(r *who.Report) {
	for _, u := range r.Unknown {
		a.warn("not known: %s", u)
	}
}

var whoColumns = []column[who.Port]{
	{head: "protocol", text: func(p who.Port) string { return p.Protocol.String() }},
	{head: "port", text: portOrName},
	{head: "listens", text: listensOn, key: "local"},
	{head: "connections", right: true, text: func(p who.Port) string { return fmt.Sprint(connections(p)) }},
	{head: "held by", text: func(p who.Port) string { return heldBy(p) }},
	{head: "unit", wide: true, text: func(p who.Port) string { return firstHolder(p).Unit }},
	{head: "container", wide: true, text: func(p who.Port) string { return firstHolder(p).Container }},
}

package cli

import (
	"context"
	"os"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/fivetuple/fivetuple/internal/tui"
	"github.com/fivetuple/fivetuple/port/lease"
)

type topFlags struct {
	kindFlags
	all      bool
	interval time.Duration
	columns  []string
	sort     string
}

// The bounds of --interval: more often than the lower one nobody can read.
const (
	shortestTop = 200 * time.Millisecond
	longestTop  = time.Hour
)

func (a *app) top() *cobra.Command {
	var f topFlags
	c := &cobra.Command{
		Use:   "top [FILTER]",
		Short: "Watch sockets live, with their rates",
		Long: `Shows sockets live, the busiest first: what each receives and sends per second,
which process holds it, and with Enter all that the kernel tells of it. The
filter can be typed while looking, with /, and a socket be closed, with k; ?
shows all keys. Unix and other local sockets are there with -x or -a, or if the
filter asks for them.

` + filterHelp + `

It needs a terminal; ft ls --watch writes to a file or a pipe. On a large machine
the interval is stretched so that reading takes no more than 30% of the time.`,
		Example: `  ft top                                 all IP sockets
  ft top 'rate > 1MiB/s'                 those that move data
  ft top proc:nginx --sort -rtt          nginx, the slowest peers first`,
		RunE: func(c *cobra.Command, args []string) error { return a.runTop(c.Context(), args, f) },
	}
	f.kindFlags.add(c)
	c.Flags().BoolVarP(&f.all, "all", "a", false, "every kind of socket: Unix, packet, netlink and vsock too")
	c.Flags().DurationVar(&f.interval, "interval", time.Second, "`time` between two readings, 200ms to 1h")
	c.Flags().StringSliceVar(&f.columns, "columns", nil, "`names` of the columns to show, with commas, as in ft ls --help; as many as fit")
	c.Flags().StringVar(&f.sort, "sort", "-rate", "`name` of the column to sort by, or rate; -NAME for the largest first")
	return c
}

func (a *app) runTop(ctx context.Context, args []string, f topFlags) error {
	if _, err := parseFilter(ctx, args); err != nil {
		return err
	}
	o := tui.Options{
		Filter:    strings.Join(args, " "),
		Protocols: f.protocols(),
		All:       f.all,
		Interval:  f.interval,
		Sort:      f.sort,
	}
	if f.interval < shortestTop || f.interval > longestTop {
		return usage("--interval %v: want %v to %v", f.interval, shortestTop, longestTop)
	}
	for _, name := range f.columns {
		c, err := columnNamed(name)
		if err != nil {
			return err
		}
		if c.Peers {
			return usage("ft top does not look for the other ends of connections: see `ft ls --columns +%s`", c.Name)
		}
		o.Columns = append(o.Columns, c)
	}
	if name := strings.TrimPrefix(f.sort, "-"); name != "rate" {
		if _, err := columnNamed(name); err != nil {
			return err
		}
	}
	in, out := a.in, a.out
	if a.format != formatTable || !isTerminal(in) || !isTerminal(out) {
		return usage("ft top needs a terminal to show sockets live: for files, pipes and programs there is `ft ls --watch -o ndjson`")
	}
	o.Ephemeral, _ = lease.EphemeralRange() // unknown: no warning
	return tui.Run(ctx, in.(*os.File), out.(*os.File), o)
}

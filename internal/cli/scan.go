package cli

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"github.com/fivetuple/fivetuple/scan"
	"github.com/fivetuple/fivetuple/sockopt"
	"github.com/fivetuple/fivetuple/stats"
)

// maxParallel is what [scan.Scanner] takes.
const maxParallel = 65536

type scanFlags struct {
	ports    string
	timeout  time.Duration
	parallel int
	all      bool
	public   bool
	options  sockopt.Settings
}

func (a *app) scan() *cobra.Command {
	var f scanFlags
	c := &cobra.Command{
		Use:   "scan TARGET...",
		Short: "Find out which ports of hosts are open",
		Long: `Finds out which TCP ports of hosts are open, by connecting to them. A target is an
address, a network, a range of addresses, or a host name. Only loopback, private
and link-local addresses are scanned unless --public is given: scanning the hosts
of other people may be against the law.

The exit code is 0 if a port is open, 1 if none is.`,
		Example: `  ft scan 127.0.0.1 -p 8080-8090       eleven ports of this host
  ft scan db.internal -p https,5432    by name, and by the service's name
  ft scan 10.0.0.0/24 -p 22 --all      with the ports that are not open, too`,
		Args: minArgs(1),
		RunE: func(c *cobra.Command, args []string) error { return a.scanPorts(c.Context(), args, f) },
	}
	c.Flags().StringVarP(&f.ports, "ports", "p", "well-known", "`ports`: 22, 8000-8010, https, well-known, all, or several with commas")
	c.Flags().DurationVar(&f.timeout, "timeout", 1500*time.Millisecond, "how long a port may take to answer")
	c.Flags().IntVar(&f.parallel, "parallel", 0, "ask `n` ports at a time at most, up to 65536 (default: as many as are good)")
	c.Flags().BoolVar(&f.all, "all", false, "print closed and filtered ports, too; only -o ndjson does not keep all of them in memory until the end")
	c.Flags().BoolVar(&f.public, "public", false, "scan public addresses, too")
	optFlag(c, &f.options)
	return c
}

func (a *app) scanPorts(ctx context.Context, args []string, f scanFlags) error {
	switch {
	case f.timeout <= 0:
		return usage("--timeout %s: want a duration above 0, such as 500ms", f.timeout)
	case f.parallel < 0 || f.parallel > maxParallel:
		return usage("--parallel %d: want how many ports are asked at a time, 1 to %d, or 0", f.parallel, maxParallel)
	}
	names := a.serviceNames()
	ports, err := scan.ParsePorts(f.ports, names)
	if err != nil {
		return &codeError{exitUsage, err}
	}
	targets, err := scan.ParseTargets(ctx, args...)
	var lookup *net.DNSError
	switch {
	case errors.As(err, &lookup) || ctx.Err() != nil:
		return err
	case err != nil:
		return &codeError{exitUsage, err}
	}
	s := &scan.Scanner{Timeout: f.timeout, Parallel: f.parallel, Names: names, Public: f.public, Options: f.options}
	j := &scanJob{app: a, scanner: s, targets: targets, ports: ports, all: f.all}
	return j.run(ctx)
}

// scanJob is a scan, and what has been found so far.
type scanJob struct {
	app     *app
	scanner *scan.Scanner
	targets []scan.Target
	ports   scan.PortSet
	all     bool

	err    error              // that ended it early
	states map[scan.State]int // how many ports of each
}

func (j *scanJob) run(ctx context.Context) error {
	a := j.app
	j.states = make(map[scan.State]int)
	start := time.Now()
	var err error
	if a.format == formatNDJSON {
		_, err = printRows(a, "ports", j.results(ctx), j.columns())
	} else {
		var found []scan.Result
		stop := a.progress(countLine("scanned", "ports", j.scanner.Progress))
		for r, err := range j.results(ctx) {
			if err == nil {
				found = append(found, r)
			}
		}
		stop()
		slices.SortFunc(found, byHostAndPort)
		if j.asked() > 0 || j.err == nil {
			_, err = printRows(a, "ports", eachUntil(found, j.err), j.columns())
		}
	}
	if j.asked() > 0 {
		fmt.Fprintln(a.err, j.summary(time.Since(start)))
	}
	return j.outcome(err)
}

// results yields what is to be printed, and counts all. The error that ends the
// scan is kept, too.
func (j *scanJob) results(ctx context.Context) func(func(scan.Result, error) bool) {
	return func(yield func(scan.Result, error) bool) {
		for r, err := range j.scanner.Scan(ctx, j.targets, j.ports) {
			if err != nil {
				j.err = err
				yield(r, err)
				return
			}
			j.states[r.State]++
			if (j.all || r.State == scan.Open || r.State == scan.Failed) && !yield(r, nil) {
				return
			}
		}
	}
}

func (j *scanJob) asked() int {
	n := 0
	for _, count := range j.states {
		n += count
	}
	return n
}

// summary returns "10 ports scanned on 1 host in 20.4 ms: 3 open, 7 closed, 0 filtered".
func (j *scanJob) summary(took time.Duration) string {
	var b strings.Builder
	if j.err != nil {
		_, total := j.scanner.Progress()
		fmt.Fprintf(&b, "ended after %d of %s", j.asked(), plural(total, "port"))
	} else {
		b.WriteString(plural(j.asked(), "port") + " scanned")
	}
	hosts := uint64(0)
	for _, t := range j.targets {
		hosts += t.Len()
	}
	fmt.Fprintf(&b, " on %s in %s: %d open, %d closed, %d filtered", plural(hosts, "host"), stats.FormatDuration(took),
		j.states[scan.Open], j.states[scan.Closed], j.states[scan.Filtered])
	if failed := j.states[scan.Failed]; failed > 0 {
		fmt.Fprintf(&b, ", %d could not be asked", failed)
	}
	return b.String()
}

// outcome is how the command ends. That no open port was found is an answer
// only if every port could be asked.
func (j *scanJob) outcome(printed error) error {
	switch {
	case printed != nil && !errors.Is(printed, j.err):
		return printed
	case errors.Is(j.err, scan.ErrPublic):
		return usage("%w: --public allows them", j.err)
	case errors.Is(j.err, context.Canceled) && j.asked() > 0:
		return &codeError{code: exitFailed} // the summary says so
	case errors.Is(j.err, context.Canceled), errors.As(j.err, new(syscall.Errno)), errors.Is(j.err, errors.ErrUnsupported):
		return j.err
	case j.err != nil && j.asked() == 0:
		return &codeError{exitUsage, j.err}
	case j.err != nil:
		return j.err
	case j.states[scan.Open] > 0:
		return nil
	case j.states[scan.Failed] > 0:
		return &codeError{code: exitFailed}
	}
	return answerIsNo
}

func byHostAndPort(a, b scan.Result) int {
	return cmp.Or(a.Host.Compare(b.Host), cmp.Compare(a.Port, b.Port))
}

func (j *scanJob) columns() []column[scan.Result] {
	named := slices.ContainsFunc(j.targets, func(t scan.Target) bool { return t.Name != "" })
	return []column[scan.Result]{
		{head: "host", text: func(r scan.Result) string { return r.Host.String() }},
		{head: "name", wide: !named, text: func(r scan.Result) string { return r.Name }},
		{head: "port", right: true, text: func(r scan.Result) string { return fmt.Sprint(r.Port) }},
		{head: "protocol", wide: true, text: func(r scan.Result) string { return r.Protocol.String() }},
		{head: "state", text: func(r scan.Result) string { return r.State.String() }},
		{head: "service", text: func(r scan.Result) string { return r.Service }},
		{head: "reason", text: func(r scan.Result) string { return r.Reason }},
		{
			head: "rtt", right: true, text: func(r scan.Result) string { return durationText(r.RTT) },
			key: "rtt_s", value: func(r scan.Result) string { return secondsText(r.RTT) },
		},
	}
}

// durationText writes a duration for people, "" for none.
func durationText(d time.Duration) string {
	if d == 0 {
		return ""
	}
	return stats.FormatDuration(d)
}

// secondsText writes a duration for programs, in seconds, "" for none.
func secondsText(d time.Duration) string {
	if d == 0 {
		return ""
	}
	return strconv.FormatFloat(d.Seconds(), 'f', -1, 64)
}

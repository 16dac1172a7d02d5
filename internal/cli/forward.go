package cli

import (
	"context"
	"fmt"
	"log/slog"
	"os/signal"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"github.com/fivetuple/fivetuple"
	"github.com/fivetuple/fivetuple/daemon"
	"github.com/fivetuple/fivetuple/internal/confine"
	"github.com/fivetuple/fivetuple/relay"
	"github.com/fivetuple/fivetuple/service"
	"github.com/fivetuple/fivetuple/stats"
)

type forwardFlags struct {
	rule    ruleFlags
	file    string
	check   bool
	verbose bool
	workers int
	handoff string
	drain   time.Duration
	user    string
}

func (a *app) forward() *cobra.Command {
	var f forwardFlags
	c := &cobra.Command{
		Use:   "forward LISTEN TARGET...",
		Short: "Forward ports: TCP, UDP and Unix sockets, many at once",
		Long: `forward hands what comes to LISTEN on to one of the TARGETs, until Ctrl-C: TCP to
TCP or to a Unix socket, the other way, UDP to UDP, TLS that ends or begins here.
LISTEN is on loopback unless it says otherwise; a range of ports goes to as many.

A file of rules has a line for each, LISTEN TARGET... and flags; SIGHUP reads it
again, and connections of a rule that stays notice nothing. Without a file SIGHUP,
as when the terminal is closed, is the end; with --workers nothing is read again.

Only --file, --verbose, --handoff, --workers, --drain and --user are for all rules;
the other flags are for one.`,
		Example: `  ft forward 8080 10.0.0.5:80
  ft forward :443 10.0.0.5:443 10.0.0.6:443 --check 2s --allow 192.0.2.0/24
  ft forward udp://:53 10.0.0.2:53`,
		Args: cobra.ArbitraryArgs,
		RunE: func(c *cobra.Command, args []string) error {
			if a.format != formatTable {
				return usage("ft forward has no results to print as -o %s; ft forward explain has", a.format)
			}
			rules, err := f.rules(args)
			if err != nil {
				return err
			}
			if f.check {
				if _, err := f.config(rules); err != nil {
					return err
				}
				fmt.Fprintf(a.out, "ok, %s\n", plural(len(rules), "rule"))
				return nil
			}
			return ofOptions(a.runForward(c.Context(), f, rules))
		},
	}
	fl := c.Flags()
	fl.StringVarP(&f.file, "file", "f", "", "rules in a `file`, a line for each")
	fl.BoolVar(&f.check, "check-rules", false, "check the rules and start nothing")
	fl.BoolVarP(&f.verbose, "verbose", "v", false, "tell of every connection")
	fl.StringVar(&f.handoff, "handoff", "", "take over sockets and connections from the ft that has this control `socket`, and have it for the next one")
	fl.IntVar(&f.workers, "workers", 0, "forward by this many `processes` on one port; those that die are replaced")
	fl.DurationVar(&f.drain, "drain", 10*time.Second, "how long connections may go on after the order to stop")
	fl.StringVar(&f.user, "user", "", "once the sockets are open become this `user[:group]`, and see no more files than needed (Landlock)")
	fl.SortFlags = false
	f.rule.register(fl)
	c.AddCommand(a.forwardExplain())
	return c
}

// rules are those of the command line or of the file.
func (f *forwardFlags) rules(args []string) ([]rule, error) {
	switch {
	case f.file != "" && len(args) > 0:
		return nil, usage("give rules in the file or as arguments, not both")
	case f.file != "":
		return readRules(f.file)
	}
	c, err := f.rule.config(args)
	if err != nil {
		return nil, &codeError{exitUsage, err}
	}
	return []rule{{f.rule, c}}, nil
}

func (a *app) runForward(ctx context.Context, f forwardFlags, rules []rule) error {
	outliveReaders()
	if f.workers != 0 {
		return a.forwardWorkers(ctx, f, rules)
	}
	config, err := f.config(rules)
	if err != nil {
		return err
	}
	if f.user != "" {
		if err := confine.Check(f.rights(rules)); err != nil { // said before a socket is open
			return err
		}
	}
	level := slog.LevelWarn
	if f.verbose {
		level = slog.LevelDebug
	}
	r := daemonRun{
		name: "forward", config: config, handoff: f.handoff, leaseless: true,
		log: slog.New(&noteHandler{a, level}),
		began: func(d *daemon.Daemon) error {
			a.noteRules(d, rules)
			return a.confineForward(f, rules)
		},
	}
	if f.file != "" {
		r.load = func() (daemon.Config, error) { return a.loadRules(f) }
		r.reloaded = func(c daemon.Config) { a.note("rules read again: %s", plural(len(c.Services), "rule")) }
	}
	start := time.Now()
	r.end = func(d *daemon.Daemon) error {
		a.noteForwarded(d, time.Since(start))
		return nil
	}
	return a.runDaemon(ctx, r)
}

// config is that of a daemon with a service for each rule.
func (f *forwardFlags) config(rules []rule) (daemon.Config, error) {
	c := daemon.Config{History: daemon.History{Off: true}, Drain: daemon.Duration{Duration: f.drain}}
	c.Leases.Off = f.user != "" // another user can write no registry of this one
	for i := range rules {
		s, err := rules[i].service()
		if err != nil {
			return c, &codeError{exitUsage, err}
		}
		c.Services = append(c.Services, s)
	}
	if err := c.Check(); err != nil {
		return c, &codeError{exitUsage, err}
	}
	return c, nil
}

func (a *app) loadRules(f forwardFlags) (daemon.Config, error) {
	rules, err := readRules(f.file)
	if err != nil {
		return daemon.Config{}, err
	}
	config, err := f.config(rules)
	if err != nil {
		return config, err
	}
	for i := range rules {
		a.noteExposure(&rules[i])
	}
	return config, nil
}

// noteExposure says what a rule opens, and what it needs from the rest of the host.
func (a *app) noteExposure(r *rule) {
	if r.exposed() {
		a.note("warning: %s is open to whoever reaches this host; --allow says who may, and without an address it is on loopback", r.Listen)
	}
	if r.Transparent {
		a.note("%s", transparentRouting)
	}
}

func (a *app) noteRules(d *daemon.Daemon, rules []rule) {
	addresses := d.Addresses()
	for i := range rules {
		r := &rules[i]
		a.note("listening on %s %s: forward to %s", r.Listen.Network, addresses[r.name()], r.targetsText())
		a.noteExposure(r)
	}
}

func (a *app) noteForwarded(d *daemon.Daemon, took time.Duration) {
	t := stats.Total(d.Counters())
	a.note("forwarded %s, %s in, %s out%s, in %s", plural(int(t.Accepted), "connection"), stats.FormatBytes(t.BytesIn), stats.FormatBytes(t.BytesOut),
		andErrors(t.Errors), stats.FormatDuration(took))
}

// forwardWorkers forwards by several processes, as ft listen does.
func (a *app) forwardWorkers(ctx context.Context, f forwardFlags, rules []rule) error {
	switch {
	case f.workers < 0:
		return usage("--workers: want 1 or more")
	case len(rules) > 1:
		return usage("--workers is for one rule, not for %d", len(rules))
	case f.handoff != "":
		return usage("--workers and --handoff exclude each other: workers come and go by themselves")
	}
	r := &rules[0]
	p := listenPlan{kind: "forward to " + r.targetsText(), listenFlags: listenFlags{workers: f.workers, drain: f.drain, verbose: f.verbose, tls: r.tls}}
	var err error
	p.config, err = r.serviceConfig()
	if err != nil {
		return &codeError{exitUsage, err}
	}
	a.noteExposure(r)
	if f.file != "" { // workers have one command line, and read no rules again
		signal.Ignore(syscall.SIGHUP)
	}
	return a.listenWorkers(ctx, p)
}

// name is that of the rule's service.
func (r *rule) name() string { return "forward-" + r.Listen.String() }

// service is the daemon's for a rule.
func (r *rule) service() (daemon.Service, error) {
	bounds, proxies, err := r.bounds()
	s := daemon.Service{
		Name: r.name(), Listen: daemon.Endpoint{Endpoint: r.Listen}, Kind: "forward", Mode: daemon.Mode{FileMode: r.mode.FileMode},
		TLS:     daemon.TLS{Cert: r.tls.CertFile, Key: r.tls.KeyFile, ClientCA: r.tls.ClientCAFile},
		Forward: daemon.Forward{Rule: &r.Config, Bounds: &bounds},
	}
	for _, p := range proxies {
		s.AcceptProxy = append(s.AcceptProxy, daemon.Prefix{Prefix: p})
	}
	for _, o := range r.options {
		s.Options = append(s.Options, daemon.Option{Setting: o})
	}
	return s, err
}

// serviceConfig is the same for a worker.
func (r *rule) serviceConfig() (c service.Config, err error) {
	c = service.Config{
		Kind: "forward", Forward: &r.Config, Endpoints: []fivetuple.Endpoint{r.Listen}, Name: r.name(), Options: r.options, Mode: r.mode.FileMode,
	}
	if c.Limits, c.Proxies, err = r.bounds(); err != nil {
		return c, err
	}
	if !r.Listen.Network.IsDatagram() && c.Limits.IdleTimeout == 0 {
		c.Limits.IdleTimeout = relay.DefaultStreamIdle
	}
	if r.tls.CertFile != "" {
		c.TLS, err = r.tls.Config()
	}
	return c, err
}

package cli

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"github.com/fivetuple/fivetuple/activation"
	"github.com/fivetuple/fivetuple/daemon"
	"github.com/fivetuple/fivetuple/history"
	"github.com/fivetuple/fivetuple/internal/printable"
	"github.com/fivetuple/fivetuple/port/lease"
	"github.com/fivetuple/fivetuple/service"
	"github.com/fivetuple/fivetuple/sockopt"
	"github.com/fivetuple/fivetuple/stats"
)

type serveFlags struct {
	config  string
	handoff string
	check   bool
	verbose bool
	logJSON bool
	options sockopt.Settings
}

func (a *app) serve() *cobra.Command {
	var f serveFlags
	c := &cobra.Command{
		Use:   "serve",
		Short: "Run the network application",
		Long: `serve runs the services of a configuration file until SIGTERM or Ctrl-C: then it
stops listening, lets connections come to rest, and prints statistics, recent
history and the state of the ports. SIGHUP reads the file again: services whose
socket stays the same keep it and their connections.

Sockets that systemd passes (LISTEN_FDS) are those of the services that listen at
the same place. With --handoff a new process takes over everything from the one
that runs: first have that one read its changed file, then start the new one.

Without a file it runs TCP echo on 127.0.0.1:8080, UDP echo on 127.0.0.1:8081,
and a Unix echo socket in the runtime directory; SIGHUP, as when the terminal is
closed, stops it then.`,
		Example: `  ft serve                       the three echo services
  ft serve -c ft.yaml            what the file says
  ft serve -c ft.yaml --check    is the file right?`,
		Args: noArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			if c.Flags().Changed("config") && f.config == "" {
				return usage("-c names no file")
			}
			return a.runServe(c.Context(), f)
		},
	}
	c.Flags().StringVarP(&f.config, "config", "c", "", "configuration `file`, in YAML")
	c.Flags().StringVar(&f.handoff, "handoff", "", "take over all services from the ft that has this control `socket`, and have it for the next one")
	c.Flags().BoolVar(&f.check, "check", false, "check the configuration and start nothing")
	c.Flags().BoolVarP(&f.verbose, "verbose", "v", false, "log every connection")
	c.Flags().BoolVar(&f.logJSON, "log-json", false, "log in JSON")
	optFlag(c, &f.options)
	return c
}

func (a *app) runServe(ctx context.Context, f serveFlags) error {
	load := func() (daemon.Config, error) { return loadConfig(f) }
	config, err := load()
	if unread := (*fs.PathError)(nil); errors.As(err, &unread) && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if err != nil {
		return &codeError{exitUsage, err}
	}
	if f.check {
		if err := config.CheckFiles(); err != nil {
			return &codeError{exitUsage, err}
		}
		return a.printChecked(f, config)
	}
	if f.config == "" {
		load = nil
	}
	return a.runDaemon(ctx, daemonRun{
		name: "serve", config: config, load: load, handoff: f.handoff, log: a.logger(f),
		end: func(d *daemon.Daemon) error { return a.report(context.Background(), d) },
	})
}

// daemonRun is a daemon that is to run until a signal ends it, or a successor has
// taken over.
type daemonRun struct {
	name    string // of its control socket
	config  daemon.Config
	load    func() (daemon.Config, error) // the configuration again, at SIGHUP; nil: that is the end
	handoff string                        // path of the control socket for successors; "" for none
	log     *slog.Logger
	began   func(*daemon.Daemon) error // everything is served; may be nil; an error is the end
	end     func(*daemon.Daemon) error // after the stop; may be nil
	// leaseless goes on without the registry of ports, if that cannot be opened.
	leaseless bool
	// reloaded is told of a configuration that is in force now; may be nil.
	reloaded func(daemon.Config)
}

func (a *app) runDaemon(ctx context.Context, r daemonRun) error {
	path, err := historyPath()
	if err != nil && r.config.History.Path == "" && !r.config.History.Off {
		return err
	}
	// A reader of the log that goes away must not take the services with it.
	signal.Ignore(syscall.SIGPIPE)
	// From before the start until after the stop, as the default of SIGHUP is death.
	hup := make(chan os.Signal, 1)
	signal.Notify(hup, syscall.SIGHUP)
	defer signal.Stop(hup)

	o := daemon.Options{Log: r.log, HistoryPath: path, Handoff: r.handoff}
	if o.Sockets, err = passedSockets(); err != nil {
		return err
	}
	if !r.config.Leases.Off {
		ports, err := openPorts(ctx, func(err error) { r.log.Warn("ports", "error", err) })
		switch {
		case err == nil:
			defer ports.Close()
			o.Leases = ports
		case r.leaseless:
			r.log.Warn("other programs are not told which ports are taken", "error", err)
		default:
			return fmt.Errorf("%w (leases: {off: true} in the configuration does without)", err)
		}
	}
	dirErr := makeRuntimeDir(runtimeDir())
	if dirErr != nil && a.needsRuntimeDir(r.config) {
		return dirErr
	}
	d, err := daemon.Start(ctx, r.config, o)
	if err != nil {
		return err
	}
	defer r.answer(ctx, d, dirErr)()
	if r.began != nil {
		err = r.began(d)
	}
	if err == nil {
		r.notify(daemon.Ready)
		r.wait(ctx, d, hup)
	}

	drain := d.DrainTime()
	r.log.Info("stopping", "drain", drain)
	stopping, stop := stopContext(drain)
	defer stop()
	d.Stop(stopping)
	if r.end != nil {
		err = errors.Join(err, r.end(d))
	}
	return errors.Join(err, d.Close())
}

// needsRuntimeDir says whether a service listens in the runtime directory.
func (a *app) needsRuntimeDir(c daemon.Config) bool {
	return slices.ContainsFunc(c.Services, func(s daemon.Service) bool { return filepath.Dir(s.Listen.Path) == runtimeDir() })
}

// passedSockets are those of systemd.
func passedSockets() (all []service.Socket, err error) {
	passed, err := activation.Inherited()
	if err != nil {
		return nil, err
	}
	for _, p := range passed {
		s, err := service.SocketOf(p.File)
		if err != nil {
			return nil, fmt.Errorf("socket %s that was passed: %w", p.Name, err)
		}
		all = append(all, s)
	}
	return all, nil
}

// answer has the daemon explain what it relays to ft forward explain, until the
// function that it returns is called. To do without is no reason not to serve.
func (r *daemonRun) answer(ctx context.Context, d *daemon.Daemon, dirErr error) (stop func()) {
	err := dirErr
	if err == nil {
		var c *daemon.ControlSocket
		if c, err = d.ServeControl(ctx, runtimeDir(), r.name); err == nil {
			return func() { c.Close() }
		}
	}
	level := slog.LevelDebug
	if slices.ContainsFunc(r.config.Services, func(s daemon.Service) bool { return s.Kind == "forward" }) {
		level = slog.LevelWarn
	}
	r.log.Log(ctx, level, "nobody can ask what is relayed", "error", err)
	return func() {}
}

func (r *daemonRun) notify(state string) {
	if err := daemon.Notify(state); err != nil {
		r.log.Warn("systemd", "error", err)
	}
}

// stopContext bounds the patience with connections that are still busy at the
// end: by time, and by a second signal.
func stopContext(patience time.Duration) (context.Context, func()) {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	ctx, cancel := context.WithTimeout(ctx, patience)
	return ctx, func() {
		cancel()
		stop()
	}
}

// wait reads the configuration again at every hup, until ctx ends or a successor
// serves. Where there is none to read, hup is the end: the terminal was closed.
func (r *daemonRun) wait(ctx context.Context, d *daemon.Daemon, hup <-chan os.Signal) {
	for {
		select {
		case <-ctx.Done():
			r.notify(daemon.Stopping)
			return
		case <-d.HandedOver():
			r.log.Info("handed over to a successor; connections that it cannot take stay here until they end")
			d.Drain(ctx)
			return
		case <-hup:
		}
		if r.load == nil {
			r.notify(daemon.Stopping)
			return
		}
		r.notify(daemon.Reloading)
		r.reload(ctx, d)
		r.notify(daemon.Ready)
	}
}

func (r *daemonRun) reload(ctx context.Context, d *daemon.Daemon) {
	config, err := r.load()
	if err != nil {
		r.log.Error("configuration not reloaded, the old one stays in force", "error", err)
		return
	}
	if err := d.Reload(ctx, config); err != nil {
		r.log.Error("not everything of the new configuration works", "error", err)
		return
	}
	r.log.Info("configuration reloaded", "services", len(config.Services))
	if r.reloaded != nil {
		r.reloaded(config)
	}
}

func loadConfig(f serveFlags) (daemon.Config, error) {
	config := daemon.DefaultConfig(runtimeDir())
	if f.config != "" {
		var err error
		if config, err = daemon.LoadConfig(f.config); err != nil {
			return config, err
		}
	}
	return config, config.AddOptions(f.options)
}

func (a *app) printChecked(f serveFlags, config daemon.Config) error {
	rows := []checkedRow{}
	for _, s := range config.Services {
		rows = append(rows, checkedRow{s.Name, s.Kind, s.Listen.String()})
	}
	switch a.format {
	case formatTable, formatWide:
		var b strings.Builder
		fmt.Fprintf(&b, "%s: ok, %s\n", printable.Escape(cmp.Or(f.config, "built-in configuration")), plural(len(rows), "service"))
		for _, r := range rows {
			fmt.Fprintf(&b, "  %s: %s on %s\n", printable.Escape(r.Name), r.Kind, printable.Escape(r.Listen))
		}
		_, err := io.WriteString(a.out, b.String())
		return err
	case formatJSON:
		return writeJSON(a.out, checkedDocument{schema, true, rows}, "\n")
	}
	_, err := printRows(a, "", each(rows), checkedColumns)
	return err
}

// checkedRow is a service of a configuration that is right.
type checkedRow struct {
	Name   string `json:"name"`
	Kind   string `json:"kind"`
	Listen string `json:"listen"`
}

type checkedDocument struct {
	Schema   int          `json:"schema"`
	OK       bool         `json:"ok"`
	Services []checkedRow `json:"services"`
}

var checkedColumns = []column[checkedRow]{
	{head: "name", text: func(r checkedRow) string { return r.Name }},
	{head: "kind", text: func(r checkedRow) string { return r.Kind }},
	{head: "listen", text: func(r checkedRow) string { return r.Listen }},
}

func (a *app) logger(f serveFlags) *slog.Logger {
	o := &slog.HandlerOptions{Level: slog.LevelInfo}
	if f.verbose {
		o.Level = slog.LevelDebug
	}
	if f.logJSON {
		return slog.New(slog.NewJSONHandler(a.err, o))
	}
	return slog.New(slog.NewTextHandler(a.err, o))
}

// makeRuntimeDir makes the directory of the Unix socket, for this user alone.
// One that is already there must be this user's: in a shared directory such as
// /tmp another user may have made it.
func makeRuntimeDir(dir string) error {
	if err := os.MkdirAll(filepath.Dir(dir), 0o755); err != nil {
		return fmt.Errorf("runtime directory: %w", err)
	}
	if err := os.Mkdir(dir, 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
		return fmt.Errorf("runtime directory: %w", err)
	}
	info, err := os.Lstat(dir)
	if err != nil {
		return fmt.Errorf("runtime directory: %w", err)
	}
	if !info.IsDir() || !ownedByUs(info) {
		return fmt.Errorf("runtime directory: %s is not a directory of this user: remove it, or set RUNTIME_DIRECTORY", dir)
	}
	return nil
}

// report prints statistics, recent history and the state of the ports.
func (a *app) report(ctx context.Context, d *daemon.Daemon) error {
	const recent = 8
	entries, err := d.Recent(ctx, recent)
	if err != nil {
		return err
	}
	status, err := d.Leases().Status(ctx)
	if err != nil {
		return err
	}
	return a.printReport(d.Counters(), entries, status)
}

func (a *app) printReport(services []stats.ServiceCounters, entries []history.Entry, status lease.Status) error {
	if a.format == formatJSON || a.format == formatNDJSON {
		// Lists that are empty are [], not null.
		services, entries, counts := append([]stats.ServiceCounters{}, services...), append([]history.Entry{}, entries...), append([]lease.Count{}, status.Counts...)
		return writeJSON(a.out, struct {
			Schema   int                     `json:"schema"`
			Services []stats.ServiceCounters `json:"services"`
			Events   []history.Entry         `json:"events"`
			Counts   []lease.Count           `json:"counts"`
		}{schema, services, entries, counts}, "\n")
	}
	for i, part := range []struct {
		title string
		print func() (int, error)
	}{
		{"Statistics", func() (int, error) { return a.printStats(services) }},
		{"Recent history", func() (int, error) { return a.printHistory(each(entries)) }},
		{"Ports", func() (int, error) { return a.printPortStatus(status) }},
	} {
		if i > 0 {
			fmt.Fprintln(a.out)
		}
		if a.format != formatCSV {
			fmt.Fprintf(a.out, "%s\n%s\n", part.title, strings.Repeat("-", len(part.title)))
		}
		n, err := part.print()
		if err != nil {
			return err
		}
		if n == 0 && a.format != formatCSV {
			fmt.Fprintln(a.out, "none")
		}
	}
	return nil
}

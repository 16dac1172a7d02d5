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
	"strings"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"github.com/fivetuple/fivetuple/daemon"
	"github.com/fivetuple/fivetuple/history"
	"github.com/fivetuple/fivetuple/internal/printable"
	"github.com/fivetuple/fivetuple/port/lease"
	"github.com/fivetuple/fivetuple/sockopt"
	"github.com/fivetuple/fivetuple/stats"
)

type serveFlags struct {
	config  string
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
		return a.printChecked(f, config)
	}
	path, err := historyPath()
	if err != nil && config.History.Path == "" && !config.History.Off {
		return err
	}
	if f.config == "" {
		if err := makeRuntimeDir(runtimeDir()); err != nil {
			return err
		}
	}
	// A reader of the log that goes away must not take the services with it.
	signal.Ignore(syscall.SIGPIPE)
	// From before the start until after the stop, as the default of SIGHUP is death.
	hup := make(chan os.Signal, 1)
	signal.Notify(hup, syscall.SIGHUP)
	defer signal.Stop(hup)

	log := a.logger(f)
	o := daemon.Options{Log: log, HistoryPath: path}
	if !config.Leases.Off {
		ports, err := openPorts(ctx, func(err error) { log.Warn("ports", "error", err) })
		if err != nil {
			return fmt.Errorf("%w (leases: {off: true} in the configuration does without)", err)
		}
		defer ports.Close()
		o.Leases = ports
	}
	d, err := daemon.Start(ctx, config, o)
	if err != nil {
		return err
	}
	if f.config == "" {
		load = nil
	}
	reloadUntilDone(ctx, d, hup, load, log)

	drain := d.DrainTime()
	log.Info("stopping", "drain", drain)
	stopping, stop := stopContext(drain)
	defer stop()
	d.Stop(stopping)
	return errors.Join(a.report(context.Background(), d), d.Close())
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

// reloadUntilDone reads the configuration again at every hup, until ctx ends.
// Where there is none to read, hup is the end: the terminal was closed.
func reloadUntilDone(ctx context.Context, d *daemon.Daemon, hup <-chan os.Signal, load func() (daemon.Config, error), log *slog.Logger) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-hup:
		}
		if load == nil {
			return
		}
		config, err := load()
		if err != nil {
			log.Error("configuration not reloaded, the old one stays in force", "error", err)
			continue
		}
		if err := d.Reload(ctx, config); err != nil {
			log.Error("not everything of the new configuration works", "error", err)
			continue
		}
		log.Info("configuration reloaded", "services", len(config.Services))
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

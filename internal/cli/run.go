package cli

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"syscall"

	"github.com/spf13/cobra"

	"github.com/fivetuple/fivetuple"
	"github.com/fivetuple/fivetuple/activation"
	"github.com/fivetuple/fivetuple/internal/printable"
	"github.com/fivetuple/fivetuple/port/lease"
)

type runFlags struct {
	portFlags
	names     []string
	variables []string
}

func (a *app) portRun() *cobra.Command {
	var f runFlags
	c := &cobra.Command{
		Use:   "run [flags] [--] COMMAND [ARG...]",
		Short: "Run a program on ports that nobody can take from it",
		Long: `Leases ports, binds them, and runs a command in its own place that finds the
number in PORT; with several names in PORT_NAME for each. The sockets are handed
over: to a program that takes LISTEN_FDS as from systemd (sd_listen_fds(3)), and
to any other when it binds the port as always. So nobody can take the port in
between. The leases end with the command.

Signals and the exit code are the command's own. If it cannot be run, or if a
port cannot be had, the exit code is that of ft port lease.`,
		Example: `  ft port run -- npm start                        any free port, in PORT
  ft port run --name api --name db -- ./start.sh  PORT_API and PORT_DB
  ft port run --port 8080 -e HTTP_PORT -- ./server`,
		Args: minArgs(1),
		RunE: func(c *cobra.Command, args []string) error { return a.runOnPorts(c.Context(), f, args) },
	}
	c.Flags().SetInterspersed(false) // the command's flags are its own
	f.register(c)
	c.Flags().StringArrayVar(&f.names, "name", nil, "`name` that a port is for; give it several times for several ports")
	c.Flags().StringArrayVarP(&f.variables, "env", "e", nil, "`variable` to have the port in, instead of PORT; once for each name, in their order")
	c.RegisterFlagCompletionFunc("name", completeLeaseNames)
	return c
}

// runOnPorts returns only if it fails.
func (a *app) runOnPorts(ctx context.Context, f runFlags, args []string) error {
	ports, err := f.ports(a)
	if err != nil {
		return &codeError{exitUsage, err}
	}
	if _, err := exec.LookPath(args[0]); err != nil {
		return fmt.Errorf("run a command: %w", err)
	}
	leases, err := a.acquireAll(ctx, f, ports, args[0])
	if err != nil {
		return err
	}
	return a.execOnPorts(ctx, ports, leases, args) // if that fails the leases end with this process
}

// runPort is a port of the command.
type runPort struct {
	name     string
	variable string // of the environment
	request  lease.Request
	sockets  sockets
	number   uint16
}

// ports says which ports the command shall have.
func (f runFlags) ports(a *app) ([]runPort, error) {
	r, err := f.request(a)
	if err != nil {
		return nil, err
	}
	names := f.names
	if len(names) == 0 {
		names = []string{""}
	}
	switch {
	case r.Port != 0 && len(names) > 1:
		return nil, fmt.Errorf("--port is one port, but there are %d names: give --range for several", len(names))
	case len(f.variables) > 0 && len(f.variables) != len(names):
		return nil, fmt.Errorf("%s for %s: give -e once for each, or not at all", plural(len(f.variables), "variable"), plural(len(names), "port"))
	}
	var ports []runPort
	for i, name := range names {
		p := runPort{name: name, variable: "PORT", request: r, sockets: make(sockets)}
		p.request.Name = name
		if len(f.names) > 0 {
			if err := checkRunName(name); err != nil {
				return nil, err
			}
		}
		if len(names) > 1 {
			p.variable = "PORT_" + variableOf(name)
		}
		if len(f.variables) > 0 {
			p.variable = f.variables[i]
		}
		if err := checkVariable(p.variable); err != nil {
			return nil, err
		}
		if j := slices.IndexFunc(ports, func(other runPort) bool { return other.variable == p.variable }); j >= 0 {
			return nil, fmt.Errorf("the ports of %q and %q would both be in %s: name their variables by -e", ports[j].name, name, p.variable)
		}
		ports = append(ports, p)
	}
	return ports, nil
}

// checkRunName wants what can be in LISTEN_FDNAMES (sd_listen_fds(3)), which has
// colons between the names.
func checkRunName(name string) error {
	bad := func(r rune) bool { return r < ' ' || r > '~' || r == ':' }
	if name == "" || strings.ContainsFunc(name, bad) {
		return fmt.Errorf("--name %q: the command is told the name: want printable ASCII characters, no colon", name)
	}
	return nil
}

// variableOf makes a name one of an environment variable: MY_API of my-api.
func variableOf(name string) string {
	return strings.Map(func(r rune) rune {
		if isAlphanumeric(r) {
			return r
		}
		return '_'
	}, strings.ToUpper(name))
}

func checkVariable(name string) error {
	bad := func(r rune) bool { return r != '_' && !isAlphanumeric(r) }
	switch {
	case name == "" || strings.ContainsFunc(name, bad) || '0' <= name[0] && name[0] <= '9':
		return fmt.Errorf("%q is no name of an environment variable: want letters, digits and _, no digit first", name)
	case slices.Contains([]string{"LISTEN_FDS", "LISTEN_PID", "LISTEN_FDNAMES"}, name):
		return fmt.Errorf("%s is for the sockets of the command: choose another variable", name)
	}
	return nil
}

func isAlphanumeric(r rune) bool {
	return 'a' <= r && r <= 'z' || 'A' <= r && r <= 'Z' || '0' <= r && r <= '9'
}

// acquireAll grants all ports, or none, and opens their sockets. The owner is the
// command, which mostly takes over this process with its pid and start.
func (a *app) acquireAll(ctx context.Context, f runFlags, ports []runPort, command string) (leases []lease.Lease, err error) {
	self, err := commandOwner(os.Getpid(), command)
	if err != nil {
		return nil, err
	}
	registry, err := openPorts(ctx, a.warnOf)
	if err != nil {
		return nil, err
	}
	for i := range ports {
		p := &ports[i]
		p.request.Owner = self
		granted, err := f.acquire(ctx, registry, p.request, p.sockets.bind(openPort))
		if err != nil {
			return nil, errors.Join(err, release(registry, leases), registry.Close())
		}
		leases = append(leases, granted...)
		p.number = granted[0].Port
	}
	return leases, registry.Close()
}

// passLeases makes the command their owner if it is a process of its own.
func (a *app) passLeases(ctx context.Context, leases []lease.Lease, pid int, command string) error {
	if pid == os.Getpid() {
		signal.Reset(os.Interrupt, syscall.SIGTERM) // from here on they end this process as any other
	}
	if err := ctx.Err(); err != nil || pid == os.Getpid() {
		return err // whoever was told to end does not begin
	}
	to, err := commandOwner(pid, command)
	if err != nil {
		return err
	}
	registry, err := openPorts(ctx, a.warnOf)
	if err != nil {
		return err
	}
	for _, l := range leases {
		if _, err = registry.Transfer(ctx, l, to); err != nil {
			break
		}
	}
	return errors.Join(err, registry.Close())
}

// commandOwner describes a process that will execute the command. The kernel
// will call it by 15 bytes of the file's name at most (comm, proc(5)).
func commandOwner(pid int, command string) (lease.Owner, error) {
	o, err := lease.OwnerOf(pid)
	name := filepath.Base(command)
	o.Command = printable.Escape(name[:min(len(name), 15)])
	return o, err
}

func openPort(_ context.Context, protocol fivetuple.Network, at netip.AddrPort) (*os.File, error) {
	return activation.Open(protocol, at)
}

// execOnPorts puts the command in the place of this process.
func (a *app) execOnPorts(ctx context.Context, ports []runPort, leases []lease.Lease, args []string) error {
	ft, err := os.Executable()
	if err != nil {
		return err
	}
	env := os.Environ()
	var passed []activation.Socket
	for _, p := range ports {
		env = slices.DeleteFunc(env, func(entry string) bool { return strings.HasPrefix(entry, p.variable+"=") })
		env = append(env, fmt.Sprintf("%s=%d", p.variable, p.number))
		for _, protocol := range slices.Sorted(maps.Keys(p.sockets)) {
			passed = append(passed, activation.Socket{Name: p.name, File: p.sockets[protocol]})
		}
	}
	return activation.Exec(activation.Command{Path: args[0], Args: args[1:], Env: env}, passed, activation.Options{
		Supervisor: []string{ft, "port", "supervise"},
		Started:    func(pid int) error { return a.passLeases(ctx, leases, pid, args[0]) },
		Warn:       func(text string) { a.warn("%s", text) },
	})
}

// portSupervise is the command that stays beside one of `ft port run`.
func (a *app) portSupervise() *cobra.Command {
	return &cobra.Command{
		Use:    "supervise",
		Short:  "Give a command its sockets; ft port run starts this",
		Hidden: true,
		Args:   noArgs,
		RunE: func(*cobra.Command, []string) error {
			path, err := lease.DefaultPath()
			if err == nil {
				path, err = filepath.Abs(path) // Supervise leaves this directory
			}
			if err != nil {
				return err
			}
			return activation.Supervise(activation.SuperviseOptions{
				Ended: func() { collectPorts(path) },
				Log:   func(line string) { a.warn("%s", line) },
			})
		},
	}
}

// collectPorts writes down that the leases of the command have ended, and so when
// its ports were freed. They have ended also if that fails, and nobody is there
// to be told.
func collectPorts(path string) {
	ctx := context.Background()
	if ports, err := lease.Open(ctx, path, lease.Options{Warn: func(error) {}}); err == nil {
		ports.Collect(ctx)
		ports.Close()
	}
}

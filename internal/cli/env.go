package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/fivetuple/fivetuple/port/env"
	"github.com/fivetuple/fivetuple/port/lease"
)

type envFlags struct {
	ttl     string
	release bool
}

func (a *app) portEnv() *cobra.Command {
	var f envFlags
	c := &cobra.Command{
		Use:   "env [FILE]",
		Short: "Print the ports of a project, the same at every run",
		Long: `Prints the ports that a file asks for (default: ports.yaml), as KEY=PORT lines.
They are leased for 30 days from the last run, and so the same at every run on
this machine. A file is a list of names,

    ports: [api, db]

or says more of each, whatever is needed of

    ports:
      api: {port: 8080, range: 8000-8999, proto: both, addr: "*", env: API_PORT}

"range" can be given for all at the top, and "project", for files that share
their ports; without, each file has its own. The exit code is 1 if a port is
taken, 2 if the file is wrong.`,
		Example: `  ft port env > .env               PORT_API=50123, one line for each name
  set -a; eval "$(ft port env)"    have them in this shell
  ft port env --release            give the ports back`,
		Args: func(c *cobra.Command, args []string) error {
			if len(args) > 1 {
				return usage("%s takes one file, but here is %q: see `%s --help`", c.CommandPath(), args[1], c.CommandPath())
			}
			return nil
		},
		RunE: func(c *cobra.Command, args []string) error {
			return a.projectPorts(c.Context(), append(args, "ports.yaml")[0], f)
		},
	}
	c.Flags().StringVar(&f.ttl, "ttl", "", "how much `time` the leases have from now, such as 12h or 2d (default 30d)")
	c.Flags().BoolVar(&f.release, "release", false, "end the leases, and print what they were")
	return c
}

func (a *app) projectPorts(ctx context.Context, path string, f envFlags) error {
	project, err := env.Load(path)
	if unread := (*fs.PathError)(nil); errors.As(err, &unread) && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if err == nil && f.ttl != "" {
		if project.TTL, err = parseTTL(f.ttl); err == nil && project.TTL == 0 {
			err = errors.New("it must be some time, as no process ends these leases")
		}
		if err != nil {
			err = fmt.Errorf("--ttl: %w", err)
		}
	}
	if err != nil {
		return &codeError{exitUsage, err}
	}
	ports, err := openPorts(ctx, a.warnOf)
	if err != nil {
		return err
	}
	defer ports.Close()
	if f.release {
		ended, err := project.Release(ctx, ports)
		return errors.Join(err, a.printLeases(ended, nil))
	}
	variables, err := project.Lease(ctx, ports)
	if err != nil {
		return withLeaseCode(err)
	}
	return a.printVariables(variables)
}

// printVariables prints lines for files and shells, unless another format is asked for.
func (a *app) printVariables(variables []env.Variable) error {
	if a.format == formatTable {
		var b strings.Builder
		for _, v := range variables {
			fmt.Fprintf(&b, "%s=%d\n", v.Name, v.Port)
		}
		_, err := io.WriteString(a.out, b.String())
		return err
	}
	var rows []variableRow
	for _, v := range variables {
		rows = append(rows, variableRow{v.Name, v.Port, v.Leases})
	}
	_, err := printRows(a, "variables", each(rows), variableColumns)
	return err
}

// variableRow is a variable of the environment that has a port.
type variableRow struct {
	Variable string        `json:"variable"`
	Port     uint16        `json:"port"`
	Leases   []lease.Lease `json:"leases"` // one for each protocol
}

var variableColumns = []column[variableRow]{
	{head: "variable", text: func(r variableRow) string { return r.Variable }},
	{head: "port", right: true, text: func(r variableRow) string { return fmt.Sprint(r.Port) }},
	{head: "protocols", text: func(r variableRow) string { return r.protocols() }},
	{head: "address", text: func(r variableRow) string { return r.Leases[0].Address.String() }},
	{head: "name", text: func(r variableRow) string { return r.Leases[0].Name }},
	{
		head: "ends in", text: func(r variableRow) string { return remaining(r.Leases[0].Expires, time.Now()) },
		key: "expires", value: func(r variableRow) string { return rfc3339(r.Leases[0].Expires) },
	},
}

func (r variableRow) protocols() string {
	var names []string
	for _, l := range r.Leases {
		names = append(names, l.Protocol.String())
	}
	return strings.Join(names, " ")
}

// Package cli is the command line of ft: one file for each command, which
// parses flags, makes one call of the library, and prints.
//
// What every command does alike:
//
//   - Results go to standard output, everything else to standard error.
//   - -o table, wide, json, ndjson or csv; see output.go.
//   - Exit codes: 0 done, 1 the answer is no, 2 the command line or a
//     configuration is wrong, 3 it could not be done; see exit.go.
//   - Colour only on a terminal, never with NO_COLOR.
//   - Ctrl-C and SIGTERM end a command cleanly.
//   - An error says what failed, on which endpoint, why, and what to do next.
package cli

import (
	"cmp"
	"context"
	"io"
	"os"
	"os/signal"
	"syscall"

	"github.com/spf13/cobra"
)

// app is what the commands share.
type app struct {
	in     io.Reader
	out    io.Writer
	err    io.Writer
	format string // of -o

	helpErr error // of printing help, which cobra does not hand on
}

// Main runs the command line and returns the exit code.
func Main(args []string, in io.Reader, out, err io.Writer) int {
	a := &app{in: in, out: out, err: err}
	root := a.root()
	root.SetArgs(args)
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	return a.exit(cmp.Or(root.ExecuteContext(ctx), a.helpErr))
}

func (a *app) root() *cobra.Command {
	var version bool
	root := &cobra.Command{
		Use:   "ft",
		Short: "Everything a port and a socket can do",
		Long: `ft opens sockets, sees them, scans them, and keeps their history. Without a
command it lists what listens, as ft ls does.`,
		Example: `  ft              what listens here, and which processes hold it
  ft who 8080     all about one port
  ft top          every socket live`,
		Args: noArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			if version {
				return a.printVersion()
			}
			return a.runLs(c.Context(), nil, lsFlags{})
		},
		SilenceErrors:     true,
		SilenceUsage:      true,
		DisableAutoGenTag: true,
	}
	root.SetIn(a.in)
	root.SetOut(a.out)
	root.SetErr(a.err)
	root.SetFlagErrorFunc(flagError)
	root.SetHelpFunc(func(c *cobra.Command, _ []string) { a.helpErr = writeHelp(c.OutOrStdout(), c) })
	root.SetUsageFunc(func(c *cobra.Command) error { return writeHelp(c.OutOrStderr(), c) })
	root.SetHelpCommand(helpCommand())
	root.Flags().BoolVar(&version, "version", false, "print the version, as ft version does")
	root.PersistentFlags().StringVarP(&a.format, "output", "o", formatTable, "`format` of the results: table, wide, json, ndjson or csv")
	root.PersistentPreRunE = func(*cobra.Command, []string) error { return checkFormat(a.format) }
	root.AddCommand(
		a.ls(), a.who(), a.top(), a.kill(), a.inspect(), a.listen(), a.connect(), a.forward(), a.serve(), a.demo(), a.scan(), a.port(), a.history(), a.stats(), a.opts(), a.doctor(), a.events(), a.snapshot(), a.diff(), a.version(), completion(),
	)
	return root
}

package cli

import (
	"errors"
	"os/signal"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"github.com/fivetuple/fivetuple/internal/demo"
	"github.com/fivetuple/fivetuple/sockopt"
)

func (a *app) demo() *cobra.Command {
	var options sockopt.Settings
	c := &cobra.Command{
		Use:   "demo",
		Short: "Play the network application, next to the kernel's own view",
		Long: `demo starts the application of ` + "`ft serve`" + ` on free ports of 127.0.0.1 and plays it:
listen, connect, echo, more clients, broadcast, UDP, scan, reconnect, shutdown.
After each step it prints the sockets that the kernel has, and checks that they
are what the step claims; if not, the exit code is 3. It leaves nothing behind.`,
		Example: `  ft demo
  ft demo > demo.txt     without pauses and colours`,
		Args: noArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			if a.format != formatTable {
				return usage("ft demo is for people: it has no -o %s", a.format)
			}
			signal.Ignore(syscall.SIGPIPE) // so that it can clean up when its reader goes
			o := demo.Options{Color: useColor(a.out), Socket: options}
			if isTerminal(a.out) {
				o.Pause = 400 * time.Millisecond
			}
			err := demo.Run(c.Context(), a.out, o)
			if errors.Is(err, errors.ErrUnsupported) {
				return errors.Join(err, errors.New("the demo shows the kernel's view through sock_diag(7): run it on Linux"))
			}
			return err
		},
	}
	optFlag(c, &options)
	return c
}

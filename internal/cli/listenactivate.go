package cli

import (
	"context"
	"fmt"
	"os"
	"os/exec"

	"github.com/fivetuple/fivetuple/activation"
	"github.com/fivetuple/fivetuple/service"
)

// activate waits for the first client of any socket, then becomes the command.
func (a *app) activate(ctx context.Context, p listenPlan) error {
	if _, err := exec.LookPath(p.config.Command[0]); err != nil {
		return fmt.Errorf("run a command: %w", err)
	}
	p.config.Kind = ""
	sockets, err := service.Open(ctx, p.config)
	if err != nil {
		return err
	}
	for _, s := range sockets {
		a.note("listening on %s: activate %s", s.Endpoint, p.config.Command[0])
	}
	if err := firstReadable(ctx, sockets); err != nil {
		return err
	}
	var passed []activation.Socket
	for _, s := range sockets {
		passed = append(passed, activation.Socket{Name: "listen", File: s.File})
	}
	c := activation.Command{Path: p.config.Command[0], Args: p.config.Command[1:], Env: os.Environ()}
	return activation.Pass(c, passed)
}

//go:build !linux

package activation

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"runtime"

	"github.com/fivetuple/fivetuple"
)

func unsupported(what string) error {
	return fmt.Errorf("%s: needs Linux, not %s: %w", what, runtime.GOOS, errors.ErrUnsupported)
}

func open(protocol fivetuple.Network, at netip.AddrPort) (*os.File, error) {
	return nil, unsupported(fmt.Sprintf("bind %s %s for a command", protocol, at))
}

func run(cmd Command, _ []Socket, _ Options) error {
	return unsupported("run " + cmd.Path + " on sockets bound for it")
}

func pass(cmd Command, _ []Socket) error { return unsupported("run " + cmd.Path + " with open files") }

func supervise(SuperviseOptions) error { return unsupported("supervise a command") }

func inherited() ([]Socket, error) { return nil, unsupported("take the sockets passed on") }

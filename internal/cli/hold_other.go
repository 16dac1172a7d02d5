//go:build !linux

package cli

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"

	"github.com/fivetuple/fivetuple"
)

func holdPort(context.Context, fivetuple.Network, netip.AddrPort) (*os.File, error) {
	return nil, fmt.Errorf("hold a port: %w on this system", errors.ErrUnsupported)
}

func (a *app) leaveOutput() error { return nil }

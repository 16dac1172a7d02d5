//go:build !linux

package inspect

import (
	"errors"
	"fmt"
	"runtime"

	"github.com/fivetuple/fivetuple"
	"github.com/fivetuple/fivetuple/table"
)

func withDescriptor(table.Row, func(fd int) error) error {
	return fmt.Errorf("open the socket of a process: needs Linux's pidfd_getfd, not there on %s: %w", runtime.GOOS, errors.ErrUnsupported)
}

func options(int) ([]Option, error) { return nil, errors.ErrUnsupported }

func queues(int, fivetuple.Network, fivetuple.State) *Queues { return nil }

func readNetstat() (string, error) { return "", errors.ErrUnsupported }

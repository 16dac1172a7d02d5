//go:build !linux

package table

import (
	"errors"
	"fmt"
	"runtime"

	"github.com/fivetuple/fivetuple/owner"
)

func shutDown(*Row, owner.Holder) error {
	return fmt.Errorf("shut down another process's socket: not there on %s: %w", runtime.GOOS, errors.ErrUnsupported)
}

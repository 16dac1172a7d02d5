//go:build !linux

package doctor

import (
	"context"
	"errors"
	"fmt"
)

func examine(context.Context, Options) ([]Finding, error) {
	return nil, fmt.Errorf("examine the limits of this machine: %w on this system", errors.ErrUnsupported)
}

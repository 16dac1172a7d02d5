//go:build !linux

package dnat

import (
	"context"
	"errors"
	"fmt"
	"runtime"
)

func find(context.Context, []Port) ([]Rule, error) {
	return nil, fmt.Errorf("read the packet filter's rules: not known how on %s: %w", runtime.GOOS, errors.ErrUnsupported)
}

func legacy() bool { return false }

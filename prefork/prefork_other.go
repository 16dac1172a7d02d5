//go:build !linux

package prefork

import (
	"context"
	"errors"
	"fmt"
	"os"
	"runtime"
)

func (g *Group) run(context.Context) error { return fmt.Errorf("run workers: %w", unsupported()) }

func inherited() (int, []*os.File, *Counters, error) {
	return 0, nil, nil, fmt.Errorf("%w: %w", ErrNotWorker, unsupported())
}

func unsupported() error {
	return fmt.Errorf("worker processes on one port need Linux, not %s: %w", runtime.GOOS, errors.ErrUnsupported)
}

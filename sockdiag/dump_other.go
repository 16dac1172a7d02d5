//go:build !linux

package sockdiag

import (
	"context"
	"errors"
	"fmt"
	"runtime"
)

func dump(_ context.Context, q Query, _ func(*Socket) bool) error {
	if _, err := q.wants(); err != nil {
		return err
	}
	return fmt.Errorf("list sockets: needs Linux's sock_diag, not there on %s: %w", runtime.GOOS, errors.ErrUnsupported)
}

//go:build !linux

package vsock

import (
	"context"
	"errors"
	"fmt"
	"net"
	"runtime"
)

func unsupported() error {
	return fmt.Errorf("vsock: only on Linux, not on %s: %w", runtime.GOOS, errors.ErrUnsupported)
}

// Listen needs Linux.
func (Config) Listen(cid, port uint32) (net.Listener, error) { return nil, unsupported() }

// Dial needs Linux.
func (Config) Dial(ctx context.Context, cid, port uint32) (net.Conn, error) {
	return nil, unsupported()
}

//go:build !linux

package sockdiag

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"runtime"
)

func dump(_ context.Context, q Query, _ func(*Socket) bool) error {
	if _, err := q.kinds(); err != nil {
		return err
	}
	return unsupported("list sockets")
}

func get(_ context.Context, s Socket, _ Details) (Socket, error) {
	return Socket{}, unsupported("read socket " + s.Tuple().String())
}

func destroy(_ context.Context, s Socket) error {
	return unsupported("close socket " + s.Tuple().String())
}

func destroyed(context.Context) (iter.Seq2[Socket, error], error) {
	return nil, unsupported("watch sockets close")
}

func unsupported(what string) error {
	return fmt.Errorf("%s: needs Linux's sock_diag, not there on %s: %w", what, runtime.GOOS, errors.ErrUnsupported)
}

//go:build !linux

package stream

import (
	"errors"
	"fmt"
)

func newExec(string, []string, ExecOptions) (Handler, error) {
	return nil, fmt.Errorf("exec: %w: it needs Linux", errors.ErrUnsupported)
}

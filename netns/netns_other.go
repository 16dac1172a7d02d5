//go:build !linux

package netns

import (
	"errors"
	"fmt"
	"runtime"
)

func all() ([]Namespace, error)         { return nil, unsupported("list network namespaces") }
func current() (Namespace, error)       { return Namespace{}, unsupported("tell the network namespace") }
func (Namespace) do(func() error) error { return unsupported("enter a network namespace") }

func unsupported(what string) error {
	return fmt.Errorf("%s: they are Linux's, not there on %s: %w", what, runtime.GOOS, errors.ErrUnsupported)
}

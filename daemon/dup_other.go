//go:build !unix

package daemon

import "errors"

func dup(int) (int, error) { return -1, errors.ErrUnsupported }

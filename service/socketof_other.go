//go:build !linux

package service

import (
	"errors"
	"fmt"
	"os"
)

// SocketOf needs Linux.
func SocketOf(*os.File) (Socket, error) {
	return Socket{}, fmt.Errorf("find out what socket was passed: %w", errors.ErrUnsupported)
}

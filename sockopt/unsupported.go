//go:build !linux

package sockopt

import (
	"errors"
	"fmt"
	"runtime"
)

func unsupported(what string) error {
	return fmt.Errorf("%s: only on Linux, not on %s: %w", what, runtime.GOOS, errors.ErrUnsupported)
}

// Apply needs Linux.
func Apply(fd int, settings ...Setting) ([]Granted, error) {
	if len(settings) == 0 {
		return nil, nil
	}
	return nil, unsupported("set " + settings[0].Option().Name)
}

// Get needs Linux.
func Get(fd int, name string) (Setting, error) { return Setting{}, unsupported("get " + name) }

// GetAll needs Linux.
func GetAll(fd int) ([]Setting, error) { return nil, unsupported("get socket options") }

// Identify needs Linux.
func Identify(fd int) (Sockets, error) { return 0, unsupported("identify socket") }

// Default needs Linux.
func Default(name string) (Setting, error) { return Setting{}, unsupported("default of " + name) }

// GetTCPInfo needs Linux.
func GetTCPInfo(fd int) (TCPInfo, error) { return TCPInfo{}, unsupported("get TCP_INFO") }

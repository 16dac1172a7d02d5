//go:build !windows

package lease

import (
	"errors"
	"syscall"
)

func isInUse(err error) bool { return errors.Is(err, syscall.EADDRINUSE) }

// isDenied also knows the error of a BPF program or seccomp filter that refuses a bind.
func isDenied(err error) bool {
	return errors.Is(err, syscall.EACCES) || errors.Is(err, syscall.EPERM)
}

func isNoAddress(err error) bool { return errors.Is(err, syscall.EADDRNOTAVAIL) }

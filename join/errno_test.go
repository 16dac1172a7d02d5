package join

import "syscall"

const (
	errReset   = syscall.ECONNRESET
	errPipe    = syscall.EPIPE
	errRefused = syscall.ECONNREFUSED
)

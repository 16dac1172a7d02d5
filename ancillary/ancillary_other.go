//go:build !linux

package ancillary

import (
	"errors"
	"fmt"
	"net"
	"os"
	"runtime"
	"syscall"
)

func unsupported(what string) error {
	return fmt.Errorf("%s is read and sent the way of Linux alone, not there on %s: %w", what, runtime.GOOS, errors.ErrUnsupported)
}

func peerCredentials(syscall.Conn) (Credentials, error) {
	return Credentials{}, unsupported("SO_PEERCRED")
}

func sendFiles(*net.UnixConn, []byte, []*os.File) error { return unsupported("SCM_RIGHTS") }

func receiveFiles(*net.UnixConn, []byte) (int, []*os.File, error) {
	return 0, nil, unsupported("SCM_RIGHTS")
}

func describe(*os.File) (string, error) { return "", unsupported("/proc/self/fd") }

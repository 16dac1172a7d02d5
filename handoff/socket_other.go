//go:build !linux

package handoff

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"runtime"

	"github.com/fivetuple/fivetuple/internal/unixfile"
)

func unsupported() error {
	return fmt.Errorf("a handoff needs Linux, not %s: %w", runtime.GOOS, errors.ErrUnsupported)
}

func bind(string) (*net.UnixListener, *unixfile.File, error) { return nil, nil, unsupported() }

func connect(context.Context, string) (*net.UnixConn, error) { return nil, unsupported() }

func trySend(*net.UnixConn, []byte) {}

func listenAgain(*os.File) (*net.UnixListener, error) { return nil, unsupported() }

func newToken() (*os.File, error) { return nil, unsupported() }

func takeToken(*os.File) (bool, error) { return false, unsupported() }

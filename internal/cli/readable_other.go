//go:build !linux

package cli

import (
	"context"
	"errors"
	"fmt"

	"github.com/fivetuple/fivetuple/service"
)

func firstReadable(context.Context, []service.Socket) error {
	return fmt.Errorf("wait for the first client: %w", errors.ErrUnsupported)
}

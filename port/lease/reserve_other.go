//go:build !linux

package lease

import (
	"errors"
	"fmt"
)

func (t *txn) isToBeReserved(uint16) (bool, error) {
	return false, fmt.Errorf("reserve ports: %w", errors.ErrUnsupported)
}

func (t *txn) reserve(Lease) error { return nil }

func (t *txn) unreserve() error { return nil }

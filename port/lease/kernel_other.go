//go:build !linux

package lease

import (
	"errors"
	"fmt"

	"github.com/fivetuple/fivetuple"
)

func denialAdvice(uint16) string {
	return "the system reserves it for privileged processes, or for one of its services"
}

func reservedPorts() (*portSet, error) { return new(portSet), nil }

func ephemeralPorts() (fivetuple.PortRange, error) { return fivetuple.PortRange{}, nil }

func ownerOf(pid int) (Owner, error) {
	return Owner{}, fmt.Errorf("look up process %d: %w", pid, errors.ErrUnsupported)
}

//go:build !linux

package lease

import "github.com/fivetuple/fivetuple"

func denialAdvice(uint16) string {
	return "the system reserves it for privileged processes, or for one of its services"
}

func reservedPorts() (*portSet, error) { return new(portSet), nil }

func ephemeralPorts() (fivetuple.PortRange, error) { return fivetuple.PortRange{}, nil }

func unprivilegedPortStart() (int, error) { return 1024, nil }

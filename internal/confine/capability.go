package confine

import (
	"fmt"
	"strings"
)

// A capability is a bit, by its number in linux/capability.h.
type capability uint64

const (
	setGID         capability = 1 << 6
	setUID         capability = 1 << 7
	setPCap        capability = 1 << 8
	netBindService capability = 1 << 10
	netAdmin       capability = 1 << 12
	netRaw         capability = 1 << 13
)

// keepable are the capabilities that do not lead to others.
var keepable = []struct {
	bit  capability
	name string
}{{netBindService, "net_bind_service"}, {netAdmin, "net_admin"}, {netRaw, "net_raw"}}

func parseCapabilities(names []string) (capability, error) {
	var all capability
	for _, name := range names {
		bit := capabilityOf(strings.TrimPrefix(strings.ToLower(name), "cap_"))
		if bit == 0 {
			return 0, fmt.Errorf("capability %q cannot be kept: only net_bind_service, net_admin and net_raw can", name)
		}
		all |= bit
	}
	return all, nil
}

func capabilityOf(name string) capability {
	for _, k := range keepable {
		if k.name == name {
			return k.bit
		}
	}
	return 0
}

// String is "CAP_NET_ADMIN, CAP_NET_RAW", of capabilities that can be kept.
func (c capability) String() string {
	var names []string
	for _, k := range keepable {
		if c&k.bit != 0 {
			names = append(names, "CAP_"+strings.ToUpper(k.name))
		}
	}
	return strings.Join(names, ", ")
}

package lease

import (
	"context"
	"errors"

	"github.com/fivetuple/fivetuple"
	"github.com/fivetuple/fivetuple/port"
	"github.com/fivetuple/fivetuple/sockdiag"
)

// Status counts ports, for TCP and UDP each of the three classes.
type Status struct {
	Counts []Count `json:"counts"`
	// Sockets says whether InUse counts the sockets of the whole network
	// namespace. Where the kernel does not list them it counts leases only.
	Sockets bool `json:"sockets"`
}

// Count is the ports of one protocol and class. A port that is used on one
// address is counted as used.
type Count struct {
	Protocol fivetuple.Network `json:"protocol"`
	Class    string            `json:"class"`  // of [port.Class]: "system", "user" or "dynamic"
	Ports    int               `json:"ports"`  // there are, without port 0
	Leased   int               `json:"leased"` // by this registry
	InUse    int               `json:"in_use"` // leased, or the local port of a socket that is not in TIME_WAIT
	Left     int               `json:"left"`   // not in use
}

func statusOf(ctx context.Context, leases []Lease) (Status, error) {
	leased := map[fivetuple.Network]*portSet{fivetuple.TCP: {}, fivetuple.UDP: {}}
	for _, l := range leases {
		leased[l.Protocol.Protocol()].add(l.Port)
	}
	used := map[fivetuple.Network]*portSet{}
	for protocol, set := range leased {
		copied := *set
		used[protocol] = &copied
	}
	status := Status{Sockets: true}
	err := addSockets(ctx, used)
	if errors.Is(err, errors.ErrUnsupported) {
		status.Sockets = false
	} else if err != nil {
		return Status{}, err
	}
	for _, protocol := range []fivetuple.Network{fivetuple.TCP, fivetuple.UDP} {
		for _, class := range port.Classes() {
			status.Counts = append(status.Counts, count(protocol, class, leased[protocol], used[protocol]))
		}
	}
	return status, nil
}

// addSockets adds the ports of the kernel's sockets.
func addSockets(ctx context.Context, used map[fivetuple.Network]*portSet) error {
	sockets, err := sockdiag.List(ctx, sockdiag.Query{
		Protocols: []fivetuple.Network{fivetuple.TCP, fivetuple.UDP},
		States:    ^sockdiag.StatesOf(fivetuple.StateTimeWait),
	})
	for _, s := range sockets {
		used[s.Protocol].add(s.Local.Port())
	}
	return err
}

func count(protocol fivetuple.Network, class port.Class, leased, used *portSet) Count {
	c := Count{Protocol: protocol, Class: class.String()}
	first, last := class.Range()
	for p := int(max(first, 1)); p <= int(last); p++ {
		c.Ports++
		if leased.has(uint16(p)) {
			c.Leased++
		}
		if used.has(uint16(p)) {
			c.InUse++
		}
	}
	c.Left = c.Ports - c.InUse
	return c
}

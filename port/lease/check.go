package lease

import (
	"context"
	"errors"
	"net/netip"

	"github.com/fivetuple/fivetuple"
)

// Availability is what the kernel says of a port. Whether it is leased is for
// a registry to say, with [Lease.Covers].
type Availability struct {
	Protocol fivetuple.Network `json:"protocol"`
	Address  netip.Addr        `json:"address"`
	Port     uint16            `json:"port"`
	// Free: binding it succeeded just now.
	Free bool `json:"free"`
	// Permitted: binding was not refused for lack of a privilege. The kernel
	// looks at that before it looks who has the port.
	Permitted bool `json:"permitted"`
	// Reserved: ip_local_reserved_ports lists it. Neither the kernel nor a
	// registry hands it out unless asked for it by number.
	Reserved bool `json:"reserved"`
	// Ephemeral: the kernel may take it as the source port of an outgoing
	// connection while nobody has it bound (ip_local_port_range).
	Ephemeral bool `json:"ephemeral"`
	// Err is why the port is not free, as [Registry.Acquire] would return it.
	Err error `json:"-"`
}

// Check finds out whether this process could bind a port now, by binding it.
// Protocol and address are those of a [Request]: zero is TCP, and loopback.
func Check(ctx context.Context, protocol fivetuple.Network, addr netip.Addr, port uint16) Availability {
	r, err := Request{Protocol: protocol, Address: addr, Port: port}.normal(Owner{})
	a := Availability{Protocol: r.Protocol, Address: r.Address, Port: port}
	if err == nil && port == 0 {
		err = invalid("port 0 cannot be bound: it stands for any port")
	}
	if err == nil {
		err = ctx.Err()
	}
	if err != nil {
		a.Err = err
		return a
	}
	reserved, errReserved := reservedPorts()
	ephemeral, errEphemeral := ephemeralPorts()
	if err := errors.Join(errReserved, errEphemeral); err != nil {
		a.Err = err
		return a
	}
	a.Reserved = reserved.has(port)
	a.Ephemeral = !a.Reserved && ephemeral.Contains(port)
	a.Err = r.bind(ctx, port)
	a.Free = a.Err == nil
	a.Permitted = !errors.Is(a.Err, ErrNotPermitted)
	return a
}

// IsEphemeral says whether the kernel may give the port to an outgoing
// connection while nobody has it bound: ip_local_port_range has it, and
// ip_local_reserved_ports has not.
func IsEphemeral(port uint16) (bool, error) {
	reserved, err := reservedPorts()
	if err != nil {
		return false, err
	}
	ephemeral, err := ephemeralPorts()
	return ephemeral.Contains(port) && !reserved.has(port), err
}

// EphemeralRange returns the ports that the kernel gives to outgoing connections
// (ip_local_port_range, ip(7)), the reserved ones among them. Elsewhere than on
// Linux it is empty.
func EphemeralRange() (fivetuple.PortRange, error) { return ephemeralPorts() }

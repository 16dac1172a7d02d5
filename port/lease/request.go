package lease

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"strconv"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/fivetuple/fivetuple"
	"github.com/fivetuple/fivetuple/port"
)

// What a lease has room for, in bytes.
const (
	MaxName    = 64
	MaxPurpose = 128
)

// Request asks for a port. The zero value asks for the next free dynamic TCP
// port on 127.0.0.1, for this process, until it is released.
type Request struct {
	// Protocol is TCP (the default), UDP or one of these narrowed to an address
	// family. TLS is TCP. TCP and UDP ports of one number are different ports.
	Protocol fivetuple.Network
	// Address that will be bound; zero is loopback, 127.0.0.1, or ::1 for TCP6
	// and UDP6. 0.0.0.0 stands for all IPv4 addresses; :: for all, or for all
	// of the family that Protocol names. IPv4 mapped into IPv6 is IPv4.
	Address netip.Addr
	// Port wanted, 0 for the next free one in Range. That is the port which was
	// granted under the same Name last, if it is free. Ports of
	// ip_local_reserved_ports are granted only if asked for by number.
	Port uint16
	// Range that the port must be in. The zero value is 49152-65535 for a free
	// port, and every port for one asked for by number. Port 0 is in no range.
	Range fivetuple.PortRange
	// Name and Purpose are for people. They are printable text of one line, of
	// up to 64 and 128 bytes, and may be empty.
	Name, Purpose string
	// Owner is who the port is for, by default this process. The lease ends with it.
	Owner Owner
	// Detached makes the lease nobody's: it outlives every process, and ends by
	// release or after its TTL, which it must have.
	Detached bool
	// TTL is when the lease ends by itself, counted from now; 0 never.
	TTL time.Duration
	// Reserve keeps the kernel from giving the port to outgoing connections
	// while it is leased and not bound, by listing it in the sysctl
	// net.ipv4.ip_local_reserved_ports. That needs CAP_NET_ADMIN in the user
	// namespace of the network namespace, and a [Shared] registry.
	Reserve bool
	// ReusePort lets leases of the same user share a Port asked for by number,
	// if all set it, for sockets with SO_REUSEPORT (socket(7)). A UDP socket
	// takes its share of the datagrams as soon as it is bound: where others
	// receive on the port already, set Bind, so that none is lost.
	ReusePort bool
	// Bind, if set, binds the caller's own socket, which then holds the port
	// from before it is granted; by default a socket is bound and closed again.
	// Each candidate is tried with it until one succeeds; an error that wraps
	// EADDRINUSE, EACCES or EPERM leads on to the next. If Acquire fails after
	// all, what Bind opened is still open. It must not call the registry.
	Bind func(ctx context.Context, at netip.AddrPort) error

	alone bool // Port was chosen and not asked for: it is not shared
}

// dynamic is where free ports come from: never assigned by IANA (RFC 6335 section 6).
func dynamic() fivetuple.PortRange {
	first, last := port.ClassDynamic.Range()
	return fivetuple.PortRange{First: first, Last: last}
}

// normal fills in the defaults and brings protocol and address into the one
// form that leases have. The error wraps ErrInvalid.
func (r Request) normal(self Owner) (Request, error) {
	if err := r.normalAddress(); err != nil {
		return r, err
	}
	if err := r.normalRange(); err != nil {
		return r, err
	}
	switch {
	case r.Owner == Owner{}:
		r.Owner = self
	case r.Owner.PID <= 0 && !r.Detached:
		return r, invalid("the owner's pid is %d, which is no process's", r.Owner.PID)
	}
	if r.Detached {
		r.Owner = Owner{User: r.Owner.User}
	}
	var err error
	if r.Owner, err = r.Owner.complete(); err != nil {
		return r, err
	}
	if err := checkTTL(r.TTL, r.Detached); err != nil {
		return r, err
	}
	for _, text := range []struct {
		what, is string
		limit    int
	}{
		{"name", r.Name, MaxName}, {"purpose", r.Purpose, MaxPurpose},
	} {
		if err := checkText(text.what, text.is, text.limit); err != nil {
			return r, err
		}
	}
	return r, nil
}

func (r *Request) normalAddress() error {
	if r.Protocol == fivetuple.NetworkNone {
		r.Protocol = fivetuple.TCP
	}
	if !r.Protocol.IsIP() {
		return invalid("%s sockets have no port", r.Protocol)
	}
	only4 := r.Protocol == fivetuple.TCP4 || r.Protocol == fivetuple.UDP4
	only6 := r.Protocol == fivetuple.TCP6 || r.Protocol == fivetuple.UDP6
	addr := r.Address.Unmap()
	switch {
	case !addr.IsValid() && only6:
		addr = netip.IPv6Loopback()
	case !addr.IsValid():
		addr = netip.AddrFrom4([4]byte{127, 0, 0, 1})
	case only4 && addr == netip.IPv6Unspecified():
		addr = netip.IPv4Unspecified()
	case only4 && addr.Is6(), only6 && addr.Is4():
		return invalid("%s is not an address for %s", addr, r.Protocol)
	case addr.Zone() != "" && !addr.IsLinkLocalUnicast() && !addr.IsMulticast():
		return invalid("%s has a zone, which only link-local addresses do", addr)
	}
	r.Address = addr.WithZone(zoneName(addr.Zone()))
	if !only6 || addr != netip.IPv6Unspecified() {
		r.Protocol = r.Protocol.Protocol()
	}
	return nil
}

// zoneName gives a zone its one name: that of the interface, if it has a number.
func zoneName(zone string) string {
	if index, err := strconv.Atoi(zone); err == nil {
		if device, err := net.InterfaceByIndex(index); err == nil {
			return device.Name
		}
	}
	return zone
}

func (r *Request) normalRange() error {
	given := r.Range
	if given.First > given.Last {
		return invalid("the port range %d-%d runs backwards", given.First, given.Last)
	}
	switch {
	case r.Port == 0 && given == (fivetuple.PortRange{}):
		r.Range = dynamic()
	case r.Port == 0:
		r.Range.First = max(given.First, 1)
	case given != (fivetuple.PortRange{}) && (r.Port < given.First || r.Port > given.Last):
		return invalid("port %d is not in the range %s", r.Port, given)
	default:
		r.Range = fivetuple.PortRange{First: r.Port, Last: r.Port}
	}
	return nil
}

// maxTTL keeps points in time within what nanoseconds since 1970 can say.
const maxTTL = 100 * 366 * 24 * time.Hour

func checkTTL(ttl time.Duration, detached bool) error {
	switch {
	case ttl < 0:
		return invalid("the time to live %v is negative", ttl)
	case ttl > maxTTL:
		return invalid("the time to live %v is over 100 years: 0 is for ever", ttl)
	case detached && ttl == 0:
		return invalid("a lease that is nobody's needs a time to live")
	}
	return nil
}

func checkText(what, s string, limit int) error {
	if len(s) > limit {
		return invalid("the %s is %d bytes long; the limit is %d", what, len(s), limit)
	}
	if !utf8.ValidString(s) {
		return invalid("the %s %q is not UTF-8 text", what, s)
	}
	for _, c := range s {
		if !unicode.IsPrint(c) {
			return invalid("the %s %q contains %q, which does not print", what, s, c)
		}
	}
	return nil
}

func invalid(format string, args ...any) error {
	return fmt.Errorf("%w: "+format, append([]any{ErrInvalid}, args...)...)
}

// shares says whether the request is content with a port that others use: one
// that is chosen for it should be its own.
func (r Request) shares() bool { return r.ReusePort && r.Port != 0 && !r.alone }

// isGroup says whether the address is one that many sockets receive on.
func (r Request) isGroup() bool { return r.Protocol.IsDatagram() && r.Address.IsMulticast() }

// bind asks the kernel for one port, with the caller's socket or one that is
// closed again.
func (r Request) bind(ctx context.Context, port uint16) error {
	at := netip.AddrPortFrom(r.Address, port)
	if r.Bind != nil {
		return explain(r.Protocol, at, r.Bind(ctx, at))
	}
	return explain(r.Protocol, at, probe(ctx, r, at))
}

// lease is what the request becomes when it is granted.
func (r Request) lease(port uint16, now time.Time, fence uint64) Lease {
	l := Lease{
		Protocol: r.Protocol, Address: r.Address, Port: port,
		Name: r.Name, Purpose: r.Purpose, Owner: r.Owner,
		ReusePort: r.ReusePort, Granted: now, Fence: fence,
	}
	if r.TTL > 0 {
		l.Expires = now.Add(r.TTL)
	}
	return l
}

// Package fivetuple is the vocabulary of the whole program: a socket is its
// five-tuple (protocol, local address and port, remote address and port), and
// every part names sockets the same way.
//
// [Endpoint] is what a person writes to open or find a socket, [Tuple] names
// one that exists, [State] says what the kernel is doing with it. The package
// opens nothing and imports nothing of the project; it works on every system.
package fivetuple

import (
	"fmt"
	"net"
	"net/netip"
	"strings"
)

// Address is one end of a socket. It is comparable and can be a map key.
// The zero value is an end that is not there: the remote end of a listener.
type Address struct {
	AddrPort netip.AddrPort // of an IP socket
	Name     string         // a Unix path, "@name" in the abstract name space, or "CID:PORT" of a vsock
}

// AddressOf converts an address of the net package. IPv4 addresses mapped into
// IPv6 become plain IPv4. An address of an unknown type is kept by its text.
func AddressOf(a net.Addr) Address {
	switch a := a.(type) {
	case nil:
		return Address{}
	case *net.TCPAddr:
		return IPAddress(a.AddrPort())
	case *net.UDPAddr:
		return IPAddress(a.AddrPort())
	case *net.UnixAddr:
		if a == nil || a.Name == "@" { // an unnamed peer, as Go's net package shows it
			return Address{}
		}
		return Address{Name: a.Name}
	}
	return Address{Name: a.String()}
}

// IPAddress makes an Address of an IP address and port, unmapping IPv4.
func IPAddress(ap netip.AddrPort) Address {
	return Address{AddrPort: netip.AddrPortFrom(ap.Addr().Unmap(), ap.Port())}
}

// ParseAddress is the inverse of [Address.String], but for a Unix path that
// reads like an IP address and port. Text that does not is taken as a path.
func ParseAddress(s string) Address {
	if ap, err := netip.ParseAddrPort(s); err == nil {
		return Address{AddrPort: ap}
	}
	return Address{Name: s}
}

// IsZero says whether there is no such end.
func (a Address) IsZero() bool { return a == Address{} }

// String returns "127.0.0.1:80", "[::1]:80", the Unix path, or "" for no end.
func (a Address) String() string {
	if a.AddrPort.IsValid() {
		return a.AddrPort.String()
	}
	return a.Name
}

// MarshalText implements [encoding.TextMarshaler].
func (a Address) MarshalText() ([]byte, error) { return []byte(a.String()), nil }

// UnmarshalText implements [encoding.TextUnmarshaler].
func (a *Address) UnmarshalText(b []byte) error {
	*a = ParseAddress(string(b))
	return nil
}

// Tuple is the five-tuple that names a socket. It is comparable, can be a map
// key, and comparing two allocates nothing.
type Tuple struct {
	Protocol Network `json:"protocol"`
	Local    Address `json:"local"`
	Remote   Address `json:"remote,omitzero"`
}

// TupleOf names the socket behind a connection as this side sees it.
func TupleOf(protocol Network, c interface {
	LocalAddr() net.Addr
	RemoteAddr() net.Addr
}) Tuple {
	return Tuple{Protocol: protocol.Protocol(), Local: AddressOf(c.LocalAddr()), Remote: AddressOf(c.RemoteAddr())}
}

// Reverse is the same connection seen from the other end.
func (t Tuple) Reverse() Tuple {
	return Tuple{Protocol: t.Protocol, Local: t.Remote, Remote: t.Local}
}

// String returns "tcp 127.0.0.1:80 > 127.0.0.1:40312", or "tcp 127.0.0.1:80"
// for a socket without a remote end.
func (t Tuple) String() string {
	var b strings.Builder
	b.WriteString(t.Protocol.String())
	b.WriteByte(' ')
	if t.Local.IsZero() {
		b.WriteString("unnamed")
	} else {
		fmt.Fprint(&b, t.Local)
	}
	if !t.Remote.IsZero() {
		fmt.Fprint(&b, " > ", t.Remote)
	}
	return b.String()
}

// Package proxyheader reads and writes the header of the PROXY protocol,
// versions 1 and 2 (haproxy.org/download/2.6/doc/proxy-protocol.txt).
package proxyheader

import (
	"errors"
	"net/netip"
)

// ErrShort says that what there is may be the beginning of a header.
var ErrShort = errors.New("the PROXY header is not whole yet")

// Header is what a proxy says of the client it speaks for.
type Header struct {
	Local               bool // the proxy speaks for itself
	Client, Destination netip.AddrPort
}

// Parse reads a header at the beginning of b and says how many bytes it has. The error is ErrShort if more must come.
func Parse(b []byte) (h Header, n int, err error) { return h, 0, errors.ErrUnsupported }

// Append appends a header of version 1 or 2. Without a valid address it is one of an unknown client.
func Append(b []byte, version int, client, destination netip.AddrPort) []byte { return b }

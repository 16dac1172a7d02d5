// Package proxyheader reads and writes the header of the PROXY protocol,
// versions 1 and 2 (haproxy.org/download/3.2/doc/proxy-protocol.txt), with which
// a proxy begins a connection to say whose it is.
//
// It needs no more than bytes and works everywhere.
package proxyheader

import (
	"bytes"
	"errors"
	"io"
	"net/netip"
	"slices"
)

// MaxLen is the longest header that is read, in bytes: of version 2, which could say
// that 65535 follow its first 16, no more than 4096. A line of version 1 has 107 at most.
const MaxLen = fixed + maxRest

// MaxAppended is the longest header that Append makes, in bytes.
const MaxAppended = 104

// ErrShort says that what there is may be the beginning of a header.
var ErrShort = errors.New("the PROXY header is not whole yet")

// Header is what a proxy says of the client it speaks for.
type Header struct {
	// Local says that no client is named, and that the addresses of the connection
	// itself count: the proxy speaks for itself, or for a client of a Unix socket or
	// of a kind it does not know.
	Local bool
	// Client and Destination are the two ends of the connection to the proxy, of TCP;
	// IPv4 that is mapped into IPv6 comes unmapped.
	Client, Destination netip.AddrPort
}

// Parse reads a header at the beginning of b, however much follows, and says how
// many bytes it has, of which MaxLen is the most. The error is ErrShort if more must come.
// Any other says in a few words what is wrong, as soon as no byte to come could
// mend it. What version 2 adds to the addresses (TLVs) is skipped unread.
func Parse(b []byte) (h Header, n int, err error) {
	if len(b) > 0 && b[0] == signature[0] {
		return parseBinary(b)
	}
	return parseLine(b)
}

// Read reads a header and not a byte more: what follows is for others, TLS
// perhaps. It returns what came, of an error too.
func Read(r io.Reader) (Header, []byte, error) {
	b := make([]byte, 0, 128)
	for {
		h, _, err := Parse(b)
		if !errors.Is(err, ErrShort) {
			return h, b, err
		}
		need := missing(b)
		b = slices.Grow(b, need)
		n, err := r.Read(b[len(b) : len(b)+need])
		b = b[:len(b)+n]
		switch {
		case n > 0:
		case err != nil:
			return Header{}, b, err
		default:
			return Header{}, b, io.ErrNoProgress
		}
	}
}

// missing is how many bytes a header that begins with b, which is short, lacks at least.
func missing(b []byte) int {
	switch {
	case len(b) < len(unknown):
		return len(unknown) - len(b) // the shortest of all
	case b[0] == signature[0] && len(b) < fixed:
		return fixed - len(b)
	case b[0] == signature[0]:
		return fixed + restOf(b) - len(b)
	case bytes.HasSuffix(b, []byte("\r")):
		return 1
	}
	return len(end)
}

// Append appends a header of version 1 or 2, of MaxAppended bytes at most; of
// another version it appends nothing. Where one address is IPv4 and the other
// IPv6, IPv4 is mapped into IPv6, since a header has one family. Without two valid
// addresses the client is unknown: "UNKNOWN" in version 1, and in version 2 LOCAL,
// which every receiver must take, unlike a client of no family.
func Append(b []byte, version int, client, destination netip.AddrPort) []byte {
	client, four := plain(client)
	destination, four2 := plain(destination)
	known := client.IsValid() && destination.IsValid()
	switch version {
	case 1:
		return appendLine(b, known, four && four2, client, destination)
	case 2:
		return appendBinary(b, known, four && four2, client, destination)
	}
	return b
}

// plain leaves out what a header has no place for, and says whether an address is IPv4.
func plain(ap netip.AddrPort) (_ netip.AddrPort, four bool) {
	a := ap.Addr().Unmap().WithZone("")
	return netip.AddrPortFrom(a, ap.Port()), a.Is4()
}

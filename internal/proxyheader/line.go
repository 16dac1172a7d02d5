package proxyheader

import (
	"bytes"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"
)

// Version 1 is a line, section 2.1.
const (
	begin   = "PROXY "
	end     = "\r\n"
	unknown = "PROXY UNKNOWN\r\n" // the shortest header of all
	maxLine = 107                 // with its end
)

var errNotProxy = errors.New("it does not begin like one")

// parseLine looks at each part of the line as soon as it is whole, and at the
// beginning of the last one, so that who speaks another protocol soon learns it.
func parseLine(b []byte) (h Header, n int, err error) {
	if !bytes.HasPrefix(b, []byte(begin)) {
		if len(b) < len(begin) && strings.HasPrefix(begin, string(b)) {
			return h, 0, ErrShort
		}
		return h, 0, errNotProxy
	}
	line := b[:min(len(b), maxLine)]
	lf := bytes.IndexByte(line, '\n')
	whole := lf >= 0
	switch {
	case whole && line[lf-1] != '\r':
		return h, 0, errors.New("its line must end with CR LF, and has LF alone")
	case whole:
		n = lf + 1
		line = line[:lf-1]
	case len(line) == maxLine:
		return h, 0, fmt.Errorf("its line must end within %d bytes", maxLine)
	}
	h, err = parseFields(string(line[len(begin):]), whole)
	switch {
	case err != nil:
		return Header{}, 0, err
	case !whole:
		return Header{}, 0, ErrShort
	}
	return h, n, nil
}

// parseFields reads what is between "PROXY " and the end of the line, if that is there.
func parseFields(s string, whole bool) (h Header, err error) {
	protocol, rest, more := strings.Cut(s, " ")
	if !more && !whole {
		for _, may := range []string{"TCP4 ", "TCP6 ", "UNKNOWN\r"} {
			if strings.HasPrefix(may, protocol) {
				return h, nil
			}
		}
	}
	switch protocol {
	case "TCP4", "TCP6":
	case "UNKNOWN":
		return Header{Local: true}, nil // "the receiver must ignore anything presented before the CRLF"
	default:
		return h, fmt.Errorf("invalid protocol %q: want TCP4, TCP6 or UNKNOWN", protocol)
	}
	var addrs [2]netip.Addr
	var ports [2]uint16
	for i := range 4 {
		var field string
		if field, rest, more = strings.Cut(rest, " "); more && i == 3 {
			return h, errors.New("its line has more than two addresses and two ports")
		}
		part := !more && !whole
		switch {
		case i < 2 && part:
			err = mayBecomeAddr(protocol, field)
		case i < 2:
			addrs[i], err = parseAddr(protocol, field)
		case part && field == "":
		case part && i == 3:
			_, err = parsePort(strings.TrimSuffix(field, "\r"))
		default: // what begins a port is one, too
			ports[i-2], err = parsePort(field)
		}
		if err != nil || part {
			return h, err
		}
	}
	h.Client = netip.AddrPortFrom(addrs[0].Unmap(), ports[0])
	h.Destination = netip.AddrPortFrom(addrs[1].Unmap(), ports[1])
	return h, nil
}

func parseAddr(protocol, s string) (netip.Addr, error) {
	a, err := netip.ParseAddr(s)
	if err != nil || a.Zone() != "" || a.Is4() != (protocol == "TCP4") {
		return a, fmt.Errorf("invalid address %q for %s", s, protocol)
	}
	return a, nil
}

// mayBecomeAddr knows an address that is not whole by its characters and length.
func mayBecomeAddr(protocol, s string) error {
	letters, most := "0123456789.", len("255.255.255.255")
	if protocol == "TCP6" {
		letters, most = "0123456789abcdefABCDEF:.", len("ffff:ffff:ffff:ffff:ffff:ffff:255.255.255.255")
	}
	if len(s) > most || strings.Trim(s, letters) != "" {
		return fmt.Errorf("invalid address %q for %s", s, protocol)
	}
	return nil
}

// parsePort wants no zero in front, which could mean that it is octal.
func parsePort(s string) (uint16, error) {
	n, err := strconv.ParseUint(s, 10, 16)
	if err != nil || len(s) > 1 && s[0] == '0' {
		return 0, fmt.Errorf("invalid port %q", s)
	}
	return uint16(n), nil
}

func appendLine(b []byte, known, four bool, client, destination netip.AddrPort) []byte {
	if !known {
		return append(b, unknown...)
	}
	family := "TCP6"
	if four {
		family = "TCP4"
	}
	b = slices.Grow(b, MaxAppended) // at once, where b must grow
	b = append(append(b, begin...), family...)
	for _, ap := range [...]netip.AddrPort{client, destination} {
		b = append(b, ' ')
		if a := ap.Addr(); a.Is4() && !four {
			b = appendMapped(b, a.As4())
		} else {
			b = a.AppendTo(b)
		}
	}
	for _, ap := range [...]netip.AddrPort{client, destination} {
		b = strconv.AppendUint(append(b, ' '), uint64(ap.Port()), 10)
	}
	return append(b, end...)
}

// appendMapped writes IPv4 as the IPv6 that the text of the protocol wants: "sets
// of 4 hexadecimal digits delimited by colons", without dots.
func appendMapped(b []byte, a [4]byte) []byte {
	b = append(b, "::ffff:"...)
	b = strconv.AppendUint(b, uint64(a[0])<<8|uint64(a[1]), 16)
	b = append(b, ':')
	return strconv.AppendUint(b, uint64(a[2])<<8|uint64(a[3]), 16)
}

package proxyheader

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"slices"
)

// Version 2 is binary, section 2.2.
const (
	signature = "\r\n\r\n\x00\r\nQUIT\n"
	fixed     = 16   // signature, version and command, family, length of the rest
	maxRest   = 4096 // a certificate among the TLVs has 1 to 2 KiB

	versionLocal = 0x20
	versionProxy = 0x21
	unspecified  = 0x00
	tcp4         = 0x11
	tcp6         = 0x21
	restTCP4     = 2*4 + 2*2
	restTCP6     = 2*16 + 2*2
	restUnix     = 2 * 108
)

func parseBinary(b []byte) (h Header, n int, err error) {
	if i := min(len(b), len(signature)); string(b[:i]) != signature[:i] {
		return h, 0, errNotProxy
	}
	if err := checkFixed(b); err != nil {
		return h, 0, err
	}
	if len(b) < fixed || len(b) < fixed+restOf(b) {
		return h, 0, ErrShort
	}
	n = fixed + restOf(b)
	rest := b[fixed:n]
	if b[12] == versionProxy {
		switch b[13] {
		case tcp4:
			h.Client, h.Destination = addrPort(rest[:4], rest[8:]), addrPort(rest[4:8], rest[10:])
			return h, n, nil
		case tcp6:
			h.Client, h.Destination = addrPort(rest[:16], rest[32:]), addrPort(rest[16:32], rest[34:])
			return h, n, nil
		}
	}
	return Header{Local: true}, n, nil
}

// restOf is how many bytes follow the fixed ones, as these say.
func restOf(b []byte) int { return int(binary.BigEndian.Uint16(b[14:])) }

func addrPort(addr, port []byte) netip.AddrPort {
	a, _ := netip.AddrFromSlice(addr)
	return netip.AddrPortFrom(a.Unmap(), binary.BigEndian.Uint16(port))
}

// checkFixed looks at what there is of the fixed bytes after the signature.
func checkFixed(b []byte) error {
	if len(b) > 12 {
		switch version := b[12] >> 4; {
		case version != 2:
			return fmt.Errorf("unsupported version %d of the protocol: want 1 or 2", version)
		case b[12] != versionLocal && b[12] != versionProxy:
			return fmt.Errorf("unsupported command %d: want 0 (LOCAL) or 1 (PROXY)", b[12]&15)
		}
	}
	least := 0
	if len(b) > 13 && b[12] == versionProxy { // with LOCAL "the family is ignored"
		var err error
		if least, err = leastRest(b[13]); err != nil {
			return err
		}
	}
	if len(b) == fixed-1 && int(b[14])<<8 > maxRest {
		return fmt.Errorf("it says to be over %d bytes long", MaxLen)
	}
	if len(b) < fixed {
		return nil
	}
	switch rest := restOf(b); {
	case rest > maxRest:
		return fmt.Errorf("it says to be %d bytes long, over %d", fixed+rest, MaxLen)
	case rest < least:
		return fmt.Errorf("invalid length: %d bytes of addresses that have %d", rest, least)
	}
	return nil
}

// leastRest is how long the addresses of a family are.
func leastRest(family byte) (int, error) {
	switch family {
	case unspecified:
		return 0, nil
	case tcp4:
		return restTCP4, nil
	case tcp6:
		return restTCP6, nil
	case 0x31, 0x32: // of a Unix socket, which has a name at best
		return restUnix, nil
	case 0x12, 0x22:
		return 0, errors.New("it names no TCP client but one of UDP")
	}
	return 0, fmt.Errorf("unsupported address family and protocol %#02x", family)
}

func appendBinary(b []byte, known, four bool, client, destination netip.AddrPort) []byte {
	if !known {
		return append(append(b, signature...), versionLocal, unspecified, 0, 0)
	}
	b = slices.Grow(b, fixed+restTCP6)
	b = append(append(b, signature...), versionProxy)
	if four {
		from, to := client.Addr().As4(), destination.Addr().As4()
		b = append(b, tcp4, 0, restTCP4)
		b = append(append(b, from[:]...), to[:]...)
	} else {
		from, to := client.Addr().As16(), destination.Addr().As16() // which maps IPv4
		b = append(b, tcp6, 0, restTCP6)
		b = append(append(b, from[:]...), to[:]...)
	}
	b = binary.BigEndian.AppendUint16(b, client.Port())
	return binary.BigEndian.AppendUint16(b, destination.Port())
}

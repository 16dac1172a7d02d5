// Package port is what is publicly known about port numbers: the three classes of RFC 6335, and which service IANA assigned to which
// port, both ways.
//
// The service names are IANA's registry as of the date in iana.txt, embedded as text that is searched where it lies: nothing is decoded
// and nothing is kept, so a program that never asks pays nothing. The functions of the package answer from that registry alone, the same
// on every machine. [System] puts the machine's own services(5) file in front of it, which is what people at that machine expect; where
// there is no such file the registry answers.
//
//	s, ok := port.Lookup(443, "tcp") // https, "http protocol over TLS/SSL"
//	names, err := port.System()
//	n, err := names.LookupPort(ctx, "tcp", "https") // 443, unless /etc/services says otherwise
package port

import "strconv"

// Class is one of the three ranges that RFC 6335 section 6 divides the port numbers into.
type Class uint8

const (
	ClassSystem  Class = iota // 0-1023, assigned by IANA; on most systems only a privileged process may listen there
	ClassUser                 // 1024-49151, assigned by IANA
	ClassDynamic              // 49152-65535, never assigned: for use at will, and for the source ports of clients
)

// ClassOf returns the class that a port belongs to. Every port has one, also the reserved port 0.
func ClassOf(port uint16) Class {
	switch {
	case port < 1024:
		return ClassSystem
	case port < 49152:
		return ClassUser
	default:
		return ClassDynamic
	}
}

// Classes returns the three classes in the order of their ports.
func Classes() []Class {
	return []Class{ClassSystem, ClassUser, ClassDynamic}
}

// String returns the class's name: "system", "user" or "dynamic".
func (c Class) String() string {
	switch c {
	case ClassSystem:
		return "system"
	case ClassUser:
		return "user"
	case ClassDynamic:
		return "dynamic"
	default:
		return "class " + strconv.Itoa(int(c))
	}
}

// Synonym returns the class's other name in RFC 6335 section 6: "well-known", "registered" or "private".
func (c Class) Synonym() string {
	switch c {
	case ClassSystem:
		return "well-known"
	case ClassUser:
		return "registered"
	case ClassDynamic:
		return "private"
	default:
		return c.String()
	}
}

// Range returns the first and the last port of the class, 0 and 0 for a class that does not exist.
func (c Class) Range() (first, last uint16) {
	switch c {
	case ClassSystem:
		return 0, 1023
	case ClassUser:
		return 1024, 49151
	case ClassDynamic:
		return 49152, 65535
	default:
		return 0, 0
	}
}

package port

import (
	"slices"
	"strings"
)

// Service is what a port carries over one transport protocol. A port has one per protocol, however many names IANA or the machine gives it:
// looking up any of the names finds the same Service.
type Service struct {
	Name        string   `json:"name"`                  // the primary name, as the source spells it: "https"
	Port        uint16   `json:"port"`                  // 1-65535
	Protocol    string   `json:"protocol"`              // "tcp", "udp", "sctp" or "dccp"
	Description string   `json:"description,omitempty"` // one line of free text
	Aliases     []string `json:"aliases,omitempty"`     // the port's other names: "www", "www-http"
}

// Protocols returns the transport protocols that have port numbers in IANA's registry, the most used first.
func Protocols() []string {
	return []string{"tcp", "udp", "sctp", "dccp"}
}

// Lookup returns the service that IANA assigned to a port over a protocol.
func Lookup(port uint16, protocol string) (Service, bool) {
	e, ok := assigned(port, protocol)
	if !ok {
		return Service{}, false
	}
	return e.service(protocol), true
}

// LookupName returns the services that have a name, in whatever case it is written, over a protocol or over all for "". Most names have one
// port, a few have several (http-alt: 591, 8008 and 8080), so the result is sorted by port, then by protocol as in [Protocols].
func LookupName(name, protocol string) []Service {
	var found []Service
	for e := range entries(1) {
		if !e.hasName(name) {
			continue
		}
		for _, p := range e.protocols() {
			if protocol == "" || strings.EqualFold(p, protocol) {
				found = append(found, e.service(p))
			}
		}
	}
	slices.SortStableFunc(found, byPortAndProtocol)
	return found
}

// Services returns what IANA assigned to a port over any protocol, ordered as in [Protocols].
func Services(port uint16) []Service {
	return servicesBy(port, Lookup)
}

// Name returns the primary name of a port over a protocol, "" if it has none. It allocates nothing.
func Name(port uint16, protocol string) string {
	e, ok := assigned(port, protocol)
	if !ok {
		return ""
	}
	return e.primary()
}

// WellKnown returns the system ports (1-1023) that IANA assigned over a protocol, or over any for "", in ascending order: the list that a
// scanner goes through when it is asked for the well-known ports.
func WellKnown(protocol string) []uint16 {
	var ports []uint16
	for e := range entries(1) {
		if ClassOf(e.port) != ClassSystem {
			break
		}
		if protocol == "" || e.carries(protocol) {
			ports = append(ports, e.port)
		}
	}
	return slices.Compact(ports)
}

func servicesBy(port uint16, lookup func(uint16, string) (Service, bool)) []Service {
	var found []Service
	for _, protocol := range Protocols() {
		if s, ok := lookup(port, protocol); ok {
			found = append(found, s)
		}
	}
	return found
}

func byPortAndProtocol(a, b Service) int {
	if a.Port != b.Port {
		return int(a.Port) - int(b.Port)
	}
	return slices.Index(Protocols(), a.Protocol) - slices.Index(Protocols(), b.Protocol)
}

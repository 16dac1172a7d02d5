package port

import (
	_ "embed"
	"iter"
	"slices"
	"strings"
)

// registry is IANA's registry as internal/gen writes it: sorted lines of port, protocols (the first letter of each), names (the primary one
// first, commas between) and description, with tabs between. Comment lines stand at the top. It is kept as plain text because 240 kB that
// are mapped from the executable and touched only where the search looks cost less than a decoder, its start-up time and its heap.
//
// To update it, fetch service-names-port-numbers.csv from https://www.iana.org/assignments/service-names-port-numbers/ into this directory
// and run go generate.
//
//go:generate go run ./internal/gen -in service-names-port-numbers.csv -out iana.txt
//go:embed iana.txt
var registry string

// entry is one line of the registry.
type entry struct {
	port        uint16
	letters     string // "tu" for tcp and udp
	names       string // "http,www,www-http"
	description string
}

// assigned returns the entry of a port over a protocol.
func assigned(port uint16, protocol string) (entry, bool) {
	for e := range entries(port) {
		if e.port != port {
			break
		}
		if e.carries(protocol) {
			return e, true
		}
	}
	return entry{}, false
}

// entries yields the lines of the registry from the given port on. The comments sort as port 0, with nothing in them.
func entries(first uint16) iter.Seq[entry] {
	return func(yield func(entry) bool) {
		for rest := registry[search(first):]; rest != ""; {
			var line string
			line, rest, _ = strings.Cut(rest, "\n")
			if !yield(parseEntry(line)) {
				return
			}
		}
	}
}

// search returns the offset of the first line whose port is at least the given one, by bisection of the text.
func search(port uint16) int {
	low, high := 0, len(registry) // both always at the start of a line
	for low < high {
		middle := low + (high-low)/2
		start := low + strings.LastIndexByte(registry[low:middle], '\n') + 1
		if leadingPort(registry[start:high]) >= port {
			high = start
		} else {
			low = start + strings.IndexByte(registry[start:high], '\n') + 1
		}
	}
	return low
}

func parseEntry(line string) entry {
	e := entry{port: leadingPort(line)}
	_, line, _ = strings.Cut(line, "\t")
	e.letters, line, _ = strings.Cut(line, "\t")
	e.names, e.description, _ = strings.Cut(line, "\t")
	return e
}

// leadingPort reads the number that a line starts with, 0 if it does not start with one.
func leadingPort(line string) uint16 {
	var n uint16
	for i := 0; i < len(line) && line[i] >= '0' && line[i] <= '9'; i++ {
		n = n*10 + uint16(line[i]-'0')
	}
	return n
}

func (e entry) service(protocol string) Service {
	names := strings.Split(e.names, ",")
	s := Service{Name: names[0], Port: e.port, Protocol: strings.ToLower(protocol), Description: e.description}
	if len(names) > 1 {
		s.Aliases = names[1:]
	}
	return s
}

func (e entry) primary() string {
	name, _, _ := strings.Cut(e.names, ",")
	return name
}

func (e entry) hasName(name string) bool {
	for n := range strings.SplitSeq(e.names, ",") {
		if strings.EqualFold(n, name) {
			return true
		}
	}
	return false
}

func (e entry) carries(protocol string) bool {
	protocol = strings.ToLower(protocol)
	return isProtocol(protocol) && strings.IndexByte(e.letters, protocol[0]) >= 0
}

// protocols returns the names of the entry's protocols.
func (e entry) protocols() []string {
	return slices.DeleteFunc(Protocols(), func(p string) bool { return !e.carries(p) })
}

func isProtocol(protocol string) bool {
	switch protocol {
	case "tcp", "udp", "sctp", "dccp":
		return true
	default:
		return false
	}
}

package port

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
)

// Names is IANA's registry with a services(5) file in front of it: what the file says about a port or about a name wins, all else is
// answered by the registry. The nil *Names has no file. Names never changes, so it may be used from any number of goroutines.
type Names struct {
	ports map[portKey]Service
	names map[nameKey][]uint16 // ports in the order of the file
}

type portKey struct {
	port     uint16
	protocol string
}

type nameKey struct {
	name     string // lower case
	protocol string
}

// System reads the machine's services file: /etc/services, or %SystemRoot%\System32\drivers\etc\services on Windows. A machine without one
// gets the registry alone, which is no error. When the file cannot be read the error says why and the nil *Names that comes with it is still
// good for use, so that the caller may warn and go on.
func System() (*Names, error) {
	path := "/etc/services"
	if runtime.GOOS == "windows" {
		path = filepath.Join(os.Getenv("SystemRoot"), `System32\drivers\etc\services`)
	}
	names, err := Load(path)
	if errors.Is(err, fs.ErrNotExist) {
		return new(Names), nil
	}
	return names, err
}

// Load reads a file in the format of services(5). Lines that are not in that format, and protocols other than those of [Protocols], are
// passed over as the C library does. Several lines for one port and protocol are one service: the first name is the primary one.
func Load(path string) (*Names, error) {
	text, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("read service names: %w", err)
	}
	return parse(string(text)), nil
}

// Lookup returns the service of a port over a protocol.
func (n *Names) Lookup(port uint16, protocol string) (Service, bool) {
	if s, ok := n.onPort(port, protocol); ok {
		s.Aliases = slices.Clone(s.Aliases)
		return s, true
	}
	return Lookup(port, protocol)
}

// LookupName returns the services that have a name over a protocol, or over all for "". A name that the file has for a protocol has only the
// ports that the file gives it. The order is that of the package's [LookupName].
func (n *Names) LookupName(name, protocol string) []Service {
	var found []Service
	for _, s := range LookupName(name, protocol) {
		if n.inFile(name, s.Protocol) == nil {
			s, _ = n.Lookup(s.Port, s.Protocol)
			found = append(found, s)
		}
	}
	for _, p := range Protocols() {
		if protocol == "" || strings.EqualFold(p, protocol) {
			for _, port := range n.inFile(name, p) {
				s, _ := n.Lookup(port, p)
				found = append(found, s)
			}
		}
	}
	slices.SortStableFunc(found, byPortAndProtocol)
	return found
}

// Services returns the services of a port over any protocol, ordered as in [Protocols].
func (n *Names) Services(port uint16) []Service {
	return servicesBy(port, n.Lookup)
}

// Name returns the primary name of a port over a protocol, "" if it has none. It allocates nothing.
func (n *Names) Name(port uint16, protocol string) string {
	if s, ok := n.onPort(port, protocol); ok {
		return s.Name
	}
	return Name(port, protocol)
}

// WellKnown returns the system ports (1-1023) that have a service over a protocol, or over any for "", in ascending order.
func (n *Names) WellKnown(protocol string) []uint16 {
	ports := WellKnown(protocol)
	if n == nil {
		return ports
	}
	for key := range n.ports {
		if ClassOf(key.port) == ClassSystem && (protocol == "" || strings.EqualFold(key.protocol, protocol)) {
			ports = append(ports, key.port)
		}
	}
	slices.Sort(ports)
	return slices.Compact(ports)
}

// onPort returns what the file says about a port.
func (n *Names) onPort(port uint16, protocol string) (Service, bool) {
	if n == nil {
		return Service{}, false
	}
	s, ok := n.ports[portKey{port, strings.ToLower(protocol)}]
	return s, ok
}

// inFile returns the ports that the file gives to a name, in its order.
func (n *Names) inFile(name, protocol string) []uint16 {
	if n == nil {
		return nil
	}
	return n.names[nameKey{strings.ToLower(name), protocol}]
}

func parse(text string) *Names {
	n := &Names{ports: make(map[portKey]Service), names: make(map[nameKey][]uint16)}
	for line := range strings.Lines(text) {
		if s, ok := parseLine(line); ok {
			n.add(s)
		}
	}
	for key, s := range n.ports {
		n.ports[key] = n.completed(s)
	}
	return n
}

// parseLine reads "name port/protocol [alias ...] [# comment]".
func parseLine(line string) (Service, bool) {
	line, comment, _ := strings.Cut(line, "#")
	fields := strings.Fields(line)
	if len(fields) < 2 {
		return Service{}, false
	}
	number, protocol, _ := strings.Cut(fields[1], "/")
	port, err := strconv.ParseUint(number, 10, 16)
	protocol = strings.ToLower(protocol)
	if err != nil || port == 0 || !isProtocol(protocol) {
		return Service{}, false
	}
	return Service{
		Name:        fields[0],
		Port:        uint16(port),
		Protocol:    protocol,
		Description: strings.Join(strings.Fields(comment), " "),
		Aliases:     fields[2:],
	}, true
}

// add enters one line of the file, as a new service or as further names of one that is there.
func (n *Names) add(s Service) {
	key := portKey{s.Port, s.Protocol}
	known, ok := n.ports[key]
	if !ok {
		known = Service{Name: s.Name, Port: s.Port, Protocol: s.Protocol}
	}
	if known.Description == "" {
		known.Description = s.Description
	}
	for _, name := range append([]string{s.Name}, s.Aliases...) {
		known.addAlias(name)
		key := nameKey{strings.ToLower(name), s.Protocol}
		if !slices.Contains(n.names[key], s.Port) {
			n.names[key] = append(n.names[key], s.Port)
		}
	}
	n.ports[key] = known
}

// completed adds to a service of the file what the registry knows about the same port: its names, so that they still find the port,
// unless the file gives them to another one; and its description, if the two agree on a name and the file has no comment.
func (n *Names) completed(s Service) Service {
	assigned, ok := Lookup(s.Port, s.Protocol)
	if !ok {
		return s
	}
	if s.Description == "" && s.hasName(assigned.Name) {
		s.Description = assigned.Description
	}
	for _, name := range append([]string{assigned.Name}, assigned.Aliases...) {
		if n.inFile(name, s.Protocol) == nil {
			s.addAlias(name)
		}
	}
	return s
}

func (s *Service) addAlias(name string) {
	if !s.hasName(name) {
		s.Aliases = append(s.Aliases, name)
	}
}

func (s *Service) hasName(name string) bool {
	same := func(other string) bool { return strings.EqualFold(other, name) }
	return same(s.Name) || slices.ContainsFunc(s.Aliases, same)
}

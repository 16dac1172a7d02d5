package scan

import (
	"cmp"
	"errors"
	"fmt"
	"iter"
	"slices"
	"strings"
	"unicode/utf8"

	"github.com/fivetuple/fivetuple"
	"github.com/fivetuple/fivetuple/port"
)

// PortSet is a set of ports between 1 and 65535. The zero value is empty.
type PortSet struct {
	ranges []fivetuple.PortRange // ascending, with a gap between any two
}

// Ports returns the set of these ports. There is no port 0 to connect to: it is left out.
func Ports(ports ...uint16) PortSet {
	var ranges []fivetuple.PortRange
	for _, p := range ports {
		if p != 0 {
			ranges = append(ranges, fivetuple.PortRange{First: p, Last: p})
		}
	}
	return PortSet{joined(ranges)}
}

// ParsePorts reads a list of TCP ports with commas in between, each of them
//
//	22           a port
//	8000-8010    a range; -1023 begins at 1, 49152- ends at 65535
//	https        a service by name: all ports that names, or IANA's registry for nil, has for it
//	well-known   the ports below 1024 that have a service
//	- or all     1-65535
//
// Ports may be given several times. The error says in which column the fault is.
func ParsePorts(s string, names *port.Names) (PortSet, error) {
	var ranges []fivetuple.PortRange
	column := 1
	for item := range strings.SplitSeq(s, ",") {
		text := strings.TrimLeft(item, " ")
		more, err := parsePorts(strings.TrimRight(text, " "), names)
		if err != nil {
			return PortSet{}, fmt.Errorf("ports %q: column %d: %w", s, column+len(item)-len(text), err)
		}
		ranges = append(ranges, more...)
		column += utf8.RuneCountInString(item) + 1
	}
	return PortSet{joined(ranges)}, nil
}

func parsePorts(s string, names *port.Names) ([]fivetuple.PortRange, error) {
	switch strings.ToLower(s) {
	case "":
		return nil, errors.New("no port is given: write 22, 8000-8010, https, well-known or all")
	case "all":
		s = "-"
	case "well-known":
		return Ports(names.WellKnown("tcp")...).ranges, nil
	}
	if strings.Trim(s, "0123456789-") == "" {
		r, err := parseRange(s)
		return []fivetuple.PortRange{r}, err
	}
	var found []uint16
	for _, service := range names.LookupName(s, "tcp") {
		found = append(found, service.Port)
	}
	if found == nil {
		return nil, fmt.Errorf("%w %q over tcp: write the port number", port.ErrUnknown, s)
	}
	return Ports(found...).ranges, nil
}

func parseRange(s string) (fivetuple.PortRange, error) {
	first, last, isRange := strings.Cut(s, "-")
	if isRange {
		s = cmp.Or(first, "1") + "-" + cmp.Or(last, "65535")
	}
	r, err := fivetuple.ParsePortRange(s)
	if err == nil && r.First == 0 {
		err = errors.New("port 0 cannot be connected to: ports are 1 to 65535")
	}
	return r, err
}

// joined sorts ranges and makes one of those that overlap or touch.
func joined(ranges []fivetuple.PortRange) []fivetuple.PortRange {
	slices.SortFunc(ranges, func(a, b fivetuple.PortRange) int { return cmp.Compare(a.First, b.First) })
	var set []fivetuple.PortRange
	for _, r := range ranges {
		if last := len(set) - 1; last >= 0 && int(r.First) <= int(set[last].Last)+1 {
			set[last].Last = max(set[last].Last, r.Last)
		} else {
			set = append(set, r)
		}
	}
	return set
}

// Len is the number of ports in the set.
func (s PortSet) Len() int {
	n := 0
	for _, r := range s.ranges {
		n += r.Len()
	}
	return n
}

// All yields the ports in ascending order.
func (s PortSet) All() iter.Seq[uint16] {
	return func(yield func(uint16) bool) {
		for _, r := range s.ranges {
			for p := int(r.First); p <= int(r.Last); p++ {
				if !yield(uint16(p)) {
					return
				}
			}
		}
	}
}

// String returns the set as [ParsePorts] reads it: "22,8000-8010".
func (s PortSet) String() string {
	var text []string
	for _, r := range s.ranges {
		text = append(text, r.String())
	}
	return strings.Join(text, ",")
}

package main

import (
	"encoding/csv"
	"fmt"
	"io"
	"slices"
	"strconv"
	"strings"
)

// protocols are the registry's transport protocols, in the order in which they are written.
var protocols = []string{"tcp", "udp", "sctp", "dccp"}

// row is one name on one port over one protocol.
type row struct {
	port                        uint16
	protocol, name, description string
}

// read returns the rows that assign a name to a port, in the order of the file, and the latest date in the file. Rows without a name are
// reserved or unassigned ports; rows without a port or a protocol are names for DNS service discovery alone.
func read(r io.Reader) (rows []row, latest string, err error) {
	lines := csv.NewReader(r)
	head, err := lines.Read()
	if err != nil {
		return nil, "", fmt.Errorf("read the column names: %w", err)
	}
	column, err := columns(head, "Service Name", "Port Number", "Transport Protocol", "Description", "Registration Date", "Modification Date")
	if err != nil {
		return nil, "", err
	}
	for {
		fields, err := lines.Read()
		if err == io.EOF {
			return rows, latest, nil
		}
		if err != nil {
			return nil, "", err
		}
		field := func(i int) string { return strings.TrimSpace(fields[column[i]]) }
		latest = max(latest, field(4), field(5))
		name, ports, protocol := field(0), field(1), field(2)
		if name == "" || ports == "" || !slices.Contains(protocols, protocol) {
			continue
		}
		first, last, err := portRange(ports)
		if err != nil {
			line, _ := lines.FieldPos(column[1])
			return nil, "", fmt.Errorf("line %d: %w", line, err)
		}
		for port := first; port <= last; port++ {
			rows = append(rows, row{uint16(port), protocol, name, oneLine(field(3))})
		}
	}
}

func columns(head []string, names ...string) ([]int, error) {
	column := make([]int, len(names))
	for i, name := range names {
		if column[i] = slices.Index(head, name); column[i] < 0 {
			return nil, fmt.Errorf("no column %q: is this the registry in its CSV form?", name)
		}
	}
	return column, nil
}

// portRange reads "80" or "6000-6063".
func portRange(s string) (first, last uint64, err error) {
	low, high, isRange := strings.Cut(s, "-")
	if !isRange {
		high = low
	}
	first, err = strconv.ParseUint(low, 10, 16)
	if err == nil {
		last, err = strconv.ParseUint(high, 10, 16)
	}
	if err != nil || first == 0 || last < first {
		return 0, 0, fmt.Errorf("port %q: want a number or a range within 1-65535", s)
	}
	return first, last, nil
}

// oneLine drops the sentence that IANA adds to the names it made well-formed, and joins what is left into one line.
func oneLine(description string) string {
	description, _, _ = strings.Cut(description, "IANA assigned this well-formed service name as a replacement for")
	return strings.Join(strings.Fields(description), " ")
}

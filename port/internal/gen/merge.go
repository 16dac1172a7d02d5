package main

import (
	"cmp"
	"fmt"
	"io"
	"regexp"
	"slices"
	"strings"
)

// preferred are the names that go first on a port that IANA also lists, and lists first, under another name that hardly anything speaks.
var preferred = []string{
	"submissions", // 465: over urd, RFC 8314 section 7.3
	"l2tp",        // 1701: over l2f, which it replaced, RFC 2661 section 8.1
	"nfs",         // 2049: over shilp
}

// service is the names of one port over some protocols.
type service struct {
	port        uint16
	letters     string   // the protocols' first letters
	names       []string // the primary one first
	description string   // of the primary name
}

// merge puts the rows of a port together, and the protocols over which it has the same names and description. The names stay in the
// registry's order, but only a well-formed one is made the primary name. Rows that have no well-formed name beside them are left out.
func merge(rows []row) (services []service, dropped []row) {
	slices.SortStableFunc(rows, byPortAndProtocol)
	for len(rows) > 0 {
		n := slices.IndexFunc(rows, func(r row) bool { return byPortAndProtocol(r, rows[0]) != 0 })
		if n < 0 {
			n = len(rows)
		}
		s, left := join(rows[:n])
		rows = rows[n:]
		dropped = append(dropped, left...)
		if len(s.names) == 0 {
			continue
		}
		if i := slices.IndexFunc(services, s.sameButProtocol); i >= 0 {
			services[i].letters += s.letters
		} else {
			services = append(services, s)
		}
	}
	return services, dropped
}

func byPortAndProtocol(a, b row) int {
	return cmp.Or(cmp.Compare(a.port, b.port), cmp.Compare(slices.Index(protocols, a.protocol), slices.Index(protocols, b.protocol)))
}

func (s service) sameButProtocol(t service) bool {
	return t.port == s.port && t.description == s.description && slices.Equal(t.names, s.names)
}

// join makes one service of the rows of one port and protocol.
func join(rows []row) (s service, dropped []row) {
	primary := slices.IndexFunc(rows, func(r row) bool { return slices.Contains(preferred, r.name) })
	if primary < 0 {
		primary = slices.IndexFunc(rows, func(r row) bool { return wellFormed(r.name) })
	}
	if primary < 0 {
		return service{}, rows
	}
	p := rows[primary]
	s = service{p.port, p.protocol[:1], []string{p.name}, p.description}
	for _, r := range rows {
		known := slices.ContainsFunc(s.names, func(n string) bool { return strings.EqualFold(n, r.name) })
		switch {
		case known:
		case writable(r.name):
			s.names = append(s.names, r.name)
		default:
			dropped = append(dropped, r)
		}
	}
	return s, dropped
}

var syntax = regexp.MustCompile(`^[A-Za-z0-9]+(-[A-Za-z0-9]+)*$`)

// wellFormed reports whether a name is one by RFC 6335 section 5.1: 1 to 15 letters, digits and single inner hyphens, at least one letter.
func wellFormed(name string) bool {
	return len(name) <= 15 && syntax.MatchString(name) && strings.Trim(name, "0123456789-") != ""
}

// writable reports whether a name, which older entries have with characters like _ + * / in it, can be written into the output.
func writable(name string) bool {
	return !strings.ContainsFunc(name, func(c rune) bool { return c <= ' ' || c == ',' || c > '~' })
}

func write(w io.Writer, services []service, date string) {
	fmt.Fprintf(w, "# Service names and port numbers as of %s, from the registry that IANA keeps at\n", date)
	fmt.Fprintln(w, "# https://www.iana.org/assignments/service-names-port-numbers/ and places in the public domain (CC0 1.0).")
	fmt.Fprintln(w, "# Port, protocols (t tcp, u udp, s sctp, d dccp), names, description. Written by internal/gen: do not edit.")
	for _, s := range services {
		fmt.Fprintf(w, "%d\t%s\t%s\t%s\n", s.port, s.letters, strings.Join(s.names, ","), s.description)
	}
}

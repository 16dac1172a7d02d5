package env

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"go.yaml.in/yaml/v3"

	"github.com/fivetuple/fivetuple"
	"github.com/fivetuple/fivetuple/port"
	"github.com/fivetuple/fivetuple/port/lease"
)

// parse reads the text of a file. where is its absolute path.
func parse(file, where string, text []byte) (Project, error) {
	first, last := port.ClassDynamic.Range()
	p := parser{
		Project: Project{Name: ownProject(where), file: file, purpose: purpose(where)},
		within:  fivetuple.PortRange{First: first, Last: last},
	}
	if top := p.document(text); top != nil {
		p.top(top)
	}
	if len(p.errs) > 0 {
		return Project{}, errors.Join(p.errs...)
	}
	return p.Project, nil
}

// parser walks over YAML nodes rather than decoding into structs, to keep the
// order of the ports and to find everything that is wrong at once.
type parser struct {
	Project
	within fivetuple.PortRange // of ports that have no range of their own
	errs   []error
}

func (p *parser) bad(line int, format string, args ...any) {
	p.errs = append(p.errs, at(p.file, line, fmt.Errorf(format, args...)))
}

// at says where in the file an error is.
func at(file string, line int, err error) error {
	return fmt.Errorf("%s:%d: %w", file, line, err)
}

const example = "write ports: [api, db], for example"

var yamlLine = regexp.MustCompile(`^yaml: (?:line (\d+): )?`)

// document returns the only document in the text, or nil.
func (p *parser) document(text []byte) *yaml.Node {
	var doc, second yaml.Node
	d := yaml.NewDecoder(bytes.NewReader(text))
	err := d.Decode(&doc)
	if errors.Is(err, io.EOF) {
		p.bad(1, "there is nothing in the file: %s", example)
		return nil
	}
	if err == nil {
		switch err = d.Decode(&second); {
		case err == nil:
			p.bad(second.Line, "a second YAML document begins: delete it, or put it into a file of its own")
			return nil
		case errors.Is(err, io.EOF):
			return doc.Content[0]
		}
	}
	line := 1
	if m := yamlLine.FindStringSubmatch(err.Error()); m != nil && m[1] != "" {
		line, _ = strconv.Atoi(m[1])
	}
	p.bad(line, "not YAML: %s", yamlLine.ReplaceAllString(err.Error(), ""))
	return nil
}

func (p *parser) top(n *yaml.Node) {
	fields := p.fields(n, "the file", "project", "range", "ports")
	if v := fields["project"]; v != nil {
		p.shared = true
		if p.Name = v.Value; !isName(p.Name) {
			p.bad(v.Line, "project %q: want letters, digits, '.', '_' and '-', without accents", p.Name)
		}
	}
	if v := fields["range"]; v != nil {
		p.within = p.portRange(v)
	}
	switch v := fields["ports"]; {
	case v == nil || isNull(v):
	case v.Kind == yaml.SequenceNode:
		for _, name := range v.Content {
			if name = resolve(name); p.isScalar(name) {
				p.port(name.Line, name.Value, nil)
			}
		}
	default:
		p.entries(v, "ports", func(name, settings *yaml.Node) { p.port(name.Line, name.Value, settings) })
	}
	if len(p.Ports) == 0 && len(p.errs) == 0 {
		p.bad(n.Line, "the file has no ports: %s", example)
	}
}

// port reads what is said of one name; settings may be nil.
func (p *parser) port(line int, name string, settings *yaml.Node) {
	q := Port{
		Name: name, Variable: variable(name), Range: p.within, line: line,
		Protocols: []fivetuple.Network{fivetuple.TCP},
		Address:   netip.AddrFrom4([4]byte{127, 0, 0, 1}),
	}
	switch {
	case settings == nil || isNull(settings):
	case settings.Kind == yaml.ScalarNode:
		q.Range = p.portRange(settings)
	default:
		p.settings(&q, settings)
	}
	p.checkName(q)
	p.checkNumber(q)
	p.Ports = append(p.Ports, q)
}

func (p *parser) settings(q *Port, n *yaml.Node) {
	fields := p.fields(n, "a port", "proto", "addr", "port", "range", "env")
	if v := fields["proto"]; v != nil {
		q.Protocols = protocols[v.Value]
		if q.Protocols == nil {
			p.bad(v.Line, "protocol %q is unknown: want tcp, udp or both", v.Value)
		}
	}
	if v := fields["addr"]; v != nil {
		q.Address = p.address(v)
	}
	if v := fields["range"]; v != nil {
		q.Range = p.portRange(v)
	}
	if v := fields["port"]; v != nil {
		within := q.Range
		q.Range = p.portRange(v)
		switch {
		case q.Range.Len() > 1:
			p.bad(v.Line, "port %s is %d ports: write range: %[1]s", q.Range, q.Range.Len())
		case fields["range"] != nil && q.Range.First != 0 && within.First != 0 && !within.Contains(q.Range.First):
			p.bad(v.Line, "port %s is outside the range %s: leave the range out", q.Range, within)
		}
	}
	if v := fields["env"]; v != nil {
		if q.Variable = v.Value; !isVariable.MatchString(q.Variable) {
			p.bad(v.Line, "%q cannot be the name of a variable: want letters, digits and '_', and no digit first", q.Variable)
		}
	}
}

var protocols = map[string][]fivetuple.Network{
	"tcp":  {fivetuple.TCP},
	"udp":  {fivetuple.UDP},
	"both": {fivetuple.TCP, fivetuple.UDP},
}

var isVariable = regexp.MustCompile(`^[A-Za-z_][A-Za-z0-9_]*$`)

// variable is PORT_WEB_UI for "web-ui".
func variable(name string) string {
	return "PORT_" + strings.Map(func(r rune) rune {
		switch {
		case 'a' <= r && r <= 'z':
			return r - 'a' + 'A'
		case 'A' <= r && r <= 'Z', '0' <= r && r <= '9':
			return r
		}
		return '_'
	}, name)
}

func (p *parser) checkName(q Port) {
	name := p.leaseName(q)
	switch {
	case !isName(q.Name):
		p.bad(q.line, "the name %q: want letters, digits, '.', '_' and '-', without accents", q.Name)
	case len(name) > lease.MaxName:
		p.bad(q.line, "the name %s is %d bytes too long: ports are leased as %s, and the limit is %d", q.Name, len(name)-lease.MaxName, name, lease.MaxName)
	}
	if i := slices.IndexFunc(p.Ports, func(before Port) bool { return before.Variable == q.Variable }); i >= 0 {
		before := p.Ports[i]
		p.bad(q.line, "%s and %s, at line %d, are both the variable %s: give one another name, or an env", q.Name, before.Name, before.line, q.Variable)
	}
}

// checkNumber finds names that can never both have their port.
func (p *parser) checkNumber(q Port) {
	if q.Range.Len() > 1 {
		return
	}
	if i := slices.IndexFunc(p.Ports, q.excludes); i >= 0 {
		before := p.Ports[i]
		p.bad(q.line, "%s and %s, at line %d, both want port %s: give one another", q.Name, before.Name, before.line, q.Range)
	}
}

// excludes says whether two ports wanted by one number cannot both be had.
func (q Port) excludes(o Port) bool {
	if q.Range != o.Range {
		return false
	}
	at := netip.AddrPortFrom(o.Address, o.Range.First)
	return slices.ContainsFunc(q.Protocols, func(protocol fivetuple.Network) bool {
		l := lease.Lease{Protocol: protocol, Address: q.Address, Port: at.Port()}
		return slices.Contains(o.Protocols, protocol) && l.Covers(protocol, at)
	})
}

func isName(s string) bool {
	return s != "" && !slices.ContainsFunc([]byte(s), func(c byte) bool { return !isNameByte(c) })
}

func isNameByte(c byte) bool {
	return 'a' <= c && c <= 'z' || 'A' <= c && c <= 'Z' || '0' <= c && c <= '9' || c == '.' || c == '_' || c == '-'
}

// portRange reads "8080" or "8000-8090". What is neither is zero.
func (p *parser) portRange(n *yaml.Node) fivetuple.PortRange {
	r, err := fivetuple.ParsePortRange(n.Value)
	if err == nil && r.First == 0 {
		err = fmt.Errorf("port range %s: port 0 is none", r)
	}
	if err != nil {
		p.bad(n.Line, "%w: want a number or a range such as 8000-8090", err)
		return fivetuple.PortRange{}
	}
	return r
}

// address reads an IP address, or "*" for all.
func (p *parser) address(n *yaml.Node) netip.Addr {
	if n.Value == "*" {
		return netip.IPv6Unspecified()
	}
	addr, err := netip.ParseAddr(n.Value)
	if err != nil {
		p.bad(n.Line, `%q is not an IP address: want 127.0.0.1, ::1, or "*" for all`, n.Value)
	}
	return addr.Unmap()
}

func (p *parser) isScalar(n *yaml.Node) bool {
	if n.Kind != yaml.ScalarNode {
		p.bad(n.Line, "one value is needed here, not a list or a map")
	}
	return n.Kind == yaml.ScalarNode
}

// fields returns the values of a map by their keys, which must be known. All
// but ports are scalars.
func (p *parser) fields(n *yaml.Node, what string, known ...string) map[string]*yaml.Node {
	values := make(map[string]*yaml.Node)
	p.entries(n, what, func(key, value *yaml.Node) {
		switch {
		case !slices.Contains(known, key.Value):
			p.bad(key.Line, "unknown key %q: %s has %s", key.Value, what, strings.Join(known, ", "))
		case key.Value == "ports" || p.isScalar(value):
			values[key.Value] = value
		}
	})
	return values
}

// entries calls f with the keys and values of a map, in order, each key once.
func (p *parser) entries(n *yaml.Node, what string, f func(key, value *yaml.Node)) {
	if n.Kind != yaml.MappingNode {
		p.bad(n.Line, "%s: a map is needed here, such as {key: value}", what)
		return
	}
	lines := make(map[string]int)
	for i := 0; i < len(n.Content); i += 2 {
		key, value := resolve(n.Content[i]), resolve(n.Content[i+1])
		if first, twice := lines[key.Value]; twice {
			p.bad(key.Line, "%s stands at line %d already", key.Value, first)
			continue
		}
		lines[key.Value] = key.Line
		f(key, value)
	}
}

// resolve follows an alias (*name) to its anchor (&name).
func resolve(n *yaml.Node) *yaml.Node {
	if n.Kind == yaml.AliasNode {
		return n.Alias
	}
	return n
}

// isNull says whether nothing is written there.
func isNull(n *yaml.Node) bool { return n.Kind == yaml.ScalarNode && n.Tag == "!!null" }

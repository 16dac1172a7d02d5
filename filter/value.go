package filter

import (
	"errors"
	"fmt"
	"math"
	"net/netip"
	"strconv"
	"strings"
	"time"

	"github.com/fivetuple/fivetuple"
)

// wanted says in an error what a value looks like.
func wanted(h head) string {
	switch fields[h.field].kind {
	case kindSet:
		return "a state such as established, listen or time-wait"
	case kindPort:
		return "a port (443), a range (8000-8090) or a service (https)"
	case kindAddr:
		return "an address, a prefix (10.0.0.0/8) or a host name"
	case kindSize:
		return "a size such as 64KiB"
	case kindRate:
		return "a rate such as 1MiB/s"
	case kindDuration:
		return "a duration such as 50ms"
	case kindHex:
		return "a hexadecimal number"
	case kindNumber:
		return "a number"
	case kindMark:
		return "a mark such as 0x10 or 0x10/0xff"
	case kindUser:
		return "a user or uid"
	case kindCgroup:
		return "the path of a control group"
	}
	return "a name"
}

// value reads one value of a term.
func (p *parser) value(o *operands, t token) *fault {
	if fields[o.head.field].kind == kindAddr {
		return p.address(o, t)
	}
	v, err := p.plainValue(o.head, t)
	if err != nil {
		return err
	}
	o.values = append(o.values, v)
	return nil
}

func (p *parser) plainValue(h head, t token) (value, *fault) {
	var v value
	var err error
	switch k := fields[h.field].kind; k {
	case kindPort:
		return p.ports(h, t)
	case kindUser:
		return p.names.user(t)
	case kindSet:
		set, ok := statesOf(strings.ToLower(t.text))
		if !ok {
			return value{}, unknownState(t)
		}
		return value{set: set}, nil
	case kindMark:
		if h.rel > notEqual {
			return value{}, faultAt(t.at, "%q has no order: want = or !=", h.words)
		}
		if v, err = parseMark(t.text); err == nil {
			return v, nil
		}
	case kindHex:
		v.low, err = strconv.ParseUint(strings.TrimPrefix(strings.ToLower(t.text), "0x"), 16, 64)
	case kindNumber:
		v.low, err = strconv.ParseUint(t.text, 10, 64)
	case kindSize:
		v.low, err = parseSize(t.text)
	case kindRate:
		v.low, err = parseSize(strings.TrimSuffix(t.text, "/s"))
	case kindDuration:
		v.low, err = parseDuration(t.text)
	default:
		return p.textValue(k, h, t)
	}
	if err != nil {
		return value{}, faultAt(t.at, "%q is not %s%s", t.text, wanted(h), because(err))
	}
	v.high = v.low
	return v, nil
}

// because adds the reason of an error that says more than that it is not a number.
func because(err error) string {
	switch {
	case errors.Is(err, strconv.ErrRange):
		return ": it is too large"
	case errors.Is(err, strconv.ErrSyntax):
		return ""
	}
	return ": " + err.Error()
}

func (p *parser) textValue(k kind, h head, t token) (value, *fault) {
	if h.rel > notEqual {
		return value{}, faultAt(t.at, "%q has no order: want = or !=", h.words)
	}
	if t.text == "" {
		return value{}, faultAt(t.at, "want %s after %q, not an empty one", wanted(h), h.words)
	}
	if k == kindNamed && strings.Trim(t.text, "0123456789") == "" {
		n, err := strconv.ParseUint(t.text, 10, 64)
		if err != nil {
			return value{}, faultAt(t.at, "the number %s is too large", t.text)
		}
		return value{low: n, high: n}, nil
	}
	v := value{text: t.text}
	if k == kindCgroup {
		v.text = "/" + strings.Trim(strings.TrimPrefix(t.text, cgroupRoot), "/")
		v.low = p.names.cgroup(v.text)
		v.high = v.low
	}
	return v, nil
}

func unknownState(t token) *fault {
	known := []string{"all", "connected", "synchronized", "bucket", "big"}
	for _, s := range fivetuple.States()[:fivetuple.StateClosing] {
		known = append(known, stateWord(s))
	}
	hint := suggest(t.text, known)
	if hint == "" {
		hint = ": want one of " + strings.Join(known, ", ")
	}
	return faultAt(t.at, "unknown state %q%s", t.text, hint)
}

// ports reads "80", ":80", "8000-8090" and ":https".
func (p *parser) ports(h head, t token) (value, *fault) {
	text := strings.TrimPrefix(strings.TrimPrefix(t.text, "*"), ":")
	v, err := p.portRange(text, networkOf(h.protocol), t.at+len(t.text)-len(text))
	if err == nil && h.rel > notEqual && v.low != v.high {
		err = faultAt(t.at, "%q takes one port, not a range", relationWords[h.rel])
	}
	return v, err
}

func (p *parser) portRange(text, network string, at int) (value, *fault) {
	if !isPorts(text) {
		return p.names.service(text, network, at)
	}
	r, err := fivetuple.ParsePortRange(text)
	if err != nil {
		return value{}, faultAt(at, "%v", err)
	}
	return value{low: uint64(r.First), high: uint64(r.Last)}, nil
}

// isPorts says whether text is written like a port or a range of ports.
func isPorts(text string) bool {
	return text != "" && text[0] != '-' && strings.Trim(text, "0123456789-") == ""
}

// isAddress says whether text is written like an IP address, whatever follows it.
func isAddress(text string) bool {
	first, _, _ := strings.Cut(text, "/")
	if strings.HasPrefix(text, "[") || strings.Count(text, ":") > 1 {
		return true
	}
	first, _, _ = strings.Cut(first, ":")
	return strings.Contains(first, ".") && strings.Trim(first, "0123456789.") == ""
}

// address reads an address, a prefix, a host name, each with a port or
// without, or only a port.
func (p *parser) address(o *operands, t token) *fault {
	host, port := splitPort(t.text)
	if port == "" {
		return p.addresses(o, t, host, nil)
	}
	at := t.at + len(t.text) - len(port)
	v, err := p.portRange(port, networkOf(o.head.protocol), at)
	if err != nil {
		return err
	}
	if host == "" || host == "*" {
		o.ports = append(o.ports, v)
		return nil
	}
	if o.head.rel == notEqual {
		return faultAt(at, "!= takes an address without a port: write \"not %s %s\"", o.head.words, t.text)
	}
	return p.addresses(o, t, host, &v)
}

// splitPort cuts a port off. IPv6 addresses must then be in brackets.
func splitPort(s string) (host, port string) {
	if rest, ok := strings.CutPrefix(s, "["); ok {
		host, rest, ok := strings.Cut(rest, "]")
		if p, hasPort := strings.CutPrefix(rest, ":"); ok && (hasPort || rest == "") {
			return host, p
		}
		return s, ""
	}
	if i := strings.IndexByte(s, ':'); i >= 0 && i == strings.LastIndexByte(s, ':') {
		return s[:i], s[i+1:]
	}
	return s, ""
}

func (p *parser) addresses(o *operands, t token, host string, port *value) *fault {
	found, isLiteral, err := literalAddress(host, o.head.net)
	switch {
	case err != nil:
		return faultAt(t.at, "%v", err)
	case !isLiteral:
		var f *fault
		if found, f = p.names.hosts(host, t.at); f != nil {
			return f
		}
	}
	for _, a := range found {
		if port != nil {
			o.addressAndPort(a, *port)
		} else {
			o.values = append(o.values, a)
		}
	}
	return nil
}

// literalAddress reads an address or a prefix. pcap-filter's short form, as
// "net 192.168", is read after "net" and before a slash.
func literalAddress(s string, short bool) (found []value, isLiteral bool, err error) {
	address, bits, hasBits := strings.Cut(s, "/")
	parts := strings.Count(address, ".") + 1
	if strings.Trim(address, "0123456789.") == "" && address != "" && parts < 4 {
		if !short && !hasBits {
			return nil, false, fmt.Errorf("%q is not an address: want four numbers, or \"port %s\" for a port", s, s)
		}
		address += strings.Repeat(".0", 4-parts)
		if !hasBits {
			bits, hasBits = strconv.Itoa(8*parts), true
		}
	}
	a, err := netip.ParseAddr(address)
	if err != nil {
		if hasBits || strings.Contains(s, ":") || strings.Trim(s, "0123456789.") == "" {
			return nil, false, fmt.Errorf("%q is not an address or a prefix such as 10.0.0.0/8", s)
		}
		return nil, false, nil
	}
	if !hasBits {
		return []value{addressValue(a)}, true, nil
	}
	n, err := strconv.ParseUint(bits, 10, 8)
	if err != nil || int(n) > a.BitLen() || a.Zone() != "" {
		return nil, false, fmt.Errorf("%q is not a prefix: want a length of 0 to %d after the slash", s, a.BitLen())
	}
	return []value{prefixValue(a, int(n))}, true, nil
}

func addressValue(a netip.Addr) value {
	a = a.Unmap()
	return value{prefix: netip.PrefixFrom(a.WithZone(""), a.BitLen()), zone: a.Zone()}
}

// prefixValue takes prefixes of IPv4 mapped into IPv6 for those of IPv4.
func prefixValue(a netip.Addr, bits int) value {
	if a.Is4In6() && bits >= 96 {
		a, bits = a.Unmap(), bits-96
	}
	return value{prefix: netip.PrefixFrom(a, bits).Masked()}
}

func parseMark(s string) (value, error) {
	number, mask, hasMask := strings.Cut(s, "/")
	v := value{mask: math.MaxUint32}
	var err error
	if v.low, err = strconv.ParseUint(number, 0, 32); err == nil && hasMask {
		v.mask, err = strconv.ParseUint(mask, 0, 32)
	}
	v.low &= v.mask
	return v, err
}

// units of sizes. A lone letter counts in powers of 1024, as find(1) and ss do.
var units = [...]struct {
	name string
	size float64
}{
	{"KiB", 1 << 10}, {"MiB", 1 << 20}, {"GiB", 1 << 30}, {"TiB", 1 << 40},
	{"kbit", 1e3 / 8}, {"Mbit", 1e6 / 8}, {"Gbit", 1e9 / 8}, {"bit", 1.0 / 8},
	{"kB", 1e3}, {"MB", 1e6}, {"GB", 1e9}, {"TB", 1e12},
	{"K", 1 << 10}, {"M", 1 << 20}, {"G", 1 << 30}, {"T", 1 << 40}, {"B", 1},
}

// parseSize reads bytes: "100", "64KiB", "1.5MB", "8Mbit".
func parseSize(s string) (uint64, error) {
	number, size := s, 0.0
	for _, u := range units {
		if n := len(s) - len(u.name); n > 0 && strings.EqualFold(s[n:], u.name) {
			number, size = s[:n], u.size
			break
		}
	}
	if size == 0 {
		return strconv.ParseUint(number, 10, 64)
	}
	if n, err := strconv.ParseUint(number, 10, 64); err == nil && size >= 1 && n <= math.MaxUint64/uint64(size) {
		return n * uint64(size), nil // exact also beyond 2^53
	}
	n, err := parseDecimal(number)
	if err != nil {
		return 0, err
	}
	if n*size >= math.MaxUint64 {
		return 0, strconv.ErrRange
	}
	return uint64(n * size), nil
}

// parseDecimal reads a number without sign and exponent.
func parseDecimal(s string) (float64, error) {
	if strings.Trim(s, "0123456789.") != "" {
		return 0, strconv.ErrSyntax
	}
	return strconv.ParseFloat(s, 64)
}

// parseDuration reads what [time.ParseDuration] does, and days: "50ms", "1h30m", "2d".
func parseDuration(s string) (uint64, error) {
	if days, ok := strings.CutSuffix(s, "d"); ok {
		n, err := parseDecimal(days)
		if err == nil && n*24*float64(time.Hour) >= math.MaxInt64 {
			err = strconv.ErrRange
		}
		return uint64(n * 24 * float64(time.Hour)), err
	}
	d, err := time.ParseDuration(s)
	switch {
	case err == nil && d >= 0:
		return uint64(d), nil
	case strings.Trim(s, "0123456789.") == "":
		return 0, fmt.Errorf("write the unit too, %sms or %ss", s, s)
	}
	return 0, strconv.ErrSyntax
}

package scan

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"iter"
	"net"
	"net/netip"
	"slices"
	"strings"
)

// ErrPublic is the error of a scan of public addresses that the Scanner does not allow.
var ErrPublic = errors.New("public address: only loopback, private and link-local addresses are scanned unless public ones are allowed")

// maxTargetLen lets the largest private network, 10.0.0.0/8, pass. Beyond it a
// scan would not end.
const maxTargetLen = 1 << 24

// Target is a host, or hosts with neighbouring addresses.
type Target struct {
	Name  string     // the host's name if it was given by name
	First netip.Addr // with a zone if it is link-local IPv6
	Last  netip.Addr // included; not valid for one host
}

// ParseTargets reads targets, each of them
//
//	192.168.1.7  fe80::1%eth0    an address
//	10.0.0.0/24                  a network: all its addresses
//	10.0.0.7-10.0.1.9            a range of addresses
//	db.internal                  a host name: all its addresses, IPv4 and IPv6
//
// Names are looked up here, with [net.DefaultResolver]; that may take a while and
// is ended by ctx. Whether the addresses may be scanned is [Scanner.Scan]'s to say.
func ParseTargets(ctx context.Context, args ...string) ([]Target, error) {
	var targets []Target
	for _, arg := range args {
		more, err := parseTarget(ctx, arg)
		if err != nil {
			return nil, fmt.Errorf("target %q: %w", arg, err)
		}
		targets = append(targets, more...)
	}
	return targets, nil
}

func parseTarget(ctx context.Context, s string) ([]Target, error) {
	if strings.Contains(s, "/") {
		return parseNetwork(s)
	}
	first, last, _ := strings.Cut(s, "-")
	lo, errLo := netip.ParseAddr(first)
	hi, errHi := netip.ParseAddr(last)
	if errLo == nil && errHi == nil {
		return valid(Target{First: lo.Unmap(), Last: hi.Unmap()})
	}
	// Only now, as a dash may be part of an interface's name.
	if addr, err := netip.ParseAddr(s); err == nil {
		return valid(Target{First: addr.Unmap()})
	}
	if errLo == nil {
		return nil, fmt.Errorf("%q is not an address: write both ends of a range in full: 10.0.0.7-10.0.0.9", last)
	}
	return lookUp(ctx, s)
}

func parseNetwork(s string) ([]Target, error) {
	p, err := netip.ParsePrefix(s)
	if err != nil {
		return nil, errors.New("is not a network: write address/bits, such as 10.0.0.0/24")
	}
	if p.Addr().Is4In6() {
		return nil, errors.New("is IPv4 written as IPv6: write the IPv4 network")
	}
	return valid(Target{First: p.Masked().Addr(), Last: lastAddr(p)})
}

func valid(t Target) ([]Target, error) {
	return []Target{t}, t.validate()
}

// lookUp returns one target for each address of a host.
func lookUp(ctx context.Context, name string) ([]Target, error) {
	topLevel := name[strings.LastIndexByte(strings.TrimSuffix(name, "."), '.')+1:]
	switch {
	case strings.Contains(name, ":"):
		return nil, errors.New("is neither an address nor a host name: ports are given apart from the target")
	case strings.Trim(topLevel, "0123456789.") == "":
		return nil, errors.New("is neither an address nor a host name")
	}
	addrs, err := net.DefaultResolver.LookupNetIP(ctx, "ip", name)
	if err != nil {
		return nil, err
	}
	var targets []Target
	for _, addr := range addrs {
		t := Target{Name: name, First: addr.Unmap()}
		if !slices.Contains(targets, t) {
			targets = append(targets, t)
		}
	}
	return targets, nil
}

// Len is the number of addresses, 0 if there are more than can be scanned.
func (t Target) Len() uint64 {
	first, last := t.First.As16(), t.last().As16()
	if [8]byte(first[:8]) != [8]byte(last[:8]) {
		return 0
	}
	n := binary.BigEndian.Uint64(last[8:]) - binary.BigEndian.Uint64(first[8:])
	if n >= maxTargetLen {
		return 0
	}
	return n + 1
}

// Addrs yields the addresses in ascending order.
func (t Target) Addrs() iter.Seq[netip.Addr] {
	return func(yield func(netip.Addr) bool) {
		for addr := t.First; yield(addr) && addr != t.last(); addr = addr.Next() {
		}
	}
}

// String returns "10.0.0.7", "10.0.0.7-10.0.0.9", or with a name "db.internal (10.0.0.7)".
func (t Target) String() string {
	s := t.First.String()
	if t.last() != t.First {
		s += "-" + t.Last.String()
	}
	if t.Name != "" {
		s = t.Name + " (" + s + ")"
	}
	return s
}

func (t Target) last() netip.Addr {
	if !t.Last.IsValid() {
		return t.First
	}
	return t.Last
}

// check says what stands against a scan of the target.
func (t Target) check(public bool) error {
	if err := t.validate(); err != nil {
		return err
	}
	if !public && !t.isPrivate() {
		return ErrPublic
	}
	return nil
}

func (t Target) validate() error {
	first, last := t.First, t.last()
	switch {
	case !first.IsValid():
		return errors.New("has no address")
	case first.Is4In6() || last.Is4In6():
		return errors.New("is IPv4 written as IPv6: write the IPv4 address")
	case first.Is4() != last.Is4() || first.Zone() != last.Zone():
		return errors.New("runs from one network to another")
	case last.Less(first):
		return errors.New("runs backwards: write the lower address first")
	case first.IsUnspecified() || first.IsMulticast() || last.IsMulticast() || last == broadcast:
		return errors.New("is not the address of one host")
	case t.Len() == 0:
		return fmt.Errorf("has more addresses than can be scanned, %d: write a smaller network", maxTargetLen)
	case first.Is6() && first.IsLinkLocalUnicast() && first.Zone() == "":
		return fmt.Errorf("a link-local address needs an interface: write %s%%eth0", first)
	}
	return nil
}

var broadcast = netip.AddrFrom4([4]byte{255, 255, 255, 255})

// private lists the addresses that belong to this machine and to networks nearby.
var private = []netip.Prefix{
	netip.MustParsePrefix("127.0.0.0/8"),    // loopback, RFC 1122 section 3.2.1.3
	netip.MustParsePrefix("10.0.0.0/8"),     // private, RFC 1918
	netip.MustParsePrefix("172.16.0.0/12"),  // private, RFC 1918
	netip.MustParsePrefix("192.168.0.0/16"), // private, RFC 1918
	netip.MustParsePrefix("169.254.0.0/16"), // link-local, RFC 3927
	netip.MustParsePrefix("100.64.0.0/10"),  // shared with a carrier's NAT, RFC 6598
	netip.MustParsePrefix("::1/128"),        // loopback, RFC 4291 section 2.5.3
	netip.MustParsePrefix("fc00::/7"),       // unique local, RFC 4193
	netip.MustParsePrefix("fe80::/10"),      // link-local, RFC 4291 section 2.5.6
}

func (t Target) isPrivate() bool {
	return slices.ContainsFunc(private, func(p netip.Prefix) bool {
		// A prefix contains no address that has a zone.
		return p.Contains(t.First.WithZone("")) && p.Contains(t.last().WithZone(""))
	})
}

func lastAddr(p netip.Prefix) netip.Addr {
	bytes := p.Addr().AsSlice()
	for i := p.Bits(); i < len(bytes)*8; i++ {
		bytes[i/8] |= 0x80 >> (i % 8)
	}
	addr, _ := netip.AddrFromSlice(bytes)
	return addr
}

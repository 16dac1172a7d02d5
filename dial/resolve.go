package dial

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strconv"
	"strings"

	"github.com/fivetuple/fivetuple"
)

// family is an address family by the name that a [Resolver] has for it.
type family string

const (
	ipv4 family = "ip4"
	ipv6 family = "ip6"
)

func familyOf(a netip.Addr) family {
	if a.Is4() {
		return ipv4
	}
	return ipv6
}

// String returns "IPv4" or "IPv6".
func (f family) String() string { return strings.Replace(string(f), "ip", "IPv", 1) }

// families are those that the endpoint and the source address leave.
func (d Dialer) families(e fivetuple.Endpoint) ([]family, error) {
	families := []family{ipv6, ipv4}
	addr, isAddr := e.Addr()
	switch {
	case isAddr:
		families = []family{familyOf(addr.Unmap())}
	case e.Network == fivetuple.TCP4:
		families = []family{ipv4}
	case e.Network == fivetuple.TCP6:
		families = []family{ipv6}
	}
	if !d.Source.Addr().IsValid() {
		return families, nil
	}
	source := familyOf(d.Source.Addr().Unmap())
	for _, f := range families {
		if f == source {
			return []family{f}, nil
		}
	}
	return nil, fmt.Errorf("the source address %s is %s and reaches no %s address: give one of that family, or none", d.Source.Addr(), source, families[0])
}

// lookUp finds the addresses of one family.
func (d Dialer) lookUp(ctx context.Context, f family, e fivetuple.Endpoint) answer {
	if addr, ok := e.Addr(); ok {
		return answer{family: f, addrs: []netip.Addr{addr}}
	}
	if e.Host == "" || e.Host == fivetuple.AnyHost {
		loopback := netip.IPv6Loopback()
		if f == ipv4 {
			loopback = netip.AddrFrom4([4]byte{127, 0, 0, 1})
		}
		return answer{family: f, addrs: []netip.Addr{loopback}}
	}
	addrs, err := d.resolver().LookupNetIP(ctx, string(f), e.Host)
	return answer{f, addrs, err}
}

// noAddress is why a host has no address to try.
func noAddress(e fivetuple.Endpoint, families []family, errs []error) error {
	for _, err := range errs {
		if !isNotFound(err) {
			return err
		}
	}
	if len(families) == 1 {
		return fmt.Errorf("%w (asked for %s alone)", cmp.Or(errors.Join(errs...), errNoAddress), families[0])
	}
	for _, err := range errs {
		return fmt.Errorf("%w: check the spelling, or give an address", err)
	}
	return fmt.Errorf("%w for %s", errNoAddress, e.Host)
}

// errNoAddress is a resolver's that answers with nothing.
var errNoAddress = errors.New("the resolver has no address")

// isNotFound says whether a lookup failed because there is no such address, and not
// because nobody answered.
func isNotFound(err error) bool {
	var dns *net.DNSError
	var addr *net.AddrError // "no suitable address"
	return errors.As(err, &dns) && dns.IsNotFound || errors.As(err, &addr)
}

// onInterface returns the dialer and the endpoint with a zone that is more than part
// of a link-local address moved to Interface: the kernel would not heed it. It fails
// if there is no such interface.
func (d Dialer) onInterface(e fivetuple.Endpoint) (Dialer, fivetuple.Endpoint, error) {
	if addr, _ := e.Addr(); e.Zone != "" && !addr.IsLinkLocalUnicast() {
		if d.Interface != "" && d.Interface != e.Zone {
			return d, e, fmt.Errorf("%%%s and the interface %s are two: give one", e.Zone, d.Interface)
		}
		d.Interface, e.Zone = e.Zone, ""
	}
	for _, name := range []string{d.Interface, e.Zone} {
		if err := checkInterface(name); err != nil {
			return d, e, err
		}
	}
	return d, e, nil
}

// checkInterface says which interfaces there are if name is none of them. A zone may
// be a number.
func checkInterface(name string) error {
	if name == "" {
		return nil
	}
	_, err := net.InterfaceByName(name)
	if index, errNumber := strconv.Atoi(name); err != nil && errNumber == nil {
		_, err = net.InterfaceByIndex(index)
	}
	if err == nil {
		return nil
	}
	return fmt.Errorf("no network interface %s: there are %s", name, interfaceNames())
}

func interfaceNames() string {
	const enough = 16
	all, err := net.Interfaces()
	if err != nil {
		return "none to be seen: " + err.Error()
	}
	var names []string
	for i, ifi := range all {
		if i == enough {
			names = append(names, "and more")
			break
		}
		names = append(names, ifi.Name)
	}
	return strings.Join(names, ", ")
}

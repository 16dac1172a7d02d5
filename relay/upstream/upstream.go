// Package upstream chooses where a relay sends a connection: it knows the targets
// of a rule, resolves their names again when the answers age, watches which
// addresses work, and balances between those that do.
//
//	p, err := upstream.New(upstream.Config{Targets: targets})
//	...
//	for way := p.Choose(client); ; {
//		a, ok := way.Next()
//		...
//	}
//
// Choosing never waits: names are resolved, and addresses checked, in the
// background. It stands on Go's resolver and package dial and works everywhere.
package upstream

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"github.com/fivetuple/fivetuple"
	"github.com/fivetuple/fivetuple/dial"
	"github.com/fivetuple/fivetuple/stats"
)

// Policy is how connections are spread over addresses.
type Policy uint8

// The policies.
const (
	RoundRobin       Policy = iota // one after the other
	LeastConnections               // where the fewest are
	SourceHash                     // the same source to the same address, while that works
)

var policyNames = [...]string{"round-robin", "least-connections", "source-hash"}

// String returns "round-robin", "least-connections" or "source-hash".
func (p Policy) String() string { return policyNames[p] }

// Set parses the name of a policy.
func (p *Policy) Set(s string) error {
	i := slices.Index(policyNames[:], s)
	if i < 0 {
		return fmt.Errorf("want one of %s", strings.Join(policyNames[:], ", "))
	}
	*p = Policy(i)
	return nil
}

// Type implements pflag.Value.
func (p *Policy) Type() string { return "policy" }

// Check is an active check of an address: connecting to it. The zero value is none.
type Check struct {
	Interval time.Duration // between two checks; 0 is none
	Timeout  time.Duration // of one; default the smaller of Interval and 5 s
	Rise     int           // successes in a row after which a bad address is good; default 2
	Fall     int           // failures in a row after which a good one is bad; default 3
}

// Config of a Pool.
type Config struct {
	Targets []fivetuple.Endpoint // tcp, tcp4, tcp6, tls, unix, udp, udp4 or udp6; at least one
	Policy  Policy
	Check   Check
	// MaxFails is after how many failures in a row an address is left out for
	// FailFor; default 3, below 0 never. FailFor defaults to 10 s.
	MaxFails int
	FailFor  time.Duration
	// Refresh is how long addresses are used that came without a time to live,
	// as from /etc/hosts; default 30 s.
	Refresh time.Duration
	Dialer  dial.Dialer // makes the active checks
	// Service and Sink are for Error events: what goes bad and comes back, names that do not resolve.
	Service string
	Sink    stats.Sink
}

// Pool is the targets of one rule.
type Pool struct {
	addresses []*Address
	next      atomic.Uint64
}

// New begins to resolve and to check. It fails only for a configuration that cannot work.
func New(c Config) (*Pool, error) {
	if len(c.Targets) == 0 {
		return nil, errors.New("no target")
	}
	p := &Pool{}
	for _, t := range c.Targets {
		a := &Address{Target: t}
		if ip, ok := t.Addr(); ok {
			a.Addr = netip.AddrPortFrom(ip, t.Ports.First)
		} else if t.Network.IsIP() {
			a.Addr = netip.AddrPortFrom(netip.MustParseAddr("127.0.0.1"), t.Ports.First)
		} else {
			a.Path = t.Path
		}
		p.addresses = append(p.addresses, a)
	}
	return p, nil
}

// Close ends checks and lookups. The Pool may still be used.
func (p *Pool) Close() {}

// Address is one place that a target stands for.
type Address struct {
	Target fivetuple.Endpoint // as the rule names it
	Addr   netip.AddrPort     // zero for a Unix socket
	Path   string             // of a Unix socket, or "@name"

	conns atomic.Int64
}

// Opened counts a connection that is established, which is a success, too.
func (a *Address) Opened() { a.conns.Add(1) }

// Closed counts the end of one that was opened.
func (a *Address) Closed() { a.conns.Add(-1) }

// Failed says that the address did not take a connection.
func (a *Address) Failed(err error) {}

// Conns is how many connections were opened and not yet closed.
func (a *Address) Conns() int { return int(a.conns.Load()) }

// Choice is the way of one connection through the addresses of a pool.
type Choice struct {
	pool  *Pool
	first uint64
	tried int
}

// Choose begins with the best address for a client. It does not wait and allocates nothing.
func (p *Pool) Choose(client netip.Addr) Choice {
	return Choice{pool: p, first: p.next.Add(1) - 1}
}

// Next is the next address to try: each once, those that work first. It is false when none is left.
func (c *Choice) Next() (*Address, bool) {
	n := len(c.pool.addresses)
	if c.tried >= n {
		return nil, false
	}
	a := c.pool.addresses[(c.first+uint64(c.tried))%uint64(n)]
	c.tried++
	return a, true
}

// Err says why there is no address at all: names that do not resolve. It is nil if there is one.
func (p *Pool) Err() error { return nil }

// Find returns the address that a connection taken over from elsewhere goes to,
// which may be none of the targets any more; it is never nil.
func (p *Pool) Find(addr netip.AddrPort, path string) *Address {
	for _, a := range p.addresses {
		if a.Addr == addr && a.Path == path {
			return a
		}
	}
	return &Address{Addr: addr, Path: path}
}

// Package upstream chooses where a relay sends a connection: it knows the targets
// of a rule, resolves their names again when the answers age, watches which
// addresses work, and balances between those that do.
//
//	p, err := upstream.New(upstream.Config{Targets: targets})
//	...
//	for way := p.Choose(client); ; {
//		a, ok := way.Next()
//		if !ok {
//			return p.Err()
//		}
//		conn, err := connect(a)
//		if err != nil {
//			a.Failed(err)
//			a.Closed()
//			continue
//		}
//		a.Opened()
//		defer a.Closed()
//		...
//	}
//
// Choosing never waits: names are resolved, and addresses checked, in the
// background. It stands on Go's own resolver, to whose conversation with the name
// servers it listens for the time to live of the answers, and on package dial. It
// works everywhere.
package upstream

import (
	"context"
	"errors"
	"fmt"
	"net"
	"slices"
	"strings"
	"time"

	"github.com/fivetuple/fivetuple"
	"github.com/fivetuple/fivetuple/dial"
	"github.com/fivetuple/fivetuple/stats"
)

// Defaults of a [Config] and a [Check].
const (
	DefaultMaxFails     = 3
	DefaultFailFor      = 10 * time.Second
	DefaultRefresh      = 30 * time.Second
	DefaultCheckTimeout = 5 * time.Second
	DefaultRise         = 2
	DefaultFall         = 3
)

const maxFailFor = 24 * time.Hour

// MaxAddresses is how many addresses a pool has at most. Each target may have an
// equal part of them; of a name with more addresses the lowest are used.
const MaxAddresses = 256

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
func (p Policy) String() string {
	if int(p) < len(policyNames) {
		return policyNames[p]
	}
	return fmt.Sprintf("policy(%d)", uint8(p))
}

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

// Check is an active check of an address: connecting to it, and for a tls target
// the handshake. The zero value is none. A UDP target cannot be checked, since
// nobody answers a connection there.
type Check struct {
	Interval time.Duration // between two checks; 0 is none
	Timeout  time.Duration // of one; default the smaller of Interval and 5 s
	Rise     int           // successes in a row after which a bad address is good; default 2
	Fall     int           // failures in a row after which a good one is bad; default 3
}

// Config of a Pool.
type Config struct {
	// Targets are tcp, tcp4, tcp6, tls and unix, or udp, udp4 and udp6; at least one, at
	// most MaxAddresses. Without a host they are on the loopback, 127.0.0.1, or ::1 for
	// tcp6 and udp6. Of a range of ports the first counts.
	Targets []fivetuple.Endpoint
	Policy  Policy
	Check   Check
	// MaxFails is after how many failures in a row an address is left out for
	// FailFor; default 3, below 0 never. FailFor defaults to 10 s and is at most a day; it doubles up to
	// ten times that for an address that fails again when it is tried after it.
	MaxFails int
	FailFor  time.Duration
	// Refresh is how long addresses are used that came without a time to live,
	// as from /etc/hosts; default 30 s.
	Refresh time.Duration
	Dialer  dial.Dialer // makes the active checks
	// DNS connects to a name server, as the Dial of a [net.Resolver] does: a connection
	// that is no [net.PacketConn] has the framing of TCP. Nil is a [net.Dialer]'s.
	DNS func(ctx context.Context, network, address string) (net.Conn, error)
	// Service and Sink are for Error events: what goes bad and comes back, names that do not resolve.
	Service string
	Sink    stats.Sink
}

// withDefaults fills in what was left out.
func (c Config) withDefaults() Config {
	set(&c.MaxFails, DefaultMaxFails)
	set(&c.FailFor, DefaultFailFor)
	set(&c.Refresh, DefaultRefresh)
	set(&c.Check.Timeout, min(c.Check.Interval, DefaultCheckTimeout))
	set(&c.Check.Rise, DefaultRise)
	set(&c.Check.Fall, DefaultFall)
	if c.DNS == nil {
		c.DNS = new(net.Dialer).DialContext
	}
	return c
}

func set[T comparable](field *T, value T) {
	var zero T
	if *field == zero {
		*field = value
	}
}

// Valid says why no pool can be made of the configuration; nil if one can.
func (c Config) Valid() error {
	err := c.validate()
	if err == nil {
		_, err = withPorts(c.Targets)
	}
	return err
}

// validate refuses what cannot work.
func (c *Config) validate() error {
	switch {
	case len(c.Targets) == 0:
		return errors.New("no target")
	case len(c.Targets) > MaxAddresses:
		return fmt.Errorf("%d targets: there may be %d", len(c.Targets), MaxAddresses)
	case int(c.Policy) >= len(policyNames):
		return fmt.Errorf("unknown %s", c.Policy)
	case c.FailFor < 0 || c.FailFor > maxFailFor:
		return fmt.Errorf("leaving an address out for %v: want a time of at most %v, or 0 for the default", c.FailFor, maxFailFor)
	case c.Refresh < 0:
		return fmt.Errorf("a refresh after %v: want a time above zero, or 0 for the default", c.Refresh)
	case c.Check.Interval < 0 || c.Check.Timeout < 0 || c.Check.Rise < 0 || c.Check.Fall < 0:
		return errors.New("a check has times and counts above zero, or 0 for the default")
	}
	for _, e := range c.Targets {
		if err := validateTarget(e); err != nil {
			return fmt.Errorf("target %s: %w", e, err)
		}
		if e.Network.IsDatagram() != c.Targets[0].Network.IsDatagram() {
			return fmt.Errorf("the targets %s and %s do not go together: one takes streams, the other datagrams", c.Targets[0], e)
		}
		if e.Network.IsDatagram() && c.Check.Interval > 0 {
			return fmt.Errorf("target %s: a check connects, which nobody answers over UDP: leave the check out; an address that refuses datagrams is left out anyway", e)
		}
	}
	return nil
}

func validateTarget(e fivetuple.Endpoint) error {
	switch {
	case e.Network == fivetuple.Unix && e.Path != "":
		return nil
	case !e.Network.IsIP():
		return errors.New("connections go on to tcp, tls, udp and unix")
	case e.Service == "" && e.Ports.First == 0:
		return errors.New("port 0 cannot be connected to")
	case e.Service == "" && e.Ports.Last < e.Ports.First:
		return fmt.Errorf("the port range %s runs backwards", e.Ports)
	}
	return nil
}

package relay

import (
	"crypto/tls"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"runtime"
	"slices"
	"strings"
	"time"

	"github.com/fivetuple/fivetuple"
	"github.com/fivetuple/fivetuple/relay/faults"
	"github.com/fivetuple/fivetuple/relay/upstream"
	"github.com/fivetuple/fivetuple/sockopt"
)

// DefaultStreamIdle is how long a relayed stream may be silent, unless its server's
// limits say otherwise. An hour is nothing strange where two programs keep a
// connection open through a relay, of which neither knows.
const DefaultStreamIdle = time.Hour

// Config is a rule: where what comes goes on to. The zero value of a field is
// its default.
type Config struct {
	Targets  []fivetuple.Endpoint // tcp, tls or unix for streams, udp for datagrams
	Policy   upstream.Policy      // how they are chosen
	Check    upstream.Check       // active checks; default none
	MaxFails int                  // failures in a row after which an address is left out for FailFor; default 3, below 0 never
	FailFor  time.Duration        // default 10 s
	// Names are the targets for clients that ask for a name in TLS, which is not
	// decrypted: "a.example", "*.example". All others go to Targets, if there are any.
	Names map[string][]fivetuple.Endpoint
	// Listen is where the rule listens. Of a range of ports, the first belongs to the
	// targets' first port, and so on.
	Listen fivetuple.Endpoint

	ConnectTimeout time.Duration    // of each address; default 5 s
	HalfClosed     time.Duration    // how long a stream that has ended in one direction may be silent; default 60 s
	ProxyVersion   int              // of the PROXY protocol header that is sent first: 1, 2 or, for none, 0
	Source         netip.AddrPort   // to connect from; a zero address or port is the kernel's choice
	Interface      string           // to connect through
	Transparent    bool             // connect from the client's own address
	Options        sockopt.Settings // of the sockets to targets
	TLS            *tls.Config      // of targets that are tls; nil verifies with the system's roots
	Rate           int64            // bytes per second of a connection in each direction; 0 is no limit
	FirstReply     time.Duration    // how long a UDP session waits for the first reply; default 30 s
	Idle           time.Duration    // how long a UDP session that had one may be silent; default 180 s
	Faults         faults.Config    // what goes wrong on purpose
}

// CheckFor refuses what does not go together with listening on an endpoint.
// terminates says that TLS ends here.
func (c *Config) CheckFor(listen fivetuple.Endpoint, terminates bool) error {
	switch {
	case len(c.Targets) == 0 && len(c.Names) == 0:
		return errors.New("no target to forward to")
	case listen.Network == fivetuple.Stdio, listen.Network == fivetuple.Unixgram, listen.Network == fivetuple.Seqpacket:
		return fmt.Errorf("a rule listens on tcp, tls, udp, unix or vsock, not on %s", listen.Network)
	case listen.Network == fivetuple.TLS && !terminates:
		return errors.New("TLS needs a certificate; without one, tcp passes it on as it comes")
	case c.ProxyVersion < 0 || c.ProxyVersion > 2:
		return fmt.Errorf("version %d of the PROXY protocol: want 1 or 2", c.ProxyVersion)
	case c.Rate < 0:
		return fmt.Errorf("a rate of %d bytes a second: want 1 or more, or 0 for no limit", c.Rate)
	case c.Transparent && !listen.Network.IsIP():
		return fmt.Errorf("the client's own address is none to connect from, where clients come by %s", listen.Network)
	case c.Transparent && c.Source != (netip.AddrPort{}):
		return errors.New("the client's own address (transparent) and an address to connect from exclude each other")
	case c.Check.Interval > 0 && listen.Ports.Len() > 1:
		return errors.New("a check is for one port, and this is a range: make a rule of each port that is to be checked")
	case c.Check.Interval < 0 || c.Check.Timeout < 0 || c.Check.Rise < 0 || c.Check.Fall < 0:
		return errors.New("a check has times and counts above zero")
	}
	if err := c.Faults.Validate(); err != nil {
		return err
	}
	for _, t := range c.Targets {
		if err := c.checkTarget(t, listen); err != nil {
			return fmt.Errorf("forward to %s: %w", t, err)
		}
	}
	return c.checkNames(listen)
}

func (c *Config) checkNames(listen fivetuple.Endpoint) error {
	if len(c.Names) > 0 && listen.Network.IsDatagram() {
		return errors.New("server names are for streams with TLS, not for datagrams")
	}
	for name, targets := range c.Names {
		if err := checkName(name); err != nil {
			return err
		}
		if len(targets) == 0 {
			return fmt.Errorf("server name %q: no target to forward to", name)
		}
		for _, t := range targets {
			if err := c.checkTarget(t, listen); err != nil {
				return fmt.Errorf("server name %q: forward to %s: %w", name, t, err)
			}
		}
	}
	return nil
}

// checkName accepts "a.example" and "*.example".
func checkName(name string) error {
	host := strings.TrimPrefix(name, "*.")
	if host == "" || strings.ContainsAny(host, "*:/ ") || host != strings.ToLower(host) || strings.HasSuffix(host, ".") {
		return fmt.Errorf("server name %q: write it in lower case, as a.example or *.example", name)
	}
	return nil
}

func (c *Config) checkTarget(t, listen fivetuple.Endpoint) error {
	n, span := t.Network, listen.Ports.Len()
	switch {
	case listen.Network.IsDatagram() && n.Protocol() != fivetuple.UDP:
		return fmt.Errorf("datagrams go on to udp, not to %s", n)
	case listen.Network.IsDatagram() && c.ProxyVersion != 0:
		return errors.New("the PROXY protocol is for streams")
	case !listen.Network.IsDatagram() && n != fivetuple.Unix && n.Protocol() != fivetuple.TCP:
		return fmt.Errorf("streams go on to tcp, tls or unix, not to %s", n)
	case t.Host == fivetuple.AnyHost, unspecified(t):
		return errors.New("all addresses are no place to connect to: name one")
	case n.IsIP() && t.Service == "" && t.Ports.First == 0:
		return errors.New("a target needs a port")
	case n == fivetuple.Unix && span > 1:
		return errors.New("a range of ports goes on to ports, not to one socket")
	case n == fivetuple.Unix && c.Transparent:
		return errors.New("a Unix socket is not connected to from an address")
	case t.Ports.Len() > 1 && t.Ports.Len() != span:
		return fmt.Errorf("%d ports go on to %d: give as many, or just the first", span, t.Ports.Len())
	case n.IsIP() && int(t.Ports.First)+span-1 > 65535:
		return fmt.Errorf("%d ports from %d on: there are none above 65535", span, t.Ports.First)
	case sameSocket(t, listen):
		return errors.New("that is where the rule itself listens: it would connect to itself without end")
	}
	return nil
}

func unspecified(t fivetuple.Endpoint) bool {
	a, literal := t.Addr()
	return literal && a.IsUnspecified()
}

// sameSocket says whether connecting to t would surely reach listen.
func sameSocket(t, listen fivetuple.Endpoint) bool {
	switch {
	case t.Network == fivetuple.Unix || listen.Network == fivetuple.Unix:
		return t.Network == listen.Network && t.Path == listen.Path
	case !listen.Network.IsIP() || t.Network.Protocol() != listen.Network.Protocol():
		return false
	case t.Service != "" || listen.Service != "" || listen.Ports.First == 0 || t.Ports.First != listen.Ports.First:
		return false
	}
	local := func(h string) bool { return h == "" || h == "localhost" || h == "127.0.0.1" || h == "::1" }
	return t.Host == listen.Host || local(t.Host) && (local(listen.Host) || listen.Host == fivetuple.AnyHost)
}

// Splices says whether event loops can carry what comes from a listener on a network.
func (c *Config) Splices(listen fivetuple.Network) bool {
	plain := func(n fivetuple.Network) bool {
		return n == fivetuple.Unix || n.Protocol() == fivetuple.TCP && n != fivetuple.TLS
	}
	if runtime.GOOS != "linux" || !plain(listen) || c.Faults.Active() {
		return false
	}
	all := slices.Concat(append(slices.Collect(maps.Values(c.Names)), c.Targets)...)
	return !slices.ContainsFunc(all, func(t fivetuple.Endpoint) bool { return !plain(t.Network) })
}

// firstPorts leaves the first port of each target's range.
func (c *Config) firstPorts(targets []fivetuple.Endpoint) []fivetuple.Endpoint {
	all := slices.Clone(targets)
	for i := range all {
		all[i].Ports.Last = all[i].Ports.First
	}
	return all
}

// firstPort is the local port that the targets' port belongs to; 0 if all do.
func (c *Config) firstPort() uint16 {
	if c.Listen.Ports.Len() > 1 {
		return c.Listen.Ports.First
	}
	return 0
}

package daemon

import (
	"cmp"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"reflect"
	"slices"
	"strconv"
	"strings"

	"go.yaml.in/yaml/v3"

	"github.com/fivetuple/fivetuple"
	"github.com/fivetuple/fivetuple/relay"
	"github.com/fivetuple/fivetuple/relay/faults"
	"github.com/fivetuple/fivetuple/relay/upstream"
	"github.com/fivetuple/fivetuple/secure"
	"github.com/fivetuple/fivetuple/sockopt"
	"github.com/fivetuple/fivetuple/stream"
)

const kindForward = "forward"

// Forward is the rule of a service of the kind forward. Where nothing is given
// the defaults are those of [relay.Config].
type Forward struct {
	To             []Target            `yaml:"to"`      // targets; those without a scheme are udp:// where listen is
	Balance        Balance             `yaml:"balance"` // round-robin, least-connections or source-hash
	Check          Check               `yaml:"check"`
	MaxFails       Count               `yaml:"max_fails"` // in a row, after which a target is left out for fail_for; off is never
	FailFor        Duration            `yaml:"fail_for"`
	Names          map[string][]Target `yaml:"names"` // targets of TLS clients that ask for a name
	ConnectTimeout Duration            `yaml:"connect_timeout"`
	HalfClosed     Duration            `yaml:"half_closed"`
	SendProxy      int                 `yaml:"send_proxy"` // version of the PROXY protocol, 1 or 2
	Source         Source              `yaml:"source"`     // address to connect from
	Interface      string              `yaml:"interface"`  // to connect through
	Transparent    bool                `yaml:"transparent"`
	TargetOptions  []Option            `yaml:"target_options"` // of the sockets to targets
	TargetTLS      TargetTLS           `yaml:"target_tls"`     // of targets that are tls://
	Rate           Size                `yaml:"rate"`           // bytes per second of a connection in each direction
	FirstReply     Duration            `yaml:"first_reply"`    // of a UDP session
	Faults         Faults              `yaml:"faults"`         // on purpose

	// Rule, of a program and not of a file, is used instead of all of the above.
	Rule *relay.Config `yaml:"-"`
	// Bounds, likewise, are used instead of Service.Limits, Allow and Deny; what is
	// zero in them has the defaults of Limits. Of UDP, IdleTimeout is that of sessions.
	Bounds *stream.Limits `yaml:"-"`
}

// Check is how targets are checked: by connecting to them.
type Check struct {
	Interval Duration `yaml:"interval"`
	Timeout  Duration `yaml:"timeout"`
	Rise     Count    `yaml:"rise"`
	Fall     Count    `yaml:"fall"`
}

// TargetTLS is spoken with targets. The files are in PEM.
type TargetTLS struct {
	CA         string `yaml:"ca"`          // the authorities to trust, instead of the system's
	Cert       string `yaml:"cert"`        // to show, and its intermediates
	Key        string `yaml:"key"`         // its key; default: it is in the file of cert
	ServerName string `yaml:"server_name"` // to ask for and to verify, instead of the target's host
	Insecure   bool   `yaml:"insecure"`    // verify nothing
}

// Faults is what goes wrong on purpose: [faults.Config].
type Faults struct {
	Seed      uint64   `yaml:"seed"`
	Delay     Duration `yaml:"delay"`
	Jitter    Duration `yaml:"jitter"`
	Loss      Chance   `yaml:"loss"`
	Reorder   Chance   `yaml:"reorder"`
	Bandwidth Size     `yaml:"bandwidth"` // bytes per second in each direction
	CutAfter  Size     `yaml:"cut_after"`
	CutTime   Duration `yaml:"cut_time"`
}

// Target is an endpoint to forward to.
type Target struct {
	fivetuple.Endpoint
	Bare bool // written without a scheme: it has the transport of where the rule listens
}

// UnmarshalYAML implements [yaml.Unmarshaler].
func (t *Target) UnmarshalYAML(n *yaml.Node) error {
	t.Bare = !strings.Contains(n.Value, "://")
	return unmarshalText(n, &t.Endpoint)
}

// Balance is how connections are spread over targets.
type Balance struct{ upstream.Policy }

// UnmarshalYAML implements [yaml.Unmarshaler].
func (b *Balance) UnmarshalYAML(n *yaml.Node) error { return unmarshalText(n, b) }

// UnmarshalText reads the name of a policy.
func (b *Balance) UnmarshalText(text []byte) error {
	if err := b.Policy.Set(string(text)); err != nil {
		return fmt.Errorf("balance %q: %w", text, err)
	}
	return nil
}

// Source is an address to connect from, with a port or without.
type Source struct{ netip.AddrPort }

// UnmarshalYAML implements [yaml.Unmarshaler].
func (s *Source) UnmarshalYAML(n *yaml.Node) error { return unmarshalText(n, s) }

// UnmarshalText reads "192.0.2.7", "192.0.2.7:4000" or "[2001:db8::7]:4000".
func (s *Source) UnmarshalText(text []byte) error {
	if a, err := netip.ParseAddr(string(text)); err == nil {
		s.AddrPort = netip.AddrPortFrom(a, 0)
		return nil
	}
	ap, err := netip.ParseAddrPort(string(text))
	if err != nil {
		return fmt.Errorf("%q is not an address to connect from, such as 192.0.2.7 or 192.0.2.7:4000", text)
	}
	s.AddrPort = ap
	return nil
}

// Chance is a share from 0 to 1.
type Chance struct{ Share float64 }

// UnmarshalYAML implements [yaml.Unmarshaler].
func (c *Chance) UnmarshalYAML(n *yaml.Node) error { return unmarshalText(n, c) }

// UnmarshalText reads "0.05" or "5%".
func (c *Chance) UnmarshalText(text []byte) error {
	number, percent := strings.CutSuffix(string(text), "%")
	v, err := strconv.ParseFloat(number, 64)
	if percent {
		v /= 100
	}
	if err != nil || !(v >= 0 && v <= 1) {
		return fmt.Errorf("%q is not a share such as 0.05 or 5%%", text)
	}
	c.Share = v
	return nil
}

// given are the keys that are set.
func (f *Forward) given() (keys []string) {
	v := reflect.ValueOf(*f)
	for i := range v.NumField() {
		if v.Field(i).IsZero() {
			continue
		}
		if key := v.Type().Field(i).Tag.Get("yaml"); key != "-" {
			keys = append(keys, key)
		}
	}
	return keys
}

// checkRule refuses what cannot be a rule. It looks at no file.
func (s *Service) checkRule() error {
	for key, d := range map[string]Duration{
		"fail_for": s.FailFor, "connect_timeout": s.ConnectTimeout, "half_closed": s.HalfClosed, "first_reply": s.FirstReply,
		"check: interval": s.Check.Interval, "check: timeout": s.Check.Timeout,
		"faults: delay": s.Faults.Delay, "faults: jitter": s.Faults.Jitter, "faults: cut_time": s.Faults.CutTime,
	} {
		if d.isOff() {
			return fmt.Errorf("%s cannot be off: give a time such as 30s, or leave it out", key)
		}
	}
	for key, c := range map[string]Count{"check: rise": s.Check.Rise, "check: fall": s.Check.Fall} {
		if c.isOff() {
			return fmt.Errorf("%s cannot be off: give a number, or leave it out", key)
		}
	}
	switch {
	case s.Check.Interval.Duration == 0 && s.Check != (Check{}):
		return errors.New("check needs an interval: write check: {interval: 5s}")
	case s.FirstReply.Duration != 0 && !s.Listen.Network.IsDatagram():
		return errors.New("first_reply is for UDP alone")
	case s.HalfClosed.Duration != 0 && s.Listen.Network.IsDatagram():
		return errors.New("half_closed is not for UDP")
	}
	for _, o := range s.TargetOptions {
		if err := s.checkTargetOption(o.Option()); err != nil {
			return err
		}
	}
	rule := s.rule()
	if len(rule.Targets)+len(rule.Names) == 0 {
		return errors.New("forward needs targets: write to: [10.0.0.5:80], for example")
	}
	return rule.CheckFor(s.Listen.Endpoint, s.TLS.Cert != "")
}

// checkTargetOption refuses an option that no target's socket has.
func (s *Service) checkTargetOption(o sockopt.Option) error {
	rule := s.rule()
	all := rule.Targets
	for _, name := range slices.Sorted(maps.Keys(rule.Names)) {
		all = append(all, rule.Names[name]...)
	}
	for _, t := range all {
		if target := (Service{Listen: Endpoint{t}}); o.Sockets.Admits(target.socketKind()) {
			return nil
		}
	}
	return fmt.Errorf("target option %s is for %s sockets; no target has such", o.Name, o.Sockets)
}

// rule is what the keys say together, but for the files of target_tls.
func (s *Service) rule() relay.Config {
	if s.Rule != nil {
		rule := *s.Rule
		rule.Listen = s.Listen.Endpoint
		if s.Bounds != nil && s.Listen.Network.IsDatagram() {
			rule.Idle = cmp.Or(rule.Idle, s.Bounds.IdleTimeout)
		}
		return rule
	}
	c := relay.Config{
		Listen: s.Listen.Endpoint, Targets: s.targets(s.To), Policy: s.Balance.Policy,
		Check:    upstream.Check{Interval: s.Check.Interval.Duration, Timeout: s.Check.Timeout.Duration, Rise: s.Check.Rise.N, Fall: s.Check.Fall.N},
		MaxFails: s.MaxFails.N, FailFor: s.FailFor.Duration,
		ConnectTimeout: s.ConnectTimeout.Duration, HalfClosed: s.HalfClosed.Duration, ProxyVersion: s.SendProxy,
		Source: s.Source.AddrPort, Interface: s.Interface, Transparent: s.Transparent, Rate: s.Rate.Bytes,
		FirstReply: s.FirstReply.Duration,
		Faults: faults.Config{
			Seed: s.Faults.Seed, Delay: s.Faults.Delay.Duration, Jitter: s.Faults.Jitter.Duration, Loss: s.Faults.Loss.Share, Reorder: s.Faults.Reorder.Share,
			Bandwidth: s.Faults.Bandwidth.Bytes, CutAfter: s.Faults.CutAfter.Bytes, CutTime: s.Faults.CutTime.Duration,
		},
	}
	if s.MaxFails.isOff() {
		c.MaxFails = -1
	}
	if s.Listen.Network.IsDatagram() {
		c.Idle = s.Limits.Idle.Duration
	}
	for _, o := range s.TargetOptions {
		c.Options = append(c.Options, o.Setting)
	}
	for name, to := range s.Names {
		if c.Names == nil {
			c.Names = make(map[string][]fivetuple.Endpoint)
		}
		c.Names[name] = s.targets(to)
	}
	return c
}

// targets gives those that are written without a transport that of the listener.
func (s *Service) targets(list []Target) (all []fivetuple.Endpoint) {
	for _, t := range list {
		if t.Bare && s.Listen.Network.IsDatagram() && t.Network == fivetuple.TCP {
			t.Network = fivetuple.UDP
		}
		all = append(all, t.Endpoint)
	}
	return all
}

// loadRule is the rule with the files of target_tls.
func (s *Service) loadRule() (relay.Config, error) {
	c := s.rule()
	if s.Rule != nil || s.TargetTLS == (TargetTLS{}) {
		return c, nil
	}
	t := s.TargetTLS
	config, err := secure.Client{CAFile: t.CA, CertFile: t.Cert, KeyFile: t.Key, ServerName: t.ServerName, Insecure: t.Insecure}.ConfigForAny()
	if err != nil {
		return c, fmt.Errorf("target_tls: %w", err)
	}
	c.TLS = config
	return c, nil
}

// CheckFiles reads the files that the configuration names: certificates and keys.
func (c *Config) CheckFiles() error {
	var errs []error
	for _, s := range c.Services {
		_, err := s.loadRule()
		if err == nil && s.Listen.Network == fivetuple.TLS {
			_, err = s.TLS.server().Config()
		}
		if err != nil {
			errs = append(errs, fmt.Errorf("service %s: %w", s.Name, err))
		}
	}
	return errors.Join(errs...)
}

func (t TLS) server() secure.Server {
	return secure.Server{CertFile: t.Cert, KeyFile: t.Key, ClientCAFile: t.ClientCA}
}

// splices says whether event loops relay the service.
func (s *Service) splices() bool {
	if s.Kind != kindForward {
		return false
	}
	rule := s.rule()
	return rule.Splices(s.Listen.Network)
}

package daemon

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/netip"
	"os"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode"

	"go.yaml.in/yaml/v3"

	"github.com/fivetuple/fivetuple"
	"github.com/fivetuple/fivetuple/datagram"
	"github.com/fivetuple/fivetuple/sockopt"
	"github.com/fivetuple/fivetuple/stream"
)

// Config is what a daemon runs. The zero value runs no service and keeps the
// history at its default place.
type Config struct {
	Services []Service `yaml:"services"`
	History  History   `yaml:"history"`
	Leases   Leases    `yaml:"leases"`
	// Drain is how long connections may go on after the order to stop, before
	// they are reset. Default 10 s.
	Drain Duration `yaml:"drain"`
}

// Service is one thing that listens.
type Service struct {
	Name    string   `yaml:"name"`    // in logs and in the history; default KIND-LISTEN
	Listen  Endpoint `yaml:"listen"`  // required; of the kind forward it may be a range of ports
	Kind    string   `yaml:"kind"`    // of the built-in handlers, or forward; default echo
	Options []Option `yaml:"options"` // socket options, each name=value
	Limits  Limits   `yaml:"limits"`
	Allow   []Prefix `yaml:"allow"` // the only sources served, if any are given
	Deny    []Prefix `yaml:"deny"`  // sources not served
	Mode    Mode     `yaml:"mode"`  // permissions of a Unix socket's path; default 0600
	TLS     TLS      `yaml:"tls"`   // of listen: tls://
	// AcceptProxy lists the sources that name their client by the PROXY protocol,
	// version 1 or 2, and must.
	AcceptProxy []Prefix `yaml:"accept_proxy"`

	Forward `yaml:",inline"` // of the kind forward

	line int // in the configuration file, for errors
}

// TLS is spoken with clients. The files are in PEM, and are read again when they change.
type TLS struct {
	Cert     string `yaml:"cert"`      // the certificate, first, and its intermediates
	Key      string `yaml:"key"`       // its key; default: it is in the file of cert
	ClientCA string `yaml:"client_ca"` // clients must have a certificate of one of these authorities
}

// Limits of one service. Zero is the default; "off", where it is taken, no limit.
type Limits struct {
	Connections Count    `yaml:"connections"` // at once; default what the descriptor limit allows
	PerSource   Count    `yaml:"per_source"`  // of them from one address; default off, or three quarters of the default of connections
	AcceptRate  Count    `yaml:"accept_rate"` // connections per second; default off
	Idle        Duration `yaml:"idle"`        // without a byte moved; default 10 minutes, of the kind forward one hour
	FirstByte   Duration `yaml:"first_byte"`  // until the client sends something; default off
	WriteQueue  Size     `yaml:"write_queue"` // waiting for one slow client; default 256 KiB
	// Of UDP services: Connections is how many peers are tracked, default 4096,
	// and Idle how long one is remembered, default one minute. Of the kind forward
	// they are sessions: Connections of them at once, of which a new one ends the
	// one that was used least recently, AcceptRate new ones per second, and Idle,
	// default 180 s, is how long one that had a reply may be silent.
	PeerRate Count `yaml:"peer_rate"` // datagrams served in a second from one peer; default off
}

// History says what is kept of the events.
type History struct {
	Path    string   `yaml:"path"`     // of the database; default history.db in the state directory
	Keep    Duration `yaml:"keep"`     // how long; default 30 days
	MaxSize Size     `yaml:"max_size"` // of the file; default 256 MiB
	Off     bool     `yaml:"off"`      // keep none
}

// Leases says where services take their ports from.
type Leases struct {
	Off bool `yaml:"off"` // from no registry that other programs know of
}

// DefaultConfig is what `ft serve` runs without a configuration file: the
// application of three echo servers.
func DefaultConfig(runtimeDir string) Config {
	return Config{Services: []Service{
		{Name: "tcp-echo", Kind: "echo", Listen: Endpoint{fivetuple.MustParseEndpoint("127.0.0.1:8080")}},
		{Name: "udp-echo", Kind: "echo", Listen: Endpoint{fivetuple.MustParseEndpoint("udp://127.0.0.1:8081")}},
		{Name: "unix-echo", Kind: "echo", Listen: Endpoint{fivetuple.Endpoint{Network: fivetuple.Unix, Path: runtimeDir + "/echo.sock"}}},
	}}
}

// LoadConfig reads and checks a configuration file. Every error names the file
// and, where one is to blame, the line.
func LoadConfig(path string) (Config, error) {
	b, err := os.ReadFile(path)
	if err != nil {
		return Config{}, fmt.Errorf("configuration: %w", err)
	}
	c, err := ParseConfig(b)
	if err != nil {
		return Config{}, fmt.Errorf("%s: %w", path, err)
	}
	return c, nil
}

// ParseConfig reads a configuration in YAML and checks it. Unknown keys,
// several documents and values out of range are errors.
func ParseConfig(b []byte) (Config, error) {
	var c Config
	d := yaml.NewDecoder(bytes.NewReader(b))
	d.KnownFields(true)
	if err := d.Decode(&c); err != nil && !errors.Is(err, io.EOF) {
		return Config{}, readable(err)
	}
	if err := d.Decode(new(yaml.Node)); !errors.Is(err, io.EOF) {
		return Config{}, errors.New("holds more than one YAML document: keep the first and delete the rest")
	}
	if len(c.Services) == 0 {
		return Config{}, errors.New("has no services: write services: [{listen: 8080}], for example")
	}
	c.setLines(b)
	for i := range c.Services {
		c.Services[i].setDefaults()
	}
	return c, c.check()
}

var unknownKey = regexp.MustCompile(`field (.*) not found in type daemon\.(\w+)`)

// readable says "unknown key" where yaml names Go types.
func readable(err error) error {
	text := strings.TrimPrefix(err.Error(), "yaml: ")
	text = strings.TrimPrefix(text, "unmarshal errors:\n  ")
	text = strings.ReplaceAll(text, "\n  ", "\n")
	text = unknownKey.ReplaceAllStringFunc(text, func(s string) string {
		m := unknownKey.FindStringSubmatch(s)
		where := map[string]string{
			"Service": "a service", "Limits": "limits", "History": "history", "Leases": "leases",
			"TLS": "tls", "Check": "check", "TargetTLS": "target_tls", "Faults": "faults",
		}[m[2]]
		if where == "" {
			where = "a configuration"
		}
		return fmt.Sprintf("unknown key %q: %s has no such setting", m[1], where)
	})
	text = regexp.MustCompile(`cannot unmarshal (!!\w+)( .*)? into (.*)`).ReplaceAllString(text, "a value of another kind is needed here, not $1$2")
	return errors.New(text)
}

// setLines notes where each service stands in the file.
func (c *Config) setLines(b []byte) {
	var doc struct {
		Services []yaml.Node `yaml:"services"`
	}
	if yaml.Unmarshal(b, &doc) != nil {
		return
	}
	for i := range min(len(doc.Services), len(c.Services)) {
		c.Services[i].line = doc.Services[i].Line
	}
}

func (s *Service) setDefaults() {
	if s.Kind == "" {
		s.Kind = "echo"
	}
	if s.Name == "" && s.Listen.Network != fivetuple.NetworkNone {
		s.Name = s.Kind + "-" + s.Listen.String()
	}
}

// Check refuses what cannot work, and looks at the files that the configuration names:
// see [Config.CheckFiles].
func (c *Config) Check() error {
	if err := c.check(); err != nil {
		return err
	}
	return c.CheckFiles()
}

func (c *Config) check() error {
	names := make(map[string]int)
	listens := make(map[fivetuple.Endpoint]int)
	var errs []error
	for _, s := range c.Services {
		bad := func(format string, args ...any) {
			err := fmt.Errorf("service %s: %w", s.Name, fmt.Errorf(format, args...))
			if s.line > 0 {
				err = fmt.Errorf("line %d: %w", s.line, err)
			}
			errs = append(errs, err)
		}
		if err := s.check(); err != nil {
			bad("%w", err)
		}
		if first, twice := names[s.Name]; twice {
			bad("another service has this name, at line %d: give one another name", first)
		}
		if first, twice := listens[s.bound()]; twice && !s.takesAnyPort() {
			bad("another service listens on %s, at line %d", s.Listen, first)
		}
		names[s.Name], listens[s.bound()] = s.line, s.line
	}
	errs = append(errs, c.checkOverlaps())
	return errors.Join(errs...)
}

// bound is the place of the socket: TLS is on TCP.
func (s *Service) bound() fivetuple.Endpoint {
	e := s.Listen.Endpoint
	if e.Network == fivetuple.TLS {
		e.Network = fivetuple.TCP
	}
	return e
}

// checkOverlaps finds services of which one listens on all addresses and the
// other on one of them, at the same port, and ranges of ports that have some in common.
func (c *Config) checkOverlaps() error {
	for i, wide := range c.Services {
		for j, narrow := range c.Services {
			w, n := wide.bound(), narrow.bound()
			if w.Network != n.Network || w.Zone != n.Zone || w.Service != n.Service || !w.Network.IsIP() || wide.takesAnyPort() || narrow.takesAnyPort() ||
				w.Ports.First > n.Ports.Last || n.Ports.First > w.Ports.Last {
				continue
			}
			switch {
			case w.Host == fivetuple.AnyHost && n.Host != fivetuple.AnyHost && !wide.reusesPort():
				return fmt.Errorf("services %s and %s overlap: %s is all addresses, %s among them", wide.Name, narrow.Name, w, n)
			case i < j && w.Host == n.Host && w.Ports != n.Ports:
				return fmt.Errorf("services %s and %s overlap: %s and %s have ports in common", wide.Name, narrow.Name, w, n)
			}
		}
	}
	return nil
}

// reusesPort says whether the service's options share the port with others.
func (s *Service) reusesPort() bool {
	for _, o := range s.Options {
		if o.Option().Name == "reuseport" && o.Int() != 0 {
			return true
		}
	}
	return false
}

// takesAnyPort says whether the kernel or the registry chooses the port, so
// that two services may ask for it.
func (s *Service) takesAnyPort() bool {
	e := s.Listen.Endpoint
	return e.Network == fivetuple.NetworkNone || e.Network.IsIP() && e.Service == "" && e.Ports.First == 0
}

// served are the protocols that a service can listen on.
var served = []fivetuple.Network{fivetuple.TCP, fivetuple.UDP, fivetuple.Unix, fivetuple.Seqpacket}

func (s *Service) check() error {
	e := s.Listen.Endpoint
	switch {
	case e.Network == fivetuple.NetworkNone:
		return errors.New("has no listen: write, for example, listen: 127.0.0.1:8080")
	case strings.ContainsFunc(s.Name, func(r rune) bool { return !unicode.IsPrint(r) }):
		return fmt.Errorf("the name %q has a character that does not print", s.Name)
	case !slices.Contains(served, e.Network.Protocol()):
		return fmt.Errorf("cannot listen on %s: this version serves tcp, tls, udp, unix and seqpacket", e)
	case e.Network == fivetuple.TLS && s.TLS.Cert == "":
		return fmt.Errorf("listen %s needs a certificate: write tls: {cert: FILE, key: FILE}", e)
	case e.Network != fivetuple.TLS && s.TLS != (TLS{}):
		return fmt.Errorf("tls goes with listen: tls://, not with %s", e)
	case e.Service == "" && e.Ports.Len() != 1 && s.Kind != kindForward:
		return fmt.Errorf("listen %s names %d ports: a service takes one", e, e.Ports.Len())
	case e.Service == "" && e.Ports.Len() != 1 && e.Ports.First == 0:
		return fmt.Errorf("listen %s: a range of ports begins at 1 or above", e)
	case s.Mode.FileMode != 0 && !e.Network.IsUnix():
		return errors.New("mode goes with unix:// and seqpacket:// only")
	case len(s.AcceptProxy) > 0 && e.Network.IsDatagram():
		return errors.New("accept_proxy is for streams, not for UDP")
	}
	if err := s.checkLimits(); err != nil {
		return err
	}
	for _, o := range s.Options {
		if o := o.Option(); !o.Sockets.Admits(s.socketKind()) {
			return fmt.Errorf("option %s is for %s sockets; this one is %s", o.Name, o.Sockets, s.socketKind())
		}
	}
	if s.Kind == kindForward {
		return s.checkRule()
	}
	if keys := s.Forward.given(); len(keys) > 0 {
		return fmt.Errorf("%s is for kind: forward", keys[0])
	}
	kinds := stream.Kinds()
	if e.Network.IsDatagram() {
		kinds = datagram.Kinds()
	}
	kinds = append(slices.Clip(kinds), kindForward)
	if !slices.Contains(kinds, s.Kind) {
		return fmt.Errorf("kind %q is unknown over %s: want one of %s", s.Kind, e.Network, strings.Join(kinds, ", "))
	}
	return nil
}

// checkLimits refuses limits that the service's kind of socket does not have.
func (s *Service) checkLimits() error {
	l := s.Limits
	var none Limits
	datagrams, forward := s.Listen.Network.IsDatagram(), s.Kind == kindForward
	for _, limit := range []struct {
		name   string
		set    bool
		has    bool
		others string
	}{
		{"per_source", l.PerSource != none.PerSource, !datagrams || forward, "UDP"},
		{"accept_rate", l.AcceptRate != none.AcceptRate, !datagrams || forward, "UDP"},
		{"first_byte", l.FirstByte != none.FirstByte, !datagrams, "UDP"},
		{"write_queue", l.WriteQueue != none.WriteQueue, !datagrams && !forward, "UDP and kind: forward"},
		{"connections: off", l.Connections.isOff(), !datagrams, "UDP"},
		{"idle: off", l.Idle.isOff(), !datagrams, "UDP"},
	} {
		switch {
		case limit.set && !limit.has && datagrams && !forward:
			return fmt.Errorf("limit %s is not for UDP: use connections, idle and peer_rate", limit.name)
		case limit.set && !limit.has:
			return fmt.Errorf("limit %s is not for %s", limit.name, limit.others)
		}
	}
	if l.PeerRate != none.PeerRate && (!datagrams || forward) {
		return errors.New("limit peer_rate is for UDP alone" + map[bool]string{true: ", and not for kind: forward: use accept_rate and rate"}[datagrams])
	}
	return nil
}

// String is for logs: "echo on 127.0.0.1:8080".
func (s Service) String() string { return fmt.Sprintf("%s on %s", s.Kind, s.Listen) }

// sameSocket says whether o can go on with the socket that s has opened.
func (s Service) sameSocket(o Service) bool {
	return s.Name == o.Name && s.Kind == o.Kind && s.Listen == o.Listen && s.Mode == o.Mode && s.TLS == o.TLS && slices.Equal(s.AcceptProxy, o.AcceptProxy) &&
		s.splices() == o.splices() && slices.EqualFunc(s.Options, o.Options, func(a, b Option) bool { return a.String() == b.String() })
}

// Mode is file permissions, written in octal.
type Mode struct{ fs.FileMode }

// UnmarshalYAML reads "0660".
func (m *Mode) UnmarshalYAML(n *yaml.Node) error {
	bits, err := strconv.ParseUint(strings.TrimPrefix(n.Value, "0o"), 8, 32)
	if err != nil || bits > 0o777 || bits == 0 {
		return fmt.Errorf("line %d: mode %q is not an octal number from 0001 to 0777", n.Line, n.Value)
	}
	m.FileMode = fs.FileMode(bits)
	return nil
}

// DrainTime is how long connections may go on after the order to stop.
func (c *Config) DrainTime() time.Duration {
	if c.Drain.Duration > 0 {
		return c.Drain.Duration
	}
	return 10 * time.Second
}

// AddOptions sets options on every service whose kind of socket has them,
// after the options of its own. An option that none has is an error.
func (c *Config) AddOptions(options sockopt.Settings) error {
	for _, o := range options {
		used := false
		for i := range c.Services {
			s := &c.Services[i]
			if o.Option().Sockets.Admits(s.socketKind()) {
				s.Options, used = append(s.Options, Option{o}), true
			}
		}
		if !used {
			return fmt.Errorf("option %s: no service has a socket it belongs to (%s)", o.Option().Name, o.Option().Sockets)
		}
	}
	return nil
}

func (s *Service) socketKind() sockopt.Sockets {
	switch a, _ := s.Listen.Addr(); {
	case s.Listen.Network.IsUnix():
		return sockopt.Unix
	case s.Listen.Network.IsDatagram():
		return sockopt.UDP | family(a)
	default:
		return sockopt.TCP | family(a)
	}
}

// family of an address; a name or a wildcard may be either.
func family(a netip.Addr) sockopt.Sockets {
	switch {
	case a.Is4():
		return sockopt.IPv4
	case a.Is6():
		return sockopt.IPv6
	}
	return sockopt.IPv4 | sockopt.IPv6
}

package daemon

import (
	"encoding"
	"fmt"
	"math"
	"net/netip"
	"strconv"
	"strings"
	"time"

	"go.yaml.in/yaml/v3"

	"github.com/fivetuple/fivetuple"
	"github.com/fivetuple/fivetuple/sockopt"
)

// The scalars of a configuration file. Each reads itself, so that its error
// can name the line.

// Endpoint is a [fivetuple.Endpoint] in a configuration file.
type Endpoint struct{ fivetuple.Endpoint }

// UnmarshalYAML implements [yaml.Unmarshaler].
func (e *Endpoint) UnmarshalYAML(n *yaml.Node) error { return unmarshalText(n, &e.Endpoint) }

// Option is a [sockopt.Setting] in a configuration file.
type Option struct{ sockopt.Setting }

// UnmarshalYAML implements [yaml.Unmarshaler].
func (o *Option) UnmarshalYAML(n *yaml.Node) error { return unmarshalText(n, &o.Setting) }

// Prefix is an address or a CIDR prefix.
type Prefix struct{ netip.Prefix }

// UnmarshalYAML implements [yaml.Unmarshaler].
func (p *Prefix) UnmarshalYAML(n *yaml.Node) error { return unmarshalText(n, p) }

// UnmarshalText reads "10.0.0.0/8" or one address.
func (p *Prefix) UnmarshalText(b []byte) error {
	s := string(b)
	if addr, err := netip.ParseAddr(s); err == nil && addr.Zone() == "" {
		p.Prefix = netip.PrefixFrom(addr, addr.BitLen())
		return nil
	}
	prefix, err := netip.ParsePrefix(s)
	if err != nil {
		return fmt.Errorf("%q is not an address or a prefix such as 10.0.0.0/8", s)
	}
	if prefix != prefix.Masked() {
		return fmt.Errorf("%s has bits set behind the prefix: write %s", prefix, prefix.Masked())
	}
	p.Prefix = prefix
	return nil
}

func unmarshalText(n *yaml.Node, u encoding.TextUnmarshaler) error {
	if n.Kind != yaml.ScalarNode {
		return fmt.Errorf("line %d: one value is needed here, not a list or a map", n.Line)
	}
	if err := u.UnmarshalText([]byte(n.Value)); err != nil {
		return fmt.Errorf("line %d: %w", n.Line, err)
	}
	return nil
}

const off = "off"

// Duration is a time span above zero: "30s", "5m", "12h", "30d"; or "off",
// which is the longest there is.
type Duration struct{ time.Duration }

// UnmarshalYAML implements [yaml.Unmarshaler].
func (d *Duration) UnmarshalYAML(n *yaml.Node) error { return unmarshalText(n, d) }

// UnmarshalText implements [encoding.TextUnmarshaler].
func (d *Duration) UnmarshalText(b []byte) error {
	s := string(b)
	if s == off {
		d.Duration = math.MaxInt64
		return nil
	}
	if days, ok := strings.CutSuffix(s, "d"); ok {
		if n, err := strconv.ParseFloat(days, 64); err == nil && n > 0 && n < 36500 {
			d.Duration = time.Duration(n * 24 * float64(time.Hour))
			return nil
		}
	}
	v, err := time.ParseDuration(s)
	if err != nil || v <= 0 {
		return fmt.Errorf("%q is not a time span above zero such as 30s, 5m, 12h or 30d", s)
	}
	d.Duration = v
	return nil
}

// isOff says that there is to be no bound.
func (d Duration) isOff() bool { return d.Duration == math.MaxInt64 }

// Count is a number above zero, or "off" for no bound.
type Count struct{ N int }

// UnmarshalYAML implements [yaml.Unmarshaler].
func (c *Count) UnmarshalYAML(n *yaml.Node) error { return unmarshalText(n, c) }

// UnmarshalText implements [encoding.TextUnmarshaler].
func (c *Count) UnmarshalText(b []byte) error {
	if string(b) == off {
		c.N = math.MaxInt
		return nil
	}
	n, err := strconv.Atoi(string(b))
	if err != nil || n <= 0 {
		return fmt.Errorf("%q is not a number above zero, or off", b)
	}
	c.N = n
	return nil
}

func (c Count) isOff() bool { return c.N == math.MaxInt }

// Size is a number of bytes above zero: "256KiB", "1MiB", "4096".
type Size struct{ Bytes int64 }

// UnmarshalYAML implements [yaml.Unmarshaler].
func (z *Size) UnmarshalYAML(n *yaml.Node) error { return unmarshalText(n, z) }

// UnmarshalText implements [encoding.TextUnmarshaler].
func (z *Size) UnmarshalText(b []byte) error {
	n, err := sockopt.ParseBytes(string(b))
	if err != nil || n <= 0 {
		return fmt.Errorf("%q is not a size above zero such as 4096, 256KiB or 1MiB", b)
	}
	z.Bytes = n
	return nil
}

package sockopt

import (
	"fmt"
	"net/netip"
	"strings"
)

// Setting is an option and a value of it: asked for, from [Parse], or found on a socket, from [Get]. Settings compare
// with ==. The zero Setting is nothing; setting it is an error.
type Setting struct {
	opt *Option
	v   value
}

// value holds what any kind of option needs; the unused fields are zero.
type value struct {
	n             [3]int64 // the number in the kernel's unit; KeepAlive: idle, interval, count, each 0 if not given
	on            bool     // KeepAlive, Linger
	text          string   // String, Interface, Report; Hex: the raw bytes
	group, source netip.Addr
}

// Option returns the option of the setting.
func (s Setting) Option() Option {
	if s.opt == nil {
		return Option{}
	}
	return *s.opt
}

// Value returns the value as text that Parse understands (of read-only options, as text to be read).
func (s Setting) Value() string {
	if s.opt == nil {
		return ""
	}
	return s.opt.format(s.v)
}

// Int returns the number of a Bool (0 or 1), Int, Flags, Bytes or Duration option, in the kernel's unit; for Linger the
// seconds, -1 when off; for KeepAlive 0 or 1. For other kinds it is 0.
func (s Setting) Int() int64 {
	if s.opt == nil {
		return 0
	}
	switch s.opt.Kind {
	case Linger:
		if !s.v.on {
			return -1
		}
	case KeepAlive:
		if s.v.on {
			return 1
		}
		return 0
	}
	return s.v.n[0]
}

// String returns name=value.
func (s Setting) String() string {
	if s.opt == nil {
		return ""
	}
	return s.opt.Name + "=" + s.Value()
}

// MarshalText returns name=value.
func (s Setting) MarshalText() ([]byte, error) { return []byte(s.String()), nil }

// UnmarshalText is [Parse].
func (s *Setting) UnmarshalText(text []byte) error {
	parsed, err := Parse(string(text))
	if err != nil {
		return err
	}
	*s = parsed
	return nil
}

// Parse reads name=value; of a Bool option (and keepalive) the bare name means on. How the value is written is on each
// [Kind]. What is out of range, negative where that means nothing, or not a whole number of the kernel's unit is refused.
// Errors wrap [ErrUnknown], [ErrReadOnly] or [ErrValue].
//
//	rcvbuf=4MiB  keepalive=30s/10s/3  linger=5s  nodelay  nodelay=off  tos=0x10  tos=af41  congestion=bbr
func Parse(s string) (Setting, error) {
	name, text, given := strings.Cut(s, "=")
	o := lookup(name)
	if o == nil {
		return Setting{}, unknown(strings.TrimSpace(name))
	}
	if o.Access == ReadOnly {
		return Setting{}, fmt.Errorf("%s: %w", o.Name, ErrReadOnly)
	}
	if !given {
		if o.Kind != Bool && o.Kind != KeepAlive {
			return Setting{}, fmt.Errorf("%w: %s needs one, as in %s=%s", ErrValue, o.Name, o.Name, o.example())
		}
		text = "on"
	}
	text = strings.TrimSpace(text)
	v, err := o.parse(text)
	if err != nil {
		return Setting{}, fmt.Errorf("%w: %s=%.64s: %w", ErrValue, o.Name, text, err)
	}
	return Setting{opt: o, v: v}, nil
}

// Settings is a list of settings, applied in order. As a pflag.Value it takes one setting or several separated by
// commas each time the flag is given; in YAML and JSON it is a list of name=value strings.
type Settings []Setting

// Set parses and appends; after an error nothing has been appended.
func (s *Settings) Set(text string) error {
	var more Settings
	for part := range strings.SplitSeq(text, ",") {
		setting, err := Parse(part)
		if err != nil {
			return err
		}
		more = append(more, setting)
	}
	*s = append(*s, more...)
	return nil
}

// String returns the settings separated by commas, as Set takes them.
func (s Settings) String() string {
	parts := make([]string, len(s))
	for i, setting := range s {
		parts[i] = setting.String()
	}
	return strings.Join(parts, ",")
}

// Type is what a flag's usage line shows.
func (s *Settings) Type() string { return "name=value" }

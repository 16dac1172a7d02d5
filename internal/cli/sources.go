package cli

import (
	"fmt"
	"io/fs"
	"net/netip"
	"os/user"
	"strconv"

	"github.com/fivetuple/fivetuple/daemon"
)

// parsePrefixes reads addresses and prefixes: 10.0.0.0/8, 192.0.2.7.
func parsePrefixes(flag string, list []string) (prefixes []netip.Prefix, err error) {
	for _, s := range list {
		var p daemon.Prefix
		if err := p.UnmarshalText([]byte(s)); err != nil {
			return nil, fmt.Errorf("%s: %w", flag, err)
		}
		prefixes = append(prefixes, p.Prefix)
	}
	return prefixes, nil
}

// ids reads numbers, or names that lookup knows.
func ids(flag string, list []string, lookup func(name string) (id string, err error)) (numbers []uint32, err error) {
	for _, s := range list {
		text := s
		if _, err := strconv.ParseUint(s, 10, 32); err != nil {
			if text, err = lookup(s); err != nil {
				return nil, fmt.Errorf("%s: %w", flag, err)
			}
		}
		n, err := strconv.ParseUint(text, 10, 32)
		if err != nil {
			return nil, fmt.Errorf("%s: %q is not a number of 32 bits", flag, text)
		}
		numbers = append(numbers, uint32(n))
	}
	return numbers, nil
}

func lookupUser(name string) (string, error) {
	u, err := user.Lookup(name)
	if err != nil {
		return "", err
	}
	return u.Uid, nil
}

func lookupGroup(name string) (string, error) {
	g, err := user.LookupGroup(name)
	if err != nil {
		return "", err
	}
	return g.Gid, nil
}

// fileMode is a flag that takes permissions in octal.
type fileMode struct{ fs.FileMode }

func (m *fileMode) String() string {
	if m.FileMode == 0 {
		return ""
	}
	return fmt.Sprintf("%04o", m.FileMode)
}

// Set implements pflag.Value.
func (m *fileMode) Set(s string) error {
	n, err := strconv.ParseUint(s, 8, 32)
	if err != nil || n > 0o777 {
		return fmt.Errorf("%q is not permissions in octal, 0 to 777, such as 660", s)
	}
	m.FileMode = fs.FileMode(n)
	return nil
}

// Type implements pflag.Value.
func (m *fileMode) Type() string { return "mode" }

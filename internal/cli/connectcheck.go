package cli

import (
	"cmp"
	"errors"
	"fmt"
	"slices"

	"github.com/spf13/cobra"

	"github.com/fivetuple/fivetuple"
)

// check refuses what does not go together, and flags that would do nothing: who
// gives one relies on it.
func (p *connectPlan) check(c *cobra.Command) error {
	given := c.Flags().Changed
	for _, check := range []func(given func(name string) bool) error{p.checkEnds, p.checkFiles, p.checkTest, p.checkNumbers, p.checkEndpoints} {
		if err := check(given); err != nil {
			return err
		}
	}
	return nil
}

func (p *connectPlan) files() bool { return p.sendFile != "" || p.recvFile != "" }

func (p *connectPlan) checkEnds(func(name string) bool) error {
	stdio := p.near.Network == fivetuple.Stdio
	switch {
	case p.takeFD && !p.far.Network.IsUnix():
		return errors.New("--take-fd needs a Unix socket: unix://, unixgram:// or seqpacket://")
	case p.takeFD && !stdio:
		return errors.New("--take-fd goes with one endpoint")
	case len(p.command) > 0 && !p.takeFD:
		return errors.New("a command goes with --take-fd, which gives it the descriptors")
	case p.reconnect && (!stdio || p.files() || p.takeFD || p.far.Network.IsDatagram()):
		return errors.New("--reconnect goes with standard input and output and one stream endpoint")
	case p.telnet && (keepsRecords(p.near.Network) || keepsRecords(p.far.Network)):
		return errors.New("--telnet is for streams: udp, unixgram and seqpacket keep messages")
	}
	for _, e := range []fivetuple.Endpoint{p.near, p.far} {
		if e.Network.IsIP() && e.Service == "" {
			if _, _, err := e.DialArgs(); err != nil { // port 0, port ranges
				return err
			}
		}
	}
	return nil
}

func (p *connectPlan) checkFiles(given func(name string) bool) error {
	switch {
	case !p.files():
		return nil
	case p.sendFile != "" && p.recvFile != "":
		return errors.New("--send-file and --recv-file do not go together: one command for each direction")
	case p.takeFD:
		return errors.New("--take-fd does not go with --send-file and --recv-file")
	case p.near.Network != fivetuple.Stdio:
		return errors.New("--send-file and --recv-file go with one endpoint")
	case keepsRecords(p.far.Network):
		return fmt.Errorf("files need a stream, %s keeps messages: use tcp, tls, unix or vsock", p.far.Network)
	}
	for _, name := range append([]string{"idle"}, joinFlagNames...) {
		if name != "rate" && given(name) {
			return fmt.Errorf("--%s does not go with --send-file and --recv-file", name)
		}
	}
	return nil
}

// checkTest is for -z, which sends and receives nothing.
func (p *connectPlan) checkTest(given func(name string) bool) error {
	switch {
	case !p.zero:
		return nil
	case p.far.Network.IsDatagram():
		return fmt.Errorf("-z cannot tell whether anybody receives on %s, which makes no connection", p.far)
	case p.near.Network != fivetuple.Stdio:
		return errors.New("-z tests one endpoint")
	}
	for _, name := range append([]string{"send-file", "recv-file", "take-fd", "reconnect", "idle"}, joinFlagNames...) {
		if given(name) {
			return fmt.Errorf("--%s does not go with -z, which only tests", name)
		}
	}
	return nil
}

func (p *connectPlan) checkNumbers(func(name string) bool) error {
	switch {
	case p.retry < 0:
		return errors.New("--retry must not be negative")
	case p.timeout < 0:
		return errors.New("--timeout must not be negative: 0 has no bound")
	case p.idle < 0:
		return errors.New("--idle must not be negative")
	}
	return nil
}

// dialFlags are the flags that are for some endpoints only.
var dialFlags = []struct {
	what  string
	has   func(fivetuple.Network) bool
	flags []string
}{
	{"tls://", func(n fivetuple.Network) bool { return n == fivetuple.TLS }, []string{"cafile", "cert", "key", "sni", "alpn", "pin", "insecure"}},
	{"a TCP endpoint", func(n fivetuple.Network) bool { return n.Protocol() == fivetuple.TCP }, []string{"proxy"}},
	{"an IP endpoint", fivetuple.Network.IsIP, []string{"source", "interface"}},
	{"udp://", func(n fivetuple.Network) bool { return n.Protocol() == fivetuple.UDP }, []string{"unconnected"}},
}

func (p *connectPlan) checkEndpoints(given func(name string) bool) error {
	for _, s := range dialFlags {
		if s.has(p.near.Network) || s.has(p.far.Network) {
			continue
		}
		if at := slices.IndexFunc(s.flags, given); at >= 0 {
			return fmt.Errorf("--%s is for %s", s.flags[at], s.what)
		}
	}
	for _, e := range []fivetuple.Endpoint{p.near, p.far} {
		if e.Network == fivetuple.TLS {
			if _, err := p.tls.Config(tlsHost(e)); err != nil {
				return err
			}
		}
	}
	return nil
}

// tlsHost is the name that the certificate of an endpoint must have.
func tlsHost(e fivetuple.Endpoint) string {
	if e.Host == fivetuple.AnyHost {
		return "localhost"
	}
	return cmp.Or(e.Host, "localhost") // where DialArgs leads to
}

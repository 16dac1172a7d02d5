package cli

import (
	"errors"
	"fmt"
	"slices"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/fivetuple/fivetuple"
)

// checkFlags refuses flags that do nothing with the kind or the endpoints: who
// gives one relies on it.
func (p *listenPlan) checkFlags(c *cobra.Command) error {
	given := c.Flags().Changed
	if p.kind == "activate" {
		if err := checkActivateFlags(c); err != nil {
			return err
		}
	}
	for _, check := range []func(given func(name string) bool) error{p.checkKind, p.checkNumbers, p.checkWorkers, p.checkEndpoints} {
		if err := check(given); err != nil {
			return err
		}
	}
	return nil
}

// activateFlags are those that matter where no client is served.
var activateFlags = []string{"mode", "owner", "opt", "interface", "source", "verbose", "output"}

func checkActivateFlags(c *cobra.Command) (err error) {
	c.Flags().Visit(func(f *pflag.Flag) {
		if err == nil && !slices.Contains(activateFlags, f.Name) {
			err = fmt.Errorf("--%s is for serving, which with the kind activate the command does", f.Name)
		}
	})
	return err
}

func (p *listenPlan) checkKind(given func(name string) bool) error {
	if p.kind != "stdio" {
		for _, name := range joinFlagNames {
			if given(name) {
				return fmt.Errorf("--%s is for the kind stdio, not %s", name, p.kind)
			}
		}
	}
	switch {
	case p.kind == "activate" && len(p.config.Endpoints) == 0:
		return errors.New("activate needs an endpoint: ft listen 8080 activate -- CMD")
	case p.keep && p.kind != "stdio":
		return fmt.Errorf("--keep is for the kind stdio: %s serves all clients anyway", p.kind)
	case len(p.passFDs) > 0 && p.kind != "stdio":
		return fmt.Errorf("--pass-fd goes with the kind stdio, not with %s", p.kind)
	case given("max") && p.kind == "stdio":
		return errors.New("--max goes with servers: stdio serves one client at a time")
	}
	return nil
}

func (p *listenPlan) checkNumbers(func(name string) bool) error {
	l := p.limits
	switch {
	case l.MaxConns < 0:
		return errors.New("--max must not be negative")
	case l.MaxPerSource < 0:
		return errors.New("--max-per-source must not be negative")
	case !(l.AcceptRate >= 0): // NaN too
		return errors.New("--accept-rate must not be negative")
	case l.IdleTimeout < 0:
		return errors.New("--idle must not be negative")
	case l.FirstByteTimeout < 0:
		return errors.New("--first-byte must not be negative")
	case p.drain < 0:
		return errors.New("--drain must not be negative")
	}
	return nil
}

func (p *listenPlan) checkWorkers(given func(name string) bool) error {
	served := p.kind != "stdio" && p.kind != "activate"
	switch {
	case given("workers") && p.workers < 1:
		return errors.New("--workers must be at least 1")
	case p.workers > 0 && !served:
		return fmt.Errorf("--workers goes with servers, not with the kind %s", p.kind)
	case p.workers > 0 && (p.kind == "chat" || p.kind == "broker"):
		return fmt.Errorf("--workers does not go with %s: clients of different processes would not hear each other", p.kind)
	case p.workers > 0 && p.handoff != "":
		return errors.New("--workers and --handoff do not go together yet: give one of them")
	case p.limits.MaxConns > 0 && p.limits.MaxConns < p.workers, p.limits.MaxPerSource > 0 && p.limits.MaxPerSource < p.workers:
		return fmt.Errorf("--max and --max-per-source are divided among the workers: give at least %d, or fewer workers", p.workers)
	case p.workers > 0 && p.tls.SelfSigned:
		return errors.New("--workers and --tls-self-signed do not go together, as each worker would make another certificate: give --tls-cert FILE")
	case p.handoff != "" && p.tls.SelfSigned:
		return errors.New("--handoff and --tls-self-signed do not go together, as the successor would make another certificate: give --tls-cert FILE")
	case p.handoff != "" && !served:
		return fmt.Errorf("--handoff goes with servers, not with the kind %s", p.kind)
	case given("handoff"):
		if _, err := fivetuple.ParseEndpoint("unix://" + p.handoff); err != nil { // too long
			return fmt.Errorf("--handoff: %w", err)
		}
	}
	return nil
}

// endpointFlags are the flags that are for some endpoints only.
var endpointFlags = []struct {
	what  string
	has   func(fivetuple.Network) bool
	flags []string
}{
	{"a Unix socket", fivetuple.Network.IsUnix, []string{"mode", "owner"}},
	{"unix:// or seqpacket://", func(n fivetuple.Network) bool { return n == fivetuple.Unix || n == fivetuple.Seqpacket }, []string{"peer-uid", "peer-gid", "pass-fd"}},
	{"a TCP endpoint", func(n fivetuple.Network) bool { return n.Protocol() == fivetuple.TCP },
		[]string{"max-per-source", "proxy-from", "tls-cert", "tls-key", "tls-client-ca", "tls-self-signed", "alpn"}},
	{"an IP endpoint", fivetuple.Network.IsIP, []string{"allow", "deny"}},
	{"a socket that clients connect to", func(n fivetuple.Network) bool { return !n.IsDatagram() }, []string{"accept-rate", "first-byte", "engine"}},
	{"udp://", func(n fivetuple.Network) bool { return n.Protocol() == fivetuple.UDP }, []string{"interface", "source"}},
}

// checkEndpoints leaves sockets that systemd passes alone: what they are is not known yet.
func (p *listenPlan) checkEndpoints(given func(name string) bool) error {
	if len(p.config.Endpoints) == 0 {
		return nil
	}
	for _, s := range endpointFlags {
		if slices.ContainsFunc(p.config.Endpoints, func(e fivetuple.Endpoint) bool { return s.has(e.Network) }) {
			continue
		}
		for _, name := range s.flags {
			if given(name) {
				return fmt.Errorf("--%s goes with %s, which is not among the endpoints", name, s.what)
			}
		}
	}
	return nil
}

// canListen refuses what parses but is no place to listen on.
func canListen(e fivetuple.Endpoint) error {
	switch {
	case e.Network == fivetuple.Stdio:
		return errors.New("- is standard input and output, which the kind stdio joins to a client: name an endpoint to listen on")
	case e.Network.IsIP() && e.Service == "":
		_, _, err := e.ListenArgs() // port ranges
		return err
	}
	return nil
}

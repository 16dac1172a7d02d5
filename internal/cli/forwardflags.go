package cli

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/pflag"

	"github.com/fivetuple/fivetuple"
	"github.com/fivetuple/fivetuple/relay"
	"github.com/fivetuple/fivetuple/relay/upstream"
	"github.com/fivetuple/fivetuple/secure"
	"github.com/fivetuple/fivetuple/sockopt"
	"github.com/fivetuple/fivetuple/stream"
)

// ruleFlags are what the arguments of ft forward, or a line of a file of rules, say
// beside LISTEN and TARGET.
type ruleFlags struct {
	balance        upstream.Policy
	check          upstream.Check
	maxFails       int
	failFor        time.Duration
	names          []string
	connectTimeout time.Duration
	halfClosed     time.Duration
	firstReply     time.Duration
	limits         stream.Limits
	allow          []string
	deny           []string
	sendProxy      int
	acceptProxy    []string
	source         string
	iface          string
	transparent    bool
	options        sockopt.Settings
	targetOptions  sockopt.Settings
	rate           bytesFlag
	mode           fileMode
	tls            secure.Server
	targetTLS      secure.Client
	faults         faultFlags
}

func (f *ruleFlags) register(fl *pflag.FlagSet) {
	fl.Var(&f.balance, "balance", "round-robin, least-connections or source-hash: the `policy` for several targets")
	fl.DurationVar(&f.check.Interval, "check", 0, "connect to every target once in this `duration`, and leave out those that fail")
	fl.DurationVar(&f.check.Timeout, "check-timeout", 0, "`duration` that a check may take (default: that of --check, at most 5s)")
	fl.IntVar(&f.maxFails, "max-fails", 0, "leave a target out after so many `failures` in a row (default 3; -1 never)")
	fl.DurationVar(&f.failFor, "fail-for", 0, "for this `duration` (default 10s)")
	fl.StringArrayVar(&f.names, "sni", nil, "TLS clients that ask for HOST go to TARGET, undecrypted: `HOST=TARGET`; *.HOST is any below it")
	fl.DurationVar(&f.connectTimeout, "connect-timeout", 0, "`duration` that connecting to one address may take (default 5s)")
	fl.DurationVar(&f.halfClosed, "half-closed", 0, "`duration` that a connection which ended in one direction may be silent (default 60s)")
	fl.DurationVar(&f.limits.IdleTimeout, "idle", 0, "end what was silent for this `duration` (default: streams 1h, UDP sessions 3m)")
	fl.DurationVar(&f.firstReply, "first-reply", 0, "end a UDP session that got no reply within this `duration` (default 30s)")
	fl.IntVar(&f.limits.MaxConns, "max", 0, "`connections` at once, further ones wait; UDP sessions: a new one ends the oldest")
	fl.IntVar(&f.limits.MaxPerSource, "max-per-source", 0, "`connections` at once from one address, or IPv6 /64")
	fl.Float64Var(&f.limits.AcceptRate, "accept-rate", 0, "`connections` or UDP sessions begun per second")
	fl.StringSliceVar(&f.allow, "allow", nil, "serve these `sources` only: 10.0.0.0/8, 192.0.2.7")
	fl.StringSliceVar(&f.deny, "deny", nil, "do not serve these `sources`; the longest prefix of both lists decides")
	fl.Var(&f.rate, "rate", "at most this many `bytes` a second of a connection, each way: 1MiB, 500kB")
	fl.IntVar(&f.sendProxy, "send-proxy", 0, "tell targets the client by the PROXY protocol, `version` 1 or 2")
	fl.StringSliceVar(&f.acceptProxy, "accept-proxy", nil, "`sources` that name their client by the PROXY protocol")
	fl.StringVar(&f.source, "bind-source", "", "`address` to connect from: 192.0.2.7, 192.0.2.7:4000")
	fl.StringVar(&f.iface, "interface", "", "`interface` to connect through")
	fl.BoolVar(&f.transparent, "transparent", false, "connect from the client's own address; prints the routing that it needs")
	fl.Var(&f.options, "opt", "socket `option` of listeners and clients: NAME=VALUE; see ft opts")
	fl.Var(&f.targetOptions, "target-opt", "socket `option` of connections to targets: NAME=VALUE")
	fl.Var(&f.mode, "mode", "permissions of Unix sockets, in octal: 660 (default 600)")
	fl.StringVar(&f.tls.CertFile, "tls-cert", "", "end TLS here: certificate chain, a PEM `file`")
	fl.StringVar(&f.tls.KeyFile, "tls-key", "", "its private key, a PEM `file`; default: the file of --tls-cert")
	fl.StringVar(&f.tls.ClientCAFile, "tls-client-ca", "", "clients must have a certificate of these authorities, a PEM `file`")
	fl.StringVar(&f.targetTLS.CAFile, "cafile", "", "authorities for targets that are tls://, a PEM `file`; default: the system's")
	fl.StringVar(&f.targetTLS.CertFile, "cert", "", "client certificate for targets, a PEM `file`")
	fl.StringVar(&f.targetTLS.KeyFile, "key", "", "its private key, a PEM `file`; default: the file of --cert")
	fl.StringVar(&f.targetTLS.ServerName, "target-name", "", "server `name` to ask targets for and to verify, instead of their host")
	fl.StringVar(&f.targetTLS.Pin, "pin", "", "trust just the target's certificate with this `fingerprint`: sha256:HEX")
	fl.BoolVar(&f.targetTLS.Insecure, "insecure", false, "do not verify the certificates of targets")
	f.faults.register(fl)
}

// config is the rule that the flags and arguments describe.
func (f *ruleFlags) config(args []string) (c relay.Config, err error) {
	if len(args) == 0 || len(args) == 1 && len(f.names) == 0 {
		return c, errors.New("name where to listen and where to forward to: ft forward 8080 10.0.0.5:80")
	}
	if c.Listen, err = fivetuple.ParseEndpoint(args[0]); err != nil {
		return c, err
	}
	if c.Listen.Network.Protocol() == fivetuple.TCP && f.tls.CertFile != "" {
		c.Listen.Network = fivetuple.TLS
	}
	if c.Targets, err = parseTargets(args[1:], c.Listen); err != nil {
		return c, err
	}
	for _, text := range f.names {
		name, target, ok := strings.Cut(text, "=")
		if !ok {
			return c, fmt.Errorf("--sni %q: write it as HOST=TARGET", text)
		}
		targets, err := parseTargets([]string{target}, c.Listen)
		if err != nil {
			return c, fmt.Errorf("--sni %s: %w", text, err)
		}
		if c.Names == nil {
			c.Names = make(map[string][]fivetuple.Endpoint)
		}
		c.Names[name] = append(c.Names[name], targets...)
	}
	c.Policy, c.Check, c.MaxFails, c.FailFor = f.balance, f.check, f.maxFails, f.failFor
	c.ConnectTimeout, c.HalfClosed, c.FirstReply, c.Rate = f.connectTimeout, f.halfClosed, f.firstReply, int64(f.rate)
	c.ProxyVersion, c.Interface, c.Transparent, c.Options = f.sendProxy, f.iface, f.transparent, f.targetOptions
	c.Faults = f.faults.Config
	if c.Listen.Network.IsDatagram() {
		c.Idle = f.limits.IdleTimeout
	}
	if c.Source, err = parseSource("--bind-source", f.source); err != nil {
		return c, err
	}
	if err := f.checkFlags(c); err != nil {
		return c, err
	}
	for _, d := range []struct {
		flag  string
		value time.Duration
	}{
		{"check", f.check.Interval}, {"check-timeout", f.check.Timeout}, {"fail-for", f.failFor}, {"connect-timeout", f.connectTimeout},
		{"half-closed", f.halfClosed}, {"idle", f.limits.IdleTimeout}, {"first-reply", f.firstReply},
	} {
		if d.value < 0 {
			return c, fmt.Errorf("--%s must not be negative", d.flag)
		}
	}
	if c.TLS, err = f.targetTLS.ConfigForAny(); err != nil {
		return c, err
	}
	return c, c.CheckFor(c.Listen, f.tls.CertFile != "")
}

// checkFlags refuses what would do nothing.
func (f *ruleFlags) checkFlags(c relay.Config) error {
	datagrams := c.Listen.Network.IsDatagram()
	targets := slices.Concat(append(slices.Collect(maps.Values(c.Names)), c.Targets)...)
	secured := slices.ContainsFunc(targets, func(t fivetuple.Endpoint) bool { return t.Network == fivetuple.TLS })
	toTLS := f.targetTLS.CAFile != "" || f.targetTLS.CertFile != "" || f.targetTLS.ServerName != "" || f.targetTLS.Insecure || f.targetTLS.Pin != ""
	switch {
	case !datagrams && f.firstReply != 0:
		return errors.New("--first-reply is for UDP")
	case !datagrams && f.faults.Reorder != 0:
		return errors.New("--reorder is for UDP: a stream is never out of order")
	case datagrams && f.halfClosed != 0:
		return errors.New("--half-closed is for streams")
	case datagrams && len(f.acceptProxy) > 0:
		return errors.New("--accept-proxy is for streams")
	case toTLS && !secured:
		return errors.New("--cafile, --cert, --target-name, --pin and --insecure are for targets that are tls://")
	case f.tls.CertFile == "" && (f.tls.KeyFile != "" || f.tls.ClientCAFile != ""):
		return errors.New("--tls-key and --tls-client-ca need --tls-cert")
	case !c.Listen.Network.IsIP() && len(f.allow)+len(f.deny) > 0:
		return fmt.Errorf("--allow and --deny are for addresses; %s has file permissions: --mode", c.Listen)
	case f.mode.FileMode != 0 && c.Listen.Network != fivetuple.Unix:
		return errors.New("--mode is for Unix sockets")
	case f.limits.MaxConns < 0 || f.limits.MaxPerSource < 0 || f.limits.AcceptRate < 0:
		return errors.New("--max, --max-per-source and --accept-rate must not be negative")
	}
	return nil
}

// parseTargets reads endpoints that have the transport of where the rule listens,
// unless they name one: for ft forward udp://:53 10.0.0.2:53.
func parseTargets(texts []string, listen fivetuple.Endpoint) (all []fivetuple.Endpoint, err error) {
	for _, s := range texts {
		if listen.Network.IsDatagram() && !strings.Contains(s, "://") {
			s = "udp://" + s
		}
		t, err := fivetuple.ParseEndpoint(s)
		if err != nil {
			return nil, err
		}
		all = append(all, t)
	}
	return all, nil
}

// bytesFlag is a number of bytes: 1MiB, 500kB.
type bytesFlag int64

func (b *bytesFlag) String() string {
	if *b == 0 {
		return ""
	}
	return strconv.FormatInt(int64(*b), 10)
}

// Set implements pflag.Value.
func (b *bytesFlag) Set(s string) error {
	n, err := sockopt.ParseBytes(s)
	if err != nil || n <= 0 {
		return fmt.Errorf("%q is not a number of bytes: 1MiB, 500kB, 100", s)
	}
	*b = bytesFlag(n)
	return nil
}

// Type implements pflag.Value.
func (b *bytesFlag) Type() string { return "bytes" }

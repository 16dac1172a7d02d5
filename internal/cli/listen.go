package cli

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/fivetuple/fivetuple"
	"github.com/fivetuple/fivetuple/join"
	"github.com/fivetuple/fivetuple/secure"
	"github.com/fivetuple/fivetuple/service"
	"github.com/fivetuple/fivetuple/sockopt"
	"github.com/fivetuple/fivetuple/stream"
)

type listenFlags struct {
	joinFlags
	keep       bool
	verbose    bool
	engine     service.Engine
	workers    int
	handoff    string
	drain      time.Duration
	limits     stream.Limits
	allow      []string
	deny       []string
	proxies    []string
	tls        secure.Server
	mode       fileMode
	owner      string
	peerUsers  []string
	peerGroups []string
	passFDs    []string
	iface      string
	sources    []string
	options    sockopt.Settings
}

func (a *app) listen() *cobra.Command {
	var f listenFlags
	c := &cobra.Command{
		Use:   "listen ENDPOINT... [KIND [ARG]] [-- COMMAND [ARG...]]",
		Short: "Listen on sockets and serve them",
		Long: `listen opens sockets and serves them until Ctrl-C. What it does with a client is
its KIND:

  stdio         standard input and output, for the first client or sender of
                datagrams (the default); --keep serves one client after the
                other, and hears all senders, as a multicast group does
  echo          sends back what arrives
  discard       throws it away
  chargen       sends characters without end
  daytime       sends the date and time
  chat          hands every line to all, with the sender's number
  broker        hands what arrives to all others, as it is
  file PATH     sends the file to each
  http DIR      serves the files of a directory over HTTP; no listings, and
                nothing whose name begins with a dot
  exec          runs the command after -- for each client, without a shell; its
                standard input and output are the connection
  activate      waits for the first client, then becomes the command after --,
                which gets the sockets as from systemd (LISTEN_FDS)

Endpoints are on loopback unless they say otherwise: 8080, :8080 (all addresses),
udp://9000, udp://239.1.1.1%eth0:5000 (the group is joined), unix:///run/a.sock,
unix://@name, unixgram://, seqpacket://, tls://8443, vsock://*:5000. Sockets that
systemd passes (LISTEN_FDS) are served, too.`,
		Example: `  ft listen 8080                          receive on standard output
  ft listen :7000 udp://7000 chat --max 100
  ft listen unix:///run/a.sock --mode 660 exec -- date`,
		Args: cobra.ArbitraryArgs,
		RunE: func(c *cobra.Command, args []string) error {
			p, err := f.plan(a, c, args)
			if err != nil {
				return &codeError{exitUsage, err}
			}
			return ofOptions(a.runListen(c.Context(), p))
		},
	}
	fl := c.Flags()
	fl.BoolVarP(&f.keep, "keep", "k", false, "stdio: serve one client after the other")
	fl.BoolVarP(&f.verbose, "verbose", "v", false, "tell of every connection, and what options were granted")
	fl.IntVar(&f.limits.MaxConns, "max", 0, "`connections` at once; further ones wait")
	fl.IntVar(&f.limits.MaxPerSource, "max-per-source", 0, "`connections` at once from one address, or IPv6 /64; further ones are reset")
	fl.Float64Var(&f.limits.AcceptRate, "accept-rate", 0, "`connections` accepted per second")
	fl.DurationVar(&f.limits.IdleTimeout, "idle", 0, "close a connection on which nothing moved for this `duration`: 30s, 5m")
	fl.DurationVar(&f.limits.FirstByteTimeout, "first-byte", 0, "close a connection that sent nothing within this `duration`")
	fl.StringSliceVar(&f.allow, "allow", nil, "serve these `sources` only: 10.0.0.0/8, 192.0.2.7")
	fl.StringSliceVar(&f.deny, "deny", nil, "do not serve these `sources`; the longest prefix of both lists decides")
	fl.StringSliceVar(&f.proxies, "proxy-from", nil, "`sources` that name their client by the PROXY protocol, v1 or v2")
	fl.StringVar(&f.tls.CertFile, "tls-cert", "", "certificate chain for TLS, a PEM `file`")
	fl.StringVar(&f.tls.KeyFile, "tls-key", "", "its private key, a PEM `file`; default: the file of --tls-cert")
	fl.StringVar(&f.tls.ClientCAFile, "tls-client-ca", "", "clients must have a certificate of these authorities, a PEM `file`")
	fl.StringSliceVar(&f.tls.ALPN, "alpn", nil, "application `protocols` offered over TLS: h2,http/1.1")
	fl.BoolVar(&f.tls.SelfSigned, "tls-self-signed", false, "TLS with a certificate made for this run; its fingerprint is printed")
	fl.Var(&f.mode, "mode", "permissions of Unix sockets, in octal: 660 (default 600)")
	fl.StringVar(&f.owner, "owner", "", "owner of Unix sockets: `USER[:GROUP]` or :GROUP")
	fl.StringSliceVar(&f.peerUsers, "peer-uid", nil, "serve only these `users` on Unix sockets, by name or number")
	fl.StringSliceVar(&f.peerGroups, "peer-gid", nil, "and processes of these `groups`")
	fl.StringArrayVar(&f.passFDs, "pass-fd", nil, "pass an open file to the client of a Unix socket: a descriptor's number, or the `file`")
	fl.StringVar(&f.iface, "interface", "", "`interface` on which multicast groups are joined")
	fl.StringSliceVar(&f.sources, "source", nil, "hear only these `senders` to multicast groups (source-specific multicast)")
	fl.Var(&f.engine, "engine", "auto, poll (event loops) or goroutines")
	fl.IntVar(&f.workers, "workers", 0, "serve by this many `processes` on one port; those that die are replaced")
	fl.StringVar(&f.handoff, "handoff", "", "take over sockets and connections from the ft that has this control `socket`, and have it for the next one")
	fl.DurationVar(&f.drain, "drain", 5*time.Second, "how long connections have to come to rest at the end")
	f.joinFlags.register(c)
	optFlag(c, &f.options)
	return c
}

// listenPlan is a command line that has been understood.
type listenPlan struct {
	listenFlags
	kind      string
	config    service.Config
	join      join.Options
	quitGiven bool // --quit-after was
	worker    bool // this process is one of several
}

// kindsWithoutService are those that package service does not know.
var kindsWithoutService = []string{"stdio", "activate"}

func (f listenFlags) plan(a *app, c *cobra.Command, args []string) (listenPlan, error) {
	p := listenPlan{listenFlags: f, kind: "stdio"}
	var command []string
	if at := c.ArgsLenAtDash(); at >= 0 {
		args, command = args[:at], args[at:]
	}
	known := slices.Concat(service.Kinds(), kindsWithoutService)
	if at := slices.IndexFunc(args, func(s string) bool { return slices.Contains(known, s) }); at >= 0 {
		p.kind = args[at]
		if err := p.takeArguments(args[at+1:]); err != nil {
			return p, err
		}
		args = args[:at]
	}
	if err := p.takeCommand(command); err != nil {
		return p, err
	}
	for _, s := range args {
		e, err := fivetuple.ParseEndpoint(s)
		if err == nil {
			err = canListen(e)
		} else if !strings.ContainsAny(s, ":0123456789") {
			err = fmt.Errorf("%q is neither an endpoint nor a kind: the kinds are %s", s, strings.Join(known, ", "))
		}
		if err != nil {
			return p, err
		}
		p.config.Endpoints = append(p.config.Endpoints, e)
	}
	p.config.Kind = p.kind
	if err := p.checkFlags(c); err != nil {
		return p, err
	}
	var err error
	if p.join, err = f.joinFlags.options(a, c, false); err != nil {
		return p, err
	}
	p.quitGiven = c.Flags().Changed("quit-after")
	if err := p.fill(); err != nil {
		return p, err
	}
	if len(p.config.Endpoints) > 0 && slices.Contains(service.Kinds(), p.kind) {
		return p, p.config.Check()
	}
	return p, nil
}

// takeArguments takes what follows the kind.
func (p *listenPlan) takeArguments(args []string) error {
	takesPath := p.kind == "file" || p.kind == "http"
	switch {
	case takesPath && len(args) == 1:
		p.config.Path = args[0]
	case takesPath && len(args) == 0:
		return fmt.Errorf("%s needs a path: ft listen 8080 %s PATH", p.kind, p.kind)
	case len(args) > 0 && !takesPath:
		return fmt.Errorf("%q after the kind %s: endpoints come before it, commands after --", args[0], p.kind)
	case len(args) > 1:
		return fmt.Errorf("%s takes one path, not %d", p.kind, len(args))
	}
	return nil
}

func (p *listenPlan) takeCommand(command []string) error {
	wants := p.kind == "exec" || p.kind == "activate"
	switch {
	case wants && len(command) == 0:
		return fmt.Errorf("%s needs a command: ft listen 8080 %s -- CMD", p.kind, p.kind)
	case !wants && len(command) > 0:
		return fmt.Errorf("a command is for the kinds exec and activate: ft listen 8080 exec -- %s", strings.Join(command, " "))
	}
	p.config.Command = command
	return nil
}

// fill makes the service's configuration of the flags.
func (p *listenPlan) fill() (err error) {
	c := &p.config
	c.Name, c.Engine, c.Options = "listen", p.engine, p.options
	c.Mode, c.Owner, c.Interface = p.mode.FileMode, p.owner, p.iface
	c.Limits = p.limits
	if c.Limits.Allow, err = parsePrefixes("--allow", p.allow); err != nil {
		return err
	}
	if c.Limits.Deny, err = parsePrefixes("--deny", p.deny); err != nil {
		return err
	}
	if c.Proxies, err = parsePrefixes("--proxy-from", p.proxies); err != nil {
		return err
	}
	for _, s := range p.sources {
		addr, err := netip.ParseAddr(s)
		if err != nil {
			return fmt.Errorf("--source: %q is not an IP address", s)
		}
		c.Sources = append(c.Sources, addr)
	}
	if c.Peers, err = p.peerFilter(); err != nil {
		return err
	}
	return p.fillTLS()
}

// fillTLS loads the certificate. Where no endpoint is tls://, all TCP ones are.
func (p *listenPlan) fillTLS() (err error) {
	wanted := p.tls.CertFile != "" || p.tls.SelfSigned
	half := p.tls.KeyFile != "" || p.tls.ClientCAFile != "" || len(p.tls.ALPN) > 0
	isTLS := func(e fivetuple.Endpoint) bool { return e.Network == fivetuple.TLS }
	switch {
	case !wanted && slices.ContainsFunc(p.config.Endpoints, isTLS):
		return errors.New("tls:// needs a certificate: give --tls-cert FILE --tls-key FILE, or --tls-self-signed")
	case !wanted && half:
		return errors.New("TLS needs a certificate: give --tls-cert FILE, or --tls-self-signed")
	case !wanted:
		return nil
	}
	if !slices.ContainsFunc(p.config.Endpoints, isTLS) {
		for i, e := range p.config.Endpoints {
			if e.Network.Protocol() == fivetuple.TCP {
				p.config.Endpoints[i].Network = fivetuple.TLS
			}
		}
	}
	for _, e := range p.config.Endpoints {
		if isTLS(e) && e.Host != "" && e.Host != fivetuple.AnyHost {
			p.tls.Hosts = append(p.tls.Hosts, e.Host)
		}
	}
	p.config.TLS, err = p.tls.Config()
	return err
}

func (f listenFlags) peerFilter() (*stream.PeerFilter, error) {
	if len(f.peerUsers)+len(f.peerGroups) == 0 {
		return nil, nil
	}
	var filter stream.PeerFilter
	var err error
	if filter.UIDs, err = ids("--peer-uid", f.peerUsers, lookupUser); err != nil {
		return nil, err
	}
	filter.GIDs, err = ids("--peer-gid", f.peerGroups, lookupGroup)
	return &filter, err
}

func (a *app) runListen(ctx context.Context, p listenPlan) error {
	outliveReaders()
	switch {
	case p.kind == "stdio":
		return a.listenStdio(ctx, p)
	case p.kind == "activate":
		return a.activate(ctx, p)
	case p.workers > 0:
		return a.listenWorkers(ctx, p)
	}
	return a.listenServe(ctx, p)
}

// Package relay forwards ports: what comes to one endpoint goes on to one of
// several others.
//
//	r, err := relay.New(relay.Config{Targets: targets}, relay.Options{})
//	srv := &splice.Server{Route: r.Streams()}
//
// A [Relay] is a rule at work. Three engines carry what it rules: event loops with
// splice(2) (package relay/splice) for plain TCP and Unix streams, event loops
// with batches of datagrams (package relay/sessions) for UDP, and [Relay.ServeConn],
// a goroutine for each direction, for what has to be looked at: TLS that begins or ends
// here, and faults on purpose. Package service puts rules and engines together.
//
// The event loops need Linux; ServeConn works everywhere.
package relay

import (
	"errors"
	"maps"
	"slices"
	"sync"

	"github.com/fivetuple/fivetuple"
	"github.com/fivetuple/fivetuple/dial"
	"github.com/fivetuple/fivetuple/relay/sessions"
	"github.com/fivetuple/fivetuple/relay/splice"
	"github.com/fivetuple/fivetuple/relay/upstream"
	"github.com/fivetuple/fivetuple/stats"
)

// Options of a Relay: who is told what happens.
type Options struct {
	Service string     // its name in events
	Sink    stats.Sink // nil discards them
}

// Relay is a rule at work. Make one with [New].
type Relay struct {
	options Options
	events  stats.Recorder

	mu     sync.Mutex
	config Config
	pool   *upstream.Pool // nil: only names
	names  upstream.Names // never changed, but replaced

	flows flows
}

// New begins to resolve names and to check targets. It fails only for a rule that
// cannot work.
func New(c Config, o Options) (*Relay, error) {
	r := &Relay{options: o, events: stats.Recorder{Service: o.Service, Sink: o.Sink}}
	if err := r.Set(c); err != nil {
		r.Close()
		return nil, err
	}
	return r, nil
}

// Set changes the rule, for connections from now on; targets that stay keep what is
// known of them. Routes are to be asked for again. After an error the rule is as it was.
func (r *Relay) Set(c Config) error {
	c.Targets = c.firstPorts(c.Targets)
	for _, targets := range append(slices.Collect(maps.Values(c.Names)), c.Targets) { // before anything is changed
		if len(targets) == 0 {
			continue
		}
		if err := r.upstream(c.firstPorts(targets), &c).Valid(); err != nil {
			return err
		}
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	pool, err := r.pooled(r.pool, c.Targets, &c)
	if err != nil {
		return err
	}
	names := make(upstream.Names, len(c.Names))
	for name, targets := range c.Names {
		p, perr := r.pooled(r.names[name], c.firstPorts(targets), &c)
		if perr != nil {
			return errors.Join(perr, r.undo(pool, names))
		}
		names[name] = p
	}
	was, wasNames := r.pool, maps.Clone(r.names)
	r.config, r.pool, r.names = c, pool, names
	if was != nil && was != pool {
		was.Close()
	}
	for name, p := range wasNames {
		if names[name] != p {
			p.Close()
		}
	}
	return nil
}

// undo closes the pools that were made for a rule that cannot work.
func (r *Relay) undo(pool *upstream.Pool, names upstream.Names) error {
	if pool != nil && pool != r.pool {
		pool.Close()
	}
	for name, p := range names {
		if p != r.names[name] {
			p.Close()
		}
	}
	return nil
}

// pooled is the pool for targets: the one there is, changed, or a new one.
func (r *Relay) pooled(p *upstream.Pool, targets []fivetuple.Endpoint, c *Config) (*upstream.Pool, error) {
	if len(targets) == 0 {
		return nil, nil
	}
	u := r.upstream(targets, c)
	if p != nil {
		return p, p.Set(u)
	}
	return upstream.New(u)
}

// upstream is the configuration of a pool for targets.
func (r *Relay) upstream(targets []fivetuple.Endpoint, c *Config) upstream.Config {
	u := upstream.Config{
		Targets: targets, Policy: c.Policy, Check: c.Check, MaxFails: c.MaxFails, FailFor: c.FailFor,
		Dialer:  dial.Dialer{Options: c.Options, Interface: c.Interface, TLS: c.TLS},
		Service: r.options.Service, Sink: r.options.Sink,
	}
	if !c.Transparent {
		u.Dialer.Source = c.Source
	}
	if c.firstPort() != 0 {
		u.MaxFails = -1 // that one port does not answer says nothing of the others
	}
	return u
}

// Close ends checks and lookups.
func (r *Relay) Close() {
	r.events.Flush()
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.pool != nil {
		r.pool.Close()
	}
	for _, p := range r.names {
		p.Close()
	}
}

// Streams is the route for a splice.Server.
func (r *Relay) Streams() splice.Route {
	r.mu.Lock()
	defer r.mu.Unlock()
	c := &r.config
	route := splice.Route{
		Pool: r.pool, FirstPort: c.firstPort(), ConnectTimeout: c.ConnectTimeout, HalfClosed: c.HalfClosed,
		ProxyVersion: c.ProxyVersion, Source: c.Source, Interface: c.Interface, Transparent: c.Transparent, Options: c.Options, Rate: c.Rate,
	}
	if len(r.names) > 0 {
		route.Names = r.names
	}
	return route
}

// Datagrams is the route for a sessions.Server.
func (r *Relay) Datagrams() sessions.Route {
	r.mu.Lock()
	defer r.mu.Unlock()
	c := &r.config
	return sessions.Route{
		Pool: r.pool, FirstPort: c.firstPort(), Source: c.Source, Interface: c.Interface, Transparent: c.Transparent,
		Options: c.Options, Faults: c.Faults, Rate: c.Rate,
	}
}

// Upstreams is the state of every target, by the server name that leads to it; "" is
// for all others.
func (r *Relay) Upstreams() map[string][]upstream.Status {
	r.mu.Lock()
	defer r.mu.Unlock()
	all := make(map[string][]upstream.Status)
	if r.pool != nil {
		all[""] = r.pool.Status()
	}
	for name, p := range r.names {
		all[name] = p.Status()
	}
	return all
}

package upstream

import (
	"cmp"
	"context"
	"errors"
	"maps"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/fivetuple/fivetuple"
	"github.com/fivetuple/fivetuple/stats"
)

// Pool is the targets of one rule. Make one with [New].
type Pool struct {
	began   time.Time // times are counted from here, since an int64 can be read without a lock
	turn    atomic.Uint64
	current atomic.Pointer[snapshot] // never nil

	mu       sync.Mutex // held for moments: never over a lookup or a check
	config   Config
	targets  []*target
	known    map[place]*Address              // those in use, and those that still have connections
	checks   map[*Address]context.CancelFunc // under way
	ctx      context.Context                 // ends with Close
	cancel   context.CancelFunc
	workers  sync.WaitGroup
	checking chan struct{} // holds an element for each check that connects now
}

// snapshot is what connections are chosen by. It is not changed but replaced.
type snapshot struct {
	pool      *Pool
	addresses []*Address // each once, MaxAddresses at most
	policy    Policy
	maxFails  int // below 0: nothing is ever left out
	failFor   time.Duration
	service   string
	sink      stats.Sink
}

var errClosed = errors.New("the pool of targets is closed")

// New begins to resolve and to check. It waits for nothing, and fails only for a
// configuration that cannot work.
func New(c Config) (*Pool, error) {
	p := &Pool{
		began: time.Now(), known: make(map[place]*Address), checks: make(map[*Address]context.CancelFunc),
		checking: make(chan struct{}, maxChecks),
	}
	p.ctx, p.cancel = context.WithCancel(context.Background())
	p.current.Store(&snapshot{pool: p})
	if err := p.Set(c); err != nil {
		p.cancel()
		return nil, err
	}
	return p, nil
}

// Set changes the configuration, for connections from now on. Addresses and names
// that stay keep what is known of them. After an error the pool is as it was.
func (p *Pool) Set(c Config) error {
	if err := c.validate(); err != nil {
		return err
	}
	c = c.withDefaults()
	resolved, err := withPorts(c.Targets)
	if err != nil {
		return err
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.ctx.Err() != nil {
		return errClosed
	}
	p.config = c
	p.setTargets(resolved)
	p.stopChecks() // they begin again as the configuration has them now
	p.publish()
	if c.MaxFails < 0 || c.Check.Interval == 0 {
		for _, a := range p.known {
			a.forgive(c.MaxFails < 0, c.Check.Interval == 0)
		}
	}
	return nil
}

// Close ends checks and lookups, and waits until they have ended. The Pool may still
// be used, with the addresses it has.
func (p *Pool) Close() {
	p.mu.Lock()
	p.cancel()
	p.mu.Unlock()
	p.workers.Wait()
}

// Wait waits until every name was asked for once, with whatever result.
func (p *Pool) Wait(ctx context.Context) error {
	p.mu.Lock()
	targets := slices.Clone(p.targets)
	p.mu.Unlock()
	for _, t := range targets {
		if t.wasAsked() {
			continue
		}
		select {
		case <-t.asked:
		case <-ctx.Done():
			return ctx.Err()
		case <-p.ctx.Done():
			return errClosed
		}
	}
	return nil
}

// Err says why there is no address at all: names that do not resolve. It is nil if there is one.
func (p *Pool) Err() error {
	if len(p.current.Load().addresses) > 0 {
		return nil
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	var errs []error
	for _, t := range p.targets {
		errs = append(errs, t.why())
	}
	return errors.Join(errs...)
}

// Find returns the address that a connection taken over from elsewhere goes to,
// which may be none of the targets any more; it is never nil. A name that is found
// to have that address later will share it.
func (p *Pool) Find(addr netip.AddrPort, path string) *Address {
	addr = netip.AddrPortFrom(addr.Addr().Unmap(), addr.Port())
	for _, a := range p.current.Load().addresses {
		if a.Addr == addr && a.Path == path {
			return a
		}
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, a := range p.known { // it may have been a target's until just now
		if a.Addr == addr && a.Path == path {
			return a
		}
	}
	for _, t := range p.targets {
		if t.isName() && path == "" && t.endpoint.Ports.First == addr.Port() {
			return p.address(t.endpoint, addr, "")
		}
	}
	return p.address(fivetuple.Endpoint{}, addr, path)
}

// place is what makes an address the same one: where it is, and, for TLS, whose name
// it has to prove.
type place struct {
	protocol fivetuple.Network // tcp, udp, unix; tls apart from tcp
	tlsName  string
	ports    fivetuple.PortRange
	addr     netip.AddrPort
	path     string
}

// address is the one of a target, known or new. It is called with mu held.
func (p *Pool) address(e fivetuple.Endpoint, addr netip.AddrPort, path string) *Address {
	at := place{protocol: e.Network.Protocol(), ports: e.Ports, addr: addr, path: path}
	if e.Network == fivetuple.TLS {
		at.protocol, at.tlsName = fivetuple.TLS, e.Host
	}
	a := p.known[at]
	if a == nil {
		a = &Address{Target: e, Addr: addr, Path: path, pool: p}
		a.hash = hashString(cmp.Or(path, addr.String()))
		p.known[at] = a
	}
	return a
}

// publish replaces the snapshot by one of what the targets are now, and has new
// addresses checked and old ones no more. It is called with mu held.
func (p *Pool) publish() {
	c := &p.config
	s := &snapshot{
		pool: p, policy: c.Policy, maxFails: c.MaxFails, failFor: c.FailFor, service: c.Service, sink: c.Sink,
	}
	used := make(map[*Address]bool)
	for _, t := range p.targets {
		for _, a := range t.addresses {
			if !used[a] {
				used[a] = true
				s.addresses = append(s.addresses, a)
			}
		}
	}
	p.current.Store(s)
	maps.DeleteFunc(p.known, func(_ place, a *Address) bool { return !used[a] && a.Conns() == 0 })
	p.checkThese(s.addresses)
}

// now is the time on the clock of the pool, in nanoseconds above 0.
func (p *Pool) now() int64 { return int64(time.Since(p.began)) + 1 }

// at is the time of day of a time on the clock of the pool.
func (p *Pool) at(ns int64) time.Time { return p.began.Add(time.Duration(ns - 1)) }

// record hands an Error event to the sink.
func (s *snapshot) record(at fivetuple.Tuple, text string) {
	if s.sink != nil {
		s.sink.Record(stats.Event{Time: time.Now(), Kind: stats.Error, Service: s.service, Tuple: at, Err: text})
	}
}

package upstream

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/fivetuple/fivetuple"
	"github.com/fivetuple/fivetuple/port"
)

// target is one target with the addresses that it stands for now. Fields that change
// are guarded by the mutex of the pool.
type target struct {
	endpoint  fivetuple.Endpoint // the port by number
	addresses []*Address
	cancel    context.CancelFunc // ends the lookups of a name
	asked     chan struct{}      // closed when a name was asked for, or is no more
	askedOnce sync.Once

	err      error     // of the last lookup
	lenient  bool      // one family may fail: it does all the time
	failures int       // lookups in a row
	resolved time.Time // when there was an answer last
	next     time.Time // when it is asked for again
}

// isName says whether the addresses have to be looked up.
func (t *target) isName() bool {
	_, isAddr := literal(t.endpoint)
	return t.endpoint.Network.IsIP() && !isAddr
}

// withPorts replaces the names of services by their ports.
func withPorts(targets []fivetuple.Endpoint) ([]fivetuple.Endpoint, error) {
	targets = slices.Clone(targets)
	for i, e := range targets {
		if e.Service == "" {
			continue
		}
		names, err := port.System()
		if err != nil {
			return nil, err
		}
		if targets[i], err = e.ResolveService(context.Background(), names); err != nil {
			return nil, fmt.Errorf("target %w", err)
		}
	}
	return targets, nil
}

// literal is the address of an endpoint that needs no lookup.
func literal(e fivetuple.Endpoint) (netip.Addr, bool) {
	if e.Host != "" && e.Host != fivetuple.AnyHost {
		return e.Addr()
	}
	// As Endpoint.ListenArgs has it. The name localhost may be two addresses, of which
	// services often listen on one alone.
	if e.Network == fivetuple.TCP6 || e.Network == fivetuple.UDP6 {
		return netip.IPv6Loopback(), true
	}
	return netip.AddrFrom4([4]byte{127, 0, 0, 1}), true
}

// setTargets changes the targets to these. It is called with mu held.
func (p *Pool) setTargets(endpoints []fivetuple.Endpoint) {
	was := p.targets
	p.targets = nil
	for _, e := range endpoints {
		same := func(t *target) bool { return t.endpoint == e }
		if slices.ContainsFunc(p.targets, same) {
			continue
		}
		if i := slices.IndexFunc(was, same); i >= 0 {
			p.targets = append(p.targets, was[i])
			was = slices.Delete(was, i, i+1)
			continue
		}
		p.targets = append(p.targets, p.newTarget(e))
	}
	for _, t := range was {
		t.cancel()
	}
	for _, t := range p.targets { // there may be more than before
		t.addresses = cut(t.addresses, p.share(), func(a, b *Address) int { return a.Addr.Compare(b.Addr) })
	}
}

// share is how many addresses each target may have. It is called with mu held.
func (p *Pool) share() int { return MaxAddresses / len(p.targets) }

// cut leaves the lowest n, which are the same ones with every answer.
func cut[T any](list []T, n int, compare func(a, b T) int) []T {
	if len(list) <= n {
		return list
	}
	return slices.SortedFunc(slices.Values(list), compare)[:n]
}

func (p *Pool) newTarget(e fivetuple.Endpoint) *target {
	t := &target{endpoint: e, asked: make(chan struct{}), cancel: func() {}}
	switch addr, isAddr := literal(e); {
	case e.Network.IsUnix():
		t.addresses = []*Address{p.address(e, netip.AddrPort{}, e.Path)}
	case isAddr:
		t.addresses = []*Address{p.address(e, netip.AddrPortFrom(addr.Unmap(), e.Ports.First), "")}
	default:
		ctx, cancel := context.WithCancel(p.ctx)
		t.cancel = cancel
		p.workers.Go(func() {
			defer cancel()
			defer t.wasAskedFor()
			p.follow(ctx, t)
		})
		return t
	}
	t.wasAskedFor()
	return t
}

func (t *target) wasAskedFor() { t.askedOnce.Do(func() { close(t.asked) }) }

func (t *target) wasAsked() bool {
	select {
	case <-t.asked:
		return true
	default:
		return false
	}
}

// why says why a name has no address.
func (t *target) why() error {
	switch {
	case t.err != nil:
		return fmt.Errorf("target %s: %w", t.endpoint, t.err)
	case len(t.addresses) == 0:
		return fmt.Errorf("target %s: %w", t.endpoint, errNotYet)
	}
	return nil
}

var errNotYet = errors.New("the name is being looked up: try again in a moment")

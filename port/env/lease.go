package env

import (
	"context"
	"errors"
	"os"
	"slices"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/fivetuple/fivetuple/internal/printable"
	"github.com/fivetuple/fivetuple/port/lease"
)

const month = 30 * 24 * time.Hour

// Lease returns the project's ports, in the order of the file. Those of the run
// before are renewed, others leased. If one cannot be had the error says so of
// each such port; what was leased stays, for the next run.
func (p Project) Lease(ctx context.Context, ports lease.Registry) ([]Variable, error) {
	unlock, err := lock(ctx)
	if err != nil {
		return nil, err
	}
	defer unlock()
	own, err := p.own(ctx, ports)
	if err != nil {
		return nil, err
	}
	standing := make([][]lease.Lease, len(p.Ports))
	for i, q := range p.Ports {
		standing[i] = q.among(own, p.leaseName(q))
	}
	// What the file does not ask for any more goes first: another name may want the port by its number.
	for _, l := range own {
		if slices.ContainsFunc(standing, func(s []lease.Lease) bool { return slices.Contains(s, l) }) {
			continue
		}
		if err := release(ctx, ports, l); err != nil {
			return nil, err
		}
	}
	var variables []Variable
	var errs []error
	for i, q := range p.Ports {
		leases, err := p.lease(ctx, ports, q, standing[i])
		if err != nil {
			errs = append(errs, at(p.file, q.line, err))
			if !isAnswer(err) {
				break
			}
			continue
		}
		variables = append(variables, Variable{q.Variable, leases[0].Port, leases})
	}
	if len(errs) > 0 {
		return nil, errors.Join(errs...)
	}
	return variables, nil
}

// Release ends the leases that [Project.Lease] made for the file, and returns them.
func (p Project) Release(ctx context.Context, ports lease.Registry) ([]lease.Lease, error) {
	unlock, err := lock(ctx)
	if err != nil {
		return nil, err
	}
	defer unlock()
	own, err := p.own(ctx, ports)
	if err != nil {
		return nil, err
	}
	for i, l := range own {
		if err := release(ctx, ports, l); err != nil {
			return own[:i], err
		}
	}
	return own, nil
}

// own returns the leases of earlier runs: of names that are in the file, and of
// all others too if the project is the file's alone.
func (p Project) own(ctx context.Context, ports lease.Registry) ([]lease.Lease, error) {
	self, err := lease.OwnerOf(os.Getpid())
	if err != nil {
		return nil, err
	}
	leases, err := ports.List(ctx)
	return slices.DeleteFunc(leases, func(l lease.Lease) bool {
		isNamed := func(q Port) bool { return p.leaseName(q) == l.Name }
		ours := slices.ContainsFunc(p.Ports, isNamed) || !p.shared && strings.HasPrefix(l.Name, p.Name+"/")
		return !ours || !l.IsDetached() || l.Owner.User != self.User
	}), err
}

// among finds the leases that still are what the file asks for: of one port
// number, one for each protocol. Without all of them there are none.
func (q Port) among(own []lease.Lease, name string) []lease.Lease {
	for _, candidate := range own {
		var found []lease.Lease
		for _, protocol := range q.Protocols {
			for _, l := range own {
				if l.Name == name && l.Protocol == protocol && l.Address == q.Address && l.Port == candidate.Port && q.Range.Contains(l.Port) {
					found = append(found, l)
					break
				}
			}
		}
		if len(found) == len(q.Protocols) {
			return found
		}
	}
	return nil
}

// lease renews the leases of a port, or leases one if there are none.
func (p Project) lease(ctx context.Context, ports lease.Registry, q Port, standing []lease.Lease) ([]lease.Lease, error) {
	ttl := p.TTL
	if ttl == 0 {
		ttl = month
	}
	if len(standing) > 0 {
		renewed, err := renew(ctx, ports, standing, ttl)
		if !errors.Is(err, lease.ErrStale) {
			return renewed, err
		}
		// One has ended just now: they are leased again together.
		for _, l := range standing {
			if err := release(ctx, ports, l); err != nil {
				return nil, err
			}
		}
	}
	r := lease.Request{
		Address: q.Address, Range: q.Range, Name: p.leaseName(q), Purpose: p.purpose,
		Detached: true, TTL: ttl, Protocol: q.Protocols[0],
	}
	if q.Range.Len() == 1 {
		r.Port = q.Range.First
	}
	if len(q.Protocols) == 1 {
		l, err := ports.Acquire(ctx, r)
		return []lease.Lease{l}, err
	}
	tcp, udp, err := lease.AcquireBoth(ctx, ports, r, nil)
	return []lease.Lease{tcp, udp}, err
}

func renew(ctx context.Context, ports lease.Registry, leases []lease.Lease, ttl time.Duration) (renewed []lease.Lease, err error) {
	for _, l := range leases {
		if l, err = ports.Renew(ctx, l, ttl); err != nil {
			return nil, err
		}
		renewed = append(renewed, l)
	}
	return renewed, nil
}

// release ends a lease, unless it has ended.
func release(ctx context.Context, ports lease.Registry, l lease.Lease) error {
	if err := ports.Release(ctx, l); !errors.Is(err, lease.ErrStale) {
		return err
	}
	return nil
}

// isAnswer says whether an error is about the port: the registry works, and may
// have the next.
func isAnswer(err error) bool {
	for _, answer := range []error{lease.ErrLeased, lease.ErrInUse, lease.ErrNotPermitted, lease.ErrExhausted, lease.ErrInvalid} {
		if errors.Is(err, answer) {
			return true
		}
	}
	return false
}

// leaseName is that of a port's leases: "shop/api".
func (p Project) leaseName(q Port) string { return p.Name + "/" + q.Name }

// purpose is a path as a lease takes it: what prints of its end.
func purpose(where string) string {
	s := printable.Escape(where)
	if len(s) <= lease.MaxPurpose {
		return s
	}
	const cut = "..."
	s = s[len(s)-lease.MaxPurpose+len(cut):]
	for !utf8.RuneStart(s[0]) {
		s = s[1:]
	}
	return cut + s
}

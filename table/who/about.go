package who

import (
	"context"
	"net/netip"
	"slices"
	"sync"

	"github.com/fivetuple/fivetuple"
	"github.com/fivetuple/fivetuple/filter"
	"github.com/fivetuple/fivetuple/internal/dnat"
	"github.com/fivetuple/fivetuple/netns"
	"github.com/fivetuple/fivetuple/port/lease"
	"github.com/fivetuple/fivetuple/table"
)

func about(ctx context.Context, q Query) (*Report, error) {
	s := search{filter: q.Filter, leasesOf: q.Leases}
	defer s.finder.Close()
	asked := s.asked()
	var wait sync.WaitGroup
	defer wait.Wait()
	s.here, s.hereErr = netns.Current()
	wait.Go(s.inside(func() { s.readLeases(ctx) }))
	wait.Go(s.inside(func() { s.readRules(ctx, asked) }))
	if err := s.read(ctx); err != nil {
		return nil, err
	}
	s.group(asked)
	wait.Wait()
	if len(asked) == 0 { // now it is known which there are
		s.readRules(ctx, s.keys())
	}
	s.describe()
	for _, u := range s.ports {
		s.complete(ctx, u)
	}
	return s.report(), nil
}

// inside makes a function for another goroutine that runs in the network namespace
// of this one, which need not be that of the process.
func (s *search) inside(f func()) func() {
	return func() {
		if s.hereErr != nil || s.here.Do(func() error { f(); return nil }) != nil {
			f()
		}
	}
}

// search is the work of one [About].
type search struct {
	filter   *filter.Filter
	leasesOf func(context.Context) ([]lease.Lease, error)
	here     netns.Namespace
	hereErr  error
	table    table.Table // all rows of the ports
	ports    []*use
	owners
	addresses []netip.Addr // of this machine
	legacy    bool         // iptables-legacy has rules

	rules     []dnat.Rule
	rulesErr  error
	leases    []lease.Lease
	leasesErr error
}

// use is a [Port] in the making.
type use struct {
	Port
	key   key
	asked bool
	rows  []*table.Row
}

// key names what a socket uses. Multipath TCP uses the ports of TCP, UDP-Lite has its own.
type key struct {
	protocol fivetuple.Network
	port     uint16
	name     string
}

func keyOf(r *table.Row) key {
	k := key{protocol: r.Protocol, name: r.Name}
	switch {
	case r.Protocol == fivetuple.MPTCP:
		k.protocol = fivetuple.TCP
	case r.Protocol.IsUnix():
		k.protocol = fivetuple.Unix
	}
	if hasPorts(k.protocol) {
		k.port, k.name = r.Local.Port(), ""
	}
	return k
}

func hasPorts(p fivetuple.Network) bool {
	return p == fivetuple.TCP || p == fivetuple.UDP || p == fivetuple.UDPLite || p == fivetuple.SCTP
}

// waits says whether a row is no connection: it waits for peers, or is bound and no more.
func waits(r *table.Row) bool {
	return r.Listens() || r.State == fivetuple.StateClose && !r.Remote.IsValid() && (r.Protocol == fivetuple.TCP || r.Protocol == fivetuple.MPTCP)
}

func (s *search) keys() (all []key) {
	for _, u := range s.ports {
		all = append(all, u.key)
	}
	return all
}

// group puts the rows together by what they use. Connections from ports on which
// nothing listens and that were not asked for by number are put together too.
func (s *search) group(asked []key) {
	byKey := map[key]*use{}
	at := func(k key) *use {
		u := byKey[k]
		if u == nil {
			u = &use{key: k}
			u.Protocol, u.Port.Port, u.Name = k.protocol, k.port, k.name
			byKey[k] = u
			s.ports = append(s.ports, u)
		}
		return u
	}
	for i := range s.table.Rows {
		if r := &s.table.Rows[i]; waits(r) {
			at(keyOf(r))
		}
	}
	alone := map[key]bool{}
	for i := range s.table.Rows {
		alone[keyOf(&s.table.Rows[i])] = true
	}
	for i := range s.table.Rows {
		r := &s.table.Rows[i]
		k := keyOf(r)
		if u := byKey[k]; u == nil && !slices.Contains(asked, k) && len(alone) > 1 {
			k.port, k.name = 0, ""
		}
		u := at(k)
		u.rows = append(u.rows, r)
	}
	for _, k := range asked {
		if u := byKey[k]; u != nil {
			u.asked = true
		}
	}
	if len(s.ports) == 0 && len(asked) > 0 { // TCP's alone, if it is one of several
		k := asked[0]
		for _, k = range asked {
			if k.protocol == asked[0].protocol {
				at(k).asked = true
			}
		}
	}
	slices.SortStableFunc(s.ports, func(a, b *use) int { return compareKeys(a.key, b.key) })
}

package lease

import (
	"cmp"
	"context"
	"fmt"
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/fivetuple/fivetuple"
)

// Memory is a registry for one process: its leases end with it. A freed port
// rests for 60 s, as in a [Shared] registry. It is made by [NewMemory].
type Memory struct {
	self Owner

	mu     sync.Mutex
	leases map[protocolPort][]Lease // a port can be leased on several addresses
	fence  uint64                   // of the newest lease
	// last is the port that a name had last; past is the inverse, and tells when
	// a port was freed.
	last map[protocolName]uint16
	past map[protocolPort]past
}

// past is the last lease of a port.
type past struct {
	name  string
	ended time.Time // zero while it is leased
}

type protocolPort struct {
	protocol fivetuple.Network // TCP or UDP
	port     uint16
}

type protocolName struct {
	protocol fivetuple.Network
	name     string
}

var _ Registry = (*Memory)(nil)

// NewMemory returns an empty registry.
func NewMemory() *Memory {
	return &Memory{
		self:   self(),
		leases: make(map[protocolPort][]Lease),
		last:   make(map[protocolName]uint16),
		past:   make(map[protocolPort]past),
	}
}

// Acquire implements [Registry].
func (m *Memory) Acquire(ctx context.Context, r Request) (Lease, error) {
	r, err := r.normal(m.self)
	if err != nil {
		return Lease{}, err
	}
	if r.Reserve {
		return Lease{}, invalid("a port can be reserved in a registry with a file only, as it outlives this process")
	}
	if err := ctx.Err(); err != nil {
		return Lease{}, err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	port, err := m.find(ctx, r)
	if err != nil {
		return Lease{}, err
	}
	m.fence++
	l := r.lease(port, time.Now(), m.fence)
	key := l.key()
	m.leases[key] = append(m.leases[key], l)
	m.remember(key, l.Name)
	return l, nil
}

// find returns a port that can be granted, and is bound if r.Bind does that.
func (m *Memory) find(ctx context.Context, r Request) (uint16, error) {
	if r.Port != 0 {
		if holder, ok := m.holder(r, r.Port); ok {
			return 0, &ConflictError{Protocol: r.Protocol, Wanted: netip.AddrPortFrom(r.Address, r.Port), Holder: holder}
		}
		return r.Port, r.bind(ctx, r.Port)
	}
	protocol := r.Protocol.Protocol()
	old := m.last[protocolName{protocol, r.Name}]
	return choose(ctx, r, old, func(port uint16) (portState, error) {
		if _, leased := m.holder(r, port); leased {
			return portLeased, nil
		}
		before := m.past[protocolPort{protocol, port}]
		switch {
		case !isOther(before.name, r.Name) || time.Since(before.ended) >= defaultRest:
			return portFree, nil
		case before.name == "" && r.Name == "":
			return portUsed, nil
		}
		return portResting, nil
	}, func(port uint16) error { return r.bind(ctx, port) })
}

// holder returns a lease that rules out granting the port.
func (m *Memory) holder(r Request, port uint16) (Lease, bool) {
	for _, l := range m.current(protocolPort{r.Protocol.Protocol(), port}) {
		if l.conflicts(r, port) {
			return l, true
		}
	}
	return Lease{}, false
}

// current returns the leases of a port after dropping those that expired.
func (m *Memory) current(key protocolPort) []Lease {
	held, ok := m.leases[key]
	if !ok {
		return nil
	}
	now := time.Now()
	held = slices.DeleteFunc(held, func(l Lease) bool { return l.expired(now) })
	m.keep(key, held)
	return held
}

func (m *Memory) keep(key protocolPort, held []Lease) {
	if len(held) > 0 {
		m.leases[key] = held
		return
	}
	delete(m.leases, key)
	m.past[key] = past{m.past[key].name, time.Now()}
}

// remember notes the port as the name's last, and no other name's. So there
// are never more names to remember than ports.
func (m *Memory) remember(key protocolPort, name string) {
	delete(m.last, protocolName{key.protocol, m.past[key].name})
	m.past[key] = past{name: name}
	if name == "" {
		return
	}
	if before, ok := m.last[protocolName{key.protocol, name}]; ok && before != key.port {
		delete(m.past, protocolPort{key.protocol, before})
	}
	m.last[protocolName{key.protocol, name}] = key.port
}

// Renew implements [Registry].
func (m *Memory) Renew(ctx context.Context, l Lease, ttl time.Duration) (Lease, error) {
	if err := checkTTL(ttl, l.IsDetached()); err != nil {
		return Lease{}, err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	held, i, err := m.lookup(l)
	if err != nil {
		return Lease{}, err
	}
	held[i].Expires = time.Time{}
	if ttl > 0 {
		held[i].Expires = time.Now().Add(ttl)
	}
	return held[i], nil
}

// Release implements [Registry].
func (m *Memory) Release(ctx context.Context, l Lease) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	held, i, err := m.lookup(l)
	if err != nil {
		return err
	}
	m.keep(l.key(), slices.Delete(held, i, i+1))
	return nil
}

// lookup finds a lease among those of its port.
func (m *Memory) lookup(l Lease) (held []Lease, index int, err error) {
	held = m.current(l.key())
	i := slices.IndexFunc(held, func(h Lease) bool { return h.Fence == l.Fence && h.Address == l.Address })
	if i < 0 {
		return nil, 0, fmt.Errorf("lease %d of %s %s: %w: it was released or has expired", l.Fence, l.Protocol, l.AddrPort(), ErrStale)
	}
	return held, i, nil
}

// List implements [Registry].
func (m *Memory) List(ctx context.Context) ([]Lease, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	var all []Lease
	for key := range m.leases {
		all = append(all, m.current(key)...)
	}
	sortLeases(all)
	return all, nil
}

func sortLeases(leases []Lease) {
	slices.SortFunc(leases, func(a, b Lease) int {
		return cmp.Or(cmp.Compare(a.Protocol.Protocol(), b.Protocol.Protocol()), cmp.Compare(a.Port, b.Port),
			a.Address.Compare(b.Address), cmp.Compare(a.Fence, b.Fence))
	})
}

// Status implements [Registry].
func (m *Memory) Status(ctx context.Context) (Status, error) {
	leases, err := m.List(ctx)
	if err != nil {
		return Status{}, err
	}
	return statusOf(ctx, leases)
}

func (l Lease) key() protocolPort { return protocolPort{l.Protocol.Protocol(), l.Port} }

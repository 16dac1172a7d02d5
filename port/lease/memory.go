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

// Memory is a registry for one process: its leases end with it. It is made by [NewMemory].
type Memory struct {
	self Owner

	mu     sync.Mutex
	leases map[protocolPort][]Lease // a port can be leased on several addresses
	fence  uint64                   // of the newest lease
	next   map[fivetuple.Network]uint16
	// last and lastName are each other's inverse: the port that a name had last.
	last     map[protocolName]uint16
	lastName map[protocolPort]string
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
		self:     self(),
		leases:   make(map[protocolPort][]Lease),
		next:     make(map[fivetuple.Network]uint16),
		last:     make(map[protocolName]uint16),
		lastName: make(map[protocolPort]string),
	}
}

// Acquire implements [Registry].
func (m *Memory) Acquire(ctx context.Context, r Request) (Lease, error) {
	r, err := r.normal(m.self)
	if err != nil {
		return Lease{}, err
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
	port, err := choose(ctx, r, candidates(r.Range, old, m.next[protocol]), func(port uint16) bool {
		_, leased := m.holder(r, port)
		return leased
	})
	if err == nil && port != old {
		m.next[protocol] = port + 1
	}
	return port, err
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
	if len(held) == 0 {
		delete(m.leases, key)
		return
	}
	m.leases[key] = held
}

// remember notes the port as the name's last, and no other name's. So there
// are never more names to remember than ports.
func (m *Memory) remember(key protocolPort, name string) {
	delete(m.last, protocolName{key.protocol, m.lastName[key]})
	delete(m.lastName, key)
	if name == "" {
		return
	}
	before, ok := m.last[protocolName{key.protocol, name}]
	if ok {
		delete(m.lastName, protocolPort{key.protocol, before})
	}
	m.last[protocolName{key.protocol, name}] = key.port
	m.lastName[key] = name
}

// Renew implements [Registry].
func (m *Memory) Renew(ctx context.Context, l Lease, ttl time.Duration) (Lease, error) {
	if ttl < 0 {
		return Lease{}, invalid("the time to live %v is negative", ttl)
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
	slices.SortFunc(all, func(a, b Lease) int {
		return cmp.Or(cmp.Compare(a.Protocol.Protocol(), b.Protocol.Protocol()), cmp.Compare(a.Port, b.Port),
			a.Address.Compare(b.Address), cmp.Compare(a.Fence, b.Fence))
	})
	return all, nil
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

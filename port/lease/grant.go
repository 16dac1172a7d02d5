package lease

import (
	"context"
	"errors"
	"net/netip"
	"time"

	"github.com/fivetuple/fivetuple"
)

// grant finds a port for the request and writes the lease.
func (t *txn) grant(ctx context.Context, r Request) (Lease, error) {
	slot, err := t.nextSlot()
	if err != nil {
		return Lease{}, t.wrap(err)
	}
	t.slot = slot
	port, err := t.find(ctx, r)
	if none := (*ExhaustedError)(nil); errors.As(err, &none) && none.Leased > 0 {
		ended, errCollect := t.collect()
		if errCollect != nil {
			return Lease{}, errCollect
		}
		if len(ended) > 0 {
			port, err = t.find(ctx, r)
		}
	}
	if err != nil {
		return Lease{}, err
	}
	l := r.lease(port, t.now.wall, 0)
	if err := errors.Join(t.forget(t.namespace, l), t.useSlot(slot)); err != nil {
		return Lease{}, t.wrap(err)
	}
	if r.Reserve {
		if l.Reserved, err = t.isToBeReserved(port); err != nil {
			return Lease{}, err
		}
	}
	l.Fence, err = t.insert(row{Lease: l, slot: slot, expires: t.expiry(r.TTL)})
	if err == nil && l.Fence%tidyEvery == 0 {
		_, err = t.collect()
	}
	return l, t.wrap(err)
}

// tidyEvery is after how many grants the registry is tidied.
const tidyEvery = 1024

// expiry is when a lease granted or renewed now ends.
func (t *txn) expiry(ttl time.Duration) moment {
	if ttl == 0 {
		return moment{}
	}
	return t.now.after(ttl)
}

// find returns a port that can be granted, and is bound if r.Bind does that.
func (t *txn) find(ctx context.Context, r Request) (uint16, error) {
	if r.Port != 0 {
		holder, err := t.holder(r, r.Port)
		switch {
		case err != nil:
			return 0, err
		case holder != nil:
			return 0, &ConflictError{Protocol: r.Protocol, Wanted: netip.AddrPortFrom(r.Address, r.Port), Holder: t.present(*holder)}
		}
		return r.Port, t.take(ctx, r, r.Port)
	}
	old, err := t.oldPort(r.Protocol.Protocol(), r.Name)
	if err != nil {
		return 0, err
	}
	return choose(ctx, r, old, t.lookUp(r), func(port uint16) error {
		err := t.take(ctx, r, port)
		if t.others == nil && errors.Is(err, ErrLeased) {
			t.others = t.otherPorts(r)
		}
		return err
	})
}

// oldPort is the port that a name had last, 0 if none is remembered.
func (t *txn) oldPort(protocol fivetuple.Network, name string) (uint16, error) {
	if name == "" {
		return 0, nil
	}
	rows, err := t.all("protocol = ? AND name = ? AND namespace = ? AND ended IS NULL ORDER BY fence DESC LIMIT 8",
		protocol.String(), name, t.namespace)
	if err != nil {
		return 0, t.wrap(err)
	}
	for _, r := range rows {
		if t.isOver(r) {
			if err := t.end(r); err != nil {
				return 0, err
			}
		}
	}
	port, err := t.rememberedPort(protocol, name)
	return port, t.wrap(err)
}

// holder returns a lease that rules out granting the port, after ending those
// whose time or owner has gone.
func (t *txn) holder(r Request, port uint16) (*row, error) {
	rows, err := t.all("namespace = ? AND protocol = ? AND port = ? AND ended IS NULL",
		t.namespace, r.Protocol.Protocol().String(), port)
	if err != nil {
		return nil, t.wrap(err)
	}
	for _, held := range rows {
		if !held.conflicts(r, port) {
			continue
		}
		if !t.isOver(held) {
			return &held, nil
		}
		if err := t.end(held); err != nil {
			return nil, err
		}
	}
	return nil, nil
}

// fewPorts are looked up one by one; of more, the leases of the range are read at once.
const fewPorts = draws + 1

// lookUp returns the function by which choose learns of leases. Whether the
// owner of one still lives is not looked at: there are mostly other ports.
func (t *txn) lookUp(r Request) func(port uint16) (portState, error) {
	looked := 0
	var states map[uint16]portState
	return func(port uint16) (portState, error) {
		if t.others[port] {
			return portLeased, nil
		}
		if looked++; looked <= fewPorts {
			states, err := t.portStates(r, port, port)
			return states[port], err
		}
		if states == nil {
			var err error
			if states, err = t.portStates(r, r.Range.First, r.Range.Last); err != nil {
				return portFree, err
			}
		}
		return states[port], nil
	}
}

// portStates returns the ports from first to last that are not free.
func (t *txn) portStates(r Request, first, last uint16) (map[uint16]portState, error) {
	states := make(map[uint16]portState)
	err := t.each(func(l row) bool {
		switch {
		case l.isCurrent():
			if l.conflicts(r, l.Port) {
				states[l.Port] = portLeased
			}
		case t.rests(l, r) && states[l.Port] != portLeased:
			if states[l.Port] = portResting; l.Name == "" && r.Name == "" {
				states[l.Port] = portUsed
			}
		}
		return true
	}, "namespace = ? AND protocol = ? AND port BETWEEN ? AND ?", t.namespace, r.Protocol.Protocol().String(), first, last)
	return states, t.wrap(err)
}

// rests says whether what the request would take was freed too recently by another name.
func (t *txn) rests(ended row, r Request) bool {
	return isOther(ended.Name, r.Name) && t.now.minus(ended.ended) < t.options.Rest &&
		ended.Covers(r.Protocol, netip.AddrPortFrom(r.Address, ended.Port))
}

// isOther says whether a port passes to another name. Those without one are
// nobody in particular, each time another.
func isOther(before, name string) bool { return name == "" || name != before }

package gate

import (
	"net/netip"

	"github.com/fivetuple/fivetuple/internal/acl"
	"github.com/fivetuple/fivetuple/stream"
)

// Place is where a connection is: in which loop, and in which slot there.
type Place struct {
	Loop uint32
	Slot int32 // negative until it has one
}

// Enter counts a connection that another server has handed over; no limit
// refuses it. It keeps its id unless there is one of that id already. The error
// is [stream.ErrServerClosed] if the gate is shut.
func (g *Gate) Enter(n *Newcomer) error {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.shut {
		return stream.ErrServerClosed
	}
	g.raiseIDs(n.ID)
	if _, taken := g.where[n.ID]; taken {
		n.ID = g.nextID()
	}
	g.enter(n)
	return nil
}

// enter counts a connection that has no place yet. g.mu is held.
func (g *Gate) enter(n *Newcomer) {
	g.where[n.ID] = Place{Slot: -1}
	g.unplaced++
	g.count(n.Client())
}

// Put says which place a connection that was entered has now.
func (g *Gate) Put(id uint64, p Place) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.where[id] = p
	g.unplaced--
}

// Leave forgets a connection that has ended, and its client, invalid if no limit
// has counted it.
func (g *Gate) Leave(id uint64, client netip.AddrPort) {
	from := acl.Source(client)
	g.mu.Lock()
	if p, ok := g.where[id]; ok && p.Slot < 0 {
		g.unplaced--
	}
	delete(g.where, id)
	if n := g.perSource[from]; n > 1 {
		g.perSource[from] = n - 1
	} else {
		delete(g.perSource, from)
	}
	g.mu.Unlock()
	g.again()
}

// Find returns the place of a connection, if there is one of that id and it has one.
func (g *Gate) Find(id uint64) (Place, bool) {
	g.mu.Lock()
	defer g.mu.Unlock()
	p, ok := g.where[id]
	return p, ok && p.Slot >= 0
}

// Len returns how many connections have a place.
func (g *Gate) Len() int {
	g.mu.Lock()
	defer g.mu.Unlock()
	return len(g.where) - g.unplaced
}

// Unplaced returns how many have none yet.
func (g *Gate) Unplaced() int {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.unplaced
}

// Conns returns the ids of those that have one, in no order.
func (g *Gate) Conns() []uint64 {
	g.mu.Lock()
	defer g.mu.Unlock()
	ids := make([]uint64, 0, len(g.where))
	for id, p := range g.where {
		if p.Slot >= 0 {
			ids = append(ids, id)
		}
	}
	return ids
}

func (g *Gate) nextID() uint64 {
	if g.is.IDs != nil {
		return g.is.IDs.Add(1)
	}
	return g.ids.Add(1)
}

// raiseIDs makes further ids higher than id.
func (g *Gate) raiseIDs(id uint64) {
	ids := &g.ids
	if g.is.IDs != nil {
		ids = g.is.IDs
	}
	for {
		last := ids.Load()
		if last >= id || ids.CompareAndSwap(last, id) {
			return
		}
	}
}

package table

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"

	"github.com/fivetuple/fivetuple"
	"github.com/fivetuple/fivetuple/owner"
)

// Group is a number of sockets that have something in common.
type Group struct {
	// Key is what they have in common, for people: "tcp 80", "nginx/123".
	Key string
	// Protocol and Port are those of a group by port. Outgoing says that the
	// port is the peers': these are connections of clients on this machine.
	Protocol fivetuple.Network
	Port     uint16
	Outgoing bool
	// Listening counts the sockets that wait for peers, Connected the others.
	Listening, Connected int
	States               map[fivetuple.State]int
	Peers                int             // different remote addresses
	RecvQueue, SendQueue uint64          // bytes, without those of listeners
	Owners               []owner.Process // each once
	Rows                 []*Row
}

// Groupings lists what rows can be grouped by.
func Groupings() []string { return []string{"port", "process", "peer", "state"} }

// Group puts the rows together by one of [Groupings], the largest groups first.
// By port, a connection belongs to its local port if something listens there or
// it shares it with another, otherwise to the port it was made to. By process,
// the rows must have been read with their owners.
func (t *Table) Group(by string) ([]Group, error) {
	key := map[string]func(*Row) groupKey{
		"port": t.byPort(), "process": byProcess, "peer": byPeer, "state": byState,
	}[by]
	if key == nil {
		return nil, fmt.Errorf("group sockets by %q: want one of %v", by, Groupings())
	}
	at := map[groupKey]*groupWork{}
	var order []*groupWork
	for i := range t.Rows {
		k := key(&t.Rows[i])
		g := at[k]
		if g == nil {
			g = &groupWork{
				Group:  Group{Key: k.String(), Protocol: k.protocol, Port: k.port, Outgoing: k.outgoing, States: map[fivetuple.State]int{}},
				peers:  map[netip.Addr]bool{},
				owners: map[owner.Process]bool{},
			}
			at[k] = g
			order = append(order, g)
		}
		g.add(&t.Rows[i])
	}
	groups := make([]Group, len(order))
	for i, g := range order {
		groups[i] = g.Group
	}
	slices.SortStableFunc(groups, func(a, b Group) int {
		return cmp.Or(cmp.Compare(len(b.Rows), len(a.Rows)), cmp.Compare(a.Key, b.Key))
	})
	return groups, nil
}

type groupKey struct {
	protocol fivetuple.Network
	port     uint16
	outgoing bool
	text     string
}

func (k groupKey) String() string {
	switch {
	case k.text != "":
		return k.text
	case k.outgoing:
		return fmt.Sprintf("%s to %d", k.protocol, k.port)
	}
	return fmt.Sprintf("%s %d", k.protocol, k.port)
}

type groupWork struct {
	Group
	peers  map[netip.Addr]bool
	owners map[owner.Process]bool
}

func (g *groupWork) add(r *Row) {
	g.Rows = append(g.Rows, r)
	g.States[r.State]++
	if r.Listens() {
		g.Listening++
	} else {
		g.Connected++
		g.SendQueue += uint64(r.SendQueue)
	}
	if r.State != fivetuple.StateListen {
		g.RecvQueue += uint64(r.RecvQueue)
	}
	if r.Remote.IsValid() && !g.peers[r.Remote.Addr()] {
		g.peers[r.Remote.Addr()] = true
		g.Peers++
	}
	for i := range r.Owners {
		if p := r.Owners[i].Process; !g.owners[p] {
			g.owners[p] = true
			g.Owners = append(g.Owners, p)
		}
	}
}

// byPort makes out which local ports are those of servers.
func (t *Table) byPort() func(*Row) groupKey {
	type place struct {
		protocol fivetuple.Network
		netns    uint64
		port     uint16
	}
	serves := map[place]bool{}
	peers := map[place]netip.AddrPort{} // the first one met
	for _, rows := range [][]Row{t.listeners, t.Rows} {
		for i := range rows {
			r := &rows[i]
			at := place{r.Protocol, r.netns(), r.Local.Port()}
			if first, met := peers[at]; met && first != r.Remote || r.Listens() {
				serves[at] = true
			} else if r.Remote.IsValid() {
				peers[at] = r.Remote
			}
		}
	}
	return func(r *Row) groupKey {
		switch {
		case !r.Protocol.IsInet():
			return groupKey{text: r.Protocol.String()}
		case !r.Remote.IsValid() || serves[place{r.Protocol, r.netns(), r.Local.Port()}]:
			return groupKey{protocol: r.Protocol, port: r.Local.Port()}
		}
		return groupKey{protocol: r.Protocol, port: r.Remote.Port(), outgoing: true}
	}
}

func byProcess(r *Row) groupKey {
	if len(r.Owners) == 0 {
		return groupKey{text: "(" + r.NoOwner.String() + ")"}
	}
	return groupKey{text: fmt.Sprintf("%s/%d", r.Owners[0].Command, r.Owners[0].PID)}
}

func byPeer(r *Row) groupKey {
	if !r.Remote.IsValid() {
		return groupKey{text: "(no peer)"}
	}
	return groupKey{text: r.Remote.Addr().String()}
}

func byState(r *Row) groupKey { return groupKey{text: r.State.String()} }

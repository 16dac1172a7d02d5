package tui

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"
	"strconv"

	"github.com/fivetuple/fivetuple"
	"github.com/fivetuple/fivetuple/table"
)

// grouping is what the rows of the screen are: single sockets, or those of a
// process, port or peer together.
type grouping uint8

const (
	bySocket grouping = iota
	byProcess
	byPort
	byPeer
	groupings
)

func (g grouping) String() string { return [...]string{"sockets", "processes", "ports", "peers"}[g] }

// groupKey names a group, in the fields that its grouping uses.
type groupKey struct {
	pid      int
	start    uint64 // of the process
	why      table.Unowned
	unasked  bool
	protocol fivetuple.Network
	port     uint16
	outgoing bool // the port is the peers'
	peer     netip.Addr
}

// group is what its sockets are together. A socket that several processes hold
// counts for the first one.
type group struct {
	key       groupKey
	name      string
	filter    string // that matches its sockets; empty if none can
	sockets   int
	connected int
	listening int
	closeWait int
	timeWait  int
	in, out   uint64
}

// groupColumn is a column of the groups.
type groupColumn struct {
	name, head string
	width      int
	number     func(*group) uint64 // nil for the name
	rate       bool
}

var groupColumns = []groupColumn{
	{name: "name", head: "NAME", width: 16},
	{name: "sockets", head: "SOCKETS", width: 7, number: func(g *group) uint64 { return uint64(g.sockets) }},
	{name: "estab", head: "ESTAB", width: 7, number: func(g *group) uint64 { return uint64(g.connected) }},
	{name: "listen", head: "LISTEN", width: 6, number: func(g *group) uint64 { return uint64(g.listening) }},
	{name: "closewait", head: "CLOSE-W", width: 7, number: func(g *group) uint64 { return uint64(g.closeWait) }},
	{name: "timewait", head: "TIME-W", width: 7, number: func(g *group) uint64 { return uint64(g.timeWait) }},
	{name: "in", head: "IN/s", width: 6, rate: true, number: func(g *group) uint64 { return g.in }},
	{name: "out", head: "OUT/s", width: 6, rate: true, number: func(g *group) uint64 { return g.out }},
	{name: "rate", head: "RATE/s", width: 7, rate: true, number: func(g *group) uint64 { return g.in + g.out }},
}

func (c *groupColumn) text(b []byte, g *group) []byte {
	switch {
	case c.number == nil:
		return append(b, g.name...)
	case c.rate:
		return appendRate(b, c.number(g))
	}
	return strconv.AppendUint(b, c.number(g), 10)
}

// groups puts the sockets that match together.
func (b *book) groups(by grouping, column int, reverse bool) []group {
	key := map[grouping]func(int32) groupKey{byProcess: b.keyByProcess, byPort: b.keyByPort(), byPeer: b.keyByPeer}[by]
	at := map[groupKey]int{}
	var all []group
	for i := range b.slots {
		p := &b.slots[i]
		if !p.is(matched) {
			continue
		}
		k := key(int32(i))
		n, known := at[k]
		if !known {
			n = len(all)
			at[k] = n
			all = append(all, b.newGroup(by, k, p))
		}
		all[n].add(p)
	}
	c := groupColumns[column]
	slices.SortStableFunc(all, func(x, y group) int {
		order := cmp.Compare(x.name, y.name)
		if c.number != nil {
			order = cmp.Compare(c.number(&x), c.number(&y))
		}
		if reverse {
			order = -order
		}
		return cmp.Or(order, cmp.Compare(x.name, y.name))
	})
	return all
}

func (g *group) add(p *slot) {
	g.sockets++
	g.in += p.rateIn
	g.out += p.rateOut
	switch p.state {
	case fivetuple.StateEstablished:
		g.connected++
	case fivetuple.StateListen:
		g.listening++
	case fivetuple.StateCloseWait:
		g.closeWait++
	case fivetuple.StateTimeWait:
		g.timeWait++
	}
}

func (b *book) newGroup(by grouping, k groupKey, p *slot) group {
	g := group{key: k}
	switch by {
	case byProcess:
		switch {
		case k.pid != 0:
			h := b.owners.holders(p)[0]
			g.name, g.filter = fmt.Sprintf("%s/%d", h.Command, h.PID), fmt.Sprintf("pid:%d", h.PID)
		case k.unasked:
			g.name = "..."
		default:
			g.name = "(" + k.why.String() + ")"
		}
	case byPort:
		switch {
		case !k.protocol.IsInet():
			g.name, g.filter = k.protocol.String(), k.protocol.String()
		case k.outgoing:
			g.name, g.filter = fmt.Sprintf("%s to %d", k.protocol, k.port), fmt.Sprintf("%s and dst port %d", k.protocol, k.port)
		default:
			g.name, g.filter = fmt.Sprintf("%s %d", k.protocol, k.port), fmt.Sprintf("%s and src port %d", k.protocol, k.port)
		}
	case byPeer:
		g.name = "(no peer)"
		if k.peer.IsValid() {
			g.name, g.filter = k.peer.String(), "dst host "+k.peer.WithZone("").String()
		}
	}
	return g
}

func (b *book) keyByProcess(i int32) groupKey {
	p := &b.slots[i]
	if h := b.owners.holders(p); len(h) > 0 {
		return groupKey{pid: h[0].PID, start: h[0].Start}
	}
	why, known := b.owners.unowned(b, p)
	return groupKey{why: why, unasked: !known}
}

// keyByPort makes out which local ports are those of servers, as ft ls --group
// port does.
func (b *book) keyByPort() func(int32) groupKey {
	serves := map[groupKey]bool{}
	local := func(p *slot) groupKey { return groupKey{protocol: p.protocol, port: p.localPort} }
	for i := range b.slots {
		if !b.slots[i].is(matched) {
			continue
		}
		if b.unpack(int32(i), &b.row, &b.info); b.row.Listens() {
			serves[local(&b.slots[i])] = true
		}
	}
	return func(i int32) groupKey {
		p := &b.slots[i]
		switch {
		case !p.protocol.IsInet():
			return groupKey{protocol: p.protocol}
		case !p.is(hasRemote) || serves[local(p)]:
			return local(p)
		}
		return groupKey{protocol: p.protocol, port: p.remotePort, outgoing: true}
	}
}

func (b *book) keyByPeer(i int32) groupKey {
	b.unpack(i, &b.row, &b.info)
	return groupKey{peer: b.row.Remote.Addr()}
}

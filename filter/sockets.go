package filter

import (
	"math"
	"net"

	"github.com/fivetuple/fivetuple"
)

// SocketPlan is what of a filter the kernel does when it lists the sockets of
// one network namespace. A dump that follows Protocols, States and Program, or
// some of them, or none, leaves out no socket that the filter accepts;
// [SocketPlan.Match] decides those of a dump that follows all three.
type SocketPlan struct {
	// Protocols of which there can be a match; nil for all. "tcp" means
	// Multipath TCP too, and a port any protocol that has ports, so that one
	// that the kernel has not is no error. TCP never comes without MPTCP, as
	// the subflows could not be told from other TCP sockets.
	Protocols []fivetuple.Network
	// States in which there can be a match: a bit for each fivetuple.State,
	// bit 0 for sockets that have none, and bit 13 with that of CLOSE, as the
	// kernel has it for TCP sockets that are bound and no more; 0 for all.
	States uint32
	// Program is an array of struct inet_diag_bc_op for inet_diag (attribute
	// INET_DIAG_REQ_BYTECODE); nil for none. The kernel runs it on the TCP,
	// MPTCP, UDP, UDP-Lite and raw sockets of a dump.
	Program []byte
	// Never is set if no socket can match, whatever there is.
	Never bool

	whole *Filter
	// rest is what a socket on which Program was run must still match; nil for
	// nothing. Raw sockets must match the whole filter, as those must on which
	// it was not run.
	rest  *Filter
	steps []step
	// isListed and isRun test FieldProtocol: that it is one that can match, and
	// one of which the kernel ran Program on every socket.
	isListed, isRun func(Value) bool
}

// Right is what a process may do, beyond what everybody may.
type Right uint8

// NetAdmin is CAP_NET_ADMIN in the user namespace of the network namespace
// (capabilities(7)). Only with it the kernel filters by mark; it refuses a
// program that does, and shows no mark, without it.
const NetAdmin Right = 1

// setRun are the protocols of which the kernel runs the program on every
// socket. SCTP's dump does not (net/sctp/diag.c), and raw sockets may come from
// /proc; the other kinds are not inet_diag's.
const setRun = setTCP | setUDP | 1<<fivetuple.UDPLite

// step is one of the terms that must all hold, and where that is seen to.
type step struct {
	node *node
	// By choosing protocols, by choosing states, by the program, by the predicate.
	protocols, states, program, here bool
}

// Sockets plans a dump. Devices are looked up by name in the network namespace
// of the calling thread, so each namespace needs a plan of its own if the
// filter uses [FieldDevice]. The rights are those that the process has there.
func (f *Filter) Sockets(rights ...Right) SocketPlan {
	if f == nil {
		return SocketPlan{}
	}
	p := SocketPlan{whole: f}
	protocols, states := uint32(setTable), uint32(math.MaxUint32)
	for _, n := range f.tree.conjuncts() {
		for _, l := range (literal{n.expand(), false}).conjuncts(nil) {
			protocols &= l.protocols()
			states &= l.states()
		}
	}
	k := compiler{devices: map[string]uint32{}, protocols: protocols, states: states}
	for _, r := range rights {
		k.mark = k.mark || r == NetAdmin
	}
	var program []*expr
	var rest []*node
	size := 0
	for _, n := range f.tree.conjuncts() {
		s := step{node: n}
		for _, l := range (literal{n.expand(), false}).conjuncts(nil) {
			switch {
			case l.isOnly(FieldProtocol):
				s.protocols = true
				continue
			case l.isOnly(FieldState):
				s.states = true
				continue
			}
			e, exact := k.compile(l)
			if e != nil && size+e.size > maxProgram {
				e, exact = nil, false
			}
			if e != nil {
				program, size = append(program, e), size+e.size
				s.program = true
			}
			s.here = s.here || !exact
		}
		if s.here {
			rest = append(rest, n)
		}
		p.steps = append(p.steps, s)
	}
	if len(rest) > 0 {
		p.rest = newFilter(and(rest...))
	}
	if e := allOf(program...); e != nil && protocols&setInet != 0 {
		p.Program = e.assemble()
	}
	p.Never = protocols == 0 || states == 0
	p.setMasks(protocols, states)
	return p
}

func (p *SocketPlan) setMasks(protocols, states uint32) {
	if states != math.MaxUint32 {
		p.States = states
	}
	if protocols == setTable {
		p.isListed = func(Value) bool { return true }
	} else {
		listed := protocols
		if listed>>fivetuple.TCP&1 != 0 {
			listed |= setTCP
		}
		for n := fivetuple.TCP; n <= fivetuple.Netlink; n++ {
			if listed>>n&1 != 0 {
				p.Protocols = append(p.Protocols, n)
			}
		}
		p.isListed = value{set: protocols}.test(FieldProtocol)
	}
	p.isRun = value{set: setRun}.test(FieldProtocol)
}

// Match decides a socket that a dump by the plan gave. It allocates nothing.
func (p *SocketPlan) Match(s Subject) bool {
	switch {
	case p.whole == nil:
		return true
	case p.Never || !s.Any(FieldProtocol, p.isListed):
		return false
	case s.Any(FieldProtocol, p.isRun):
		return p.rest.Match(s)
	}
	return p.whole.Match(s)
}

// literal is an expanded node, or its opposite.
type literal struct {
	n       *node
	negated bool
}

// conjuncts adds what must all hold, with "not" pushed down.
func (l literal) conjuncts(all []literal) []literal {
	switch {
	case l.n.op == opNot:
		return literal{l.n.kids[0], !l.negated}.conjuncts(all)
	case l.n.op == opAnd && !l.negated, l.n.op == opOr && l.negated:
		for _, kid := range l.n.kids {
			all = literal{kid, l.negated}.conjuncts(all)
		}
		return all
	}
	return append(all, l)
}

// isOnly says whether nothing but the field is looked at.
func (l literal) isOnly(f Field) bool { return l.n.fields() == 1<<f }

// narrow finds the numbers that the field can have where the literal holds.
// term says it of one term.
func (l literal) narrow(term func(t term, negated bool) uint32) uint32 {
	switch {
	case l.n.op == opTerm:
		return term(l.n.term, l.negated)
	case l.n.op == opNot:
		return literal{l.n.kids[0], !l.negated}.narrow(term)
	case (l.n.op == opAnd) != l.negated:
		set := uint32(math.MaxUint32)
		for _, kid := range l.n.kids {
			set &= literal{kid, l.negated}.narrow(term)
		}
		return set
	}
	var set uint32
	for _, kid := range l.n.kids {
		set |= literal{kid, l.negated}.narrow(term)
	}
	return set
}

func (l literal) states() uint32 {
	return l.narrow(func(t term, negated bool) uint32 {
		switch {
		case t.field != FieldState || t.rel != equal:
			return math.MaxUint32
		case negated:
			return ^t.values[0].set
		}
		return t.values[0].set
	})
}

func (l literal) protocols() uint32 {
	return l.narrow(func(t term, negated bool) uint32 {
		switch {
		case t.field == FieldProtocol && t.rel == equal && negated:
			return ^t.values[0].set
		case t.field == FieldProtocol && t.rel == equal:
			return t.values[0].set
		case negated:
			return math.MaxUint32
		}
		return protocolsWith(t.field)
	})
}

// protocolsWith is the set of protocols whose sockets can have the field.
func protocolsWith(f Field) uint32 {
	switch f {
	case FieldLocalPort, FieldRemotePort:
		return setPorts
	case FieldLocalAddr, FieldRemoteAddr, FieldFamily, FieldMark:
		return setInet
	case FieldName, FieldPeerName:
		return setUnix
	case FieldRTT, FieldCwnd, FieldRetrans:
		return setTCP
	}
	return math.MaxUint32
}

// deviceIndex finds a network device in the namespace of the calling thread; 0
// if it is not there.
func deviceIndex(name string) uint32 {
	i, err := net.InterfaceByName(name)
	if err != nil {
		return 0
	}
	return uint32(i.Index)
}

package filter

import (
	"net/netip"
)

// node is a filter as it was written, every name in it resolved. Back ends
// work on what [node.expand] makes of it.
type node struct {
	op   nodeOp
	kids []*node // opNot has one, opTarget what it stands for
	term term    // of opTerm
	text string  // of opTarget, as it is written
}

type nodeOp uint8

const (
	opAnd nodeOp = iota // has two kids or more, none of them opAnd
	opOr                // likewise
	opNot
	opTerm
	opTarget
)

// term compares a field with values.
type term struct {
	field  Field // of a term about both ends of a socket the local one
	side   side
	rel    relation
	values []value // one is enough; several for equal and notEqual only
}

// side says which end of a socket a term about addresses or ports means.
type side uint8

const (
	sideNone side = iota
	sideLocal
	sideRemote
	sideEither
	sideBoth
)

type relation uint8

const (
	equal relation = iota
	notEqual
	less
	lessEqual
	greater
	greaterEqual
	present // there is a value
)

// value is what a field is compared with, in the members that fit its kind.
type value struct {
	low, high uint64 // numbers, both included; the two are the same but for port ranges
	mask      uint64 // of a mark
	set       uint32 // protocols, states and families: a bit for each number
	prefix    netip.Prefix
	zone      string // of an address, "" for any
	text      string // names may have the wildcards * and ?
}

func and(kids ...*node) *node { return join(opAnd, kids) }
func or(kids ...*node) *node  { return join(opOr, kids) }
func not(kid *node) *node     { return &node{op: opNot, kids: []*node{kid}} }

func termNode(t term) *node { return &node{op: opTerm, term: t} }

// join flattens: "a and (b and c)" is "a and b and c".
func join(op nodeOp, kids []*node) *node {
	if len(kids) == 1 {
		return kids[0]
	}
	all := make([]*node, 0, len(kids))
	for _, kid := range kids {
		if kid.op == op {
			all = append(all, kid.kids...)
		} else {
			all = append(all, kid)
		}
	}
	return &node{op: op, kids: all}
}

// conjuncts are the nodes that must all hold.
func (n *node) conjuncts() []*node {
	if n.op == opAnd {
		return n.kids
	}
	return []*node{n}
}

// depth counts the nodes from n to the deepest leaf.
func (n *node) depth() int {
	deepest := 0
	for _, kid := range n.kids {
		deepest = max(deepest, kid.depth())
	}
	return deepest + 1
}

// expand writes the tree in and, or, not and terms about one field: no
// targets, no sides but the field's, no notEqual.
func (n *node) expand() *node {
	switch n.op {
	case opTarget:
		return n.kids[0].expand()
	case opTerm:
		return n.term.expand()
	}
	kids := make([]*node, len(n.kids))
	for i, kid := range n.kids {
		kids[i] = kid.expand()
	}
	if n.op == opNot {
		return not(kids[0])
	}
	return join(n.op, kids)
}

func (t term) expand() *node {
	local, remote := t, t
	local.side, remote.side = sideNone, sideNone
	switch t.field {
	case FieldLocalAddr:
		remote.field = FieldRemoteAddr
	case FieldLocalPort:
		remote.field = FieldRemotePort
	}
	switch t.side {
	case sideRemote:
		return remote.expandOne()
	case sideBoth:
		return and(local.expandOne(), remote.expandOne())
	case sideEither:
		if t.rel == notEqual {
			return and(or(local.present(), remote.present()), local.noneEqual(), remote.noneEqual())
		}
		return or(local.expandOne(), remote.expandOne())
	}
	return local.expandOne()
}

func (t term) expandOne() *node {
	switch {
	case t.rel != notEqual:
		return termNode(t)
	case t.field == FieldState: // there always is one
		return t.noneEqual()
	}
	return and(t.present(), t.noneEqual())
}

func (t term) present() *node { return termNode(term{field: t.field, rel: present}) }

func (t term) noneEqual() *node {
	t.rel = equal
	return not(termNode(t))
}

// fields is the set of fields that an expanded tree looks at.
func (n *node) fields() uint64 {
	if n.op == opTerm {
		return 1 << n.term.field
	}
	var all uint64
	for _, kid := range n.kids {
		all |= kid.fields()
	}
	return all
}

func (n *node) String() string {
	var w writer
	w.node(n)
	return w.String()
}

package filter

import (
	"encoding/binary"
	"math"
	"net/netip"
	"strings"

	"github.com/fivetuple/fivetuple"
)

// Operations of inet_diag's bytecode, include/uapi/linux/inet_diag.h. Those for
// equal ports are newer and not used: a condition on a host does the same.
const (
	bcJump       = 1  // INET_DIAG_BC_JMP
	bcLocalGE    = 2  // INET_DIAG_BC_S_GE
	bcLocalLE    = 3  // INET_DIAG_BC_S_LE
	bcRemoteGE   = 4  // INET_DIAG_BC_D_GE
	bcRemoteLE   = 5  // INET_DIAG_BC_D_LE
	bcLocalHost  = 7  // INET_DIAG_BC_S_COND
	bcRemoteHost = 8  // INET_DIAG_BC_D_COND
	bcDevice     = 9  // INET_DIAG_BC_DEV_COND
	bcMark       = 10 // INET_DIAG_BC_MARK_COND, with CAP_NET_ADMIN only
	bcCgroup     = 13 // INET_DIAG_BC_CGROUP_COND, Linux 5.8

	opSize  = 4 // struct inet_diag_bc_op: __u8 code, __u8 yes, __u16 no
	familyA = 0 // AF_UNSPEC
	family4 = 2 // AF_INET
	family6 = 10

	// maxProgram bounds the bytes of a program. An attribute of netlink holds
	// 64 KiB, but the kernel checks a program in time that grows with the
	// square of its length (inet_diag_bc_audit, valid_cc).
	maxProgram = 16 << 10
)

// expr is a program in the making: what it is true for is a superset of what
// the literal accepts that it was made of. The nil *expr is true for all.
type expr struct {
	op   exprOp
	kids []*expr
	code []byte // of a condition: the instruction, its two jumps not set
	size int    // in bytes, assembled
}

type exprOp uint8

const (
	exprCondition exprOp = iota
	exprOpposite         // of the condition
	exprAll
	exprAny
	exprNone
)

var none = &expr{op: exprNone, size: opSize}

func condition(code byte, arguments ...byte) *expr {
	c := append([]byte{code, 0, 0, 0}, arguments...)
	return &expr{op: exprCondition, code: c, size: len(c)}
}

func allOf(kids ...*expr) *expr {
	e := &expr{op: exprAll}
	for _, kid := range kids {
		if kid == none {
			return none
		}
		if kid != nil {
			e.kids, e.size = append(e.kids, kid), e.size+kid.size
		}
	}
	switch len(e.kids) {
	case 0:
		return nil
	case 1:
		return e.kids[0]
	}
	return e
}

func anyOf(kids ...*expr) *expr {
	e := &expr{op: exprAny, size: -opSize}
	for _, kid := range kids {
		if kid == nil {
			return nil
		}
		if kid != none {
			e.kids, e.size = append(e.kids, kid), e.size+kid.size+opSize
		}
	}
	switch len(e.kids) {
	case 0:
		return none
	case 1:
		return e.kids[0]
	}
	return e
}

// opposite negates an expression that is exact.
func opposite(e *expr) *expr {
	if e == nil {
		return none
	}
	kids := make([]*expr, len(e.kids))
	for i, kid := range e.kids {
		kids[i] = opposite(kid)
	}
	switch e.op {
	case exprNone:
		return nil
	case exprAll:
		return anyOf(kids...)
	case exprAny:
		return allOf(kids...)
	case exprOpposite:
		return condition(e.code[0], e.code[opSize:]...)
	}
	return &expr{op: exprOpposite, code: e.code, size: e.size + opSize}
}

// assemble writes the program. The kernel steps through an instruction by its
// "yes" when it checks a program, so that "yes" is always the next one. Past
// the end by one instruction means that the socket is left out.
func (e *expr) assemble() []byte {
	return e.emit(make([]byte, 0, e.size), e.size+opSize)
}

func (e *expr) emit(b []byte, fail int) []byte {
	switch e.op {
	case exprCondition:
		b = appendOp(b, e.code, fail)
	case exprOpposite:
		b = appendOp(b, e.code, len(b)+e.size)
		b = appendOp(b, []byte{bcJump, 0, 0, 0}, fail)
	case exprNone:
		b = appendOp(b, []byte{bcJump, 0, 0, 0}, fail)
	case exprAll:
		for _, kid := range e.kids {
			b = kid.emit(b, fail)
		}
	case exprAny:
		end := len(b) + e.size
		for _, kid := range e.kids[:len(e.kids)-1] {
			b = kid.emit(b, len(b)+kid.size+opSize)
			b = appendOp(b, []byte{bcJump, 0, 0, 0}, end)
		}
		b = e.kids[len(e.kids)-1].emit(b, fail)
	}
	return b
}

func appendOp(b, code []byte, no int) []byte {
	start := len(b)
	b = append(b, code...)
	b[start+1] = byte(len(code))
	binary.NativeEndian.PutUint16(b[start+2:], uint16(no-start))
	return b
}

// compiler makes programs for one network namespace.
type compiler struct {
	devices           map[string]uint32 // indexes, as far as looked up
	mark              bool              // the kernel lets us filter by mark
	protocols, states uint32            // that are listed at all
}

// compile says what the kernel can see of the literal, and whether that is all
// of it. Where it cannot tell, it lets pass.
func (k *compiler) compile(l literal) (e *expr, exact bool) {
	if l.n.op == opNot {
		return k.compile(literal{l.n.kids[0], !l.negated})
	}
	if l.n.op == opTerm {
		return k.term(l.n.term, l.negated)
	}
	exact = true
	kids := make([]*expr, len(l.n.kids))
	for i, kid := range l.n.kids {
		var kidExact bool
		kids[i], kidExact = k.compile(literal{kid, l.negated})
		exact = exact && kidExact
	}
	if (l.n.op == opAnd) != l.negated {
		return allOf(kids...), exact
	}
	return anyOf(kids...), exact
}

func (k *compiler) term(t term, negated bool) (e *expr, exact bool) {
	if t.rel == present {
		return nil, false
	}
	switch t.field {
	case FieldProtocol:
		return known(k.protocols&(setRun|1<<fivetuple.Raw), t.values[0].set, negated)
	case FieldState:
		return known(k.states, t.values[0].set, negated)
	case FieldLocalPort, FieldRemotePort:
		return k.ports(t, negated)
	case FieldLocalAddr, FieldRemoteAddr:
		return addresses(t, negated)
	case FieldFamily:
		return family(t.values[0].set, negated), false
	}
	kids := make([]*expr, len(t.values))
	for i, v := range t.values {
		if kids[i] = k.identity(t.field, v); kids[i] == nil {
			return nil, false
		}
	}
	if negated {
		return opposite(anyOf(kids...)), true
	}
	return anyOf(kids...), true
}

// known decides a term about what the plan narrows already, if it is the same
// for all that is listed.
func known(listed, set uint32, negated bool) (e *expr, exact bool) {
	switch inside, outside := listed&set != 0, listed&^set != 0; {
	case inside && outside:
		return nil, false
	case inside != negated:
		return nil, true
	}
	return none, true
}

// identity compares what a socket was given: nil if the kernel cannot.
func (k *compiler) identity(f Field, v value) *expr {
	switch {
	case f == FieldMark && k.mark:
		b := binary.NativeEndian.AppendUint32(nil, uint32(v.low))
		return condition(bcMark, binary.NativeEndian.AppendUint32(b, uint32(v.mask))...)
	case f == FieldCgroup && v.low != 0:
		return condition(bcCgroup, binary.NativeEndian.AppendUint64(nil, v.low)...)
	case f == FieldDevice:
		index := v.low
		if v.text != "" {
			index = uint64(k.device(v.text))
		}
		if index != 0 && index <= math.MaxUint32 {
			return condition(bcDevice, binary.NativeEndian.AppendUint32(nil, uint32(index))...)
		}
	}
	return nil
}

func (k *compiler) device(name string) uint32 {
	if strings.ContainsAny(name, "*?") {
		return 0
	}
	index, known := k.devices[name]
	if !known {
		index = deviceIndex(name)
		k.devices[name] = index
	}
	return index
}

// ports compares ports. To the kernel a socket without a peer has the remote
// port 0, and a raw socket's protocol is its local port; for a filter neither
// has a port. So port 0 is let pass, and nothing denied of raw sockets.
func (k *compiler) ports(t term, negated bool) (e *expr, exact bool) {
	spans := t.spans()
	kids, zero := make([]*expr, len(spans)), false
	for i, s := range spans {
		kids[i] = portSpan(t.field, s)
		zero = zero || s.low == 0
	}
	e = anyOf(kids...)
	switch {
	case !negated:
		return e, !zero
	case k.protocols>>fivetuple.Raw&1 != 0:
		return nil, false
	case zero:
		return anyOf(opposite(e), portSpan(t.field, value{})), false
	}
	return opposite(e), true
}

// spans are the ports that the term accepts.
func (t term) spans() []value {
	n := t.values[0].low
	switch t.rel {
	case less:
		if n == 0 {
			return nil
		}
		return []value{{low: 0, high: n - 1}}
	case lessEqual:
		return []value{{low: 0, high: n}}
	case greater:
		return []value{{low: n + 1, high: math.MaxUint16}}
	case greaterEqual:
		return []value{{low: n, high: math.MaxUint16}}
	}
	return t.values
}

func portSpan(f Field, span value) *expr {
	host, ge, le := byte(bcLocalHost), byte(bcLocalGE), byte(bcLocalLE)
	if f == FieldRemotePort {
		host, ge, le = bcRemoteHost, bcRemoteGE, bcRemoteLE
	}
	switch {
	case span.low > span.high:
		return none
	case span.low == span.high:
		return condition(host, hostCondition(familyA, 0, int32(span.low), nil)...)
	}
	var least, most *expr
	if span.low > 0 {
		least = condition(ge, portArgument(span.low)...)
	}
	if span.high < math.MaxUint16 {
		most = condition(le, portArgument(span.high)...)
	}
	return allOf(least, most)
}

// portArgument is a second struct inet_diag_bc_op, whose "no" is the port.
func portArgument(port uint64) []byte {
	return binary.NativeEndian.AppendUint16([]byte{0, 0}, uint16(port))
}

// hostCondition is struct inet_diag_hostcond: __u8 family, __u8 prefix_len,
// int port (-1 for any), __be32 addr[].
func hostCondition(family, bits byte, port int32, address []byte) []byte {
	b := binary.NativeEndian.AppendUint32([]byte{family, bits, 0, 0}, uint32(port))
	return append(b, address...)
}

// addresses compares addresses. To the kernel a socket without a peer has the
// unspecified address for its remote one; so that is let pass.
func addresses(t term, negated bool) (e *expr, exact bool) {
	exact = true
	kids := make([]*expr, len(t.values))
	for i, v := range t.values {
		if v.zone != "" {
			if negated {
				return nil, false // it may be the other zone that the socket has
			}
			exact = false
		}
		if v.prefix.Contains(netip.IPv4Unspecified()) || v.prefix.Contains(netip.IPv6Unspecified()) {
			exact = false
		}
		kids[i] = within(t.field, v.prefix)
	}
	e = anyOf(kids...)
	switch {
	case !negated:
		return e, exact
	case exact:
		return opposite(e), true
	}
	return anyOf(opposite(e), within(t.field, any4), within(t.field, any6)), false
}

var (
	all4    = netip.PrefixFrom(netip.IPv4Unspecified(), 0)
	any4    = netip.PrefixFrom(netip.IPv4Unspecified(), 32)
	any6    = netip.PrefixFrom(netip.IPv6Unspecified(), 128)
	mapped4 = netip.MustParsePrefix("::ffff:0.0.0.0/96")
)

// within compares an address with a prefix. For AF_INET the kernel compares
// IPv4 mapped into IPv6 too, and for AF_INET6 it compares what is there, which
// may be mapped: for a filter it is IPv4 then (inet_diag_bc_run).
func within(f Field, p netip.Prefix) *expr {
	code := byte(bcLocalHost)
	if f == FieldRemoteAddr {
		code = bcRemoteHost
	}
	family := byte(family6)
	if p.Addr().Is4() {
		family = family4
	}
	// The kernel reads the address in words of 32 bits as far as the prefix goes.
	e := condition(code, hostCondition(family, byte(p.Bits()), -1, p.Addr().AsSlice())...)
	if family == family6 && p != mapped4 && p.Overlaps(mapped4) {
		return allOf(e, opposite(within(f, mapped4)))
	}
	return e
}

// family compares the family of the local address. A socket bound to :: may
// be for both, which the kernel does not tell.
func family(set uint32, negated bool) *expr {
	local4 := within(FieldLocalAddr, all4)
	switch {
	case set == 1<<4 && !negated:
		return anyOf(local4, within(FieldLocalAddr, any6))
	case set == 1<<6 && negated:
		return local4
	}
	return opposite(local4) // no IPv4 address: it is ip6, and it is not ip or it is ::
}

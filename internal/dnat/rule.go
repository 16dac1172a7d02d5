package dnat

import (
	"bytes"
	"encoding/binary"
	"net/netip"
	"slices"
	"strings"

	"github.com/mdlayher/netlink"
)

// Attributes (include/uapi/linux/netfilter/nf_tables.h). Numbers are in the order of the network.
const (
	attrListElement = 1

	attrExpressionName = 1
	attrExpressionData = 2

	attrDataValue    = 1
	attrDataVerdict  = 2
	attrVerdictCode  = 1
	attrVerdictChain = 2

	attrElementKey    = 1
	attrElementData   = 2
	attrElementFlags  = 3
	attrElementKeyEnd = 10
)

// Verdicts (NF_*, NFT_*).
const (
	verdictDrop   = 0
	verdictAccept = 1
	verdictJump   = -3
	verdictGoto   = -4
	verdictReturn = -5
)

type verdict struct {
	code  int32
	chain string
}

// path is under which conditions a rule is reached.
type path struct {
	family     int // 4, 6 or 0
	only       netip.Prefix
	conditions []string
}

func (p path) clone() path {
	p.conditions = slices.Clip(p.conditions)
	return p
}

func (p *path) when(condition string) {
	if !slices.Contains(p.conditions, condition) {
		p.conditions = append(p.conditions, condition)
	}
}

// rule is one that is being evaluated for a packet of which only the protocol
// and the destination port are known.
type rule struct {
	packet
	chain     *chain
	path      path
	registers [registers]word

	fails    bool // it does not match
	unsure   bool // it may match or not
	verdicts []verdict

	sends, unread bool
	to            netip.Addr
	first, last   uint16
}

// registers is how many words of 4 bytes there are (NFT_REG32_00 to 15).
const registers = 16

// word is what a register holds from there on.
type word struct {
	is    content
	value []byte // of a constant, or what a known field has
	mask  []byte // that was laid over it, nil for none
}

type content uint8

const (
	isUnknown content = iota
	isKnown           // value is what the packet has, or a constant
	isDest            // the destination address, as many bytes as value has
	isDevice          // the name of the device that it arrives by
	isFamily          // NFPROTO_*
	isLocal           // what kind of address the destination is (RTN_*)
	isUnread          // out of a map that was not read
)

// registerAt is the number of a register among the words: 1 to 4 are the older
// ones, of 16 bytes, 8 and more those of 4 bytes.
func registerAt(n uint32) int {
	switch {
	case n >= 1 && n <= 4:
		return int(n-1) * 4
	case n >= 8 && n < 8+registers:
		return int(n - 8)
	}
	return -1
}

func (r *rule) get(n uint32) word {
	if i := registerAt(n); i >= 0 {
		return r.registers[i]
	}
	return word{}
}

// set sets a register, and those behind it to the rest of a constant.
func (r *rule) set(n uint32, w word) {
	for i := registerAt(n); i >= 0 && i < registers; i++ {
		r.registers[i] = w
		if w.is != isKnown || len(w.value) <= 4 {
			break
		}
		w.value = w.value[4:]
	}
}

// attributes are those of one expression, by number.
type attributes [16][]byte

func (a *attributes) decode(ad *netlink.AttributeDecoder) error {
	for ad.Next() {
		if n := ad.Type(); int(n) < len(a) {
			a[n] = ad.Bytes()
		}
	}
	return nil
}

func (a *attributes) number(n int) uint32 {
	if len(a[n]) != 4 {
		return 0
	}
	return binary.BigEndian.Uint32(a[n])
}

func (a *attributes) text(n int) string { return strings.TrimRight(string(a[n]), "\x00") }

// data decodes an attribute that holds a value.
func (a *attributes) data(n int) ([]byte, *verdict) {
	ad, err := newDecoder(a[n])
	if err != nil {
		return nil, nil
	}
	return decodeData(ad)
}

func newDecoder(b []byte) (*netlink.AttributeDecoder, error) {
	ad, err := netlink.NewAttributeDecoder(b)
	if err == nil {
		ad.ByteOrder = binary.BigEndian
	}
	return ad, err
}

// decodeData decodes NFTA_DATA_*: bytes, or a verdict.
func decodeData(ad *netlink.AttributeDecoder) (value []byte, v *verdict) {
	for ad.Next() {
		switch ad.Type() {
		case attrDataValue:
			value = ad.Bytes()
		case attrDataVerdict:
			v = &verdict{}
			ad.Nested(func(ad *netlink.AttributeDecoder) error {
				for ad.Next() {
					switch ad.Type() {
					case attrVerdictCode:
						v.code = int32(ad.Uint32())
					case attrVerdictChain:
						v.chain = ad.String()
					}
				}
				return nil
			})
		}
	}
	return value, v
}

// evaluate goes through the expressions of a rule, until one fails.
func (r *rule) evaluate(list []byte) error {
	ad, err := newDecoder(list)
	if err != nil {
		return err
	}
	for ad.Next() && !r.fails {
		var expression attributes
		ad.Nested(expression.decode)
		var a attributes
		if inner, err := newDecoder(expression[attrExpressionData]); err == nil {
			a.decode(inner)
		}
		if err := r.expression(expression.text(attrExpressionName), &a); err != nil {
			return err
		}
	}
	return ad.Err()
}

func (r *rule) expression(name string, a *attributes) error {
	switch name {
	case "counter", "log", "notrack", "quota", "last", "dup":
	case "meta":
		r.meta(a)
	case "payload":
		r.payload(a)
	case "fib":
		r.fib(a)
	case "bitwise":
		r.bitwise(a)
	case "cmp":
		r.compare(a)
	case "range":
		r.within(a)
	case "lookup":
		return r.lookup(a)
	case "immediate":
		value, v := a.data(2)
		if v != nil {
			r.verdicts = append(r.verdicts, *v)
		} else {
			r.set(a.number(1), word{is: isKnown, value: value})
		}
	case "nat":
		r.nat(a)
	case "redir":
		r.sends = true
		r.ports(a.number(1), a.number(2))
	case "match":
		r.xtMatch(a.text(1), a.number(2), a[3])
	case "target":
		r.xtTarget(a.text(1), a.number(2), a[3])
	default: // limit, ct, hash, ...: something else must hold
		r.set(a.number(1), word{})
		if name == "limit" || name == "connlimit" || name == "quota" {
			r.path.when("further conditions")
		}
	}
	return nil
}

func (r *rule) meta(a *attributes) {
	const nfproto, l4proto, iifname = 15, 16, 6 // NFT_META_*
	w := word{}
	switch a.number(2) {
	case nfproto:
		w.is = isFamily
	case l4proto:
		w = word{is: isKnown, value: []byte{r.port.Protocol}}
	case iifname:
		w.is = isDevice
	}
	if a[1] != nil {
		r.set(a.number(1), w)
	}
}

// payload loads from the packet: the destination port, or the protocol of an IPv4
// header, which are known, or the destination address.
func (r *rule) payload(a *attributes) {
	const network, transport = 1, 2 // NFT_PAYLOAD_*_HEADER
	base, offset, size := a.number(2), a.number(3), a.number(4)
	w := word{}
	v6 := r.chain.family == familyIP6 || r.path.family == 6
	switch {
	case base == transport && offset == 2 && size == 2:
		w = word{is: isKnown, value: binary.BigEndian.AppendUint16(nil, r.port.Number)}
	case base == network && !v6 && offset == 9 && size == 1, base == network && v6 && offset == 6 && size == 1:
		w = word{is: isKnown, value: []byte{r.port.Protocol}}
	case base == network && !v6 && offset == 16 && size <= 4, base == network && v6 && offset == 24 && size <= 16:
		w = word{is: isDest, value: make([]byte, size)}
	}
	r.set(a.number(1), w)
}

// fib looks up what kind of address the destination is.
func (r *rule) fib(a *attributes) {
	const addressType, destination = 3, 2 // NFT_FIB_RESULT_ADDRTYPE, NFTA_FIB_F_DADDR
	w := word{}
	if a.number(2) == addressType && a.number(3)&^0x10 == destination {
		w.is = isLocal
	}
	r.set(a.number(1), w)
}

func (r *rule) bitwise(a *attributes) {
	w := r.get(a.number(1))
	mask, _ := a.data(4)
	xor, _ := a.data(5)
	switch {
	case w.is == isDest && len(bytes.Trim(xor, "\x00")) == 0:
		w.mask = mask
	case w.is == isKnown && len(mask) >= len(w.value) && len(xor) >= len(w.value):
		value := slices.Clone(w.value)
		for i := range value {
			value[i] = value[i]&mask[i] ^ xor[i]
		}
		w.value = value
	default:
		w = word{}
	}
	r.set(a.number(2), w)
}

// compare evaluates "cmp": what is known holds or not, the rest is a condition.
func (r *rule) compare(a *attributes) {
	const equal, notEqual, less, lessEqual, greater, greaterEqual = 0, 1, 2, 3, 4, 5 // NFT_CMP_*
	w, op := r.get(a.number(1)), a.number(2)
	value, _ := a.data(3)
	is := op == equal
	switch {
	case w.is == isKnown && len(w.value) >= len(value):
		x := bytes.Compare(w.value[:len(value)], value)
		holds := map[uint32]bool{equal: x == 0, notEqual: x != 0, less: x < 0, lessEqual: x <= 0, greater: x > 0, greaterEqual: x >= 0}
		r.fails = !holds[op]
	case op > notEqual:
		r.path.when("further conditions")
	case w.is == isFamily && len(value) > 0:
		r.onlyFamily(map[byte]int{familyIP: 4, familyIP6: 6}[value[0]], is)
	case w.is == isLocal && len(value) > 0:
		r.onlyLocal(value, is)
	case w.is == isDevice:
		r.path.when(negate("from device "+deviceIn(value), is))
	case w.is == isDest:
		r.onlyTo(prefixOf(value, w.mask, r.chain.family == familyIP6 || len(value) > 4 || r.path.family == 6), is)
	default:
		r.path.when("further conditions")
	}
}

func negate(condition string, is bool) string {
	if is {
		return condition
	}
	return "not " + condition
}

// deviceIn is the name of a device in a register; what stands before a NUL, or
// before the end, is a prefix.
func deviceIn(b []byte) string {
	if name, _, ended := bytes.Cut(b, []byte{0}); ended {
		return string(name)
	}
	return string(b) + "*"
}

func (r *rule) onlyFamily(family int, is bool) {
	if !is {
		family = 10 - family // the other of 4 and 6
	}
	if r.path.family != 0 && r.path.family != family {
		r.fails = true
	}
	r.path.family = family
}

// onlyLocal compares the kind of the destination address, which for what is of
// interest is one of this machine's.
func (r *rule) onlyLocal(kind []byte, is bool) {
	local := kind[0] == 2 || kind[len(kind)-1] == 2 // RTN_LOCAL, in either byte order
	r.fails = local != is
}

// onlyTo narrows the destination address.
func (r *rule) onlyTo(p netip.Prefix, is bool) {
	switch {
	case !p.IsValid():
		r.path.when("further conditions")
	case !is:
		r.path.when("not to " + prefixText(p))
	case !r.path.only.IsValid():
		r.path.only = p
	case !r.path.only.Overlaps(p):
		r.fails = true
	case p.Bits() > r.path.only.Bits():
		r.path.only = p
	}
}

func prefixText(p netip.Prefix) string {
	if p.IsSingleIP() {
		return p.Addr().String()
	}
	return p.String()
}

// prefixOf makes a prefix of the bytes that an address is compared with, of which
// there can be fewer than it has. It is invalid if the mask has gaps.
func prefixOf(value, mask []byte, v6 bool) netip.Prefix {
	size := 4
	if v6 {
		size = 16
	}
	if len(value) > size {
		return netip.Prefix{}
	}
	full := make([]byte, size)
	copy(full, value)
	bits := 8 * len(value)
	if mask != nil {
		bits = 0
		for _, m := range mask {
			for ; m&0x80 != 0; m <<= 1 {
				bits++
			}
			if m != 0 {
				return netip.Prefix{}
			}
		}
	}
	addr, _ := netip.AddrFromSlice(full)
	return netip.PrefixFrom(addr, bits)
}

func (r *rule) within(a *attributes) {
	w := r.get(a.number(1))
	from, _ := a.data(3)
	to, _ := a.data(4)
	if w.is != isKnown || len(from) > len(w.value) || len(from) != len(to) {
		r.path.when("further conditions")
		return
	}
	inside := bytes.Compare(w.value[:len(from)], from) >= 0 && bytes.Compare(w.value[:len(to)], to) <= 0
	r.fails = inside != (a.number(2) == 0)
}

// lookup looks the register up in a set, a map of values or a map of verdicts. What
// is looked up must be known and stand alone in the key.
func (r *rule) lookup(a *attributes) error {
	const set, source, destination, flags = 1, 2, 3, 5
	w := r.get(a.number(source))
	inverted := a.number(flags)&1 != 0
	var all []element
	if w.is == isKnown {
		var err error
		if all, err = r.setOf(a.text(set)); err != nil {
			return err
		}
		if slices.ContainsFunc(all, func(e element) bool { return len(e.key) > 4 || e.keyEnd != nil }) {
			w = word{} // several things put together
		}
	}
	isMap := a[destination] != nil
	switch {
	case w.is != isKnown && isMap && a.number(destination) == 0: // verdicts that nobody knows
		r.path.when("a map of verdicts that is not read")
		r.verdicts = append(r.verdicts, verdictsOf(r.knownVerdicts(a.text(set)))...)
		r.unsure = true
	case w.is != isKnown && isMap:
		r.set(a.number(destination), word{is: isUnread})
		r.unsure = true
	case w.is != isKnown:
		r.path.when("further conditions")
	default:
		e := match(all, w.value)
		if r.fails = (e != nil) == inverted; r.fails || !isMap {
			return nil
		}
		if e.verdict != nil {
			r.verdicts = append(r.verdicts, *e.verdict)
		} else {
			r.set(a.number(destination), word{is: isKnown, value: e.data})
		}
	}
	return nil
}

// knownVerdicts are the elements of a map, none if it cannot be read.
func (r *rule) knownVerdicts(name string) []element {
	all, err := r.setOf(name)
	if err != nil {
		return nil
	}
	return all
}

// verdictsOf are the jumps of a map, each once.
func verdictsOf(all []element) (jumps []verdict) {
	for _, e := range all {
		if e.verdict != nil && e.verdict.chain != "" && !slices.Contains(jumps, *e.verdict) {
			jumps = append(jumps, *e.verdict)
		}
	}
	return jumps
}

// setOf reads a set once.
func (r *rule) setOf(name string) ([]element, error) {
	key := r.chain.tableName.String() + "\x00" + name
	all, known := r.sets[key]
	if !known {
		var err error
		if all, err = r.elements(r.chain.tableName, name); err != nil {
			return nil, err
		}
		r.sets[key] = all
	}
	return all, nil
}

// match finds the element for a value. Where there are intervals each goes from one
// element up to the next, which may be marked as an end.
func match(all []element, value []byte) *element {
	intervals := slices.ContainsFunc(all, func(e element) bool { return e.isEnd })
	var best, other *element
	for i := range all {
		e := &all[i]
		if e.catchAll {
			other = e
			continue
		}
		if len(e.key) > len(value) || len(e.key) == 0 {
			continue
		}
		switch x := bytes.Compare(e.key, value[:len(e.key)]); {
		case x == 0 && !intervals:
			return e
		case intervals && x <= 0 && (best == nil || bytes.Compare(e.key, best.key) > 0 || bytes.Equal(e.key, best.key) && best.isEnd):
			best = e
		}
	}
	if best == nil || best.isEnd {
		return other
	}
	return best
}

func (r *rule) nat(a *attributes) {
	const kind, addressMin, portMin, portMax = 1, 3, 5, 6
	if a.number(kind) != 1 { // NFT_NAT_DNAT
		return
	}
	r.sends = true
	if a[addressMin] != nil {
		switch w := r.get(a.number(addressMin)); {
		case w.is == isKnown:
			v6 := r.chain.family == familyIP6 || a.number(2) == familyIP6
			r.to = addressOf(w.value, v6)
		default:
			r.unread = true
		}
	}
	r.ports(a.number(portMin), a.number(portMax))
}

func addressOf(b []byte, v6 bool) netip.Addr {
	size := 4
	if v6 {
		size = 16
	}
	if len(b) < size {
		return netip.Addr{}
	}
	addr, _ := netip.AddrFromSlice(b[:size])
	return addr
}

// ports reads the registers with the ports; number 0 stands for none.
func (r *rule) ports(low, high uint32) {
	if low == 0 {
		return
	}
	port := func(n uint32) uint16 {
		w := r.get(n)
		if w.is != isKnown || len(w.value) < 2 {
			r.unread = true
			return 0
		}
		return binary.BigEndian.Uint16(w.value)
	}
	r.first = port(low)
	if r.last = r.first; high != 0 {
		r.last = port(high)
	}
}

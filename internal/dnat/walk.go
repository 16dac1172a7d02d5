package dnat

import (
	"cmp"
	"errors"
	"slices"

	"github.com/mdlayher/netlink"
)

// tableName names a table: there is one of the name in each family.
type tableName struct {
	family uint8 // NFPROTO_*
	table  string
}

const (
	familyInet = 1 // NFPROTO_INET: both
	familyIP   = 2 // NFPROTO_IPV4
	familyIP6  = 10
)

func (t tableName) String() string {
	return map[uint8]string{familyInet: "inet", familyIP: "ip", familyIP6: "ip6"}[t.family] + " " + t.table
}

// chain is a chain of rules; one that has a hook is a base chain.
type chain struct {
	tableName
	name     string
	nat      bool
	hook     int // -1 for none
	priority int32
	rules    [][]byte // the list of expressions of each (NFTA_RULE_EXPRESSIONS)
}

const (
	hookPrerouting = 0 // NF_INET_PRE_ROUTING
	hookOutput     = 3 // NF_INET_LOCAL_OUT
)

// baseChains are those in which a destination can be changed, in the order the kernel asks them.
func baseChains(all []*chain) []*chain {
	base := slices.DeleteFunc(slices.Clone(all), func(c *chain) bool {
		known := c.family == familyInet || c.family == familyIP || c.family == familyIP6
		return !c.nat || !known || c.hook != hookPrerouting && c.hook != hookOutput
	})
	slices.SortStableFunc(base, func(a, b *chain) int { return cmp.Compare(a.priority, b.priority) })
	return base
}

// element is one of a set or map (NFTA_SET_ELEM_*).
type element struct {
	key, keyEnd []byte
	data        []byte // of a map
	verdict     *verdict
	isEnd       bool // the interval that began before it ends before it
	catchAll    bool
}

func (e *element) decode(ad *netlink.AttributeDecoder) error {
	for ad.Next() {
		switch ad.Type() {
		case attrElementKey:
			ad.Nested(func(ad *netlink.AttributeDecoder) error { e.key, _ = decodeData(ad); return nil })
		case attrElementKeyEnd:
			ad.Nested(func(ad *netlink.AttributeDecoder) error { e.keyEnd, _ = decodeData(ad); return nil })
		case attrElementData:
			ad.Nested(func(ad *netlink.AttributeDecoder) error { e.data, e.verdict = decodeData(ad); return nil })
		case attrElementFlags:
			flags := ad.Uint32()
			e.isEnd, e.catchAll = flags&1 != 0, flags&2 != 0
		}
	}
	return nil
}

// walker goes through rules as a packet for a port would.
type walker struct {
	tables   map[tableName]map[string]*chain
	elements func(t tableName, set string) ([]element, error)
	sets     map[string][]element // that were read
	found    []Rule
	steps    int
}

// add reads the rules of a table.
func (w *walker) add(t tableName, all []*chain, read func(tableName, map[string]*chain) error) error {
	chains := map[string]*chain{}
	for _, c := range all {
		if c.tableName == t {
			chains[c.name] = c
		}
	}
	if w.tables == nil {
		w.tables, w.sets = map[tableName]map[string]*chain{}, map[string][]element{}
	}
	w.tables[t] = chains
	return read(t, chains)
}

// maxSteps bounds how many rules are looked at: chains can be entered from many others.
const maxSteps = 1_000_000

func (w *walker) walk(base *chain, p Port) error {
	at := packet{walker: w, base: base, port: p}
	_, err := at.through(base, path{}, 0)
	return err
}

// packet is one on its way through a base chain.
type packet struct {
	*walker
	base *chain
	port Port
}

// maxDepth is how deep jumps may be nested (NFT_JUMP_STACK_SIZE).
const maxDepth = 16

// through goes through a chain; over says that no packet leaves it.
func (p packet) through(c *chain, so path, depth int) (over bool, err error) {
	if depth > maxDepth {
		return false, nil
	}
	for _, expressions := range c.rules {
		if p.steps++; p.steps > maxSteps {
			return false, errors.New("there are too many rules to go through")
		}
		r := rule{packet: p, chain: c, path: so.clone()}
		if err := r.evaluate(expressions); err != nil {
			return false, err
		}
		if r.fails {
			continue
		}
		sure := len(r.path.conditions) == len(so.conditions) && r.path.only == so.only && r.path.family == so.family && !r.unsure
		for _, v := range r.verdicts {
			switch v.code {
			case verdictJump, verdictGoto:
				next := p.tables[c.tableName][v.chain]
				if next == nil {
					continue
				}
				over, err := p.through(next, r.path, depth+1)
				if err != nil || over && sure {
					return over, err
				}
				if v.code == verdictGoto && sure {
					return false, nil
				}
			case verdictReturn:
				if sure {
					return false, nil
				}
			case verdictAccept, verdictDrop:
				if sure {
					return true, nil
				}
			}
		}
		if r.sends {
			p.report(c, r)
			if sure {
				return true, nil
			}
		}
	}
	return false, nil
}

// report adds the rule to those that were found, once for both hooks.
func (p packet) report(c *chain, r rule) {
	found := Rule{
		Port: p.port, Family: r.path.family, Table: c.tableName.String(), Chain: c.name,
		To: r.to, First: r.first, Last: r.last, Unread: r.unread, Only: r.path.only, Conditions: r.path.conditions,
		Incoming: p.base.hook == hookPrerouting, Local: p.base.hook == hookOutput,
	}
	if found.Family == 0 {
		found.Family = map[uint8]int{familyIP: 4, familyIP6: 6}[c.family]
	}
	for i := range p.found {
		f := &p.found[i]
		if f.Port == found.Port && f.Table == found.Table && f.Chain == found.Chain && f.To == found.To && f.First == found.First &&
			f.Unread == found.Unread && f.Only == found.Only && slices.Equal(f.Conditions, found.Conditions) {
			f.Incoming, f.Local = f.Incoming || found.Incoming, f.Local || found.Local
			return
		}
	}
	p.found = append(p.found, found)
}

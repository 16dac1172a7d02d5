package filter

import (
	"fmt"
	"math"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/fivetuple/fivetuple"
)

// writer writes a tree so that it parses to the same tree.
type writer struct {
	strings.Builder
	// again says that what was last written has a value, so that a further
	// value may follow an "or" or "and": a target must not look like one.
	again bool
}

func (w *writer) node(n *node) {
	switch n.op {
	case opTerm:
		w.term(n.term)
	case opTarget:
		if w.again && !strings.Contains(n.text, "://") {
			w.parenthesized(n)
			break
		}
		w.WriteString(n.text)
		w.again = false
	case opNot:
		w.WriteString("not ")
		w.kid(n.kids[0], opAnd, opOr)
	case opAnd:
		w.kids(n.kids, " and ", opOr)
	case opOr:
		w.kids(n.kids, " or ", opAnd)
	}
}

func (w *writer) kids(kids []*node, between string, inner ...nodeOp) {
	for i, kid := range kids {
		if i > 0 {
			w.WriteString(between)
		}
		w.kid(kid, inner...)
	}
}

// kid writes a node, in parentheses if it is one of the operations.
func (w *writer) kid(n *node, inner ...nodeOp) {
	if slices.Contains(inner, n.op) {
		w.parenthesized(n)
	} else {
		w.node(n)
	}
}

func (w *writer) parenthesized(n *node) {
	w.again = false
	w.WriteByte('(')
	w.node(n)
	w.WriteByte(')')
	w.again = false
}

// term writes the term in the words that parse to it.
func (w *writer) term(t term) {
	f := fields[t.field]
	w.again = t.rel == equal
	if f.kind == kindSet && t.field != FieldState {
		w.WriteString(t.setWord())
		w.again = false
		return
	}
	w.WriteString(t.head())
	if t.rel != equal || t.field == FieldLocalPort && (t.side == sideLocal || t.side == sideRemote) {
		w.WriteByte(' ')
		w.WriteString(relationWords[t.rel])
	}
	for i, v := range t.values {
		if i > 0 {
			w.WriteByte(',')
		} else {
			w.WriteByte(' ')
		}
		w.WriteString(v.textOf(t.field))
	}
}

// head is the words before the comparison.
func (t term) head() string {
	word := fields[t.field].word
	switch t.field {
	case FieldLocalAddr:
		word = "host"
	case FieldLocalPort:
		word = "port"
	}
	switch {
	case t.side == sideBoth:
		return "src and dst " + word
	case t.side == sideLocal && t.field == FieldLocalAddr:
		return "src"
	case t.side == sideRemote && t.field == FieldLocalAddr:
		return "dst"
	case t.side == sideLocal:
		return "sport"
	case t.side == sideRemote:
		return "dport"
	}
	return word
}

// setWord is the word for protocols or families; targets may have sets without one.
func (t term) setWord() string {
	for _, s := range sets {
		if s.field == t.field && s.set == t.values[0].set {
			return s.word
		}
	}
	var words []string
	for n := range fivetuple.Netlink + 1 {
		if t.values[0].set>>n&1 != 0 {
			words = append(words, n.String())
		}
	}
	return "(" + strings.Join(words, " or ") + ")"
}

func (v value) textOf(f Field) string {
	switch fields[f].kind {
	case kindSet:
		return stateText(v.set)
	case kindPort:
		return portText(v)
	case kindAddr:
		a := v.prefix.Addr()
		switch {
		case v.prefix.IsSingleIP():
			return quote(a.WithZone(v.zone).String())
		}
		return v.prefix.String()
	case kindHex:
		return strconv.FormatUint(v.low, 16)
	case kindSize:
		return sizeText(v.low)
	case kindRate:
		return sizeText(v.low) + "/s"
	case kindDuration:
		return strings.Replace(time.Duration(v.low).String(), "µ", "u", 1)
	case kindMark:
		if v.mask != math.MaxUint32 {
			return fmt.Sprintf("%#x/%#x", v.low, v.mask)
		}
		return fmt.Sprintf("%#x", v.low)
	case kindText, kindCgroup:
		return quote(v.text)
	case kindNamed:
		if v.text != "" {
			return quote(v.text)
		}
	}
	return strconv.FormatUint(v.low, 10)
}

func stateText(set uint32) string {
	if set == math.MaxUint32 {
		return "all"
	}
	var words []string
	for s := range fivetuple.State(32) {
		if set>>s&1 != 0 && s != fivetuple.StateNewSynRecv && s != boundInactive {
			words = append(words, stateWord(s))
		}
	}
	return strings.Join(words, ",")
}

func portText(v value) string {
	return fivetuple.PortRange{First: uint16(v.low), Last: uint16(v.high)}.String()
}

// sizeText writes bytes in the largest unit that leaves a whole number.
func sizeText(n uint64) string {
	for i := 3; i >= 0; i-- {
		if size := uint64(units[i].size); n != 0 && n%size == 0 {
			return strconv.FormatUint(n/size, 10) + units[i].name
		}
	}
	return strconv.FormatUint(n, 10)
}

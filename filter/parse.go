package filter

import (
	"context"
	"fmt"
	"strings"

	"github.com/fivetuple/fivetuple"
)

const (
	maxText  = 64 << 10 // bytes
	maxDepth = 100      // of the tree
	maxNest  = 1000     // of parentheses and nots in the text
)

// Parse reads a filter. Text without a word gives nil, which accepts
// everything. Errors in the text are a *[SyntaxError].
//
// Names are looked up here, once: services in the machine's services file and
// the registry of package port, users in the user database, and hosts with
// [net.Resolver], for five seconds at most, or until ctx is done.
func Parse(ctx context.Context, text string) (*Filter, error) {
	return parse(&lookups{ctx: ctx, host: lookupHost, cgroup: cgroupID}, text)
}

func parse(names *lookups, text string) (*Filter, error) {
	if len(text) > maxText {
		return nil, &SyntaxError{Text: text, Column: 1, Message: fmt.Sprintf("the filter has %d bytes; the most is %d", len(text), maxText)}
	}
	tokens, err := lex(text)
	if err != nil {
		return nil, err.in(text)
	}
	if tokens[0].end() {
		return nil, nil
	}
	p := parser{tokens: tokens, names: names}
	tree, err := p.filter()
	if err != nil {
		return nil, err.in(text)
	}
	return newFilter(tree), nil
}

type parser struct {
	tokens []token
	next   int
	names  *lookups
	nest   int
	// again is the last term that took a value, for what follows an "or" or
	// "and" without a word of its own: "port 80 or 443".
	again  *head
	joined bool // an "or" or "and" was just read
}

// head is what stands before the values of a term.
type head struct {
	protocol *node // "tcp" of "tcp port 80", or nil
	words    string
	field    Field // of addresses and ports the local one, with the side
	side     side
	rel      relation
	net      bool // the word was "net"
}

func (p *parser) peek() token { return p.tokens[p.next] }

// peekAt looks n tokens ahead.
func (p *parser) peekAt(n int) token { return p.tokens[min(p.next+n, len(p.tokens)-1)] }

func (p *parser) take() token {
	t := p.peek()
	if !t.end() {
		p.next++
	}
	return t
}

// takeIf takes the token if it is one of the words or signs.
func (p *parser) takeIf(words ...string) bool {
	for _, w := range words {
		if p.peek().is(w) {
			p.next++
			return true
		}
	}
	return false
}

func (p *parser) filter() (*node, *fault) {
	tree, err := p.or()
	if err != nil {
		return nil, err
	}
	if t := p.peek(); !t.end() {
		return nil, p.unexpected(t)
	}
	if tree.depth() > maxDepth {
		return nil, faultAt(0, "the filter is nested more than %d deep", maxDepth)
	}
	return tree, nil
}

func (p *parser) unexpected(t token) *fault {
	if t.is(")") {
		return faultAt(t.at, "this ) has no ( before it")
	}
	if t.is(",") {
		return faultAt(t.at, "this comma is in no list of values: write \"or\" between terms, and put a text that has one in double quotes")
	}
	return faultAt(t.at, "%s cannot stand here: want \"and\", \"or\" or the end", t.describe())
}

func (p *parser) or() (*node, *fault) {
	var kids []*node
	for {
		kid, err := p.and()
		if err != nil {
			return nil, err
		}
		kids = append(kids, kid)
		if p.joined = p.takeIf("or", "||", "|"); !p.joined {
			return or(kids...), nil
		}
	}
}

func (p *parser) and() (*node, *fault) {
	var kids []*node
	afterEndpoint := false
	for {
		beside, start := len(kids) > 0 && !p.joined, p.peek()
		kid, err := p.not()
		if err != nil {
			return nil, err
		}
		endpoint := !start.is("(") && kid.isEndpoint()
		if beside && endpoint && afterEndpoint {
			return nil, faultAt(start.at, "%q stands beside another endpoint: write \"or\" between the two", start.text)
		}
		afterEndpoint = endpoint
		if last := len(kids) - 1; beside && kid.isStates() && kids[last].isStates() {
			// "state a state b" is either, as in ss: no socket is in both.
			kids[last] = statesNode(kids[last].term.values[0].set | kid.term.values[0].set)
		} else {
			kids = append(kids, kid)
		}
		if p.joined = p.takeIf("and", "&&", "&"); !p.joined && !p.startsTerm() {
			return and(kids...), nil
		}
	}
}

// startsTerm says whether the next token can begin a term, so that it is joined by "and".
func (p *parser) startsTerm() bool {
	t := p.peek()
	return t.is("(") || t.is("!") || t.word && !t.is("or")
}

func (p *parser) not() (*node, *fault) {
	if p.nest++; p.nest > maxNest {
		return nil, faultAt(p.peek().at, "too many parentheses and nots: the most is %d", maxNest)
	}
	defer func() { p.nest-- }()
	if p.takeIf("not", "!") {
		kid, err := p.not()
		if err != nil {
			return nil, err
		}
		return not(kid), nil
	}
	if open := p.peek(); open.is("(") {
		return p.group(open)
	}
	return p.term()
}

func (p *parser) group(open token) (*node, *fault) {
	p.take()
	p.again, p.joined = nil, false
	inner, err := p.or()
	if err != nil {
		return nil, err
	}
	if t := p.peek(); !t.is(")") {
		if t.end() {
			return nil, faultAt(open.at, "this ( has no ) behind it")
		}
		return nil, p.unexpected(t)
	}
	p.take()
	p.again = nil
	return inner, nil
}

func (p *parser) term() (*node, *fault) {
	t, joined := p.peek(), p.joined
	p.joined = false
	if !t.word || t.is("and") || t.is("or") {
		return nil, faultAt(t.at, "%s cannot stand here: want a term such as \"tcp\", \"port 80\" or \"state listen\"", t.describe())
	}
	if t.quoted {
		p.take()
		return p.target(t, nil)
	}
	word := strings.ToLower(t.text)
	if set, ok := setOf(word); ok {
		p.take()
		return p.withProtocol(termNode(set))
	}
	if h, ok, err := p.sided(nil); ok || err != nil {
		if err != nil {
			return nil, err
		}
		return p.values(h)
	}
	switch word {
	case "state", "exclude":
		p.take()
		return p.states(word == "exclude")
	}
	if f := fieldOf(word); f != FieldNone {
		p.take()
		h := head{words: word, field: f}
		if h.rel, _ = relationOf(p.peek().text); p.peekRelation() {
			p.take()
		}
		return p.values(h)
	}
	if p.again != nil && p.again.takes(word) {
		if !joined {
			return nil, faultAt(t.at, "%q stands beside the value of %q: write \"or\" or a comma between the two", t.text, p.again.words)
		}
		return p.values(*p.again)
	}
	p.take()
	return p.target(t, nil)
}

func (p *parser) peekRelation() bool {
	t := p.peek()
	_, ok := relationOf(t.text)
	return ok && !t.quoted
}

// withProtocol goes on after a protocol: "tcp port 80" and "tcp 127.0.0.1:80"
// are one term, that a "not" means as a whole.
func (p *parser) withProtocol(protocol *node) (*node, *fault) {
	h, ok, err := p.sided(protocol)
	switch {
	case err != nil:
		return nil, err
	case ok:
		return p.values(h)
	}
	t := p.peek()
	if protocol.term.field == FieldProtocol && t.word && isEndpoint(t.text) && !strings.Contains(t.text, "://") {
		p.take()
		return p.target(t, protocol)
	}
	p.again = nil
	return protocol, nil
}

// sided reads the words before an address or a port: "src or dst port", "sport =".
func (p *parser) sided(protocol *node) (head, bool, *fault) {
	start := p.next
	h := head{protocol: protocol, field: FieldLocalAddr, side: sideEither}
	directed := p.side(&h)
	t := p.peek()
	switch {
	case p.takeIf("host"), p.takeIf("net"):
		h.net = t.is("net")
	case p.takeIf("port", "portrange"):
		h.field = FieldLocalPort
	case !directed && p.takeIf("sport"):
		h.field, h.side = FieldLocalPort, sideLocal
	case !directed && p.takeIf("dport"):
		h.field, h.side = FieldLocalPort, sideRemote
	case !directed:
		p.next = start
		return head{}, false, nil
	}
	var words []string
	for _, t := range p.tokens[start:p.next] {
		words = append(words, t.text)
	}
	h.words = strings.Join(words, " ")
	if p.peekRelation() {
		h.rel, _ = relationOf(p.take().text)
	}
	if h.field == FieldLocalAddr && h.rel > notEqual {
		return head{}, false, faultAt(p.tokens[p.next-1].at, "addresses have no order: want = or !=")
	}
	return h, true, nil
}

// side reads "src", "dst", "src or dst" and "src and dst".
func (p *parser) side(h *head) bool {
	switch {
	case p.takeIf("dst"):
		h.side = sideRemote
	case p.takeIf("src"):
		h.side = sideLocal
		if !p.peekAt(1).is("dst") || !p.sideGoesOn(2) {
			break
		}
		if p.takeIf("or", "||") {
			h.side = sideEither
			p.take()
		} else if p.takeIf("and", "&&") {
			h.side = sideBoth
			p.take()
		}
	default:
		return false
	}
	return true
}

// sideGoesOn says whether what is n tokens ahead can follow "src or dst".
func (p *parser) sideGoesOn(n int) bool {
	t := p.peekAt(n)
	_, isRelation := relationOf(t.text)
	return t.word || isRelation
}

func (p *parser) states(exclude bool) (*node, *fault) {
	h := head{words: "state", field: FieldState}
	if p.peekRelation() {
		t := p.take()
		if h.rel, _ = relationOf(t.text); h.rel > notEqual {
			return nil, faultAt(t.at, "states have no order: want = or !=")
		}
	}
	n, err := p.values(h)
	if err == nil && exclude {
		n = not(n)
		p.again = nil
	}
	return n, err
}

func (n *node) isStates() bool {
	return n.op == opTerm && n.term.field == FieldState && n.term.rel == equal
}

// isEndpoint says whether the node is what [parser.target] makes of an endpoint:
// of a host with several addresses it is an "or".
func (n *node) isEndpoint() bool {
	return n.op == opTarget || n.op == opOr && n.kids[0].op == opTarget
}

func statesNode(set uint32) *node {
	return termNode(term{field: FieldState, values: []value{{set: set}}})
}

// takes says whether a word without a word of its own can be a further value.
func (h *head) takes(word string) bool {
	if strings.Contains(word, "://") {
		return false
	}
	digits := strings.Trim(word, "0123456789") == ""
	named := !isEndpoint(word) && !strings.Contains(word, ":")
	switch fields[h.field].kind {
	case kindSet:
		_, ok := statesOf(word)
		return ok
	case kindPort:
		return strings.HasPrefix(word, ":") || isPorts(word) || named
	case kindAddr:
		return isAddress(word) || named && !digits
	case kindNumber, kindHex, kindMark:
		return digits
	case kindUser, kindNamed:
		return digits || named
	case kindText:
		return named && !digits || h.field == FieldName && (word[0] == '/' || word[0] == '@')
	}
	return false
}

// values reads what a term compares with: a value, a list with commas, or one
// in parentheses with "or".
func (p *parser) values(h head) (*node, *fault) {
	if p.again = nil; h.rel == equal {
		p.again = &h
	}
	list := operands{head: h}
	parenthesized := p.takeIf("(")
	for {
		t := p.take()
		if !t.word {
			return nil, faultAt(t.at, "want %s after %q, not %s", wanted(h), h.words, t.describe())
		}
		if err := p.value(&list, t); err != nil {
			return nil, err
		}
		more := p.peek()
		if !p.takeIf(",") && !(parenthesized && p.takeIf("or", "||", "|")) {
			break
		}
		if h.rel > notEqual {
			return nil, faultAt(more.at, "%q takes one value: a list has no order", relationWords[h.rel])
		}
	}
	if t := p.peek(); parenthesized && !p.takeIf(")") {
		return nil, faultAt(t.at, "%s cannot stand here: want \"or\" or \")\"", t.describe())
	}
	n := list.node()
	if h.protocol != nil {
		n = and(h.protocol, n)
	}
	return n, nil
}

// operands collects the values of a term. An address with a port needs a node of its own.
type operands struct {
	head   head
	values []value
	ports  []value // of addresses without an address: "dst :443"
	nodes  []*node
}

func (o *operands) node() *node {
	h := o.head
	if h.field == FieldState {
		var set uint32
		for _, v := range o.values {
			set |= v.set
		}
		o.values = []value{{set: set}}
	}
	var all []*node
	if len(o.values) > 0 {
		all = append(all, termNode(term{h.field, h.side, h.rel, o.values}))
	}
	if len(o.ports) > 0 {
		all = append(all, termNode(term{FieldLocalPort, h.side, h.rel, o.ports}))
	}
	all = append(all, o.nodes...)
	if h.rel == notEqual {
		return and(all...) // "src != 10.0.0.1, :22" is neither
	}
	return or(all...)
}

// addressAndPort adds an address with a port, which must be those of one side.
func (o *operands) addressAndPort(a, port value) {
	both := func(s side) *node {
		return and(termNode(term{FieldLocalAddr, s, equal, []value{a}}), termNode(term{FieldLocalPort, s, equal, []value{port}}))
	}
	switch o.head.side {
	case sideEither:
		o.nodes = append(o.nodes, or(both(sideLocal), both(sideRemote)))
	case sideBoth:
		o.nodes = append(o.nodes, and(both(sideLocal), both(sideRemote)))
	default:
		o.nodes = append(o.nodes, both(o.head.side))
	}
}

// networkOf is the name by which services are looked up: "tcp", or "" where
// the protocol is not given.
func networkOf(protocol *node) string {
	if protocol == nil || protocol.term.field != FieldProtocol {
		return ""
	}
	switch protocol.term.values[0].set {
	case setUDP, 1 << fivetuple.UDPLite:
		return "udp"
	case 1 << fivetuple.SCTP:
		return "sctp"
	}
	return "tcp"
}

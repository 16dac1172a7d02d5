package filter

import (
	"net/netip"
	"strings"

	"github.com/fivetuple/fivetuple"
)

// target reads a term without a word of the language before it: an endpoint,
// "pid:123", "@name". The protocol was written before it, or is nil.
func (p *parser) target(t token, protocol *node) (*node, *fault) {
	p.again = nil
	if key, rest, ok := strings.Cut(t.text, ":"); ok && rest != "" && rest[0] != '/' {
		if f := targetField(key); f != FieldNone {
			return p.keyed(t, key, f, rest)
		}
	}
	from, rest, f := endpointOf(t, protocol)
	if f != nil {
		return nil, f
	}
	if from.set&setUnix != 0 {
		return p.unixTarget(t, from, rest)
	}
	return p.ipTarget(t, from, rest)
}

// endpoint is what is known of a target's sockets but for their address.
type endpoint struct {
	scheme string // as it is written in front, "" for none
	set    uint32 // protocols
	family uint32 // 1<<4, 1<<6 or 0
	ports  value
}

// endpointOf reads the scheme of a target, or takes the protocol before it for one.
func endpointOf(t token, protocol *node) (from endpoint, rest string, f *fault) {
	scheme, rest, hasScheme := strings.Cut(t.text, "://")
	switch {
	case hasScheme:
		from, f = schemeEndpoint(scheme, t.at)
		return from, rest, f
	case !isEndpoint(t.text):
		return endpoint{}, "", unknownWord(t)
	}
	isPath := t.text[0] == '/' || t.text[0] == '@'
	switch {
	case protocol != nil:
		from.set = protocol.term.values[0].set
		from.scheme = schemeOf(from.set)
		if isPath != (from.set&setUnix != 0) || from.set&(setPorts|setUnix) == 0 {
			return endpoint{}, "", faultAt(t.at, "%q is not an endpoint of %s sockets", t.text, from.scheme)
		}
	case isPath:
		from.set = setUnix
	default:
		from.set = setDefault
	}
	return from, t.text, nil
}

// schemeEndpoint reads a scheme. "tcp4" narrows the family too.
func schemeEndpoint(scheme string, at int) (endpoint, *fault) {
	n, err := fivetuple.ParseNetwork(scheme)
	if err != nil {
		return endpoint{}, faultAt(at, "unknown scheme %q%s", scheme, suggest(scheme, []string{"tcp", "tcp4", "tcp6", "udp", "udp4", "udp6", "unix", "unixgram", "seqpacket"}))
	}
	from := endpoint{scheme: n.String()}
	switch n {
	case fivetuple.TCP4, fivetuple.UDP4:
		from.family = 1 << 4
	case fivetuple.TCP6, fivetuple.UDP6:
		from.family = 1 << 6
	}
	if t, ok := setOf(n.Protocol().String()); ok {
		from.set = t.values[0].set & (setPorts | setUnix)
	}
	if from.set == 0 {
		return endpoint{}, faultAt(at, "%s:// names no sockets of the table: want tcp, udp, unix, unixgram or seqpacket", n)
	}
	return from, nil
}

// keyed reads "pid:123", and a list after it.
func (p *parser) keyed(t token, key string, f Field, rest string) (*node, *fault) {
	p.next--
	p.tokens[p.next] = token{text: rest, at: t.at + len(key) + 1, word: true, quoted: true}
	n, err := p.values(head{words: key, field: f})
	p.again = nil
	return n, err
}

// unixTarget is the sockets bound to a path or an abstract name, and with
// "> peer" behind it those that are connected to the peer.
func (p *parser) unixTarget(t token, from endpoint, path string) (*node, *fault) {
	if path == "" || path == "@" {
		return nil, faultAt(t.at, "%q names no path: write unix:///run/name.sock or unix://@name", t.text)
	}
	n := &node{op: opTarget, text: quote(path)}
	if from.scheme != "" {
		n.text = quote(from.scheme + "://" + path)
	}
	terms := []*node{
		protocolNode(from.set),
		termNode(term{field: FieldName, values: []value{{text: path}}}),
	}
	if p.peek().is(">") && p.peekAt(1).word {
		p.take()
		peer := p.take()
		terms = append(terms, termNode(term{field: FieldPeerName, values: []value{{text: peer.text}}}))
		n.text += " > " + quote(peer.text)
	}
	n.kids = []*node{and(terms...)}
	return n, nil
}

func protocolNode(set uint32) *node {
	return termNode(term{field: FieldProtocol, values: []value{{set: set}}})
}

// schemeOf is the word for a set of protocols.
func schemeOf(set uint32) string {
	for _, s := range sets {
		if s.field == FieldProtocol && s.set == set {
			return s.word
		}
	}
	return ""
}

func (p *parser) ipTarget(t token, at endpoint, text string) (*node, *fault) {
	e, err := fivetuple.ParseEndpoint(text)
	if err != nil {
		return nil, faultAt(t.at, "%v", err)
	}
	if _, isProtocol := setOf(strings.ToLower(e.Host)); isProtocol {
		port := text[strings.LastIndexByte(text, ':')+1:]
		return nil, faultAt(t.at, "%q is a protocol and no host: write \"%s port %s\"", e.Host, e.Host, port)
	}
	at.ports = value{low: uint64(e.Ports.First), high: uint64(e.Ports.Last)}
	if e.Service != "" {
		network := ""
		if at.set != setDefault {
			network = networkOf(protocolNode(at.set))
		}
		var f *fault
		if at.ports, f = p.names.service(e.Service, network, t.at); f != nil {
			return nil, f
		}
	}
	switch addr, ok := e.Addr(); {
	case e.Host == "" || e.Host == fivetuple.AnyHost:
		return at.node(value{}), nil
	case ok:
		if p.peek().is(">") && e.Ports.Len() == 1 {
			return p.tuple(at, addressValue(addr))
		}
		return at.node(addressValue(addr)), nil
	}
	found, f := p.names.hosts(e.Host, t.at)
	if f != nil {
		return nil, f
	}
	all := make([]*node, len(found))
	for i, a := range found {
		all[i] = at.node(a)
	}
	return or(all...), nil
}

// node is the sockets at the address, or at any for the zero value.
func (at endpoint) node(a value) *node {
	terms := []*node{protocolNode(at.set)}
	if at.family != 0 {
		terms = append(terms, familyNode(at.family))
	}
	if a.prefix.IsValid() {
		terms = append(terms, or(covering(a)...))
	}
	terms = append(terms, termNode(term{FieldLocalPort, sideLocal, equal, []value{at.ports}}))
	text := quote(at.String(a))
	return &node{op: opTarget, text: text, kids: []*node{and(terms...)}}
}

// covering are the local addresses that take what is sent to a: itself and the wildcards.
func covering(a value) []*node {
	at := func(a value) *node { return termNode(term{FieldLocalAddr, sideLocal, equal, []value{a}}) }
	any4, any6 := addressValue(netip.IPv4Unspecified()), addressValue(netip.IPv6Unspecified())
	all := []*node{at(a)}
	if a != any4 && a.prefix.Addr().Is4() {
		all = append(all, at(any4))
	}
	switch {
	case a.prefix.Addr().Is4():
		all = append(all, and(at(any6), familyNode(1<<4))) // unless it is IPV6_V6ONLY
	case a != any6:
		all = append(all, at(any6))
	}
	return all
}

func familyNode(set uint32) *node {
	return termNode(term{field: FieldFamily, values: []value{{set: set}}})
}

func (at endpoint) String(a value) string {
	scheme := at.scheme
	if scheme != "" {
		scheme += "://"
	}
	return scheme + hostText(a) + ":" + portText(at.ports)
}

// hostText writes an address as in an endpoint; none as "".
func hostText(a value) string {
	if !a.prefix.IsValid() {
		return ""
	}
	addr := a.prefix.Addr()
	if addr.Is4() {
		return addr.String()
	}
	return "[" + addr.WithZone(a.zone).String() + "]"
}

// tuple reads the remote end of a five-tuple, which is one socket or few.
func (p *parser) tuple(at endpoint, local value) (*node, *fault) {
	p.take()
	t := p.take()
	remote, err := netip.ParseAddrPort(t.text)
	if err != nil || !t.word {
		return nil, faultAt(t.at, "want the remote end of the five-tuple after \">\", such as 10.0.0.1:443, not %s", t.describe())
	}
	peer := addressValue(remote.Addr())
	port := value{low: uint64(remote.Port()), high: uint64(remote.Port())}
	one := func(f Field, s side, v value) *node { return termNode(term{f, s, equal, []value{v}}) }
	terms := []*node{
		protocolNode(at.set),
		one(FieldLocalAddr, sideLocal, local), one(FieldLocalPort, sideLocal, at.ports),
		one(FieldLocalAddr, sideRemote, peer), one(FieldLocalPort, sideRemote, port),
	}
	if at.family != 0 {
		terms = append(terms, familyNode(at.family))
	}
	text := quote(at.String(local)) + " > " + quote(hostText(peer)+":"+portText(port))
	return &node{op: opTarget, text: text, kids: []*node{and(terms...)}}, nil
}

// isEndpoint says whether text is written like an endpoint: there are no words like it.
func isEndpoint(text string) bool {
	if text == "" {
		return false
	}
	switch text[0] {
	case ':', '[', '/', '@', '*':
		return true
	}
	if isPorts(text) || strings.Contains(text, "://") {
		return true
	}
	_, port, ok := strings.Cut(text, ":")
	return ok && port != "" && !strings.Contains(port, ":")
}

func unknownWord(t token) *fault {
	word := t.text
	switch {
	case isAddress(word):
		return faultAt(t.at, "%q stands alone: write \"host %s\", \"src %s\" or \"dst %s\", or an endpoint such as %s:80", word, word, word, word, word)
	case t.quoted:
		return faultAt(t.at, "%q stands alone: write what it is, such as \"proc\" or \"path\", before it", word)
	}
	if _, ok := statesOf(strings.ToLower(word)); ok {
		return faultAt(t.at, "%q stands alone: write \"state %s\"", word, word)
	}
	hint := suggest(word, vocabulary())
	if hint == "" {
		hint = ": a process is \"proc:" + word + "\", a service \":" + word + "\", a host \"host " + word + "\""
	}
	return faultAt(t.at, "unknown word %q%s", word, hint)
}

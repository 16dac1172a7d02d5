// Package filter is the language that chooses sockets (and later packets and
// events): "tcp and dst port 443", "state established and not src 10.0.0.0/8".
//
//	f, err := filter.Parse(ctx, "tcp dport = :443 and rtt > 50ms")
//	plan := f.Sockets()                     // what the kernel can do
//	for each socket that the kernel then lists:
//		if plan.Match(socket) { ... }       // and what is left
//
// It takes the everyday parts of pcap-filter(7) and of the filter of ss(8):
//
//	tcp udp icmp ip ip6 unix unixgram seqpacket mptcp sctp udplite raw packet netlink
//	[src|dst|src or dst|src and dst] host|net|port|portrange X      tcp dst port 443
//	src X   dst X     an address, a prefix, address:port, or :port
//	sport OP P   dport OP P   port OP P                             sport = :22, dport >= 1024
//	state S[,S]   exclude S[,S]    a TCP state or ss's group: connected synchronized bucket big all
//	pid N   proc NAME   user U   unit U   container C   netns N   dev D   mark M[/MASK]
//	cgroup PATH   path NAME   peer NAME   inode N   cookie HEX
//	rtt OP 50ms   age OP 1h   sendq recvq sent received OP 64KiB   rate OP 1MiB/s
//	retrans cwnd drops OP N
//	and or not ( ) && || !
//
// OP is one of = == != < <= > >= or eq ne lt le gt ge, and = where none is
// written. Most things take a list: "port 80,443", "state listen,close-wait".
// Names take the wildcards * and ?. "and" binds tighter than "or", and terms
// side by side mean "and", as in ss; but "port 80 or 443" means what it does
// in pcap-filter, and "state a state b" either state, as in ss. Words may be in
// upper case. A text in double quotes is never a word of the language.
//
// A target is a term too: a port "8080", ":8080" or "8000-8090",
// "127.0.0.1:80", "udp://:53", "unix:///run/a.sock", "/run/a.sock", "@name",
// "pid:123", "proc:nginx", "unit:x.service", "container:NAME", "user:NAME",
// "cookie:HEX", "netns:NAME", "inode:N", "dev:NAME", and a five-tuple as
// fivetuple.Tuple writes it. An endpoint means the sockets at that local
// endpoint: bound to the address, or to a wildcard that covers it. Without a
// scheme it is TCP (with MPTCP) or UDP.
//
// What a socket has not has no value: a term about it is false, and its "not"
// true. So "dport != 80" holds for sockets that have a remote port and it is
// not 80, "not dport = 80" for listeners and Unix sockets too. Of a term about
// both sides, "port = 80" holds if either side is 80, "port != 80" if there is
// a port and neither side is 80.
//
// The kernel side stands on inet_diag's bytecode (include/uapi/linux/inet_diag.h).
// Parsing and matching work on every system.
package filter

import "net/netip"

// Subject is what a filter is asked about: a row of the socket table, say.
type Subject interface {
	// Any says whether the test holds for one of the subject's values of the
	// field. What a subject has not, or what is not known of it, has no value.
	Any(f Field, test func(Value) bool) bool
}

// Value is one value of a field, in the member that fits the kind of field.
type Value struct {
	Number uint64 // numbers, sizes in bytes, durations in ns, states, protocols
	Text   string // names and paths
	Addr   netip.Addr
}

// Field is a thing that a term of a filter compares.
type Field uint8

// The fields of sockets, with the member of [Value] they use.
const (
	FieldNone       Field = iota
	FieldProtocol         // Number: a fivetuple.Network
	FieldFamily           // Number: 4, 6; a dual-stack socket has both
	FieldState            // Number: a fivetuple.State
	FieldLocalAddr        // Addr; IPv4 mapped into IPv6 counts as IPv4
	FieldRemoteAddr       // Addr
	FieldLocalPort        // Number; of TCP, MPTCP, UDP, UDPLite and SCTP only
	FieldRemotePort       // Number; likewise
	FieldName             // Text: of a Unix socket
	FieldPeerName         // Text: what the peer of a Unix socket is bound to
	FieldDevice           // Text: SO_BINDTODEVICE; Number: its index
	FieldMark             // Number
	FieldCgroup           // Number: cgroup id; Text: path
	FieldCookie           // Number
	FieldInode            // Number
	FieldNetns            // Number: id; Text: name
	FieldUser             // Number: uid
	FieldPID              // Number, one for each holder
	FieldCommand          // Text, one for each holder
	FieldUnit             // Text: systemd unit, one for each holder
	FieldContainer        // Text: container id or name, one for each holder
	FieldRTT              // Number: ns
	FieldRetrans          // Number: segments retransmitted in all
	FieldSendQueue        // Number: bytes
	FieldRecvQueue        // Number: bytes
	FieldCwnd             // Number: segments
	FieldAge              // Number: ns, where it is known when the socket was opened
	FieldRate             // Number: bytes per second, both directions, where it was measured
	FieldSent             // Number: bytes
	FieldReceived         // Number: bytes
	FieldDrops            // Number
)

// Filter is a parsed filter. It never changes, so it may be used from any
// number of goroutines. The nil *Filter accepts everything.
type Filter struct {
	tree  *node
	check check
	uses  uint64 // a bit for each Field
}

func newFilter(tree *node) *Filter {
	plain := tree.expand()
	return &Filter{tree: tree, check: newCheck(plain), uses: plain.fields()}
}

// Match says whether the filter accepts the subject. It allocates nothing.
func (f *Filter) Match(s Subject) bool {
	return f == nil || f.check.match(s)
}

// Uses says whether the filter looks at the field, so that a caller knows what
// it must find out about a subject first.
func (f *Filter) Uses(field Field) bool {
	return f != nil && f.uses>>field&1 != 0
}

// String writes the filter in one form for all ways to write it, with names
// resolved. It parses to an equal filter. That of the nil *Filter is "".
func (f *Filter) String() string {
	if f == nil {
		return ""
	}
	return f.tree.String()
}

package filter

import (
	"strings"

	"github.com/fivetuple/fivetuple"
)

// kind says how the values of a field are written and compared.
type kind uint8

const (
	kindSet kind = iota // a bit in value.set
	kindPort
	kindAddr
	kindNumber
	kindHex
	kindSize
	kindRate
	kindDuration
	kindText
	kindUser
	kindMark
	kindNamed // a name, or a number where only digits are written
	kindCgroup
)

// fields says of each field the word that [Filter.String] writes, and the kind.
var fields = [...]struct {
	word string
	kind kind
}{
	FieldNone:       {},
	FieldProtocol:   {"", kindSet},
	FieldFamily:     {"", kindSet},
	FieldState:      {"state", kindSet},
	FieldLocalAddr:  {"src", kindAddr},
	FieldRemoteAddr: {"dst", kindAddr},
	FieldLocalPort:  {"sport", kindPort},
	FieldRemotePort: {"dport", kindPort},
	FieldName:       {"path", kindText},
	FieldPeerName:   {"peer", kindText},
	FieldDevice:     {"dev", kindNamed},
	FieldMark:       {"mark", kindMark},
	FieldCgroup:     {"cgroup", kindCgroup},
	FieldCookie:     {"cookie", kindHex},
	FieldInode:      {"inode", kindNumber},
	FieldNetns:      {"netns", kindNamed},
	FieldUser:       {"user", kindUser},
	FieldPID:        {"pid", kindNumber},
	FieldCommand:    {"proc", kindText},
	FieldUnit:       {"unit", kindText},
	FieldContainer:  {"container", kindText},
	FieldRTT:        {"rtt", kindDuration},
	FieldRetrans:    {"retrans", kindNumber},
	FieldSendQueue:  {"sendq", kindSize},
	FieldRecvQueue:  {"recvq", kindSize},
	FieldCwnd:       {"cwnd", kindNumber},
	FieldAge:        {"age", kindDuration},
	FieldRate:       {"rate", kindRate},
	FieldSent:       {"sent", kindSize},
	FieldReceived:   {"received", kindSize},
	FieldDrops:      {"drops", kindNumber},
}

// aliases are other words for fields, as other programs call them.
var aliases = [...]struct {
	word  string
	field Field
}{
	{"send-q", FieldSendQueue}, {"send_queue", FieldSendQueue}, {"recv-q", FieldRecvQueue}, {"recv_queue", FieldRecvQueue},
	{"fwmark", FieldMark}, {"device", FieldDevice}, {"process", FieldCommand}, {"comm", FieldCommand}, {"uid", FieldUser},
	{"ino", FieldInode}, {"name", FieldName},
}

// fieldOf finds the field that a word stands for, but for addresses, ports and
// states, which have a grammar of their own.
func fieldOf(word string) Field {
	for f := FieldName; int(f) < len(fields); f++ {
		if fields[f].word == word {
			return f
		}
	}
	for _, a := range aliases {
		if a.word == word {
			return a.field
		}
	}
	return FieldNone
}

// targetField finds the field of a target such as "pid:123".
func targetField(word string) Field {
	switch f := fieldOf(strings.ToLower(word)); f {
	case FieldPID, FieldCommand, FieldUnit, FieldContainer, FieldUser, FieldCookie, FieldNetns, FieldInode, FieldDevice:
		return f
	}
	return FieldNone
}

// Sets of protocols, a bit for each fivetuple.Network.
const (
	setTCP     = 1<<fivetuple.TCP | 1<<fivetuple.MPTCP // MPTCP is TCP on the wire, and what Go's listeners are
	setUDP     = 1 << fivetuple.UDP
	setUnix    = 1<<fivetuple.Unix | 1<<fivetuple.Unixgram | 1<<fivetuple.Seqpacket
	setPorts   = setTCP | setUDP | 1<<fivetuple.UDPLite | 1<<fivetuple.SCTP
	setInet    = setPorts | 1<<fivetuple.Raw | 1<<fivetuple.ICMP
	setTable   = setInet | setUnix | 1<<fivetuple.Vsock | 1<<fivetuple.Packet | 1<<fivetuple.Netlink // all there are
	setDefault = setTCP | setUDP                                                                     // of a port without a protocol
)

// sets are the words for protocols and address families.
var sets = [...]struct {
	word  string
	field Field
	set   uint32
}{
	{"tcp", FieldProtocol, setTCP}, {"udp", FieldProtocol, setUDP}, {"icmp", FieldProtocol, 1 << fivetuple.ICMP},
	{"mptcp", FieldProtocol, 1 << fivetuple.MPTCP}, {"sctp", FieldProtocol, 1 << fivetuple.SCTP},
	{"udplite", FieldProtocol, 1 << fivetuple.UDPLite}, {"raw", FieldProtocol, 1 << fivetuple.Raw},
	{"unix", FieldProtocol, setUnix}, {"unixgram", FieldProtocol, 1 << fivetuple.Unixgram},
	{"seqpacket", FieldProtocol, 1 << fivetuple.Seqpacket}, {"vsock", FieldProtocol, 1 << fivetuple.Vsock},
	{"packet", FieldProtocol, 1 << fivetuple.Packet}, {"netlink", FieldProtocol, 1 << fivetuple.Netlink},
	{"ip", FieldFamily, 1 << 4}, {"ip6", FieldFamily, 1 << 6},
}

// setOf finds a protocol or family by its word.
func setOf(word string) (term, bool) {
	for _, s := range sets {
		if s.word == word {
			return term{field: s.field, values: []value{{set: s.set}}}, true
		}
	}
	return term{}, false
}

// Sets of states, a bit for each fivetuple.State. A request socket is in
// NEW_SYN_RECV, for which the kernel's table says SYN_RECV. A dump is asked for
// TCP sockets in CLOSE that are bound by TCP_BOUND_INACTIVE (Linux 6.8).
const (
	boundInactive = 13
	setClose      = 1<<fivetuple.StateClose | 1<<boundInactive
	setSynRecv    = 1<<fivetuple.StateSynRecv | 1<<fivetuple.StateNewSynRecv
	setStates     = 1<<(boundInactive+1) - 2
	setConnected  = setStates &^ (1<<fivetuple.StateListen | setClose)
	setMiniSocket = setSynRecv | 1<<fivetuple.StateTimeWait
)

// statesOf reads a state, or one of ss's names for several.
func statesOf(word string) (set uint32, ok bool) {
	switch word {
	case "all":
		return ^uint32(0), true
	case "connected":
		return setConnected, true
	case "synchronized":
		return setConnected &^ (1 << fivetuple.StateSynSent), true
	case "bucket":
		return setMiniSocket, true
	case "big":
		return setStates &^ setMiniSocket, true
	}
	s, err := fivetuple.ParseState(word)
	switch {
	case err != nil || s == fivetuple.StateUnknown || s >= 32:
		return 0, false
	case s == fivetuple.StateSynRecv || s == fivetuple.StateNewSynRecv:
		return setSynRecv, true
	case s == fivetuple.StateClose || s == boundInactive:
		return setClose, true
	}
	return 1 << s, true
}

func stateWord(s fivetuple.State) string {
	return strings.ReplaceAll(strings.ToLower(s.String()), "_", "-")
}

// relationOf reads a comparison.
func relationOf(word string) (relation, bool) {
	switch strings.ToLower(word) {
	case "=", "==", "eq":
		return equal, true
	case "!=", "<>", "ne", "neq":
		return notEqual, true
	case "<", "lt":
		return less, true
	case "<=", "le", "leq":
		return lessEqual, true
	case ">", "gt":
		return greater, true
	case ">=", "ge", "geq":
		return greaterEqual, true
	}
	return 0, false
}

var relationWords = [...]string{"=", "!=", "<", "<=", ">", ">="}

// vocabulary lists every word, for the errors.
func vocabulary() []string {
	all := []string{"src", "dst", "host", "net", "port", "portrange", "sport", "dport", "state", "exclude", "and", "or", "not"}
	for _, f := range fields[FieldName:] {
		all = append(all, f.word)
	}
	for _, a := range aliases {
		all = append(all, a.word)
	}
	for _, s := range sets {
		all = append(all, s.word)
	}
	return all
}

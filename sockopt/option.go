// Package sockopt knows the socket options of the Linux kernel by name: what each one does, how its value is written,
// which sockets it belongs to, and how to set and read it on a live socket. It also reads TCP_INFO.
//
//	var opts sockopt.Settings
//	err := opts.Set("rcvbuf=4MiB,keepalive=30s/10s/3,tos=ef")
//	lc := net.ListenConfig{Control: opts.Control}
//
// It stands on setsockopt(2) and getsockopt(2) and the lists of socket(7), tcp(7), udp(7), ip(7), ipv6(7) and unix(7),
// completed from the kernel's include/uapi headers up to Linux 6.18. The table and the parser work on every system, so
// that a configuration can be checked anywhere; setting and reading need Linux, elsewhere they return an error that
// wraps [errors.ErrUnsupported]. An option newer than the running kernel is an error that says since when it exists.
//
// Left out, because a name and a value cannot carry them or because they are only a step in a larger protocol: packet
// filters (SO_ATTACH_*), TCP_MD5SIG and TCP-AO keys, TCP_REPAIR and its kin, IPsec policies, sticky IPv6 extension
// headers, flow label leases, anycast membership, whole source filters (*_MSFILTER), TCP_ZEROCOPY_RECEIVE, SO_TXTIME,
// device memory, SO_PEERPIDFD (it opens a descriptor), SO_PEERNAME (use getpeername), and SO_BSDCOMPAT (does nothing).
package sockopt

import (
	"cmp"
	"errors"
	"fmt"
	"math"
	"slices"
	"strings"
)

var (
	// ErrUnknown: no option of that name.
	ErrUnknown = errors.New("unknown socket option")
	// ErrValue: the text is not a value of the option, or is out of its range.
	ErrValue = errors.New("bad value")
	// ErrReadOnly: the option can be read but not set.
	ErrReadOnly = errors.New("the option is read-only")
	// ErrWriteOnly: the option can be set but not read.
	ErrWriteOnly = errors.New("the option cannot be read back")
	// ErrSocket: the option does not belong to this kind of socket.
	ErrSocket = errors.New("wrong kind of socket")
)

// Option describes one socket option of the kernel.
type Option struct {
	Name     string   // canonical: lower case, dashes
	Constant string   // the kernel's name, "TCP_KEEPIDLE"
	Aliases  []string // other names [Lookup] takes, beside Name and Constant

	// Level and Number are Linux's on every architecture but MIPS, PowerPC and SPARC, where the SOL_SOCKET ones differ.
	Level, Number int

	Kind    Kind    // how the value is written
	Unit    string  // what the kernel counts in: "bytes", "bytes/s", "s", "ms", "us"; empty for a plain number
	Access  Access  // may it be set, may it be read
	Sockets Sockets // the sockets it belongs to

	Min, Max int64   // range of a number in the kernel's unit, both included; both 0 for any value of an int
	Values   []Named // names for numbers (of a Flags option: for bits)

	// Twin names the IPv6 option that does for IPv6 traffic what this one does for IPv4. An IPv6 socket may carry both,
	// so [Apply] sets both on it.
	Twin string

	Privilege    string // capability needed to set it, or to set more than the default: "CAP_NET_ADMIN"
	ClearsOnRead bool   // reading it changes the socket; [GetAll] leaves it out

	Doc   string // one line: what it does
	Man   string // where it is described: "tcp(7)", or a kernel file
	Since string // the Linux release that brought it

	wire wire
	hex  bool // a number without a name is printed in hexadecimal
}

// Named is a name for a number.
type Named struct {
	Name  string
	Value int64
}

// Kind says how the value of an option is written.
type Kind uint8

const (
	Bool      Kind = iota // on, off, true, false, yes, no, 1, 0; the bare name means on
	Int                   // a number, decimal or 0x..., or one of Option.Values
	Flags                 // names from Option.Values joined by +, or a number
	Bytes                 // a size: 4096, 64KiB, 1.5MiB, 1MB (k, M, G count in thousands, Ki, Mi, Gi in 1024); of a rate also 100Mbit
	Duration              // 30s, 1m30s, or a plain number in Option.Unit
	String                // text
	Hex                   // bytes in hexadecimal
	Linger                // off, or how long close waits; 0 means reset the connection
	KeepAlive             // on, off, or IDLE[/INTERVAL[/COUNT]]
	Interface             // a network interface by name or index; for multicast-if also by address
	PortRange             // LOW-HIGH, either may be left out; off
	Group                 // [SOURCE@]GROUP[%INTERFACE]
	Report                // read-only, several values in one line
)

var kindNames = [...]string{"bool", "int", "flags", "bytes", "duration", "string", "hex", "linger", "keepalive", "interface", "portrange", "group", "report"}

func (k Kind) String() string {
	if int(k) < len(kindNames) {
		return kindNames[k]
	}
	return fmt.Sprintf("kind(%d)", k)
}

// Access says whether an option can be set and read.
type Access uint8

const (
	ReadWrite Access = iota
	ReadOnly
	WriteOnly
)

var accessNames = [...]string{"rw", "ro", "wo"}

func (a Access) String() string {
	if int(a) < len(accessNames) {
		return accessNames[a]
	}
	return fmt.Sprintf("access(%d)", a)
}

// Sockets is a set of socket kinds: transports, and address families. As [Option.Sockets] it says which sockets the
// option belongs to: one of the transports, if any is in the set, and one of the families, if any is in the set; the empty
// set means every socket. [Identify] returns the transport and family of one socket.
type Sockets uint16

const (
	TCP    Sockets = 1 << iota
	UDP            // and UDP-Lite
	Raw            // SOCK_RAW over IP
	Ping           // ICMP datagram sockets
	Unix           // AF_UNIX of every type
	Packet         // AF_PACKET
	IPv4
	IPv6  // IPv4 options work on IPv6 sockets too, for the IPv4-mapped traffic; not the other way round
	MPTCP // from Identify only: the TCP socket is a Multipath TCP one, which takes fewer options

	transports = TCP | UDP | Raw | Ping | Unix | Packet
	families   = IPv4 | IPv6
)

var socketNames = [...]string{"tcp", "udp", "raw", "ping", "unix", "packet", "ipv4", "ipv6", "mptcp"}

// String lists the kinds, as in "tcp udp"; the empty set is "any".
func (s Sockets) String() string {
	if s == 0 {
		return "any"
	}
	var names []string
	for i, name := range socketNames {
		if s&(1<<i) != 0 {
			names = append(names, name)
		}
	}
	return strings.Join(names, " ")
}

// Admits reports whether an option for the sockets s belongs to the one socket that have describes. A socket of a
// family this package does not know (vsock, netlink) is left for the kernel to judge.
func (s Sockets) Admits(have Sockets) bool {
	if have == 0 {
		return true
	}
	t, f := s&transports, s&families
	return (t == 0 || t&have != 0) && (f == 0 || f&have != 0)
}

// Socket option levels of Linux.
const (
	levelIP     = 0
	levelSocket = 1
	levelTCP    = 6
	levelUDP    = 17
	levelIPv6   = 41
)

// LevelName returns socket, tcp, udp, ip or ipv6.
func (o Option) LevelName() string {
	switch o.Level {
	case levelSocket:
		return "socket"
	case levelTCP:
		return "tcp"
	case levelUDP:
		return "udp"
	case levelIP:
		return "ip"
	case levelIPv6:
		return "ipv6"
	}
	return fmt.Sprint(o.Level)
}

// limits returns the range of a number in the kernel's unit.
func (o *Option) limits() (low, high int64) {
	if o.Min == 0 && o.Max == 0 {
		return 0, math.MaxInt32
	}
	return o.Min, o.Max
}

// tables holds the options by level, in the order of listing. It is never written to.
var tables = [...][]Option{socketOptions, tcpOptions, udpOptions, ipOptions, ipv6Options}

// All returns every option, by level (socket, tcp, udp, ip, ipv6) and then by name. The slices inside are shared: do
// not write to them.
func All() []Option {
	var all []Option
	for _, table := range tables {
		start := len(all)
		all = append(all, table...)
		slices.SortFunc(all[start:], func(a, b Option) int { return cmp.Compare(a.Name, b.Name) })
	}
	return all
}

// Lookup finds an option by its canonical name, by the kernel's constant or by an alias, in upper or lower case, with
// dashes or underscores.
func Lookup(name string) (Option, bool) {
	if o := lookup(name); o != nil {
		return *o, true
	}
	return Option{}, false
}

func lookup(name string) *Option {
	name = normal(name)
	var byAlias *Option
	for _, table := range tables {
		for i := range table {
			o := &table[i]
			if o.Name == name || normal(o.Constant) == name {
				return o
			}
			if byAlias == nil && slices.ContainsFunc(o.Aliases, func(a string) bool { return normal(a) == name }) {
				byAlias = o
			}
		}
	}
	return byAlias
}

func normal(name string) string {
	return strings.ReplaceAll(strings.ToLower(strings.TrimSpace(name)), "_", "-")
}

// unknown is the error for a name that Lookup does not find, with the nearest names there are.
func unknown(name string) error {
	near := nearest(normal(name))
	if len(near) == 0 {
		return fmt.Errorf("%w %q (ft opts lists them all)", ErrUnknown, name)
	}
	return fmt.Errorf("%w %q: did you mean %s?", ErrUnknown, name, strings.Join(near, " or "))
}

// nearest returns up to three canonical names that the given one is probably a slip of: at most a third of its letters
// wrong, or part of the name.
func nearest(name string) []string {
	if len(name) < 2 || len(name) > 40 {
		return nil
	}
	type guess struct {
		name string
		cost int
	}
	var guesses []guess
	for _, o := range All() {
		best := math.MaxInt
		for _, candidate := range append([]string{o.Name, o.Constant}, o.Aliases...) {
			candidate = normal(candidate)
			best = min(best, distance(name, candidate))
			if len(name) >= 4 && strings.Contains(candidate, name) {
				best = min(best, 1)
			}
		}
		if best <= max(1, len(name)/3) {
			guesses = append(guesses, guess{o.Name, best})
		}
	}
	slices.SortStableFunc(guesses, func(a, b guess) int { return cmp.Compare(a.cost, b.cost) })
	var names []string
	for _, g := range guesses[:min(3, len(guesses))] {
		if g.cost > guesses[0].cost {
			break
		}
		names = append(names, g.name)
	}
	return names
}

// distance is the Levenshtein distance in bytes.
func distance(a, b string) int {
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := range len(a) {
		diagonal := row[0]
		row[0] = i + 1
		for j := range len(b) {
			cost := diagonal
			if a[i] != b[j] {
				cost++
			}
			diagonal = row[j+1]
			row[j+1] = min(cost, row[j]+1, row[j+1]+1)
		}
	}
	return row[len(b)]
}

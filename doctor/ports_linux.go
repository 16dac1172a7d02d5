package doctor

import (
	"fmt"
	"net/netip"
	"strconv"
	"strings"

	"github.com/fivetuple/fivetuple/table"
)

// widerRange begins above what ip(7) advises to leave alone. Its ends have
// different parity, as ip-sysctl.rst wants.
const widerRange = `sysctl -w net.ipv4.ip_local_port_range="10000 65535"`

// portRange is what the kernel takes local ports from when none is named.
type portRange struct {
	first, last uint16
	reserved    map[uint16]bool // of these
}

func (m *machine) ephemeral() (portRange, error) {
	n, err := m.sysctl("net.ipv4.ip_local_port_range", 2)
	if err != nil {
		return portRange{}, err
	}
	if n[0] < 0 || n[1] > 65535 || n[0] > n[1] {
		return portRange{}, fmt.Errorf("net.ipv4.ip_local_port_range holds %d %d, want two ports", n[0], n[1])
	}
	r := portRange{first: uint16(n[0]), last: uint16(n[1]), reserved: map[uint16]bool{}}
	text, err := m.sysctlText("net.ipv4.ip_local_reserved_ports") // "8080,9000-9010"
	if err != nil || text == "" {
		return r, err
	}
	for part := range strings.SplitSeq(text, ",") {
		from, to, ranged := strings.Cut(part, "-")
		if !ranged {
			to = from
		}
		a, err := strconv.ParseUint(from, 10, 16)
		b, err2 := strconv.ParseUint(to, 10, 16)
		if err != nil || err2 != nil {
			return r, fmt.Errorf("net.ipv4.ip_local_reserved_ports holds %q, want ports", text)
		}
		for port := max(a, uint64(r.first)); port <= min(b, uint64(r.last)); port++ {
			r.reserved[uint16(port)] = true
		}
	}
	return r, nil
}

func (r portRange) has(port uint16) bool {
	return port >= r.first && port <= r.last && !r.reserved[port]
}

func (r portRange) size() int { return int(r.last) - int(r.first) + 1 - len(r.reserved) }

func ephemeralRange(m *machine) ([]Finding, error) {
	r, err := m.ephemeral()
	if err != nil {
		return nil, err
	}
	value := fmt.Sprintf("%d-%d, %d ports", r.first, r.last, r.size())
	if len(r.reserved) > 0 {
		value += fmt.Sprintf(", %d more reserved", len(r.reserved))
	}
	level := OK
	switch {
	case r.size() < 1000:
		level = Warning
	case r.size() < 16000:
		level = Note
	default:
		return fine(value)
	}
	return bad(level, value,
		fmt.Sprintf("One local address can have no more than %d TCP connections to one remote address and port, those in TIME_WAIT included.", r.size()),
		widerRange)
}

// ephemeralExhaustion looks for destinations to which over 80 % of the
// ephemeral ports are in use.
func ephemeralExhaustion(m *machine) ([]Finding, error) {
	if m.tcpErr != nil {
		return nil, m.tcpErr
	}
	r, err := m.ephemeral()
	if err != nil {
		return nil, err
	}
	reuse, err := m.timeWaitReuse()
	if err != nil {
		return nil, err
	}
	var found []Finding
	destinations := table.Destinations(m.tcp, r.has, 1)
	for _, d := range destinations {
		if f, bad := exhausted(d, r.size(), reuse.of(d)); bad {
			found = append(found, f)
		}
	}
	switch {
	case len(found) > 0:
		return found, nil
	case len(destinations) == 0:
		return fine("no connection uses one of the ports")
	}
	most := destinations[0]
	return fine(fmt.Sprintf("%d of %d ports to one destination at most, from %s to %s", most.Ports, r.size(), most.Local, most.Remote))
}

// exhausted says whether the ports to a destination run out. Those in
// TIME_WAIT that may be used again, a second after they got there, are no want.
func exhausted(d table.Destination, ports int, reusable bool) (f Finding, bad bool) {
	used := d.Ports
	if reusable {
		used -= d.TimeWait
	}
	f.Level = levelOfUse(int64(used), int64(ports))
	if f.Level == OK {
		return f, false
	}
	f.Subject = fmt.Sprintf("%s to %s", d.Local, d.Remote)
	f.Value = fmt.Sprintf("%d of %d ephemeral ports in use, %d of them in TIME_WAIT", d.Ports, ports, d.TimeWait)
	f.Effect = "When there is no port left connect(2) to that destination fails with EADDRNOTAVAIL (cannot assign requested address)."
	if 2*d.TimeWait > d.Ports && !reusable {
		f.Fix = "sysctl -w net.ipv4.tcp_tw_reuse=1, and let the program keep its connections"
		return f, true
	}
	f.Fix = widerRange + "; or connect from more source addresses, with IP_BIND_ADDRESS_NO_PORT, or to more destination ports"
	return f, true
}

// reuse is where connect(2) may take the port of a connection in TIME_WAIT:
// 0 nowhere, 1 everywhere, 2 to loopback (net.ipv4.tcp_tw_reuse). It takes
// timestamps on both sides, of which the peer's are not known here.
type reuse struct {
	where      int64
	timestamps bool
}

func (m *machine) timeWaitReuse() (reuse, error) {
	where, err := m.number("net.ipv4.tcp_tw_reuse")
	if err != nil {
		return reuse{}, err
	}
	timestamps, err := m.number("net.ipv4.tcp_timestamps")
	return reuse{where, timestamps != 0}, err
}

func (r reuse) of(d table.Destination) bool {
	loopback := func(a netip.Addr) bool { return a.IsLoopback() }
	return r.timestamps && (r.where == 1 || r.where == 2 && (loopback(d.Local) || loopback(d.Remote.Addr())))
}

func timeWaitReuse(m *machine) ([]Finding, error) {
	r, err := m.timeWaitReuse()
	if err != nil {
		return nil, err
	}
	const effect = "A port stays taken for the 60 s of TIME_WAIT: 28,000 ports are used up by 470 connections a second to one destination."
	switch {
	case !r.timestamps:
		return bad(Note, "none, as TCP timestamps are off", effect, "sysctl -w net.ipv4.tcp_timestamps=1")
	case r.where == 0:
		return bad(Note, "none", effect, "sysctl -w net.ipv4.tcp_tw_reuse=2 for loopback, =1 for all destinations")
	case r.where == 1:
		return fine("to every destination, after one second")
	}
	return fine("to loopback, after one second")
}

// timeWait compares the sockets in TIME_WAIT with their limit, both of the
// network namespace.
func timeWait(m *machine) ([]Finding, error) {
	used, err := m.sockstat("TCP", "tw")
	if err != nil {
		return nil, err
	}
	limit, err := m.number("net.ipv4.tcp_max_tw_buckets")
	if err != nil {
		return nil, err
	}
	overflows, err := m.netstat("TCPTimeWaitOverflow")
	if err != nil {
		return nil, err
	}
	value := fmt.Sprintf("%d sockets in TIME_WAIT of %d at most", used, limit)
	level := levelOfUse(used, limit)
	if overflows > 0 {
		value += fmt.Sprintf(", exceeded %d times since boot", overflows)
		level = max(level, Note)
	}
	if level == OK {
		return fine(value)
	}
	return bad(level, value, "Over the limit a connection is forgotten at once: late segments of it can disturb a new one with the same ports.",
		fmt.Sprintf("sysctl -w net.ipv4.tcp_max_tw_buckets=%d", max(2*limit, 65536)))
}

func unprivilegedPorts(m *machine) ([]Finding, error) {
	n, err := m.number("net.ipv4.ip_unprivileged_port_start")
	if err != nil {
		return nil, err
	}
	if n == 0 {
		return fine("every user may bind every port")
	}
	value := fmt.Sprintf("ports from %d may be bound by every user", n)
	if n > 1024 {
		return bad(Note, value, "Ports above 1023 that programs expect to be free for all need CAP_NET_BIND_SERVICE.", "sysctl -w net.ipv4.ip_unprivileged_port_start=1024")
	}
	return fine(value)
}

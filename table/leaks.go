package table

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"

	"github.com/fivetuple/fivetuple"
	"github.com/fivetuple/fivetuple/owner"
)

// Destination is a local address and what it connects to. Each connection
// between the two needs a local port of its own.
type Destination struct {
	Local  netip.Addr
	Remote netip.AddrPort
	Ports  int // in use, among the ports that were asked about
	// TimeWait is how many of them are in TIME_WAIT, which the kernel may use
	// again earlier (tcp_tw_reuse).
	TimeWait int
}

// Destinations counts the TCP connections from local ports for which ephemeral
// is true, by destination, those with the most ports first. Destinations with
// fewer than least are left out.
func Destinations(rows []Row, ephemeral func(port uint16) bool, least int) []Destination {
	type key struct {
		local  netip.Addr
		remote netip.AddrPort
		netns  uint64
	}
	counts := map[key]Destination{}
	for i := range rows {
		r := &rows[i]
		if r.Protocol != fivetuple.TCP || !r.Remote.IsValid() || !ephemeral(r.Local.Port()) {
			continue
		}
		k := key{r.Local.Addr(), r.Remote, r.netns()}
		d := counts[k]
		d.Ports++
		if r.State == fivetuple.StateTimeWait {
			d.TimeWait++
		}
		counts[k] = d
	}
	var all []Destination
	for k, d := range counts {
		if d.Ports >= least {
			d.Local, d.Remote = k.local, k.remote
			all = append(all, d)
		}
	}
	slices.SortFunc(all, func(a, b Destination) int {
		return cmp.Or(b.Ports-a.Ports, a.Local.Compare(b.Local), a.Remote.Compare(b.Remote))
	})
	return all
}

// CloseWait is a process that keeps connections open whose peers have closed them.
type CloseWait struct {
	// Process is the zero value if it is not known, or if there is none yet:
	// connections that wait for accept(2) are nobody's.
	Process    owner.Process
	Unaccepted bool
	UID        uint32 // of the sockets
	Sockets    int
	Unread     int // of those that have data which the process has not read
}

// CloseWaits counts the sockets in CLOSE_WAIT of each process, most first. One
// that several processes hold counts for each: all have to close it.
func CloseWaits(rows []Row) []CloseWait {
	counts := map[CloseWait]CloseWait{} // by all but the counts
	count := func(key CloseWait, r *Row) {
		c := counts[key]
		c.Sockets++
		if r.RecvQueue > 0 {
			c.Unread++
		}
		counts[key] = c
	}
	for i := range rows {
		r := &rows[i]
		switch {
		case r.State != fivetuple.StateCloseWait:
		case len(r.Owners) == 0:
			count(CloseWait{Unaccepted: r.Inode == 0, UID: r.UID}, r)
		default:
			for j, h := range r.Owners { // by PID: the descriptors of a process are together
				if j == 0 || h.Process != r.Owners[j-1].Process {
					count(CloseWait{Process: h.Process, UID: r.UID}, r)
				}
			}
		}
	}
	var all []CloseWait
	for key, c := range counts {
		key.Sockets, key.Unread = c.Sockets, c.Unread
		all = append(all, key)
	}
	slices.SortFunc(all, func(a, b CloseWait) int {
		return cmp.Or(b.Sockets-a.Sockets, a.Process.PID-b.Process.PID, cmp.Compare(a.UID, b.UID))
	})
	return all
}

const (
	manyCloseWait = 20  // of one process: it most likely never closes them
	portsRunOut   = 0.8 // of the ephemeral range, to one destination
)

// own are the rows of this process's network namespace, whose ephemeral ports
// are known.
func (t *Table) own() []Row {
	elsewhere := func(r Row) bool { return t.here != 0 && r.Namespace != nil && r.netns() != t.here }
	if !slices.ContainsFunc(t.Rows, elsewhere) {
		return t.Rows
	}
	return slices.DeleteFunc(slices.Clone(t.Rows), elsewhere)
}

// Leaks says in sentences what of the rows will sooner or later run out:
// connections that a process does not close, local ports to one destination.
// The rows must be all TCP sockets, with their owners. ephemeral are the ports
// that the kernel gives to outgoing connections.
func (t *Table) Leaks(ephemeral fivetuple.PortRange) []string {
	var all []string
	var last CloseWait
	for _, c := range CloseWaits(t.Rows) {
		if c.Sockets < manyCloseWait || c.Process == (owner.Process{}) {
			continue
		}
		if c.Sockets != last.Sockets || c.Process.Command != last.Process.Command { // else most likely the same sockets, of a child
			all = append(all, fmt.Sprintf("%v keeps %d connections in CLOSE_WAIT: their peers have closed, the program has not; it may run out of descriptors", c.Process, c.Sockets))
		}
		last = c
	}
	for _, d := range Destinations(t.own(), ephemeral.Contains, max(1, int(portsRunOut*float64(ephemeral.Len())))) {
		all = append(all, fmt.Sprintf("%d of %d local ports are in use from %v to %v (%d in TIME_WAIT): new connections will soon fail with EADDRNOTAVAIL", d.Ports, ephemeral.Len(), d.Local, d.Remote, d.TimeWait))
	}
	return all
}

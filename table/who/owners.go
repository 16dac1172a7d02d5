package who

import (
	"cmp"
	"context"
	"net"
	"net/netip"
	"os"
	"slices"

	"github.com/fivetuple/fivetuple"
	"github.com/fivetuple/fivetuple/owner"
	"github.com/fivetuple/fivetuple/sockdiag"
	"github.com/fivetuple/fivetuple/table"
)

// owners finds processes, and keeps what it was told of them.
type owners struct {
	finder owner.Finder
	self   []owner.Process // this process and its ancestors
}

// findOwners fills in who holds the rows, and the other ends of connections within the machine.
func (s *search) findOwners(ctx context.Context, rows []table.Row) error {
	far := farEnds(ctx, rows, s.isHere)
	inodes := make([]uint32, 0, len(rows)+len(far))
	for i := range rows {
		inodes = append(inodes, rows[i].Inode) // 0, which stands for none, is passed over
	}
	for _, n := range far {
		inodes = append(inodes, n)
	}
	found, err := s.finder.Find(ctx, inodes)
	if err != nil {
		return err
	}
	s.table.Unreadable, s.table.Partial = max(s.table.Unreadable, found.Unreadable), cmp.Or(s.table.Partial, found.Partial)
	for i := range rows {
		r := &rows[i]
		r.Owners = found.OfSocket(r.Inode, r.Cookie)
		r.NoOwner = s.table.Unowned(r)
		if n := far[i]; n != 0 {
			r.Peers = found.Of(n)
		}
	}
	return nil
}

// perPeer is for how many connections of one peer the other end is looked up: the
// rest are most often of the same processes.
const perPeer = 8

// farEnds finds the sockets at the other end of connections within this machine:
// for the rows of these numbers the inodes. Each is asked for by itself.
func farEnds(ctx context.Context, rows []table.Row, isHere func(netip.Addr) bool) map[int]uint32 {
	far := map[int]uint32{}
	asked := map[netip.Addr]int{}
	for i := range rows {
		r := &rows[i]
		p := keyOf(r).protocol
		if !r.Remote.IsValid() || r.State == fivetuple.StateTimeWait || p != fivetuple.TCP && p != fivetuple.UDP || !isHere(r.Remote.Addr()) {
			continue
		}
		if asked[r.Remote.Addr()]++; asked[r.Remote.Addr()] > perPeer || len(asked) > 2*MaxClients {
			continue
		}
		// Either end may be gone by now.
		if end, err := sockdiag.Get(ctx, sockdiag.Socket{Protocol: p, Local: r.Remote, Remote: r.Local}, 0); err == nil {
			far[i] = end.Inode
		}
	}
	return far
}

// isHere says whether an address is this machine's.
func (s *search) isHere(a netip.Addr) bool {
	if a.IsLoopback() {
		return true
	}
	if s.addresses == nil {
		s.addresses = append([]netip.Addr{{}}, localAddresses()...)
	}
	return slices.Contains(s.addresses, a.WithZone(""))
}

// localAddresses are those of the network devices.
func localAddresses() (all []netip.Addr) {
	addresses, _ := net.InterfaceAddrs()
	for _, a := range addresses {
		if n, ok := a.(*net.IPNet); ok {
			if addr, ok := netip.AddrFromSlice(n.IP); ok {
				all = append(all, addr.Unmap())
			}
		}
	}
	return all
}

// MaxHolders is how many processes a [Port] describes at most.
const MaxHolders = 20

// holders are the processes that hold any of the rows, those of listeners first,
// each once, and how many more there are than are described.
func (s *search) holders(u *use) (all []Holder, more int) {
	at := map[owner.Process]int{}
	for _, r := range u.rows {
		for _, h := range r.Owners {
			i, known := at[h.Process]
			if !known {
				i = len(all)
				at[h.Process] = i
				all = append(all, Holder{Process: h.Process, Listening: []int{}, Ancestors: []owner.Process{}, CommandLine: []string{}})
			}
			if waits(r) {
				all[i].Listening = append(all[i].Listening, h.FD)
			} else {
				all[i].Connections++
			}
		}
	}
	slices.SortStableFunc(all, func(a, b Holder) int {
		return cmp.Or(cmp.Compare(min(len(b.Listening), 1), min(len(a.Listening), 1)), cmp.Compare(a.PID, b.PID))
	})
	if len(all) > MaxHolders {
		more = len(all) - MaxHolders
		all = all[:MaxHolders]
	}
	for i := range all {
		all[i].describe()
		slices.Sort(all[i].Listening)
	}
	return all, more
}

// describe fills in what /proc tells. Of a process that has just ended it is nothing.
func (h *Holder) describe() {
	if line, err := owner.CommandLine(h.PID); err == nil && line != nil {
		h.CommandLine = line
	}
	if list, err := owner.Ancestors(h.PID); err == nil && list != nil {
		h.Ancestors = list
	}
	h.Started, _ = h.Process.Started()
	g, err := owner.CgroupOf(h.PID)
	if err != nil {
		return
	}
	h.Unit, h.Container, h.cgroup = g.Unit, g.Container, g.Path
}

// isOwn says whether the process is an ancestor of this one: a shell or session
// that it runs in.
func (o *owners) isOwn(p owner.Process) bool {
	if o.self == nil {
		o.self, _ = owner.Ancestors(os.Getpid())
		o.self = append(o.self, owner.Process{})
	}
	return slices.ContainsFunc(o.self, func(a owner.Process) bool { return a.PID == p.PID && a.Start == p.Start })
}

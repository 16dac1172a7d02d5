package who

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"slices"

	"github.com/fivetuple/fivetuple"
	"github.com/fivetuple/fivetuple/internal/dnat"
	"github.com/fivetuple/fivetuple/port/lease"
	"github.com/fivetuple/fivetuple/table"
)

// describe fills in what the rows tell of each port.
func (s *search) describe() {
	for _, u := range s.ports {
		u.Listeners, u.States, u.Clients, u.Holders = []Listener{}, []StateCount{}, []Client{}, []Holder{}
		for _, r := range u.rows {
			if waits(r) {
				u.Listeners = append(u.Listeners, Listener{Row: r, Reach: reachOf(r)})
			}
		}
		slices.SortStableFunc(u.Listeners, func(a, b Listener) int { return a.Local.Compare(b.Local) })
		u.Holders, u.MoreHolders = s.holders(u)
		u.countConnections()
		for _, r := range u.rows {
			if why := s.table.Unowned(r); why != table.Owned && (waits(r) || why != table.TimeWait) {
				if u.Ownerless == nil {
					u.Ownerless = map[string]int{}
				}
				u.Ownerless[why.String()]++
			}
		}
	}
}

// reachOf reads the address of a listener.
func reachOf(r *table.Row) Reach {
	a := r.Local.Addr()
	switch {
	case !a.IsValid():
		return Local
	case a.IsLoopback():
		return Loopback
	case a.IsMulticast():
		return Group
	case !a.IsUnspecified():
		return OneAddress
	case a.Is4():
		return AllIPv4
	case r.V6Only:
		return AllIPv6
	}
	return Dual
}

// countConnections counts the connections by state and by client.
func (u *use) countConnections() {
	states := map[fivetuple.State]int{}
	at := map[string]int{}
	var clients []Client
	for _, r := range u.rows {
		if waits(r) {
			continue
		}
		states[r.State]++
		if r.State == fivetuple.StateTimeWait {
			u.TimeWait = max(u.TimeWait, r.Timer.Expires)
			continue
		}
		name := peerName(r)
		i, known := at[name]
		if !known {
			i = len(clients)
			at[name] = i
			clients = append(clients, Client{Address: name})
		}
		clients[i].Connections++
		for _, h := range r.Peers {
			if len(clients[i].Processes) < MaxClients && !slices.Contains(clients[i].Processes, h.Process) {
				clients[i].Processes = append(clients[i].Processes, h.Process)
			}
		}
	}
	for state, n := range states {
		u.States = append(u.States, StateCount{state, n})
	}
	slices.SortFunc(u.States, func(a, b StateCount) int {
		return cmp.Or(cmp.Compare(b.Count, a.Count), cmp.Compare(a.State, b.State))
	})
	slices.SortStableFunc(clients, func(a, b Client) int {
		return cmp.Or(cmp.Compare(b.Connections, a.Connections), compareAddresses(a.Address, b.Address))
	})
	if len(clients) > MaxClients {
		for _, c := range clients[MaxClients:] {
			u.MoreClients++
			u.MoreConnections += c.Connections
		}
		clients = clients[:MaxClients]
	}
	u.Clients = append(u.Clients, clients...)
}

func compareAddresses(a, b string) int {
	x, _ := netip.ParseAddr(a) // of a Unix socket the zero Addr
	y, _ := netip.ParseAddr(b)
	return cmp.Or(x.Compare(y), cmp.Compare(a, b))
}

// peerName is the address of the peer, without the port if it is that of a client.
func peerName(r *table.Row) string {
	switch {
	case r.Remote.IsValid():
		return r.Remote.Addr().String()
	case r.PeerName != "":
		return r.PeerName
	}
	return "(unnamed)"
}

// complete fills in what stands in the way of the port, and how to free it.
func (s *search) complete(ctx context.Context, u *use) {
	for _, l := range s.leases {
		if s.isAbout(u, l) {
			u.Leases = append(u.Leases, l)
		}
	}
	u.Forwards = append(u.Forwards, s.proxies(u)...)
	u.Forwards = append(u.Forwards, s.forwardsByRule(u)...)
	if place, ok := s.place(u.key); ok && u.asked && len(u.Listeners) == 0 {
		u.Bind = bindable(ctx, place)
	}
	u.Advice = s.advise(u)
}

// isAbout says whether a lease is of the port, at the addresses that were asked about.
func (s *search) isAbout(u *use, l lease.Lease) bool {
	if place, ok := s.place(u.key); ok && u.asked {
		return l.Covers(place.Protocol, place.At)
	}
	return l.Port == u.key.port && l.Protocol.Protocol() == u.Protocol
}

func bindable(ctx context.Context, p table.Place) *Bind {
	b := &Bind{Availability: lease.Check(ctx, p.Protocol, p.At.Addr(), p.At.Port())}
	if b.Err != nil {
		b.Reason = b.Err.Error()
	}
	return b
}

func (s *search) readLeases(ctx context.Context) {
	if s.leasesOf != nil {
		s.leases, s.leasesErr = s.leasesOf(ctx)
	}
}

func (s *search) readRules(ctx context.Context, keys []key) {
	numbers := map[fivetuple.Network]uint8{fivetuple.TCP: dnat.TCP, fivetuple.UDP: dnat.UDP, fivetuple.SCTP: dnat.SCTP}
	var ports []dnat.Port
	for _, k := range keys {
		if n := numbers[k.protocol]; n != 0 && k.port > 0 {
			ports = append(ports, dnat.Port{Protocol: n, Number: k.port})
		}
	}
	if len(ports) > 0 {
		s.rules, s.rulesErr = dnat.Find(ctx, ports)
		s.legacy = dnat.Legacy()
	}
}

// forwardsByRule are the rules of the packet filter about the port at an address of this machine.
func (s *search) forwardsByRule(u *use) (all []Forward) {
	for _, r := range s.rules {
		protocol := map[uint8]fivetuple.Network{dnat.TCP: fivetuple.TCP, dnat.UDP: fivetuple.UDP, dnat.SCTP: fivetuple.SCTP}[r.Port.Protocol]
		if protocol != u.Protocol || r.Port.Number != u.key.port || r.Only.IsValid() && !s.covers(r.Only) {
			continue
		}
		f := Forward{Kind: ByRule, To: r.Target(), By: r.String(), Incoming: r.Incoming, Local: r.Local}
		if r.Only.IsValid() {
			f.Only = prefixText(r.Only)
		}
		all = append(all, f)
	}
	return all
}

func prefixText(p netip.Prefix) string {
	if p.IsSingleIP() {
		return p.Addr().String()
	}
	return p.String()
}

// covers says whether an address of this machine is in the prefix.
func (s *search) covers(p netip.Prefix) bool {
	if p.Addr().IsLoopback() {
		return true
	}
	s.isHere(netip.Addr{})
	return slices.ContainsFunc(s.addresses, func(a netip.Addr) bool { return p.Contains(a) })
}

// report puts together what was found, and says what was not.
func (s *search) report() *Report {
	r := &Report{Target: s.filter.String(), Ports: []Port{}}
	for _, u := range s.ports {
		r.Ports = append(r.Ports, u.Port)
	}
	unowned := s.table.CountUnowned()
	unknown := func(format string, args ...any) { r.Unknown = append(r.Unknown, fmt.Sprintf(format, args...)) }
	if unowned[table.Denied] > 0 {
		unknown("who holds %s: %s of other users may not be looked into; run as root (sudo ft who ...)",
			count(unowned[table.Denied], "socket"), count(s.table.Unreadable, "process"))
	}
	if unowned[table.Hidden] > 0 && s.table.Partial != "" {
		unknown("who holds %s: %s", count(unowned[table.Hidden], "socket"), s.table.Partial)
	}
	switch {
	case errors.Is(s.rulesErr, errors.ErrUnsupported):
	case errors.Is(s.rulesErr, fs.ErrPermission):
		unknown("whether a rule of the packet filter sends the port elsewhere: to read the rules takes CAP_NET_ADMIN; run as root")
	case s.rulesErr != nil:
		unknown("whether a rule of the packet filter sends the port elsewhere: %v", s.rulesErr)
	}
	if s.legacy {
		unknown("what the NAT rules of iptables-legacy say: see iptables-legacy -t nat -L -n")
	}
	if s.leasesErr != nil {
		unknown("whether the port is leased: %v", s.leasesErr)
	}
	return r
}

func count(n int, noun string) string {
	switch {
	case n == 1:
		return "1 " + noun
	case noun == "process":
		return fmt.Sprintf("%d processes", n)
	}
	return fmt.Sprintf("%d %ss", n, noun)
}

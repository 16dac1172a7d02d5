package who

import (
	"cmp"
	"context"
	"fmt"
	"net/netip"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"

	"github.com/fivetuple/fivetuple"
	"github.com/fivetuple/fivetuple/filter"
	"github.com/fivetuple/fivetuple/sockdiag"
	"github.com/fivetuple/fivetuple/table"
)

// boundTCP are the TCP sockets that are bound and no more, for which the kernel goes through
// all sockets in another way; others are the rest.
const boundTCP = sockdiag.States(1 << fivetuple.StateClose)

var others = sockdiag.Listening | sockdiag.StatesOf(
	fivetuple.StateEstablished, fivetuple.StateSynSent, fivetuple.StateSynRecv, fivetuple.StateFinWait1, fivetuple.StateFinWait2,
	fivetuple.StateTimeWait, fivetuple.StateCloseWait, fivetuple.StateLastAck, fivetuple.StateClosing, fivetuple.StateNewSynRecv)

// read reads the rows, with their owners. Of a target that is a process, a unit or
// the like it reads besides all that uses the ports on which that listens.
func (s *search) read(ctx context.Context) error {
	if !needsOwners(s.filter) {
		return s.readFilter(ctx, s.filter)
	}
	t, err := table.Read(ctx, table.Query{Filter: s.filter, Details: details, Owners: true})
	if err != nil {
		return err
	}
	if err := s.add(ctx, t.Rows); err != nil { // for the peers
		return err
	}
	return s.readListening(ctx)
}

const details = sockdiag.WithMemory | sockdiag.WithCgroup

// readFilter adds the rows of a filter, those that are there already left out. Among many
// sockets it takes the kernel longest to find those that are bound and no more, so the owners of
// the others are looked for meanwhile.
func (s *search) readFilter(ctx context.Context, f *filter.Filter) error {
	var bound table.Table
	var boundErr error
	var wait sync.WaitGroup
	if p := f.Sockets().Protocols; p == nil || slices.Contains(p, fivetuple.TCP) {
		wait.Go(s.inside(func() { bound, boundErr = read(ctx, f, boundTCP, fivetuple.TCP) }))
	}
	t, err := read(ctx, f, others)
	if err == nil {
		err = s.add(ctx, t.Rows)
	}
	wait.Wait()
	if err = cmp.Or(err, boundErr); err != nil || len(bound.Rows) == 0 {
		return err
	}
	return s.add(ctx, bound.Rows)
}

func read(ctx context.Context, f *filter.Filter, states sockdiag.States, protocols ...fivetuple.Network) (table.Table, error) {
	t, err := table.Read(ctx, table.Query{Filter: f, Protocols: protocols, States: states, Details: details, Peers: asksUnix(f)})
	if err != nil {
		return table.Table{}, err
	}
	return *t, nil
}

// add adds rows that are not there yet, with their owners. One that begins to
// listen while the table is read can come twice.
func (s *search) add(ctx context.Context, rows []table.Row) error {
	if len(s.table.Rows) > 0 {
		seen := map[table.ID]bool{}
		for i := range s.table.Rows {
			seen[s.table.Rows[i].ID()] = true
		}
		rows = slices.DeleteFunc(rows, func(r table.Row) bool { return seen[r.ID()] })
	}
	if err := s.findOwners(ctx, rows); err != nil {
		return err
	}
	s.table.Rows = append(s.table.Rows, rows...)
	return nil
}

// readListening reads who else uses the ports that the target listens on.
func (s *search) readListening(ctx context.Context) error {
	var ports []string
	for i := range s.table.Rows {
		r := &s.table.Rows[i]
		if port := fmt.Sprint(r.Local.Port()); waits(r) && hasPorts(keyOf(r).protocol) && !slices.Contains(ports, port) {
			ports = append(ports, port)
		}
	}
	const most = 64 // more would be a list, not a screen
	if len(ports) == 0 || len(ports) > most {
		return nil
	}
	f, err := filter.Parse(ctx, "sport = "+strings.Join(ports, ","))
	if err != nil {
		return err
	}
	return s.readFilter(ctx, f)
}

// needsOwners says whether a filter can only be judged with owners.
func needsOwners(f *filter.Filter) bool {
	return f.Uses(filter.FieldPID) || f.Uses(filter.FieldCommand) || f.Uses(filter.FieldUnit) || f.Uses(filter.FieldContainer)
}

// asksUnix says whether only Unix sockets can match.
func asksUnix(f *filter.Filter) bool {
	p := f.Sockets()
	return len(p.Protocols) > 0 && !slices.ContainsFunc(p.Protocols, func(n fivetuple.Network) bool { return !n.IsUnix() })
}

var portIn = regexp.MustCompile(`\b([0-9]{1,5})(?:-([0-9]{1,5}))?\b`)

// asked are the ports that the target asks for by number: those which stand in the
// filter, and of which a socket that listens would match it. More than some are a
// list, not a screen.
func (s *search) asked() []key {
	const most = 16
	var all []key
	if s.filter == nil || needsOwners(s.filter) {
		return nil
	}
	for _, n := range portIn.FindAllStringSubmatch(s.filter.String(), -1) {
		first, _ := strconv.Atoi(n[1])
		last, err := strconv.Atoi(n[2])
		if err != nil {
			last = first
		}
		for port := max(first, 1); port <= min(last, 65535, first+most); port++ {
			for _, protocol := range []fivetuple.Network{fivetuple.TCP, fivetuple.UDP} {
				k := key{protocol: protocol, port: uint16(port)}
				if _, ok := s.place(k); ok && !slices.Contains(all, k) {
					all = append(all, k)
				}
			}
		}
	}
	slices.SortFunc(all, compareKeys)
	if len(all) > most {
		return nil
	}
	return all
}

// place finds where one could listen on the port so that it matches the filter: on
// all addresses, or on one that stands in it. The protocol is narrowed to a family if the filter is.
func (s *search) place(k key) (table.Place, bool) {
	at := func(p fivetuple.Network, a netip.Addr) (table.Place, bool) {
		return table.Place{Protocol: p, At: netip.AddrPortFrom(a, k.port)}, a.IsValid()
	}
	try := func(a netip.Addr) bool {
		state := fivetuple.StateListen
		if k.protocol == fivetuple.UDP {
			state = fivetuple.StateClose
		}
		return s.filter.Match(&table.Row{Socket: sockdiag.Socket{Protocol: k.protocol, State: state, Local: netip.AddrPortFrom(a, k.port)}})
	}
	// Of 192.0.2.0/24 and 2001:db8::/32 no machine has an address (RFC 5737, RFC 3849).
	four, six := try(netip.AddrFrom4([4]byte{192, 0, 2, 1})), try(netip.MustParseAddr("2001:db8::1"))
	switch {
	case four && six:
		return at(k.protocol, netip.IPv6Unspecified())
	case four:
		return at(k.protocol, netip.IPv4Unspecified())
	case six && k.protocol == fivetuple.UDP:
		return at(fivetuple.UDP6, netip.IPv6Unspecified())
	case six:
		return at(fivetuple.TCP6, netip.IPv6Unspecified())
	}
	for _, a := range addressesIn(s.filter.String()) {
		if try(a) {
			return at(k.protocol, a)
		}
	}
	return table.Place{}, false
}

// addressesIn finds the addresses that stand in a filter.
func addressesIn(text string) (all []netip.Addr) {
	for word := range strings.FieldsFuncSeq(text, func(r rune) bool { return strings.ContainsRune(" ,()\"", r) }) {
		if _, rest, ok := strings.Cut(word, "://"); ok {
			word = rest
		}
		if at, err := netip.ParseAddrPort(word); err == nil {
			all = append(all, at.Addr())
		} else if a, err := netip.ParseAddr(word); err == nil {
			all = append(all, a)
		}
	}
	return all
}

func compareKeys(a, b key) int {
	return cmp.Or(cmp.Compare(order(a), order(b)), cmp.Compare(a.port, b.port), cmp.Compare(a.protocol, b.protocol), cmp.Compare(a.name, b.name))
}

// order puts connections from several ports behind all others, and Unix sockets between.
func order(k key) int {
	switch {
	case k.port > 0:
		return 0
	case k.name != "":
		return 1
	}
	return 2
}

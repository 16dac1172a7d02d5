package cli

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"sync/atomic"

	"github.com/spf13/cobra"

	"github.com/fivetuple/fivetuple"
	"github.com/fivetuple/fivetuple/owner"
	"github.com/fivetuple/fivetuple/port"
	"github.com/fivetuple/fivetuple/port/lease"
	"github.com/fivetuple/fivetuple/table"
)

type checkFlags struct {
	proto string
	addr  string
}

func (a *app) portCheck() *cobra.Command {
	var f checkFlags
	c := &cobra.Command{
		Use:   "check ENDPOINT...",
		Short: "Is a port free, and if not, who holds it",
		Long: `Finds out whether you could listen on a port now, by binding it and letting it
go, and if not, why: who holds it, whom it is leased to, or which permission is
missing. The exit code is 1 if one of them is not free.

A port alone is on 127.0.0.1; :8080 or *:8080 is on all addresses.`,
		Example: `  ft port check 8080                   TCP port 8080 of 127.0.0.1
  ft port check 8000-8010 https        several, by number or by name
  ft port check udp://*:53             a UDP port on every address`,
		Args: minArgs(1),
		RunE: func(c *cobra.Command, args []string) error { return a.checkPorts(c.Context(), args, f) },
	}
	c.Flags().StringVar(&f.proto, "proto", "", "`protocol`: tcp, udp or both (default: the endpoint's, which is tcp)")
	c.Flags().StringVar(&f.addr, "addr", "", "`address` to bind instead of the endpoint's; * for all")
	return c
}

func (a *app) checkPorts(ctx context.Context, args []string, f checkFlags) error {
	var wanted []fivetuple.Endpoint
	names := a.serviceNames()
	for _, arg := range args {
		endpoints, err := f.endpoints(ctx, names, arg)
		if err != nil {
			return &codeError{exitUsage, err}
		}
		wanted = append(wanted, endpoints...)
	}
	leases, err := listLeases(ctx)
	if err != nil {
		return err
	}
	claimed, err := lease.Claimed(lease.Options{})
	if err != nil {
		a.warn("%v", err)
	}
	rows := a.checks(ctx, wanted)
	for i := range rows {
		rows[i].addLeases(leases, "")
		rows[i].addLeases(without(claimed, leases), " in another registry")
	}
	for i := range rows {
		rows[i].Service = names.Name(rows[i].Port, rows[i].Protocol.Protocol().String())
	}
	if _, err := printRows(a, "checks", eachUntil(rows, ctx.Err()), checkColumns); err != nil {
		return err
	}
	switch {
	case slices.ContainsFunc(rows, func(r checkRow) bool { return r.State == "error" }):
		return &codeError{code: exitFailed} // the table says why
	case slices.ContainsFunc(rows, func(r checkRow) bool { return !r.Free }):
		return answerIsNo
	}
	return nil
}

// endpoints reads what is to be checked, with the flags put in.
func (f checkFlags) endpoints(ctx context.Context, names *port.Names, arg string) ([]fivetuple.Endpoint, error) {
	e := fivetuple.Endpoint{Network: fivetuple.TCP, Service: arg}
	var err error
	if strings.ContainsAny(arg, ":/[") || isNumber(arg) {
		if e, err = fivetuple.ParseEndpoint(arg); err != nil {
			return nil, err
		}
	}
	if !e.Network.IsIP() {
		return nil, fmt.Errorf("endpoint %q: has no port: want tcp or udp", arg)
	}
	if e, err = e.ResolveService(ctx, names); err != nil {
		return nil, err
	}
	if e.Ports.First == 0 {
		return nil, fmt.Errorf("endpoint %q: port 0 stands for any port: ports are 1 to 65535", arg)
	}
	if f.addr != "" {
		e.Host, e.Zone, _ = strings.Cut(f.addr, "%")
	}
	if _, ok := e.Addr(); !ok && e.Host != "" && e.Host != fivetuple.AnyHost {
		return nil, fmt.Errorf("%q is not an IP address: write one, such as 127.0.0.1, or * for all", e.Host)
	}
	if addr, _ := e.Addr(); addr.Is6() && addr.IsLinkLocalUnicast() && addr.Zone() == "" {
		return nil, fmt.Errorf("link-local address %s needs a zone, as in %s%%eth0", addr, addr)
	}
	switch f.proto {
	case "":
		return []fivetuple.Endpoint{e}, nil
	case "both":
		tcp, udp := e, e
		tcp.Network, udp.Network = fivetuple.TCP, fivetuple.UDP
		return []fivetuple.Endpoint{tcp, udp}, nil
	}
	if e.Network, err = fivetuple.ParseNetwork(f.proto); err != nil || !e.Network.IsIP() {
		return nil, fmt.Errorf("unknown protocol %q: want tcp, udp or both", f.proto)
	}
	return []fivetuple.Endpoint{e}, nil
}

// bindAddr returns the address that listening on e binds, in the words of a
// [lease.Request]: zero is loopback, :: is all.
func bindAddr(e fivetuple.Endpoint) netip.Addr {
	if e.Host == fivetuple.AnyHost {
		return netip.IPv6Unspecified()
	}
	addr, _ := e.Addr()
	return addr
}

// checkRow is what became of one port.
type checkRow struct {
	lease.Availability
	State   string         `json:"state"` // "free", "leased", "in use", "not permitted" or "error"
	Service string         `json:"service"`
	Owners  []owner.Holder `json:"owners"` // of the sockets that hold it
	Lease   *lease.Lease   `json:"lease"`  // that covers it; if there are several, the first
	Note    string         `json:"note"`   // why it is not free, or what to mind if it is
}

// without returns the leases that other registries show, but for those which
// this one has shown itself.
func without(claimed, own []lease.Lease) []lease.Lease {
	return slices.DeleteFunc(slices.Clone(claimed), func(c lease.Lease) bool {
		return slices.ContainsFunc(own, func(l lease.Lease) bool { return l.Protocol == c.Protocol && l.AddrPort() == c.AddrPort() })
	})
}

// addLeases says in the row whom the port is leased to, and where.
func (r *checkRow) addLeases(leases []lease.Lease, where string) {
	for _, l := range leases {
		if !l.Covers(r.Protocol, netip.AddrPortFrom(r.Address, r.Port)) {
			continue
		}
		if r.Free {
			r.Free, r.State, r.Note = false, "leased", ""
		}
		if r.Lease == nil {
			r.Lease = &l
		}
		if r.Note != "" {
			r.Note += "; "
		}
		r.Note += leasedTo(l, r.Address) + where
	}
}

// leasedTo is what a row about an address says of a lease that covers it.
func leasedTo(l lease.Lease, about netip.Addr) string {
	s := "leased to " + l.Owner.String()
	if l.Name != "" {
		s = fmt.Sprintf("leased to %s (%s)", l.Name, l.Owner)
	}
	if l.Address != about {
		s += " on " + l.Address.String()
	}
	return s
}

// checks checks all ports that are wanted, those that it comes to before ctx ends.
func (a *app) checks(ctx context.Context, wanted []fivetuple.Endpoint) []checkRow {
	var total uint64
	for _, e := range wanted {
		total += uint64(e.Ports.Len())
	}
	var done atomic.Uint64
	stop := a.progress(countLine("checked", "ports", func() (uint64, uint64) { return done.Load(), total }))
	defer stop()
	var rows []checkRow
	for _, e := range wanted {
		for n := int(e.Ports.First); n <= int(e.Ports.Last); n++ {
			row := check(ctx, e.Network, bindAddr(e), uint16(n))
			if ctx.Err() != nil {
				break // the row may say only that
			}
			rows = append(rows, row)
			done.Add(1)
		}
	}
	findHolders(ctx, rows)
	return rows
}

func check(ctx context.Context, protocol fivetuple.Network, addr netip.Addr, n uint16) checkRow {
	row := checkRow{Availability: lease.Check(ctx, protocol, addr, n), Owners: []owner.Holder{}}
	switch {
	case row.Free:
		row.State = "free"
		if row.Ephemeral {
			row.Note = "the kernel may take it as the source port of a connection"
		}
		if row.Reserved {
			row.Note = "kept from automatic use (net.ipv4.ip_local_reserved_ports)"
		}
	case !row.Permitted:
		row.State, row.Note = "not permitted", row.Err.Error()
	case errors.Is(row.Err, lease.ErrInUse):
		row.State = "in use"
	default:
		row.State, row.Note = "error", row.Err.Error()
	}
	return row
}

// findHolders says in the rows of ports in use who holds them. It looks once for
// all, as each look goes through all processes.
func findHolders(ctx context.Context, rows []checkRow) {
	var places []table.Place
	var inUse []*checkRow
	for i, r := range rows {
		if r.State == "in use" {
			places = append(places, table.Place{Protocol: r.Protocol, At: netip.AddrPortFrom(r.Address, r.Port)})
			inUse = append(inUse, &rows[i])
		}
	}
	held, err := table.HoldersOf(ctx, places)
	for i, r := range inUse {
		if err != nil {
			r.Note = fmt.Sprintf("who holds it cannot be found out: %v", err)
			continue
		}
		r.Note = "held by " + held[i].String()
		for _, socket := range held[i].Rows {
			r.Owners = append(r.Owners, socket.Owners...)
		}
	}
}

var checkColumns = []column[checkRow]{
	{head: "protocol", text: func(r checkRow) string { return r.Protocol.String() }},
	{head: "address", text: func(r checkRow) string { return r.Address.String() }},
	{head: "port", right: true, text: func(r checkRow) string { return fmt.Sprint(r.Port) }},
	{head: "state", text: func(r checkRow) string { return r.State }},
	{head: "service", wide: true, text: func(r checkRow) string { return r.Service }},
	{head: "class", wide: true, text: func(r checkRow) string { return port.ClassOf(r.Port).String() }},
	{head: "reserved", wide: true, text: func(r checkRow) string { return yesNo(r.Reserved) }},
	{head: "ephemeral", wide: true, text: func(r checkRow) string { return yesNo(r.Ephemeral) }},
	{head: "note", text: func(r checkRow) string { return r.Note }},
}

func yesNo(yes bool) string {
	if yes {
		return "yes"
	}
	return "no"
}

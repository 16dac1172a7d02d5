package cli

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"net/netip"
	"strings"

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
go, and if not, why: who holds it, or which permission is missing. The exit code
is 1 if one of them is not free.

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
	var taken, failed bool
	rows := func(yield func(checkRow, error) bool) {
		for row := range checks(ctx, names, wanted) {
			switch {
			case row.State == "error":
				failed = true
			case !row.Free:
				taken = true
			}
			if !yield(row, nil) {
				return
			}
		}
	}
	if _, err := printRows(a, "checks", rows, checkColumns); err != nil {
		return err
	}
	switch {
	case ctx.Err() != nil:
		return ctx.Err()
	case failed:
		return &codeError{code: exitFailed} // the table says why
	case taken:
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
	State   string         `json:"state"` // "free", "in use", "not permitted" or "error"
	Service string         `json:"service"`
	Owners  []owner.Holder `json:"owners"` // of the sockets that hold it
	Note    string         `json:"note"`   // why it is not free, or what to mind if it is
}

func checks(ctx context.Context, names *port.Names, wanted []fivetuple.Endpoint) iter.Seq[checkRow] {
	return func(yield func(checkRow) bool) {
		for _, e := range wanted {
			for n := int(e.Ports.First); n <= int(e.Ports.Last) && ctx.Err() == nil; n++ {
				row := check(ctx, e.Network, bindAddr(e), uint16(n))
				row.Service = names.Name(uint16(n), e.Network.Protocol().String())
				if !yield(row) {
					return
				}
			}
		}
	}
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
		row.Note, row.Owners = heldBy(ctx, row.Availability)
	default:
		row.State, row.Note = "error", row.Err.Error()
	}
	return row
}

// heldBy says who holds a port.
func heldBy(ctx context.Context, a lease.Availability) (string, []owner.Holder) {
	owners := []owner.Holder{}
	held, err := table.Holders(ctx, a.Protocol, netip.AddrPortFrom(a.Address, a.Port))
	if err != nil {
		return fmt.Sprintf("who holds it cannot be found out: %v", err), owners
	}
	for _, row := range held.Rows {
		owners = append(owners, row.Owners...)
	}
	return "held by " + held.String(), owners
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

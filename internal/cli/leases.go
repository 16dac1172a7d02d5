package cli

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/fivetuple/fivetuple"
	"github.com/fivetuple/fivetuple/port/lease"
	"github.com/fivetuple/fivetuple/stats"
)

func (a *app) portLeases() *cobra.Command {
	var f leaseFilter
	c := &cobra.Command{
		Use:   "leases [PORT...]",
		Short: "List the leases, with their owners",
		Long: `Lists the leases that have not ended: all of them, or those that match. The exit
code is 1 if there are none, or if a port, name or id matches none.`,
		Example: `  ft port leases                 who has which port, until when
  ft port leases 8080 --proto tcp
  ft port leases -o wide         with ids and more`,
		RunE: func(c *cobra.Command, args []string) error {
			wanted, err := f.conditions(a, args)
			if err != nil {
				return &codeError{exitUsage, err}
			}
			leases, err := listLeases(c.Context())
			if err != nil {
				return err
			}
			return a.printLeases(chooseLeases(wanted, leases))
		},
	}
	f.register(c)
	return c
}

func (a *app) portRelease() *cobra.Command {
	var f leaseFilter
	c := &cobra.Command{
		Use:   "release PORT...",
		Short: "End leases",
		Long: `Ends the leases of ports, whichever process they belong to, and prints what they were. A port
is that of every protocol and address, unless --proto or --addr say which. Names
and ids do as well as ports; what is given of several kinds must match together.
The exit code is 1 if one of them matches no lease.`,
		Example: `  ft port release 8080
  ft port release --name api     all that are leased to api
  ft port release 53 --proto udp`,
		RunE: func(c *cobra.Command, args []string) error {
			return a.changeLeases(c, f, args, func(ports *lease.Shared, l lease.Lease) (lease.Lease, error) {
				return l, release(ports, []lease.Lease{l})
			})
		},
	}
	f.register(c)
	return c
}

func (a *app) portRenew() *cobra.Command {
	var f leaseFilter
	var text string
	c := &cobra.Command{
		Use:   "renew PORT... --ttl TIME",
		Short: "Let leases last longer, or shorter",
		Long: `Lets leases last for a time from now, 0 for without end, and prints them. They
are named as in ft port release. The exit code is 1 if one matches no lease.`,
		Example: `  ft port renew 8080 --ttl 2h
  ft port renew --name api --ttl 0    until it is released, or its owner ends`,
		RunE: func(c *cobra.Command, args []string) error {
			if !c.Flags().Changed("ttl") {
				return usage("%s needs --ttl: how long the lease shall last from now, 0 for without end", c.CommandPath())
			}
			ttl, err := parseTTL(text)
			if err != nil {
				return usage("--ttl: %w", err)
			}
			return a.changeLeases(c, f, args, func(ports *lease.Shared, l lease.Lease) (lease.Lease, error) {
				l, err := ports.Renew(c.Context(), l, ttl)
				return l, withLeaseCode(err)
			})
		},
	}
	f.register(c)
	c.Flags().StringVar(&text, "ttl", "", "how much `time` the leases have from now, such as 90s, 10m or 2d; 0 for no end")
	return c
}

func (a *app) portGC() *cobra.Command {
	return &cobra.Command{
		Use:   "gc",
		Short: "Clear away the leases of those who have ended",
		Long: `Clears away the leases that have expired, or whose owners have ended, and prints
them. They were not in force any more, and no command needs that they are
cleared away, but for ports that are kept by --reserve: those the kernel has
back by then.`,
		Example: `  ft port gc
  ft port gc -o json`,
		Args: noArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			ports, err := openPorts(c.Context(), a.warnOf)
			if err != nil {
				return err
			}
			defer ports.Close()
			ended, err := ports.Collect(c.Context())
			if err != nil {
				return err
			}
			_, err = printRows(a, "leases", each(ended), leaseColumns)
			return err
		},
	}
}

// changeLeases changes the leases that match and prints what became of them.
func (a *app) changeLeases(c *cobra.Command, f leaseFilter, args []string, change func(*lease.Shared, lease.Lease) (lease.Lease, error)) error {
	wanted, err := f.conditions(a, args)
	if err != nil {
		return &codeError{exitUsage, err}
	}
	if !f.names(args) {
		return usage("%s takes the leases' ports, --name or --id: `ft port leases -o wide` lists them", c.CommandPath())
	}
	leases, err := listLeases(c.Context())
	if err != nil {
		return err
	}
	chosen, missed := chooseLeases(wanted, leases)
	if len(chosen) > 0 {
		chosen, err = a.changeEach(c.Context(), chosen, change)
	}
	return errors.Join(err, a.printLeases(chosen, missed))
}

// changeEach returns the leases that it could change.
func (a *app) changeEach(ctx context.Context, leases []lease.Lease, change func(*lease.Shared, lease.Lease) (lease.Lease, error)) (changed []lease.Lease, err error) {
	ports, err := openPorts(ctx, a.warnOf)
	if err != nil {
		return nil, err
	}
	defer ports.Close()
	var errs []error
	for _, l := range leases {
		if l, err := change(ports, l); err != nil {
			errs = append(errs, err)
		} else {
			changed = append(changed, l)
		}
	}
	return changed, errors.Join(errs...)
}

// printLeases prints leases, and what matched none.
func (a *app) printLeases(leases []lease.Lease, missed []string) error {
	if _, err := printRows(a, "leases", each(leases), leaseColumns); err != nil {
		return err
	}
	for _, why := range missed {
		a.warn("%s", why)
	}
	if len(missed) > 0 {
		return answerIsNo
	}
	return nil
}

// leaseFilter says which leases a command is about.
type leaseFilter struct {
	byName []string
	byID   []string
	proto  string
	addr   string
}

func (f *leaseFilter) register(c *cobra.Command) {
	c.Flags().StringArrayVar(&f.byName, "name", nil, "leases of this `name`; give it several times for several")
	c.Flags().StringArrayVar(&f.byID, "id", nil, "the lease of this `number`, which -o wide shows; several times for several")
	c.Flags().StringVar(&f.proto, "proto", "", "only leases of this `protocol`: tcp or udp (default: both)")
	c.Flags().StringVar(&f.addr, "addr", "", "only leases of this `address`; * for all addresses at once")
	c.ValidArgsFunction = completeLeasedPorts
	c.RegisterFlagCompletionFunc("name", completeLeaseNames)
}

// leaseCondition is one thing that leases can be chosen by.
type leaseCondition struct {
	text string // as it was written
	met  func(lease.Lease) bool
}

// names says whether leases are named, and not only narrowed down.
func (f leaseFilter) names(args []string) bool { return len(args)+len(f.byName)+len(f.byID) > 0 }

// conditions returns those of each kind. A lease must meet one of every kind.
func (f leaseFilter) conditions(a *app, args []string) (kinds [][]leaseCondition, err error) {
	var ports, names, ids []leaseCondition
	for _, arg := range args {
		within, err := a.parsePorts(arg)
		if err != nil {
			return nil, err
		}
		ports = append(ports, leaseCondition{arg, func(l lease.Lease) bool { return within.First <= l.Port && l.Port <= within.Last }})
	}
	for _, name := range f.byName {
		names = append(names, leaseCondition{"--name " + name, func(l lease.Lease) bool { return l.Name == name }})
	}
	for _, text := range f.byID {
		id, err := strconv.ParseUint(text, 10, 64)
		if err != nil {
			return nil, fmt.Errorf("--id %q: want the number of a lease, which `ft port leases -o wide` shows", text)
		}
		ids = append(ids, leaseCondition{"--id " + text, func(l lease.Lease) bool { return l.Fence == id }})
	}
	kinds = [][]leaseCondition{ports, names, ids}
	if f.proto != "" {
		protocol, err := fivetuple.ParseNetwork(f.proto)
		if err != nil || protocol != fivetuple.TCP && protocol != fivetuple.UDP {
			return nil, fmt.Errorf("unknown protocol %q: want tcp or udp", f.proto)
		}
		kinds = append(kinds, []leaseCondition{{"--proto " + f.proto, func(l lease.Lease) bool { return l.Protocol.Protocol() == protocol }}})
	}
	if f.addr != "" {
		addr, err := parseBindAddr(f.addr)
		if err != nil {
			return nil, err
		}
		kinds = append(kinds, []leaseCondition{{"--addr " + f.addr, func(l lease.Lease) bool { return l.Address == addr }}})
	}
	return slices.DeleteFunc(kinds, func(k []leaseCondition) bool { return len(k) == 0 }), nil
}

// chooseLeases returns the leases that meet one condition of every kind, and says
// which conditions none of these meets.
func chooseLeases(kinds [][]leaseCondition, leases []lease.Lease) (chosen []lease.Lease, missed []string) {
	for _, l := range leases {
		lacks := func(kind []leaseCondition) bool {
			return !slices.ContainsFunc(kind, func(c leaseCondition) bool { return c.met(l) })
		}
		if !slices.ContainsFunc(kinds, lacks) {
			chosen = append(chosen, l)
		}
	}
	switch {
	case len(chosen) == 0 && len(kinds) == 0:
		return nil, []string{"no port is leased"}
	case len(chosen) == 0 && len(kinds) > 1:
		return nil, []string{"no lease meets all of these conditions"}
	}
	for _, c := range slices.Concat(kinds...) {
		if !slices.ContainsFunc(chosen, c.met) {
			missed = append(missed, "no lease matches "+c.text)
		}
	}
	return chosen, missed
}

// parsePorts reads a port, a range of ports, or the name of a service.
func (a *app) parsePorts(s string) (fivetuple.PortRange, error) {
	if isNumber(s) && strings.Contains(s, "-") {
		return parsePortRange(s)
	}
	n, err := a.parsePortOrName(s)
	return fivetuple.PortRange{First: n, Last: n}, err
}

var leaseColumns = []column[lease.Lease]{
	{head: "id", right: true, wide: true, text: func(l lease.Lease) string { return fmt.Sprint(l.Fence) }, key: "fence"},
	{head: "protocol", text: func(l lease.Lease) string { return l.Protocol.String() }},
	{head: "address", text: func(l lease.Lease) string { return l.Address.String() }},
	{head: "port", right: true, text: func(l lease.Lease) string { return fmt.Sprint(l.Port) }},
	{head: "name", text: func(l lease.Lease) string { return l.Name }},
	{head: "pid", right: true, text: func(l lease.Lease) string { return countText(uint64(l.Owner.PID)) }},
	{head: "command", text: func(l lease.Lease) string { return l.Owner.Command }},
	{head: "user", text: func(l lease.Lease) string { return l.Owner.User }},
	{head: "granted", wide: true, text: func(l lease.Lease) string { return secondText(l.Granted) }, value: func(l lease.Lease) string { return rfc3339(l.Granted) }},
	{head: "ends in", slim: true, text: func(l lease.Lease) string { return remaining(l.Expires, time.Now()) }},
	{head: "expires", wide: true, text: func(l lease.Lease) string { return secondText(l.Expires) }, value: func(l lease.Lease) string { return rfc3339(l.Expires) }},
	{head: "reserved", wide: true, text: func(l lease.Lease) string { return yesNo(l.Reserved) }},
	{head: "purpose", text: func(l lease.Lease) string { return l.Purpose }},
}

// remaining is how long it is until then, "" if then is never.
func remaining(then, now time.Time) string {
	if then.IsZero() {
		return ""
	}
	return stats.FormatDuration(max(then.Sub(now), 0).Round(time.Second))
}

func completeLeasedPorts(c *cobra.Command, _ []string, _ string) ([]string, cobra.ShellCompDirective) {
	return completeLeases(c, func(l lease.Lease) string { return fmt.Sprint(l.Port) }, func(l lease.Lease) string { return cmp.Or(l.Name, l.Owner.String()) })
}

func completeLeaseNames(c *cobra.Command, _ []string, _ string) ([]string, cobra.ShellCompDirective) {
	return completeLeases(c, func(l lease.Lease) string { return l.Name }, func(l lease.Lease) string { return l.AddrPort().String() })
}

func completeLeases(c *cobra.Command, word, about func(lease.Lease) string) ([]string, cobra.ShellCompDirective) {
	leases, err := listLeases(context.WithoutCancel(c.Context()))
	if err != nil {
		return nil, cobra.ShellCompDirectiveError
	}
	var words []string
	for _, l := range leases {
		if word(l) != "" {
			words = append(words, cobra.CompletionWithDesc(word(l), about(l)))
		}
	}
	return words, cobra.ShellCompDirectiveNoFileComp
}

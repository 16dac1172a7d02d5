package cli

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/fivetuple/fivetuple"
	"github.com/fivetuple/fivetuple/port"
	"github.com/fivetuple/fivetuple/port/lease"
)

func (a *app) port() *cobra.Command {
	c := &cobra.Command{
		Use:   "port",
		Short: "Lease ports, run programs on them, see who has which",
		Example: `  PORT=$(ft port lease)                a free port, for this shell
  ft port run -- npm start             run a program on a free port, in PORT
  ft port check 8080                   is it free, and if not, who holds it`,
		Args: noArgs,
		RunE: showHelp,
		// In the place of that of all commands.
		PersistentPreRunE: func(c *cobra.Command, _ []string) error {
			return errors.Join(checkFormat(a.format), checkGiven(c))
		},
	}
	c.AddCommand(
		a.portLease(), a.portRelease(), a.portRenew(), a.portLeases(), a.portGC(),
		a.portRun(), a.portSupervise(), a.portEnv(),
		a.portCheck(), a.portStatus(), a.portLookup(), a.portClasses(),
	)
	return c
}

// checkGiven refuses flags with an empty value: in a script that is a variable
// which was not set, and no wish for the default.
func checkGiven(c *cobra.Command) (err error) {
	c.Flags().Visit(func(f *pflag.Flag) {
		empty := f.Value.String() == ""
		if list, ok := f.Value.(pflag.SliceValue); ok {
			empty = slices.Contains(list.GetSlice(), "")
		}
		if empty && err == nil {
			err = usage("--%s is given without a value: leave it out, or say which", f.Name)
		}
	})
	return err
}

func (a *app) portLookup() *cobra.Command {
	return &cobra.Command{
		Use:   "lookup PORT|NAME...",
		Short: "Look up services by port or by name",
		Long: `Looks up which services have a port, or which ports a service has: in
/etc/services, and in IANA's registry for what that file does not name. With
/tcp, /udp, /sctp or /dccp behind it looks for that protocol only. The exit code
is 1 if nothing is known of one of them.`,
		Example: `  ft port lookup 443         every protocol's service on port 443
  ft port lookup https       every port of https
  ft port lookup 53/udp ssh  several at once, one of them over UDP only`,
		Args: minArgs(1),
		RunE: func(_ *cobra.Command, args []string) error { return a.lookUp(args) },
	}
}

func (a *app) lookUp(args []string) error {
	names := a.serviceNames()
	var found []port.Service
	var unknown []error
	for _, arg := range args {
		services, err := lookUpService(names, arg)
		if coded := (*codeError)(nil); errors.As(err, &coded) && coded.code == exitNo {
			unknown = append(unknown, err)
		} else if err != nil {
			return err
		}
		for _, s := range services {
			same := func(other port.Service) bool { return other.Port == s.Port && other.Protocol == s.Protocol }
			if !slices.ContainsFunc(found, same) {
				found = append(found, s)
			}
		}
	}
	if _, err := printRows(a, "services", each(found), serviceColumns); err != nil {
		return err
	}
	for _, err := range unknown {
		a.warn("%v", err)
	}
	if len(unknown) > 0 {
		return answerIsNo
	}
	return nil
}

// lookUpService reads PORT, NAME, PORT/PROTOCOL or NAME/PROTOCOL.
func lookUpService(names *port.Names, s string) ([]port.Service, error) {
	what, protocol, given := strings.Cut(s, "/")
	protocol = strings.ToLower(protocol)
	if given && !slices.Contains(port.Protocols(), protocol) {
		return nil, usage("%q: unknown protocol %q: want %s", s, protocol, strings.Join(port.Protocols(), ", "))
	}
	if what == "" {
		return nil, usage("%q: neither a port nor a service name", s)
	}
	if !isNumber(what) {
		services := names.LookupName(what, protocol)
		if len(services) == 0 {
			return nil, no("unknown service %q: neither /etc/services nor IANA's registry has it", s)
		}
		return services, nil
	}
	number, err := parsePort(what)
	if err != nil {
		return nil, &codeError{exitUsage, err}
	}
	services := names.Services(number)
	if given {
		services = slices.DeleteFunc(services, func(s port.Service) bool { return s.Protocol != protocol })
	}
	if len(services) == 0 {
		class := port.ClassOf(number)
		return nil, no("no service has port %s; it is of the class %s (%s)", s, class, classUses[class])
	}
	return services, nil
}

// isNumber says whether text is meant as a number, in range or not.
func isNumber(s string) bool { return s != "" && strings.Trim(s, "+-0123456789") == "" }

// parsePort reads a port that something can listen on.
func parsePort(s string) (uint16, error) {
	n, err := strconv.ParseUint(s, 10, 16)
	if err != nil || n == 0 {
		return 0, fmt.Errorf("bad port %q: ports are 1 to 65535", s)
	}
	return uint16(n), nil
}

// parsePortOrName reads a port, or the name of a service that has one.
func (a *app) parsePortOrName(s string) (uint16, error) {
	if isNumber(s) {
		return parsePort(s)
	}
	n, err := a.serviceNames().LookupPort(context.Background(), "", s)
	if errors.Is(err, port.ErrUnknown) {
		return 0, fmt.Errorf("unknown service %q: write the port number", s)
	}
	return uint16(n), err
}

// serviceNames reads /etc/services. Without it IANA's registry answers alone.
func (a *app) serviceNames() *port.Names {
	names, err := port.System()
	if err != nil {
		a.warn("%v: only IANA's registry is used", err)
	}
	return names
}

var serviceColumns = []column[port.Service]{
	{head: "port", right: true, text: func(s port.Service) string { return fmt.Sprint(s.Port) }},
	{head: "protocol", text: func(s port.Service) string { return s.Protocol }},
	{head: "name", text: func(s port.Service) string { return s.Name }},
	{head: "aliases", wide: true, text: func(s port.Service) string { return strings.Join(s.Aliases, " ") }},
	{head: "description", text: func(s port.Service) string { return s.Description }},
}

func (a *app) portClasses() *cobra.Command {
	return &cobra.Command{
		Use:   "classes",
		Short: "The three classes of ports, and what they are for",
		Long:  "Lists the ranges that RFC 6335 section 6 divides the port numbers into.",
		Example: `  ft port classes
  ft port classes -o json`,
		Args: noArgs,
		RunE: func(*cobra.Command, []string) error {
			var rows []classRow
			for _, c := range port.Classes() {
				first, last := c.Range()
				rows = append(rows, classRow{c.String(), c.Synonym(), first, last, int(last) - int(first) + 1, classUses[c]})
			}
			_, err := printRows(a, "classes", each(rows), classColumns)
			return err
		},
	}
}

type classRow struct {
	Class   string `json:"class"`
	Synonym string `json:"synonym"`
	First   uint16 `json:"first"`
	Last    uint16 `json:"last"`
	Ports   int    `json:"ports"`
	Use     string `json:"use"`
}

var classUses = map[port.Class]string{
	port.ClassSystem:  "standard services; to listen takes a privilege",
	port.ClassUser:    "services that IANA registered; anyone may listen",
	port.ClassDynamic: "never assigned: for use at will, and by clients",
}

var classColumns = []column[classRow]{
	{head: "class", text: func(c classRow) string { return c.Class }},
	{head: "synonym", text: func(c classRow) string { return c.Synonym }},
	{head: "first", right: true, text: func(c classRow) string { return fmt.Sprint(c.First) }},
	{head: "last", right: true, text: func(c classRow) string { return fmt.Sprint(c.Last) }},
	{head: "ports", right: true, text: func(c classRow) string { return fmt.Sprint(c.Ports) }},
	{head: "use", text: func(c classRow) string { return c.Use }},
}

func (a *app) portStatus() *cobra.Command {
	return &cobra.Command{
		Use:   "status",
		Short: "How many ports are in use, and how many are left",
		Long: `Counts the ports of this host (of its network namespace) by protocol and class:
a port counts as in use if it is leased, or a socket has it, on any address.`,
		Example: `  ft port status
  ft port status -o json`,
		Args: noArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			return viewPorts(c.Context(), func(ports lease.Registry) error {
				status, err := ports.Status(c.Context())
				if err != nil {
					return err
				}
				_, err = a.printPortStatus(status)
				return err
			})
		},
	}
}

func (a *app) printPortStatus(status lease.Status) (int, error) {
	if !status.Sockets {
		a.warn("this system does not list its sockets: only leased ports are counted")
	}
	return printRows(a, "counts", each(status.Counts), statusColumns)
}

var statusColumns = []column[lease.Count]{
	{head: "protocol", text: func(c lease.Count) string { return c.Protocol.String() }},
	{head: "class", text: func(c lease.Count) string { return c.Class }},
	{head: "ports", right: true, text: func(c lease.Count) string { return fmt.Sprint(c.Ports) }},
	{head: "leased", right: true, text: func(c lease.Count) string { return fmt.Sprint(c.Leased) }},
	{head: "in use", right: true, text: func(c lease.Count) string { return fmt.Sprint(c.InUse) }},
	{head: "left", right: true, text: func(c lease.Count) string { return fmt.Sprint(c.Left) }},
}

// protocolText is how tables and lists name a protocol.
func protocolText(n fivetuple.Network) string {
	if n == fivetuple.NetworkNone {
		return ""
	}
	return n.String()
}

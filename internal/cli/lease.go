package cli

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"os/signal"
	"strings"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"github.com/fivetuple/fivetuple"
	"github.com/fivetuple/fivetuple/port/lease"
	"github.com/fivetuple/fivetuple/table"
)

type leaseFlags struct {
	portFlags
	name    string
	ttl     string
	hold    bool
	reserve bool
	owner   int
	detach  bool
}

func (a *app) portLease() *cobra.Command {
	var f leaseFlags
	c := &cobra.Command{
		Use:   "lease",
		Short: "Lease a free port, and print it",
		Long: `Grants a port that is free and that no other lease has, and prints its number.
It is the caller's: the lease ends with the shell or program that called ft, or
by ft port release. The caller of "timeout 5 ft port lease" is timeout, and of
xargs and sudo likewise: there give --owner $$, which is the shell. A name gets the port again that it had before, if it is
free. The exit code is 1 if the port, or every port of the range, is taken.

Until somebody binds it, a leased port of the ephemeral range can be taken by
the kernel for an outgoing connection. --reserve keeps the kernel from it.
--hold stays and keeps the port bound, until Ctrl-C, or until the lease ends. A
TCP port is held so that a server can listen on it all the while if it sets
SO_REUSEADDR, as nearly all do. A UDP port cannot be shared: let go of it before
the server starts.`,
		Example: `  PORT=$(ft port lease)                        while this shell runs
  ft port lease --name api --range 8000-8999   the same port each time
  ft port lease --port 8080 --ttl 2h --detach  for two hours, come what may`,
		Args: noArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			r, err := f.request(a, c.Flags().Changed("owner"))
			if err != nil {
				return err
			}
			return a.leasePort(c.Context(), r, f)
		},
	}
	f.register(c)
	c.Flags().StringVar(&f.name, "name", "", "`name` that the port is for")
	c.Flags().StringVar(&f.ttl, "ttl", "", "end the lease after this `time`, such as 90s, 10m or 2d")
	c.Flags().BoolVar(&f.hold, "hold", false, "stay, and keep the port bound until Ctrl-C")
	c.Flags().BoolVar(&f.reserve, "reserve", false, "keep the kernel from giving the port to connections; as root")
	c.Flags().IntVar(&f.owner, "owner", 0, "the lease ends with this `process`, by pid (default: the caller)")
	c.Flags().BoolVar(&f.detach, "detach", false, "the lease outlives all processes; with --ttl")
	c.RegisterFlagCompletionFunc("name", completeLeaseNames)
	return c
}

func (f leaseFlags) request(a *app, ownerGiven bool) (lease.Request, error) {
	switch {
	case f.detach && (f.ttl == "" || f.ttl == "0"):
		return lease.Request{}, usage("--detach needs --ttl: no process ends that lease, so its time must")
	case f.detach && f.hold:
		return lease.Request{}, usage("--hold and --detach exclude each other: a lease is held by a process, or outlives all")
	case f.detach && ownerGiven:
		return lease.Request{}, usage("--owner and --detach exclude each other: a lease is a process's, or outlives all")
	}
	r, err := f.portFlags.request(a)
	if err != nil {
		return r, &codeError{exitUsage, err}
	}
	r.Name, r.Reserve, r.Detached = f.name, f.reserve, f.detach
	if f.ttl != "" {
		if r.TTL, err = parseTTL(f.ttl); err != nil {
			return r, &codeError{exitUsage, fmt.Errorf("--ttl: %w", err)}
		}
	}
	switch {
	case f.detach:
	case ownerGiven && f.owner < 1:
		return r, usage("--owner %d: want the pid of a process", f.owner)
	case ownerGiven:
		if r.Owner, err = lease.OwnerOf(f.owner); errors.Is(err, fs.ErrNotExist) {
			return r, fmt.Errorf("--owner %d: there is no such process", f.owner)
		}
		return r, err
	default:
		if r.Owner, err = lease.Caller(); err != nil {
			return r, fmt.Errorf("%w: name a process by --owner, or let the lease outlive all by --detach and --ttl", err)
		}
	}
	return r, nil
}

// leasePort grants the port and prints it.
func (a *app) leasePort(ctx context.Context, r lease.Request, f leaseFlags) error {
	// A reader of the output that has gone must not leave a lease of which nobody knows.
	signal.Ignore(syscall.SIGPIPE)
	ports, err := openPorts(ctx, a.warnOf)
	if err != nil {
		return err
	}
	defer ports.Close()
	var held sockets
	if f.hold {
		held = make(sockets)
		defer held.close()
	}
	leases, err := f.acquire(ctx, ports, r, held.bind(holdPort))
	if err != nil {
		return err
	}
	if err := a.printLeased(leases); err != nil {
		return errors.Join(err, release(ports, leases))
	}
	if f.hold {
		return a.holdLeases(ctx, ports, leases)
	}
	return a.warnEphemeral(leases)
}

// printLeased prints the port alone, for shells, unless another format is asked for.
func (a *app) printLeased(leases []lease.Lease) error {
	if a.format == formatTable {
		_, err := fmt.Fprintln(a.out, leases[0].Port)
		return err
	}
	_, err := printRows(a, "leases", each(leases), leaseColumns)
	return err
}

// warnEphemeral says once if the port can be lost to the kernel.
func (a *app) warnEphemeral(leases []lease.Lease) error {
	port := leases[0].Port
	ephemeral, err := lease.IsEphemeral(port)
	if err == nil && ephemeral {
		a.warn("until it is bound, the kernel may give port %d to an outgoing connection: prevent that with --hold, or as root --reserve", port)
	}
	return err
}

// release ends leases, also if the command was interrupted. One that has ended
// already is none to end.
func release(ports *lease.Shared, leases []lease.Lease) error {
	var errs []error
	for _, l := range leases {
		err := ports.Release(context.Background(), l)
		if errors.Is(err, lease.ErrStale) {
			_, err = ports.Collect(context.Background()) // writes it down, if nobody has yet
		}
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}

// openPorts opens the registry of this user, and begins it if there is none.
func openPorts(ctx context.Context, warn func(error)) (*lease.Shared, error) {
	path, err := lease.DefaultPath()
	if err != nil {
		return nil, err
	}
	ports, err := lease.Open(ctx, path, lease.Options{Warn: warn})
	return ports, adviseOnState(err)
}

// adviseOnState says what to do about a registry that cannot be used where it is.
func adviseOnState(err error) error {
	for _, why := range []error{fs.ErrPermission, syscall.EROFS, lease.ErrNewer, lease.ErrForeign} {
		if errors.Is(err, why) {
			return fmt.Errorf("%w: STATE_DIRECTORY can name another directory", err)
		}
	}
	return err
}

// listLeases returns the leases that have not ended.
func listLeases(ctx context.Context) (leases []lease.Lease, err error) {
	err = viewPorts(ctx, func(ports lease.Registry) error {
		leases, err = ports.List(ctx)
		return err
	})
	return leases, err
}

// viewPorts opens the registry to look at it. One that was not begun yet is empty.
func viewPorts(ctx context.Context, look func(lease.Registry) error) error {
	path, err := lease.DefaultPath()
	if err != nil {
		return err
	}
	ports, err := lease.OpenReadOnly(ctx, path, lease.Options{})
	if errors.Is(err, fs.ErrNotExist) {
		return look(lease.NewMemory())
	}
	if err != nil {
		return adviseOnState(err)
	}
	return errors.Join(look(ports), ports.Close())
}

// portFlags say which port is wanted.
type portFlags struct {
	port    string
	within  string
	proto   string
	addr    string
	purpose string
}

func (f *portFlags) register(c *cobra.Command) {
	c.Flags().StringVar(&f.port, "port", "", "this `port`, by number or by service name")
	c.Flags().StringVar(&f.within, "range", "", "a free port of this `range` (default 49152-65535)")
	c.Flags().StringVar(&f.proto, "proto", "tcp", "`protocol`: tcp, udp or both")
	c.Flags().StringVar(&f.addr, "addr", "", "`address` that will be bound; * for all (default 127.0.0.1)")
	c.Flags().StringVar(&f.purpose, "purpose", "", "`text` that says what the port is for")
}

func (f portFlags) request(a *app) (r lease.Request, err error) {
	r.Purpose = f.purpose
	if f.port != "" && f.within != "" {
		return r, errors.New("--port and --range exclude each other: ask for one port, or for any of a range")
	}
	if f.port != "" {
		if r.Port, err = a.parsePortOrName(f.port); err != nil {
			return r, fmt.Errorf("--port: %w", err)
		}
	}
	if f.within != "" {
		if r.Range, err = parsePortRange(f.within); err != nil {
			return r, fmt.Errorf("--range: %w", err)
		}
	}
	if !f.both() {
		if r.Protocol, err = fivetuple.ParseNetwork(f.proto); err != nil || !r.Protocol.IsIP() {
			return r, fmt.Errorf("unknown protocol %q: want tcp, udp or both", f.proto)
		}
	}
	r.Address, err = parseBindAddr(f.addr)
	return r, err
}

func (f portFlags) both() bool { return strings.EqualFold(f.proto, "both") }

// parsePortRange reads 8000-8999.
func parsePortRange(s string) (fivetuple.PortRange, error) {
	r, err := fivetuple.ParsePortRange(s)
	if err == nil && r.First == 0 {
		err = fmt.Errorf("bad port range %q: ports are 1 to 65535", s)
	}
	return r, err
}

// parseBindAddr reads an address in the words of a [lease.Request]: "" is
// loopback, * is all.
func parseBindAddr(s string) (netip.Addr, error) {
	switch s {
	case "":
		return netip.Addr{}, nil
	case fivetuple.AnyHost:
		return netip.IPv6Unspecified(), nil
	}
	addr, err := netip.ParseAddr(s)
	switch {
	case err != nil:
		return addr, fmt.Errorf("%q is not an IP address: write one, such as 127.0.0.1, or * for all", s)
	case addr.Is6() && addr.IsLinkLocalUnicast() && addr.Zone() == "":
		return addr, fmt.Errorf("link-local address %s needs a zone, as in %s%%eth0", addr, addr)
	}
	return addr, nil
}

// parseTTL reads how long a lease lasts.
func parseTTL(s string) (time.Duration, error) {
	ttl, ok := parseAgo(s)
	if !ok {
		return 0, fmt.Errorf("bad time %q: want how long, such as 90s, 10m, 2h or 1d12h", s)
	}
	return ttl, nil
}

// acquire grants what the flags ask for: one lease, or one for TCP and one for
// UDP. bind opens the sockets, if it is not nil.
func (f portFlags) acquire(ctx context.Context, ports lease.Registry, r lease.Request, bind bindFunc) ([]lease.Lease, error) {
	if f.both() {
		tcp, udp, err := lease.AcquireBoth(ctx, ports, r, bind)
		return []lease.Lease{tcp, udp}, acquireError(ctx, r, err)
	}
	if bind != nil {
		r.Bind = func(ctx context.Context, at netip.AddrPort) error { return bind(ctx, r.Protocol, at) }
	}
	l, err := ports.Acquire(ctx, r)
	return []lease.Lease{l}, acquireError(ctx, r, err)
}

// acquireError says who holds a port that is in use, and gives errors their exit
// codes.
func acquireError(ctx context.Context, r lease.Request, err error) error {
	if errors.Is(err, lease.ErrInUse) {
		err = explainInUse(ctx, r, err)
	}
	return withLeaseCode(err)
}

// withLeaseCode gives an error of a registry its exit code. That a port is taken
// is an answer; that this user may not have it is a failure.
func withLeaseCode(err error) error {
	for _, c := range []struct {
		is   error
		code int
	}{
		{lease.ErrInvalid, exitUsage},
		{lease.ErrNotPermitted, exitFailed},
		{lease.ErrInUse, exitNo},
		{lease.ErrLeased, exitNo},
		{lease.ErrExhausted, exitNo},
		{lease.ErrStale, exitNo},
	} {
		if errors.Is(err, c.is) {
			return &codeError{c.code, err}
		}
	}
	return err
}

func explainInUse(ctx context.Context, r lease.Request, err error) error {
	addr := r.Address
	if !addr.IsValid() {
		addr = netip.AddrFrom4([4]byte{127, 0, 0, 1})
	}
	var places []table.Place
	for _, protocol := range []fivetuple.Network{fivetuple.TCP, fivetuple.UDP} {
		if r.Protocol == fivetuple.NetworkNone || r.Protocol.Protocol() == protocol {
			places = append(places, table.Place{Protocol: protocol, At: netip.AddrPortFrom(addr, r.Port)})
		}
	}
	held, errHeld := table.HoldersOf(ctx, places)
	if errHeld != nil {
		return err
	}
	for _, h := range held {
		if len(h.Rows) > 0 {
			return fmt.Errorf("%w: held by %s: stop it, or lease another port", err, h)
		}
	}
	return fmt.Errorf("%w: nobody holds it any more: try again", err)
}

// bindFunc binds the caller's own socket inside a grant.
type bindFunc = func(context.Context, fivetuple.Network, netip.AddrPort) error

// sockets are those that were bound inside a grant, one of each protocol.
type sockets map[fivetuple.Network]*os.File

// bind returns what a grant calls, perhaps several times, to open a socket; nil
// for no sockets.
func (s sockets) bind(open func(context.Context, fivetuple.Network, netip.AddrPort) (*os.File, error)) bindFunc {
	if s == nil {
		return nil
	}
	return func(ctx context.Context, protocol fivetuple.Network, at netip.AddrPort) error {
		f, err := open(ctx, protocol, at)
		if err != nil {
			return err
		}
		if before := s[protocol]; before != nil {
			before.Close()
		}
		s[protocol] = f
		return nil
	}
}

func (s sockets) close() {
	for _, f := range s {
		f.Close()
	}
}

package daemon

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"strings"

	"github.com/fivetuple/fivetuple"
	"github.com/fivetuple/fivetuple/port/lease"
	"github.com/fivetuple/fivetuple/service"
	"github.com/fivetuple/fivetuple/sockopt"
	"github.com/fivetuple/fivetuple/stats"
	"github.com/fivetuple/fivetuple/table"
)

// running is a service that listens, or drains.
type running struct {
	config   Service
	forwards bool // it is of the kind forward, for good
	service  *service.Service
	address  string // where it really listens
	leases   []lease.Lease
	ports    []uint16 // of a UDP service
	gone     bool     // to a successor, with the leases
}

// open opens the sockets of a service, each within the grant of its lease, so that
// nothing can take the port in between. It is served at once, or what a
// predecessor has of it when that is taken over.
func (d *Daemon) open(ctx context.Context, s Service, from *service.Takeover) (*running, error) {
	r := &running{config: s, forwards: s.Kind == kindForward}
	c, err := d.configOf(s)
	if err != nil {
		return nil, err
	}
	c.Bind = func(ctx context.Context, e fivetuple.Endpoint, bind func(context.Context, fivetuple.Endpoint) error) error {
		return d.leaseAndBind(ctx, r, e, bind)
	}
	if c.Sockets, c.Endpoints, err = d.passedTo(ctx, s); err != nil {
		return nil, err
	}
	if from != nil {
		r.service, err = from.Open(ctx, c)
	} else {
		r.service, err = service.Start(ctx, c)
	}
	if err != nil {
		d.releaseLeases(r)
		return nil, err
	}
	r.address = addressOf(r.service)
	if from == nil {
		d.begin(ctx, r, 0)
	}
	return r, nil
}

// configOf is the configuration of a service. The kinds that only answer have one
// socket on each port, as they always had.
func (d *Daemon) configOf(s Service) (service.Config, error) {
	c := service.Config{
		Kind: s.Kind, Name: s.Name, Sink: d.sink, IDs: d.idsOf(s.Name), Suspects: d.isOwnUDP,
		Options: s.options(), Mode: s.Mode.FileMode, Proxies: prefixes(s.AcceptProxy), OneSocket: s.Kind != kindForward,
		Limits: s.limits(), PeerRate: s.Limits.PeerRate.bound(),
	}
	if s.Kind == kindForward {
		rule, err := s.loadRule()
		if err != nil {
			return c, err
		}
		c.Forward = &rule
	}
	if s.Listen.Network == fivetuple.TLS {
		var err error
		if c.TLS, err = s.TLS.server().Config(); err != nil {
			return c, err
		}
	}
	return c, nil
}

func (s *Service) options() sockopt.Settings {
	var all sockopt.Settings
	for _, o := range s.Options {
		all = append(all, o.Setting)
	}
	return all
}

// ports are the endpoints of a service, one for each port.
func (s *Service) ports() []fivetuple.Endpoint {
	e := s.Listen.Endpoint
	if e.Ports.Len() == 1 {
		return []fivetuple.Endpoint{e}
	}
	var all []fivetuple.Endpoint
	for n := range e.Ports.Len() {
		all = append(all, e.WithPort(e.Ports.First+uint16(n)))
	}
	return all
}

// begin enters what is served by now: its sockets may be older than this process.
// predecessor is the process that had them, 0 for none.
func (d *Daemon) begin(ctx context.Context, r *running, predecessor int) {
	for _, at := range bound(r.service) {
		if at.network.IsDatagram() {
			d.udpPorts.Store(at.Port(), true)
			r.ports = append(r.ports, at.Port())
		}
		if !r.hasLease(at) {
			d.leaseHeld(ctx, r, at, predecessor)
		}
	}
	d.watching.Go(func() { d.watch(r) })
}

// watch tells of a service that ends by itself.
func (d *Daemon) watch(r *running) {
	select {
	case err := <-r.service.Failed():
		d.log.Error("a service does not listen any more", "service", r.config.Name, "error", err)
	case <-r.service.Quiet():
	}
}

// place is an IP port that a service listens on.
type place struct {
	network fivetuple.Network
	netip.AddrPort
}

// bound are the IP ports of a service.
func bound(s *service.Service) (all []place) {
	for _, text := range s.Addresses() {
		name, address, _ := strings.Cut(text, " ")
		network, err := fivetuple.ParseNetwork(name)
		if a := fivetuple.ParseAddress(address); err == nil && network.IsIP() && a.AddrPort.IsValid() {
			all = append(all, place{network, a.AddrPort})
		}
	}
	return all
}

// addressOf is where a service listens, "127.0.0.1:8000-8010" for a range.
func addressOf(s *service.Service) string {
	all := s.Addresses()
	_, first, _ := strings.Cut(all[0], " ")
	if ports := bound(s); len(ports) > 1 {
		return fmt.Sprintf("%s-%d", first, ports[len(ports)-1].Port())
	}
	return first
}

// resolve gives the endpoint an address and a port number, as a lease needs.
func (d *Daemon) resolve(ctx context.Context, e fivetuple.Endpoint) (fivetuple.Endpoint, error) {
	if !e.Network.IsIP() {
		return e, nil
	}
	e, err := e.ResolveService(ctx, d.names)
	if err != nil {
		return e, err
	}
	if _, literal := e.Addr(); literal || e.Host == "" || e.Host == fivetuple.AnyHost {
		return e, nil
	}
	network := "ip" + map[fivetuple.Network]string{fivetuple.TCP4: "4", fivetuple.UDP4: "4", fivetuple.TCP6: "6", fivetuple.UDP6: "6"}[e.Network]
	addrs, err := net.DefaultResolver.LookupNetIP(ctx, network, e.Host)
	if err != nil {
		return e, fmt.Errorf("listen on %s: %w", e, err)
	}
	addr := addrs[0]
	for _, a := range addrs { // IPv4 first, as Go's net package listens
		if a.Unmap().Is4() {
			addr = a
			break
		}
	}
	e.Host = addr.Unmap().String()
	return e, nil
}

// leaseAndBind takes a port from the registry and listens on it in one step.
func (d *Daemon) leaseAndBind(ctx context.Context, r *running, e fivetuple.Endpoint, bind func(context.Context, fivetuple.Endpoint) error) error {
	e, err := d.resolve(ctx, e)
	if err != nil {
		return err
	}
	if !e.Network.IsIP() {
		return table.ExplainInUse(ctx, bind(ctx, e), e)
	}
	addr, ok := e.Addr()
	switch {
	case ok:
	case e.Host == fivetuple.AnyHost && (e.Network == fivetuple.TCP4 || e.Network == fivetuple.UDP4):
		addr = netip.IPv4Unspecified()
	case e.Host == fivetuple.AnyHost:
		addr = netip.IPv6Unspecified()
	}
	request := r.request(e.Network, addr, e.Ports.First)
	request.Bind = func(ctx context.Context, at netip.AddrPort) error { return bind(ctx, e.WithPort(at.Port())) }
	l, err := d.leases.Acquire(ctx, request)
	if err != nil {
		return table.ExplainInUse(ctx, err, e)
	}
	r.leases = append(r.leases, l)
	return nil
}

func (r *running) request(network fivetuple.Network, addr netip.Addr, port uint16) lease.Request {
	return lease.Request{
		Protocol: network, Address: addr.WithZone(""), Port: port, Name: r.config.Name, Purpose: r.config.Kind,
		ReusePort: r.config.reusesPort(),
	}
}

func (r *running) hasLease(at place) bool {
	for _, l := range r.leases {
		if l.Protocol.Protocol() == at.network.Protocol() && l.Port == at.Port() {
			return true
		}
	}
	return false
}

// leaseHeld takes the lease of a port on whose socket this process has already: the
// one of the predecessor, or one of its own. As long as the socket is open nobody else
// can be granted the port; so to be without the lease is no reason to stop.
func (d *Daemon) leaseHeld(ctx context.Context, r *running, at place, predecessor int) {
	l, err := d.inherit(ctx, r, at, predecessor)
	if err != nil {
		request := r.request(at.network, at.Addr(), at.Port())
		request.Bind = func(context.Context, netip.AddrPort) error { return nil } // it is
		l, err = d.leases.Acquire(ctx, request)
	}
	if err != nil {
		d.log.Warn("the port is served, and leased to another", "service", r.config.Name, "error", err)
		return
	}
	r.leases = append(r.leases, l)
}

// inherit makes the predecessor's lease of a port this process's.
func (d *Daemon) inherit(ctx context.Context, r *running, at place, predecessor int) (lease.Lease, error) {
	shared, ok := d.leases.(interface {
		Transfer(context.Context, lease.Lease, lease.Owner) (lease.Lease, error)
	})
	if !ok || predecessor == 0 {
		return lease.Lease{}, errors.ErrUnsupported
	}
	all, err := d.leases.List(ctx)
	if err != nil {
		return lease.Lease{}, err
	}
	for _, l := range all {
		if l.Owner.PID == predecessor && l.Name == r.config.Name && l.Port == at.Port() && l.Protocol.Protocol() == at.network.Protocol() {
			return shared.Transfer(ctx, l, d.self)
		}
	}
	return lease.Lease{}, lease.ErrStale
}

// set changes the limits and the rule of a service that goes on.
func (r *running) set(s Service) error {
	r.config = s
	r.service.SetLimits(s.limits())
	r.service.SetPeerRate(s.Limits.PeerRate.bound())
	if s.Kind != kindForward {
		return nil
	}
	rule, err := s.loadRule()
	if err == nil {
		err = r.service.SetForward(rule)
	}
	if err != nil {
		return fmt.Errorf("service %s: its rule stays the old one: %w", s.Name, err)
	}
	return nil
}

// release gives the ports back, once the service has stopped listening.
func (r *running) release(d *Daemon) {
	<-r.service.Quiet()
	for _, p := range r.ports {
		d.udpPorts.Delete(p)
	}
	if !r.gone {
		d.releaseLeases(r)
	}
}

func (d *Daemon) releaseLeases(r *running) {
	for _, l := range r.leases {
		if err := d.leases.Release(context.Background(), l); err != nil {
			d.log.Warn("port not released", "service", r.config.Name, "error", err)
		}
	}
	r.leases = nil
}

// shutdown makes a service stop listening, and returns when it has drained.
func (d *Daemon) shutdown(ctx context.Context, r *running) {
	if err := r.service.Shutdown(ctx); err != nil {
		d.log.Warn("connections were reset, as they did not come to rest in time", "service", r.config.Name)
	}
}

// logEvent writes what an operator wants to see as it happens: errors, and the
// rest when debugging.
func (d *Daemon) logEvent(e stats.Event) {
	level := slog.LevelDebug
	if e.Kind == stats.Error {
		level = slog.LevelWarn
	}
	if !d.log.Enabled(context.Background(), level) {
		return
	}
	attrs := []slog.Attr{slog.String("service", e.Service)}
	if e.Tuple != (fivetuple.Tuple{}) {
		attrs = append(attrs, slog.Any("socket", e.Tuple))
	}
	if e.Conn != 0 {
		attrs = append(attrs, slog.Uint64("conn", e.Conn))
	}
	if e.Kind == stats.Disconnect {
		attrs = append(attrs, slog.String("cause", e.Cause), slog.Uint64("in", e.BytesIn), slog.Uint64("out", e.BytesOut), slog.Duration("duration", e.Duration))
	}
	if e.Err != "" {
		attrs = append(attrs, slog.String("error", e.Err))
	}
	d.log.LogAttrs(context.Background(), level, e.Kind.String(), attrs...)
}

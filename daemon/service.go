package daemon

import (
	"context"
	"fmt"
	"log/slog"
	"math"
	"net"
	"net/netip"
	"time"

	"github.com/fivetuple/fivetuple"
	"github.com/fivetuple/fivetuple/datagram"
	"github.com/fivetuple/fivetuple/port/lease"
	"github.com/fivetuple/fivetuple/sockopt"
	"github.com/fivetuple/fivetuple/stats"
	"github.com/fivetuple/fivetuple/stream"
	"github.com/fivetuple/fivetuple/table"
)

// running is a service that listens, or drains.
type running struct {
	config  Service
	address string // where it really listens
	lease   *lease.Lease
	socket  interface{ Close() error } // the listening socket
	served  chan struct{}              // closed when the socket is no longer served

	// One of these runs it.
	stream   *stream.Server
	datagram *datagram.Server
}

// open opens the socket of a service within the grant of its lease, so that
// nothing can take the port in between, and serves it.
func (d *Daemon) open(ctx context.Context, s Service) (*running, error) {
	e, err := d.resolve(ctx, s.Listen.Endpoint)
	if err != nil {
		return nil, err
	}
	r := &running{config: s, served: make(chan struct{})}
	var start func()
	if e.Network.IsDatagram() {
		start, err = r.prepareDatagram(d, s)
	} else {
		start, err = r.prepareStream(d, s)
	}
	if err != nil {
		return nil, err
	}
	if e.Network.IsIP() {
		err = r.leaseAndListen(ctx, d.leases, e)
	} else {
		err = r.listen(ctx, e)
	}
	if err != nil {
		return nil, table.ExplainInUse(ctx, err, e)
	}
	if p := r.udpPort(); p != 0 {
		d.udpPorts.Store(p, true)
	}
	go func() {
		defer close(r.served)
		start()
	}()
	return r, nil
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

// leaseAndListen takes the port from the registry and listens on it in one step.
func (r *running) leaseAndListen(ctx context.Context, leases lease.Registry, e fivetuple.Endpoint) error {
	addr, ok := e.Addr()
	switch {
	case ok:
	case e.Host == fivetuple.AnyHost && (e.Network == fivetuple.TCP4 || e.Network == fivetuple.UDP4):
		addr = netip.IPv4Unspecified()
	case e.Host == fivetuple.AnyHost:
		addr = netip.IPv6Unspecified()
	}
	l, err := leases.Acquire(ctx, lease.Request{
		Protocol: e.Network, Address: addr.WithZone(""), Port: e.Ports.First, Name: r.config.Name, Purpose: r.config.Kind,
		ReusePort: r.config.reusesPort(),
		Bind: func(ctx context.Context, at netip.AddrPort) error {
			return r.listen(ctx, e.WithPort(at.Port()))
		},
	})
	if err != nil {
		return err
	}
	r.lease = &l
	return nil
}

// udpPort is the port of a UDP service, 0 of another.
func (r *running) udpPort() uint16 {
	if r.datagram == nil {
		return 0
	}
	return fivetuple.ParseAddress(r.address).AddrPort.Port()
}

// listen opens the socket at an endpoint with address and port.
func (r *running) listen(ctx context.Context, e fivetuple.Endpoint) error {
	if r.datagram != nil {
		c, err := datagram.ListenConfig{Options: r.options()}.Listen(ctx, e)
		if err != nil {
			return err
		}
		r.socket, r.address = c, fivetuple.AddressOf(c.LocalAddr()).String()
		return nil
	}
	ln, err := stream.ListenConfig{Options: r.options(), Mode: r.config.Mode.FileMode}.Listen(ctx, e)
	if err != nil {
		return err
	}
	r.socket, r.address = ln, fivetuple.AddressOf(ln.Addr()).String()
	return nil
}

func (r *running) options() sockopt.Settings {
	var all sockopt.Settings
	for _, o := range r.config.Options {
		all = append(all, o.Setting)
	}
	return all
}

func (r *running) prepareStream(d *Daemon, s Service) (start func(), err error) {
	h, err := stream.NewHandler(s.Kind)
	if err != nil {
		return nil, err
	}
	r.stream = &stream.Server{Service: s.Name, Handler: h, Sink: d.sink, IDs: d.idsOf(s.Name), Options: r.options(), Limits: streamLimits(s)}
	return func() { r.stream.Serve(r.socket.(net.Listener)) }, nil
}

func (r *running) prepareDatagram(d *Daemon, s Service) (start func(), err error) {
	h, err := datagram.NewHandler(s.Kind)
	if err != nil {
		return nil, err
	}
	r.datagram = &datagram.Server{Service: s.Name, Handler: h, Sink: d.sink, IDs: d.idsOf(s.Name), Suspects: d.isOwnUDP, Limits: datagramLimits(s)}
	return func() { r.datagram.Serve(r.socket.(*datagram.Conn)) }, nil
}

func (r *running) setLimits(s Service) {
	r.config = s
	if r.stream != nil {
		r.stream.SetLimits(streamLimits(s))
	} else {
		r.datagram.SetLimits(datagramLimits(s))
	}
}

// streamLimits fills in the defaults. Without a limit of its own a service has
// as many connections as the process may have descriptors, less some for the
// rest of its work, and three quarters of them for one source, so that it
// cannot lock the others out.
func streamLimits(s Service) stream.Limits {
	const defaultIdle = 10 * time.Minute
	descriptors := descriptorLimit()
	most := max(descriptors-min(64, descriptors/4), 1)
	l := stream.Limits{
		MaxConns:         orDefault(s.Limits.Connections, most),
		AcceptRate:       float64(orDefault(s.Limits.AcceptRate, 0)),
		IdleTimeout:      s.Limits.Idle.Duration,
		FirstByteTimeout: s.Limits.FirstByte.Duration,
		WriteQueue:       int(min(s.Limits.WriteQueue.Bytes, math.MaxInt32)),
		Allow:            prefixes(s.Allow),
		Deny:             prefixes(s.Deny),
	}
	perSource := 0
	if s.Limits.Connections.N == 0 {
		perSource = max(most*3/4, 1)
	}
	l.MaxPerSource = orDefault(s.Limits.PerSource, perSource)
	switch {
	case s.Limits.Idle.isOff():
		l.IdleTimeout = 0
	case l.IdleTimeout == 0:
		l.IdleTimeout = defaultIdle
	}
	if s.Limits.FirstByte.isOff() {
		l.FirstByteTimeout = 0
	}
	return l
}

func datagramLimits(s Service) datagram.Limits {
	return datagram.Limits{
		MaxPeers: s.Limits.Connections.N, PeerTimeout: s.Limits.Idle.Duration, PeerRate: orDefault(s.Limits.PeerRate, 0),
		Allow: prefixes(s.Allow), Deny: prefixes(s.Deny),
	}
}

// orDefault is the count given, def if none is, and 0 if it is off.
func orDefault(c Count, def int) int {
	switch {
	case c.isOff():
		return 0
	case c.N == 0:
		return def
	}
	return c.N
}

func prefixes(list []Prefix) []netip.Prefix {
	var out []netip.Prefix
	for _, p := range list {
		out = append(out, p.Prefix)
	}
	return out
}

// release gives the port back, once the service has stopped listening.
func (r *running) release(d *Daemon) {
	<-r.served
	if p := r.udpPort(); p != 0 {
		d.udpPorts.Delete(p)
	}
	if r.lease == nil {
		return
	}
	if err := d.leases.Release(context.Background(), *r.lease); err != nil {
		d.log.Warn("port not released", "service", r.config.Name, "error", err)
	}
	r.lease = nil
}

// shutdown makes a service stop listening, and returns when it has drained.
func (d *Daemon) shutdown(ctx context.Context, r *running) {
	var err error
	if r.stream != nil {
		err = r.stream.Shutdown(ctx)
	} else {
		err = r.datagram.Shutdown(ctx)
	}
	if err != nil {
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

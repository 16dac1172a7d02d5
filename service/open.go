package service

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"runtime"

	"github.com/fivetuple/fivetuple"
	"github.com/fivetuple/fivetuple/datagram"
	"github.com/fivetuple/fivetuple/sockopt"
	"github.com/fivetuple/fivetuple/stream"
	"github.com/fivetuple/fivetuple/table"
)

// Socket is one that is open already. Its file is closed when it has been
// taken over, or the service could not be started.
type Socket struct {
	Endpoint fivetuple.Endpoint
	File     *os.File
}

// Open opens the sockets of a configuration and serves none of them: for a
// program that this one starts. Closing a file does not remove that of a Unix socket.
func Open(ctx context.Context, c Config) (sockets []Socket, err error) {
	if c.Kind == "" {
		c.Kind = "discard" // any that all sockets have
	}
	c.Engine = Goroutines // no shards
	s, err := open(ctx, c)
	if err != nil {
		return nil, err
	}
	for _, p := range s.parts {
		for _, o := range p.sockets() {
			f, err := o.file()
			if err != nil {
				p.close()
				return nil, fmt.Errorf("open %s: %w", o.endpoint, err)
			}
			sockets = append(sockets, Socket{o.endpoint, f})
		}
		p.release()
	}
	return sockets, nil
}

// openSocket is a socket of the service: one of the two is set.
type openSocket struct {
	endpoint fivetuple.Endpoint
	listener net.Listener
	packets  *datagram.Conn
}

func (o openSocket) close() {
	if o.listener != nil {
		o.listener.Close()
	} else {
		o.packets.Close()
	}
}

func (o openSocket) local() fivetuple.Address {
	if o.listener != nil {
		return fivetuple.AddressOf(o.listener.Addr())
	}
	return fivetuple.AddressOf(o.packets.LocalAddr())
}

func (o openSocket) port() uint16 { return o.local().AddrPort.Port() }

func (o openSocket) address() string { return fmt.Sprintf("%s %s", o.endpoint.Network, o.local()) }

// file is a copy of the descriptor.
func (o openSocket) file() (*os.File, error) {
	var socket any = o.packets
	if o.listener != nil {
		socket = o.listener
	}
	if filer, ok := socket.(interface{ File() (*os.File, error) }); ok {
		return filer.File()
	}
	return nil, errors.ErrUnsupported
}

// ownFile says whether closing the socket removes its file, if it has one.
func (o openSocket) ownFile(own bool) {
	var socket any = o.packets
	if o.listener != nil {
		socket = o.listener
	}
	if u, ok := socket.(interface{ SetUnlinkOnClose(bool) }); ok {
		u.SetUnlinkOnClose(own)
	}
}

// ownFiles makes this process the one that removes the files of Unix sockets.
func (s *Service) ownFiles() {
	for _, p := range s.parts {
		for _, o := range p.sockets() {
			o.ownFile(true)
		}
	}
}

func closeAll(sockets []openSocket) {
	for _, o := range sockets {
		o.close()
	}
}

func (s *Service) openAll(ctx context.Context) (sockets []openSocket, err error) {
	for _, given := range s.config.Sockets {
		o, err := adopt(given)
		if err != nil {
			return sockets, fmt.Errorf("take over the socket of %s: %w", given.Endpoint, err)
		}
		sockets = append(sockets, o)
	}
	for _, asked := range s.config.Endpoints {
		var opened []openSocket
		bind := s.config.Bind
		if bind == nil {
			bind = bindResolved
		}
		err := bind(ctx, asked, func(ctx context.Context, e fivetuple.Endpoint) (err error) {
			if opened, err = s.open(ctx, asked, e); err != nil {
				closeAll(opened)
				opened = nil
			}
			return err
		})
		sockets = append(sockets, opened...)
		if err != nil {
			return sockets, err
		}
	}
	return sockets, nil
}

// bindResolved listens where the endpoint says.
func bindResolved(ctx context.Context, asked fivetuple.Endpoint, bind func(context.Context, fivetuple.Endpoint) error) error {
	e, err := asked.ResolveService(ctx, net.DefaultResolver)
	if err != nil {
		return err
	}
	return table.ExplainInUse(ctx, bind(ctx, e), e)
}

// adopt makes a socket of an open file.
func adopt(given Socket) (openSocket, error) {
	o := openSocket{endpoint: given.Endpoint}
	var err error
	if given.Endpoint.Network.IsDatagram() {
		o.packets, err = datagram.FileConn(given.File)
	} else {
		o.listener, err = stream.FileListener(given.File)
	}
	return o, err
}

// open opens the socket of an endpoint, or one for each event loop. asked is the
// endpoint as the configuration, and a successor's, names it.
func (s *Service) open(ctx context.Context, asked, e fivetuple.Endpoint) ([]openSocket, error) {
	n, err := s.config.shards(e)
	if err != nil {
		return nil, err
	}
	opened, err := s.config.openShards(ctx, e, n)
	for i := range opened {
		opened[i].endpoint = asked
	}
	return opened, err
}

// shards is how many sockets an endpoint has: one for each event loop that serves
// it, if there can be several on a port. Those of a range of ports share theirs.
func (c *Config) shards(e fivetuple.Endpoint) (int, error) {
	group, _ := e.Addr()
	switch {
	case c.OneSocket, c.forwards() && c.Forward.Listen.Ports.Len() > 1, group.IsMulticast():
		return 1, nil
	case c.forwards() && e.Network.Protocol() == fivetuple.UDP:
		return c.loops(), nil
	case e.Network.IsDatagram() || e.Network.Protocol() != fivetuple.TCP:
		return 1, nil
	}
	engine, err := c.engine([]fivetuple.Network{e.Network})
	if err != nil || engine != Poll {
		return 1, err
	}
	return c.loops(), nil
}

func (c *Config) loops() int { return cmp.Or(c.Loops, runtime.GOMAXPROCS(0)) }

// openShards opens n sockets on one IP port, among which the kernel spreads the
// clients (SO_REUSEPORT, socket(7)). Somebody else who already has the port is an
// error, as without the option.
func (c *Config) openShards(ctx context.Context, e fivetuple.Endpoint, n int) (opened []openSocket, err error) {
	if n == 1 {
		o, err := c.openSocket(ctx, e, c.Options, c.Report)
		if err != nil {
			return nil, err
		}
		return []openSocket{o}, nil
	}
	first, err := c.openSocket(ctx, e, c.Options, nil)
	if err != nil {
		return nil, err
	}
	e = e.WithPort(first.port())
	first.close() // nobody else is there: with the option that would not be seen
	reuse, err := sockopt.Parse("reuseport")
	if err != nil {
		return nil, err
	}
	options := append(sockopt.Settings{reuse}, c.Options...)
	report := c.Report
	if report != nil {
		report = func(granted []sockopt.Granted) { c.Report(granted[min(1, len(granted)):]) } // who asked did not ask for reuseport
	}
	for range n {
		o, err := c.openSocket(ctx, e, options, report)
		if err != nil {
			return opened, err
		}
		opened = append(opened, o)
		report = nil // the others are the same
	}
	return opened, nil
}

func (c *Config) openSocket(ctx context.Context, e fivetuple.Endpoint, options sockopt.Settings, report func([]sockopt.Granted)) (o openSocket, err error) {
	o.endpoint = e
	if e.Network.IsDatagram() {
		lc := datagram.ListenConfig{Options: options, Mode: c.Mode, Owner: c.Owner, Interface: c.Interface, Sources: c.Sources, Report: report}
		o.packets, err = lc.Listen(ctx, e)
	} else {
		lc := stream.ListenConfig{Options: options, Mode: c.Mode, Owner: c.Owner, Report: report}
		o.listener, err = lc.Listen(ctx, e)
	}
	return o, err
}

package service

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"

	"github.com/fivetuple/fivetuple"
	"github.com/fivetuple/fivetuple/datagram"
	"github.com/fivetuple/fivetuple/sockopt"
	"github.com/fivetuple/fivetuple/stream"
	"github.com/fivetuple/fivetuple/table"
)

// Shared are the sockets of a service that several processes serve. On an IP
// port each has one of its own, among which the kernel spreads the clients
// (SO_REUSEPORT); other sockets are the same for all.
type Shared struct {
	config  Config
	sockets [][]openSocket // by endpoint; of one that all share there is only one
	workers int
}

// OpenShared opens the sockets of a configuration for so many processes.
func OpenShared(ctx context.Context, c Config, workers int) (*Shared, error) {
	if err := c.Check(); err != nil {
		return nil, err
	}
	s := &Shared{config: c, workers: workers}
	for i, e := range c.Endpoints {
		e, err := e.ResolveService(ctx, net.DefaultResolver)
		if err == nil {
			s.config.Endpoints[i] = e
			err = s.open(ctx, e)
		}
		if err != nil {
			return nil, errors.Join(table.ExplainInUse(ctx, err, e), s.Close())
		}
	}
	return s, nil
}

func (s *Shared) open(ctx context.Context, e fivetuple.Endpoint) (err error) {
	c, n := &s.config, 1
	if e.Network.IsIP() {
		n = s.workers
	}
	var opened []openSocket
	if e.Network.IsDatagram() {
		lc := datagram.ListenConfig{Options: c.Options, Mode: c.Mode, Owner: c.Owner, Interface: c.Interface, Sources: c.Sources, Report: c.Report}
		opened, err = packetShards(ctx, lc, e, n)
	} else {
		lc := stream.ListenConfig{Options: c.Options, Mode: c.Mode, Owner: c.Owner, Report: c.Report}
		opened, err = shards(ctx, lc, e, n)
	}
	s.sockets = append(s.sockets, opened)
	return err
}

// packetShards opens n datagram sockets on one port.
func packetShards(ctx context.Context, lc datagram.ListenConfig, e fivetuple.Endpoint, n int) (opened []openSocket, err error) {
	first, err := lc.Listen(ctx, e)
	if err != nil {
		return nil, err
	}
	if n == 1 {
		return []openSocket{{endpoint: e, packets: first}}, nil
	}
	asked := e
	e = e.WithPort(fivetuple.AddressOf(first.LocalAddr()).AddrPort.Port())
	first.Close() // nobody else is there: with the option that would not be seen
	reuse, err := sockopt.Parse("reuseport")
	if err != nil {
		return nil, err
	}
	lc.Options = append(sockopt.Settings{reuse}, lc.Options...)
	for range n {
		conn, err := lc.Listen(ctx, e)
		if err != nil {
			return opened, err
		}
		opened = append(opened, openSocket{endpoint: asked, packets: conn})
		lc.Report = nil // the others are the same
	}
	return opened, nil
}

// Files are what each of the processes serves: one for each endpoint, in their order.
func (s *Shared) Files() (files [][]*os.File, err error) {
	for n := range s.workers {
		var own []*os.File
		for _, sockets := range s.sockets {
			f, err := sockets[n%len(sockets)].file()
			if err != nil {
				return nil, fmt.Errorf("share %s: %w", sockets[0].endpoint, err)
			}
			own = append(own, f)
		}
		files = append(files, own)
	}
	return files, nil
}

// Addresses are where the service listens, as [Service.Addresses] tells.
func (s *Shared) Addresses() (all []string) {
	for _, sockets := range s.sockets {
		all = append(all, sockets[0].address())
	}
	return all
}

// Close closes the sockets here, and removes the files of Unix sockets.
func (s *Shared) Close() error {
	for _, sockets := range s.sockets {
		closeAll(sockets)
	}
	return nil
}

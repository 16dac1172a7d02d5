package service

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"

	"github.com/fivetuple/fivetuple/table"
)

// Shared are the sockets of a service that several processes serve. On an IP
// port each has one of its own, among which the kernel spreads the clients
// (SO_REUSEPORT); other sockets are the same for all.
type Shared struct {
	sockets [][]openSocket // by endpoint; of one that all share there is only one
	workers int
}

// OpenShared opens the sockets of a configuration for so many processes.
func OpenShared(ctx context.Context, c Config, workers int) (*Shared, error) {
	if err := c.Check(); err != nil {
		return nil, err
	}
	s := &Shared{workers: workers}
	for _, e := range c.Endpoints {
		e, err := e.ResolveService(ctx, net.DefaultResolver)
		if err == nil {
			n := 1
			if e.Network.IsIP() {
				n = workers
			}
			var opened []openSocket
			opened, err = c.openShards(ctx, e, n)
			s.sockets = append(s.sockets, opened)
		}
		if err != nil {
			return nil, errors.Join(table.ExplainInUse(ctx, err, e), s.Close())
		}
	}
	return s, nil
}

// Files are what each of the processes serves: one for each endpoint, in their order.
func (s *Shared) Files() (files [][]*os.File, err error) {
	for n := range s.workers {
		var own []*os.File
		for _, sockets := range s.sockets {
			f, err := sockets[n%len(sockets)].file()
			if err != nil {
				closeAllFiles(append(files, own))
				return nil, fmt.Errorf("share %s: %w", sockets[0].endpoint, err)
			}
			own = append(own, f)
		}
		files = append(files, own)
	}
	return files, nil
}

func closeAllFiles(files [][]*os.File) {
	for _, own := range files {
		for _, f := range own {
			f.Close()
		}
	}
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

package stream

import (
	"errors"
	"fmt"
	"slices"
	"syscall"

	"github.com/fivetuple/fivetuple/ancillary"
	"github.com/fivetuple/fivetuple/stats"
)

// PeerFilter says which processes may connect to a Unix socket, by the
// effective user and group they had when they connected (SO_PEERCRED, unix(7)).
// One that is in either list passes; if both are empty all do. Supplementary
// groups do not count.
type PeerFilter struct {
	UIDs, GIDs []uint32
}

// Allows says whether a process may connect. A nil filter allows all.
func (f *PeerFilter) Allows(c ancillary.Credentials) bool {
	return !f.filters() || slices.Contains(f.UIDs, c.UID) || slices.Contains(f.GIDs, c.GID)
}

func (f *PeerFilter) filters() bool { return f != nil && len(f.UIDs)+len(f.GIDs) > 0 }

// Peer is the process that made a connection to a Unix socket, which it may
// have handed on since; false for other sockets and where the kernel does not tell.
func (c *Conn) Peer() (ancillary.Credentials, bool) {
	if c.peer == nil {
		return ancillary.Credentials{}, false
	}
	return *c.peer, true
}

// peerOf is c.peer as events have it.
func (c *Conn) peerOf() *stats.Peer {
	if c.peer == nil {
		return nil
	}
	p := stats.Peer(*c.peer)
	return &p
}

// identify asks the kernel who is at the other end of a Unix socket.
func (c *Conn) identify() error {
	if !c.tuple.Protocol.IsUnix() {
		return nil
	}
	var peer ancillary.Credentials
	err := errors.ErrUnsupported
	if sc, ok := c.raw.(syscall.Conn); ok {
		if peer, err = ancillary.PeerCredentials(sc); err == nil {
			c.peer = &peer
		}
	}
	switch filter := c.server.Peers; {
	case !filter.filters():
		return nil
	case err != nil:
		return fmt.Errorf("peer not allowed: %w", err)
	case !filter.Allows(peer):
		return fmt.Errorf("peer not allowed: %s", peer)
	}
	return nil
}

package datagram

import (
	"fmt"
	"net/netip"
	"time"

	"github.com/fivetuple/fivetuple/internal/acl"
	"github.com/fivetuple/fivetuple/stats"
)

// Limits bound what a server takes on. The sources of datagrams can be forged,
// and one host has many ports: a flood from ever new ones uses up NewPeers. It
// does not lock out a peer that keeps sending. Newcomers are still served then,
// unless PeerRate is set or the handler wants to know its peers, as [Chat] does:
// there a flood locks them out while it lasts.
type Limits struct {
	// MaxPeers is how many peers are tracked at once; a further one displaces
	// the one not heard from for the longest. Default 4096.
	MaxPeers int
	// PeerTimeout is how long a peer is one without being heard from. Default 60 s.
	PeerTimeout time.Duration
	// NewPeers is how many peers become tracked in a second. Above it
	// datagrams from elsewhere are served but not tracked, and their number is
	// recorded once a second. Default 256.
	NewPeers int
	// PeerRate is how many datagrams are served in a second from one peer; the
	// rest is dropped, and so is, once it is set, what comes from those that
	// are not tracked. It also bounds the loop that a forged source starts between
	// answering servers that do not know of each other. Default 0, no limit.
	PeerRate int
	// Allow, if not empty, lists the only sources that are served; Deny lists
	// sources that are not. The longest matching prefix of both decides, Deny
	// on a tie.
	Allow, Deny []netip.Prefix
}

// Defaults of Limits.
const (
	DefaultMaxPeers    = 4096
	DefaultPeerTimeout = time.Minute
	DefaultNewPeers    = 256
)

func (l *Limits) maxPeers() int              { return orDefault(l.MaxPeers, DefaultMaxPeers) }
func (l *Limits) peerTimeout() time.Duration { return orDefault(l.PeerTimeout, DefaultPeerTimeout) }
func (l *Limits) newPeers() int              { return orDefault(l.NewPeers, DefaultNewPeers) }

func orDefault[T int | time.Duration](v, otherwise T) T {
	if v > 0 {
		return v
	}
	return otherwise
}

// SetLimits changes the limits from now on.
func (s *Server) SetLimits(l Limits) { s.limits.Store(&l) }

// admit says why a datagram is not served, "" if it is, and counts it for its
// peer, which is a new one if its sender was not known.
func (s *Server) admit(p *Packet, now time.Time) (refused string) {
	l := s.limits.Load()
	from := p.From.AddrPort
	switch {
	case from.IsValid() && from.Port() == 0:
		return "port 0 cannot be answered"
	case !acl.List{Allow: l.Allow, Deny: l.Deny}.Allows(from.Addr()):
		return "source not allowed"
	}
	tuple := p.Tuple()
	s.mu.Lock()
	defer s.mu.Unlock()
	known := s.peers.byTuple[tuple]
	isNew := known == nil && s.newPeers.Take(now, l.newPeers())
	if isNew {
		for len(s.peers.byTuple) >= l.maxPeers() {
			oldest := s.peers.oldest()
			s.peers.drop(oldest)
			s.recordGone(oldest, causeEvicted)
		}
		known = s.peers.add(s.nextID(), tuple, now)
		s.record(stats.Event{Time: now, Kind: stats.Accept, Tuple: tuple, Conn: known.id})
	}
	switch {
	case known == nil && l.PeerRate > 0:
		refused = "peer not tracked"
	case known != nil && l.PeerRate > 0 && !known.rate.Take(now, l.PeerRate):
		refused = fmt.Sprintf("more than %d datagrams in a second", l.PeerRate)
	}
	if known != nil {
		s.peers.heard(known, p, now)
	}
	p.peer, p.isNew = known, isNew
	return refused
}

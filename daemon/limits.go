package daemon

import (
	"math"
	"net/netip"
	"time"

	"github.com/fivetuple/fivetuple/relay"
	"github.com/fivetuple/fivetuple/stream"
)

// limits fills in the defaults. Those of UDP are its engine's.
//
// Without a limit of its own a service has as many connections as the process may
// have descriptors, less some for the rest of its work, and three quarters of them
// for one source, so that it cannot lock the others out. One that is relayed has
// two, and a fifth of all is left for pipes.
func (s *Service) limits() stream.Limits {
	l := s.limitsGiven()
	if s.Listen.Network.IsDatagram() {
		return l
	}
	idle, descriptors := 10*time.Minute, descriptorLimit()
	most := descriptors - min(64, descriptors/4)
	if s.Kind == kindForward {
		idle, most = relay.DefaultStreamIdle, most*2/5
	}
	most = max(most, 1)
	if l.MaxConns == 0 && !s.Limits.Connections.isOff() {
		l.MaxConns = most
		if l.MaxPerSource == 0 && !s.Limits.PerSource.isOff() {
			l.MaxPerSource = max(most*3/4, 1)
		}
	}
	if l.IdleTimeout == 0 && !s.Limits.Idle.isOff() {
		l.IdleTimeout = idle
	}
	return l
}

// limitsGiven are those without defaults.
func (s *Service) limitsGiven() stream.Limits {
	if s.Bounds != nil {
		return *s.Bounds
	}
	l := stream.Limits{
		MaxConns: s.Limits.Connections.bound(), MaxPerSource: s.Limits.PerSource.bound(), AcceptRate: float64(s.Limits.AcceptRate.bound()),
		IdleTimeout: s.Limits.Idle.Duration, FirstByteTimeout: s.Limits.FirstByte.Duration, WriteQueue: int(min(s.Limits.WriteQueue.Bytes, math.MaxInt32)),
		Allow: prefixes(s.Allow), Deny: prefixes(s.Deny),
	}
	if s.Limits.Idle.isOff() {
		l.IdleTimeout = 0
	}
	if s.Limits.FirstByte.isOff() {
		l.FirstByteTimeout = 0
	}
	return l
}

// bound is the count, 0 if it is off.
func (c Count) bound() int {
	if c.isOff() {
		return 0
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

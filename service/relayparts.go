package service

import (
	"context"
	"os"

	"github.com/fivetuple/fivetuple"
	"github.com/fivetuple/fivetuple/datagram"
	"github.com/fivetuple/fivetuple/relay"
	"github.com/fivetuple/fivetuple/relay/sessions"
	"github.com/fivetuple/fivetuple/relay/splice"
)

// assignRelayed gives each socket to the engine that relays what comes to it.
func (s *Service) assignRelayed(sockets []openSocket) ([]part, error) {
	var spliced, plain, secure, packets []openSocket
	for _, o := range sockets {
		switch n := o.endpoint.Network; {
		case o.packets != nil:
			packets = append(packets, o)
		case n == fivetuple.TLS:
			secure = append(secure, o)
		case s.config.Engine != Goroutines && s.config.Forward.Splices(n):
			spliced = append(spliced, o)
		default:
			plain = append(plain, o)
		}
	}
	var parts []part
	if len(spliced) > 0 {
		parts = append(parts, s.newSplicePart(spliced))
	}
	if len(plain) > 0 {
		p, err := s.newStreamPart(plain, nil)
		if err != nil {
			return nil, err
		}
		parts = append(parts, p)
	}
	if len(secure) > 0 {
		p, err := s.newStreamPart(secure, s.config.TLS)
		if err != nil {
			return nil, err
		}
		parts = append(parts, p)
	}
	if len(packets) > 0 {
		parts = append(parts, s.newSessionsPart(packets))
	}
	return parts, nil
}

type splicePart struct {
	socketSet
	server *splice.Server
}

func (s *Service) newSplicePart(sockets []openSocket) *splicePart {
	c := &s.config
	return &splicePart{sockets, &splice.Server{
		Service: c.Name, Route: s.relay.Streams(), Sink: s.sink, Limits: c.Limits, IDs: s.ids, Options: c.Options, Peers: c.Peers,
		Proxies: c.Proxies, Loops: c.loops(),
	}}
}

func (p *splicePart) serve() error                       { return p.server.Serve(p.listeners()...) }
func (p *splicePart) shutdown(ctx context.Context) error { return p.server.Shutdown(ctx) }
func (p *splicePart) setLimits(c *Config)                { p.server.SetLimits(c.Limits) }
func (p *splicePart) setRoute(r *relay.Relay)            { p.server.SetRoute(r.Streams()) }

func (p *splicePart) freeze(give giveFunc) error {
	return p.server.HandOff(func(files []*os.File, state []byte) error { return give(itemPair, files, state) })
}
func (p *splicePart) resume() { p.server.Resume() }

func (p *splicePart) release() {
	p.disown() // before Serve ends, which closes the listeners
	p.server.Release()
	p.close()
}

func (p *splicePart) drop()                                      { p.server.Release() }
func (p *splicePart) takes() string                              { return itemPair }
func (p *splicePart) adopt(files []*os.File, state []byte) error { return p.server.Adopt(files, state) }

type sessionsPart struct {
	socketSet
	server *sessions.Server
}

func (s *Service) newSessionsPart(sockets []openSocket) *sessionsPart {
	c := &s.config
	return &sessionsPart{sockets, &sessions.Server{
		Service: c.Name, Route: s.relay.Datagrams(), Sink: s.sink, Limits: c.sessionLimits(), IDs: s.ids,
	}}
}

func (c *Config) sessionLimits() sessions.Limits {
	l := c.Limits
	return sessions.Limits{
		MaxSessions: l.MaxConns, MaxPerSource: l.MaxPerSource, SessionRate: l.AcceptRate, FirstReply: c.Forward.FirstReply, Idle: c.Forward.Idle,
		Allow: l.Allow, Deny: l.Deny,
	}
}

func (p *sessionsPart) serve() error {
	conns := make([]*datagram.Conn, len(p.socketSet))
	for i, o := range p.socketSet {
		conns[i] = o.packets
	}
	return p.server.Serve(conns...)
}
func (p *sessionsPart) shutdown(ctx context.Context) error { return p.server.Shutdown(ctx) }
func (p *sessionsPart) setLimits(c *Config)                { p.server.SetLimits(c.sessionLimits()) }
func (p *sessionsPart) setRoute(r *relay.Relay)            { p.server.SetRoute(r.Datagrams()) }

func (p *sessionsPart) freeze(give giveFunc) error {
	return p.server.HandOff(func(files []*os.File, state []byte) error { return give(itemSession, files, state) })
}
func (p *sessionsPart) resume() { p.server.Resume() }

func (p *sessionsPart) release() {
	p.disown()
	p.server.Release()
	p.close()
}

func (p *sessionsPart) drop()         { p.server.Release() }
func (p *sessionsPart) takes() string { return itemSession }
func (p *sessionsPart) adopt(files []*os.File, state []byte) error {
	return p.server.Adopt(files, state)
}

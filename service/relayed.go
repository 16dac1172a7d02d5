package service

import (
	"github.com/fivetuple/fivetuple/relay/sessions"
	"github.com/fivetuple/fivetuple/relay/splice"
	"github.com/fivetuple/fivetuple/relay/upstream"
)

// Relayed is what a service of the kind "forward" relays at this moment.
type Relayed struct {
	Service   string                       `json:"service"`
	Listeners []Listener                   `json:"listeners"`
	Upstreams map[string][]upstream.Status `json:"upstreams"` // by the server name that leads to them, "" for all others
	Pairs     []splice.Pair                `json:"pairs"`     // of event loops
	Flows     []splice.Pair                `json:"flows"`     // of goroutines
	Sessions  []sessions.Session           `json:"sessions"`
	Pipes     *splice.Stats                `json:"pipes,omitempty"`     // nil if no event loops relay streams
	Datagrams *sessions.Stats              `json:"datagrams,omitempty"` // nil if there are no sessions
}

// Listener is a place where a service listens, and what serves it.
type Listener struct {
	Endpoint string `json:"endpoint"` // as the configuration names it; one port of a range
	Address  string `json:"address"`
	Sockets  int    `json:"sockets"` // that share the port
	Engine   string `json:"engine"`  // "splice", "sessions" or "goroutines"
}

// Relayed returns what the service relays; it is empty for any other kind.
func (s *Service) Relayed() Relayed {
	r := Relayed{Service: s.config.Name, Pairs: []splice.Pair{}, Flows: []splice.Pair{}, Sessions: []sessions.Session{}}
	if s.relay == nil {
		return r
	}
	r.Upstreams = s.relay.Upstreams()
	r.Flows = append(r.Flows, s.relay.Flows()...)
	for _, p := range s.parts {
		engine := "goroutines"
		switch p := p.(type) {
		case *splicePart:
			engine = "splice"
			stats := p.server.Stats()
			r.Pairs, r.Pipes = append(r.Pairs, p.server.Pairs()...), &stats
		case *sessionsPart:
			engine = "sessions"
			stats := p.server.Stats()
			r.Sessions, r.Datagrams = append(r.Sessions, p.server.Sessions()...), &stats
		}
		r.Listeners = append(r.Listeners, listenersOf(p, engine)...)
	}
	return r
}

// listenersOf counts the sockets of a port together.
func listenersOf(p part, engine string) (all []Listener) {
	for _, o := range p.sockets() {
		address := o.local().String()
		if n := len(all); n > 0 && all[n-1].Address == address {
			all[n-1].Sockets++
			continue
		}
		all = append(all, Listener{Endpoint: o.endpoint.String(), Address: address, Sockets: 1, Engine: engine})
	}
	return all
}

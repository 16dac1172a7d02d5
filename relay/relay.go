// Package relay forwards ports: what comes to one endpoint goes on to one of
// several others.
//
//	r, err := relay.New(relay.Config{Targets: targets}, relay.Options{})
//	srv := &splice.Server{Route: r.Streams()}
//
// A [Relay] is a rule at work. Three engines carry what it rules: event loops with
// splice(2) (package relay/splice) for plain TCP and Unix streams, event loops
// with batches of datagrams (package relay/sessions) for UDP, and [Relay.ServeConn],
// a goroutine for each direction, for what has to be looked at: TLS that begins or ends
// here, and faults on purpose. Package service puts rules and engines together.
//
// The event loops need Linux; ServeConn works everywhere.
package relay

import (
	"context"
	"crypto/tls"
	"net/netip"
	"time"

	"github.com/fivetuple/fivetuple"
	"github.com/fivetuple/fivetuple/relay/faults"
	"github.com/fivetuple/fivetuple/relay/sessions"
	"github.com/fivetuple/fivetuple/relay/splice"
	"github.com/fivetuple/fivetuple/relay/upstream"
	"github.com/fivetuple/fivetuple/sockopt"
	"github.com/fivetuple/fivetuple/stats"
	"github.com/fivetuple/fivetuple/stream"
)

// Config is a rule: where what comes goes on to. The zero value of a field is
// its default.
type Config struct {
	Targets  []fivetuple.Endpoint // tcp, tls or unix for streams, udp for datagrams
	Policy   upstream.Policy      // how they are chosen
	Check    upstream.Check       // active checks; default none
	MaxFails int                  // failures in a row after which an address is left out for FailFor; default 3, below 0 never
	FailFor  time.Duration        // default 10 s
	// Names are the targets for clients that ask for a name in TLS, which is not
	// decrypted: "a.example", "*.example". All others go to Targets, if there are any.
	Names map[string][]fivetuple.Endpoint
	// Listen is where the rule listens. Of a range of ports, the first belongs to the targets' port.
	Listen fivetuple.Endpoint

	ConnectTimeout time.Duration    // of each address; default 5 s
	HalfClosed     time.Duration    // how long a stream may go on in one direction alone; default 60 s
	ProxyVersion   int              // of the PROXY protocol header that is sent first: 1, 2 or, for none, 0
	Source         netip.AddrPort   // to connect from
	Interface      string           // to connect through
	Transparent    bool             // connect from the client's own address
	Options        sockopt.Settings // of the sockets to targets
	TLS            *tls.Config      // of targets that are tls; nil verifies with the system's roots
	Rate           int64            // bytes per second of a connection in each direction; 0 is no limit
	FirstReply     time.Duration    // how long a UDP session waits for the first reply; default 30 s
	Idle           time.Duration    // how long a UDP session that had one may be silent; default 180 s
	Faults         faults.Config
}

// Options of a Relay: who is told what happens.
type Options struct {
	Service string
	Sink    stats.Sink
}

// Check refuses what does not go together. terminates says that TLS ends here.
func (c *Config) CheckFor(listen fivetuple.Endpoint, terminates bool) error { return nil }

// Splices says whether event loops can carry what comes from a listener on
// a network.
func (c *Config) Splices(listen fivetuple.Network) bool { return false }

// Relay is a rule at work. Make one with New.
type Relay struct{}

// New begins to resolve names and to check targets. It fails only for a rule that cannot work.
func New(c Config, o Options) (*Relay, error) { return &Relay{}, nil }

// Set changes the rule, for connections from now on. Routes are to be asked for again.
func (r *Relay) Set(c Config) error { return nil }

// Close ends checks and lookups.
func (r *Relay) Close() {}

// Streams is the route for a splice.Server.
func (r *Relay) Streams() splice.Route { return splice.Route{} }

// Datagrams is the route for a sessions.Server.
func (r *Relay) Datagrams() sessions.Route { return sessions.Route{} }

// ServeConn relays one connection, and returns when both directions have ended. It implements stream.Handler.
func (r *Relay) ServeConn(ctx context.Context, c *stream.Conn) error { return nil }

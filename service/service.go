// Package service runs a built-in service on any number of endpoints: it opens
// their sockets, or takes them from systemd, a parent or a predecessor, chooses
// the engine that serves them, and hands them over to a successor.
//
//	s, err := service.Start(ctx, service.Config{
//		Kind:      "echo",
//		Endpoints: []fivetuple.Endpoint{fivetuple.MustParseEndpoint("8080"), fivetuple.MustParseEndpoint("udp://8080")},
//	})
//	...
//	err = s.Shutdown(ctx)
//
// The kind "forward" relays what comes: [Config.Forward] is its rule.
//
// It stands on packages stream, stream/loop, datagram and relay, and works where
// they do. Event loops, several sockets on one port and hand-over need Linux.
package service

import (
	"cmp"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/netip"
	"os"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/fivetuple/fivetuple"
	"github.com/fivetuple/fivetuple/datagram"
	"github.com/fivetuple/fivetuple/relay"
	"github.com/fivetuple/fivetuple/sockopt"
	"github.com/fivetuple/fivetuple/stats"
	"github.com/fivetuple/fivetuple/stream"
	"github.com/fivetuple/fivetuple/stream/loop"
)

// Config says what to serve, and where.
type Config struct {
	Kind      string               // one of Kinds, or "forward"; not used where Handler is set
	Path      string               // the file of "file", the directory of "http"
	Command   []string             // of "exec": a program and its arguments
	Forward   *relay.Config        // the rule of "forward"; its Listen may be left out if there is one endpoint
	Endpoints []fivetuple.Endpoint // to listen on; of "forward" one may be a range of ports, which goes alone
	Sockets   []Socket             // open already, beside those of Endpoints
	// Bind, if not nil, is called for each endpoint, one port of a range after the
	// other, and calls bind with the place to listen on, again if another may do.
	// It can resolve names and have a port leased; its error is the service's.
	Bind func(ctx context.Context, e fivetuple.Endpoint, bind func(context.Context, fivetuple.Endpoint) error) error

	Engine    Engine
	Loops     int            // event loops, each with a socket of its own on a TCP port; default one for each processor
	OneSocket bool           // the event loops share a single socket on each port
	Handler   stream.Handler // a kind of the caller's own, for streams

	Name string     // in events, and for a successor
	Sink stats.Sink // where events go; nil discards them
	// IDs is where the ids of connections come from: services that follow each
	// other under one Name share it. nil counts from 1.
	IDs       *atomic.Uint64
	Limits    stream.Limits             // of datagrams, too, where they apply: MaxConns of peers or sessions, AcceptRate of new sessions
	PeerRate  int                       // datagrams served in a second from one peer; 0 is no limit. Not of "forward"
	Suspects  func(netip.AddrPort) bool // of datagrams: see datagram.Server
	Options   sockopt.Settings
	Mode      fs.FileMode        // of Unix sockets; default 0600
	Owner     string             // of Unix sockets: "user", "user:group" or ":group"
	Peers     *stream.PeerFilter // who may connect to Unix sockets
	TLS       *tls.Config        // of tls:// endpoints
	Proxies   []netip.Prefix     // sources that must speak the PROXY protocol first
	Interface string             // where multicast groups are joined
	Sources   []netip.Addr       // the only senders to multicast groups that are heard
	Stderr    io.Writer          // of commands; nil discards it
	Report    func([]sockopt.Granted)
}

// kindForward is the kind that needs a rule.
const kindForward = "forward"

// Kinds lists the built-in services that need no more than a path or a command.
func Kinds() []string { return append(stream.Kinds(), "file", "exec", "http") }

// Service is a running service.
type Service struct {
	config  Config
	sink    stats.Sink // of the engines
	parts   []part
	relay   *relay.Relay // of "forward"
	ids     *atomic.Uint64
	served  sync.WaitGroup
	quiet   chan struct{} // closed once nothing is served any more
	closing atomic.Bool   // that a part ends is no failure
	failure chan error    // the first of a part that ended by itself

	mu sync.Mutex // held while the rule or limits change
}

// part is one engine with its sockets.
type part interface {
	sockets() []openSocket
	serve() error
	shutdown(ctx context.Context) error
	close() // instead of serve: closes the sockets
	setLimits(c *Config)

	// For handing over. After freeze, which gives the connections that can be
	// given, follows resume or release; release closes what is a successor's now.
	freeze(give giveFunc) error
	resume()
	release()
	drained(ctx context.Context) error
}

// giveFunc gives a connection to a successor: its files and what is known of it.
type giveFunc func(kind string, files []*os.File, state []byte) error

// Start opens the sockets and serves them. Nothing is served if one of them
// cannot be opened.
func Start(ctx context.Context, c Config) (*Service, error) {
	s, err := open(ctx, c)
	if err != nil {
		return nil, err
	}
	s.start()
	return s, nil
}

func open(ctx context.Context, c Config) (*Service, error) {
	defer closeFiles(c.Sockets) // the service has copies
	if err := c.Check(); err != nil {
		return nil, err
	}
	if len(c.Path)+len(c.Command) > 0 {
		if _, err := c.handler(); err != nil { // said before a socket is open
			return nil, err
		}
	}
	s := &Service{config: c.expanded(), ids: c.IDs, quiet: make(chan struct{}), failure: make(chan error, 1)}
	if s.ids == nil {
		s.ids = new(atomic.Uint64)
	}
	if c.Sink != nil {
		s.sink = &portEvents{next: c.Sink}
	}
	sockets, err := s.openAll(ctx)
	if err == nil {
		err = s.newRelay()
	}
	if err == nil {
		s.parts, err = s.assign(sockets)
	}
	if err != nil {
		s.closeRelay()
		closeAll(sockets)
		return nil, err
	}
	s.unwatch()
	return s, nil
}

func (s *Service) start() {
	for _, p := range s.parts {
		s.served.Go(func() {
			err := p.serve()
			if err != nil && !s.closing.Load() && !errors.Is(err, stream.ErrServerClosed) && !errors.Is(err, datagram.ErrServerClosed) {
				select {
				case s.failure <- err:
				default:
				}
			}
		})
	}
	go func() {
		s.served.Wait()
		close(s.quiet)
	}()
}

// Quiet is closed when the service does not listen any more, early in Shutdown:
// its ports are free then.
func (s *Service) Quiet() <-chan struct{} { return s.quiet }

// SetLimits changes the limits, as the engines do.
func (s *Service) SetLimits(l stream.Limits) {
	s.change(func(c *Config) { c.Limits = l })
}

// SetPeerRate changes how many datagrams are served in a second from one peer.
func (s *Service) SetPeerRate(n int) {
	s.change(func(c *Config) { c.PeerRate = n })
}

func (s *Service) change(set func(c *Config)) {
	s.mu.Lock()
	defer s.mu.Unlock()
	set(&s.config)
	for _, p := range s.parts {
		p.setLimits(&s.config)
	}
}

// Streams are the connections of a service, for whoever looks after them.
type Streams interface {
	Conns() []uint64 // their ids, in order
	Send(id uint64, b []byte) error
	Broadcast(b []byte) int // says how many it was sent to
	Cut(id uint64) error    // resets one
}

// Streams are the connections of the first engine that serves streams; nil if none
// does, and of "forward".
func (s *Service) Streams() Streams {
	for _, p := range s.parts {
		switch p := p.(type) {
		case *loopPart:
			return p.server
		case *streamPart:
			if s.relay == nil {
				return p.server
			}
		}
	}
	return nil
}

// Addresses are where the service listens, as people write them:
// "tcp 127.0.0.1:8080", "unix /run/a.sock".
func (s *Service) Addresses() []string {
	var all []string
	for _, p := range s.parts {
		for _, o := range p.sockets() {
			if a := o.address(); len(all) == 0 || all[len(all)-1] != a { // shards
				all = append(all, a)
			}
		}
	}
	return all
}

func (s *Service) recordError(err error) {
	if s.config.Sink != nil {
		s.config.Sink.Record(stats.Event{Time: time.Now(), Kind: stats.Error, Service: s.config.Name, Err: err.Error()})
	}
}

// Failed gives the error by which a part of the service ended without Shutdown.
func (s *Service) Failed() <-chan error { return s.failure }

// StopListening closes the listening sockets and leaves the connections.
func (s *Service) StopListening() {
	s.closing.Store(true)
	for _, p := range s.parts {
		p.close()
	}
}

// Shutdown stops listening and lets connections come to rest; those that are
// busy when ctx ends are reset, and the error is ctx's.
func (s *Service) Shutdown(ctx context.Context) error {
	errs := make([]error, len(s.parts))
	var wg sync.WaitGroup
	for i, p := range s.parts {
		wg.Go(func() { errs[i] = p.shutdown(ctx) })
	}
	wg.Wait()
	s.served.Wait()
	s.closeRelay()
	return cmp.Or(errs...)
}

// Engine is what drives connections.
type Engine uint8

// The engines. Auto takes event loops where the kind and the socket allow it.
const (
	Auto       Engine = iota
	Poll              // event loops: package stream/loop
	Goroutines        // a goroutine for each connection: package stream
)

var engineNames = [...]string{Auto: "auto", Poll: "poll", Goroutines: "goroutines"}

// String returns "auto", "poll" or "goroutines".
func (e Engine) String() string { return engineNames[e] }

// Set parses the name of an engine.
func (e *Engine) Set(s string) error {
	i := slices.Index(engineNames[:], s)
	if i < 0 {
		return fmt.Errorf("want one of %s", strings.Join(engineNames[:], ", "))
	}
	*e = Engine(i)
	return nil
}

// Type implements pflag.Value.
func (e *Engine) Type() string { return "engine" }

// polls says whether event loops can serve the kind on a network.
func (c *Config) polls(n fivetuple.Network) bool {
	if c.forwards() {
		return c.Forward.Splices(n)
	}
	return c.Handler == nil && runtime.GOOS == "linux" && slices.Contains(loop.Kinds(), c.Kind) && len(c.Proxies) == 0 &&
		(n.Protocol() == fivetuple.TCP && n != fivetuple.TLS || n == fivetuple.Unix)
}

// engine is what serves the streams of the service: the same for all of them,
// so that the clients of a chat hear each other.
func (c *Config) engine(networks []fivetuple.Network) (Engine, error) {
	if c.Engine == Goroutines {
		return Goroutines, nil
	}
	for _, n := range networks {
		switch {
		case c.polls(n):
		case c.Engine == Auto:
			return Goroutines, nil
		case c.forwards():
			return 0, errors.New("the engine poll relays plain tcp and unix sockets of Linux to such, without faults on purpose: use auto")
		default:
			return 0, fmt.Errorf("the engine poll serves %s on plain tcp and unix sockets of Linux, without the PROXY protocol: use goroutines", strings.Join(loop.Kinds(), ", "))
		}
	}
	return Poll, nil
}

// Check refuses what does not go together, before anything is opened: an error of
// it is one of the configuration.
func (c *Config) Check() error {
	if c.forwards() && c.Forward == nil {
		return errors.New("forward needs a rule: where to")
	}
	if c.Handler == nil && !c.forwards() && !slices.Contains(Kinds(), c.Kind) {
		return fmt.Errorf("unknown kind %q: want one of %s", c.Kind, strings.Join(Kinds(), ", "))
	}
	if len(c.Endpoints)+len(c.Sockets) == 0 {
		return errors.New("no endpoint to listen on")
	}
	for _, e := range c.Endpoints {
		if err := c.checkEndpoint(e); err != nil {
			return fmt.Errorf("listen on %s: %w", e, err)
		}
	}
	for _, s := range c.Sockets {
		if err := c.checkEndpoint(s.Endpoint); err != nil {
			return fmt.Errorf("serve %s: %w", s.Endpoint, err)
		}
	}
	var streams []fivetuple.Network
	for _, e := range c.Endpoints {
		if !e.Network.IsDatagram() {
			streams = append(streams, e.Network)
		}
	}
	_, err := c.engine(streams)
	return err
}

func (c *Config) checkEndpoint(e fivetuple.Endpoint) error {
	switch {
	case e.Network == fivetuple.Stdio:
		return errors.New("standard input is no place to listen on")
	case c.forwards():
		return c.checkForward(e)
	case e.Network.IsDatagram() && (c.Handler != nil || !slices.Contains(datagram.Kinds(), c.Kind)):
		return fmt.Errorf("the kind %s needs a stream; datagrams have %s", c.Kind, strings.Join(datagram.Kinds(), ", "))
	case e.Network == fivetuple.TLS && c.TLS == nil:
		return errors.New("TLS needs a certificate")
	case c.Kind == "exec" && c.exposes(e):
		return errors.New("anyone who connects would run the command: list who may (--allow), serve it over TLS, or listen on 127.0.0.1")
	}
	return nil
}

// exposes says whether an endpoint can be reached from other hosts by anyone.
func (c *Config) exposes(e fivetuple.Endpoint) bool {
	if !e.Network.IsIP() || e.Network == fivetuple.TLS || len(c.Limits.Allow) > 0 {
		return false
	}
	a, literal := e.Addr()
	return !(literal && a.IsLoopback() || e.Host == "" || e.Host == "localhost")
}

package service

import (
	"context"
	"crypto/tls"
	"net"
	"os"
	"sync"
	"time"

	"github.com/fivetuple/fivetuple"
	"github.com/fivetuple/fivetuple/datagram"
	"github.com/fivetuple/fivetuple/stream"
	"github.com/fivetuple/fivetuple/stream/loop"
)

// assign gives each socket to the engine that serves it.
func (s *Service) assign(sockets []openSocket) ([]part, error) {
	if s.relay != nil {
		return s.assignRelayed(sockets)
	}
	var plain, secure, packets []openSocket
	var networks []fivetuple.Network
	for _, o := range sockets {
		switch {
		case o.packets != nil:
			packets = append(packets, o)
			continue
		case o.endpoint.Network == fivetuple.TLS:
			secure = append(secure, o)
		default:
			plain = append(plain, o)
		}
		networks = append(networks, o.endpoint.Network)
	}
	engine, err := s.config.engine(networks)
	if err != nil {
		return nil, err
	}
	var parts []part
	if len(plain) > 0 && engine == Poll {
		parts = append(parts, s.newLoopPart(plain))
		plain = nil
	}
	for _, set := range []struct {
		sockets []openSocket
		tls     *tls.Config
	}{{plain, nil}, {secure, s.config.TLS}} {
		if len(set.sockets) == 0 {
			continue
		}
		p, err := s.newStreamPart(set.sockets, set.tls)
		if err != nil {
			return nil, err
		}
		parts = append(parts, p)
	}
	if len(packets) > 0 {
		p, err := s.newDatagramPart(packets)
		if err != nil {
			return nil, err
		}
		parts = append(parts, p)
	}
	return parts, nil
}

// socketSet is what all parts have in common.
type socketSet []openSocket

func (set socketSet) sockets() []openSocket { return set }
func (set socketSet) close()                { closeAll(set) }

// freeze gives no connections: they stay.
func (set socketSet) freeze(giveFunc) error { return nil }
func (set socketSet) resume()               {}

// release closes this process's copies. The file of a Unix socket stays.
func (set socketSet) release() {
	set.disown()
	set.close()
}

func (set socketSet) disown() {
	for _, o := range set {
		o.ownFile(false)
	}
}

func (set socketSet) drained(context.Context) error { return nil }

func (set socketSet) listeners() []net.Listener {
	all := make([]net.Listener, len(set))
	for i, o := range set {
		all[i] = o.listener
	}
	return all
}

// unwatch makes the listeners of event loops theirs alone, where that is possible.
func (s *Service) unwatch() {
	for _, p := range s.parts {
		switch p.(type) {
		case *loopPart, *splicePart:
			all := p.sockets()
			for i := range all {
				if ln, err := stream.Unwatched(all[i].listener); err == nil {
					all[i].listener = ln
				}
			}
		}
	}
}

type loopPart struct {
	socketSet
	server *loop.Server
}

func (s *Service) newLoopPart(sockets []openSocket) *loopPart {
	c := &s.config
	return &loopPart{sockets, &loop.Server{
		Service: c.Name, Kind: c.Kind, Sink: s.sink, Limits: c.Limits, IDs: s.ids, Options: c.Options, Peers: c.Peers, Loops: c.loops(),
	}}
}

func (p *loopPart) serve() error                       { return p.server.Serve(p.listeners()...) }
func (p *loopPart) shutdown(ctx context.Context) error { return p.server.Shutdown(ctx) }
func (p *loopPart) setLimits(c *Config)                { p.server.SetLimits(c.Limits) }

func (p *loopPart) freeze(give giveFunc) error {
	return p.server.HandOff(func(f *os.File, state []byte) error { return give(itemConn, []*os.File{f}, state) })
}
func (p *loopPart) resume() { p.server.Resume() }

func (p *loopPart) drop()         { p.server.Release() }
func (p *loopPart) takes() string { return itemConn }
func (p *loopPart) adopt(files []*os.File, state []byte) error {
	return p.server.Adopt(files[0], state)
}

func (p *loopPart) release() {
	p.disown() // before Serve ends, which closes the listeners
	p.server.Release()
	p.close()
}

type streamPart struct {
	socketSet
	server *stream.Server
}

func (s *Service) newStreamPart(sockets []openSocket, secure *tls.Config) (*streamPart, error) {
	c := &s.config
	var h stream.Handler = s.relay
	if s.relay == nil {
		var err error
		if h, err = c.handler(); err != nil {
			return nil, err
		}
	}
	return &streamPart{sockets, &stream.Server{
		Service: c.Name, Handler: h, Sink: s.sink, Limits: c.Limits, IDs: s.ids, Options: c.Options, Peers: c.Peers, TLS: secure, Proxies: c.Proxies, Patient: c.Forward != nil,
	}}, nil
}

func (c *Config) handler() (stream.Handler, error) {
	switch {
	case c.Handler != nil:
		return c.Handler, nil
	case c.Kind == "file":
		return stream.File(c.Path)
	case c.Kind == "exec":
		return stream.Exec(c.Command, stream.ExecOptions{Stderr: c.Stderr})
	case c.Kind == "http":
		return stream.HTTP(c.Path)
	}
	return stream.NewHandler(c.Kind)
}

func (p *streamPart) serve() error {
	return serveEach(p.socketSet, func(o openSocket) error { return p.server.Serve(o.listener) })
}
func (p *streamPart) shutdown(ctx context.Context) error { return p.server.Shutdown(ctx) }
func (p *streamPart) setLimits(c *Config)                { p.server.SetLimits(c.Limits) }

// drained waits until the last connection has ended.
func (p *streamPart) drained(ctx context.Context) error {
	tick := time.NewTicker(100 * time.Millisecond)
	defer tick.Stop()
	for len(p.server.Conns()) > 0 {
		select {
		case <-tick.C:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	return nil
}

type datagramPart struct {
	socketSet
	server *datagram.Server
}

func (s *Service) newDatagramPart(sockets []openSocket) (*datagramPart, error) {
	c := &s.config
	h, err := datagram.NewHandler(c.Kind)
	if err != nil {
		return nil, err
	}
	return &datagramPart{sockets, &datagram.Server{
		Service: c.Name, Handler: h, Sink: s.sink, IDs: s.ids, Limits: c.datagramLimits(), Suspects: c.Suspects,
	}}, nil
}

func (c *Config) datagramLimits() datagram.Limits {
	return datagram.Limits{MaxPeers: c.Limits.MaxConns, PeerTimeout: c.Limits.IdleTimeout, PeerRate: c.PeerRate, Allow: c.Limits.Allow, Deny: c.Limits.Deny}
}

func (p *datagramPart) serve() error {
	return serveEach(p.socketSet, func(o openSocket) error { return p.server.Serve(o.packets) })
}
func (p *datagramPart) shutdown(ctx context.Context) error { return p.server.Shutdown(ctx) }
func (p *datagramPart) setLimits(c *Config)                { p.server.SetLimits(c.datagramLimits()) }

// serveEach serves all sockets and returns the first error.
func serveEach(sockets []openSocket, serve func(openSocket) error) error {
	errs := make(chan error, len(sockets))
	var wg sync.WaitGroup
	for _, o := range sockets {
		wg.Go(func() { errs <- serve(o) })
	}
	wg.Wait()
	return <-errs
}

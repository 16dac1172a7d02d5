package service

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/fivetuple/fivetuple"
	"github.com/fivetuple/fivetuple/handoff"
)

// The kinds of items that are handed over.
const (
	itemService = "service" // first: what the sockets are for
	itemSocket  = "socket"  // a listening or bound socket
	itemConn    = "connection"
)

// about is the state of itemService.
type about struct {
	Kind   string `json:"kind"`
	Path   string `json:"path,omitempty"`
	LastID uint64 `json:"last_id"` // connection ids go on from there
}

// commitTimeout bounds the time in which a successor takes over, while nothing
// is served.
const commitTimeout = 10 * time.Second

// Control lets a successor take over a service.
type Control struct {
	service  *Service
	listener *handoff.Listener
	cancel   context.CancelFunc
	ended    chan struct{}
	over     chan struct{} // closed once a successor has the service
}

// Succeed starts a service like [Start]. If another process of the same user
// serves under the control socket at path, it takes over its sockets and, where
// event loops serve them, its connections; those of other engines stay with
// the predecessor until they end. It then waits at path for its own successor.
//
// The predecessor must serve the same kind, on no other endpoints than these. The
// Control, which is to be closed before Shutdown, is nil if what was taken over is
// served but the control socket cannot be had; an event tells why.
func Succeed(ctx context.Context, c Config, path string) (*Service, *Control, error) {
	taker, err := handoff.Take(ctx, path)
	if errors.Is(err, handoff.ErrNobody) {
		return first(ctx, c, path)
	}
	if err != nil {
		return nil, nil, err
	}
	defer taker.Close()
	s, err := succeed(ctx, c, taker)
	if err != nil {
		return nil, nil, fmt.Errorf("take over by %s: %w", path, err)
	}
	s.start()
	ln, err := taker.Listener()
	if err != nil { // what it took over is nobody else's any more
		s.recordError(fmt.Errorf("no successor can take over: %w", err))
		return s, nil, nil
	}
	return s, s.control(ln), nil
}

// first starts a service that has no predecessor.
func first(ctx context.Context, c Config, path string) (*Service, *Control, error) {
	ln, err := handoff.Listen(path)
	if err != nil {
		return nil, nil, err
	}
	s, err := Start(ctx, c)
	if err != nil {
		return nil, nil, errors.Join(err, ln.Close())
	}
	return s, s.control(ln), nil
}

// succeed takes everything that the predecessor has, which lets go of it.
func succeed(ctx context.Context, c Config, taker *handoff.Taker) (*Service, error) {
	var was about
	var conns []handoff.Item
	defer func() {
		for _, item := range conns {
			item.File.Close()
		}
	}()
	for {
		item, err := taker.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err == nil {
			err = c.take(item, &was, &conns)
		}
		if err != nil {
			closeFiles(c.Sockets)
			return nil, err
		}
	}
	var err error
	if c.Endpoints, err = without(c.Endpoints, c.Sockets); err != nil {
		closeFiles(c.Sockets)
		return nil, err
	}
	s, err := open(ctx, c)
	if err != nil {
		return nil, err
	}
	s.ids.Store(was.LastID)
	if err = s.adopt(conns); err == nil {
		err = taker.Acknowledge()
	}
	if err != nil {
		s.abort()
		return nil, err
	}
	s.ownFiles()
	return s, nil
}

// take sorts one item that the predecessor gave.
func (c *Config) take(item handoff.Item, was *about, conns *[]handoff.Item) error {
	switch item.Kind {
	case itemService:
		if err := json.Unmarshal(item.State, was); err != nil {
			return err
		}
		if was.Kind != c.Kind || was.Path != c.Path {
			return fmt.Errorf("the running process serves %s, this one would serve %s", strings.TrimSpace(was.Kind+" "+was.Path), strings.TrimSpace(c.Kind+" "+c.Path))
		}
	case itemSocket:
		e, err := fivetuple.ParseEndpoint(item.Name)
		if err != nil {
			return errors.Join(err, item.File.Close())
		}
		c.Sockets = append(slices.Clip(c.Sockets), Socket{e, item.File})
	case itemConn:
		*conns = append(*conns, item)
	default:
		return fmt.Errorf("the running process gives a %q, which this version does not know", item.Kind)
	}
	return nil
}

// without leaves out the endpoints that there are sockets of already. A socket
// without its endpoint is an error: it would be lost.
func without(endpoints []fivetuple.Endpoint, sockets []Socket) ([]fivetuple.Endpoint, error) {
	for _, s := range sockets {
		if !slices.Contains(endpoints, s.Endpoint) {
			return nil, fmt.Errorf("the running process listens on %s, too: name it here, or stop that process first", s.Endpoint)
		}
	}
	return slices.DeleteFunc(slices.Clone(endpoints), func(e fivetuple.Endpoint) bool {
		return slices.ContainsFunc(sockets, func(s Socket) bool { return s.Endpoint == e })
	}), nil
}

func closeFiles(sockets []Socket) {
	for _, s := range sockets {
		s.File.Close()
	}
}

// adopt gives the connections to the event loops.
func (s *Service) adopt(conns []handoff.Item) error {
	for _, p := range s.parts {
		if l, ok := p.(*loopPart); ok {
			for _, item := range conns {
				err := l.server.Adopt(item.File, item.State)
				item.File.Close() // it has a duplicate
				if err != nil {
					return err
				}
			}
			return nil
		}
	}
	if len(conns) > 0 {
		return fmt.Errorf("%d connections are served by event loops, which this process would not use: give it the same flags", len(conns))
	}
	return nil
}

// abort ends a service that was never started. Nothing of what it was given is
// harmed: the predecessor still has it, and owns the files of its Unix sockets.
func (s *Service) abort() {
	for _, p := range s.parts {
		if l, ok := p.(*loopPart); ok {
			l.server.Release()
		}
		p.close()
	}
}

func (s *Service) control(ln *handoff.Listener) *Control {
	ctx, cancel := context.WithCancel(context.Background())
	c := &Control{service: s, listener: ln, cancel: cancel, ended: make(chan struct{}), over: make(chan struct{})}
	go c.wait(ctx)
	return c
}

// HandedOver is closed once a successor has the service. Connections that stayed
// here go on: see [Service.Drain]. A nil Control is never handed over.
func (c *Control) HandedOver() <-chan struct{} {
	if c == nil {
		return nil
	}
	return c.over
}

// Close takes no successor any more.
func (c *Control) Close() error {
	c.cancel()
	<-c.ended
	return c.listener.Close()
}

// wait lets one successor after the other try.
func (c *Control) wait(ctx context.Context) {
	defer close(c.ended)
	for {
		giver, err := c.listener.Accept(ctx)
		if err != nil {
			return
		}
		err = c.service.handOver(ctx, giver)
		giver.Close()
		if err == nil {
			close(c.over)
			return
		}
		c.service.recordError(fmt.Errorf("hand over: %w", err))
	}
}

// handOver gives everything to a successor, or goes on as before.
func (s *Service) handOver(ctx context.Context, g *handoff.Giver) error {
	ctx, cancel := context.WithTimeout(ctx, commitTimeout)
	defer cancel()
	given := &copies{ctx: ctx, giver: g}
	defer given.close()
	err := s.give(given)
	if err == nil {
		err = g.Commit(ctx)
	}
	if err == nil {
		s.closing.Store(true)
	}
	for _, p := range s.parts {
		if err != nil {
			p.resume()
		} else {
			p.release()
		}
	}
	return err
}

// copies gives duplicates of descriptors, and closes them once they are sent: a
// process may not have so many at once.
type copies struct {
	ctx   context.Context
	giver *handoff.Giver
	files []*os.File
}

func (c *copies) Give(item handoff.Item) error {
	const most = 200
	if item.File != nil {
		c.files = append(c.files, item.File)
	}
	err := c.giver.Give(item)
	if err == nil && len(c.files) >= most {
		err = c.giver.Flush(c.ctx)
		c.close()
	}
	return err
}

func (c *copies) close() {
	for _, f := range c.files {
		f.Close()
	}
	c.files = c.files[:0]
}

func (s *Service) give(g *copies) error {
	for _, p := range s.parts { // connections first: their ids are the last that are given
		if err := p.freeze(func(f *os.File, state []byte) error {
			return g.Give(handoff.Item{Kind: itemConn, File: f, State: state})
		}); err != nil {
			return err
		}
	}
	state, err := json.Marshal(about{Kind: s.config.Kind, Path: s.config.Path, LastID: s.ids.Load()})
	if err != nil {
		return err
	}
	if err := g.Give(handoff.Item{Kind: itemService, State: state}); err != nil {
		return err
	}
	for _, p := range s.parts {
		for _, o := range p.sockets() {
			if err := o.give(g); err != nil {
				return err
			}
		}
	}
	return nil
}

func (o openSocket) give(g *copies) error {
	f, err := o.file()
	if err != nil {
		return fmt.Errorf("hand over %s: %w", o.endpoint, err)
	}
	return g.Give(handoff.Item{Kind: itemSocket, Name: o.endpoint.String(), File: f})
}

// Drain waits, after a hand-over, until the connections that stayed here have
// ended, or ctx has.
func (s *Service) Drain(ctx context.Context) error {
	for _, p := range s.parts {
		if err := p.drained(ctx); err != nil {
			return err
		}
	}
	return nil
}

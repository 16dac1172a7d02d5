package service

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"time"

	"github.com/fivetuple/fivetuple/handoff"
)

// The kinds of items that are handed over. Those of a service come in this order:
// its connections, each followed by its further files, itself, and its sockets.
const (
	itemConn    = "connection" // of package stream/loop
	itemPair    = "pair"       // of package relay/splice
	itemSession = "session"    // of package relay/sessions
	itemFile    = "file"       // one more of the item before
	itemService = "service"    // what the sockets are for
	itemSocket  = "socket"     // a listening or bound socket, which is called as its endpoint
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

// Control lets a successor take over services.
type Control struct {
	services Group
	listener *handoff.Listener
	cancel   context.CancelFunc
	ended    chan struct{}
	over     chan struct{} // closed once a successor has the services
}

// Group is the services of a process, which are handed over together.
type Group struct {
	// HandOver calls give with all services, which stay what they are until it
	// returns: with nil if they are a successor's now, and with an error if this
	// process goes on with them.
	HandOver func(give func([]*Service) error) error
	// Failed is told why a successor did not take over; nil discards it.
	Failed func(error)
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
	t, err := TakeOver(ctx, path)
	if errors.Is(err, handoff.ErrNobody) {
		return first(ctx, c, path)
	}
	if err != nil {
		return nil, nil, err
	}
	defer t.Close()
	s, err := t.Open(ctx, c)
	if err == nil {
		err = t.Commit()
	}
	if err != nil {
		return nil, nil, err
	}
	ln, err := t.Listener()
	if err != nil { // what it took over is nobody else's any more
		s.recordError(fmt.Errorf("no successor can take over: %w", err))
		return s, nil, nil
	}
	return s, s.alone().Await(ln), nil
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
	return s, s.alone().Await(ln), nil
}

// alone is the group of one service.
func (s *Service) alone() Group {
	return Group{
		HandOver: func(give func([]*Service) error) error { return give([]*Service{s}) },
		Failed:   s.recordError,
	}
}

// Await waits for successors.
func (g Group) Await(ln *handoff.Listener) *Control {
	ctx, cancel := context.WithCancel(context.Background())
	c := &Control{services: g, listener: ln, cancel: cancel, ended: make(chan struct{}), over: make(chan struct{})}
	go c.wait(ctx)
	return c
}

// HandedOver is closed once a successor has the services. Connections that stayed
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
		err = c.services.HandOver(func(all []*Service) error { return handOver(ctx, giver, all) })
		giver.Close()
		if err == nil {
			close(c.over)
			return
		}
		if c.services.Failed != nil {
			c.services.Failed(fmt.Errorf("hand over: %w", err))
		}
	}
}

// handOver gives everything to a successor, or goes on as before.
func handOver(ctx context.Context, g *handoff.Giver, all []*Service) error {
	ctx, cancel := context.WithTimeout(ctx, commitTimeout)
	defer cancel()
	given := &copies{ctx: ctx, giver: g}
	defer given.close()
	var err error
	frozen := 0
	for frozen < len(all) && err == nil {
		err = all[frozen].give(given)
		frozen++
	}
	if err == nil {
		err = g.Commit(ctx)
	}
	for _, s := range all[:frozen] {
		s.thaw(err == nil)
	}
	return err
}

// thaw lets go of what a successor has, or goes on with it.
func (s *Service) thaw(gone bool) {
	if gone {
		s.closing.Store(true)
	}
	for _, p := range s.parts {
		if gone {
			p.release()
		} else {
			p.resume()
		}
	}
	if gone {
		s.closeRelay() // the successor checks the targets
	}
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

// give freezes the service, and gives all that it has.
func (s *Service) give(g *copies) error {
	for _, p := range s.parts { // connections first: their ids are the last that are given
		if err := p.freeze(func(kind string, files []*os.File, state []byte) error {
			return s.giveConn(g, kind, files, state)
		}); err != nil {
			return err
		}
	}
	state, err := json.Marshal(about{Kind: s.config.Kind, Path: s.config.Path, LastID: s.ids.Load()})
	if err != nil {
		return err
	}
	if err := g.Give(handoff.Item{Kind: itemService, Name: s.config.Name, State: state}); err != nil {
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

func (s *Service) giveConn(g *copies, kind string, files []*os.File, state []byte) error {
	item := handoff.Item{Kind: kind, Name: s.config.Name, State: state}
	var further []*os.File
	if len(files) > 0 {
		item.File, further = files[0], files[1:]
	}
	err := g.Give(item)
	for _, f := range further {
		if err != nil {
			f.Close() // the others are closed by copies
			continue
		}
		err = g.Give(handoff.Item{Kind: itemFile, File: f})
	}
	return err
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

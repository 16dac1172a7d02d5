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

	"github.com/fivetuple/fivetuple"
	"github.com/fivetuple/fivetuple/handoff"
)

// Takeover is what a predecessor gives: sockets and connections by the name of
// their service. It stands still until Commit or Close, so hurry.
type Takeover struct {
	path   string
	taker  *handoff.Taker
	given  map[string]*legacy
	names  []string   // of given, in the order in which they came
	opened []*Service // wait for Commit
}

// legacy is what a predecessor has of one service.
type legacy struct {
	about
	sockets []Socket
	conns   []givenConn
	taken   bool // by Open
}

// givenConn is a connection that a predecessor gives.
type givenConn struct {
	kind  string
	files []*os.File
	state []byte
}

// TakeOver asks the process of the same user that serves under the control socket
// at path for all that it has. The error wraps [handoff.ErrNobody] if there is none.
func TakeOver(ctx context.Context, path string) (*Takeover, error) {
	taker, err := handoff.Take(ctx, path)
	if err != nil {
		return nil, err
	}
	t := &Takeover{path: path, taker: taker, given: make(map[string]*legacy)}
	if err := t.receive(); err != nil {
		t.Close()
		return nil, t.failed(err)
	}
	return t, nil
}

func (t *Takeover) failed(err error) error { return fmt.Errorf("take over by %s: %w", t.path, err) }

// Predecessor is the process id of the other one.
func (t *Takeover) Predecessor() int { return t.taker.Peer().PID }

// receive takes all items, and sorts them.
func (t *Takeover) receive() error {
	var conns []givenConn // of the service that comes next
	defer func() { closeConns(conns) }()
	var last *legacy // the service that the sockets are of
	for {
		item, err := t.taker.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return err
		}
		if err := t.sort(item, &conns, &last); err != nil {
			item.File.Close()
			return err
		}
	}
	if len(conns) > 0 {
		return errors.New("the running process gives connections that belong to nothing")
	}
	return nil
}

// sort puts an item where it belongs: conns are of the service that comes next,
// sockets of the last.
func (t *Takeover) sort(item handoff.Item, conns *[]givenConn, last **legacy) error {
	switch item.Kind {
	case itemConn, itemPair, itemSession:
		c := givenConn{kind: item.Kind, state: item.State}
		if item.File != nil {
			c.files = []*os.File{item.File}
		}
		*conns = append(*conns, c)
	case itemFile:
		if len(*conns) == 0 || item.File == nil {
			return errors.New("the running process gives a file that belongs to nothing")
		}
		c := &(*conns)[len(*conns)-1]
		c.files = append(c.files, item.File)
	case itemService:
		l := &legacy{conns: *conns}
		if t.given[item.Name] != nil {
			return fmt.Errorf("the running process gives the service %q twice", item.Name)
		}
		t.given[item.Name], t.names, *last, *conns = l, append(t.names, item.Name), l, nil
		return json.Unmarshal(item.State, &l.about)
	case itemSocket:
		e, err := fivetuple.ParseEndpoint(item.Name)
		if err != nil {
			return err
		}
		if *last == nil || item.File == nil {
			return fmt.Errorf("the running process gives the socket %s, which belongs to nothing", e)
		}
		(*last).sockets = append((*last).sockets, Socket{e, item.File})
	default:
		return fmt.Errorf("the running process gives a %q, which this version does not know", item.Kind)
	}
	return nil
}

func closeConns(conns []givenConn) {
	for _, c := range conns {
		for _, f := range c.files {
			f.Close()
		}
	}
}

func closeFiles(sockets []Socket) {
	for _, s := range sockets {
		s.File.Close()
	}
}

// Names are the services of the predecessor.
func (t *Takeover) Names() []string { return t.names }

// Gives says whether the predecessor has a socket of the named service for an
// endpoint, which is one port of a range.
func (t *Takeover) Gives(name string, e fivetuple.Endpoint) bool {
	l := t.given[name]
	return l != nil && slices.ContainsFunc(l.sockets, func(s Socket) bool { return s.Endpoint == e })
}

// Open opens a service with what the predecessor has of the one of that name; all
// of it is new if there is none. It is served from Commit on.
//
// The predecessor must serve the same kind, on no other endpoints than these.
func (t *Takeover) Open(ctx context.Context, c Config) (*Service, error) {
	l := t.given[c.Name]
	if l == nil {
		l = &legacy{about: about{Kind: c.Kind, Path: c.Path}}
	}
	s, err := t.open(ctx, c, l)
	if err != nil {
		return nil, t.failed(err)
	}
	t.opened = append(t.opened, s)
	return s, nil
}

func (t *Takeover) open(ctx context.Context, c Config, l *legacy) (*Service, error) {
	if err := l.completes(&c); err != nil {
		closeFiles(c.Sockets)
		return nil, err
	}
	l.taken, l.sockets = true, nil // open closes them
	s, err := open(ctx, c)
	if err != nil {
		return nil, err
	}
	for id := s.ids.Load(); id < l.LastID && !s.ids.CompareAndSwap(id, l.LastID); id = s.ids.Load() {
	}
	if err := s.adopt(l.conns); err != nil {
		s.abort()
		return nil, err
	}
	l.conns = nil // the engines have copies
	return s, nil
}

// completes gives a configuration the sockets that there are already. A socket
// without its endpoint is an error: it would be lost.
func (l *legacy) completes(c *Config) error {
	if l.taken {
		return fmt.Errorf("two services are called %q", c.Name)
	}
	if l.Kind != c.Kind || l.Path != c.Path {
		return fmt.Errorf("the running process serves %s, this one would serve %s", strings.TrimSpace(l.Kind+" "+l.Path), strings.TrimSpace(c.Kind+" "+c.Path))
	}
	if c.forwards() && c.Forward != nil {
		*c = c.expanded()
	}
	has := func(e fivetuple.Endpoint) bool {
		return slices.ContainsFunc(l.sockets, func(s Socket) bool { return s.Endpoint == e })
	}
	for _, s := range l.sockets {
		if !slices.Contains(c.Endpoints, s.Endpoint) && !slices.ContainsFunc(c.Sockets, func(o Socket) bool { return o.Endpoint == s.Endpoint }) {
			return fmt.Errorf("the running process listens on %s, too: name it here, or stop that process first", s.Endpoint)
		}
	}
	c.Endpoints = slices.DeleteFunc(slices.Clone(c.Endpoints), has)
	sockets := slices.Clone(l.sockets)
	for _, s := range c.Sockets {
		if has(s.Endpoint) { // a service manager passes again what it passed to the predecessor
			s.File.Close()
		} else {
			sockets = append(sockets, s)
		}
	}
	c.Sockets = sockets
	return nil
}

// adopter is a part that can take connections over.
type adopter interface {
	takes() string // the kind of their items
	adopt(files []*os.File, state []byte) error
	drop() // what was adopted and is not served
}

// adopt gives the connections to the event loops, which copy the files.
func (s *Service) adopt(conns []givenConn) error {
	var adopters []adopter
	for _, p := range s.parts {
		if a, ok := p.(adopter); ok {
			adopters = append(adopters, a)
		}
	}
	for _, c := range conns {
		at := slices.IndexFunc(adopters, func(a adopter) bool { return a.takes() == c.kind })
		if at < 0 {
			return fmt.Errorf("%d connections are served by event loops, which this process would not use: give it the same flags", len(conns))
		}
		if len(c.files) == 0 {
			return fmt.Errorf("the running process gives a %s without a socket", c.kind)
		}
		if err := adopters[at].adopt(c.files, c.state); err != nil {
			return err
		}
		closeConns([]givenConn{c})
	}
	return nil
}

// abort ends a service that was never started. Nothing of what it was given is
// harmed: the predecessor still has it, and owns the files of its Unix sockets.
func (s *Service) abort() {
	for _, p := range s.parts {
		if a, ok := p.(adopter); ok {
			a.drop()
		}
		p.close()
	}
	s.closeRelay()
}

// Commit makes what the predecessor gave this process's, and serves what was
// opened. After an error the predecessor has gone on, and nothing is served.
func (t *Takeover) Commit() error {
	for _, name := range t.names {
		if !t.given[name].taken {
			return t.failed(fmt.Errorf("the running process serves %q, too: name it here, or have that process stop it first", name))
		}
	}
	if err := t.taker.Acknowledge(); err != nil {
		return t.failed(err)
	}
	for _, s := range t.opened {
		s.ownFiles()
		s.start()
	}
	t.opened = nil
	return nil
}

// Listener is where this process can have a successor, after Commit: see
// [Group.Await].
func (t *Takeover) Listener() (*handoff.Listener, error) { return t.taker.Listener() }

// Close ends what was not committed.
func (t *Takeover) Close() error {
	for _, s := range t.opened {
		s.abort()
	}
	t.opened = nil
	for _, l := range t.given {
		closeFiles(l.sockets)
		closeConns(l.conns)
		l.sockets, l.conns = nil, nil
	}
	return t.taker.Close()
}

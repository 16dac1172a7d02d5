package handoff

import (
	"context"
	"errors"
	"fmt"
	"net"
	"sync"
	"time"

	"github.com/fivetuple/fivetuple/internal/unixfile"
)

// Listener waits for processes that take over. Its methods may be called by
// several goroutines at once.
type Listener struct {
	config Config
	path   string
	file   *unixfile.File // of the socket; nil for an abstract one
	ln     *net.UnixListener

	arrived chan struct{} // tells Accept to look
	closing chan struct{} // closed by Close, and once everything is given
	done    chan struct{} // closed when the goroutine that accepts has ended

	mu      sync.Mutex
	waiting []*link // for Accept
	taking  string  // who takes over: others are refused meanwhile
	closed  bool
}

// maxWaiting is how many may wait for Accept. One will do; those that have gone
// away meanwhile count too.
const maxWaiting = 16

// Listen makes a socket at a path that only this user, and root, can connect to:
// its file is born with the mode 0600. It replaces the socket of a process that is
// gone, and nothing else: an error wraps EADDRINUSE if somebody listens there, or
// [io/fs.ErrExist] if it is not a socket. A path that begins with "@" is a name in the
// abstract name space. Other processes are answered once [Listener.Accept] is called.
func (c Config) Listen(path string) (*Listener, error) {
	l, err := c.listen(path)
	if err != nil {
		return nil, fmt.Errorf("wait for a handoff at %s: %w", path, err)
	}
	return l, nil
}

func (c Config) listen(path string) (*Listener, error) {
	if err := c.check(); err != nil {
		return nil, err
	}
	ln, file, err := bind(path)
	if err != nil {
		return nil, err
	}
	return c.listener(path, ln, file), nil
}

func (c Config) listener(path string, ln *net.UnixListener, file *unixfile.File) *Listener {
	l := &Listener{
		config: c, path: path, ln: ln, file: file,
		arrived: make(chan struct{}, 1), closing: make(chan struct{}), done: make(chan struct{}),
	}
	go l.acceptAll()
	return l
}

// Accept waits for a process that takes over, of the same user or root. Until its
// Giver is closed or has committed, others are told [ErrBusy].
// After Close, or once all is given, the error wraps [net.ErrClosed].
func (l *Listener) Accept(ctx context.Context) (*Giver, error) {
	for {
		if link := l.next(); link != nil {
			if g := l.welcome(ctx, link); g != nil {
				return g, nil
			}
			continue
		}
		select {
		case <-ctx.Done():
			return nil, l.failed(context.Cause(ctx))
		case <-l.closing:
			return nil, l.failed(net.ErrClosed)
		case <-l.arrived:
		}
	}
}

// Close stops waiting, and removes the socket's file unless another has taken its
// place or its path was given away. A Giver is not touched.
func (l *Listener) Close() error {
	l.mu.Lock()
	first := !l.closed
	l.closed = true
	l.mu.Unlock()
	if first {
		l.file.Remove()
	}
	return l.stop(first)
}

// given ends the listener of a process that has given it away.
func (l *Listener) given() {
	l.mu.Lock()
	first := !l.closed
	l.closed = true
	l.mu.Unlock()
	l.stop(first)
}

func (l *Listener) stop(first bool) (err error) {
	if first {
		err = l.ln.Close()
		close(l.closing)
	}
	<-l.done
	for link := l.next(); link != nil; link = l.next() {
		link.abort(errors.New("no handoff is waited for any more"))
	}
	return err
}

// acceptAll has processes wait for Accept, and refuses them while one takes over.
func (l *Listener) acceptAll() {
	defer close(l.done)
	for {
		conn, err := l.ln.AcceptUnix()
		switch {
		case errors.Is(err, net.ErrClosed):
			return
		case err != nil: // EMFILE, or the like, which may pass
			select {
			case <-time.After(100 * time.Millisecond):
			case <-l.closing:
			}
			continue
		}
		link, err := newLink(conn, l.config.timeout())
		if err != nil {
			conn.Close()
			continue
		}
		if err := link.checkPeer(); err != nil {
			l.refuse(link, err)
			continue
		}
		if other := l.enqueue(link); other != "" {
			l.turnAway(link, other)
		}
	}
}

// enqueue has a process wait for Accept, unless another one is in the way.
func (l *Listener) enqueue(link *link) (other string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	switch {
	case l.taking != "":
		return l.taking
	case len(l.waiting) == maxWaiting:
		return "more of them wait than are let in"
	}
	l.waiting = append(l.waiting, link)
	select {
	case l.arrived <- struct{}{}:
	default:
	}
	return ""
}

func (l *Listener) next() (first *link) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(l.waiting) > 0 {
		first, l.waiting = l.waiting[0], l.waiting[1:]
	}
	return first
}

// welcome makes the process that is the first to say hello the one that takes over,
// and turns away the others.
func (l *Listener) welcome(ctx context.Context, link *link) *Giver {
	hello, err := receiveHello(ctx, link)
	if err != nil {
		l.refuse(link, err)
		return nil
	}
	other, waiting := l.reserve(link.name())
	if other != "" {
		l.turnAway(link, other)
		return nil
	}
	for _, late := range waiting {
		l.turnAway(late, link.name())
	}
	if err := link.send(ctx, recordHello, encodeHello(l.config.Hello)); err != nil {
		l.free() // first, since it may come again at once
		l.refuse(link, err)
		return nil
	}
	return &Giver{link: link, listener: l, hello: hello}
}

// reserve makes a process the one that takes over, unless another one is, whose
// name it returns.
func (l *Listener) reserve(name string) (other string, waiting []*link) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.taking != "" {
		return l.taking, nil
	}
	waiting, l.waiting = l.waiting, nil
	l.taking = name
	return "", waiting
}

func (l *Listener) free() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.taking = ""
}

func receiveHello(ctx context.Context, link *link) (text string, err error) {
	kind, payload, files, err := link.receive(ctx)
	closeFiles(files)
	if err != nil {
		return "", err
	}
	if kind != recordHello {
		payload = nil
	}
	return decodeHello(payload)
}

func (l *Listener) turnAway(link *link, other string) {
	link.dismiss(recordBusy, other)
	l.report(fmt.Errorf("%s wants to take over: %w: %s", link.name(), ErrBusy, other))
}

func (l *Listener) refuse(link *link, why error) {
	l.report(fmt.Errorf("%s cannot take over: %w", link.name(), why))
	link.abort(why)
}

func (l *Listener) report(err error) {
	if l.config.Refused != nil {
		l.config.Refused(err)
	}
}

func (l *Listener) failed(err error) error {
	return fmt.Errorf("wait for a handoff at %s: %w", l.path, err)
}

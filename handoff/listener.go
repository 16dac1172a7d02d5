package handoff

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"strings"
	"sync"
	"time"
)

// Listener waits for processes that take over. Its methods may be called by
// several goroutines at once.
type Listener struct {
	config Config
	path   string
	file   fs.FileInfo // of the socket; nil for an abstract one
	ln     *net.UnixListener

	arrived chan *link    // the one that takes over, until Accept has it
	closing chan struct{} // closed by Close, and once everything is given
	done    chan struct{} // closed when the goroutine that accepts has ended

	mu     sync.Mutex
	taking string // who takes over: others are refused meanwhile
	closed bool
}

// Listen makes a socket at a path that only this user, and root, can connect to:
// its file is born with the mode 0600. It replaces the socket of a process that is
// gone, and nothing else: an error wraps EADDRINUSE if somebody listens there, or
// [fs.ErrExist] if it is not a socket. A path that begins with "@" is a name in the
// abstract name space. Other processes are answered once [Listener.Accept] is called.
func (c Config) Listen(path string) (*Listener, error) {
	ln, err := bind(path)
	if err == nil {
		var l *Listener
		if l, err = c.listener(path, ln); err == nil {
			return l, nil
		}
		ln.Close()
	}
	return nil, fmt.Errorf("wait for a handoff at %s: %w", path, err)
}

func (c Config) listener(path string, ln *net.UnixListener) (*Listener, error) {
	if len(c.Hello) > MaxHello {
		return nil, fmt.Errorf("the hello has %d bytes, of at most %d", len(c.Hello), MaxHello)
	}
	l := &Listener{
		config: c, path: path, ln: ln,
		arrived: make(chan *link, 1), closing: make(chan struct{}), done: make(chan struct{}),
	}
	if !strings.HasPrefix(path, "@") {
		var err error
		if l.file, err = os.Lstat(path); err != nil {
			return nil, err
		}
	}
	go l.acceptAll()
	return l, nil
}

// Accept waits for a process that takes over, of the same user or root. While it
// does, until its Giver is closed or has committed, others are told [ErrBusy].
// After Close, or once all is given, the error wraps [net.ErrClosed].
func (l *Listener) Accept(ctx context.Context) (*Giver, error) {
	for {
		select {
		case <-ctx.Done():
			return nil, l.failed(context.Cause(ctx))
		case <-l.closing:
			return nil, l.failed(net.ErrClosed)
		case link := <-l.arrived:
			hello, err := l.greet(ctx, link)
			if err == nil {
				return &Giver{link: link, listener: l, hello: hello}, nil
			}
			l.free() // first, since it may come again at once
			l.refuse(link, err)
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
	if first && l.file != nil {
		if now, err := os.Lstat(l.path); err == nil && os.SameFile(now, l.file) {
			os.Remove(l.path)
		}
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
	select {
	case link := <-l.arrived:
		link.abort(errors.New("no handoff is waited for any more"))
	default:
	}
	return err
}

// acceptAll takes one process at a time and refuses the others.
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
		if other := l.reserve(link.name()); other != "" {
			link.dismiss(recordBusy, other)
			l.report(fmt.Errorf("%s wants to take over: %w", link.name(), ErrBusy))
			continue
		}
		l.arrived <- link // there is room: it is the only one
	}
}

// reserve lets a process take over unless another one does, whose name it returns.
func (l *Listener) reserve(name string) (other string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.taking != "" {
		return l.taking
	}
	l.taking = name
	return ""
}

func (l *Listener) free() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.taking = ""
}

func (l *Listener) greet(ctx context.Context, link *link) (hello string, err error) {
	kind, payload, files, err := link.receive(ctx)
	closeFiles(files)
	if err != nil {
		return "", err
	}
	if kind != recordHello {
		payload = nil
	}
	if hello, err = decodeHello(payload); err != nil {
		return "", err
	}
	return hello, link.send(ctx, recordHello, encodeHello(l.config.Hello))
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

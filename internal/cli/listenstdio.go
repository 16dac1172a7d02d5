package cli

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"slices"
	"strconv"
	"sync/atomic"
	"time"

	"github.com/fivetuple/fivetuple"
	"github.com/fivetuple/fivetuple/ancillary"
	"github.com/fivetuple/fivetuple/datagram"
	"github.com/fivetuple/fivetuple/join"
	"github.com/fivetuple/fivetuple/secure"
	"github.com/fivetuple/fivetuple/service"
	"github.com/fivetuple/fivetuple/stats"
	"github.com/fivetuple/fivetuple/stream"
)

// listenStdio joins standard input and output to the first client, or with
// --keep to one after the other.
func (a *app) listenStdio(ctx context.Context, p listenPlan) error {
	if _, err := a.prepare(&p); err != nil {
		return err
	}
	if n := len(p.config.Endpoints) + len(p.config.Sockets); n != 1 {
		return usage("stdio serves one endpoint, not %d: name a kind for more, such as chat", n)
	}
	files, err := openPassed(p.passFDs)
	if err != nil {
		return err
	}
	defer func() {
		for _, f := range files {
			f.Close()
		}
	}()
	near, err := a.stdio()
	if err != nil {
		return err
	}
	if len(p.config.Endpoints) == 1 && p.config.Endpoints[0].Network.IsDatagram() {
		return a.listenTalk(ctx, p, near, files)
	}
	return a.listenFirst(ctx, p, near, files)
}

// listenFirst serves streams.
func (a *app) listenFirst(ctx context.Context, p listenPlan, near join.End, files []*os.File) error {
	if p.keep {
		defer near.Close()
		near = join.Keep(near)
	}
	var taken atomic.Bool
	first, ended := make(chan struct{}), make(chan error, 1)
	p.config.Handler = stream.HandlerFunc(func(client context.Context, c *stream.Conn) error {
		if p.keep {
			err := a.serveStdio(ctx, client, p, near, c, files)
			if isOfFile(err) { // no other client would fare better
				select {
				case ended <- err:
				default:
				}
			}
			return err
		}
		if taken.Swap(true) {
			return errors.New("one client is served, and this one came second")
		}
		close(first)
		err := a.serveStdio(ctx, client, p, near, c, files)
		ended <- err
		return err
	})
	p.join.Idle, p.config.Limits.IdleTimeout = p.config.Limits.IdleTimeout, 0
	p.config.Limits.MaxConns = 0
	if p.keep {
		p.config.Limits.MaxConns = 1 // the others wait, which is no error here
		all := p.config.Sink
		p.config.Sink = stats.SinkFunc(func(e stats.Event) {
			if e.Kind != stats.Error || e.Tuple != (fivetuple.Tuple{}) {
				all.Record(e)
			}
		})
	}
	s, err := service.Start(ctx, p.config)
	if err != nil {
		return err
	}
	a.announce(p, s)
	for waiting := true; waiting; {
		select {
		case <-first: // and the only one
			s.StopListening()
			first = nil
		case <-ctx.Done():
			waiting = false
		case err = <-s.Failed():
			waiting = false
		case err = <-ended:
			waiting = false
		}
	}
	return errors.Join(err, a.stopServing(p, s))
}

// serveStdio joins a client, whose context is the second, to standard input and
// output, until ctx ends.
func (a *app) serveStdio(ctx, client context.Context, p listenPlan, near join.End, c *stream.Conn, files []*os.File) error {
	if len(files) > 0 {
		uc, ok := unixConn(c.Conn)
		if !ok {
			return errors.New("descriptors can be passed on Unix sockets only")
		}
		if err := passFiles(uc, p.passFDs, files); err != nil {
			return err
		}
	}
	o := p.join
	o.RecordsB = c.Tuple().Protocol == fivetuple.Seqpacket
	// A person would wait for nothing once the client has ended, and so would the next one.
	o.QuitWithB = p.keep || isTerminal(a.in)
	_, err := join.Run(ctx, near, c, o)
	switch {
	case ctx.Err() != nil:
		return nil
	case client.Err() != nil && errors.Is(err, net.ErrClosed):
		return fmt.Errorf("the client sent nothing within %s, the limit of --first-byte", stats.FormatDuration(p.limits.FirstByteTimeout))
	case secure.Truncated(c):
		a.warn("%s ended the connection without the end of TLS: what came may be cut short", c.RemoteAddr())
	}
	return explainEnd(err)
}

// listenTalk serves datagrams: those of the first sender, or with --keep of all.
func (a *app) listenTalk(ctx context.Context, p listenPlan, near join.End, files []*os.File) error {
	if len(files) > 0 {
		return usage("--pass-fd needs a connection: unix:// or seqpacket://")
	}
	c := p.config
	conn, err := datagram.ListenConfig{Options: c.Options, Mode: c.Mode, Owner: c.Owner, Interface: c.Interface, Sources: c.Sources, Report: c.Report}.
		Listen(ctx, c.Endpoints[0])
	if err != nil {
		return err
	}
	defer conn.Close()
	a.note("listening on %s %s: stdio", c.Endpoints[0].Network, fivetuple.AddressOf(conn.LocalAddr()))
	group, _ := c.Endpoints[0].Addr()
	talk := conn.Talk(datagram.TalkOptions{Keep: p.keep || group.IsMulticast(), Allow: c.Limits.Allow, Deny: c.Limits.Deny, OnPeer: func(from fivetuple.Address) {
		if p.verbose {
			a.note("%s first datagram from %s", time.Now().Format("15:04:05.000"), from)
		}
	}})
	o := p.join
	o.RecordsB, o.Idle = true, c.Limits.IdleTimeout
	if !p.quitGiven {
		o.QuitAfter = 0 // a receiver goes on when there is nothing to say
	}
	_, err = join.Run(ctx, near, talk, o)
	if ctx.Err() != nil {
		return nil
	}
	return err
}

// passFiles passes what is open, but files by name opened anew: from their start.
func passFiles(uc *net.UnixConn, names []string, files []*os.File) error {
	files = slices.Clone(files)
	for i, name := range names {
		if _, err := strconv.Atoi(name); err == nil {
			continue
		}
		f, err := os.Open(name)
		if err != nil {
			return err
		}
		defer f.Close()
		files[i] = f
	}
	return ancillary.SendFiles(uc, []byte("ft\n"), files...)
}

// openPassed opens what --pass-fd names: a descriptor of this process by its
// number, or a file.
func openPassed(names []string) (files []*os.File, err error) {
	for _, name := range names {
		var f *os.File
		if n, notNumber := strconv.Atoi(name); notNumber == nil {
			f, err = inheritedFile(n)
		} else {
			f, err = os.Open(name)
		}
		if err != nil {
			for _, f := range files {
				f.Close()
			}
			return nil, fmt.Errorf("--pass-fd %s: %w", name, err)
		}
		files = append(files, f)
	}
	return files, nil
}

// inheritedFile is a descriptor that this process was started with.
func inheritedFile(n int) (*os.File, error) {
	if n >= 0 && n <= 2 {
		return nil, errors.New("standard input and output are what the client is joined to: pass another, 3<FILE")
	}
	f := os.NewFile(uintptr(n), fmt.Sprintf("descriptor %d", n))
	if f == nil {
		return nil, errors.New("no descriptor has that number")
	}
	if _, err := f.Stat(); err != nil {
		return nil, errors.New("this descriptor is not open: the shell opens one by 3<FILE")
	}
	return f, nil
}

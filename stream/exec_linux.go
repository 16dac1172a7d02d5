package stream

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"sync"
	"time"
)

// execHandler runs a command for each connection.
type execHandler struct {
	path    string
	argv    []string
	options ExecOptions
	stderr  sync.Mutex // held by who writes to options.Stderr
}

func newExec(path string, argv []string, o ExecOptions) (Handler, error) {
	return &execHandler{path: path, argv: argv, options: o}, nil
}

// ServeConn implements [Handler].
func (h *execHandler) ServeConn(ctx context.Context, c *Conn) error {
	cmd := &exec.Cmd{Path: h.path, Args: h.argv, Dir: h.options.Dir, Env: environ(c, h.options.Env)}
	var own []*os.File // the command's, to be closed here
	switch w := h.options.Stderr.(type) {
	case nil:
	case *os.File:
		cmd.Stderr = w
	default:
		o, err := newOutlet()
		if err != nil {
			return h.failed(c, err)
		}
		o.start(h.writeErrors, nil)
		defer o.finish()
		cmd.Stderr, own = o.w, append(own, o.w)
	}
	if takesSocket(c.Conn) && !h.options.Pipes {
		return h.give(ctx, c, cmd, own)
	}
	return h.pipe(ctx, c, cmd, own)
}

// takesSocket says whether a command can read and write the socket itself as a
// stream of bytes.
func takesSocket(nc net.Conn) bool {
	switch nc := nc.(type) {
	case *net.TCPConn:
		return true
	case *net.UnixConn:
		return nc.LocalAddr().Network() == "unix"
	}
	return false
}

func (h *execHandler) writeErrors(b []byte) error {
	h.stderr.Lock()
	defer h.stderr.Unlock()
	h.options.Stderr.Write(b) // the command is not to stop because nobody hears of its errors
	return nil
}

// failed says that there is no command for a connection.
func (h *execHandler) failed(c *Conn, err error) error {
	if c.ctx.Err() != nil { // the connection was closed before it came to that
		return net.ErrClosed
	}
	err = fmt.Errorf("exec %s: %w", h.argv[0], err)
	c.server.events.Error(c.tuple, err)
	return err
}

// result is what a connection came to whose command has ended by itself.
func (h *execHandler) result(err error, peerClosed bool) error {
	switch {
	case err != nil:
		return &commandError{fmt.Errorf("exec %s: %w", h.argv[0], err)}
	case peerClosed:
		return io.EOF
	}
	return nil
}

// give runs the command with the socket as its standard input and output.
func (h *execHandler) give(ctx context.Context, c *Conn, cmd *exec.Cmd, own []*os.File) error {
	socket, err := c.giveAway()
	if err != nil {
		closeAll(own)
		return h.failed(c, err)
	}
	defer c.takeBack()
	cmd.Stdin, cmd.Stdout, own = socket, socket, append(own, socket)
	w, err := watchEnd(c)
	if err != nil {
		closeAll(own)
		return h.failed(c, err)
	}
	defer w.close()
	j, err := startJob(cmd, h.options.Grace, own...)
	if err != nil {
		return h.failed(c, err)
	}
	end := h.awaitEnd(ctx, j, w)
	peerClosed := w.peerClosed()
	err = j.end()
	switch {
	case end != nil:
		return end
	case w.reset() != nil: // of which the command may have died
		return w.reset()
	}
	return h.result(err, peerClosed)
}

// awaitEnd returns nil when the command has ended, or why it is to be ended.
func (h *execHandler) awaitEnd(ctx context.Context, j *job, w *endWatch) error {
	select {
	case <-j.exited:
		return nil
	case <-ctx.Done():
		return net.ErrClosed
	case <-w.ended:
	}
	if err := w.reset(); err != nil {
		return err
	}
	tick := time.NewTicker(max(h.options.Grace/50, time.Millisecond))
	defer tick.Stop()
	unread, since := w.unread(), time.Now()
	for time.Since(since) < h.options.Grace {
		select {
		case <-j.exited:
			return nil
		case <-ctx.Done():
			return net.ErrClosed
		case <-tick.C:
		}
		if n := w.unread(); n != unread {
			unread, since = n, time.Now()
		}
	}
	return io.EOF
}

// pipe runs the command between two pipes.
func (h *execHandler) pipe(ctx context.Context, c *Conn, cmd *exec.Cmd, own []*os.File) error {
	stdin, feed, err := os.Pipe()
	if err != nil {
		closeAll(own)
		return h.failed(c, err)
	}
	defer feed.Close()
	own = append(own, stdin)
	out, err := newOutlet()
	if err != nil {
		closeAll(own)
		return h.failed(c, err)
	}
	cmd.Stdin, cmd.Stdout, own = stdin, out.w, append(own, out.w)
	broken := make(chan error, 2)
	out.start(func(b []byte) error {
		_, err := c.Write(b)
		if err != nil {
			broken <- err
		}
		return err
	}, func() { c.CloseWrite() })
	defer out.finish()
	j, err := startJob(cmd, h.options.Grace, own...)
	if err != nil {
		return h.failed(c, err)
	}
	fed := make(chan struct{})
	go func() {
		defer close(fed)
		if err := c.feed(feed); err != nil && !isTimeout(err) {
			broken <- err
		}
	}()
	var end error
	select {
	case <-j.exited:
	case <-ctx.Done():
		end = net.ErrClosed
	case end = <-broken:
	}
	peerClosed := c.given.fin.Load()
	err = j.end()
	out.finish()
	c.SetReadDeadline(past) // feed stops
	feed.Close()
	<-fed
	c.SetReadDeadline(time.Time{})
	if end != nil {
		return end
	}
	return h.result(err, peerClosed)
}

// feed writes what arrives to a command's input until the peer ends its side,
// which ends the input. What the command does not want any more is thrown away, so
// that the end is seen.
func (c *Conn) feed(w *os.File) error {
	defer w.Close()
	wanted := true
	for {
		b, err := c.reader.read()
		c.moved(&c.in, len(b))
		if len(b) > 0 {
			if wanted {
				_, werr := w.Write(b)
				wanted = werr == nil
			}
			c.reader.release()
		}
		if errors.Is(err, io.EOF) {
			c.given.fin.Store(true)
			return nil
		}
		if err != nil {
			return err
		}
	}
}

func closeAll(files []*os.File) {
	for _, f := range files {
		f.Close()
	}
}

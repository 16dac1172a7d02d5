package vsock

import (
	"context"
	"errors"
	"io"
	"io/fs"
	"net"
	"os"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/mdlayher/socket"
)

var (
	_ net.Conn     = (*conn)(nil)
	_ syscall.Conn = (*conn)(nil)
	_ net.Listener = (*listener)(nil)
	_ syscall.Conn = (*listener)(nil)
)

type listener struct {
	s      *socket.Conn
	addr   Addr
	closed atomic.Bool
}

// Accept implements [net.Listener].
func (l *listener) Accept() (net.Conn, error) {
	s, sa, err := l.s.Accept(context.Background(), 0)
	if err != nil {
		return nil, opError("accept", nil, l.addr, reason(err, &l.closed))
	}
	addr, err := local(s)
	if err != nil {
		s.Close()
		return nil, opError("accept", nil, l.addr, err)
	}
	return &conn{Conn: s, local: addr, remote: addrOf(sa)}, nil
}

// Close implements [net.Listener].
func (l *listener) Close() error {
	l.closed.Store(true)
	return l.s.Close()
}

// Addr implements [net.Listener]; it is an [Addr].
func (l *listener) Addr() net.Addr { return l.addr }

// SetDeadline bounds Accept.
func (l *listener) SetDeadline(t time.Time) error { return l.s.SetReadDeadline(t) }

// SyscallConn implements [syscall.Conn].
func (l *listener) SyscallConn() (syscall.RawConn, error) { return l.s.SyscallConn() }

type conn struct {
	*socket.Conn
	local, remote net.Addr
	closed        atomic.Bool
}

// LocalAddr implements [net.Conn]; it is an [Addr].
func (c *conn) LocalAddr() net.Addr { return c.local }

// RemoteAddr implements [net.Conn]; it is an [Addr].
func (c *conn) RemoteAddr() net.Addr { return c.remote }

// Read implements [net.Conn].
func (c *conn) Read(b []byte) (int, error) {
	n, err := c.Conn.Read(b)
	return n, c.wrap("read", err)
}

// Write implements [net.Conn].
func (c *conn) Write(b []byte) (int, error) {
	n, err := c.Conn.Write(b)
	return n, c.wrap("write", err)
}

// Close implements [net.Conn].
func (c *conn) Close() error {
	c.closed.Store(true)
	return c.Conn.Close()
}

// CloseWrite says that nothing more will be written, as that of a [net.TCPConn].
func (c *conn) CloseWrite() error { return c.wrap("close", c.Conn.CloseWrite()) }

// CloseRead says that nothing more will be read.
func (c *conn) CloseRead() error { return c.wrap("close", c.Conn.CloseRead()) }

func (c *conn) wrap(op string, err error) error {
	if err == nil || err == io.EOF {
		return err
	}
	return opError(op, c.local, c.remote, reason(err, &c.closed))
}

// reason takes off the *fs.PathError that a file has around its errors, and gives
// what happens on a closed socket the name that package net has for it.
func reason(err error, closed *atomic.Bool) error {
	if closed.Load() {
		return net.ErrClosed
	}
	var path *fs.PathError
	if !errors.As(err, &path) {
		return err
	}
	if errno, ok := path.Err.(syscall.Errno); ok {
		return os.NewSyscallError(path.Op, errno)
	}
	return path.Err
}

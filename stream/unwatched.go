package stream

import (
	"errors"
	"fmt"
	"net"
	"syscall"

	"github.com/fivetuple/fivetuple/internal/poll"
)

// unwatchedListener is a listener without Go's runtime.
type unwatchedListener struct {
	*poll.Socket
	addr net.Addr
	unix *unixListener // whose socket is closed, for the sake of its file; nil for TCP
}

// Unwatched makes of a TCP or Unix listener of this package one for servers with
// event loops alone: Go's runtime waits for its connections no longer, which costs the
// wake-up of a thread for each. Its Accept fails. What was passed must not be used any
// more, unless there is an error, which for other listeners wraps [errors.ErrUnsupported].
func Unwatched(ln net.Listener) (net.Listener, error) {
	u := &unwatchedListener{addr: ln.Addr()}
	var watched net.Listener
	switch ln := ln.(type) {
	case *unwatchedListener:
		return ln, nil
	case *net.TCPListener:
		watched = ln
	case *unixListener:
		u.unix, watched = ln, ln.UnixListener
	default:
		return nil, fmt.Errorf("serve %s with event loops: %w: it is a %T", ln.Addr(), errors.ErrUnsupported, ln)
	}
	var err error
	if u.Socket, err = poll.Copy(watched.(syscall.Conn)); err != nil {
		return nil, fmt.Errorf("serve %s with event loops: %w", ln.Addr(), err)
	}
	watched.Close()
	return u, nil
}

// Accept implements net.Listener.
func (u *unwatchedListener) Accept() (net.Conn, error) {
	return nil, fmt.Errorf("accept on %s: %w: it is for event loops", u.addr, errors.ErrUnsupported)
}

// Addr implements net.Listener.
func (u *unwatchedListener) Addr() net.Addr { return u.addr }

// Close implements net.Listener.
func (u *unwatchedListener) Close() error {
	if u.unix != nil {
		u.unix.Close() // the file
	}
	return u.Socket.Close()
}

// SetUnlinkOnClose says whether Close removes the file of a Unix socket.
func (u *unwatchedListener) SetUnlinkOnClose(unlink bool) {
	if u.unix != nil {
		u.unix.SetUnlinkOnClose(unlink)
	}
}

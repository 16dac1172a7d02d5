package stream

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"

	"github.com/fivetuple/fivetuple"
	"github.com/fivetuple/fivetuple/sockopt"
)

// ListenConfig says how to listen.
type ListenConfig struct {
	Options sockopt.Settings // set on the socket before it is bound
	// Mode is the permissions of a Unix socket's path. Default 0600.
	Mode fs.FileMode
}

// Listen opens the listening socket of an endpoint whose service name, if it
// has one, is resolved: TCP, or a Unix stream or seqpacket socket. TCP sockets
// are plain TCP, not MPTCP, and have SO_REUSEADDR. A Unix socket file that
// nobody listens on is replaced; any other file at the path is an error. The
// file is removed when the listener is closed, unless it was replaced.
func (lc ListenConfig) Listen(ctx context.Context, e fivetuple.Endpoint) (net.Listener, error) {
	network, address, err := e.ListenArgs()
	if err != nil {
		return nil, err
	}
	if err := speaks(e); err != nil {
		return nil, fmt.Errorf("listen on %s: %w", e, err)
	}
	// KeepAlive -1 leaves the keep-alive options as they are, so that accepted
	// sockets inherit what Options set on the listener.
	nlc := net.ListenConfig{Control: lc.Options.Control, KeepAlive: -1}
	nlc.SetMultipathTCP(false)
	if e.Network.IsUnix() {
		mode := lc.Mode
		if mode == 0 {
			mode = 0o600
		}
		return listenUnix(ctx, nlc, network, address, mode)
	}
	ln, err := nlc.Listen(ctx, network, address)
	if err != nil {
		return nil, fmt.Errorf("listen on %s: %w", e, err)
	}
	return ln, nil
}

// speaks says whether the endpoint is one for streams.
func speaks(e fivetuple.Endpoint) error {
	if e.Network == fivetuple.TLS || e.Network.IsDatagram() {
		return fmt.Errorf("%w: streams go over tcp, unix and seqpacket", errors.ErrUnsupported)
	}
	if a, _ := e.Addr(); e.Zone != "" && !a.Is6() {
		return fmt.Errorf("%w: %%%s goes after an IPv6 address; the option bindtodevice=%s binds any socket to the interface", errors.ErrUnsupported, e.Zone, e.Zone)
	}
	return nil
}

// applyPerConn sets what a connection does not have from its listener, or what
// Go's net package overwrote when it was made.
func applyPerConn(nc net.Conn, options sockopt.Settings) error {
	options = options.PerConn()
	tc, ok := nc.(*net.TCPConn)
	if !ok || len(options) == 0 {
		return nil
	}
	raw, err := tc.SyscallConn()
	if err != nil {
		return err
	}
	_, err = options.ApplyConn(raw)
	return err
}

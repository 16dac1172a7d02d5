package stream

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"syscall"

	"github.com/fivetuple/fivetuple"
	"github.com/fivetuple/fivetuple/internal/unixfile"
	"github.com/fivetuple/fivetuple/internal/vsock"
	"github.com/fivetuple/fivetuple/sockopt"
)

// ListenConfig says how to listen.
type ListenConfig struct {
	Options sockopt.Settings // set on the socket before it is bound
	// Mode is the permissions of a Unix socket's path. Default 0600. An abstract
	// name takes neither mode nor owner: it is an error.
	Mode fs.FileMode
	// Owner is who the path of a Unix socket belongs to: "user", "user:group" or
	// ":group", by name or number. Default: who runs the process.
	Owner string
	// Report is told what the kernel made of Options, if not nil.
	Report func([]sockopt.Granted)
}

// Listen opens the listening socket of an endpoint whose service name, if it
// has one, is resolved: TCP, also for tls, where the [Server] speaks TLS; a Unix
// stream or seqpacket socket; or vsock, where port [math.MaxUint32] lets the
// kernel choose. TCP sockets are plain TCP, not MPTCP, and have SO_REUSEADDR. A
// Unix socket file that nobody listens on is replaced; any other file at the
// path is an error. The file is removed when the listener is closed, unless it
// was replaced or the listener's SetUnlinkOnClose(false) was called.
func (lc ListenConfig) Listen(ctx context.Context, e fivetuple.Endpoint) (net.Listener, error) {
	if err := speaks(e); err != nil {
		return nil, fmt.Errorf("listen on %s: %w", e, err)
	}
	if lc.Owner != "" && !e.Network.IsUnix() {
		return nil, fmt.Errorf("listen on %s: only the path of a Unix socket has an owner", e)
	}
	control := lc.Options.ControlFunc(lc.Report)
	if e.Network == fivetuple.Vsock {
		ln, err := vsock.Config{Control: control}.Listen(e.CID, e.VPort)
		if err != nil {
			return nil, fmt.Errorf("listen on %s: %w", e, err)
		}
		return ln, nil
	}
	network, address, err := e.ListenArgs()
	if err != nil {
		return nil, err
	}
	// KeepAlive -1 leaves the keep-alive options as they are, so that accepted
	// sockets inherit what Options set on the listener.
	nlc := net.ListenConfig{Control: control, KeepAlive: -1}
	nlc.SetMultipathTCP(false)
	if e.Network.IsUnix() {
		return lc.listenUnix(ctx, nlc, network, address)
	}
	ln, err := nlc.Listen(ctx, network, address)
	if err != nil {
		return nil, fmt.Errorf("listen on %s: %w", e, err)
	}
	return ln, nil
}

// FileListener takes over a socket that listens already, from systemd or another
// process: TCP, or a Unix stream or seqpacket socket. It works on a copy of f,
// which the caller closes. Its Close leaves a Unix socket file where it is, which
// belongs to whoever made it, until SetUnlinkOnClose(true) is called.
func FileListener(f *os.File) (net.Listener, error) {
	ln, err := net.FileListener(f)
	if err != nil {
		return nil, fmt.Errorf("take over %s: %w", f.Name(), err)
	}
	if err := listening(ln); err != nil {
		ln.Close()
		return nil, fmt.Errorf("take over %s: %w", f.Name(), err)
	}
	ul, ok := ln.(*net.UnixListener)
	if !ok {
		return ln, nil
	}
	ul.SetUnlinkOnClose(false)
	l := &unixListener{UnixListener: ul, file: unixfile.Of(ul.Addr().String())}
	l.keep.Store(true)
	return l, nil
}

// listening says whether accept can work: net.FileListener takes any socket.
func listening(ln net.Listener) error {
	raw, err := ln.(syscall.Conn).SyscallConn()
	if err != nil {
		return err
	}
	var s sockopt.Setting
	if cerr := raw.Control(func(fd uintptr) { s, err = sockopt.Get(int(fd), "acceptconn") }); cerr != nil {
		return cerr
	}
	if errors.Is(err, errors.ErrUnsupported) {
		return nil
	}
	if err == nil && s.Value() != "on" {
		err = errors.New("the socket does not listen")
	}
	return err
}

// speaks says whether the endpoint is one for streams.
func speaks(e fivetuple.Endpoint) error {
	if e.Network.IsDatagram() {
		return fmt.Errorf("%w: streams go over tcp, tls, unix, seqpacket and vsock", errors.ErrUnsupported)
	}
	if a, _ := e.Addr(); e.Zone != "" && !a.Is6() {
		return fmt.Errorf("%w: %%%s goes after an IPv6 address; the option bindtodevice=%s binds any socket to the interface", errors.ErrUnsupported, e.Zone, e.Zone)
	}
	return nil
}

// applyPerConn sets what a connection does not have from its listener, or what
// Go's net package overwrote when it was made.
func applyPerConn(nc net.Conn, options sockopt.Settings) error {
	if _, ok := nc.(*net.TCPConn); ok {
		options = options.PerConn()
	} // a Unix or vsock socket has nothing from its listener
	sc, ok := nc.(syscall.Conn)
	if !ok || len(options) == 0 {
		return nil
	}
	raw, err := sc.SyscallConn()
	if err != nil {
		return err
	}
	_, err = options.ApplyConn(raw)
	return err
}

package vsock

import (
	"context"
	"math"
	"net"
	"os"
	"time"

	"github.com/mdlayher/socket"
	"golang.org/x/sys/unix"
)

// Listen listens on a port of the machine's own context, or of all with cid [Any].
// Port [Any] lets the kernel choose one. Ports below 1024 need
// CAP_NET_BIND_SERVICE. The listener has SetDeadline and SyscallConn; what it
// accepts is as what [Config.Dial] returns.
func (c Config) Listen(cid, port uint32) (net.Listener, error) {
	addr := Addr{cid, port}
	s, err := open()
	if err != nil {
		return nil, opError("listen", nil, addr, err)
	}
	if err = c.control(s, addr); err == nil {
		err = s.Bind(addr.sockaddr())
	}
	if err == nil {
		err = s.Listen(math.MaxInt32) // the kernel makes it net.core.somaxconn
	}
	if err == nil {
		addr, err = local(s)
	}
	if err != nil {
		s.Close()
		return nil, opError("listen", nil, addr, err)
	}
	return &listener{s: s, addr: addr}, nil
}

// Dial connects to a port of another context, or of this machine with cid 1. The
// kernel gives up by itself after two seconds, unless ctx has a deadline, which
// then counts. The connection has CloseRead, CloseWrite and SyscallConn.
//
// Without the module vsock_loopback a guest's kernel sends what is for cid 1 to the
// hypervisor, which may not answer.
//
// Errors are a [*net.OpError]: ECONNRESET if nobody listens there, ENODEV if the
// kernel has no transport to the context, ETIMEDOUT if the context does not exist.
func (c Config) Dial(ctx context.Context, cid, port uint32) (net.Conn, error) {
	remote := Addr{cid, port}
	s, err := open()
	if err != nil {
		return nil, opError("dial", nil, remote, err)
	}
	if err = setConnectTimeout(ctx, s); err == nil {
		err = c.control(s, remote)
	}
	if err == nil {
		_, err = s.Connect(ctx, remote.sockaddr())
	}
	var addr Addr
	if err == nil {
		addr, err = local(s)
	}
	if err != nil {
		s.Close()
		return nil, opError("dial", nil, remote, err)
	}
	return &conn{Conn: s, local: addr, remote: remote}, nil
}

func open() (*socket.Conn, error) {
	return socket.Socket(unix.AF_VSOCK, unix.SOCK_STREAM, 0, "vsock", nil)
}

func (c Config) control(s *socket.Conn, a Addr) error {
	if c.Control == nil {
		return nil
	}
	raw, err := s.SyscallConn()
	if err != nil {
		return err
	}
	return c.Control(a.Network(), a.String(), raw)
}

// setConnectTimeout replaces the kernel's VSOCK_DEFAULT_CONNECT_TIMEOUT
// (net/vmw_vsock/af_vsock.c) by a little more than is left to ctx.
func setConnectTimeout(ctx context.Context, s *socket.Conn) error {
	deadline, ok := ctx.Deadline()
	if !ok {
		return nil
	}
	left := unix.NsecToTimeval(int64(max(time.Until(deadline), 0) + time.Second))
	raw, err := s.SyscallConn()
	if err != nil {
		return err
	}
	if cerr := raw.Control(func(fd uintptr) {
		err = unix.SetsockoptTimeval(int(fd), unix.AF_VSOCK, unix.SO_VM_SOCKETS_CONNECT_TIMEOUT, &left)
	}); cerr != nil {
		return cerr
	}
	return os.NewSyscallError("setsockopt", err)
}

func (a Addr) sockaddr() unix.Sockaddr { return &unix.SockaddrVM{CID: a.CID, Port: a.Port} }

func local(s *socket.Conn) (Addr, error) {
	sa, err := s.Getsockname()
	return addrOf(sa), err
}

func addrOf(sa unix.Sockaddr) Addr {
	vm, ok := sa.(*unix.SockaddrVM)
	if !ok {
		return Addr{}
	}
	return Addr{vm.CID, vm.Port}
}

// opError makes errors look like those of package net.
func opError(op string, source, addr net.Addr, err error) error {
	return &net.OpError{Op: op, Net: "vsock", Source: source, Addr: addr, Err: err}
}

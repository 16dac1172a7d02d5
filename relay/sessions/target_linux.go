package sessions

import (
	"errors"
	"fmt"
	"net/netip"
	"os"

	"golang.org/x/sys/unix"

	"github.com/fivetuple/fivetuple/internal/poll"
	"github.com/fivetuple/fivetuple/relay/upstream"
	"github.com/fivetuple/fivetuple/sockopt"
)

// way is a connected socket to a target.
type way struct {
	fd      int
	address *upstream.Address
}

// errNoPort: the kernel gives a UDP socket without a port of its own one that no other
// on that address has, whichever target it is for.
var errNoPort = errors.New("no local port is left to send from: widen net.ipv4.ip_local_port_range, send from several addresses, or set a limit of sessions")

// targetBuffer is asked for a session's socket: a burst of replies may come while
// the loop is busy with others. It takes memory only while they wait.
const targetBuffer = 1 << 20

// connect makes a socket to the first target that takes one.
func (l *loop) connect(r *Route, p *port, client netip.AddrPort) (way, error) {
	if r.Pool == nil {
		return way{fd: -1}, errors.New("no target")
	}
	var last error
	for choice := r.Pool.Choose(client.Addr()); ; {
		a, ok := choice.Next()
		if !ok {
			break
		}
		fd, err := l.connectTo(r, p, a, client)
		if err == nil {
			return way{fd, a}, nil
		}
		a.Closed()
		last = fmt.Errorf("send to %s: %w", a.Target, err)
		if isLocal(err) {
			break // another address would not take it either
		}
		a.Failed(err)
	}
	if last == nil {
		if last = r.Pool.Err(); last == nil {
			last = errors.New("no target")
		}
	}
	return way{fd: -1}, last
}

// isLocal says whether an error of making a socket says nothing of the target.
func isLocal(err error) bool {
	return isShort(err) || errors.Is(err, unix.ENOBUFS) || errors.Is(err, unix.ENOMEM) || errors.Is(err, unix.EPERM) ||
		errors.Is(err, unix.EADDRINUSE) || errors.Is(err, unix.EADDRNOTAVAIL)
}

// connectTo makes a connected socket.
func (l *loop) connectTo(r *Route, p *port, a *upstream.Address, client netip.AddrPort) (int, error) {
	to := r.target(a, p)
	if !to.IsValid() {
		return -1, fmt.Errorf("%s is no address for UDP: %w", a.Target, errors.ErrUnsupported)
	}
	family, v6 := unix.AF_INET, to.Addr().Is6()
	if v6 {
		family = unix.AF_INET6
	}
	fd, err := unix.Socket(family, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, unix.IPPROTO_UDP)
	if err != nil {
		return -1, os.NewSyscallError("socket", err)
	}
	if err := l.setUp(fd, v6, r, to, client); err != nil {
		poll.Close(fd)
		return -1, err
	}
	return fd, nil
}

// target is where a route leads what comes to a port.
func (r *Route) target(a *upstream.Address, p *port) netip.AddrPort {
	to := a.Addr
	if r.FirstPort != 0 && to.IsValid() {
		to = netip.AddrPortFrom(to.Addr(), to.Port()+p.addr.Port()-r.FirstPort)
	}
	return netip.AddrPortFrom(to.Addr().Unmap(), to.Port())
}

func (l *loop) setUp(fd int, v6 bool, r *Route, to, client netip.AddrPort) error {
	raiseBuffer(fd, unix.SO_RCVBUF, unix.SO_RCVBUFFORCE, targetBuffer)
	if err := reportErrors(fd, v6, true); err != nil {
		return err
	}
	if l.gro {
		joinTrains(fd, true)
	}
	if r.Interface != "" {
		if err := unix.BindToDevice(fd, r.Interface); err != nil {
			return fmt.Errorf("send through %s: %w", r.Interface, os.NewSyscallError("setsockopt", err))
		}
	}
	if _, err := sockopt.Apply(fd, r.Options...); err != nil {
		return err
	}
	if err := r.bind(fd, v6, client); err != nil {
		return err
	}
	switch err := unix.Connect(fd, toSockaddr(to)); {
	case err == unix.EAGAIN:
		return errNoPort
	case err != nil:
		return os.NewSyscallError("connect", err)
	}
	// What came while it was bound and not yet connected is anybody's.
	var one [1]byte
	for range 64 {
		if _, errno := poll.Read(fd, one[:]); errno != 0 {
			break
		}
	}
	return nil
}

// bind chooses where datagrams to the target leave from. Without an address the
// kernel does, and IP_BIND_ADDRESS_NO_PORT is of no use: unlike TCP, UDP gives a socket
// its port before it looks at where it is to be connected to.
func (r *Route) bind(fd int, v6 bool, client netip.AddrPort) error {
	from := r.Source
	if r.Transparent {
		if client.Addr().Is6() != v6 {
			return fmt.Errorf("send from the client's address %s: the target is of the other family", client.Addr())
		}
		from = client
		level, option := unix.IPPROTO_IP, unix.IP_TRANSPARENT
		if v6 {
			level, option = unix.IPPROTO_IPV6, unix.IPV6_TRANSPARENT
		}
		if err := unix.SetsockoptInt(fd, level, option, 1); err != nil {
			return fmt.Errorf("send from the client's address needs CAP_NET_ADMIN: %w", os.NewSyscallError("setsockopt", err))
		}
		// One client may have several sessions, which all are to leave from its port.
		if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_REUSEADDR, 1); err != nil {
			return os.NewSyscallError("setsockopt", err)
		}
	}
	if !from.Addr().IsValid() && from.Port() == 0 {
		return nil
	}
	if !from.Addr().IsValid() {
		any := netip.IPv4Unspecified()
		if v6 {
			any = netip.IPv6Unspecified()
		}
		from = netip.AddrPortFrom(any, from.Port())
	}
	if from.Addr().Unmap().Is6() != v6 {
		return fmt.Errorf("send from %s: the target is of the other family", from.Addr())
	}
	err := unix.Bind(fd, toSockaddr(from))
	switch {
	case err == unix.EADDRINUSE && from.Port() == 0:
		return errNoPort
	case err == unix.EADDRNOTAVAIL:
		return fmt.Errorf("send from %s: %w: it is not an address of this host", from, os.NewSyscallError("bind", err))
	case err != nil:
		return fmt.Errorf("send from %s: %w", from, os.NewSyscallError("bind", err))
	}
	return nil
}

func toSockaddr(ap netip.AddrPort) unix.Sockaddr {
	a := ap.Addr().Unmap()
	if a.Is4() {
		return &unix.SockaddrInet4{Port: int(ap.Port()), Addr: a.As4()}
	}
	sa := &unix.SockaddrInet6{Port: int(ap.Port()), Addr: a.As16()}
	if z := a.Zone(); z != "" {
		sa.ZoneId = zoneIndex(z)
	}
	return sa
}

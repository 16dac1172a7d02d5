package sessions

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"strconv"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/fivetuple/fivetuple"
	"github.com/fivetuple/fivetuple/datagram"
	"github.com/fivetuple/fivetuple/internal/poll"
)

// port is a socket that clients write to.
type port struct {
	raw    syscall.RawConn // the caller's
	fd     int             // a duplicate; -1 when closed
	addr   netip.AddrPort
	tuple  fivetuple.Tuple
	v6     bool
	any    bool     // bound to no address of its own: each datagram says where it was sent to
	local  [16]byte // else that address
	cookie uint64   // which socket it is, whoever has it (SO_COOKIE)
	queued bool     // it is to be received from in this turn
	strays []*stray // sessions that come with it

	loop  *loop
	index int
}

// What is asked for: a burst of tens of thousands of small datagrams, as many
// milliseconds as the loop may be held up.
const portBuffer = 4 << 20

// newPort sets a socket up for a loop.
func (s *Server) newPort(c *datagram.Conn) (*port, error) {
	raw, err := c.SyscallConn()
	if err != nil {
		return nil, fmt.Errorf("serve %s: %w", c, err)
	}
	p := &port{raw: raw, fd: -1}
	var cerr error
	err = raw.Control(func(fd uintptr) { cerr = p.open(s, int(fd)) })
	if err = errors.Join(err, cerr); err != nil {
		p.close()
		return nil, fmt.Errorf("serve %s: %w", c, err)
	}
	return p, nil
}

func (p *port) open(s *Server, fd int) (err error) {
	if p.v6, err = isV6(fd); err != nil {
		return fmt.Errorf("a UDP socket is needed: %w", err)
	}
	if _, err := poll.RemoteOf(fd); err == nil {
		return fmt.Errorf("it is connected, and hears one client only: %w", errors.ErrUnsupported)
	}
	local, err := poll.LocalOf(fd)
	if err != nil {
		return err
	}
	p.addr = local.Addr
	p.tuple = udp(p.addr, netip.AddrPort{})
	a := p.addr.Addr()
	p.any = a.IsUnspecified()
	if !a.IsMulticast() { // nothing is sent from a group
		p.local = a.As16()
	}
	if p.cookie, err = unix.GetsockoptUint64(fd, unix.SOL_SOCKET, unix.SO_COOKIE); err != nil {
		return os.NewSyscallError("getsockopt", err)
	}
	if p.fd, err = poll.Dup(fd); err != nil {
		return err
	}
	growBuffers(p.fd)
	return p.prepare(s)
}

// prepare sets what the loop needs. Whoever has a copy of the socket may have
// changed it.
func (p *port) prepare(s *Server) error {
	if err := reportErrors(p.fd, p.v6, false); err != nil { // what clients' hosts answer ends nothing
		return err
	}
	if err := reportDestination(p.fd, p.v6, p.any); err != nil {
		return err
	}
	if !s.without.gro {
		joinTrains(p.fd, true) // where there is no such thing datagrams come one by one
	}
	return nil
}

// restore makes of the socket what it was, for another program: it would take a
// train for one datagram.
func (p *port) restore() {
	joinTrains(p.fd, false)
	reportDestination(p.fd, p.v6, true)
}

// growBuffers asks for more than a socket has by default. Sizes that somebody chose stay.
func growBuffers(fd int) {
	fresh, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return
	}
	defer unix.Close(fresh)
	usual, have := memoryOf(fresh), memoryOf(fd)
	if have.receiveBuffer == usual.receiveBuffer {
		raiseBuffer(fd, unix.SO_RCVBUF, unix.SO_RCVBUFFORCE, portBuffer)
	}
	if have.sendBuffer == usual.sendBuffer {
		raiseBuffer(fd, unix.SO_SNDBUF, unix.SO_SNDBUFFORCE, portBuffer)
	}
}

func (p *port) close() {
	if p.fd >= 0 {
		poll.Close(p.fd)
		p.fd = -1
	}
}

// zoneName is the name of an interface, or its number if it has none.
func zoneName(index uint32) string {
	if i, err := net.InterfaceByIndex(int(index)); err == nil {
		return i.Name
	}
	return strconv.Itoa(int(index))
}

// zoneIndex is the inverse of zoneName; 0 if there is no such interface.
func zoneIndex(name string) uint32 {
	if n, err := strconv.ParseUint(name, 10, 32); err == nil {
		return uint32(n)
	}
	if i, err := net.InterfaceByName(name); err == nil {
		return uint32(i.Index)
	}
	return 0
}

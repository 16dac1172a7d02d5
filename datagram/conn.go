package datagram

import (
	"errors"
	"fmt"
	"net"
	"os"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/fivetuple/fivetuple"
	"github.com/fivetuple/fivetuple/internal/unixfile"
)

var (
	// ErrTruncated: the datagram was longer than the buffer; what did not fit is lost.
	ErrTruncated = errors.New("datagram truncated")
	// ErrUnnamed: the peer's Unix socket is bound to no name, so nothing can be sent to it.
	ErrUnnamed = errors.New("the peer's socket has no name, so it cannot be answered: it must be bound to one")
)

// Conn is a UDP or a Unix datagram socket, from [ListenConfig.Listen] or
// [Dialer.Dial]. It is a net.Conn whose Read and Write take one datagram each;
// [Conn.Receive] and [Conn.SendTo] say and choose more. Closing it leaves its
// groups and removes the file of a Unix socket.
type Conn struct {
	socket
	udp       *net.UDPConn // the socket if it is one, else nil
	unix      *unixSocket  // the socket if it is one, else nil
	local     fivetuple.Address
	v6        bool // an AF_INET6 socket, dual-stack unless v6only
	v6only    bool
	ifindex   int               // the only interface to receive by, 0 for all
	remote    fivetuple.Address // where Send sends to, zero if not dialed
	connected bool              // connect(2) was called with remote
	file      *unixfile.File    // of the name it is bound to; nil if none
	keepFile  atomic.Bool       // Close leaves it

	reading sync.Mutex
	packet  Packet // what Read receives into

	mu           sync.Mutex
	readDeadline time.Time
	told         []*ICMPError // met by Send, for Receive
}

var _ net.Conn = (*Conn)(nil)

// socket is what UDP and Unix sockets have in common.
type socket interface {
	net.Conn
	syscall.Conn
	File() (*os.File, error)
	SetReadBuffer(bytes int) error
	SetWriteBuffer(bytes int) error
}

// newConn makes a Conn of a *net.UDPConn or *net.UnixConn.
func newConn(s socket) (*Conn, error) {
	c := &Conn{socket: s, local: fivetuple.AddressOf(s.LocalAddr())}
	switch s := s.(type) {
	case *net.UDPConn:
		a := s.LocalAddr().(*net.UDPAddr).AddrPort().Addr()
		c.udp, c.v6 = s, a.Is6() && !a.Is4In6()
	case *net.UnixConn:
		var err error
		if c.unix, err = newUnixSocket(s); err != nil {
			s.Close()
			return nil, err
		}
	}
	return c, nil
}

// String is "udp 127.0.0.1:9", or "udp 127.0.0.1:40000 > 127.0.0.1:9" if dialed.
func (c *Conn) String() string { return c.tuple().String() }

func (c *Conn) tuple() fivetuple.Tuple {
	return fivetuple.Tuple{Protocol: c.protocol(), Local: c.local, Remote: c.remote}
}

func (c *Conn) protocol() fivetuple.Network {
	if c.unix != nil {
		return fivetuple.Unixgram
	}
	return fivetuple.UDP
}

// Receive waits for a datagram and fills p with it. The capacity of p.Data is
// the buffer, so that one Packet serves a whole loop and allocates once; if
// there is none, one of [MaxSize] bytes is made, which grows for longer
// datagrams of the Unix domain. The error is ErrTruncated if a given buffer
// was too small, an [*ICMPError] if an earlier datagram of a dialed Conn was
// answered so; then the socket goes on.
func (c *Conn) Receive(p *Packet) error {
	if cap(p.Data) == 0 {
		p.Data, p.grows = make([]byte, MaxSize), true
	}
	for {
		p.conn, p.peer = c, nil
		p.To, p.Interface, p.route = c.local, 0, route{}
		cut, err := c.receive(p)
		switch {
		case err != nil:
			p.Data = p.Data[:0]
			if err = c.notReceived(err); err == nil {
				continue
			}
			return err
		case c.ifindex != 0 && p.Interface != 0 && p.Interface != c.ifindex:
			continue
		case cut:
			return fmt.Errorf("receive on %s from %s: %w to %d bytes", c, p.From, ErrTruncated, len(p.Data))
		}
		return nil
	}
}

// receive fills p with the next datagram of the socket, and says whether it was cut.
func (c *Conn) receive(p *Packet) (cut bool, err error) {
	if c.unix != nil {
		return c.unix.receive(p)
	}
	b := p.Data[:cap(p.Data)]
	n, controlLen, flags, from, err := c.udp.ReadMsgUDPAddrPort(b, p.controlIn[:])
	if err != nil {
		return false, err
	}
	p.Data = b[:n]
	p.From = fivetuple.IPAddress(from)
	c.readControl(p, p.controlIn[:controlLen])
	return flags&truncated != 0, nil
}

// notReceived makes an error of receiving clear. It is nil if Send has woken
// this receiver and another has taken what there was to take.
func (c *Conn) notReceived(err error) error {
	if errors.Is(err, os.ErrDeadlineExceeded) {
		if e := c.takeTold(); e != nil {
			return e
		}
		if c.isEarly() {
			return nil
		}
	}
	return c.failed("receive on "+c.String(), bare(err))
}

// Read receives one datagram: Receive without the sender. It returns 0 bytes
// for an empty datagram, and ErrTruncated with what fits in b of a longer one.
func (c *Conn) Read(b []byte) (int, error) {
	if len(b) == 0 {
		return 0, nil
	}
	c.reading.Lock()
	defer c.reading.Unlock()
	c.packet.Data = b[:0:len(b)]
	err := c.Receive(&c.packet)
	n := len(c.packet.Data)
	c.packet.Data = nil
	return n, err
}

// SendTo sends b as one datagram. On a connected Conn only Send works. To a
// Unix socket whose queue is full it waits until there is room, the deadline
// for writing has passed, or the Conn is closed.
func (c *Conn) SendTo(to fivetuple.Address, b []byte) error {
	return c.sendFrom(b, to, route{}, nil, forever)
}

// Send sends b to the address that was dialed; it waits as SendTo does. The
// error is about b: what ICMP says about earlier datagrams goes to the next
// Receive or Read, and a Unix socket that has come anew is connected to again.
func (c *Conn) Send(b []byte) error {
	switch {
	case c.remote.IsZero():
		return fmt.Errorf("send on %s: %w: it was not dialed", c, ErrNotConnected)
	case !c.connected:
		return c.SendTo(c.remote, b)
	case c.unix != nil:
		return c.sendAgain(b)
	}
	err := c.send(b)
	for tries := 0; tries < maxErrors && isEarlier(err); tries++ {
		var icmp *ICMPError
		if errors.As(err, &icmp) { // else it was received already, and the socket still marked
			c.tell(icmp)
		}
		err = c.send(b)
	}
	return err
}

// Write is Send.
func (c *Conn) Write(b []byte) (int, error) {
	if err := c.Send(b); err != nil {
		return 0, err
	}
	return len(b), nil
}

// send sends b on a connected socket.
func (c *Conn) send(b []byte) (err error) {
	switch {
	case len(b) > 0:
		_, err = c.socket.Write(b)
	case c.unix != nil: // Write does not wait with nothing to write
		err = c.unix.sendTo(nil, "", forever)
	default:
		_, _, err = c.udp.WriteMsgUDP(nil, nil, nil)
	}
	if err != nil {
		return c.failed("send on "+c.String(), c.hint(bare(err), len(b)))
	}
	return nil
}

// isEarlier says whether an error of sending may be that of an earlier datagram.
func isEarlier(err error) bool {
	if err == nil {
		return false
	}
	var icmp *ICMPError
	return errors.As(err, &icmp) || errors.Is(err, syscall.ECONNREFUSED) || errors.Is(err, syscall.EHOSTUNREACH) || errors.Is(err, syscall.ENETUNREACH)
}

// forever is how long a sender waits for a full Unix socket: until the deadline.
const forever time.Duration = -1

// sendFrom sends b by a route, for which control has room. patience is how
// long it waits while the queue of a Unix socket is full.
func (c *Conn) sendFrom(b []byte, to fivetuple.Address, r route, control []byte, patience time.Duration) (err error) {
	switch {
	case c.unix != nil && to.Name == "":
		return fmt.Errorf("send on %s: %w", c, ErrUnnamed)
	case c.unix != nil:
		err = c.unix.sendTo(b, to.Name, patience)
	default:
		_, _, err = c.udp.WriteMsgUDPAddrPort(b, writeControl(control, r), to.AddrPort)
	}
	if err != nil {
		return c.failed("send to "+to.String(), c.hint(bare(err), len(b)))
	}
	return nil
}

// reaches says whether the socket's family can send to an address.
func (c *Conn) reaches(to fivetuple.Address) bool {
	if c.unix != nil || !to.AddrPort.IsValid() {
		return c.unix != nil && to.Name != ""
	}
	a := to.AddrPort.Addr()
	return a.Is4() != c.v6 || a.Is4() && !c.v6only && c.local.AddrPort.Addr().IsUnspecified()
}

// Close implements net.Conn.
func (c *Conn) Close() error {
	if !c.keepFile.Load() {
		c.file.Remove()
	}
	return c.socket.Close()
}

// SetUnlinkOnClose says whether Close removes the file of a Unix socket. It does
// that of one bound here, and leaves that of one from [FileConn], which belongs to
// whoever made it.
func (c *Conn) SetUnlinkOnClose(unlink bool) { c.keepFile.Store(!unlink) }

// RemoteAddr is what was dialed, connected or not; nil if nothing was.
func (c *Conn) RemoteAddr() net.Addr { return c.netAddr(c.remote) }

// netAddr is an address as package net has it.
func (c *Conn) netAddr(a fivetuple.Address) net.Addr {
	switch {
	case a.IsZero():
		return nil
	case c.unix != nil:
		return &net.UnixAddr{Name: a.Name, Net: "unixgram"}
	}
	return net.UDPAddrFromAddrPort(a.AddrPort)
}

// SetDeadline implements net.Conn.
func (c *Conn) SetDeadline(t time.Time) error {
	if err := c.SetReadDeadline(t); err != nil {
		return err
	}
	return c.SetWriteDeadline(t)
}

// SetReadDeadline implements net.Conn.
func (c *Conn) SetReadDeadline(t time.Time) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.readDeadline = t
	if len(c.told) > 0 {
		return nil // who takes it sets the deadline
	}
	return c.socket.SetReadDeadline(t)
}

// longAgo is a deadline that has passed.
var longAgo = time.Unix(1, 0)

// tell has Receive return an error that Send has met. A deadline that has
// passed wakes one who waits already.
func (c *Conn) tell(e *ICMPError) {
	const most = 1000 // what nobody takes is no more than that
	c.mu.Lock()
	defer c.mu.Unlock()
	if len(c.told) < most {
		c.told = append(c.told, e)
	}
	c.socket.SetReadDeadline(longAgo)
}

// takeTold takes an error that Send has met, nil if there is none.
func (c *Conn) takeTold() *ICMPError {
	c.mu.Lock()
	defer c.mu.Unlock()
	if len(c.told) == 0 {
		return nil
	}
	e := c.told[0]
	if c.told = c.told[1:]; len(c.told) == 0 {
		c.told = nil
		c.socket.SetReadDeadline(c.readDeadline)
	}
	return e
}

// isEarly says whether the deadline for reading has not passed, and sets it again then.
func (c *Conn) isEarly() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.readDeadline.IsZero() && !time.Now().Before(c.readDeadline) {
		return false
	}
	if len(c.told) == 0 {
		c.socket.SetReadDeadline(c.readDeadline)
	}
	return true
}

// failed makes an error of the socket clear. ICMP errors are taken from the
// socket's error queue, which would otherwise fill up.
func (c *Conn) failed(operation string, err error) error {
	if c.udp != nil && !errors.Is(err, net.ErrClosed) && !errors.Is(err, os.ErrDeadlineExceeded) {
		if e := c.queuedError(); e != nil {
			return e
		}
	}
	return fmt.Errorf("%s: %w", operation, err)
}

// bare drops the addresses that the net package adds to an error: ours names them.
func bare(err error) error {
	var op *net.OpError
	if errors.As(err, &op) {
		return op.Err
	}
	return err
}

// notOpened makes an error of binding or connecting clear; own is what was to be
// bound to.
func notOpened(err error, own string) error {
	err = bare(err)
	if errors.Is(err, syscall.EADDRNOTAVAIL) {
		return fmt.Errorf("%w: %s is not an address of this host", err, own)
	}
	return err
}

// hint adds to the errors of sending what they mean for a datagram of n bytes.
func (c *Conn) hint(err error, n int) error {
	if c.unix != nil {
		return c.unix.hint(err, n)
	}
	switch {
	case errors.Is(err, syscall.EMSGSIZE):
		return fmt.Errorf("%w: a datagram of %d bytes; UDP carries at most 65,507 over IPv4, 65,527 over IPv6, and what the path takes where fragments are forbidden", err, n)
	case errors.Is(err, syscall.EACCES):
		return fmt.Errorf("%w: a broadcast address needs the option broadcast=on", err)
	case errors.Is(err, syscall.EPERM):
		return fmt.Errorf("%w: a firewall rule of this host forbids it", err)
	case errors.Is(err, syscall.ENETUNREACH):
		return fmt.Errorf("%w: this host has no route there", err)
	case errors.Is(err, syscall.ENOBUFS):
		return fmt.Errorf("%w: the queue of the network device is full: send slower", err)
	}
	return err
}

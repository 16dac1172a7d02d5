package datagram

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"syscall"

	"github.com/fivetuple/fivetuple"
)

// ErrTruncated: the datagram was longer than the buffer; what did not fit is lost.
var ErrTruncated = errors.New("datagram truncated")

// Conn is a UDP socket, from [ListenConfig.Listen] or [Dial]. Close, the
// deadlines and the rest of net.UDPConn work as usual. Closing it leaves its
// groups.
type Conn struct {
	*net.UDPConn
	local     fivetuple.Address
	v6        bool // an AF_INET6 socket, dual-stack unless v6only
	v6only    bool
	remote    fivetuple.Address // where Send sends to, zero if not dialed
	connected bool              // connect(2) was called with remote
}

func newConn(uc *net.UDPConn) *Conn {
	ap := uc.LocalAddr().(*net.UDPAddr).AddrPort()
	return &Conn{UDPConn: uc, local: fivetuple.IPAddress(ap), v6: ap.Addr().Is6() && !ap.Addr().Is4In6()}
}

// String is "udp 127.0.0.1:9", or "udp 127.0.0.1:40000 > 127.0.0.1:9" if dialed.
func (c *Conn) String() string { return c.tuple().String() }

func (c *Conn) tuple() fivetuple.Tuple {
	return fivetuple.Tuple{Protocol: fivetuple.UDP, Local: c.local, Remote: c.remote}
}

// Receive waits for a datagram and fills p with it. The capacity of p.Data is
// the buffer, made of [MaxSize] bytes if there is none, so that one Packet
// serves a whole loop and allocates once. The error is ErrTruncated if the
// buffer was too small, an [*ICMPError] if an earlier datagram of a dialed
// Conn was answered so; then the socket goes on.
func (c *Conn) Receive(p *Packet) error {
	if cap(p.Data) == 0 {
		p.Data = make([]byte, MaxSize)
	}
	b := p.Data[:cap(p.Data)]
	n, controlLen, flags, from, err := c.ReadMsgUDPAddrPort(b, p.controlIn[:])
	p.Data, p.conn, p.peer = b[:max(n, 0)], c, nil
	if err != nil {
		p.Data = b[:0]
		return c.failed("receive on "+c.String(), bare(err))
	}
	p.From = fivetuple.IPAddress(from)
	p.To, p.Interface, p.route = c.local, 0, route{}
	c.readControl(p, p.controlIn[:controlLen])
	if flags&truncated != 0 {
		return fmt.Errorf("receive on %s from %s: %w to %d bytes", c, p.From, ErrTruncated, n)
	}
	return nil
}

// SendTo sends b as one datagram. On a dialed Conn only Send works.
func (c *Conn) SendTo(to fivetuple.Address, b []byte) error {
	return c.sendFrom(b, to.AddrPort, route{}, nil)
}

// Send sends b to the address that was dialed. The error may be an
// [*ICMPError] that an earlier datagram has met; then b was not sent.
func (c *Conn) Send(b []byte) error {
	if !c.connected {
		return c.SendTo(c.remote, b)
	}
	if _, err := c.Write(b); err != nil {
		return c.failed("send on "+c.String(), hint(bare(err), len(b)))
	}
	return nil
}

func (c *Conn) sendFrom(b []byte, to netip.AddrPort, r route, control []byte) error {
	if _, _, err := c.WriteMsgUDPAddrPort(b, writeControl(control, r), to); err != nil {
		return c.failed("send to "+to.String(), hint(bare(err), len(b)))
	}
	return nil
}

// reaches says whether the socket's family can send to an address.
func (c *Conn) reaches(a netip.Addr) bool {
	return a.Is4() != c.v6 || a.Is4() && !c.v6only && c.local.AddrPort.Addr().IsUnspecified()
}

// failed makes an error of the socket clear. ICMP errors are taken from the
// socket's error queue, which would otherwise fill up.
func (c *Conn) failed(operation string, err error) error {
	if !errors.Is(err, net.ErrClosed) && !errors.Is(err, os.ErrDeadlineExceeded) {
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

// hint adds to the errors of sending what they mean for a datagram of n bytes.
func hint(err error, n int) error {
	switch {
	case errors.Is(err, syscall.EMSGSIZE):
		return fmt.Errorf("%w: a datagram of %d bytes; UDP carries at most 65,507 over IPv4, 65,527 over IPv6, and what the path takes where fragments are forbidden", err, n)
	case errors.Is(err, syscall.EACCES):
		return fmt.Errorf("%w: a broadcast address needs the option broadcast=on", err)
	case errors.Is(err, syscall.EPERM):
		return fmt.Errorf("%w: a firewall rule of this host forbids it", err)
	case errors.Is(err, syscall.ENETUNREACH):
		return fmt.Errorf("%w: this host has no route there", err)
	}
	return err
}

package datagram

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"syscall"
	"time"

	"github.com/fivetuple/fivetuple"
	"github.com/fivetuple/fivetuple/internal/unixfile"
	"github.com/fivetuple/fivetuple/sockopt"
)

// listenUnix binds a Unix datagram socket to a path or an abstract name.
func (lc ListenConfig) listenUnix(ctx context.Context, e fivetuple.Endpoint) (*Conn, error) {
	bind := func(control controlFunc) (net.PacketConn, error) {
		nlc := net.ListenConfig{Control: sockopt.Combine(control, lc.Options.ControlFunc(lc.Report))}
		return nlc.ListenPacket(ctx, "unixgram", e.Path)
	}
	pc, file, err := unixfile.Bind(ctx, "unixgram", e.Path, unixfile.Config{Mode: lc.Mode, Owner: lc.Owner}, bind)
	if err != nil {
		return nil, err
	}
	c, err := newConn(pc.(*net.UnixConn))
	if err != nil {
		file.Remove()
		return nil, err
	}
	c.file = file
	return c, nil
}

// dialUnix opens a Unix datagram socket with a name of its own, so that answers
// reach it, and connects it unless it is not to be.
func (d Dialer) dialUnix(ctx context.Context, e fivetuple.Endpoint) (*Conn, error) {
	if d.Source != (netip.AddrPort{}) || d.Interface != "" {
		return nil, errors.New("a source address or an interface goes with udp://")
	}
	s, file, err := d.openUnix(ctx, e.Path)
	if err != nil {
		return nil, unixHint(bare(err))
	}
	c, err := newConn(s)
	if err != nil {
		file.Remove()
		return nil, err
	}
	c.file, c.remote, c.connected = file, fivetuple.Address{Name: e.Path}, !d.Unconnected
	return c, nil
}

func (d Dialer) openUnix(ctx context.Context, to string) (socket, *unixfile.File, error) {
	own, autobind, err := ownName()
	if err != nil {
		return nil, nil, err
	}
	open := func(control controlFunc) (socket, error) {
		control = sockopt.Combine(control, autobind, d.Options.ControlFunc(d.Report))
		if d.Unconnected {
			nlc := net.ListenConfig{Control: control}
			pc, err := nlc.ListenPacket(ctx, "unixgram", own)
			if err != nil {
				return nil, err
			}
			return pc.(*net.UnixConn), nil
		}
		nd := net.Dialer{Control: control}
		if own != "" {
			nd.LocalAddr = &net.UnixAddr{Name: own, Net: "unixgram"}
		}
		nc, err := nd.DialContext(ctx, "unixgram", to)
		if err != nil {
			return nil, err
		}
		return nc.(*net.UnixConn), nil
	}
	if own == "" {
		s, err := open(nil)
		return s, nil, err
	}
	return unixfile.Bind(ctx, "unixgram", own, unixfile.Config{Mode: 0o666}, open) // whoever answers may be another user
}

// sendAgain sends b on a connected Unix socket. One that the other end has left
// stays without a peer for good: if somebody has bound the name since, it is
// connected again.
func (c *Conn) sendAgain(b []byte) error {
	err := c.send(b)
	if errors.Is(err, syscall.ECONNREFUSED) || errors.Is(err, syscall.ENOTCONN) {
		if again := c.unix.connect(c.remote.Name); again != nil {
			return fmt.Errorf("send on %s: %w", c, unixHint(again))
		}
		err = c.send(b)
	}
	return err
}

// sendTo sends b to a name. While the receiver's queue is full it tries again
// until patience ends: an unconnected socket is not told when there is room.
func (u *unixSocket) sendTo(b []byte, to string, patience time.Duration) error {
	const shortest, longest = 20 * time.Microsecond, 2 * time.Millisecond
	var began time.Time
	for pause := shortest; ; pause = min(2*pause, longest) {
		err := u.trySendTo(b, to)
		if !isFull(err) || patience == 0 {
			return err
		}
		if began.IsZero() {
			began = time.Now()
		} else if patience > 0 && time.Since(began) >= patience {
			return err
		}
		time.Sleep(pause)
	}
}

// hint adds to the errors of sending what they mean for a datagram of n bytes.
func (u *unixSocket) hint(err error, n int) error {
	if errors.Is(err, syscall.EMSGSIZE) {
		return fmt.Errorf("%w: a datagram of %d bytes; %s: raise it with the option sndbuf=%d", err, n, u.sendLimit(), n)
	}
	return unixHint(err)
}

func unixHint(err error) error {
	switch {
	case errors.Is(err, syscall.ECONNREFUSED):
		return fmt.Errorf("%w: nobody has the socket open", err)
	case errors.Is(err, syscall.ENOENT):
		return fmt.Errorf("%w: there is no socket: is its server running?", err)
	case errors.Is(err, syscall.EACCES):
		return fmt.Errorf("%w: the mode of the socket's file, or of a directory above, does not let this user send to it", err)
	case errors.Is(err, syscall.EPERM):
		return fmt.Errorf("%w: the socket there is connected to another and takes datagrams from that one only", err)
	case errors.Is(err, syscall.EPROTOTYPE):
		return fmt.Errorf("%w: the socket there is not one for datagrams: try unix:// or seqpacket://", err)
	case isFull(err):
		return fmt.Errorf("%w: what was sent before and is not read yet fills the receiver's queue or this socket's send buffer", err)
	}
	return err
}

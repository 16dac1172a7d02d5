package datagram

import (
	"fmt"
	"net"
	"os"

	"github.com/fivetuple/fivetuple"
	"github.com/fivetuple/fivetuple/internal/unixfile"
)

// FileConn makes a Conn of a socket that this process was given, bound already:
// by a service manager, or by the process that started it. It takes a copy of
// the descriptor; f stays the caller's. A Unix socket's file is not removed when
// the Conn is closed: it is the giver's.
func FileConn(f *os.File) (*Conn, error) {
	pc, err := net.FilePacketConn(f)
	if err != nil {
		return nil, fmt.Errorf("socket %s: %w", f.Name(), bare(err))
	}
	s, ok := pc.(socket)
	uc, isUnix := pc.(*net.UnixConn)
	if _, isUDP := pc.(*net.UDPConn); !ok || !isUDP && !isUnix || isUnix && uc.LocalAddr().Network() != "unixgram" {
		pc.Close()
		return nil, fmt.Errorf("socket %s is none for UDP or Unix datagrams", f.Name())
	}
	c, err := newConn(s)
	if err != nil {
		return nil, err
	}
	if err := c.adopt(); err != nil {
		c.Close()
		return nil, fmt.Errorf("socket %s: %w", f.Name(), err)
	}
	return c, nil
}

// adopt sets up a socket that another has opened.
func (c *Conn) adopt() error {
	if ra := c.socket.RemoteAddr(); ra != nil && !fivetuple.AddressOf(ra).IsZero() {
		c.remote, c.connected = fivetuple.AddressOf(ra), true
	}
	if c.unix != nil {
		c.file = unixfile.Of(c.local.Name)
		c.keepFile.Store(true)
		return nil
	}
	raw, err := c.SyscallConn()
	if err != nil {
		return err
	}
	network := "udp4"
	if c.v6 {
		network = "udp6"
		c.v6only = isV6Only(raw)
	}
	return tellDestination(network, "", raw)
}

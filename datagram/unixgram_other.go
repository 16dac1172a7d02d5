//go:build !linux

package datagram

import (
	"errors"
	"net"
	"os"
	"path/filepath"
	"syscall"

	"github.com/fivetuple/fivetuple"
)

// unixSocket is a Unix datagram socket.
type unixSocket struct{ *net.UnixConn }

func newUnixSocket(uc *net.UnixConn) (*unixSocket, error) { return &unixSocket{uc}, nil }

// receive fills p with the next datagram, and says whether it was cut. A buffer
// of the package's own has room for the longest that the system sends.
func (u *unixSocket) receive(p *Packet) (cut bool, err error) {
	const longest = 1 << 20
	if p.grows && cap(p.Data) < longest {
		p.Data = make([]byte, longest)
	}
	b := p.Data[:cap(p.Data)]
	n, _, flags, from, err := u.ReadMsgUnix(b, nil)
	if err != nil {
		return false, err
	}
	p.Data, p.From = b[:n], fivetuple.Address{}
	if from != nil {
		p.From = fivetuple.AddressOf(from)
	}
	return flags&truncated != 0, nil
}

// trySendTo sends b to a name, or with "" to the one it is connected to.
func (u *unixSocket) trySendTo(b []byte, to string) error {
	if to == "" {
		_, err := u.Write(b)
		return err
	}
	_, err := u.WriteToUnix(b, &net.UnixAddr{Name: to, Net: "unixgram"})
	return err
}

// isFull says whether an error of sending is that the receiver's queue is full.
func isFull(err error) bool { return errors.Is(err, syscall.ENOBUFS) }

// connect does nothing: the socket stays as it is.
func (u *unixSocket) connect(string) error { return nil }

func (u *unixSocket) sendLimit() string { return "the send buffer takes no more" }

// ownName is what a socket that is dialed is bound to: a file that is removed
// when it is closed.
func ownName() (name string, control controlFunc, err error) {
	f, err := os.CreateTemp("", "ft-*.sock")
	if err != nil {
		return "", nil, err
	}
	f.Close()
	return filepath.Clean(f.Name()), nil, os.Remove(f.Name())
}

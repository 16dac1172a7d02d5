package gate

import (
	"errors"
	"net/netip"
	"os"

	"github.com/fivetuple/fivetuple"
	"github.com/fivetuple/fivetuple/internal/poll"
)

// Newcomer is a connection that has yet to be put in a loop.
type Newcomer struct {
	FD           int // -1: none
	ID           uint64
	TCP, Lingers bool // closing one that lingers may wait (SO_LINGER, socket(7))
	Proxied      bool // a proxy has yet to say who the client is, which no limit counts until then
	Local        fivetuple.Address
	Peer         poll.Peer
}

// Open makes a newcomer, not admitted by a gate yet, of a connected socket that
// came from elsewhere. It works on a duplicate of the descriptor, and makes it
// one that does not wait.
func Open(f *os.File) (n Newcomer, err error) {
	sc, err := f.SyscallConn()
	if err != nil {
		return n, err
	}
	var local poll.Peer
	var cerr error
	err = sc.Control(func(fd uintptr) {
		if n.TCP, cerr = poll.IsStream(int(fd)); cerr != nil {
			return
		}
		n.Lingers = poll.Lingers(int(fd))
		if local, cerr = poll.LocalOf(int(fd)); cerr != nil {
			return
		}
		if cerr = poll.SetNonblock(int(fd)); cerr == nil {
			n.FD, cerr = poll.Dup(int(fd))
		}
	})
	n.Local = fivetuple.Address{AddrPort: local.Addr, Name: local.Name}
	return n, errors.Join(err, cerr)
}

// Tuple names the connection as this side sees it.
func (n *Newcomer) Tuple() fivetuple.Tuple {
	t := fivetuple.Tuple{Protocol: fivetuple.Unix, Local: n.Local, Remote: fivetuple.Address{AddrPort: n.Peer.Addr, Name: n.Peer.Name}}
	if n.TCP {
		t.Protocol = fivetuple.TCP
	}
	return t
}

// Client is whom limits for each source count the connection by; invalid if they
// do not count it.
func (n *Newcomer) Client() netip.AddrPort {
	if n.Proxied {
		return netip.AddrPort{}
	}
	return n.Peer.Addr
}

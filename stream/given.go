package stream

import (
	"net"
	"sync/atomic"

	"github.com/fivetuple/fivetuple/sockopt"
)

// givenSocket is what is known of a connection that a command serves. If it has
// the socket itself this side neither reads nor writes it until it is taken back,
// and has the count of its bytes from the kernel.
type givenSocket struct {
	away atomic.Bool // the command has it
	ever atomic.Bool
	fin  atomic.Bool // the peer has ended its side; the kernel counts a FIN as a byte
}

// look brings the counters of a given socket up to date, where the kernel
// keeps some: of TCP.
func (c *Conn) look() {
	tc, ok := c.raw.(*net.TCPConn)
	if !ok || !c.given.ever.Load() {
		return
	}
	i, err := sockopt.TCPInfoOf(tc)
	if err != nil || i.Size < sentSince {
		return
	}
	in, out := i.BytesReceived, acked(&i)
	if in > 0 && (c.given.fin.Load() || finReceived(&i)) {
		in--
	}
	c.moved(&c.in, int(in-min(in, c.in.Load())))
	c.moved(&c.out, int(out-min(out, c.out.Load())))
}

// acked is how many bytes the peer has acknowledged. BytesAcked counts our FIN,
// what was sent does not.
func acked(i *sockopt.TCPInfo) uint64 {
	return min(i.BytesAcked, i.BytesSent-min(i.BytesRetrans, i.BytesSent))
}

// States of include/net/tcp_states.h.
const (
	tcpTimeWait  = 6
	tcpClose     = 7
	tcpCloseWait = 8
	tcpLastAck   = 9
	tcpClosing   = 11
)

// finReceived says whether the peer has sent its FIN, as far as the state tells:
// in CLOSE it has if ours was acknowledged, else the connection was reset.
func finReceived(i *sockopt.TCPInfo) bool {
	switch i.State {
	case tcpTimeWait, tcpCloseWait, tcpLastAck, tcpClosing:
		return true
	case tcpClose:
		return i.BytesAcked > acked(i)
	}
	return false
}

// sentSince is the size of a struct tcp_info that has BytesSent and
// BytesRetrans (Linux 4.19).
const sentSince = 216

// blind says that nobody here knows whether bytes move on the connection.
func (c *Conn) blind() bool { return c.given.away.Load() && !c.isTCP() }

func (c *Conn) isTCP() bool {
	_, ok := c.raw.(*net.TCPConn)
	return ok
}

package splice

import (
	"fmt"
	"net/netip"
	"os"
	"syscall"
	"time"
	"unique"

	"github.com/fivetuple/fivetuple"
	"github.com/fivetuple/fivetuple/internal/poll"
	"github.com/fivetuple/fivetuple/relay/upstream"
	"github.com/fivetuple/fivetuple/sockopt"
	"github.com/fivetuple/fivetuple/stats"
)

// side is one of the two sockets of a pair, and the direction of the bytes that
// come from it.
type side uint8

const (
	client side = iota
	target
)

var sideNames = [...]string{"client", "target"}

func (s side) other() side { return 1 - s }

// pair is a connection of a client and the one to its target. It belongs to a
// loop, whose mutex guards it, and lies in the loop's table: what is small here
// is small ten thousand times. Times are the server's clock.
type pair struct {
	id       uint64
	flows    [2]flow // by the side that their bytes come from
	started  int64
	active   int64 // when a byte was last moved
	reported int64 // when its totals were, in a Data event
	ends     int64 // when what is waited for has taken too long; unless relaying
	local    unique.Handle[fivetuple.Address]
	remote   netip.AddrPort // the client, the one that a proxy speaks for if one does
	route    *route
	address  *upstream.Address // where the target is; nil before one is chosen
	setup    *setup            // until the pair is connected
	extra    *extra            // nil for most
	fd       [2]int32          // -1: none
	slot     int32
	gen      uint32    // which of those that had the slot: events of earlier ones may be on their way
	err      [2]uint16 // the error number a side has ended with
	shift    uint16    // how far the target's port is from the address's
	flags    flags
	state    state
	cause    cause // of an ending one
}

// flow is one direction of a pair.
type flow struct {
	moved  uint64     // bytes read from the client, or written to it
	due    int64      // when the next byte may be read, if there is a rate
	pipe   *poll.Pipe // nil unless it is in use
	buffer *buffer    // what was copied and not yet taken; nil if nothing was
	held   int32      // bytes in the pipe
	flags  flowFlags
	heat   int8 // how many pieces in a row were large, or if splicing how many to spare were small
}

// extra is what few pairs have.
type extra struct {
	peerName    string         // of the client's Unix socket
	proxy       netip.AddrPort // who spoke for the client
	destination netip.AddrPort // where the client wanted to go, as the proxy says
	name        string         // the one of the route's Names that the client greeted
	err         error          // why an ending pair ends
}

// name is the one of the route's Names that the pair goes by, "" for none.
func (p *pair) name() string {
	if p.extra == nil {
		return ""
	}
	return p.extra.name
}

type state uint8

const (
	free        state = iota
	introducing       // the header of a proxy is awaited
	greeting          // and the greeting of a TLS client
	connecting
	relaying
	ending // one side is gone; the other has yet to take what was written to it
)

var stateNames = [...]string{"", "waiting for the PROXY header", "waiting for the greeting", "connecting", "relaying", "ending"}

type flags uint16

const (
	clientTCP   flags = 1 << iota
	targetTCP         // must follow
	lingers           // closing the client's socket may wait
	waits             // it is in the loop's list of those to go on with
	unreported        // bytes were moved since reported
	chosen            // the address counts it
	counted           // its source counts it
	accepted          // the Accept event was made
	targetFirst       // the target ended its side before the client did
)

func (p *pair) is(f flags) bool    { return p.flags&f != 0 }
func (p *pair) isTCP(of side) bool { return p.is(clientTCP << of) }

type flowFlags uint16

const (
	readable  flowFlags = 1 << iota // the sender may have sent something
	room                            // the receiver may take something
	tellsRoom                       // the poller tells when it does
	eof                             // the sender has ended its side
	shut                            // and the receiver was told
	broken                          // the receiver takes no more
	readOn                          // a short read does not mean that all is read
	urgent                          // urgent data was seen, at which splice stops for ever
	limited                         // the rate is used up
	splices                         // much comes at a time
	noPipe                          // but there was no pipe
)

func (x *flow) is(f flowFlags) bool { return x.flags&f != 0 }

func (x *flow) waiting() bool { return x.held > 0 || x.buffer != nil }

// cause is why a connection ended.
type cause uint8

const (
	causeClosed cause = iota
	causeTargetClosed
	causePeerReset
	causeTargetReset
	causeFailed
	causeTimedOut
	causeIdle
	causeNoFirstByte
	causeHalfClosed
	causeNoTarget
	causeNoHeader
	causeNoGreeting
	causeRefused
	causeCut
	causeShutdown
)

// As events of package stream name them, where it has the same.
var causeNames = [...]string{"peer closed", "target closed", "peer reset", "target reset", "failed", "timed out", "idle timeout",
	"no first byte", "half-closed too long", "no target", "no PROXY header", "no greeting", "refused", "cut", "reset at shutdown"}

// flushTimeout bounds how long one side is kept, when the other is gone, until it
// has everything that was written to it.
const flushTimeout = 5 * time.Second

// clientTuple names the client's connection as this side sees it.
func (p *pair) clientTuple() fivetuple.Tuple {
	t := fivetuple.Tuple{Protocol: fivetuple.Unix, Local: p.local.Value(), Remote: fivetuple.Address{AddrPort: p.remote}}
	if p.isTCP(client) {
		t.Protocol = fivetuple.TCP
	}
	if p.extra != nil {
		t.Remote.Name = p.extra.peerName
	}
	return t
}

// targetTuple names the connection to the target.
func (p *pair) targetTuple() fivetuple.Tuple {
	local, _ := poll.LocalOf(int(p.fd[target])) // without it none is told
	return p.targetTupleFrom(local)
}

func (p *pair) targetTupleFrom(local poll.Peer) fivetuple.Tuple {
	t := fivetuple.Tuple{Protocol: fivetuple.Unix, Local: fivetuple.Address{AddrPort: local.Addr, Name: local.Name}, Remote: p.targetAddress()}
	if p.isTCP(target) {
		t.Protocol = fivetuple.TCP
	}
	return t
}

func (p *pair) targetAddress() fivetuple.Address {
	if p.address.Path != "" {
		return fivetuple.Address{Name: p.address.Path}
	}
	return fivetuple.IPAddress(shifted(p.address.Addr, p.shift))
}

// shifted is an address whose port is so much further.
func shifted(a netip.AddrPort, shift uint16) netip.AddrPort {
	return netip.AddrPortFrom(a.Addr().Unmap(), a.Port()+shift)
}

// bytesIn and bytesOut are what came from the client, and what was sent to it.
func (p *pair) bytesIn() uint64  { return p.flows[client].moved }
func (p *pair) bytesOut() uint64 { return p.flows[target].moved }

// halfClosed says whether one direction has ended.
func (p *pair) halfClosed() bool {
	return (p.flows[client].flags|p.flows[target].flags)&(eof|broken) != 0
}

// causeOf is why a pair ends of which one side failed.
func causeOf(of side, errno syscall.Errno) cause {
	switch errno {
	case syscall.ECONNRESET, syscall.EPIPE:
		return causePeerReset + cause(of)
	case syscall.ETIMEDOUT:
		return causeTimedOut
	}
	return causeFailed
}

// failure is the error of a side, for an event.
func (l *loop) failure(p *pair, of side, errno syscall.Errno) error {
	if l.server.Sink == nil {
		return errno
	}
	t := p.clientTuple()
	if of == target {
		t = p.targetTuple()
	}
	return fmt.Errorf("%s %s %s->%s: %w", sideNames[of], t.Protocol, t.Local, t.Remote, os.NewSyscallError("relay", errno))
}

// reset closes both sides at once: TCP sends RST and forgets unsent data.
func (l *loop) reset(p *pair, why cause, err error) {
	l.remove(p, why, err, true)
}

// close closes both sides. One that does not get all that was sent to it is reset.
func (l *loop) close(p *pair, why cause, err error) {
	l.remove(p, why, err, false)
}

// breakOff ends a pair of which the side gone is lost. The other is reset, when it
// has got what was written to it: a reset makes the kernel forget that.
func (l *loop) breakOff(p *pair, gone side, why cause, err error) {
	left := gone.other()
	if fd := int(p.fd[left]); !p.isTCP(left) || poll.Unsent(fd) == 0 {
		l.reset(p, why, err)
		return
	}
	poll.CloseAtOnce(int(p.fd[gone]), true)
	p.fd[gone] = -1
	for s := range p.flows {
		l.forget(&p.flows[s])
	}
	p.state, p.cause, p.ends = ending, why, l.now+int64(flushTimeout)
	if err != nil {
		p.extras().err = err
	}
	l.arm(p)
}

func (p *pair) extras() *extra {
	if p.extra == nil {
		p.extra = new(extra)
	}
	return p.extra
}

func (l *loop) remove(p *pair, why cause, err error, hard bool) {
	if p.state == ending { // the first reason stays
		why, err, hard = p.cause, nil, true
		if p.extra != nil {
			err = p.extra.err
		}
	}
	if l.server.Sink != nil && p.is(accepted) {
		e := stats.Event{
			Kind: stats.Disconnect, Conn: p.id, Cause: causeNames[why], Tuple: p.clientTuple(),
			BytesIn: p.bytesIn(), BytesOut: p.bytesOut(), Duration: time.Duration(l.now - p.started),
		}
		if err != nil {
			e.Err = err.Error()
		}
		if p.isTCP(client) && p.fd[client] >= 0 {
			e.TCP = tcpOf(int(p.fd[client]))
		}
		l.note(e)
	}
	for s, fd := range p.fd {
		switch {
		case fd < 0:
		case hard || p.flows[side(s).other()].waiting():
			poll.CloseAtOnce(int(fd), p.err[s] == 0) // or it is reset already
		default:
			if side(s) == client && p.is(lingers) { // the loop has no time to wait
				poll.DoNotLinger(int(fd))
			}
			poll.CloseAtOnce(int(fd), false)
		}
	}
	id, client := p.id, p.countedAs()
	l.drop(p)
	l.server.gate.Leave(id, client)
}

// countedAs is whom limits for each source count the pair by; invalid if they do not.
func (p *pair) countedAs() netip.AddrPort {
	if !p.is(counted) {
		return netip.AddrPort{}
	}
	return p.remote
}

// tcpOf is the kernel's last view of a TCP connection, nil if there is none.
func tcpOf(fd int) *stats.TCP {
	i, err := sockopt.GetTCPInfo(fd)
	if err != nil {
		return nil
	}
	return &stats.TCP{RTT: i.RTT, RTTVar: i.RTTVar, Retransmits: i.TotalRetrans, Cwnd: i.SndCwnd, MSS: i.SndMSS}
}

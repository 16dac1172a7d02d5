package tui

import (
	"cmp"
	"net/netip"
	"time"

	"github.com/fivetuple/fivetuple"
	"github.com/fivetuple/fivetuple/sockdiag"
	"github.com/fivetuple/fivetuple/sockopt"
	"github.com/fivetuple/fivetuple/table"
)

// slot is what the book keeps of a socket: all that a column shows, without
// pointers, so that 100,000 of them cost neither memory nor the collector much.
type slot struct {
	serial uint64 // names the socket in this book, never reused
	asked  uint64 // the book's serial when the inode was first seen
	cookie uint64
	cgroup uint64

	at      int64 // of the latest reading, ns since the book was begun
	opened  int64 // when it was first seen; 0 if it was there from the beginning
	in, out uint64
	rateIn  uint64 // bytes per second
	rateOut uint64

	delivery                     uint64
	rtt, rttvar, minrtt, rto     uint32 // µs
	cwnd, unacked, retrans, lost uint32
	notsent, mss                 uint32

	local, remote         [16]byte
	localPort, remotePort uint16
	number                uint16
	tos, tclass           uint8
	inode, uid            uint32
	recvQueue, sendQueue  uint32
	iface, mark, drops    uint32
	expires               uint32 // ms
	seen                  uint32 // the latest reading that had it

	flags       slotFlags
	congestion  uint16 // an index into book.congestions
	protocol    fivetuple.Network
	state       fivetuple.State
	timer       sockdiag.TimerKind
	retransmits uint8
}

type slotFlags uint16

const (
	inUse slotFlags = 1 << iota
	matched
	rateKnown
	hasInfo
	v6Only
	hasLocal
	hasRemote
	local4
	remote4
	odd // has what does not fit: the socket is in book.odd
)

const packed = hasInfo | v6Only | hasLocal | hasRemote | local4 | remote4 | odd

// fits says whether a slot holds all of the socket: it has no names.
func fits(s *sockdiag.Socket) bool {
	return s.Name == "" && s.PeerInode == 0 && s.Local.Addr().Zone() == "" && s.Remote.Addr().Zone() == ""
}

// pack keeps a socket. Of one that does not fit, the addresses are kept elsewhere.
func (p *slot) pack(s *sockdiag.Socket) {
	p.flags &^= packed
	p.set(v6Only, s.V6Only)
	p.set(odd, !fits(s))
	p.cookie, p.cgroup = s.Cookie, s.Cgroup
	p.protocol, p.state, p.number = s.Protocol, s.State, s.Number
	p.local, p.localPort = p.packEnd(s.Local, hasLocal, local4)
	p.remote, p.remotePort = p.packEnd(s.Remote, hasRemote, remote4)
	p.inode, p.uid, p.iface = s.Inode, s.UID, s.Interface
	p.recvQueue, p.sendQueue = s.RecvQueue, s.SendQueue
	p.timer, p.retransmits, p.expires = s.Timer.Kind, s.Timer.Retransmits, uint32(s.Timer.Expires/time.Millisecond)
	p.mark, p.tos, p.tclass, p.drops = s.Mark, s.TOS, s.TClass, s.Memory.Drops
	if i := s.Info; i != nil {
		p.flags |= hasInfo
		p.in, p.out, p.delivery = i.BytesReceived, i.BytesAcked, i.DeliveryRate
		p.rtt, p.rttvar, p.minrtt, p.rto = micros(i.RTT), micros(i.RTTVar), micros(i.MinRTT), micros(i.RTO)
		p.cwnd, p.unacked, p.retrans, p.lost = i.SndCwnd, i.Unacked, i.TotalRetrans, i.Lost
		p.notsent, p.mss = i.NotSentBytes, i.SndMSS
	}
}

func (p *slot) set(f slotFlags, to bool) {
	p.flags &^= f
	if to {
		p.flags |= f
	}
}

func (p *slot) is(f slotFlags) bool { return p.flags&f != 0 }

func (p *slot) packEnd(e netip.AddrPort, has, is4 slotFlags) (addr [16]byte, port uint16) {
	if e.Addr().IsValid() {
		p.flags |= has
		p.set(is4, e.Addr().Is4())
		addr = e.Addr().As16()
	}
	return addr, e.Port()
}

func (p *slot) end(addr [16]byte, port uint16, has, is4 slotFlags) netip.AddrPort {
	a := netip.Addr{}
	switch {
	case p.is(is4):
		a = netip.AddrFrom4([4]byte(addr[12:]))
	case p.is(has):
		a = netip.AddrFrom16(addr)
	}
	return netip.AddrPortFrom(a, port)
}

// micros is how the kernel gives durations.
func micros(d time.Duration) uint32 { return uint32(d / time.Microsecond) }

func duration(micros uint32) time.Duration { return time.Duration(micros) * time.Microsecond }

// unpack makes a row again; owners are not its business. The row's Info is info.
func (b *book) unpack(i int32, row *table.Row, info *sockopt.TCPInfo) {
	p := &b.slots[i]
	if p.is(odd) {
		row.Socket = b.odd[i]
	} else {
		row.Socket = sockdiag.Socket{
			Local:  p.end(p.local, p.localPort, hasLocal, local4),
			Remote: p.end(p.remote, p.remotePort, hasRemote, remote4),
		}
	}
	row.Protocol, row.State, row.V6Only, row.Number = p.protocol, p.state, p.is(v6Only), p.number
	row.Interface, row.Inode, row.UID, row.Cookie, row.Cgroup = p.iface, p.inode, p.uid, p.cookie, p.cgroup
	row.RecvQueue, row.SendQueue = p.recvQueue, p.sendQueue
	row.Timer = sockdiag.Timer{Kind: p.timer, Retransmits: p.retransmits, Expires: time.Duration(p.expires) * time.Millisecond}
	row.Memory.Drops, row.Mark, row.TOS, row.TClass = p.drops, p.mark, p.tos, p.tclass
	row.Congestion = b.congestions[p.congestion]
	row.Info = nil
	if p.is(hasInfo) {
		row.Info = info
		info.BytesReceived, info.BytesAcked, info.DeliveryRate = p.in, p.out, p.delivery
		info.RTT, info.RTTVar, info.MinRTT, info.RTO = duration(p.rtt), duration(p.rttvar), duration(p.minrtt), duration(p.rto)
		info.SndCwnd, info.Unacked, info.TotalRetrans, info.Lost = p.cwnd, p.unacked, p.retrans, p.lost
		info.NotSentBytes, info.SndMSS = p.notsent, p.mss
	}
	b.watched(p, row)
}

// watched fills what the kernel does not tell and the book knows.
func (b *book) watched(p *slot, row *table.Row) {
	row.Namespace = &b.here
	row.Opened = time.Time{}
	if p.opened != 0 {
		row.Opened = b.begun.Add(time.Duration(p.opened))
	}
	row.Rate = table.Rate{Known: p.is(rateKnown), In: p.rateIn, Out: p.rateOut}
}

// rateColumn sorts by what a socket moves both ways.
var rateColumn = table.Column{
	Name: "rate", Head: "RATE", Doc: "bytes per second, both ways", Right: true,
	Compare: func(a, b *table.Row) int {
		if a.Rate.Known != b.Rate.Known {
			if a.Rate.Known {
				return 1
			}
			return -1
		}
		return cmp.Compare(a.Rate.In+a.Rate.Out, b.Rate.In+b.Rate.Out)
	},
}

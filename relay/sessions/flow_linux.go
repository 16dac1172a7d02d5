package sessions

import (
	"encoding/binary"
	"unsafe"

	"golang.org/x/sys/unix"
)

// run is what one session has of a batch: a chain of messages in their order.
type run struct {
	token       uint64
	first, last int16
}

// received is what a message of a batch holds: n bytes, as datagrams of seg.
type received struct{ n, seg int }

func (r received) datagrams() int {
	if r.seg <= 0 || r.n <= r.seg {
		return 1
	}
	return (r.n + r.seg - 1) / r.seg
}

// fromClients takes what has come to a socket, and sends it on.
func (l *loop) fromClients(p *port) {
	for range batchesPerTurn {
		m, errno := l.in.fromClients(p.fd)
		switch errno {
		case 0:
		case unix.EAGAIN:
			return
		default: // of an earlier reply: there may be datagrams all the same
			l.clientsFailed(p, errno)
			continue
		}
		l.inFlow.count(len(m))
		l.sort(p, m)
		l.sendUp()
		again(m)
		if len(m) < batch {
			return
		}
	}
	l.goOn(portToken | uint64(p.index))
}

// sort finds the session of each message, which is a new one for a new client.
func (l *loop) sort(p *port, m []mmsghdr) {
	var k, last key
	var c *session
	for i := range m {
		h := &m[i].hdr
		if h.Flags&(unix.MSG_TRUNC|unix.MSG_CTRUNC) != 0 {
			l.cut++
			continue
		}
		var said message
		if h.Controllen > 0 {
			said.readControl(l.controlOf(i, int(h.Controllen)))
		}
		l.in.keyOf(&k, p, i, &said)
		if c == nil || k != last {
			if c = l.sessionOf(p, &k); c == nil {
				l.refused++
				continue
			}
			last = k
		}
		r := received{int(m[i].n), said.seg}
		l.came[i] = r
		count := uint64(r.datagrams())
		l.inFlow.Datagrams += count
		c.packetsIn += count
		c.bytesIn += uint64(r.n)
		l.chain[i] = -1
		if c.run >= 0 {
			was := &l.runs[c.run]
			l.chain[was.last] = int16(i)
			was.last = int16(i)
			continue
		}
		c.run = int16(len(l.runs))
		l.runs = append(l.runs, run{token: c.token(), first: int16(i), last: int16(i)})
		l.touch(c)
	}
}

func (l *loop) controlOf(i, n int) []byte {
	b := (*[controlIn]byte)(unsafe.Pointer(&l.in.control[i]))
	return b[:min(n, controlIn)]
}

// keyOf writes the key of the i-th message.
func (b *inbox) keyOf(k *key, p *port, i int, said *message) {
	sa := &b.names[i]
	k.port = uint16(p.index)
	k.zone = 0
	if p.any {
		k.local = said.to
	} else {
		k.local = p.local
	}
	if !p.v6 {
		in := (*unix.RawSockaddrInet4)(unsafe.Pointer(sa))
		k.client = [16]byte{10: 0xff, 11: 0xff, 12: in.Addr[0], 13: in.Addr[1], 14: in.Addr[2], 15: in.Addr[3]}
		k.from = binary.BigEndian.Uint16((*[2]byte)(unsafe.Pointer(&in.Port))[:])
		return
	}
	k.client = sa.Addr
	k.from = binary.BigEndian.Uint16((*[2]byte)(unsafe.Pointer(&sa.Port))[:])
	switch {
	case isLinkLocal(&sa.Addr):
		k.zone = sa.Scope_id
	case isLinkLocal(&k.local):
		k.zone = said.ifindex
	}
}

// sessionOf returns the session of a key, a new one if there is none, nil if there
// cannot be one.
func (l *loop) sessionOf(p *port, k *key) *session {
	if slot, ok := l.byKey[*k]; ok {
		return l.table.at(slot)
	}
	return l.open(p, k)
}

// sendUp sends the batch to the targets.
func (l *loop) sendUp() {
	for _, r := range l.runs {
		c := l.table.find(r.token)
		if c == nil {
			continue
		}
		c.run = -1
		for i := r.first; i >= 0; i = l.chain[i] {
			l.pass(c, false, l.in.iovs[i].Base, l.came[i])
			if l.table.find(r.token) == nil {
				break
			}
		}
	}
	l.runs = l.runs[:0]
	l.flush()
	l.endCut()
}

// pass sends what a message holds on, now or when a fault or a rate lets it.
func (l *loop) pass(c *session, down bool, b *byte, r received) {
	if c.line == nil {
		l.put(c, down, b, r.n, r.seg)
		return
	}
	if r.seg <= 0 || r.seg > r.n {
		r.seg = r.n
	}
	for at := 0; ; at += r.seg {
		size := min(r.seg, r.n-at)
		l.delay(c, down, (*byte)(unsafe.Add(unsafe.Pointer(b), at)), size)
		if at+size >= r.n {
			return
		}
	}
}

// fromTarget takes what has come for a session, for sendDown.
func (l *loop) fromTarget(c *session) {
	const errorsPerTurn = 8
	failures := 0
	for received := 0; received < 2*batch; {
		if l.in.used == batch {
			l.sendDown()
		}
		m := l.in.targets[l.in.used:]
		n, errno := receiveMany(int(c.fd), m)
		if errno == unix.EAGAIN {
			return
		}
		if errno != 0 {
			if failures++; failures > errorsPerTurn || !l.targetFailed(c, errno) {
				return
			}
			continue
		}
		l.outFlow.count(n)
		first := l.in.used
		l.in.used += n
		received += n
		l.fromTargetNow(c)
		for i := range n {
			l.reply(c, first+i, &m[i])
		}
		if c.line != nil && c.line.cut {
			l.sendDown()
			return
		}
		if n < len(m) {
			return
		}
	}
	if !c.is(waits) {
		c.flags |= waits
		l.goOn(c.token())
	}
}

// fromTargetNow marks a session as answered.
func (l *loop) fromTargetNow(c *session) {
	l.touch(c)
	if c.is(replied) {
		return
	}
	c.flags |= replied
	c.address.Opened()
	l.arm(c)
}

// reply passes one message on to the client.
func (l *loop) reply(c *session, slot int, m *mmsghdr) {
	if m.hdr.Flags&(unix.MSG_TRUNC|unix.MSG_CTRUNC) != 0 {
		l.cut++
		return
	}
	r := received{n: int(m.n)}
	if m.hdr.Controllen > 0 {
		var said message
		said.readControl(l.controlOf(slot, int(m.hdr.Controllen)))
		r.seg = said.seg
	}
	count := uint64(r.datagrams())
	l.outFlow.Datagrams += count
	c.packetsOut += count
	c.bytesOut += uint64(r.n)
	l.pass(c, true, l.in.iovs[slot].Base, r)
}

// sendDown sends to clients what has come from targets.
func (l *loop) sendDown() {
	l.flush()
	again(l.in.targets[:l.in.used])
	l.in.used = 0
	l.endCut()
}

package sessions

import (
	"fmt"
	"math/bits"
	"os"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

const (
	// Messages of one system call: with many clients, too, each may have several in it.
	batch = 256

	// A message has room for the longest datagram, and for the longest train. Slots
	// are a few cache lines further apart, or the beginnings of all would fall into the
	// same sets of the cache.
	slotSize = 64 << 10
	slotStep = slotSize + 33*64

	// A train: what the oldest kernels take (UDP_MAX_SEGMENTS, include/linux/udp.h),
	// and what an IPv4 packet holds.
	maxSegments = 64
	maxTrain    = 65507

	outPieces = 4 * batch // iovecs of an outbox
)

// inbox is where messages are received. Its messages share the buffers: those
// of clients fill it from the start, those of targets share it.
type inbox struct {
	mem     []byte
	clients [batch]mmsghdr // with room for the sender
	targets [batch]mmsghdr
	iovs    [batch]unix.Iovec
	names   [batch]unix.RawSockaddrInet6
	control [batch][controlIn / 8]uint64 // aligned as headers are
	used    int                          // slots with messages of targets that are not yet sent
}

// newInbox maps the buffers, of which the kernel gives only what is touched.
func newInbox() (*inbox, error) {
	mem, err := unix.Mmap(-1, 0, batch*slotStep, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANON)
	if err != nil {
		return nil, fmt.Errorf("make room for %d datagrams: %w", batch, os.NewSyscallError("mmap", err))
	}
	b := &inbox{mem: mem}
	for i := range batch {
		b.iovs[i].Base = &mem[i*slotStep]
		b.iovs[i].SetLen(slotSize)
		for _, h := range []*mmsghdr{&b.clients[i], &b.targets[i]} {
			h.hdr.Iov = &b.iovs[i]
			h.hdr.SetIovlen(1)
			h.hdr.Control = (*byte)(unsafe.Pointer(&b.control[i]))
			h.hdr.SetControllen(controlIn)
		}
		b.clients[i].hdr.Name = (*byte)(unsafe.Pointer(&b.names[i]))
		b.clients[i].hdr.Namelen = unix.SizeofSockaddrInet6
	}
	return b, nil
}

func (b *inbox) free() { unix.Munmap(b.mem) }

// forget gives back the memory of what was received.
func (b *inbox) forget() { unix.Madvise(b.mem, unix.MADV_DONTNEED) }

// fromClients receives into all slots.
func (b *inbox) fromClients(fd int) ([]mmsghdr, syscall.Errno) {
	n, errno := receiveMany(fd, b.clients[:])
	return b.clients[:n], errno
}

// again makes room for control messages and senders again.
func again(m []mmsghdr) {
	for i := range m {
		m[i].hdr.Namelen = unix.SizeofSockaddrInet6
		m[i].hdr.SetControllen(controlIn)
		m[i].hdr.Flags = 0
	}
}

// outbox is what is to be sent through one socket.
type outbox struct {
	fd      int
	down    bool // to clients; else to one target
	n       int
	pieces  int
	hdrs    [batch]mmsghdr
	iovs    [outPieces]unix.Iovec
	names   [batch]unix.RawSockaddrInet6
	control [batch][controlOut / 8]uint64
	about   [batch]about
}

// about is what is to be known of a message while it is sent.
type about struct {
	slot   int32
	gen    uint32
	seg    int // size of its datagrams
	count  int // how many they are
	total  int // bytes
	source int // size of the control message that says what it leaves from
	full   bool
}

func (o *outbox) init() {
	for i := range o.hdrs {
		o.hdrs[i].hdr.Control = (*byte)(unsafe.Pointer(&o.control[i]))
	}
}

// put adds datagrams of seg bytes, of which only the last may be shorter, to
// what is sent to s: to its client, or its target. The bytes must stay until flush.
func (l *loop) put(s *session, down bool, b *byte, n, seg int) {
	if seg <= 0 || seg >= n {
		seg = n
	}
	if seg < n && !l.takesTrains(s, down, seg) {
		for at := 0; at < n; at += seg {
			size := min(seg, n-at)
			l.put(s, down, (*byte)(unsafe.Add(unsafe.Pointer(b), at)), size, size)
		}
		return
	}
	o := &l.out
	fd := int(s.fd)
	if down {
		fd = l.ports[s.key.port].fd
	}
	if o.n > 0 && (o.fd != fd || o.down != down) {
		l.flush()
	}
	if l.extend(s, b, n, seg) {
		return
	}
	if o.n == batch || o.pieces == outPieces {
		l.flush()
	}
	o.fd, o.down = fd, down
	i := o.n
	a := &o.about[i]
	*a = about{slot: s.slot, gen: s.gen, seg: seg, count: 1, total: n}
	if n > seg {
		a.count = (n + seg - 1) / seg
		a.full = n%seg != 0
	}
	h := &o.hdrs[i].hdr
	h.Iov = &o.iovs[o.pieces]
	h.SetIovlen(1)
	h.Name, h.Namelen = nil, 0
	if down {
		l.address(s, i)
	}
	o.iovs[o.pieces].Base = b
	o.iovs[o.pieces].SetLen(n)
	o.pieces++
	o.n++
}

// extend adds datagrams to the last train, if they go with it.
func (l *loop) extend(s *session, b *byte, n, seg int) bool {
	o := &l.out
	if o.n == 0 || o.pieces == outPieces || n == 0 {
		return false
	}
	a := &o.about[o.n-1]
	if a.slot != s.slot || a.gen != s.gen || a.full || a.total == 0 || n > seg && seg != a.seg || seg > a.seg {
		return false
	}
	count := (n + seg - 1) / seg
	if a.count+count > maxSegments || a.total+n > maxTrain || !l.takesTrains(s, o.down, a.seg) {
		return false
	}
	a.count += count
	a.total += n
	a.full = n%a.seg != 0
	o.iovs[o.pieces].Base = b
	o.iovs[o.pieces].SetLen(n)
	o.pieces++
	h := &o.hdrs[o.n-1].hdr
	h.SetIovlen(int(h.Iovlen) + 1)
	return true
}

// takesTrains says whether datagrams of a size can leave as one.
func (l *loop) takesTrains(s *session, down bool, seg int) bool {
	if down {
		return l.gso && seg <= int(s.longestDown)
	}
	return l.gso && seg <= int(s.longestUp)
}

// address writes who message i goes to, and where it leaves from.
func (l *loop) address(s *session, i int) {
	o := &l.out
	p := l.ports[s.key.port]
	h := &o.hdrs[i].hdr
	h.Name = (*byte)(unsafe.Pointer(&o.names[i]))
	h.Namelen = sockaddr(&o.names[i], p.v6, &s.key.client, s.key.from, s.key.zone)
	if p.any && s.key.local != [16]byte{} {
		o.about[i].source = writeSource((*[controlOut]byte)(unsafe.Pointer(&o.control[i])), &s.key.local, s.key.zone)
	}
}

// flush sends everything.
func (l *loop) flush() {
	o := &l.out
	for i := range o.n {
		a := &o.about[i]
		size := a.source
		if a.count > 1 {
			size = writeSegment((*[controlOut]byte)(unsafe.Pointer(&o.control[i])), size, a.seg)
		}
		o.hdrs[i].hdr.SetControllen(size)
	}
	for i := 0; i < o.n; {
		n, errno := l.send(i)
		for _, a := range o.about[i : i+n] {
			if a.count > 1 {
				l.flow(o.down).Trains += uint64(a.count)
			}
		}
		if errno != 0 {
			if !l.notSent(i, errno) {
				break // its session has ended, and all was for that
			}
			n = 1
		}
		i += n
	}
	if l.late { // let go of what waited in memory of its own
		clear(o.iovs[:o.pieces])
		l.late = false
	}
	o.n, o.pieces = 0, 0
}

// send sends messages from the i-th on.
func (l *loop) send(i int) (int, syscall.Errno) {
	o := &l.out
	if o.about[i].count > 1 && l.server.failGSO != 0 {
		return 0, l.server.failGSO
	}
	if m := o.hdrs[i:o.n]; len(m) > 1 && l.server.failGSO == 0 {
		return sendMany(o.fd, m)
	}
	h := &o.hdrs[i].hdr
	var errno syscall.Errno
	if h.Namelen == 0 && o.about[i].count == 1 {
		errno = sendBytes(o.fd, h.Iov.Base, int(h.Iov.Len))
	} else {
		errno = sendOne(o.fd, h)
	}
	if errno != 0 {
		return 0, errno
	}
	return 1, 0
}

// notSent sees to a message that could not be sent. It returns false if its
// session has ended, and the rest of the outbox was for that.
func (l *loop) notSent(i int, errno syscall.Errno) bool {
	o := &l.out
	a := &o.about[i]
	lost, bytes := a.count, a.total
	if a.count > 1 {
		switch errno {
		case unix.EIO, unix.ENOPROTOOPT, unix.EOPNOTSUPP:
			// EIO: the device does not compute checksums, or the packets are to be
			// encrypted (udp_send_skb in net/ipv4/udp.c).
			l.gso, l.gsoWhy = false, fmt.Sprintf("off: sending several datagrams as one: %v", errno)
			lost, bytes, errno = l.sendPieces(i)
		case unix.EINVAL, unix.EMSGSIZE: // longer than the path takes: the kernel would have to fragment each
			var failed syscall.Errno
			if lost, bytes, failed = l.sendPieces(i); lost < a.count {
				l.shorten(a, o.down)
			}
			errno = failed
		}
	}
	if a.count == 1 && errno == unix.EMSGSIZE && !o.down {
		takeErrors(o.fd) // it may be of an earlier datagram
		lost, bytes, errno = l.sendPieces(i)
	}
	s := l.table.find(uint64(a.gen)<<32 | uint64(uint32(a.slot)))
	if s == nil {
		return o.down
	}
	if lost > 0 {
		s.dropped += uint64(lost)
		l.dropped += uint64(lost)
		if o.down {
			s.packetsOut -= min(uint64(lost), s.packetsOut)
			s.bytesOut -= min(uint64(bytes), s.bytesOut)
			l.tellNotSent(s, errno)
			return true
		}
		return l.targetFailed(s, errno)
	}
	return true
}

// shorten remembers that datagrams of a size do not go as a train.
func (l *loop) shorten(a *about, down bool) {
	s := l.table.find(uint64(a.gen)<<32 | uint64(uint32(a.slot)))
	if s == nil {
		return
	}
	longest := uint16(min(a.seg-1, 1<<16-1))
	if down {
		s.longestDown = min(s.longestDown, longest)
	} else {
		s.longestUp = min(s.longestUp, longest)
	}
}

// sendPieces sends the datagrams of a train one by one. It returns how many were
// not sent, their bytes, and the error of the last of them.
func (l *loop) sendPieces(i int) (lost, bytes int, failed syscall.Errno) {
	o := &l.out
	a := &o.about[i]
	h := o.hdrs[i].hdr
	iovs := unsafe.Slice(h.Iov, int(h.Iovlen))
	l.piece.hdr = h
	one := &l.piece.hdr
	one.Iov = &l.piece.iov
	one.SetIovlen(1)
	one.SetControllen(a.source)
	for _, v := range iovs {
		for at := 0; at < int(v.Len) || at == 0; at += max(a.seg, 1) {
			l.piece.iov.Base = (*byte)(unsafe.Add(unsafe.Pointer(v.Base), at))
			size := min(a.seg, int(v.Len)-at)
			l.piece.iov.SetLen(size)
			if errno := sendOne(o.fd, one); errno != 0 {
				lost++
				bytes += size
				failed = errno
			}
		}
	}
	return lost, bytes, failed
}

// count adds a receiving call to what Stats tells.
func (f *Flow) count(messages int) {
	if messages > 0 {
		f.Batches[bits.Len(uint(messages))-1]++
	}
}

func (l *loop) flow(down bool) *Flow {
	if down {
		return &l.outFlow
	}
	return &l.inFlow
}

package lab

import (
	"math/rand/v2"
	"time"
)

// shaper decides what becomes of packets. Times are since the link was made.
type shaper struct {
	Conditions
	mtu       int
	direction uint64
	random    *rand.Rand
	number    uint64 // of the next packet, over all seeds
	stats     Stats

	waiting      fifo // for the rate
	waitingBytes int
	idleFrom     time.Duration // when the packet that is being sent will have been

	inOrder, ahead fifo          // on their way: with the delay, and without it; each by arrival
	last           time.Duration // arrival of the last one in order
}

type packet struct {
	data      []byte
	number    uint64
	overtakes bool
	jitter    time.Duration
	at        time.Duration // that it came; once on its way, that it arrives
}

// mostHeld bounds the memory of a direction: bytes of buffers, each of the MTU.
const mostHeld = 128 << 20

// set changes what is asked for from now on. Nothing thereby happens any earlier.
func (s *shaper) set(c Conditions, now time.Duration) {
	s.send(now)
	c.MTU = s.mtu
	if c.Queue == 0 {
		c.Queue = max(int(c.Rate/8/10), 16*s.mtu)
	}
	s.Conditions = c
	s.random = rand.New(rand.NewPCG(c.Seed, s.direction))
}

// admit reports whether it has kept the packet.
func (s *shaper) admit(data []byte, now time.Duration) bool {
	// Each packet draws three times, whatever becomes of it.
	lost := s.random.Float64() < s.Loss
	p := packet{data: data, number: s.number, at: now}
	p.overtakes = s.random.Float64() < s.Reorder
	p.jitter = time.Duration(s.random.Float64() * float64(s.Jitter))
	s.number++
	s.send(now)
	switch {
	case lost:
		s.stats.Lost++
		return false
	case s.idleFrom > now && s.waitingBytes+len(data) > s.Queue:
		s.stats.Dropped++
		return false
	case s.held() >= mostHeld/s.mtu:
		s.stats.Overrun++
		return false
	}
	s.waiting.push(p)
	s.waitingBytes += len(data)
	s.send(now)
	return true
}

// send puts on their way the packets whose turn it is by now, one after another.
func (s *shaper) send(now time.Duration) {
	for !s.waiting.empty() && s.idleFrom <= now {
		p := s.waiting.pop()
		s.waitingBytes -= len(p.data)
		sent := max(s.idleFrom, p.at)
		if s.Rate > 0 {
			sent += time.Duration(int64(len(p.data)) * 8 * int64(time.Second) / s.Rate)
		}
		s.idleFrom = sent
		if p.overtakes {
			p.at = sent
			if sent < s.last {
				s.stats.Reordered++
			}
			s.ahead.push(p)
			continue
		}
		s.last = max(s.last, sent+s.Delay+p.jitter)
		p.at = s.last
		s.inOrder.push(p)
	}
}

// take returns a packet that has arrived by now.
func (s *shaper) take(now time.Duration) ([]byte, bool) {
	s.send(now)
	queue := s.earliest()
	if queue == nil || queue.first().at > now {
		return nil, false
	}
	return queue.pop().data, true
}

func (s *shaper) held() int {
	return s.waiting.len() + s.inOrder.len() + s.ahead.len()
}

// next returns when there is something to do next.
func (s *shaper) next() (at time.Duration, ok bool) {
	if queue := s.earliest(); queue != nil {
		at, ok = queue.first().at, true
	}
	if !s.waiting.empty() && (!ok || s.idleFrom < at) {
		at, ok = s.idleFrom, true
	}
	return at, ok
}

// earliest returns the queue of the packet that arrives next, nil if there is none.
func (s *shaper) earliest() *fifo {
	switch {
	case s.inOrder.empty() && s.ahead.empty():
		return nil
	case s.inOrder.empty():
		return &s.ahead
	case s.ahead.empty():
		return &s.inOrder
	}
	p, q := s.ahead.first(), s.inOrder.first()
	if p.at < q.at || p.at == q.at && p.number < q.number {
		return &s.ahead
	}
	return &s.inOrder
}

// fifo is a queue that uses its memory again.
type fifo struct {
	packets []packet
	head    int
}

func (f *fifo) len() int       { return len(f.packets) - f.head }
func (f *fifo) empty() bool    { return f.len() == 0 }
func (f *fifo) first() *packet { return &f.packets[f.head] }

func (f *fifo) push(p packet) {
	if len(f.packets) == cap(f.packets) && f.head > len(f.packets)/2 {
		rest := copy(f.packets, f.packets[f.head:])
		clear(f.packets[rest:])
		f.packets, f.head = f.packets[:rest], 0
	}
	f.packets = append(f.packets, p)
}

func (f *fifo) pop() packet {
	p := f.packets[f.head]
	f.packets[f.head] = packet{}
	f.head++
	if f.empty() {
		f.packets, f.head = f.packets[:0], 0
	}
	return p
}

// isHousekeeping reports whether an IP packet is one that the kernel sends whenever
// it joins an IPv6 group: a multicast listener report (RFC 3810). Two hosts have no
// use for it, and packet numbers are to be those of the test's own packets.
func isHousekeeping(packet []byte) bool {
	const hopByHop, icmp, mldv1Report, mldv1Done, mldv2Report = 0, 58, 131, 132, 143
	if len(packet) < 49 || packet[0]>>4 != 6 || packet[6] != hopByHop || packet[40] != icmp {
		return false
	}
	kind := packet[48] // after a header of 40 and hop-by-hop options of 8 bytes
	return kind == mldv1Report || kind == mldv1Done || kind == mldv2Report
}

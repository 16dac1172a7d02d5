package lab

import (
	"errors"
	"fmt"
	"os"
	"sync"
	"testing"
	"time"
)

// Conditions are what a [ShapedLink] does to the packets of one direction. Under
// the zero value it hands each on as soon as it can.
//
// What happens to packet n depends on Seed and n alone, not on the time: the same
// seed loses the same packets again. The two directions have different luck.
type Conditions struct {
	Delay   time.Duration // one way, of every packet
	Jitter  time.Duration // more delay, uniform from 0 to this; it changes no order, so a packet may wait for those before it
	Loss    float64       // probability that a packet is lost, 0 to 1; a lost packet takes no part of the rate
	Reorder float64       // probability that a packet skips the delay and so overtakes those that have it before them, 0 to 1
	Rate    int64         // bits per second, of whole IP packets; 0 is no limit
	Queue   int           // bytes that may wait for the rate, but for the packet being sent; what finds no room is dropped. 0 is 100 ms of the rate, at least 16 packets of the MTU
	MTU     int           // bytes of an IP packet, 68 to 65535, from 1280 with IPv6; 0 is 1500
	Seed    uint64
}

// A Shaped is a link made by [ShapedLink].
type Shaped struct {
	AtoB, BtoA *Direction
}

// A Direction carries packets from one host of a link to the other.
type Direction struct {
	t        testing.TB
	from, to wire
	alarm    *alarm
	began    time.Time

	mu      sync.Mutex
	shaper  shaper
	closed  bool
	awake   bool          // deliver is at work and looks at the shaper again before it waits
	alarmAt time.Duration // since began, 0 when it is not set
	spare   [][]byte      // packet buffers
	unread  int64         // when last asked
}

// Stats are of the packets that came to one direction of a link. Those on their
// way are not counted yet.
type Stats struct {
	Packets   int64 // delivered
	Bytes     int64 // delivered, in whole IP packets
	Lost      int64 // packets lost by chance
	Dropped   int64 // packets for which there was no room in the queue
	Reordered int64 // packets that overtook another
	Overrun   int64 // packets that came faster than the test process can carry them: lost, but by no condition
}

// ShapedLink is [Link] with conditions, the same in both directions: two network
// devices between which the test process carries the packets. The link has limits
// of its own; see the package comment.
func ShapedLink(t testing.TB, a, b *Host, c Conditions, networks ...string) *Shaped {
	t.Helper()
	return shapedLink(t, a, b, c, newWires, networks)
}

// shapedLink is ShapedLink over wires of either make.
func shapedLink(t testing.TB, a, b *Host, c Conditions, newWires func(a, b *Host, mtu int) ([2]wire, error), networks []string) *Shaped {
	t.Helper()
	if c.MTU == 0 {
		c.MTU = 1500
	}
	if err := c.check(); err != nil {
		t.Fatalf("lab: link hosts %s and %s: %v", a.name, b.name, err)
	}
	var work sync.WaitGroup
	t.Cleanup(work.Wait) // after all is closed: the last comes first
	wires, err := newWires(a, b, c.MTU)
	if err != nil {
		t.Fatalf("lab: host %s: link to host %s: %v", a.name, b.name, err)
	}
	for _, w := range wires {
		atEnd(t, w.Close)
	}
	s := &Shaped{
		AtoB: newDirection(t, c, 0, wires[0], wires[1]),
		BtoA: newDirection(t, c, 1, wires[1], wires[0]),
	}
	for _, d := range []*Direction{s.AtoB, s.BtoA} {
		work.Go(d.receive)
		work.Go(d.deliver)
	}
	addNetworks(t, a, b, networks)
	return s
}

// Set changes the conditions of both directions, as [Direction.Set] does of one.
func (s *Shaped) Set(c Conditions) {
	s.AtoB.t.Helper()
	s.AtoB.Set(c)
	s.BtoA.Set(c)
}

// Set changes the conditions for the packets to come: the next is number 0 of the
// new seed. Those waiting for the rate get the new one; those on their way arrive
// as they would have, and later ones keep behind them. The MTU stays as it is.
// Conditions out of range change nothing and fail the test.
func (d *Direction) Set(c Conditions) {
	d.t.Helper()
	if err := c.check(); err != nil {
		d.t.Errorf("lab: set the conditions of a link: %v", err)
		return
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	d.shaper.set(c, time.Since(d.began))
}

// Stats returns what has happened since the link was made.
func (d *Direction) Stats() Stats {
	d.mu.Lock()
	defer d.mu.Unlock()
	if !d.closed {
		unread, err := d.from.unread()
		if err != nil {
			d.t.Errorf("lab: count what a link has missed: %v", err)
		}
		d.unread = unread
	}
	stats := d.shaper.stats
	stats.Overrun += d.unread
	return stats
}

func (c Conditions) check() error {
	switch {
	case c.Delay < 0 || c.Jitter < 0:
		return fmt.Errorf("delay %v and jitter %v: want none below 0", c.Delay, c.Jitter)
	case !(c.Loss >= 0 && c.Loss <= 1 && c.Reorder >= 0 && c.Reorder <= 1):
		return fmt.Errorf("loss %v and reorder %v: want probabilities, 0 to 1", c.Loss, c.Reorder)
	case c.Rate < 0 || c.Queue < 0:
		return fmt.Errorf("rate %d and queue %d: want none below 0", c.Rate, c.Queue)
	case c.MTU != 0 && (c.MTU < 68 || c.MTU > 65535): // RFC 791; the devices
		return fmt.Errorf("MTU %d: want 68 to 65535", c.MTU)
	}
	return nil
}

// A wire is the far side of a host's network device: what the host sends is read
// from it, and what is written to it the host receives. One call, one IP packet.
type wire interface {
	Read([]byte) (int, error)
	Write([]byte) (int, error)
	Close() error
	// unread counts the packets that were lost since nobody read them in time.
	unread() (int64, error)
}

func newDirection(t testing.TB, c Conditions, number uint64, from, to wire) *Direction {
	t.Helper()
	alarm, err := newAlarm()
	if err != nil {
		t.Fatalf("lab: %v", err)
	}
	d := &Direction{t: t, from: from, to: to, alarm: alarm, began: time.Now()}
	atEnd(t, d.close)
	d.shaper.mtu, d.shaper.direction = c.MTU, number
	d.shaper.set(c, 0)
	return d
}

func atEnd(t testing.TB, stop func() error) {
	t.Cleanup(func() {
		if err := stop(); err != nil {
			t.Errorf("lab: close a link: %v", err)
		}
	})
}

// receive takes packets from the one host.
func (d *Direction) receive() {
	buf := d.buffer()
	for {
		n, err := d.from.Read(buf)
		if errors.Is(err, os.ErrClosed) {
			return
		}
		if err != nil {
			d.t.Errorf("lab: read from a link: %v", err)
			return
		}
		if isHousekeeping(buf[:n]) {
			continue
		}
		d.mu.Lock()
		kept := d.shaper.admit(buf[:n], time.Since(d.began))
		if kept {
			d.setAlarm()
		}
		d.mu.Unlock()
		if kept {
			buf = d.buffer()
		}
	}
}

// deliver gives the other host each packet at its time.
func (d *Direction) deliver() {
	for d.alarm.wait() == nil {
		d.mu.Lock()
		d.awake = true
		for {
			data, ok := d.shaper.take(time.Since(d.began))
			if !ok {
				break
			}
			// Counted first, so that who has received it finds it counted.
			d.shaper.stats.Packets++
			d.shaper.stats.Bytes += int64(len(data))
			d.mu.Unlock()
			_, err := d.to.Write(data)
			d.mu.Lock()
			if err != nil {
				d.shaper.stats.Packets--
				d.shaper.stats.Bytes -= int64(len(data))
				if !errors.Is(err, os.ErrClosed) && !isDown(err) {
					d.t.Errorf("lab: write to a link: %v", err)
				}
			}
			d.spare = append(d.spare, data[:cap(data)])
		}
		d.awake, d.alarmAt = false, 0
		d.setAlarm()
		d.mu.Unlock()
	}
}

// setAlarm has deliver wake in time for the next packet.
func (d *Direction) setAlarm() {
	next, ok := d.shaper.next()
	if !ok || d.closed || d.awake || d.alarmAt != 0 && d.alarmAt <= next {
		return
	}
	d.alarmAt = max(next, 1)
	if err := d.alarm.set(max(next-time.Since(d.began), 1)); err != nil {
		d.t.Errorf("lab: set a link's timer: %v", err)
	}
}

func (d *Direction) buffer() []byte {
	d.mu.Lock()
	defer d.mu.Unlock()
	if last := len(d.spare) - 1; last >= 0 {
		buf := d.spare[last]
		d.spare = d.spare[:last]
		return buf
	}
	return make([]byte, d.shaper.mtu)
}

func (d *Direction) close() error {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.closed = true
	return d.alarm.Close()
}

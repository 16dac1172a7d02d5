package inspect

import (
	"cmp"
	"fmt"
	"math"
	"slices"
	"time"

	"github.com/fivetuple/fivetuple"
	"github.com/fivetuple/fivetuple/sockdiag"
	"github.com/fivetuple/fivetuple/sockopt"
	"github.com/fivetuple/fivetuple/stats"
)

// Delta is what the kernel counted between the first and the last sample of a
// TCP connection.
type Delta struct {
	Samples int
	Over    time.Duration // from the first to the last

	Busy          time.Duration // with data unacknowledged
	RwndLimited   time.Duration // of Busy: waiting for the peer's window
	SndbufLimited time.Duration // of Busy: waiting for room in the send buffer

	BytesSent, BytesAcked, BytesReceived uint64 // BytesSent counts what was sent again
	SegsSent, SegsReceived               uint32 // with data
	Retrans, DSACKDups                   uint32 // segments sent again, and those that the peer had already
	Timeouts                             uint32 // retransmission timeouts
	Delivered, DeliveredCE               uint32 // segments, and those of them with an ECN mark
	OutOfOrder, ReceivedCE               uint32 // segments received

	// Samples with data unacknowledged, and those of them that found the
	// congestion window full, a segment lost, the oldest one timed out, and the
	// peer's window closed.
	Waiting, CwndFull, Losing, TimedOut, WindowClosed int
}

// course is a connection between the first and the last sample.
type course struct {
	Delta
	samples     []Sample
	first, last Sample
}

// newCourse returns the reason why there is nothing to be told.
func newCourse(samples []Sample) (course, string) {
	if len(samples) < 2 {
		return course{}, "a verdict needs two samples at least"
	}
	c := course{samples: samples, first: samples[0], last: samples[len(samples)-1]}
	c.Samples, c.Over = len(samples), c.last.Time.Sub(c.first.Time)
	switch state := c.last.State; {
	case state == fivetuple.StateListen:
		return c, "a listener moves no data"
	case state == fivetuple.StateSynSent:
		return c, "the peer has not answered the connect yet" + again(c.last.Timer.Retransmits)
	case c.last.Info == nil && c.last.Protocol != fivetuple.TCP:
		return c, fmt.Sprintf("a %s socket does not count what it waits for, only TCP does", c.last.Protocol)
	case c.first.Info == nil || c.last.Info == nil:
		return c, fmt.Sprintf("in state %s the kernel keeps no TCP_INFO", state)
	case c.last.Info.Size < sndbufLimitedEnd:
		return c, "the kernel does not count what a connection waits for, Linux 4.10 does"
	case c.Over <= 0:
		return c, "no time has passed between the samples"
	}
	for _, s := range samples {
		if s.Info == nil {
			return c, "the connection changed its state meanwhile"
		}
		c.count(s)
	}
	c.compare(c.first.Info, c.last.Info)
	return c, ""
}

func (d *Delta) compare(a, b *sockopt.TCPInfo) {
	d.Busy = within(b.BusyTime-a.BusyTime, d.Over)
	d.RwndLimited = within(b.RwndLimited-a.RwndLimited, d.Busy)
	d.SndbufLimited = within(b.SndbufLimited-a.SndbufLimited, d.Busy-d.RwndLimited)
	d.BytesSent, d.BytesAcked, d.BytesReceived = b.BytesSent-a.BytesSent, b.BytesAcked-a.BytesAcked, b.BytesReceived-a.BytesReceived
	d.SegsSent, d.SegsReceived = b.DataSegsOut-a.DataSegsOut, b.DataSegsIn-a.DataSegsIn
	d.Retrans, d.DSACKDups = b.TotalRetrans-a.TotalRetrans, b.DSACKDups-a.DSACKDups
	d.Timeouts = uint32(b.TotalRTO - a.TotalRTO)
	d.Delivered, d.DeliveredCE = b.Delivered-a.Delivered, b.DeliveredCE-a.DeliveredCE
	d.OutOfOrder, d.ReceivedCE = b.RcvOOOPack-a.RcvOOOPack, b.ReceivedCE-a.ReceivedCE
}

func (d *Delta) count(s Sample) {
	if s.SendQueue == 0 {
		return
	}
	d.Waiting++
	if inFlight(s.Info) >= s.Info.SndCwnd {
		d.CwndFull++
	}
	if s.Info.Lost > 0 {
		d.Losing++
	}
	if s.Info.Retransmits > 0 {
		d.TimedOut++
	}
	if windowClosed(s) {
		d.WindowClosed++
	}
}

func again(n uint8) string {
	if n == 0 {
		return ""
	}
	return ", sent again " + times(n)
}

func times(n uint8) string {
	if n == 1 {
		return "once"
	}
	return fmt.Sprintf("%d times", n)
}

// within bounds a difference of the kernel's clock by another, to the rounding of both.
func within(d, most time.Duration) time.Duration { return max(0, min(d, most)) }

func (c course) moved() bool { return c.BytesSent > 0 || c.BytesAcked > 0 || c.BytesReceived > 0 }

// out and in weigh the two directions: what moved and what waits to.
func (c course) out() uint64 { return max(c.BytesAcked, c.BytesSent) + uint64(c.last.SendQueue) }
func (c course) in() uint64  { return c.BytesReceived + uint64(c.last.RecvQueue) }

func (c course) idleSince() []string {
	quiet := min(c.last.Info.LastDataSent, c.last.Info.LastDataRecv)
	return []string{fmt.Sprintf("nothing waits in either queue, the last data came or went %s ago", duration(quiet))}
}

// part is a share of the watched time.
func (c course) part(d time.Duration) float64 { return d.Seconds() / c.Over.Seconds() }

// rate is how much was acknowledged, in bytes per second.
func (c course) rate() float64 { return float64(c.BytesAcked) / c.Over.Seconds() }

func (c course) lossRate() float64 { return lossRate(c.Retrans, c.DSACKDups, c.SegsSent) }

// lossRate is the part of the data segments that were sent again and had to be.
func lossRate(retrans, needless, sent uint32) float64 {
	if sent == 0 {
		return 0
	}
	return float64(retrans-min(needless, retrans)) / float64(sent)
}

// rtt returns the shortest round trip since the connection began (or within five
// minutes: net.ipv4.tcp_min_rtt_wlen) and the median of those in the samples.
func (c course) rtt() (shortest, median time.Duration) {
	var all []time.Duration
	for _, s := range c.samples {
		if s.SendQueue > 0 {
			all = append(all, s.Info.RTT)
		}
	}
	return c.last.Info.MinRTT, medianOf(all)
}

// meanAndDeviation are 0 of no values.
func meanAndDeviation(values []float64) (mean, deviation float64) {
	if len(values) == 0 {
		return 0, 0
	}
	for _, v := range values {
		mean += v / float64(len(values))
	}
	for _, v := range values {
		deviation += (v - mean) * (v - mean) / float64(len(values))
	}
	return mean, math.Sqrt(deviation)
}

// cwnd is the median congestion window, in segments.
func (c course) cwnd() uint32 {
	var all []uint32
	for _, s := range c.samples {
		all = append(all, s.Info.SndCwnd)
	}
	return medianOf(all)
}

func medianOf[T cmp.Ordered](all []T) (median T) {
	if len(all) == 0 {
		return median
	}
	slices.Sort(all)
	return all[len(all)/2]
}

// inFlight is how many segments are believed to be on the path (RFC 6675, pipe).
func inFlight(t *sockopt.TCPInfo) uint32 {
	gone := t.Sacked + t.Lost
	if gone > t.Unacked {
		return t.Retrans
	}
	return t.Unacked - gone + t.Retrans
}

// windowClosed says that data waits and the peer takes not even one segment.
func windowClosed(s Sample) bool {
	return s.Timer.Kind == sockdiag.TimerProbe || s.Info.NotSentBytes > 0 && s.Info.SndWnd < s.Info.SndMSS && s.Info.Size >= sndWndEnd
}

func share(n, of int) float64 {
	if of == 0 {
		return 0
	}
	return float64(n) / float64(of)
}

func percent(share float64) string {
	switch {
	case share > 0 && share < 0.01:
		return fmt.Sprintf("%.2f%%", 100*share)
	case share > 0 && share < 0.1:
		return fmt.Sprintf("%.1f%%", 100*share)
	}
	return fmt.Sprintf("%.0f%%", 100*share)
}

func bytes(n uint64) string           { return stats.FormatBytes(n) }
func duration(d time.Duration) string { return stats.FormatDuration(d) }

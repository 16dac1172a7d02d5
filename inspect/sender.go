package inspect

import (
	"fmt"
	"math"
	"slices"
	"time"

	"github.com/fivetuple/fivetuple/sockopt"
)

// judgeSender splits the watched time between what the sender waited for, and
// names the largest part.
func (c course) judgeSender() Verdict {
	s := c.shares()
	v := Verdict{Direction: Sending, Shares: s}
	switch largest := max(s.Application, s.Window, s.Buffer, s.Network); largest {
	case s.Window:
		v.Cause, v.Confidence = ReceiveWindow, confidence(largest)
		c.explainWindow(&v)
	case s.Buffer:
		v.Cause, v.Confidence = SendBuffer, confidence(largest)
		c.explainBuffer(&v)
	case s.Network:
		c.judgeNetwork(&v)
	default:
		v.Cause, v.Confidence = Application, confidence(largest)
		c.explainApplication(&v)
	}
	if s.Network < 0.5 && c.Retrans > 0 {
		v.Evidence = append(v.Evidence, c.lossLine())
	}
	if c.BytesAcked > 0 {
		v.Evidence = append(v.Evidence, fmt.Sprintf("%s/s were acknowledged", bytes(uint64(c.rate()))))
	}
	return v
}

// shares takes the kernel's count and splits the rest of the busy time as the samples were.
func (c course) shares() Shares {
	s := Shares{Window: c.part(c.RwndLimited), Buffer: c.part(c.SndbufLimited)}
	var application, buffer, window, network int
	for _, sample := range c.samples {
		if sample.SendQueue == 0 {
			continue
		}
		switch limitOf(sample) {
		case Application:
			application++
		case SendBuffer:
			buffer++
		case ReceiveWindow:
			window++
		case Congestion:
			network++
		}
	}
	rest, all := c.part(c.Busy-c.RwndLimited-c.SndbufLimited), application+buffer+window+network
	s.Application = 1 - c.part(c.Busy)
	if all == 0 { // each sample found all acknowledged
		s.Application += rest
		return s
	}
	s.Application += rest * share(application, all)
	s.Buffer += rest * share(buffer, all)
	s.Window += rest * share(window, all)
	s.Network = rest * share(network, all)
	if s.Window >= 0.2 && c.rate()*c.last.Info.RTT.Seconds() >= 0.7*float64(c.last.Info.SndWnd) {
		// A sender that paces itself to one window each round trip (BBR) waits for its timer.
		s.Window, s.Network = s.Window+s.Network, 0
	}
	return s
}

// limitOf says what a sender with data unacknowledged waited for at the moment
// of the sample; Congestion stands for the network.
func limitOf(s Sample) Cause {
	t := s.Info
	switch {
	case windowClosed(s):
		return ReceiveWindow
	case t.CAState >= caRecovery || t.Lost > 0 || t.Retransmits > 0:
		return Congestion
	case t.NotSentBytes > 0 && t.Size >= sndWndEnd && s.SendQueue-min(s.SendQueue, t.NotSentBytes)+t.SndMSS > t.SndWnd:
		return ReceiveWindow
	case t.NotSentBytes >= max(1, t.SndMSS): // less can be Nagle's or cork's doing
		return Congestion
	case inFlight(t) >= t.SndCwnd:
		return Congestion
	case s.Memory.SendBuffer > 0 && 3*uint64(s.Memory.SendQueued) > 2*uint64(s.Memory.SendBuffer):
		return SendBuffer // above two thirds poll(2) says that there is no room (sk_stream_is_writeable)
	}
	return Application
}

// caRecovery is TCP_CA_Recovery; only TCP_CA_Loss is above it.
const caRecovery sockopt.CAState = 3

func (c course) explainApplication(v *Verdict) {
	v.Summary = "limited by the application: it writes less than the connection could carry"
	v.Evidence = append(v.Evidence,
		fmt.Sprintf("nothing was left to send for %s of the time", percent(v.Shares.Application)),
		fmt.Sprintf("%s not yet sent, %d of %d segments of the congestion window in flight", bytes(uint64(c.last.Info.NotSentBytes)), inFlight(c.last.Info), c.last.Info.SndCwnd))
	if c.last.Info.DeliveryRateAppLimited {
		v.Evidence = append(v.Evidence, "the kernel marks its delivery rate as held down by the application (app_limited)")
	}
	if n := c.last.Info.NotSentBytes; n > 0 && n < c.last.Info.SndMSS {
		v.Evidence = append(v.Evidence, "less than a segment waits for an acknowledgement: Nagle's algorithm, unless nodelay is set, or cork")
	}
}

func (c course) explainWindow(v *Verdict) {
	v.Summary = "limited by the peer's window: it does not read fast enough, or its rcvbuf is small"
	v.Evidence = append(v.Evidence, fmt.Sprintf("data waited for the peer's window for %s of the time (rwnd_limited)", percent(v.Shares.Window)))
	if 2*c.WindowClosed >= c.Waiting && c.WindowClosed > 0 {
		v.Summary = "limited by the peer's window: the peer does not read"
	}
	if c.WindowClosed > 0 {
		v.Evidence = append(v.Evidence, fmt.Sprintf("the window was closed in %d of %d samples", c.WindowClosed, len(c.samples)))
	}
	if c.last.Info.Size >= sndWndEnd {
		v.Evidence = append(v.Evidence, fmt.Sprintf("the peer announces %s; %s are queued and not sent", bytes(uint64(c.last.Info.SndWnd)), bytes(uint64(c.last.Info.NotSentBytes))))
	}
	if p := c.last.Info.Probes; p > 0 {
		v.Evidence = append(v.Evidence, fmt.Sprintf("%d probes of the closed window have no answer that opens it", p))
	}
}

func (c course) explainBuffer(v *Verdict) {
	v.Summary = "limited by the send buffer: it holds less than the path could (sndbuf, or where that is not set the most in net.ipv4.tcp_wmem)"
	v.Evidence = append(v.Evidence,
		fmt.Sprintf("the application waited for room in the send buffer for %s of the time while window and path had room (sndbuf_limited: %s)",
			percent(v.Shares.Buffer), percent(c.part(c.SndbufLimited))))
	if m := c.last.Memory; m.SendBuffer > 0 {
		v.Evidence = append(v.Evidence, fmt.Sprintf("the send buffer is %s, counting the kernel's overhead; %s of it are taken", bytes(uint64(m.SendBuffer)), bytes(uint64(m.SendQueued))))
	}
	v.Evidence = append(v.Evidence, fmt.Sprintf("a round trip takes %s; %d of %d segments of the congestion window are in flight",
		duration(c.last.Info.RTT), inFlight(c.last.Info), c.last.Info.SndCwnd))
}

// What speaks for congestion, from some hundred runs over links that lose
// segments by chance or carry no more than a rate, with queues of many lengths.
const (
	muchECN     = 0.01 // of the segments delivered
	fewSegments = 100  // make no verdict sure

	// A path is full when what is acknowledged is as fast as any delivery, and
	// deliveries are equally fast. Where segments are lost by chance the window,
	// and with it the rate, goes up and down.
	fullRate, sameRate = 0.9, 0.22
	// With much loss that takes a clearer case, and a window above what such a loss
	// would leave to Reno if it were by chance.
	muchLoss, surelyFull, surelySame, above = 0.01, 0.93, 0.15, 1.3
	// Queues drop many segments in one interval and none in the next: variance to
	// mean of the count, in this part of the intervals at most. By chance that is about 1.
	burst, burstParts = 4.0, 0.6
	// Round trips longer than the shortest one show a queue: with much loss, with
	// little, and with none. Jitter does so, too.
	vastQueue, longQueue, someQueue = 5.0, 1.2, 1.05
	littleLoss                      = 0.007 // of the segments sent
	// A window far above what such a loss leaves to Reno belongs to a sender that
	// loss does not hold back, such as BBR: then a queue, and a rate that is much
	// the same, count in spite of it.
	farAbove, bbrQueue, muchTheSame = 3.0, 1.4, 0.37
	leastWait                       = time.Millisecond
)

// judgeNetwork tells loss from congestion.
func (c course) judgeNetwork(v *Verdict) {
	share := v.Shares.Network
	v.Evidence = append(v.Evidence, fmt.Sprintf("data waited for the network, not for a buffer or the peer's window, for %s of the time", percent(share)))
	n := c.network()
	bound := c.last.Info.MaxPacingRate
	switch {
	case bound > 0 && c.rate() >= 0.85*float64(bound):
		v.Cause, v.Confidence = Application, High
		v.Summary = "limited by the application: it has set a rate"
		v.Evidence = append(v.Evidence, fmt.Sprintf("max-pacing-rate is %s/s", bytes(bound)))
	case c.BytesAcked == 0 && c.TimedOut > 0:
		v.Cause, v.Confidence = Loss, confidence(share)
		v.Summary = "limited by loss: nothing comes back from the peer"
		v.Evidence = append(v.Evidence, fmt.Sprintf("the oldest segment was sent again %s in a row without an answer, the next time in %s", times(c.last.Info.Retransmits), duration(c.last.Timer.Expires)))
	case n.marked >= muchECN:
		v.Cause, v.Confidence = Congestion, confidence(share)
		v.Summary = "limited by congestion: routers mark the segments (ECN)"
	case n.full() && n.queue() >= n.leastQueue(), n.queued():
		v.Cause, v.Confidence = Congestion, confidence(share)
		v.Summary = "limited by congestion: the path is full and its queue makes round trips longer"
	case n.unmoved():
		v.Cause, v.Confidence = Congestion, Medium
		v.Summary = "limited by congestion: the path is full, and its queue loses what the sender has too much"
	case n.bursts():
		v.Cause, v.Confidence = Congestion, Medium
		v.Summary = "limited by congestion: the path is full and its queue drops segments in bursts"
	case n.loss > 0:
		v.Cause, v.Confidence = Loss, confidence(share)
		v.Summary = "limited by loss: segments are lost and the congestion window stays small"
		if n.loss < littleLoss || n.full() {
			v.Confidence = Medium
			v.Evidence = append(v.Evidence, "a path with a very short queue, or a policer, would look much the same")
		}
	case n.full():
		v.Cause, v.Confidence = Congestion, Medium
		v.Summary = "limited by the path: it carries no more"
	case n.everLoss > 0 && float64(n.cwnd) <= farAbove*mathis(n.everLoss):
		v.Cause, v.Confidence = Loss, Medium
		v.Summary = "limited by earlier loss: the congestion window has not grown again"
		v.Evidence = append(v.Evidence, fmt.Sprintf("nothing was lost meanwhile, but %s of the segments since the connection began", percent(n.everLoss)))
	default:
		v.Cause, v.Confidence = Congestion, Low
		v.Summary = "limited by the congestion window: it is full, and may still grow"
	}
	if v.Confidence == High && c.SegsSent < fewSegments {
		v.Confidence = Medium
	}
	n.explain(c, v)
}

// network is what tells loss from congestion.
type network struct {
	marked         float64 // part of the segments delivered with an ECN mark
	loss, everLoss float64 // part of the segments sent, meanwhile and since the connection began
	clumps         float64 // segments sent again in each interval: variance to mean
	lossy          float64 // part of the intervals in which some were
	shortest, rtt  time.Duration
	filled         float64 // the acknowledged rate, as part of the fastest delivery rates
	spread         float64 // of the delivery rates, standard deviation to mean
	cwnd           uint32
}

func (c course) network() network {
	n := network{loss: c.lossRate(), everLoss: lossRate(c.last.Info.TotalRetrans, c.last.Info.DSACKDups, c.last.Info.DataSegsOut), cwnd: c.cwnd()}
	if c.Delivered > 0 {
		n.marked = float64(c.DeliveredCE) / float64(c.Delivered)
	}
	n.shortest, n.rtt = c.rtt()
	var rates, again []float64
	for i, s := range c.samples[1:] {
		rates = append(rates, float64(s.Info.DeliveryRate))
		again = append(again, float64(s.Info.TotalRetrans-c.samples[i].Info.TotalRetrans))
		if again[i] > 0 {
			n.lossy += 1 / float64(len(c.samples)-1)
		}
	}
	if fastest := second(rates); fastest > 0 {
		n.filled = c.rate() / fastest
	}
	mean, deviation := meanAndDeviation(rates)
	n.spread = deviation / max(mean, 1)

	mean, deviation = meanAndDeviation(again)
	n.clumps = deviation * deviation / max(mean, 1e-9)
	return n
}

// second is the largest value but one, since a burst of acknowledgements can make
// one delivery look faster than the path.
func second(values []float64) float64 {
	sorted := slices.Sorted(slices.Values(values))
	return sorted[max(0, len(sorted)-2)]
}

// queue is how much longer round trips are than the shortest one.
func (n network) queue() float64 {
	if n.shortest == 0 {
		return 1
	}
	return float64(n.rtt) / float64(n.shortest)
}

func (n network) full() bool {
	if n.loss >= muchLoss {
		return n.filled >= surelyFull && n.spread <= surelySame && float64(n.cwnd) > above*mathis(n.loss)
	}
	return n.filled >= fullRate && n.spread <= sameRate
}

func (n network) queued() bool {
	q := n.queue()
	return n.rtt-n.shortest >= leastWait && (q >= vastQueue || q >= longQueue && n.loss < littleLoss)
}

// leastQueue is how much longer round trips must be for a full path.
func (n network) leastQueue() float64 {
	if n.loss >= muchLoss {
		return longQueue
	}
	return someQueue
}

// unmoved is a full path whose sender does not mind the loss.
func (n network) unmoved() bool {
	return n.loss > 0 && float64(n.cwnd) > farAbove*mathis(n.loss) && n.queue() >= bbrQueue && n.spread <= muchTheSame
}

func (n network) bursts() bool { return n.clumps >= burst && n.lossy <= burstParts }

// mathis is the congestion window, in segments, that a sender like Reno can
// keep at a rate of loss (Mathis et al., The Macroscopic Behavior of the TCP
// Congestion Avoidance Algorithm, 1997).
func mathis(loss float64) float64 { return math.Sqrt(1.5 / loss) }

func (n network) explain(c course, v *Verdict) {
	if c.DeliveredCE > 0 {
		v.Evidence = append(v.Evidence, fmt.Sprintf("%d of %d segments delivered carried a congestion mark", c.DeliveredCE, c.Delivered))
	}
	v.Evidence = append(v.Evidence, c.lossLine(),
		fmt.Sprintf("a round trip takes %s, the shortest took %s", duration(n.rtt), duration(n.shortest)))
	if n.filled > 0 {
		v.Evidence = append(v.Evidence, fmt.Sprintf("the rate is %s of the fastest delivery seen; deliveries vary by %s", percent(min(1, n.filled)), percent(n.spread)))
	}
	v.Evidence = append(v.Evidence, fmt.Sprintf("the congestion window is %d segments", n.cwnd))
}

func (c course) lossLine() string {
	line := fmt.Sprintf("%d of %d data segments were sent again (%s)", c.Retrans, c.SegsSent, percent(c.lossRate()))
	if c.Timeouts > 0 {
		line += fmt.Sprintf(", %d after a timeout", c.Timeouts)
	}
	if c.DSACKDups > 0 {
		line += fmt.Sprintf(", %d of them needlessly", c.DSACKDups)
	}
	return line
}

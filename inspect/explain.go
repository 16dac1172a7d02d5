package inspect

import (
	"fmt"
	"strings"
	"time"

	"github.com/fivetuple/fivetuple"
	"github.com/fivetuple/fivetuple/sockdiag"
	"github.com/fivetuple/fivetuple/sockopt"
)

// Section is a part of what is known of a socket, in words.
type Section struct {
	Title string
	Lines []Line
}

// Line is one thing that is known.
type Line struct{ Name, Text string }

// Explain puts the kernel's numbers of a socket into words, with units. What the
// kernel did not tell is left out.
func Explain(s sockdiag.Socket) []Section {
	var all []Section
	add := func(title string, lines ...Line) {
		kept := lines[:0]
		for _, l := range lines {
			if l.Text != "" {
				kept = append(kept, l)
			}
		}
		if len(kept) > 0 {
			all = append(all, Section{title, kept})
		}
	}
	add("queues", queueLines(s)...)
	if t := s.Info; t != nil && s.State != fivetuple.StateListen {
		add("progress", progressLines(t)...)
		add("windows", windowLines(s.Congestion, t)...)
		add("timers", timerLines(s.Timer, t)...)
		add("round trips", roundTripLines(t)...)
		add("loss", lossLines(t)...)
		add("rates", rateLines(t)...)
		add("agreed", agreedLines(t)...)
	}
	return all
}

func queueLines(s sockdiag.Socket) []Line {
	m := s.Memory
	if s.State == fivetuple.StateListen {
		text := fmt.Sprintf("%d of %d connections wait for accept(2)", s.RecvQueue, s.SendQueue)
		if s.RecvQueue > s.SendQueue {
			text += ": full, more are dropped"
		}
		return []Line{{"accept queue", text}, {"dropped", fmt.Sprintf("%d times an attempt to connect, since it listens", m.Drops)}}
	}
	recv, send := bytes(uint64(s.RecvQueue))+" waiting", bytes(uint64(s.SendQueue))+" on the way"
	if s.Protocol == fivetuple.TCP {
		recv, send = tcpQueues(s)
	}
	if m.RecvBuffer > 0 {
		recv += fmt.Sprintf("; %s of %s of kernel memory taken", bytes(uint64(m.RecvAlloc)), bytes(uint64(m.RecvBuffer)))
	}
	if m.SendBuffer > 0 {
		send += fmt.Sprintf("; %s of %s of kernel memory taken", bytes(uint64(max(m.SendQueued, m.SendAlloc))), bytes(uint64(m.SendBuffer)))
	}
	lines := []Line{{"receive", recv}, {"send", send}}
	if m.RecvBuffer > 0 && (m.Drops > 0 || s.Protocol.IsDatagram()) {
		lines = append(lines, Line{"dropped", fmt.Sprintf("%d packets for want of room or as not valid", m.Drops)})
	}
	return lines
}

// tcpQueues tells the data in the queues from the SYN or FIN, which the kernel
// counts there as a byte.
func tcpQueues(s sockdiag.Socket) (recv, send string) {
	recv, send = bytes(uint64(s.RecvQueue))+" to be read", bytes(uint64(s.SendQueue))+" unacknowledged"
	switch s.State {
	case fivetuple.StateCloseWait, fivetuple.StateLastAck, fivetuple.StateClosing:
		if s.RecvQueue > 0 {
			recv = bytes(uint64(s.RecvQueue-1)) + " to be read, and then the end"
		}
	}
	flag := ""
	switch s.State {
	case fivetuple.StateSynSent:
		flag = "SYN"
	case fivetuple.StateFinWait1, fivetuple.StateLastAck, fivetuple.StateClosing:
		flag = "FIN"
	}
	if flag != "" && s.SendQueue > 0 {
		send = bytes(uint64(s.SendQueue-1)) + " and the " + flag + " unacknowledged"
	}
	return recv, send
}

func progressLines(t *sockopt.TCPInfo) []Line {
	sent := fmt.Sprintf("%s in %d segments", bytes(t.BytesSent), t.DataSegsOut)
	if t.Size < bytesSentEnd {
		sent = fmt.Sprintf("%d segments", t.DataSegsOut)
	}
	if t.BytesRetrans > 0 {
		sent += fmt.Sprintf(", %s of it again", bytes(t.BytesRetrans))
	}
	if t.DataSegsOut > 0 {
		sent += fmt.Sprintf(", the last %s ago", duration(t.LastDataSent))
	}
	received := fmt.Sprintf("%s in %d segments", bytes(t.BytesReceived), t.DataSegsIn)
	if t.DataSegsIn > 0 {
		received += fmt.Sprintf(", the last %s ago", duration(t.LastDataRecv))
	}
	acked := t.BytesAcked
	if t.Size >= bytesRetransEnd { // without the SYN and the FIN, which the kernel counts as a byte each
		acked = min(acked, t.BytesSent-min(t.BytesRetrans, t.BytesSent))
	}
	return []Line{
		{"sent", sent},
		{"acknowledged", fmt.Sprintf("%s by the peer, %s ago", bytes(acked), duration(t.LastAckRecv))},
		{"unacknowledged", fmt.Sprintf("%d segments, %d of them believed on the path", t.Unacked, inFlight(t))},
		{"not sent", bytes(uint64(t.NotSentBytes)) + " queued and not sent once"},
		{"received", received},
	}
}

// Where fields end in struct tcp_info that older kernels lack.
const (
	sndbufLimitedEnd = 192 // Linux 4.10, and all that it is a part of
	bytesSentEnd     = 208 // 4.19
	bytesRetransEnd  = 216 // 4.19
	sndWndEnd        = 232 // 5.4
	rcvWndEnd        = 236 // 6.2
	rtoEnd           = 242 // 6.7
)

func windowLines(algorithm string, t *sockopt.TCPInfo) []Line {
	cwnd := fmt.Sprintf("%d segments (%s)", t.SndCwnd, bytes(uint64(t.SndCwnd)*uint64(t.SndMSS)))
	switch {
	case t.SndSSThresh >= sockopt.InfiniteSSThresh:
		cwnd += ", in slow start: no loss yet"
	case t.SndCwnd < t.SndSSThresh:
		cwnd += fmt.Sprintf(", in slow start up to %d", t.SndSSThresh)
	default:
		cwnd += fmt.Sprintf(", above the slow start threshold of %d", t.SndSSThresh)
	}
	if algorithm != "" {
		cwnd += ", " + algorithm
	}
	lines := []Line{{"congestion window", cwnd}}
	if t.Size >= sndWndEnd {
		lines = append(lines, Line{"peer's window", windowText(t.SndWnd, t.SndWScale, t.Options)})
	}
	if t.Size >= rcvWndEnd {
		lines = append(lines, Line{"own window", windowText(t.RcvWnd, t.RcvWScale, t.Options)})
	}
	return append(lines, Line{"segments", fmt.Sprintf("%d bytes sent, about %d received, path MTU %d", t.SndMSS, t.RcvMSS, t.PMTU)})
}

func windowText(window uint32, scale, options uint8) string {
	text := bytes(uint64(window)) + " announced"
	switch {
	case options&sockopt.OptWScale == 0:
		text += ", without scaling: 64 KiB at most"
	case scale > 0:
		text += fmt.Sprintf(", in units of %d bytes", 1<<scale)
	}
	if window == 0 {
		text += ": closed"
	}
	return text
}

var timerWords = map[sockdiag.TimerKind]string{
	sockdiag.TimerRetransmit: "the oldest segment is sent again",
	sockdiag.TimerKeepalive:  "the peer is asked whether it lives (keepalive)",
	sockdiag.TimerTimeWait:   "the connection is forgotten",
	sockdiag.TimerProbe:      "the peer's closed window is probed",
}

func timerLines(timer sockdiag.Timer, t *sockopt.TCPInfo) []Line {
	running := "none runs"
	if words := timerWords[timer.Kind]; words != "" {
		running = fmt.Sprintf("in %s %s", duration(timer.Expires), words)
	}
	rto := duration(t.RTO) + " without an acknowledgement"
	if t.Backoff > 0 {
		rto += fmt.Sprintf(", doubled %s", times(t.Backoff))
	}
	if t.Retransmits > 0 {
		rto += fmt.Sprintf("; it ran out %s in a row", times(t.Retransmits))
	}
	lines := []Line{{"next", running}, {"timeout", rto}}
	if t.Probes > 0 {
		lines = append(lines, Line{"probes", fmt.Sprintf("%d without an answer", t.Probes)})
	}
	if t.ATO > 0 {
		lines = append(lines, Line{"delayed ack", "up to " + duration(t.ATO)})
	}
	return lines
}

func roundTripLines(t *sockopt.TCPInfo) []Line {
	var lines []Line
	if t.RTT > 0 {
		text := fmt.Sprintf("%s ± %s", duration(t.RTT), duration(t.RTTVar))
		if t.MinRTT > 0 {
			text += ", the shortest " + duration(t.MinRTT)
		}
		lines = append(lines, Line{"sending", text})
	}
	if t.RcvRTT > 0 {
		lines = append(lines, Line{"receiving", fmt.Sprintf("%s; %s read in each", duration(t.RcvRTT), bytes(uint64(t.RcvSpace)))})
	}
	return lines
}

var stateWords = map[sockopt.CAState]string{
	0: "nothing is missing",
	1: "something came out of order or twice, not known lost yet",
	2: "the window is being reduced after a congestion mark or a local drop",
	3: "a loss is being repaired from the peer's acknowledgements",
	4: "a loss is being repaired after a timeout",
}

func lossLines(t *sockopt.TCPInfo) []Line {
	again := fmt.Sprintf("%d segments", t.TotalRetrans)
	if t.TotalRetrans > 0 && t.DataSegsOut > 0 {
		again += fmt.Sprintf(", %s of all", percent(float64(t.TotalRetrans)/float64(t.DataSegsOut)))
	}
	if t.DSACKDups > 0 {
		again += fmt.Sprintf("; %d the peer had already", t.DSACKDups)
	}
	if t.Size >= rtoEnd && t.TotalRTO > 0 {
		again += fmt.Sprintf("; %d timeouts", t.TotalRTO)
	}
	lines := []Line{{"state", t.CAState.String() + ": " + stateWords[t.CAState]}, {"sent again", again}}
	if t.Lost+t.Sacked+t.Retrans > 0 {
		lines = append(lines, Line{"now", fmt.Sprintf("%d lost, %d sent again, %d arrived behind a gap (SACK)", t.Lost, t.Retrans, t.Sacked)})
	}
	if t.ReordSeen > 0 {
		lines = append(lines, Line{"reordering", fmt.Sprintf("seen %d times, up to %d segments are waited for", t.ReordSeen, t.Reordering)})
	}
	if t.RcvOOOPack > 0 {
		lines = append(lines, Line{"received", fmt.Sprintf("%d segments out of order", t.RcvOOOPack)})
	}
	return lines
}

func rateLines(t *sockopt.TCPInfo) []Line {
	var lines []Line
	if t.DeliveryRate > 0 {
		text := bytes(t.DeliveryRate) + "/s got through, as last measured"
		if t.DeliveryRateAppLimited {
			text += "; the application gave no more"
		}
		lines = append(lines, Line{"delivery", text})
	}
	if t.PacingRate > 0 && t.PacingRate != ^uint64(0) {
		lines = append(lines, Line{"pacing", bytes(t.PacingRate) + "/s at most"})
	}
	if t.MaxPacingRate > 0 && t.MaxPacingRate != ^uint64(0) && t.MaxPacingRate != 1<<32-1 {
		lines = append(lines, Line{"bound", bytes(t.MaxPacingRate) + "/s set by the application (max-pacing-rate)"})
	}
	if t.Size >= sndbufLimitedEnd && t.BusyTime > 0 {
		lines = append(lines,
			Line{"busy", duration(t.BusyTime) + " with data unacknowledged"},
			Line{"of it waiting", fmt.Sprintf("%s for the peer's window, %s for the send buffer", ofTime(t.RwndLimited, t.BusyTime), ofTime(t.SndbufLimited, t.BusyTime))})
	}
	return lines
}

func ofTime(d, of time.Duration) string {
	if d == 0 {
		return "0 s"
	}
	return fmt.Sprintf("%s (%s)", duration(d), percent(d.Seconds()/of.Seconds()))
}

func agreedLines(t *sockopt.TCPInfo) []Line {
	var have []string
	for _, o := range []struct {
		bit  uint8
		name string
	}{
		{sockopt.OptTimestamps, "timestamps"}, {sockopt.OptSACK, "SACK"}, {sockopt.OptWScale, "window scaling"},
		{sockopt.OptECN, "ECN"}, {sockopt.OptSynData, "fast open"}, {sockopt.OptTFOChild, "fast open"}, {sockopt.OptUsecTS, "microsecond timestamps"},
	} {
		if t.Options&o.bit != 0 {
			have = append(have, o.name)
		}
	}
	lines := []Line{{"extensions", strings.Join(have, ", ")}}
	if t.Options&sockopt.OptECN != 0 {
		lines = append(lines, Line{"ECN marks", fmt.Sprintf("on %d of %d segments delivered, on %d received", t.DeliveredCE, t.Delivered, t.ReceivedCE)})
	}
	return lines
}

package inspect

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/fivetuple/fivetuple"
	"github.com/fivetuple/fivetuple/sockdiag"
)

func TestExplainPutsTCPInfoIntoWords(t *testing.T) {
	s := bulk().Socket
	s.Congestion = "cubic"
	s.Timer = sockdiag.Timer{Kind: sockdiag.TimerRetransmit, Expires: 180 * time.Millisecond}
	s.Memory.SendQueued, s.Memory.RecvAlloc = 300_000, 4096
	t1 := *s.Info
	t1.BytesRetrans, t1.TotalRetrans, t1.DSACKDups, t1.TotalRTO = 1448*8, 8, 2, 1
	t1.BytesSent += t1.BytesRetrans
	t1.BytesAcked = t1.BytesSent - t1.BytesRetrans + 1 // with the FIN
	t1.CAState, t1.Lost, t1.Retrans, t1.Sacked, t1.SndSSThresh = 3, 3, 2, 4, 10
	t1.RTO, t1.RTTVar, t1.Options, t1.SndWScale, t1.PMTU = 220*time.Millisecond, 3*time.Millisecond, 15, 7, 1500
	t1.LastDataSent, t1.LastAckRecv, t1.LastDataRecv = 4*time.Millisecond, 2*time.Millisecond, time.Minute
	t1.RwndLimited, t1.SndbufLimited, t1.PacingRate, t1.MaxPacingRate, t1.DeliveryRateAppLimited = 4*time.Second, 500*time.Millisecond, 2<<20, 3<<20, true
	t1.DeliveredCE, t1.ReordSeen, t1.Reordering, t1.RcvOOOPack, t1.Backoff, t1.Retransmits = 7, 1, 5, 6, 2, 2
	t1.RcvRTT, t1.RcvSpace, t1.ATO = 40*time.Millisecond, 14480, 40*time.Millisecond
	s.Info = &t1
	const want = `queues
  receive: 0 B to be read; 4.0 KiB of 1.0 MiB of kernel memory taken
  send: 195.3 KiB unacknowledged; 293.0 KiB of 1.0 MiB of kernel memory taken
progress
  sent: 1.0 MiB in 724 segments, 11.3 KiB of it again, the last 4.0 ms ago
  acknowledged: 1.0 MiB by the peer, 2.0 ms ago
  unacknowledged: 20 segments, 15 of them believed on the path
  not sent: 166.0 KiB queued and not sent once
  received: 1.0 MiB in 724 segments, the last 1m00s ago
windows
  congestion window: 20 segments (28.3 KiB), above the slow start threshold of 10, cubic
  peer's window: 1.0 MiB announced, in units of 128 bytes
  own window: 1.0 MiB announced
  segments: 1448 bytes sent, about 1448 received, path MTU 1500
timers
  next: in 180.0 ms the oldest segment is sent again
  timeout: 220.0 ms without an acknowledgement, doubled 2 times; it ran out 2 times in a row
  delayed ack: up to 40.0 ms
round trips
  sending: 20.0 ms ± 3.0 ms, the shortest 20.0 ms
  receiving: 40.0 ms; 14.1 KiB read in each
loss
  state: recovery: a loss is being repaired from the peer's acknowledgements
  sent again: 8 segments, 1.1% of all; 2 the peer had already; 1 timeouts
  now: 3 lost, 2 sent again, 4 arrived behind a gap (SACK)
  reordering: seen 1 times, up to 5 segments are waited for
  received: 6 segments out of order
rates
  delivery: 1.4 MiB/s got through, as last measured; the application gave no more
  pacing: 2.0 MiB/s at most
  bound: 3.0 MiB/s set by the application (max-pacing-rate)
  busy: 10.0 s with data unacknowledged
  of it waiting: 4.0 s (40%) for the peer's window, 500.0 ms (5.0%) for the send buffer
agreed
  extensions: timestamps, SACK, window scaling, ECN
  ECN marks: on 7 of 724 segments delivered, on 0 received
`
	if diff := cmp.Diff(want, text(Explain(s))); diff != "" {
		t.Errorf("-want +got:\n%s", diff)
	}
}

func TestExplainLeavesOutWhatTheKernelDoesNotTell(t *testing.T) {
	old := bulk().Socket
	info := *old.Info
	info.Size = 104 // Linux 2.6
	old.Info, old.Memory = &info, sockdiag.Memory{}
	if got := text(Explain(old)); strings.Contains(got, "peer's window") || strings.Contains(got, "kernel memory") || strings.Contains(got, "busy") {
		t.Errorf("got %s", got)
	}
	for _, tt := range []struct {
		s    sockdiag.Socket
		want string
	}{
		{sockdiag.Socket{Protocol: fivetuple.TCP, State: fivetuple.StateListen, RecvQueue: 3, SendQueue: 128, Memory: sockdiag.Memory{Drops: 2}},
			"queues\n  accept queue: 3 of 128 connections wait for accept(2)\n  dropped: 2 times an attempt to connect, since it listens\n"},
		{sockdiag.Socket{Protocol: fivetuple.TCP, State: fivetuple.StateListen, RecvQueue: 129, SendQueue: 128},
			"queues\n  accept queue: 129 of 128 connections wait for accept(2): full, more are dropped\n  dropped: 0 times an attempt to connect, since it listens\n"},
		{sockdiag.Socket{Protocol: fivetuple.UDP, State: fivetuple.StateClose, RecvQueue: 768, Memory: sockdiag.Memory{RecvAlloc: 768, RecvBuffer: 2048, SendBuffer: 2048, Drops: 9}},
			"queues\n  receive: 768 B waiting; 768 B of 2.0 KiB of kernel memory taken\n  send: 0 B on the way; 0 B of 2.0 KiB of kernel memory taken\n  dropped: 9 packets for want of room or as not valid\n"},
		{sockdiag.Socket{Protocol: fivetuple.TCP, State: fivetuple.StateCloseWait, RecvQueue: 6, SendQueue: 2},
			"queues\n  receive: 5 B to be read, and then the end\n  send: 2 B unacknowledged\n"},
		{sockdiag.Socket{Protocol: fivetuple.TCP, State: fivetuple.StateLastAck, SendQueue: 6},
			"queues\n  receive: 0 B to be read\n  send: 5 B and the FIN unacknowledged\n"},
		{sockdiag.Socket{Protocol: fivetuple.TCP, State: fivetuple.StateSynSent, SendQueue: 1},
			"queues\n  receive: 0 B to be read\n  send: 0 B and the SYN unacknowledged\n"},
		{sockdiag.Socket{Protocol: fivetuple.Unix, State: fivetuple.StateEstablished},
			"queues\n  receive: 0 B waiting\n  send: 0 B on the way\n"},
	} {
		if got := text(Explain(tt.s)); got != tt.want {
			t.Errorf("%v %v:\ngot  %q\nwant %q", tt.s.Protocol, tt.s.State, got, tt.want)
		}
	}
}

func text(sections []Section) string {
	var b strings.Builder
	for _, s := range sections {
		fmt.Fprintln(&b, s.Title)
		for _, l := range s.Lines {
			fmt.Fprintf(&b, "  %s: %s\n", l.Name, l.Text)
		}
	}
	return b.String()
}

func TestParseCounters(t *testing.T) {
	const good = "TcpExt: SyncookiesSent ListenOverflows ListenDrops TCPReqQFullDrop\nTcpExt: 1 2 3 4\nIpExt: ListenDrops\nIpExt: 9\n"
	for _, tt := range []struct {
		text string
		want Counters
		ok   bool
	}{
		{good, Counters{ListenOverflows: 2, ListenDrops: 3, SynCookiesSent: 1, SynQueueDrops: 4}, true},
		{"IpExt: a\nIpExt: 1\n" + good, Counters{ListenOverflows: 2, ListenDrops: 3, SynCookiesSent: 1, SynQueueDrops: 4}, true},
		{"", Counters{}, true},
		{"TcpExt: ListenDrops\n", Counters{}, false},
		{"TcpExt: ListenDrops\nTcpExt: x\n", Counters{}, false},
		{"TcpExt: ListenDrops\nTcpExt: -1\n", Counters{}, false},
	} {
		got, err := parseCounters(tt.text)
		if got != tt.want || (err == nil) != tt.ok {
			t.Errorf("%q: got %+v, %v", tt.text, got, err)
		}
	}
}

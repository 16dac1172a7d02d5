package inspect

import (
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/fivetuple/fivetuple"
	"github.com/fivetuple/fivetuple/sockdiag"
	"github.com/fivetuple/fivetuple/sockopt"
)

// course of eleven samples over a second: step changes the one before.
func course11(first Sample, step func(s *Sample)) []Sample {
	samples := []Sample{first}
	for range 10 {
		next := samples[len(samples)-1]
		info := *next.Info
		next.Info = &info
		next.Time = next.Time.Add(100 * time.Millisecond)
		step(&next)
		samples = append(samples, next)
	}
	return samples
}

// established is a connection that has sent and received for a while.
func established() Sample {
	return Sample{Time: time.Unix(1000, 0), Socket: sockdiag.Socket{
		Protocol: fivetuple.TCP, State: fivetuple.StateEstablished,
		Memory: sockdiag.Memory{SendBuffer: 1 << 20, RecvBuffer: 1 << 20},
		Info: &sockopt.TCPInfo{
			Size: 280, SndMSS: 1448, RcvMSS: 1448, SndCwnd: 20, SndSSThresh: sockopt.InfiniteSSThresh,
			RTT: 20 * time.Millisecond, MinRTT: 20 * time.Millisecond, SndWnd: 1 << 20, RcvWnd: 1 << 20,
			BytesAcked: 1 << 20, BytesSent: 1 << 20, BytesReceived: 1 << 20, DataSegsOut: 724, DataSegsIn: 724, Delivered: 724,
			BusyTime: 10 * time.Second, DeliveryRate: 1448 * 1000,
		},
	}}
}

// bulk sends without end: the window is full and more waits.
func bulk() Sample {
	s := established()
	s.SendQueue, s.Info.Unacked, s.Info.NotSentBytes = 200_000, 20, 170_000
	return s
}

// sends moves the counters by as many segments.
func (s *Sample) sends(segments uint32) {
	n := uint64(segments) * 1448
	s.Info.BytesSent, s.Info.BytesAcked = s.Info.BytesSent+n, s.Info.BytesAcked+n
	s.Info.DataSegsOut += segments
	s.Info.Delivered += segments
	s.Info.BusyTime += 100 * time.Millisecond
}

func TestJudge(t *testing.T) {
	for _, tt := range []struct {
		name     string
		samples  []Sample
		cause    Cause
		way      Direction
		summary  string
		evidence string
	}{
		{"no samples", nil, Unknown, "", "two samples", ""},
		{"one sample", []Sample{bulk()}, Unknown, "", "two samples", ""},
		{"no time between", []Sample{bulk(), bulk()}, Unknown, "", "no time has passed", ""},
		{"idle", course11(established(), func(*Sample) {}), Idle, "", "nothing was sent or received", "the last data"},
		{"bytes that wait unread, window open", course11(with(established(), func(s *Sample) { s.RecvQueue = 10 }), func(*Sample) {}),
			Idle, Receiving, "nothing arrives", "10 B wait to be read, in 11 of 11 samples"},
		{"a reader that stands still", course11(with(established(), func(s *Sample) { s.RecvQueue, s.Info.RcvWnd = 60_000, 0 }), func(*Sample) {}),
			Application, Receiving, "does not read", "the window left to the peer is 0 B"},
		{"listener", course11(with(established(), func(s *Sample) { s.State = fivetuple.StateListen }), func(*Sample) {}), Unknown, "", "a listener", ""},
		{"connecting", course11(with(established(), func(s *Sample) { s.State, s.Timer.Retransmits = fivetuple.StateSynSent, 2 }), func(*Sample) {}),
			Unknown, "", "not answered the connect yet, sent again 2 times", ""},
		{"UDP", []Sample{{Socket: sockdiag.Socket{Protocol: fivetuple.UDP}}, {Socket: sockdiag.Socket{Protocol: fivetuple.UDP}}}, Unknown, "", "a udp socket", ""},
		{"TIME_WAIT at the end", append(course11(bulk(), func(*Sample) {}), Sample{Time: time.Unix(2000, 0), Socket: sockdiag.Socket{Protocol: fivetuple.TCP, State: fivetuple.StateTimeWait}}),
			Unknown, "", "TIME_WAIT", ""},
		{"a writer of little, always in flight", course11(with(established(), func(s *Sample) { s.SendQueue, s.Info.Unacked = 500, 1 }), func(s *Sample) { s.sends(5) }),
			Application, Sending, "writes less", "nothing was left to send for 100% of the time"},
		{"a writer of little, seldom in flight", course11(established(), func(s *Sample) { s.sends(1); s.Info.BusyTime -= 90 * time.Millisecond }),
			Application, Sending, "writes less", ""},
		{"half a segment held back by Nagle", course11(with(established(), func(s *Sample) { s.SendQueue, s.Info.Unacked, s.Info.NotSentBytes = 700, 1, 200 }), func(s *Sample) { s.sends(5) }),
			Application, Sending, "writes less", "Nagle"},
		{"the kernel counts the peer's window", course11(bulk(), func(s *Sample) { s.sends(30); s.Info.RwndLimited += 90 * time.Millisecond }),
			ReceiveWindow, Sending, "peer's window", "90% of the time (rwnd_limited)"},
		{"a window closed for good", course11(with(bulk(), func(s *Sample) {
			s.Info.SndWnd, s.Info.Unacked, s.Info.Probes, s.Timer.Kind = 0, 0, 4, sockdiag.TimerProbe
		}), func(s *Sample) { s.sends(0); s.Info.RwndLimited += 100 * time.Millisecond }), ReceiveWindow, Sending, "does not read", "closed in 11 of 11"},
		{"the kernel counts the send buffer", course11(with(established(), func(s *Sample) { s.SendQueue, s.Info.Unacked = 8000, 6 }), func(s *Sample) { s.sends(30); s.Info.SndbufLimited += 80 * time.Millisecond }),
			SendBuffer, Sending, "send buffer", "sndbuf_limited: 80%"},
		{"a full send buffer that the kernel does not count", course11(with(established(), func(s *Sample) {
			s.SendQueue, s.Info.Unacked, s.Memory.SendBuffer, s.Memory.SendQueued = 8000, 6, 16384, 12000
		}), func(s *Sample) { s.sends(30) }), SendBuffer, Sending, "send buffer", ""},
		{"a peer that is gone", course11(with(bulk(), func(s *Sample) {
			s.Info.Retransmits, s.Info.CAState, s.Info.Lost, s.Timer = 5, 4, 20, sockdiag.Timer{Kind: sockdiag.TimerRetransmit, Expires: 3 * time.Second}
		}), func(s *Sample) { s.sends(0); s.Info.TotalRetrans++; s.Info.DataSegsOut++ }), Loss, Sending, "nothing comes back", "5 times in a row without an answer, the next time in 3.0 s"},
		{"ECN marks", course11(bulk(), func(s *Sample) { s.sends(100); s.Info.DeliveredCE += 5 }), Congestion, Sending, "ECN", "50 of 1000 segments"},
		{"round trips grown by a queue", course11(with(bulk(), func(s *Sample) { s.Info.RTT = 120 * time.Millisecond }), func(s *Sample) { s.sends(100) }),
			Congestion, Sending, "queue", "120.0 ms, the shortest took 20.0 ms"},
		{"losses", course11(bulk(), func(s *Sample) { s.sends(40); s.Info.TotalRetrans++ }), Loss, Sending, "lost", "10 of 400 data segments were sent again (2.5%)"},
		{"needless repeats are no loss", course11(bulk(), func(s *Sample) { s.sends(40); s.Info.TotalRetrans++; s.Info.DSACKDups++ }), Congestion, Sending, "window", "10 of them needlessly"},
		{"losses of before", course11(with(bulk(), func(s *Sample) { s.Info.TotalRetrans, s.Info.SndSSThresh = 14, 7 }), func(s *Sample) { s.sends(40) }), Loss, Sending, "earlier loss", "1.2% of the segments since"},
		{"a window that still grows", course11(bulk(), func(s *Sample) { s.sends(40); s.Info.SndCwnd += 10; s.Info.DeliveryRate += 200_000 }), Congestion, Sending, "may still grow", ""},
		{"a rate that stays the same", course11(bulk(), func(s *Sample) { s.sends(100) }), Congestion, Sending, "it carries no more", "deliveries vary by 0%"},
		{"a rate that the application set", course11(with(bulk(), func(s *Sample) { s.Info.MaxPacingRate = 1448 * 1000 }), func(s *Sample) { s.sends(95) }),
			Application, Sending, "it has set a rate", "max-pacing-rate is 1.4 MiB/s"},
		{"a window closed once", course11(bulk(), func(s *Sample) {
			s.sends(30)
			s.Info.RwndLimited += 90 * time.Millisecond
			s.Info.SndWnd = 30_000
			if s.Time.Nanosecond() == 5e8 {
				s.Info.SndWnd = 0
			}
		}), ReceiveWindow, Sending, "rcvbuf is small", "closed in 1 of 11 samples"},
		{"a kernel that does not count", course11(with(bulk(), func(s *Sample) { s.Info.Size = 168 }), func(s *Sample) { s.sends(30) }), Unknown, "", "Linux 4.10", ""},
		{"a full path with a short queue and little loss", course11(with(bulk(), func(s *Sample) { s.Info.RTT = 22 * time.Millisecond }), func(s *Sample) {
			s.sends(100)
			if s.Time.Nanosecond() == 5e8 {
				s.Info.TotalRetrans += 8
			}
		}), Congestion, Sending, "the path is full and its queue makes", "8 of 1000"},
		{"a queue at a rate that varies", course11(with(bulk(), func(s *Sample) { s.Info.RTT, s.Info.DeliveryRate = 40*time.Millisecond, 1448*4000 }), func(s *Sample) {
			s.sends(100)
			if s.Time.Nanosecond() == 5e8 {
				s.Info.TotalRetrans++
			}
		}), Congestion, Sending, "the path is full and its queue makes", "40.0 ms"},
		{"a sender that loss does not hold back, with a queue", course11(with(bulk(), func(s *Sample) {
			s.Info.RTT, s.Info.SndCwnd, s.Info.Unacked, s.Info.DeliveryRate = 30*time.Millisecond, 100, 100, 1448*2000
		}), func(s *Sample) {
			s.sends(100)
			s.Info.TotalRetrans += 5
		}), Congestion, Sending, "loses what the sender has too much", "50 of 1000"},
		{"the same without a queue", course11(with(bulk(), func(s *Sample) { s.Info.SndCwnd, s.Info.Unacked, s.Info.DeliveryRate = 100, 100, 1448*2000 }), func(s *Sample) {
			s.sends(100)
			s.Info.TotalRetrans += 5
		}), Loss, Sending, "segments are lost", "50 of 1000"},
		{"a sender that paces itself to the peer's window", course11(with(bulk(), func(s *Sample) { s.Info.SndWnd = 30_000 + 1448 }), func(s *Sample) {
			s.sends(100) // 29 kB in each round trip of 20 ms
			s.Info.RwndLimited += 30 * time.Millisecond
		}), ReceiveWindow, Sending, "peer's window", "100% of the time"},
		{"much loss that the window obeys, with jitter", course11(with(bulk(), func(s *Sample) { s.Info.RTT, s.Info.SndCwnd = 30*time.Millisecond, 8 }), func(s *Sample) {
			s.sends(100)
			s.Info.TotalRetrans += 2
		}), Loss, Sending, "segments are lost", "20 of 1000"},
		{"as much loss from a full queue", course11(with(bulk(), func(s *Sample) { s.Info.RTT, s.Info.SndCwnd = 30*time.Millisecond, 16 }), func(s *Sample) {
			s.sends(100)
			s.Info.TotalRetrans += 2
		}), Congestion, Sending, "makes round trips longer", "20 of 1000"},
		{"much loss and hardly a queue", course11(with(bulk(), func(s *Sample) { s.Info.RTT, s.Info.SndCwnd = 22*time.Millisecond, 16 }), func(s *Sample) {
			s.sends(100)
			s.Info.TotalRetrans += 2
		}), Loss, Sending, "segments are lost", "20 of 1000"},
		{"a state without TCP_INFO in between", slices.Insert(course11(bulk(), func(s *Sample) { s.sends(40) }), 5, Sample{Time: time.Unix(1000, 0), Socket: sockdiag.Socket{Protocol: fivetuple.TCP}}),
			Unknown, "", "changed its state", ""},
		{"losses in bursts", course11(bulk(), func(s *Sample) {
			s.sends(40)
			if s.Info.BytesAcked/1448%3 == 0 {
				s.Info.TotalRetrans += 12
			}
			s.Info.DeliveryRate += 300_000
		}), Congestion, Sending, "in bursts", "sent again"},
		{"counters that wrap", course11(with(bulk(), func(s *Sample) { s.Info.DataSegsOut, s.Info.TotalRetrans = ^uint32(0)-100, ^uint32(0)-4 }), func(s *Sample) { s.sends(40); s.Info.TotalRetrans++ }),
			Loss, Sending, "lost", "10 of 400 data segments"},
		{"a receiver that keeps up", course11(with(established(), func(s *Sample) { s.Info.RcvRTT = 20 * time.Millisecond }), func(s *Sample) { s.Info.BytesReceived += 100_000; s.Info.RcvOOOPack++; s.Info.DataSegsIn += 70 }),
			Unknown, Receiving, "inspect the peer's socket", "10 of 700 segments came out of order"},
		{"a receiver with a small window", course11(with(established(), func(s *Sample) { s.Info.RcvRTT, s.Info.RcvWnd = 100*time.Millisecond, 100_000 }), func(s *Sample) { s.Info.BytesReceived += 95_000 }),
			ReceiveWindow, Receiving, "this side's receive window", "92.8 KiB arrive in each round trip of 100.0 ms"},
		{"a peer that has closed", course11(with(established(), func(s *Sample) { s.State = fivetuple.StateCloseWait }), func(*Sample) {}), Idle, "", "nothing", "CLOSE_WAIT"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			got := Judge(tt.samples)
			if got.Cause != tt.cause || got.Direction != tt.way || !strings.Contains(got.Summary, tt.summary) {
				t.Errorf("got %s %s, %q, want %s %s, %q; %+v", got.Direction, got.Cause, got.Summary, tt.way, tt.cause, tt.summary, got)
			}
			if evidence := strings.Join(got.Evidence, "\n"); !strings.Contains(evidence, tt.evidence) {
				t.Errorf("evidence:\n%s\nwant in it %q", evidence, tt.evidence)
			}
			if (got.Confidence == "") != (got.Cause == Unknown || got.Cause == Idle) {
				t.Errorf("%s with confidence %q", got.Cause, got.Confidence)
			}
		})
	}
}

func with(s Sample, change func(*Sample)) Sample {
	change(&s)
	return s
}

func TestSharesAddUpToTheWholeTime(t *testing.T) {
	samples := course11(bulk(), func(s *Sample) {
		s.sends(10)
		s.Info.BusyTime -= 40 * time.Millisecond
		s.Info.RwndLimited += 20 * time.Millisecond
		s.Info.SndbufLimited += 10 * time.Millisecond
	})
	got := Judge(samples).Shares
	want := Shares{Application: 0.4, Window: 0.2, Buffer: 0.1, Network: 0.3}
	for _, p := range [][2]float64{{got.Application, want.Application}, {got.Window, want.Window}, {got.Buffer, want.Buffer}, {got.Network, want.Network}} {
		if d := p[0] - p[1]; d > 1e-9 || d < -1e-9 {
			t.Fatalf("got %+v, want %+v", got, want)
		}
	}
}

func TestLimitOfAMoment(t *testing.T) {
	for _, tt := range []struct {
		name   string
		change func(*Sample)
		want   Cause
	}{
		{"data waits, window and path have room", func(*Sample) {}, Congestion},
		{"all sent, window full", func(s *Sample) { s.Info.NotSentBytes = 0 }, Congestion},
		{"all sent, room in the window", func(s *Sample) { s.Info.NotSentBytes, s.Info.Unacked = 0, 19 }, Application},
		{"all sent, room in the window for what was lost", func(s *Sample) { s.Info.NotSentBytes, s.Info.Lost = 0, 5 }, Congestion},
		{"all sent, in recovery", func(s *Sample) { s.Info.NotSentBytes, s.Info.Unacked, s.Info.CAState = 0, 5, 3 }, Congestion},
		{"all sent, after a timeout", func(s *Sample) { s.Info.NotSentBytes, s.Info.Unacked, s.Info.Retransmits = 0, 5, 1 }, Congestion},
		{"acknowledged out of order leaves the path", func(s *Sample) { s.Info.NotSentBytes, s.Info.Sacked = 0, 5 }, Application},
		{"the rest is less than a segment", func(s *Sample) { s.Info.NotSentBytes, s.Info.Unacked = 100, 3 }, Application},
		{"the peer's window is used up", func(s *Sample) { s.Info.SndWnd = 30_500 }, ReceiveWindow},
		{"the peer's window has room for a segment", func(s *Sample) { s.Info.SndWnd = 31_500 }, Congestion},
		{"the peer's window is probed", func(s *Sample) { s.Info.Size, s.Timer.Kind = 208, sockdiag.TimerProbe }, ReceiveWindow},
		{"a kernel that does not tell the peer's window", func(s *Sample) { s.Info.Size, s.Info.SndWnd = 208, 0 }, Congestion},
		{"no room in the send buffer", func(s *Sample) {
			s.Info.NotSentBytes, s.Info.Unacked, s.Memory.SendBuffer, s.Memory.SendQueued = 0, 10, 3000, 2001
		}, SendBuffer},
		{"room in the send buffer", func(s *Sample) {
			s.Info.NotSentBytes, s.Info.Unacked, s.Memory.SendBuffer, s.Memory.SendQueued = 0, 10, 3000, 2000
		}, Application},
	} {
		if got := limitOf(with(bulk(), tt.change)); got != tt.want {
			t.Errorf("%s: got %s, want %s", tt.name, got, tt.want)
		}
	}
}

func TestFewSegmentsMakeNoVerdictSure(t *testing.T) {
	for segments, want := range map[uint32]Confidence{9: Medium, 40: High} {
		v := Judge(course11(bulk(), func(s *Sample) {
			s.sends(segments)
			s.Info.TotalRetrans++
			s.Info.DeliveryRate += 300_000
		}))
		if v.Cause != Loss || v.Confidence != want {
			t.Errorf("%d segments in each interval: got %s with confidence %s, want %s", segments, v.Cause, v.Confidence, want)
		}
	}
}

package lab

import (
	"fmt"
	"io"
	"net"
	"slices"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// What a link can carry, and how late it is: figures for the package comment.

func BenchmarkShapedLinkTCP(b *testing.B) {
	for name, newWires := range makes {
		for _, rate := range []int64{0, 1e9, 100e6} {
			b.Run(fmt.Sprintf("%s/%d Mbit per s", name, rate/1e6), func(b *testing.B) {
				x, y := NewHost(b, "x"), NewHost(b, "y")
				link := shapedLink(b, x, y, Conditions{Rate: rate}, newWires, []string{"10.0.0.0/24"})
				conn, peer := tcpPair(b, x, y, "10.0.0.2:0")
				const chunk = 64 << 10
				b.SetBytes(chunk)
				b.ReportAllocs()
				before := cpuTime(b)
				b.ResetTimer()
				go func() {
					buf := make([]byte, chunk)
					for range b.N {
						if _, err := conn.Write(buf); err != nil {
							b.Error(err)
							return
						}
					}
				}()
				if _, err := io.CopyN(io.Discard, peer, int64(b.N)*chunk); err != nil {
					b.Fatal(err)
				}
				b.ReportMetric(float64(b.N)*chunk*8/1e6/b.Elapsed().Seconds(), "Mbit/s")
				b.ReportMetric((cpuTime(b)-before).Seconds()/b.Elapsed().Seconds(), "cores")
				b.ReportMetric(float64(link.AtoB.Stats().Overrun+link.BtoA.Stats().Overrun), "overrun")
			})
		}
	}
}

func BenchmarkShapedLinkSmallPackets(b *testing.B) {
	for name, newWires := range makes {
		b.Run(name, func(b *testing.B) {
			x, y := NewHost(b, "x"), NewHost(b, "y")
			link := shapedLink(b, x, y, Conditions{}, newWires, []string{"10.0.0.0/24"})
			conn, _ := udpPair(b, x, y, "10.0.0.2:0")
			b.ReportAllocs()
			b.ResetTimer()
			for range b.N {
				if _, err := conn.Write([]byte("x")); err != nil {
					b.Fatal(err)
				}
			}
			b.StopTimer()
			waitStill(b, link.AtoB)
			stats := link.AtoB.Stats()
			if stats.Packets+stats.Overrun != int64(b.N) {
				b.Errorf("sent %d packets: got %+v, want each delivered or counted", b.N, stats)
			}
			b.ReportMetric(float64(stats.Packets)/b.Elapsed().Seconds(), "packets/s")
			b.ReportMetric(float64(stats.Packets)/float64(b.N)*100, "%delivered")
		})
	}
}

func BenchmarkShapedLinkLateness(b *testing.B) {
	x, y := NewHost(b, "x"), NewHost(b, "y")
	for _, delay := range []time.Duration{0, 100 * time.Microsecond, 1500 * time.Microsecond, 10 * time.Millisecond} {
		b.Run(delay.String(), func(b *testing.B) {
			x, y = NewHost(b, "x"), NewHost(b, "y")
			ShapedLink(b, x, y, Conditions{Delay: delay}, "10.0.0.0/24")
			conn, peer := udpPair(b, x, y, "10.0.0.2:0")
			var late []time.Duration
			buf := make([]byte, 1)
			for b.Loop() {
				start := time.Now()
				if _, err := conn.Write(buf); err != nil {
					b.Fatal(err)
				}
				if _, err := peer.Read(buf); err != nil {
					b.Fatal(err)
				}
				late = append(late, time.Since(start)-delay)
			}
			slices.Sort(late)
			b.ReportMetric(late[0].Seconds()*1e6, "µs-least")
			b.ReportMetric(late[len(late)/2].Seconds()*1e6, "µs-median")
			b.ReportMetric(late[len(late)*99/100].Seconds()*1e6, "µs-p99")
		})
	}
}

// waitStill waits until a direction has delivered nothing for a tenth of a second.
func waitStill(t testing.TB, d *Direction) {
	t.Helper()
	tick := time.NewTicker(100 * time.Millisecond)
	defer tick.Stop()
	for before := int64(-1); d.Stats().Packets != before; <-tick.C {
		before = d.Stats().Packets
	}
}

func cpuTime(t testing.TB) time.Duration {
	t.Helper()
	var usage unix.Rusage
	if err := unix.Getrusage(unix.RUSAGE_SELF, &usage); err != nil {
		t.Fatal(err)
	}
	return time.Duration(usage.Utime.Nano() + usage.Stime.Nano())
}

// tcpPair returns both ends of a connection from host a to an address of host b.
func tcpPair(t testing.TB, a, b *Host, address string) (conn, peer net.Conn) {
	t.Helper()
	l, err := b.Listen("tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	if conn, err = a.Dial(t.Context(), "tcp", l.Addr().String()); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	if peer, err = l.Accept(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { peer.Close() })
	return conn, peer
}

// udpPair returns a socket of host a that sends to the other one, in host b.
func udpPair(t testing.TB, a, b *Host, address string) (conn, peer *net.UDPConn) {
	t.Helper()
	packets, err := b.ListenPacket("udp", address)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { packets.Close() })
	stream, err := a.Dial(t.Context(), "udp", packets.LocalAddr().String())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { stream.Close() })
	return stream.(*net.UDPConn), packets.(*net.UDPConn)
}

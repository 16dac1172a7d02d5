package history

import (
	"net/netip"
	"path/filepath"
	"testing"
	"time"

	"github.com/fivetuple/fivetuple"
	"github.com/fivetuple/fivetuple/stats"
)

// sample is event number i of a busy echo server: each connection is accepted and ends.
func sample(i int) stats.Event {
	e := stats.Event{
		Time: time.Now(), Kind: stats.Accept, Service: "echo", Conn: uint64(i/2 + 1),
		Tuple: fivetuple.Tuple{
			Protocol: fivetuple.TCP,
			Local:    fivetuple.IPAddress(netip.MustParseAddrPort("127.0.0.1:8080")),
			Remote:   fivetuple.IPAddress(netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, 0, byte(i >> 8), byte(i)}), uint16(i%30000+32768))),
		},
	}
	if i%2 == 1 {
		e.Kind, e.Cause, e.Duration = stats.Disconnect, "peer closed", time.Duration(i)*time.Microsecond
		e.BytesIn, e.BytesOut = uint64(i), uint64(i)
		e.TCP = &stats.TCP{RTT: 50 * time.Microsecond, RTTVar: 20 * time.Microsecond, Cwnd: 10, MSS: 32768}
	}
	return e
}

func BenchmarkCommit(b *testing.B) {
	d, err := Open(b.Context(), filepath.Join(b.TempDir(), "h.db"), Options{})
	if err != nil {
		b.Fatal(err)
	}
	defer d.Close()
	s, err := newSession(d.path, d.pool)
	if err != nil {
		b.Fatal(err)
	}
	defer s.release()
	batch := make([]stats.Event, 200)
	b.ReportAllocs()
	n := 0
	for b.Loop() {
		for i := range batch {
			batch[i] = sample(n)
			n++
		}
		if err := s.commit(batch); err != nil {
			b.Fatal(err)
		}
	}
	b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(n), "ns/event")
}

package cli

import (
	"testing"

	"github.com/fivetuple/fivetuple/stream"
)

func TestWorkersTogetherKeepTheLimits(t *testing.T) {
	for _, tt := range []struct{ limit, workers int }{{0, 3}, {3, 3}, {10, 4}, {11, 4}, {100, 1}} {
		conns, rate := 0, 0.0
		for n := range tt.workers {
			l := share(stream.Limits{MaxConns: tt.limit, MaxPerSource: tt.limit, AcceptRate: float64(tt.limit)}, n, tt.workers)
			if l.MaxPerSource != l.MaxConns || tt.limit > 0 && l.MaxConns == 0 {
				t.Errorf("of %d worker %d of %d has %+v", tt.limit, n, tt.workers, l)
			}
			conns, rate = conns+l.MaxConns, rate+l.AcceptRate
		}
		if conns != tt.limit || int(rate+0.5) != tt.limit {
			t.Errorf("%d workers share %d as %d in all, and %g per second", tt.workers, tt.limit, conns, rate)
		}
	}
}

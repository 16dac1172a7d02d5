package scan

import (
	"testing"
	"time"
)

func TestWindowShrinksToWhatRunsAndGrowsBack(t *testing.T) {
	s := connectScan{window: 100, maxWindow: 100, lastWorked: time.Now()}
	settle := func(short bool, running int) {
		s.running = running
		if repeated := s.repeat(t.Context(), outcome{short: short}); repeated != short {
			t.Fatalf("short %v: repeated %v", short, repeated)
		}
	}
	for _, tt := range []struct{ short, works, want int }{
		{98, 0, 98},
		{3, 0, 3},
		{0, 0, 1}, // never less
		{-1, growth - 1, 1},
		{-1, 1, 2},
		{-1, 10 * growth, 12},
		{-1, 1000 * growth, 100}, // never more
	} {
		if tt.short >= 0 {
			settle(true, tt.short)
		}
		for range tt.works {
			settle(false, 1)
		}
		if s.window != tt.want {
			t.Errorf("after %+v: window %d", tt, s.window)
		}
	}
}

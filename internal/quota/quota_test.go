package quota

import (
	"testing"
	"time"
)

func TestTakeLetsSoManyThroughEachSecondAndCountsTheRest(t *testing.T) {
	var q PerSecond
	now := time.Now()
	passed := 0
	for ms := range 2500 {
		if q.Take(now.Add(time.Duration(ms)*time.Millisecond), 10) {
			passed++
		}
	}
	if passed != 30 {
		t.Errorf("%d passed in 2.5 s at 10 a second, want 30", passed)
	}
	if n := q.KeptBack(now.Add(2600 * time.Millisecond)); n != 0 {
		t.Errorf("%d reported before the second was past", n)
	}
	if n := q.KeptBack(now.Add(3 * time.Second)); n != 2470 {
		t.Errorf("%d kept back, want 2470", n)
	}
	if n := q.KeptBack(now.Add(3 * time.Second)); n != 0 {
		t.Errorf("%d kept back twice", n)
	}
}

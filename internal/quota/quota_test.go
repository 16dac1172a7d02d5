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
	if n := q.KeptBack(now.Add(2600 * time.Millisecond)); n != 1980 {
		t.Errorf("%d reported of the two seconds that are past, want 1980", n)
	}
	if n := q.KeptBack(now.Add(3 * time.Second)); n != 490 {
		t.Errorf("%d kept back in the third second, want 490", n)
	}
	if n := q.KeptBack(now.Add(3 * time.Second)); n != 0 {
		t.Errorf("%d kept back twice", n)
	}
}

func TestAFloodIsReportedWhileItLasts(t *testing.T) {
	var q PerSecond
	now := time.Now()
	said := 0
	for range 60 {
		for range 1000 {
			now = now.Add(time.Millisecond)
			q.Take(now, 10)
		}
		if q.KeptBack(now) > 0 {
			said++
		}
	}
	if said < 58 {
		t.Errorf("said %d times in a minute of 1000 a second", said)
	}
}

func TestBucketSpacesTokensEvenlyAfterABurst(t *testing.T) {
	now := time.Now()
	var b Bucket
	taken := 0
	for ms := range 1000 {
		for b.Take(100, now.Add(time.Duration(ms)*time.Millisecond)) == 0 {
			taken++
		}
	}
	if taken < 108 || taken > 112 { // 100 in the second, 10 in the burst
		t.Errorf("took %d tokens in a second at 100/s with a burst of 10", taken)
	}
}

package sessions

import (
	"testing"
	"time"
)

func TestPaceIsFastWhileMuchComes(t *testing.T) {
	var p pace
	now, count := int64(0), uint64(0)
	for _, step := range []struct {
		passes time.Duration
		come   uint64
		want   bool
	}{
		{time.Millisecond, 99, false},
		{time.Millisecond, 100, true},
		{999 * time.Microsecond, 0, true}, // too short to tell
		{time.Microsecond, 100, true},
		{2 * time.Millisecond, 199, false},
		{2 * time.Millisecond, 200, true},
		{time.Hour, 1_000_000, false},
		{10 * time.Millisecond, 1 << 20, true},
	} {
		now, count = now+int64(step.passes), count+step.come
		if p.see(now, count); p.fast != step.want {
			t.Errorf("%d datagrams in %v: fast is %v", step.come, step.passes, p.fast)
		}
	}
}

func TestGatheringTakesAMomentWhileMuchComesOnly(t *testing.T) {
	took := func(p pace, times int) time.Duration {
		began := time.Now()
		for range times {
			p.gather()
		}
		return time.Since(began)
	}
	if d := took(pace{fast: true}, 100); d < 100*gatherTime*9/10 { // signals of Go's scheduler may end some early
		t.Errorf("100 times took %v, want %v each", d, gatherTime)
	}
	if d := took(pace{}, 10_000); d > 10_000*gatherTime/2 {
		t.Errorf("while little comes, 10,000 times took %v", d)
	}
}

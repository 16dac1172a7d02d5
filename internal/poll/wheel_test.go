package poll

import (
	"math/rand/v2"
	"slices"
	"testing"
	"time"
)

func TestTheWheelFiresEachDeadlineOnceAndInTime(t *testing.T) {
	for _, span := range []time.Duration{50 * time.Millisecond, time.Second, 20 * time.Second, time.Hour} {
		r := rand.New(rand.NewPCG(uint64(span), 1))
		var w Wheel
		due := map[int]int64{}
		now := int64(r.IntN(1e12))
		w.Advance(now, nil)
		for range 3000 {
			i := r.IntN(500)
			switch r.IntN(4) {
			case 0:
				w.Set(i, Never)
				delete(due, i)
			case 1:
				w.Clear(i)
				delete(due, i)
			default:
				due[i] = now + int64(r.Int64N(int64(span)))
				w.Set(i, due[i])
			}
			if got, ok := due[i]; !ok && w.Due(i) != Never || ok && w.Due(i) != got {
				t.Fatalf("deadline of %d is %d, want %d", i, w.Due(i), got)
			}
			now += r.Int64N(int64(span)/100 + 1)
			w.Advance(now, func(i int) {
				if due[i] == 0 || due[i] > now {
					t.Fatalf("%d fired at %d, due at %d", i, now, due[i])
				}
				delete(due, i)
			})
			late, next := int64(0), w.Next()
			for _, d := range due {
				late = max(late, now-d)
				if next > d+wheelTick {
					t.Fatalf("Next is %d, a deadline %d", next, d)
				}
			}
			if late > wheelTick {
				t.Fatalf("a deadline is %v late", time.Duration(late))
			}
		}
		for len(due) > 0 { // sleeping as a loop does
			now = max(now, w.Next())
			w.Advance(now, func(i int) { delete(due, i) })
		}
		if w.Next() != Never {
			t.Errorf("an empty wheel has a next deadline")
		}
	}
}

func TestWhatFiresMaySetAgain(t *testing.T) {
	var w Wheel
	w.Set(1, 1)
	w.Set(2, 1)
	var fired []int
	for now := int64(0); now < int64(time.Second); now += int64(100 * time.Millisecond) {
		w.Advance(now, func(i int) {
			fired = append(fired, i)
			w.Clear(3 - i)
			w.Set(i, now+1)
		})
	}
	if n := len(fired); n != 9 || slices.Contains(fired, 3-fired[0]) {
		t.Errorf("fired %v", fired)
	}
}

func TestAWheelLeftAloneForLongGoesOn(t *testing.T) {
	var w Wheel
	w.Set(0, int64(time.Second))
	now := int64(24 * time.Hour)
	fired := 0
	w.Advance(now, func(int) { fired++ })
	w.Set(0, now+int64(time.Second))
	w.Advance(now+int64(time.Second/2), func(int) { t.Error("fired early") })
	w.Advance(now+int64(time.Second)+wheelTick, func(int) { fired++ })
	if fired != 2 {
		t.Errorf("fired %d times", fired)
	}
}

func BenchmarkWheelSet(b *testing.B) {
	var w Wheel
	for i := range 10_000 {
		w.Set(i, int64(i)*1e6)
	}
	b.ReportAllocs()
	for i := 0; b.Loop(); i++ {
		w.Set(i%10_000, int64(i)*1e3)
	}
}

package join

import (
	"context"
	"errors"
	"io"
	"testing"
	"testing/synctest"
	"time"
)

func TestIdleIsTheTimeWithoutAByte(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, peerA := memoryPair()
		b, peerB := memoryPair()
		done := run(t.Context(), a, b, Options{Idle: time.Minute})
		for range 5 {
			time.Sleep(50 * time.Second)
			write(t, peerA, "x")
			wantRead(t, peerB, "x")
			time.Sleep(50 * time.Second)
			write(t, peerB, "y")
			wantRead(t, peerA, "y")
		}
		o := <-done
		if o.err != ErrIdle || o.result.AToB.Err != ErrIdle || o.took != 500*time.Second+time.Minute {
			t.Errorf("got %v, %+v after %v, want idle after 9m20s", o.err, o.result, o.took)
		}
		wantBytes(t, o.result, 5, 5)
	})
}

func TestAPeerThatTakesNothingIsIdle(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, peerA := memoryPair()
		b, _ := memoryPair()
		done := run(t.Context(), a, b, Options{Idle: time.Minute})
		write(t, peerA, "x")
		if o := <-done; o.err != ErrIdle || o.took != time.Minute {
			t.Errorf("got %v after %v, want %v after 1m", o.err, o.took, ErrIdle)
		}
	})
}

func TestQuitAfterRunsFromTheFirstEndOfFileOn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, peerA := memoryPair()
		b, peerB := memoryPair()
		done := run(t.Context(), a, b, Options{QuitAfter: time.Minute})
		time.Sleep(time.Hour)
		closeWrite(t, peerA)
		time.Sleep(59 * time.Second)
		write(t, peerB, "late")
		wantRead(t, peerA, "late")
		if o := <-done; o.err != nil || o.result.BToA.Err != ErrQuit || o.took != time.Hour+time.Minute {
			t.Errorf("got %v, %+v after %v, want no error after 1h1m", o.err, o.result, o.took)
		}
	})
}

func TestRateSpreadsBytesEvenly(t *testing.T) {
	for _, rate := range []int64{1, 10, 300, 1000, 123_456, 2 << 20} {
		synctest.Test(t, func(t *testing.T) {
			a, peerA := memoryPair()
			b, peerB := memoryPair()
			done := run(t.Context(), a, b, Options{Rate: rate, Idle: 500 * time.Millisecond})
			total := 20 * rate
			go func() {
				peerA.Write(make([]byte, total))
				peerA.CloseWrite()
			}()
			start := time.Now()
			got, most := watchRate(peerB, start)
			took := time.Since(start)
			if got != total || took < 19*time.Second || took > 20*time.Second {
				t.Errorf("%d B/s: %d bytes in %v, want %d in 20s, less a tenth at first", rate, got, took, total)
			}
			if allowed := max(rate/10, 1); most > allowed {
				t.Errorf("%d B/s: %d bytes at once, want %d at most", rate, most, allowed)
			}
			peerB.CloseWrite()
			if o := <-done; o.err != nil {
				t.Errorf("%d B/s: %v", rate, o.err)
			}
		})
	}
}

// watchRate reads to the end and says how much came, and how much at the same time.
func watchRate(r io.Reader, start time.Time) (total, most int64) {
	var last time.Duration
	var sum int64
	buf := make([]byte, 1<<20)
	for {
		n, err := r.Read(buf)
		if err != nil {
			return total, most
		}
		if now := time.Since(start); now != last {
			last, sum = now, 0
		}
		total += int64(n)
		sum += int64(n)
		most = max(most, sum)
	}
}

func TestRateAfterAPauseDoesNotBurst(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, peerA := memoryPair()
		b, peerB := memoryPair()
		done := run(t.Context(), a, b, Options{Rate: 1000})
		time.Sleep(time.Hour)
		go peerA.Write(make([]byte, 1000))
		start := time.Now()
		if _, err := io.ReadFull(peerB, make([]byte, 1000)); err != nil {
			t.Fatal(err)
		}
		if took := time.Since(start); took < 850*time.Millisecond {
			t.Errorf("a second's worth came within %v", took)
		}
		closeWrite(t, peerA)
		closeWrite(t, peerB)
		<-done
	})
}

func TestRateHoldsForRecordsLongerThanItsBurst(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, peerA := memoryPair()
		b, peerB := memoryPair()
		done := run(t.Context(), a, b, Options{Rate: 1000, RecordsA: true, RecordsB: true})
		start := time.Now()
		go func() {
			for range 11 {
				peerA.Write(make([]byte, 500))
			}
			peerA.CloseWrite()
		}()
		if _, err := io.ReadFull(peerB, make([]byte, 11*500)); err != nil {
			t.Fatal(err)
		}
		if took := time.Since(start); took < 4900*time.Millisecond || took > 5*time.Second {
			t.Errorf("11 records of half a second's worth took %v, want 5s", took)
		}
		closeWrite(t, peerB)
		if o := <-done; o.err != nil || o.result.AToB.Messages != 11 {
			t.Errorf("got %v, %+v", o.err, o.result)
		}
	})
}

func TestTheContextEndsAWaitForTheRate(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, peerA := memoryPair()
		b, peerB := memoryPair()
		ctx, cancel := context.WithTimeout(t.Context(), 2500*time.Millisecond)
		defer cancel()
		done := run(ctx, a, b, Options{Rate: 1})
		go io.Copy(io.Discard, peerB)
		write(t, peerA, "ten bytes.")
		o := <-done
		if !errors.Is(o.err, context.DeadlineExceeded) || o.took != 2500*time.Millisecond {
			t.Errorf("got %v after %v", o.err, o.took)
		}
		wantBytes(t, o.result, 3, 0)
	})
}

package faults

import (
	"math"
	"slices"
	"testing"
	"testing/synctest"
	"time"
)

const ms = time.Millisecond

var epoch = time.Unix(1e9, 0)

// fate of a datagram: when it is due, since it came; -1 if it is lost.
type fate = time.Duration

// fates are those of n datagrams that come at intervals.
func fates(l *Line, n, size int, every time.Duration) []fate {
	var all []fate
	for i := range n {
		now := epoch.Add(time.Duration(i) * every)
		due, arrives := l.Datagram(now, size)
		if arrives {
			all = append(all, due.Sub(now))
		} else {
			all = append(all, -1)
		}
	}
	return all
}

func lost(all []fate) (n int) {
	for _, f := range all {
		if f < 0 {
			n++
		}
	}
	return n
}

func TestDatagramsAreDelayed(t *testing.T) {
	for _, f := range fates(Config{Delay: 50 * ms}.Line(1, Up), 100, 100, ms) {
		if f != 50*ms {
			t.Fatalf("a datagram takes %v, want 50ms", f)
		}
	}
	for _, f := range fates(new(Line), 10, 100, 0) {
		if f != 0 {
			t.Fatalf("without faults a datagram takes %v", f)
		}
	}
}

func TestJitterIsEvenAndKeepsTheOrder(t *testing.T) {
	const n = 20000
	all := fates(Config{Delay: 50 * ms, Jitter: 20 * ms}.Line(1, Up), n, 100, 30*ms) // each alone
	var sum time.Duration
	least, most := all[0], all[0]
	for _, f := range all {
		sum += f
		least, most = min(least, f), max(most, f)
	}
	if mean := sum / n; least < 50*ms || most > 70*ms || least > 51*ms || most < 69*ms || mean < 59500*time.Microsecond || mean > 60500*time.Microsecond {
		t.Errorf("from %v to %v, mean %v; want 50ms to 70ms, 60ms", least, most, mean)
	}
	waited := 0
	var last time.Duration
	for i, f := range fates(Config{Delay: 50 * ms, Jitter: 20 * ms}.Line(1, Up), n, 100, ms) {
		due := time.Duration(i)*ms + f
		if due < last {
			t.Fatalf("datagram %d is due %v before the one before it", i, last-due)
		}
		if due == last {
			waited++
		}
		if last = due; f < 50*ms || f > 70*ms {
			t.Fatalf("datagram %d takes %v", i, f)
		}
	}
	if waited == 0 {
		t.Error("none had to wait for another: the order was never at stake")
	}
}

func TestLossIsAsFrequentAsConfigured(t *testing.T) {
	const n = 100000
	for _, p := range []float64{0, 0.001, 0.01, 0.5, 1} {
		got := float64(lost(fates(Config{Loss: p, Delay: 1}.Line(1, Up), n, 100, ms)))
		if deviation := 4 * math.Sqrt(n*p*(1-p)); math.Abs(got-n*p) > deviation {
			t.Errorf("%v: %v of %d lost", p, got, n)
		}
	}
	// The first chances of many connections are as good as the many of one.
	first := 0
	for conn := range uint64(n) {
		l := Config{Loss: 0.1, Delay: 1}.Line(conn, Down)
		first += lost(fates(l, 1, 100, 0))
	}
	if math.Abs(float64(first)-n*0.1) > 4*math.Sqrt(n*0.1*0.9) {
		t.Errorf("%d of the first of %d connections lost, want 10 %%", first, n)
	}
	seeds := 0
	for seed := range uint64(n) {
		seeds += lost(fates(Config{Loss: 0.1, Seed: seed}.Line(0, Up), 1, 100, 0))
	}
	if math.Abs(float64(seeds)-n*0.1) > 4*math.Sqrt(n*0.1*0.9) {
		t.Errorf("%d of the first of %d seeds lost, want 10 %%", seeds, n)
	}
}

func TestOnlyReorderLetsDatagramsOvertake(t *testing.T) {
	const n = 50000
	for _, tt := range []struct {
		delay, jitter, late time.Duration
	}{{0, 0, 10 * ms}, {4 * ms, 0, 10 * ms}, {100 * ms, 0, 50 * ms}, {100 * ms, 30 * ms, 80 * ms}} {
		all := fates(Config{Delay: tt.delay, Jitter: tt.jitter, Reorder: 0.1}.Line(1, Up), n, 100, ms)
		late, overtaken := 0, 0
		for i, f := range all {
			switch {
			case f < tt.delay || f > tt.delay+tt.jitter+tt.late:
				t.Fatalf("%+v: a datagram takes %v", tt, f)
			case f >= tt.delay+tt.late:
				late++
			case f > tt.delay+tt.jitter:
				t.Fatalf("%+v: a datagram takes %v, neither late nor on time", tt, f)
			}
			if i+1 < n && f > all[i+1]+ms {
				overtaken++
			}
		}
		if deviation := 4 * math.Sqrt(n*0.1*0.9); math.Abs(float64(late)-n*0.1) > deviation {
			t.Errorf("%+v: %d of %d are late, want 10 %%", tt, late, n)
		}
		if overtaken < late*8/10 { // but for those before another late one
			t.Errorf("%+v: %d of %d late ones were overtaken", tt, overtaken, late)
		}
	}
}

func TestBandwidthIsAQueueOfASecond(t *testing.T) {
	l := Config{Bandwidth: 100_000, Delay: 5 * ms}.Line(1, Up)
	all := fates(l, 200, 1000, 0) // each takes 10 ms
	for i, f := range all {
		want := time.Duration(i+1)*10*ms + 5*ms
		if i > 100 { // the 102nd would wait for 1.01 s
			want = -1
		}
		if f != want {
			t.Fatalf("datagram %d: got %v, want %v", i, f, want)
		}
	}
	// When the link is free again, so is the queue.
	if due, arrives := l.Datagram(epoch.Add(time.Hour), 1000); !arrives || !due.Equal(epoch.Add(time.Hour+15*ms)) {
		t.Errorf("later: %v, %v", due.Sub(epoch), arrives)
	}
	// A datagram that takes long by itself does not wait.
	if due, arrives := (Config{Bandwidth: 100}).Line(1, Up).Datagram(epoch, 1000); !arrives || due.Sub(epoch) != 10*time.Second {
		t.Errorf("long: %v, %v", due.Sub(epoch), arrives)
	}
	// At twice the rate a half is dropped, at half the rate none.
	if n := lost(fates(Config{Bandwidth: 100_000}.Line(1, Up), 10000, 1000, 5*ms)); n < 4850 || n > 5000 {
		t.Errorf("%d of 10000 dropped at twice the rate", n)
	}
	if n := lost(fates(Config{Bandwidth: 100_000}.Line(1, Up), 10000, 1000, 20*ms)); n != 0 {
		t.Errorf("%d of 10000 dropped at half the rate", n)
	}
	// What is lost by chance takes no bandwidth.
	if n := lost(fates(Config{Bandwidth: 100_000, Loss: 0.6}.Line(1, Up), 10000, 1000, 5*ms)); n < 5800 || n > 6200 {
		t.Errorf("%d of 10000 lost at 0.8 of the rate, want 60 %%", n)
	}
}

func TestASeedRepeatsAllChance(t *testing.T) {
	c := Config{Seed: 7, Delay: 10 * ms, Jitter: 5 * ms, Loss: 0.1, Reorder: 0.1}
	of := func(c Config, conn uint64, d Direction) []fate { return fates(c.Line(conn, d), 1000, 100, ms) }
	want := of(c, 3, Up)
	if got := of(c, 3, Up); !slices.Equal(got, want) {
		t.Error("the same seed made another course")
	}
	if up, down := c.Lines(3); !slices.Equal(fates(up, 1000, 100, ms), want) || !slices.Equal(fates(down, 1000, 100, ms), of(c, 3, Down)) {
		t.Error("Lines have other chances than Line")
	}
	other := c
	other.Seed = 8
	for name, got := range map[string][]fate{"seed": of(other, 3, Up), "connection": of(c, 4, Up), "direction": of(c, 3, Down)} {
		same := 0
		for i := range got {
			if (got[i] < 0) && (want[i] < 0) {
				same++
			}
		}
		if slices.Equal(got, want) || same > 30 { // 10 of 1000 by chance
			t.Errorf("another %s: %d are lost with both", name, same)
		}
	}
	// Other faults, another pace and other sizes lose the same datagrams.
	for name, got := range map[string][]fate{
		"jitter":  fates(Config{Seed: 7, Loss: 0.1}.Line(3, Up), 1000, 100, ms),
		"reorder": fates(Config{Seed: 7, Loss: 0.1, Reorder: 0.9}.Line(3, Up), 1000, 100, ms),
		"pace":    fates(c.Line(3, Up), 1000, 10, time.Second),
	} {
		for i := range got {
			if (got[i] < 0) != (want[i] < 0) {
				t.Errorf("with another %s, datagram %d has another fate", name, i)
				break
			}
		}
	}
}

func TestACutLosesAllDatagramsOfBothDirections(t *testing.T) {
	up, down := Config{CutAfter: 1000}.Lines(1)
	for i, step := range []struct {
		l       *Line
		size    int
		arrives bool
	}{{up, 400, true}, {down, 400, true}, {down, 200, true}, {up, 1, false}, {down, 0, false}} {
		if _, arrives := step.l.Datagram(epoch, step.size); arrives != step.arrives {
			t.Errorf("step %d: arrives is %v", i, arrives)
		}
	}
	select {
	case <-up.Done():
	default:
		t.Error("it is not done")
	}
	synctest.Test(t, func(t *testing.T) {
		up, down := Config{CutTime: time.Second}.Lines(1)
		time.Sleep(time.Second - 1)
		if _, arrives := up.Datagram(time.Now(), 1); !arrives {
			t.Error("lost before the cut")
		}
		time.Sleep(time.Nanosecond)
		if _, arrives := down.Datagram(time.Now(), 1); arrives {
			t.Error("passed after the cut")
		}
		<-up.Done()
	})
	up, down = Config{Delay: ms}.Lines(1)
	up.Cut()
	if _, arrives := down.Datagram(epoch, 1); arrives {
		t.Error("passed after Cut")
	}
	l := new(Line)
	l.Cut()
	if l.Done() != nil {
		t.Error("a line without faults can be cut")
	}
}

func TestDatagramAllocatesNothing(t *testing.T) {
	l := Config{Delay: 10 * ms, Jitter: 5 * ms, Loss: 0.1, Reorder: 0.1, Bandwidth: 1e6, CutAfter: 1 << 40, CutTime: time.Hour}.Line(1, Up)
	now := time.Now()
	if n := testing.AllocsPerRun(1000, func() { l.Datagram(now, 100) }); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

func BenchmarkDatagram(b *testing.B) {
	l := Config{Delay: 10 * ms, Jitter: 5 * ms, Loss: 0.1, Reorder: 0.1, Bandwidth: 1e9}.Line(1, Up)
	now := time.Now()
	b.ReportAllocs()
	for b.Loop() {
		now = now.Add(time.Microsecond)
		l.Datagram(now, 100)
	}
}

package join

import (
	"sync/atomic"
	"time"
)

// idleLooks is how often the kernel's queues are looked at in the idle time.
const idleLooks = 4

// activity is when a byte last moved, in either direction.
type activity struct {
	start time.Time
	last  atomic.Int64 // since start
	paced atomic.Int32 // directions that wait for their rate

	unsent [2]int // what the kernel held when it was looked at
}

func (a *activity) touch() { a.last.Store(int64(time.Since(a.start))) }

// look takes a change of what the kernel holds for the two ends as activity.
func (a *activity) look(unsent ...int) {
	if now := [2]int(unsent); now != a.unsent {
		a.unsent = now
		a.touch()
	}
}

// since is for how long no byte has moved, or 0 while one waits for its rate.
func (a *activity) since() time.Duration {
	if a.paced.Load() > 0 {
		return 0
	}
	return time.Since(a.start) - time.Duration(a.last.Load())
}

// burst is the time whose bytes may go at once.
const burst = time.Second / 10

// pacer spreads bytes evenly over time. It is a token bucket kept as the time at
// which the next byte may go.
type pacer struct {
	piece    int // bytes to write at once
	rate     float64
	credit   time.Duration // how far next may lie back
	next     time.Time
	timer    *time.Timer
	activity *activity
	stop     <-chan struct{}
}

// newPacer returns nil for a rate of 0, without limit. The activity may be nil.
func newPacer(rate int64, a *activity, stop <-chan struct{}) *pacer {
	if rate == 0 {
		return nil
	}
	p := &pacer{rate: float64(rate), activity: a, stop: stop, timer: stoppedTimer()}
	p.piece = int(max(rate/int64(2*time.Second/burst), 1))
	p.credit = max(burst-p.takes(p.piece), 0)
	return p
}

func (p *pacer) takes(n int) time.Duration {
	return time.Duration(float64(n) / p.rate * float64(time.Second))
}

// wait waits until n bytes may go, or the end.
func (p *pacer) wait(n int) {
	now := time.Now()
	if earliest := now.Add(-p.credit); p.next.Before(earliest) {
		p.next = earliest
	}
	if d := p.next.Sub(now); d > 0 {
		p.sleep(d)
	}
	p.next = p.next.Add(p.takes(n))
}

func (p *pacer) sleep(d time.Duration) {
	if p.activity != nil {
		p.activity.paced.Add(1)
		defer p.activity.paced.Add(-1)
		defer p.activity.touch()
	}
	p.timer.Reset(d)
	select {
	case <-p.timer.C:
	case <-p.stop:
		p.timer.Stop()
	}
}

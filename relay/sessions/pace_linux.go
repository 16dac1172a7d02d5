package sessions

import (
	"time"

	"golang.org/x/sys/unix"
)

// pace tells whether so much comes that it is worth letting some gather, as network
// cards do before they interrupt: what is taken many at a time leaves as trains, and
// its senders need not wake the loop for each. Where the clients are programs of this
// machine, nothing else gathers it.
type pace struct {
	since int64  // when the measure began
	count uint64 // of datagrams at that time
	fast  bool
}

const (
	fastRate    = 100_000 // datagrams per second, of one loop and both directions
	paceMeasure = int64(time.Millisecond)

	// The kernel adds up to 50 µs, the timer slack of a thread (PR_SET_TIMERSLACK, prctl(2)).
	gatherTime = 20 * time.Microsecond
)

// see takes how many datagrams there have been until now.
func (p *pace) see(now int64, count uint64) {
	passed := now - p.since
	if passed < paceMeasure {
		return
	}
	p.fast = (count-p.count)*uint64(time.Second) >= fastRate*uint64(passed)
	p.since, p.count = now, count
}

// gather waits a moment if much comes.
func (p *pace) gather() {
	if p.fast {
		t := unix.NsecToTimespec(int64(gatherTime))
		unix.Nanosleep(&t, nil) // a signal may end it early
	}
}

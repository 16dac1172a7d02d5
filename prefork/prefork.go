// Package prefork runs several processes on one port: workers that the kernel
// spreads the clients over, and a parent that starts them anew when they die and
// adds up what they count.
//
//	g := &prefork.Group{ // the parent
//		Command: func(n int) *exec.Cmd { return exec.Command("/proc/self/exe", "worker") },
//		Workers: 4,
//		Sockets: sockets, // each worker's own, bound to the one port with SO_REUSEPORT (socket(7))
//	}
//	err := g.Run(ctx)
//
//	n, sockets, counters, err := prefork.Inherited() // a worker
//
// The parent keeps all sockets open. So a client whose connection waits in the
// backlog of a worker that is killed, or whose datagram in its buffer, waits for the
// worker that takes its place, and is not refused. Clients that the dead worker had
// accepted are lost with it.
//
// A worker gets its sockets behind the other files of its command
// ([exec.Cmd.ExtraFiles]), so it may be given some as sd_listen_fds(3) says too; the
// environment variable FT_PREFORK says which they are. What it counts is in memory
// that it shares with the parent (memfd_create(2)), where kill -9 cannot lose it.
//
// Workers end with the parent, however it ends: once it has called [Inherited] each
// watches a pipe that is at its end when the parent is gone. A signal for the parent's whole process
// group, such as SIGINT of Ctrl-C, reaches them twice, since the parent passes on
// SIGTERM: do not take the second for the order to leave at once. One that
// dies of the first may be started again just before the parent stops all.
//
// On systems other than Linux every call fails with an error wrapping
// [errors.ErrUnsupported].
package prefork

import (
	"context"
	"errors"
	"os"
	"os/exec"
	"sync"
	"sync/atomic"
	"time"
)

// ErrNotWorker is wrapped by the error of [Inherited] in a process that no Group started.
var ErrNotWorker = errors.New("this process was not started as a worker")

// ErrKilled is wrapped by the error of [Group.Run] if a worker did not end when it
// was asked to, and was killed.
var ErrKilled = errors.New("it was killed")

const (
	young        = time.Second // a worker that dies before has not lived
	maxYoung     = 10          // deaths in a row at which there is no more hope
	longestPause = time.Second
	orphanGrace  = 5 * time.Second // from SIGTERM to SIGKILL when the parent is gone
)

// Group is a parent's workers. It runs once. What it takes stays the caller's.
type Group struct {
	// Command makes the command of worker n, from 0 on: a new one each time. It is
	// called by several goroutines at once. A program that runs itself should do so
	// as /proc/self/exe, which is the same even when its file was replaced.
	Command func(n int) *exec.Cmd
	Workers int // at least 1
	// Sockets are what each worker gets: Sockets[n] those of worker n. Several may
	// have the same. nil: none get any. Run makes copies, so the caller's may be
	// closed once Command was called.
	Sockets [][]*os.File
	// Counters is how many each worker has.
	Counters int
	// Grace is how long workers have from SIGTERM to their end before they are
	// killed. 0 is 10 seconds.
	Grace time.Duration
	// OnExit is told of each worker that has ended, before another takes its place;
	// by one goroutine at a time. state is nil if it could not be started; err is
	// that of [exec.Cmd.Start] or [exec.Cmd.Wait].
	OnExit func(n int, state *os.ProcessState, err error)

	exits sync.Mutex // one OnExit at a time

	mu       sync.RWMutex
	ran      bool
	counters []atomic.Uint64 // in shared memory while it runs
	stride   int             // from one worker's to the next one's
}

// Run starts the workers, and starts anew what dies: at once, but with growing
// pauses of up to a second when it dies within a second of its start again and
// again. At the tenth time in a row it gives up, ends the others, and returns why.
//
// When ctx ends it closes its copies of the sockets, sends the workers SIGTERM, after
// Grace SIGKILL, and returns nil once all have ended by themselves, or an error that wraps [ErrKilled].
func (g *Group) Run(ctx context.Context) error { return g.run(ctx) }

// Total is counter i of all workers together, those that have died included. It is
// 0 before Run, and stays after it.
func (g *Group) Total(i int) (sum uint64) {
	for n := range g.Workers {
		sum += g.Worker(n, i)
	}
	return sum
}

// Worker is counter i of worker n and of those that had its place before.
func (g *Group) Worker(n, i int) uint64 {
	g.mu.RLock()
	defer g.mu.RUnlock()
	if g.counters == nil {
		return 0
	}
	return g.slot(n)[i].Load()
}

// Add adds to counter i of worker n, as when OnExit tells that connections which it
// had opened are closed.
func (g *Group) Add(n, i int, delta uint64) {
	g.mu.RLock()
	defer g.mu.RUnlock()
	if g.counters != nil {
		g.slot(n)[i].Add(delta)
	}
}

func (g *Group) slot(n int) []atomic.Uint64 {
	return g.counters[n*g.stride:][:g.Counters:g.Counters]
}

// Counters are a worker's. They start at what those before it have counted, and
// several goroutines may use them.
type Counters struct{ values []atomic.Uint64 }

// Len is how many there are.
func (c *Counters) Len() int { return len(c.values) }

// Add adds to counter i without a lock or an allocation.
func (c *Counters) Add(i int, delta uint64) { c.values[i].Add(delta) }

// Load returns counter i.
func (c *Counters) Load(i int) uint64 { return c.values[i].Load() }

// Inherited returns which worker this process is, its sockets, and its counters;
// outside a worker the error wraps [ErrNotWorker]. It is called once, before other
// processes are started: from then on descriptors and environment do not go to them.
//
// From then on too, when the parent is gone, this process sends itself SIGTERM, and
// after 5 seconds SIGKILL.
func Inherited() (n int, sockets []*os.File, counters *Counters, err error) { return inherited() }

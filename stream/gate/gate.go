// Package gate lets connections into servers that stand on event loops: it accepts
// those of any number of listeners within limits, and knows of each connection in
// which loop it is.
//
// A server has one [Gate], which counts, and each of its loops an [Acceptor],
// which waits for connections with the loop's own poller. What is accepted and
// what is refused, and what is said of it in events, is as [stream.Server] does it.
package gate

import (
	"fmt"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"github.com/fivetuple/fivetuple/internal/poll"
	"github.com/fivetuple/fivetuple/internal/quota"
	"github.com/fivetuple/fivetuple/stats"
	"github.com/fivetuple/fivetuple/stream"
)

// Gate admits connections and counts them. The zero value is one that has yet to
// be opened.
type Gate struct {
	limits atomic.Pointer[stream.Limits]
	paused atomic.Bool   // nothing is accepted until pauseEnds, or a connection ends
	ids    atomic.Uint64 // if there are no IDs
	ended  chan struct{} // closed by Close and Release

	mu        sync.Mutex // taken inside a loop's, never around it
	is        Config
	shut      bool
	over      bool // ended is closed
	acceptors []*Acceptor
	listeners []*Listener
	where     map[uint64]Place // the connections by id
	unplaced  int              // those of them that have no place yet
	perSource map[netip.Addr]int
	bucket    quota.Bucket
	backoff   quota.Backoff
	pauseEnds int64
	saidFull  time.Time // when it was last said that clients have to wait
}

// Config is what a [Gate] is to do.
type Config struct {
	Clock   func() int64       // the loops' clock, in nanoseconds
	Limits  stream.Limits      // unless SetLimits was called before
	Peers   *stream.PeerFilter // who may connect to Unix sockets; nil lets everyone
	Proxies []netip.Prefix     // sources whose clients are not known yet: see [Gate.Admit]
	IDs     *atomic.Uint64     // where connection ids come from; nil counts from 1
	Events  *stats.Recorder    // where events go
}

// Open makes the gate ready for its acceptors.
func (g *Gate) Open(c Config) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.is = c
	g.acceptors = nil
	g.ended = make(chan struct{})
	g.where = make(map[uint64]Place)
	g.perSource = make(map[netip.Addr]int)
	g.backoff = quota.Backoff{Min: 5 * time.Millisecond, Max: time.Second}
	if g.limits.Load() == nil {
		g.limits.Store(&c.Limits)
	}
}

// Limits are those of now, nil before Open.
func (g *Gate) Limits() *stream.Limits { return g.limits.Load() }

// SetLimits changes the limits for connections from now on.
func (g *Gate) SetLimits(limits stream.Limits) {
	g.limits.Store(&limits)
	g.again()
}

// Shut lets no more connections in.
func (g *Gate) Shut() {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.shut = true
}

// IsShut says whether Shut, Close or Release was called.
func (g *Gate) IsShut() bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.shut
}

// Close shuts the gate, closes the listeners and makes Serve return
// [stream.ErrServerClosed].
func (g *Gate) Close() {
	g.end(func(ln net.Listener) { ln.Close() })
}

// Release is Close for listeners that another process has, too: Serve closes them,
// and the files of Unix sockets are not removed.
func (g *Gate) Release() {
	g.end(func(ln net.Listener) {
		if u, ok := ln.(interface{ SetUnlinkOnClose(bool) }); ok {
			u.SetUnlinkOnClose(false)
		}
	})
}

func (g *Gate) end(last func(net.Listener)) {
	g.Shut()
	ls := g.all()
	g.unlisten(ls)
	for _, l := range ls {
		last(l.ln)
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.ended != nil && !g.over {
		g.over = true
		close(g.ended)
	}
}

// pauseFor stops accepting for so long, or until a connection ends. g.mu is held.
func (g *Gate) pauseFor(d time.Duration) {
	g.paused.Store(true)
	g.pauseEnds = poll.Never
	if int64(d) < poll.Never/2 {
		g.pauseEnds = g.is.Clock() + int64(d)
	}
}

func (g *Gate) pausedUntil() int64 {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.pauseEnds
}

// again ends a pause.
func (g *Gate) again() {
	if !g.paused.Swap(false) {
		return
	}
	g.mu.Lock()
	acceptors := g.acceptors
	g.mu.Unlock()
	for _, a := range acceptors {
		a.poller.Wake()
	}
}

// full says that clients have to wait, at most once a minute. g.mu is held.
func (g *Gate) full(limit int) error {
	if !g.saidFull.IsZero() && time.Since(g.saidFull) < time.Minute {
		return nil
	}
	g.saidFull = time.Now()
	return fmt.Errorf("full with %d connections: others wait until one ends", limit)
}

package scan

import (
	"context"
	"net/netip"
	"sync"
	"time"
)

const (
	// Once nothing has worked for so long, ports that cannot be asked are given up.
	patience = time.Second
	// pause is between two attempts when no probe is under way whose end could help.
	pause = 10 * time.Millisecond
	// growth is how many probes must work for the window to grow by one.
	growth = 16
)

// connectEngine asks ports by connecting to them, as many at a time as its window allows.
type connectEngine struct {
	asker  *asker
	window int
}

// A try is a probe on its way to a result.
type try struct {
	probe
	alone bool // nothing else is asked meanwhile
}

func (e connectEngine) scan(ctx context.Context, next func() (probe, bool), report func(Result) bool) error {
	ctx, cancel := context.WithCancel(ctx)
	s := connectScan{
		asker:      e.asker,
		next:       next,
		window:     e.window,
		maxWindow:  e.window,
		outcomes:   make(chan outcome, e.window), // has room for all, so that nobody waits to put one in
		asked:      make(map[netip.AddrPort]bool),
		lastWorked: time.Now(),
	}
	defer s.goroutines.Wait()
	defer cancel()
	for s.start(ctx) {
		var o outcome
		select {
		case o = <-s.outcomes:
			s.running--
		case <-ctx.Done():
		}
		if err := ended(ctx); err != nil {
			return err
		}
		if o.option != nil {
			return o.option
		}
		if s.repeat(ctx, o) {
			continue
		}
		delete(s.asked, o.endpoint())
		if !report(o.result) {
			return nil
		}
		if !o.short {
			s.lastWorked = time.Now() // not before, as report may take its time
		}
	}
	return nil
}

// connectScan is a scan under way.
type connectScan struct {
	asker      *asker
	next       func() (probe, bool)
	goroutines sync.WaitGroup
	outcomes   chan outcome

	running           int // probes
	window, maxWindow int // how many may be
	worked            int // how many did since the window last grew
	lastWorked        time.Time

	asked    map[netip.AddrPort]bool // without a result so far
	failed   []try                   // to be tried again
	doubtful []try                   // to be tried again alone
}

// start starts as many probes as may run, and says whether any is running.
func (s *connectScan) start(ctx context.Context) bool {
	if last := len(s.doubtful) - 1; last >= 0 {
		if s.running == 0 {
			s.run(ctx, s.doubtful[last])
			s.doubtful = s.doubtful[:last]
		}
		return true
	}
	for s.running < s.window {
		t, ok := s.take()
		if !ok {
			break
		}
		s.run(ctx, t)
	}
	return s.running > 0
}

// take returns what is to be tried again before what is new.
func (s *connectScan) take() (try, bool) {
	if last := len(s.failed) - 1; last >= 0 {
		t := s.failed[last]
		s.failed = s.failed[:last]
		return t, true
	}
	p, ok := s.next()
	return try{probe: p}, ok
}

func (s *connectScan) run(ctx context.Context, t try) {
	s.running++
	s.asked[t.endpoint()] = true
	s.goroutines.Go(func() { s.outcomes <- s.asker.ask(ctx, t) })
}

// repeat says whether an outcome is no result yet. The probe will then be tried again.
func (s *connectScan) repeat(ctx context.Context, o outcome) bool {
	if o.short {
		return s.repeatShort(ctx, o.probe)
	}
	if s.worked++; s.worked == growth {
		s.worked, s.window = 0, min(s.window+1, s.maxWindow)
	}
	// Two probes of this machine's own ports, each with the other's port as its
	// source, connect to one another (simultaneous open, RFC 9293 section 3.5)
	// though nobody listens. A probe that is alone has nobody to meet.
	if !o.alone && (o.mayBeOwn || s.asked[o.source]) {
		s.doubtful = append(s.doubtful, try{probe: o.probe, alone: true})
		return true
	}
	return false
}

func (s *connectScan) repeatShort(ctx context.Context, p probe) bool {
	// As many as are under way are as many as this machine can carry.
	s.worked, s.window = 0, max(1, s.running)
	if s.running == 0 {
		if time.Since(s.lastWorked) > patience {
			return false
		}
		sleep(ctx, pause)
	}
	s.failed = append(s.failed, try{probe: p})
	return true
}

// ended returns the error of a context as soon as its deadline has passed: a
// connection that ends then may do so a moment before the context notices, and did
// not time out on its own.
func ended(ctx context.Context) error {
	if deadline, ok := ctx.Deadline(); ok && !time.Now().Before(deadline) {
		return context.DeadlineExceeded
	}
	return ctx.Err()
}

func sleep(ctx context.Context, d time.Duration) {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-ctx.Done():
	}
}

package prefork

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"sync"
	"syscall"
	"time"
)

func (g *Group) run(ctx context.Context) error {
	k, err := g.newKit()
	if err != nil {
		return fmt.Errorf("run workers: %w", err)
	}
	defer k.close()
	defer g.keepCounts()

	ctx, stop := context.WithCancel(ctx)
	defer stop()
	errs := make([]error, g.Workers)
	var wg sync.WaitGroup
	for n := range g.Workers {
		wg.Go(func() {
			if errs[n] = g.keep(ctx, k, n); errs[n] != nil {
				errs[n] = fmt.Errorf("worker %d %w", n, errs[n])
				stop()
			}
		})
	}
	wg.Wait()
	return errors.Join(errs...)
}

// keep has one worker n after the other run, until ctx ends or it is hopeless.
func (g *Group) keep(ctx context.Context, k *kit, n int) error {
	deaths := 0 // in a row, of the young
	for {
		born := time.Now()
		state, killed, err := g.runOne(ctx, k, n)
		g.exited(n, state, err)
		if killed {
			return fmt.Errorf("did not end within %v of SIGTERM: %w", g.grace(), ErrKilled)
		}
		if ctx.Err() != nil {
			return nil
		}
		if time.Since(born) >= young {
			deaths = 0
		}
		if deaths++; deaths == maxYoung {
			return fmt.Errorf("died within %v of its start %d times in a row, the last time of: %w", young, deaths, cmp.Or(err, errEnded))
		}
		if !pause(ctx, pauseAfter(deaths)) {
			return nil
		}
	}
}

var (
	errEnded     = errors.New("its own will (exit status 0)")
	errNoCommand = errors.New("there is no command")
)

// pauseAfter so many deaths in a row is 0, 10 ms, 20 ms, 40 ms, ... 1 s.
func pauseAfter(deaths int) time.Duration {
	if deaths < 2 {
		return 0
	}
	return min(longestPause, 10*time.Millisecond<<(deaths-2))
}

func pause(ctx context.Context, d time.Duration) bool {
	select {
	case <-time.After(d):
		return ctx.Err() == nil
	case <-ctx.Done():
		return false
	}
}

// runOne runs one process until its end.
func (g *Group) runOne(ctx context.Context, k *kit, n int) (state *os.ProcessState, killed bool, err error) {
	cmd := g.Command(n)
	if cmd == nil {
		return nil, false, errNoCommand
	}
	k.equip(cmd, n)
	if err := cmd.Start(); err != nil {
		return nil, false, err
	}
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	select {
	case err = <-ended:
	case <-ctx.Done():
		k.closeSockets(n) // clients that come now are refused, and do not wait for nobody
		killed, err = stop(cmd.Process, g.grace(), ended)
	}
	return cmd.ProcessState, killed, err
}

// stop asks a process to end, and makes it.
func stop(p *os.Process, grace time.Duration, ended <-chan error) (killed bool, err error) {
	_ = p.Signal(syscall.SIGTERM) // it may have ended
	select {
	case err = <-ended:
		return false, err
	case <-time.After(grace):
	}
	killed = p.Kill() == nil
	return killed, <-ended
}

func (g *Group) exited(n int, state *os.ProcessState, err error) {
	if g.OnExit == nil {
		return
	}
	g.exits.Lock()
	defer g.exits.Unlock()
	g.OnExit(n, state, err)
}

func (g *Group) grace() time.Duration { return cmp.Or(g.Grace, 10*time.Second) }

package cli

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"runtime"
	"syscall"
	"time"

	"github.com/fivetuple/fivetuple/prefork"
	"github.com/fivetuple/fivetuple/service"
	"github.com/fivetuple/fivetuple/stats"
	"github.com/fivetuple/fivetuple/stream"
)

// What workers count together.
const (
	countAccepted = iota
	countEnded
	countIn
	countOut
	countErrors
	counts // how many there are
)

// listenWorkers serves by several processes on the same ports. Each of them runs
// the same command line, and finds that it is one of them.
func (a *app) listenWorkers(ctx context.Context, p listenPlan) error {
	n, files, counters, err := prefork.Inherited()
	if err == nil {
		return a.listenAsWorker(ctx, p, n, files, counters)
	}
	if !errors.Is(err, prefork.ErrNotWorker) {
		return err
	}
	if _, err := a.prepare(&p); err != nil {
		return err
	}
	if len(p.config.Sockets) > 0 {
		return usage("--workers opens its sockets itself: it does not go with those that were passed (LISTEN_FDS)")
	}
	shared, err := service.OpenShared(ctx, p.config, p.workers)
	if err != nil {
		return err
	}
	defer shared.Close()
	sockets, err := shared.Files()
	if err != nil {
		return err
	}
	stop := context.AfterFunc(ctx, func() { // clients that come now are refused
		shared.Close()
		closeFiles(sockets)
	})
	defer stop()
	began := time.Now()
	g := &prefork.Group{
		Command: func(int) *exec.Cmd {
			c := exec.Command("/proc/self/exe", os.Args[1:]...) // the same even if its file was replaced
			c.Args[0] = os.Args[0]
			c.Stderr = a.err
			return c
		},
		Workers: p.workers, Sockets: sockets, Counters: counts, Grace: p.drain + killAfter,
	}
	g.OnExit = func(n int, state *os.ProcessState, err error) {
		// Ctrl-C is for all processes of the terminal, and may reach a worker first.
		if asked := state != nil && state.Success(); asked && !wait(ctx, 100*time.Millisecond) {
			return
		}
		if ctx.Err() == nil {
			a.note("worker %d ended: %v; another takes its place", n, exitOf(state, err))
		}
	}
	for _, address := range shared.Addresses() {
		a.note("listening on %s: %s, %s", address, p.kind, plural(p.workers, "worker"))
	}
	a.noteCertificate(p)
	err = g.Run(ctx)
	a.note("served %s, %s in, %s out%s, in %s", plural(int(g.Total(countAccepted)), "connection"), stats.FormatBytes(g.Total(countIn)),
		stats.FormatBytes(g.Total(countOut)), andErrors(g.Total(countErrors)), stats.FormatDuration(time.Since(began)))
	return err
}

// killAfter is how much longer than --drain a worker may take to end.
const killAfter = 10 * time.Second

func closeFiles(of [][]*os.File) {
	for _, files := range of {
		for _, f := range files {
			f.Close()
		}
	}
}

func exitOf(state *os.ProcessState, err error) string {
	if state != nil {
		return state.String()
	}
	return fmt.Sprint(err)
}

func andErrors(n uint64) string {
	if n == 0 {
		return ""
	}
	return ", " + plural(int(n), "error")
}

// listenAsWorker serves on this worker's sockets.
func (a *app) listenAsWorker(ctx context.Context, p listenPlan, n int, files []*os.File, counters *prefork.Counters) error {
	os.WriteFile("/proc/self/comm", []byte("ft"), 0) // which is exe, after its path
	if len(files) != len(p.config.Endpoints) {
		return fmt.Errorf("worker %d got %d sockets for %d endpoints", n, len(files), len(p.config.Endpoints))
	}
	p.worker = true
	c := &p.config
	for i, f := range files {
		c.Sockets = append(c.Sockets, service.Socket{Endpoint: c.Endpoints[i], File: f})
	}
	c.Endpoints = nil
	c.Limits = share(c.Limits, n, p.workers)
	c.Loops = max(1, runtime.NumCPU()/p.workers)
	c.Stderr = a.err
	count := &workerCount{counters: counters, seen: make(map[uint64]moved)}
	c.Sink = stats.Tee(count, stats.SinkFunc(func(e stats.Event) { a.noteEvent(e, p.verbose) }))
	s, err := service.Start(ctx, *c)
	if err != nil {
		return err
	}
	select {
	case <-ctx.Done():
	case err = <-s.Failed():
	}
	return errors.Join(err, a.stopServing(p, s))
}

// secondSignal is how long after the first one a signal is another order.
const secondSignal = 200 * time.Millisecond

// workerStopContext is [stopContext] for a worker, which Ctrl-C reaches twice: by the
// terminal and, as SIGTERM, by its parent.
func workerStopContext(patience time.Duration) (context.Context, func()) {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	second := make(chan os.Signal, 1)
	later := time.AfterFunc(secondSignal, func() { signal.Notify(second, os.Interrupt, syscall.SIGTERM) })
	go func() {
		select {
		case <-second:
			cancel()
		case <-ctx.Done():
		}
	}()
	return ctx, func() {
		later.Stop()
		signal.Stop(second)
		cancel()
	}
}

// share is the nth worker's part of the limits of all: together they are no more.
func share(l stream.Limits, n, workers int) stream.Limits {
	part := func(whole int) int { return (whole + workers - 1 - n) / workers }
	l.MaxConns, l.MaxPerSource, l.AcceptRate = part(l.MaxConns), part(l.MaxPerSource), l.AcceptRate/float64(workers)
	return l
}

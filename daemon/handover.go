package daemon

import (
	"context"
	"fmt"
	"maps"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/fivetuple/fivetuple/port/lease"
	"github.com/fivetuple/fivetuple/service"
)

// takeOver starts every service with what a predecessor has of it.
func (d *Daemon) takeOver(ctx context.Context, c Config, from *service.Takeover) error {
	defer from.Close()
	all, err := d.openAll(ctx, c, from)
	if err == nil {
		err = d.checkPassed()
	}
	if err == nil {
		err = from.Commit()
	}
	if err != nil {
		for _, r := range all {
			d.releaseLeases(r)
		}
		return err
	}
	// What follows can no longer be a failure: nobody else serves.
	if d.self, err = lease.OwnerOf(os.Getpid()); err != nil {
		d.log.Warn("leases", "error", err)
	}
	for _, r := range all {
		d.begin(ctx, r, from.Predecessor())
		d.enter(r)
	}
	d.log.Info("taken over", "from", from.Predecessor(), "services", len(from.Names()))
	ln, err := from.Listener()
	if err != nil {
		d.log.Error("no successor can take over", "error", err)
		return nil
	}
	d.control = d.group().Await(ln)
	return nil
}

func (d *Daemon) openAll(ctx context.Context, c Config, from *service.Takeover) (all []*running, err error) {
	for _, s := range c.Services {
		r, err := d.open(ctx, s, from)
		if err != nil {
			return all, fmt.Errorf("service %s: %w", s.Name, err)
		}
		all = append(all, r)
	}
	lost := slices.DeleteFunc(slices.Clone(from.Names()), func(name string) bool {
		return slices.ContainsFunc(c.Services, func(s Service) bool { return s.Name == name })
	})
	if len(lost) > 0 {
		return all, fmt.Errorf("process %d also runs %s, which this configuration does not have: have it reload the configuration first, which ends that",
			from.Predecessor(), strings.Join(lost, ", "))
	}
	return all, nil
}

// group are the services for a successor.
func (d *Daemon) group() service.Group {
	return service.Group{HandOver: d.handOver, Failed: func(err error) { d.log.Warn("no successor", "error", err) }}
}

// handOver gives all services away, or none.
func (d *Daemon) handOver(give func([]*service.Service) error) error {
	d.change.Lock()
	defer d.change.Unlock()
	if d.stopped {
		return ErrStopped
	}
	var all []*service.Service
	running := d.all()
	for _, r := range running {
		all = append(all, r.service)
	}
	if err := give(all); err != nil {
		return err
	}
	d.stopped = true
	for _, r := range running {
		r.gone = true
	}
	return nil
}

// all are the services that run, by name.
func (d *Daemon) all() []*running {
	d.mu.Lock()
	defer d.mu.Unlock()
	var all []*running
	for _, name := range slices.Sorted(maps.Keys(d.running)) {
		all = append(all, d.running[name])
	}
	return all
}

// HandedOver is closed once a successor has the services: see [Daemon.Drain].
func (d *Daemon) HandedOver() <-chan struct{} { return d.control.HandedOver() }

// Drain waits, after a hand-over, until what stayed here has ended, or ctx has. Stop
// is to follow.
func (d *Daemon) Drain(ctx context.Context) error {
	for _, r := range d.all() {
		if err := r.service.Drain(ctx); err != nil {
			return err
		}
	}
	return d.drained(ctx)
}

// drained waits for services that were retired before.
func (d *Daemon) drained(ctx context.Context) error {
	tick := time.NewTicker(100 * time.Millisecond)
	defer tick.Stop()
	for d.retired.Load() > 0 {
		select {
		case <-tick.C:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	return nil
}

package daemon

import (
	"context"
	"slices"

	"github.com/fivetuple/fivetuple/history"
	"github.com/fivetuple/fivetuple/port/lease"
	"github.com/fivetuple/fivetuple/service"
	"github.com/fivetuple/fivetuple/stats"
)

// Counters returns the sums of every service since the start.
func (d *Daemon) Counters() []stats.ServiceCounters { return d.counters.Snapshot() }

// Leases is the registry that the services take their ports from.
func (d *Daemon) Leases() lease.Registry { return d.leases }

// Addresses returns where each running service listens, by name.
func (d *Daemon) Addresses() map[string]string {
	d.mu.Lock()
	defer d.mu.Unlock()
	all := make(map[string]string, len(d.running))
	for name, r := range d.running {
		all[name] = r.address
	}
	return all
}

// Stream returns the connections of a running stream service, nil if there is none
// of that name.
func (d *Daemon) Stream(name string) service.Streams {
	d.mu.Lock()
	defer d.mu.Unlock()
	if r := d.running[name]; r != nil {
		return r.service.Streams()
	}
	return nil
}

// Names returns the names of the running services in order.
func (d *Daemon) Names() []string {
	var names []string
	for name := range d.Addresses() {
		names = append(names, name)
	}
	slices.Sort(names)
	return names
}

// Recent returns the newest n events of the history, oldest first; none if no
// history is kept.
func (d *Daemon) Recent(ctx context.Context, n int) ([]history.Entry, error) {
	if d.history == nil {
		return nil, nil
	}
	var all []history.Entry
	for e, err := range d.history.Query(ctx, history.Query{Limit: n}) {
		if err != nil {
			return all, err
		}
		all = append(all, e)
	}
	return all, nil
}

// Close closes the history, after Stop and the last call of Recent.
func (d *Daemon) Close() error {
	if d.history == nil {
		return nil
	}
	return d.history.Close()
}

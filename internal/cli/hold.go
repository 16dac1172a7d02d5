package cli

import (
	"context"
	"errors"
	"fmt"
	"os/signal"
	"syscall"
	"time"

	"github.com/fivetuple/fivetuple/owner"
	"github.com/fivetuple/fivetuple/port/lease"
)

// holdLeases waits for the end of the leases, or of ctx, and releases them.
func (a *app) holdLeases(ctx context.Context, ports *lease.Shared, leases []lease.Lease) error {
	if err := a.leaveOutput(); err != nil {
		return errors.Join(err, release(ports, leases))
	}
	ctx, stop := signal.NotifyContext(ctx, syscall.SIGHUP) // the terminal was closed
	defer stop()
	if why := waitForEnd(ctx, ports, leases); why != "" {
		a.warn("port %d is held no longer: %s", leases[0].Port, why)
	}
	return release(ports, leases)
}

// waitForEnd says why it was not ctx that ended.
func waitForEnd(ctx context.Context, ports *lease.Shared, leases []lease.Lease) string {
	l := leases[0]
	ended := make(chan struct{})
	waiting, stop := context.WithCancel(ctx)
	go func() {
		defer close(ended)
		waitForOwner(waiting, l.Owner)
	}()
	defer func() { stop(); <-ended }()
	// Nothing tells of a lease that was released or has expired.
	look := time.NewTicker(time.Second)
	defer look.Stop()
	for {
		select {
		case <-ended:
			if ctx.Err() != nil {
				return ""
			}
			return fmt.Sprintf("%s has ended", l.Owner)
		case <-look.C:
			if !isLeased(ctx, ports, leases) {
				return "the lease was released, or has expired"
			}
		}
	}
}

// isLeased says whether one of the leases is still in force. A registry that
// cannot be read for a while ends none.
func isLeased(ctx context.Context, ports *lease.Shared, leases []lease.Lease) bool {
	now, err := ports.List(ctx)
	if err != nil {
		return true
	}
	for _, l := range now {
		for _, mine := range leases {
			if l.Fence == mine.Fence {
				return true
			}
		}
	}
	return false
}

// waitForOwner returns when the owner of a lease or ctx has ended.
func waitForOwner(ctx context.Context, o lease.Owner) {
	process, err := owner.ProcessOf(o.PID)
	// Looked at afterwards: the process was the owner before and after then.
	now, errNow := lease.OwnerOf(o.PID)
	if err == nil && errNow == nil && now.Start == o.Start {
		process.Wait(ctx)
	}
}

// Package inspect looks into one socket of any process while it is in use: its
// options, queues and TCP_INFO, an option of it set, and what it waits for.
//
//	s, err := inspect.Read(ctx, row)
//	changes, err := inspect.Set(row, settings...)
//	for sample, err := range inspect.Samples(ctx, row, 100*time.Millisecond) {
//		...
//	}
//	verdict := inspect.Judge(samples)
//
// The table's part of it stands on sock_diag(7) and needs no privilege, and so
// samples and verdict do not. Options are read and set through a duplicate of
// the owner's descriptor (pidfd_getfd(2), Linux 5.6), which takes the right to
// trace the owner (ptrace(2)): one's own processes, or CAP_SYS_PTRACE. A
// duplicate is held for as long as one call takes: should the owner close the
// socket in that time, the connection ends when the call does. Nothing is ever
// shut down, and no flag of the owner's descriptor is changed.
//
// On other systems everything that touches a socket fails with an error wrapping
// [errors.ErrUnsupported]; [Judge] and [Explain] work on what was recorded.
package inspect

import (
	"context"
	"fmt"

	"github.com/fivetuple/fivetuple/sockdiag"
	"github.com/fivetuple/fivetuple/sockopt"
	"github.com/fivetuple/fivetuple/table"
)

// Socket is one socket whole, as it was at one moment.
type Socket struct {
	// Row is the row of the table with every detail, read again.
	table.Row
	// Options are all that can be read, by level and name, nil if Missing.
	Options []Option
	// Queues count bytes in each direction. They are nil if Missing, and of
	// sockets that do not tell.
	Queues *Queues
	// Missing says why Options and Queues could not be read, and what it takes. It is nil if they were.
	Missing error
}

// Queues is what waits in a socket (tcp(7), udp(7), unix(7)), in bytes.
type Queues struct {
	// Recv is what can be read: SIOCINQ. Of datagrams: the first one's size.
	Recv int `json:"recv"`
	// Send is what the peer has not acknowledged: SIOCOUTQ. Of UDP and Unix
	// sockets it is kernel memory.
	Send int `json:"send"`
	// NotSent is the part of Send that has not been sent once: SIOCOUTQNSD. TCP only.
	NotSent int `json:"not_sent"`
}

// AllDetails is everything that the table tells of a socket.
const AllDetails = sockdiag.WithInfo | sockdiag.WithMemory | sockdiag.WithCongestion |
	sockdiag.WithCgroup | sockdiag.WithMark | sockdiag.WithTOS

// Read reads a socket whole. What only a descriptor tells is left out where
// none can be had, and Missing says why. The error is that the socket is gone,
// wrapping [fs.ErrNotExist], or that the table cannot be read.
func Read(ctx context.Context, row table.Row) (*Socket, error) {
	s := &Socket{Row: row}
	err := inNamespace(row, func() (err error) {
		s.Socket, err = sockdiag.Get(ctx, row.Socket, AllDetails)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("inspect %s: %w", row.Tuple(), err)
	}
	s.Missing = withDescriptor(row, func(fd int) (err error) {
		s.Queues = queues(fd, s.Protocol, s.State)
		s.Options, err = options(fd)
		return err
	})
	return s, nil
}

// Change is an option that was set.
type Change struct {
	Before string // the value, "" if it cannot be read
	sockopt.Granted
}

// Set sets options of the live socket, in order, and reads each back. It stops
// at the first error and returns what was set until then with it. An error that
// wraps [fs.ErrPermission] says what right is missing.
func Set(row table.Row, settings ...sockopt.Setting) ([]Change, error) {
	var changes []Change
	err := withDescriptor(row, func(fd int) error {
		for _, setting := range settings {
			before := beforeOf(fd, setting)
			granted, err := sockopt.Apply(fd, setting)
			for _, g := range granted {
				changes = append(changes, Change{Before: before[g.Option.Name], Granted: g})
			}
			if err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return changes, fmt.Errorf("set options of %s: %w", row.Tuple(), err)
	}
	return changes, nil
}

// beforeOf reads the options that a setting changes: itself, its IPv6 twin, and
// the times of keepalive.
func beforeOf(fd int, s sockopt.Setting) map[string]string {
	names := []string{s.Option().Name, s.Option().Twin}
	if s.Option().Kind == sockopt.KeepAlive {
		names = append(names, "keepalive-idle", "keepalive-interval", "keepalive-count")
	}
	before := map[string]string{}
	for _, name := range names {
		if old, err := sockopt.Get(fd, name); name != "" && err == nil && !old.Option().ClearsOnRead {
			before[name] = old.Value()
		}
	}
	return before
}

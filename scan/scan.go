// Package scan finds out which ports of a host are open.
//
//	targets, err := scan.ParseTargets(ctx, "10.0.0.0/24", "localhost")
//	ports, err := scan.ParsePorts("22,https,8000-8010", nil)
//	var s scan.Scanner
//	for r, err := range s.Scan(ctx, targets, ports) {
//		if err != nil {
//			return err
//		}
//		if r.State == scan.Open {
//			fmt.Println(r.Host, r.Port, r.Service)
//		}
//	}
//
// It stands on plain TCP connections (connect(2)), which need no privilege and
// work on every system: a connection that comes about shows an open port, is reset
// at once and carries no data. Answers that say that a port cannot be reached, and
// no answer at all, show a filtered one. A failure on this side, such as no
// descriptors left, says nothing about a port and is never reported as closed.
//
// Only loopback, private and link-local addresses are scanned unless the caller
// allows others: scanning hosts of other people may be against the law.
package scan

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"net/netip"
	"sync/atomic"
	"time"

	"github.com/fivetuple/fivetuple/port"
	"github.com/fivetuple/fivetuple/sockopt"
)

const (
	// The first retransmission of a lost SYN comes after one second (RFC 6298
	// section 2): it and its answer get their chance.
	defaultTimeout = 1500 * time.Millisecond
	// Enough to scan all ports of a silent host in under two minutes.
	maxDefaultWindow = 1024
	// As many connections from one address to one port of another have a source port.
	maxWindow = 65536
)

// Scanner scans ports. The zero value is ready for use; it must not be copied
// after its first use. Several scans may run at once.
type Scanner struct {
	// Timeout is how long a port may take to answer before it counts as filtered.
	// 0 means 1.5 s, in which a lost packet is sent a second time.
	Timeout time.Duration
	// Parallel is how many ports are asked at a time at most. 0 means 1024, or half
	// the number of files that the process may have open (RLIMIT_NOFILE) if that is
	// less. While this machine runs short of descriptors, source ports or memory it
	// is fewer. More than 65536 count as 65536.
	Parallel int
	// Names gives the services of ports their names. nil means IANA's registry.
	Names *port.Names
	// Public allows addresses other than loopback, private and link-local ones.
	Public bool
	// Options are set on every socket before it connects. One that does not belong
	// to the TCP sockets of all targets, or that the kernel refuses, ends the scan.
	// linger takes the place of the reset at the end.
	Options sockopt.Settings

	done, total atomic.Uint64
}

// Scan asks every port of every target and yields each result as it comes. They
// are asked host by host, in the order of targets, and their ports in ascending
// order; results come in no order. A host that is in several targets is asked
// several times. The memory that a scan takes depends on Parallel alone.
//
// A port that could not be asked yields a result whose state is [Failed], and the
// scan goes on. An error ends the scan and comes last, with an empty result: that
// of ctx when it has ended, or, before anything is sent, [ErrPublic] or another
// fault of the arguments. When the loop is over, also by break, nothing of the
// scan is left running or open.
func (s *Scanner) Scan(ctx context.Context, targets []Target, ports PortSet) iter.Seq2[Result, error] {
	return func(yield func(Result, error) bool) {
		count, err := s.check(targets, ports)
		if err == nil {
			err = ctx.Err()
		}
		if err != nil {
			yield(Result{}, fmt.Errorf("scan: %w", err))
			return
		}
		s.total.Add(count)
		next, stop := iter.Pull(probes(targets, ports))
		defer stop()
		err = s.engine(count).scan(ctx, next, func(r Result) bool {
			r.Service = s.Names.Name(r.Port, r.Protocol.String())
			s.done.Add(1)
			return yield(r, nil)
		})
		if err != nil {
			yield(Result{}, fmt.Errorf("scan: %w", err))
		}
	}
}

// Progress returns how many results the scans of this Scanner have yielded, of how
// many in total. It may be called at any time from any goroutine.
func (s *Scanner) Progress() (done, total uint64) {
	return s.done.Load(), s.total.Load()
}

// check returns how many results the scan will have.
func (s *Scanner) check(targets []Target, ports PortSet) (count uint64, err error) {
	if len(targets) == 0 {
		return 0, errors.New("no target is given")
	}
	if ports.Len() == 0 {
		return 0, errors.New("no port is given")
	}
	for _, t := range targets {
		if err := t.check(s.Public); err != nil {
			return 0, fmt.Errorf("target %s: %w", t, err)
		}
		if err := checkOptions(s.Options, t); err != nil {
			return 0, fmt.Errorf("target %s: %w", t, err)
		}
		count += t.Len() * uint64(ports.Len())
	}
	return count, nil
}

// checkOptions finds options that do not belong to a TCP socket of the target's family.
func checkOptions(options sockopt.Settings, t Target) error {
	socket := sockopt.TCP | sockopt.IPv6
	if t.First.Unmap().Is4() {
		socket = sockopt.TCP | sockopt.IPv4
	}
	for _, o := range options {
		if belongs := o.Option().Sockets; !belongs.Admits(socket) {
			return fmt.Errorf("option %s: %w: it belongs to %s sockets, this is a %s one", o.Option().Name, sockopt.ErrSocket, belongs, socket)
		}
	}
	return nil
}

// A probe is the question for the state of one port.
type probe struct {
	host netip.Addr
	name string
	port uint16
}

func probes(targets []Target, ports PortSet) iter.Seq[probe] {
	return func(yield func(probe) bool) {
		for _, t := range targets {
			for host := range t.Addrs() {
				for port := range ports.All() {
					if !yield(probe{host, t.Name, port}) {
						return
					}
				}
			}
		}
	}
}

// An engine is a way to ask ports.
type engine interface {
	// scan asks what next returns, until that returns false, and reports each probe
	// once, in any order. It ends early with the error of ctx when that ends, and
	// without one when report returns false. It calls both functions on the caller's
	// goroutine. When it returns, nothing of it is left running or open.
	scan(ctx context.Context, next func() (probe, bool), report func(Result) bool) error
}

// engine returns one that can ask count ports.
func (s *Scanner) engine(count uint64) engine {
	timeout, window := s.Timeout, s.Parallel
	if timeout <= 0 {
		timeout = defaultTimeout
	}
	if window <= 0 {
		window = min(maxDefaultWindow, max(1, maxDescriptors()/2))
	}
	window = int(min(uint64(window), count, maxWindow))
	return connectEngine{newAsker(timeout, s.Options), window}
}

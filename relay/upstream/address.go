package upstream

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/fivetuple/fivetuple"
)

// Address is one place that a target stands for. It stays the same one for as long as
// a target stands for it, and for as long as connections to it are open. Its methods
// never wait and may be called by many goroutines at once.
type Address struct {
	Target fivetuple.Endpoint // as the rule names it, with the port by number; zero if no target does
	Addr   netip.AddrPort     // zero for a Unix socket
	Path   string             // of a Unix socket, or "@name"

	pool   *Pool
	hash   uint64 // of the place
	conns  atomic.Int64
	opened atomic.Uint64
	failed atomic.Uint64
	fails  atomic.Int32 // failures in a row
	// out is until when the address is left out, on the clock of the pool: because it
	// was ejected, or because another connection tries it. 0 is not at all.
	out atomic.Int64
	bad atomic.Bool // checks say so

	mu      sync.Mutex // held for moments, and only where something failed
	until   int64      // out, as the last ejection has set it; 0 after a success
	times   int        // ejections since the last success
	last    int64      // when it failed last, on the clock of the pool
	lastErr error
	run     int       // checks in a row that succeeded, or below 0, that failed
	since   time.Time // of bad
	badErr  error     // what made it bad
}

// maxTimes is how many times FailFor an address is left out at most.
const maxTimes = 10

// Begun counts a connection to the address that does not come from [Choice.Next],
// which counts its own. It is counted until it is Closed.
func (a *Address) Begun() { a.conns.Add(1) }

// Opened says that a connection is established. For UDP, where the kernel opens a
// session without asking the other side, that is the first reply; where none ever
// comes, failures more than FailFor apart are not in a row.
func (a *Address) Opened() {
	a.opened.Add(1)
	if a.fails.Load() != 0 {
		a.succeeded()
	}
}

// Closed counts the end of a connection, whether or not it was ever Opened.
func (a *Address) Closed() { a.conns.Add(-1) }

// Conns is how many connections there are, with those that are being made.
func (a *Address) Conns() int { return int(a.conns.Load()) }

// Failed says that the address did not take a connection, or refused a datagram.
// What is only this machine's trouble, such as too many open files, and what was
// cancelled, is not held against it.
func (a *Address) Failed(err error) {
	if a.pool == nil {
		return
	}
	if err == nil {
		err = errNoReason
	}
	if isLocal(err) {
		a.mu.Lock()
		if a.onTrial() {
			a.out.Store(a.until) // for another connection to try
		}
		a.mu.Unlock()
		return
	}
	a.failed.Add(1)
	s := a.pool.current.Load()
	if text := a.fail(err, s); text != "" {
		s.record(a.tuple(), text)
	}
}

// fail counts a failure and ejects the address when there were enough. It returns
// what is to be told of it.
func (a *Address) fail(err error, s *snapshot) (text string) {
	a.mu.Lock()
	defer a.mu.Unlock()
	now := a.pool.now()
	if a.Target.Network.IsDatagram() && now-max(a.last, a.until) > int64(s.failFor) {
		a.fails.Store(0) // datagrams that get no reply are taken, too
		a.times = 0
	}
	a.last, a.lastErr = now, err
	fails := a.fails.Add(1)
	ejected := a.out.Load() > now && !a.onTrial()
	if s.maxFails < 0 || int(fails) < s.maxFails || ejected { // or it failed for those who were under way
		return ""
	}
	length := s.failFor << min(a.times, 4)
	length = min(length, maxTimes*s.failFor)
	a.until = now + int64(length)
	a.out.Store(a.until)
	a.times++
	if a.times > 1 {
		return "" // told when it began
	}
	return fmt.Sprintf("%s is left out for %v while others work, after %s: %v", a, length, inARow(int(fails)), err)
}

// onTrial says whether a connection has the address for a trial. It is called with mu held.
func (a *Address) onTrial() bool { return a.until != 0 && a.out.Load() != a.until }

func (a *Address) succeeded() {
	a.mu.Lock()
	was := a.times
	a.fails.Store(0)
	a.out.Store(0)
	a.until, a.times = 0, 0
	a.mu.Unlock()
	if was > 0 {
		a.pool.current.Load().record(a.tuple(), fmt.Sprintf("%s takes connections again", a))
	}
}

// forgive ends what a changed configuration has no more: ejection, checks.
func (a *Address) forgive(ejection, checks bool) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if ejection {
		a.out.Store(0)
		a.until, a.times = 0, 0
	}
	if checks {
		a.bad.Store(false)
		a.run, a.since, a.badErr = 0, time.Time{}, nil
	}
}

// works says whether the address is to be tried before others.
func (a *Address) works(s *snapshot) bool {
	if a.bad.Load() {
		return false
	}
	out := a.out.Load()
	return out == 0 || s.pool.now() >= out
}

// admit says whether a connection may have an address that works. When it was
// ejected, and its time is over, only one may, until it is known what becomes of it or
// as much time is over again. Of UDP it may never be known, so that there all may.
func (a *Address) admit(s *snapshot) bool {
	out := a.out.Load()
	if out == 0 {
		return true
	}
	now := s.pool.now()
	if now < out {
		return false
	}
	if a.Target.Network.IsDatagram() {
		a.out.CompareAndSwap(out, 0)
		return true
	}
	return a.out.CompareAndSwap(out, now+int64(s.failFor))
}

// String is the address, after the target if that is another text: "db:80 (10.0.0.1:80)".
func (a *Address) String() string {
	target, place := a.Target.String(), a.place().String()
	if a.Path != "" || a.Target.Network == fivetuple.NetworkNone || target == place {
		return place
	}
	return fmt.Sprintf("%s (%s)", target, place)
}

func (a *Address) place() fivetuple.Address {
	if a.Path != "" {
		return fivetuple.Address{Name: a.Path}
	}
	return fivetuple.IPAddress(a.Addr)
}

func (a *Address) tuple() fivetuple.Tuple {
	return fivetuple.Tuple{Protocol: a.Target.Network.Protocol(), Remote: a.place()}
}

func inARow(n int) string {
	if n == 1 {
		return "a failure"
	}
	return fmt.Sprintf("%d failures in a row", n)
}

var errNoReason = errors.New("no reason is known")

// isLocal says whether an error is no fault of the address.
func isLocal(err error) bool {
	for _, local := range []error{
		context.Canceled, net.ErrClosed,
		syscall.EMFILE, syscall.ENFILE, // no descriptor
		syscall.EADDRNOTAVAIL, syscall.EADDRINUSE, // no source address or port
		syscall.ENOBUFS, syscall.ENOMEM,
		syscall.EPERM, syscall.EACCES, // a firewall, a security module, no right
	} {
		if errors.Is(err, local) {
			return true
		}
	}
	return false
}

package dial

import (
	"context"
	"errors"
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/fivetuple/fivetuple"
)

// The recommended values of RFC 8305 section 8.
const (
	resolutionDelay = 50 * time.Millisecond  // what IPv4 waits for the addresses of IPv6
	attemptDelay    = 250 * time.Millisecond // what the next address waits for the one before
)

// dialDirect connects to the first of the endpoint's addresses that takes the connection.
func (d Dialer) dialDirect(ctx context.Context, e fivetuple.Endpoint) (connection, error) {
	d, e, err := d.onInterface(e)
	if err != nil {
		return connection{}, err
	}
	families, err := d.families(e)
	if err != nil {
		return connection{}, err
	}
	connect := d.connect
	if connect == nil {
		connect = Dialer.connectTCP
	}
	ctx, cancel := context.WithCancel(ctx)
	r := race{
		connect: func(ctx context.Context, to netip.AddrPort) (connection, error) { return connect(d, ctx, to) },
		port:    e.Ports.First,
		answers: make(chan answer, len(families)),
		results: make(chan result),
		asked:   len(families),
		waiting: make(map[family][]netip.Addr),
	}
	defer r.end(cancel)
	for _, f := range families {
		r.workers.Go(func() { r.answers <- d.lookUp(ctx, f, e) })
	}
	conn, ok := r.run(ctx)
	switch {
	case ok:
		return conn, nil
	case errors.Is(ctx.Err(), context.Canceled):
		return connection{}, ctx.Err()
	case len(r.attempts) == 0:
		return connection{}, d.cut(ctx, "the addresses of "+e.Host+" were not to be had", noAddress(e, families, r.errs))
	}
	for _, err := range r.errs {
		if !isNotFound(err) {
			r.attempts = append(r.attempts, Attempt{Err: err})
		}
	}
	return connection{}, &Error{Endpoint: e, Attempts: r.attempts}
}

// race is one run of RFC 8305. Lookups and attempts run beside it and report to it.
type race struct {
	connect  func(context.Context, netip.AddrPort) (connection, error)
	port     uint16
	answers  chan answer // buffered
	results  chan result
	workers  sync.WaitGroup
	asked    int                     // lookups that have not answered
	errs     []error                 // of those that failed
	waiting  map[family][]netip.Addr // addresses not yet tried
	last     family                  // of the attempt begun last
	attempts []Attempt               // in the order they were begun
	running  int                     // attempts not yet over
}

// answer is what a lookup found.
type answer struct {
	family family
	addrs  []netip.Addr
	err    error
}

// result is what became of attempts[n].
type result struct {
	n    int
	conn connection
	err  error
	took time.Duration
}

// run returns the first connection made, or false when there is no hope left.
func (r *race) run(ctx context.Context) (connection, bool) {
	next := time.NewTimer(time.Hour) // while the next attempt has to wait for its time
	next.Stop()
	defer next.Stop()
	mayBegin, done := false, ctx.Done()
	for {
		if isOver(ctx) {
			r.giveUpWaiting()
		} else if mayBegin && r.begin(ctx) {
			mayBegin = false
			next.Reset(attemptDelay)
		}
		if r.running+r.asked+len(r.waiting[ipv4])+len(r.waiting[ipv6]) == 0 {
			return connection{}, false
		}
		select {
		case a := <-r.answers:
			r.take(a)
			switch {
			case len(r.attempts) > 0: // its time comes as that of any other
			case a.family == ipv6 || r.asked == 0:
				mayBegin = true
			case len(a.addrs) > 0:
				next.Reset(resolutionDelay)
			}
		case res := <-r.results:
			r.running--
			if res.err == nil {
				return res.conn, true
			}
			r.attempts[res.n].Err, r.attempts[res.n].Took = res.err, res.took
			mayBegin = true
		case <-next.C:
			mayBegin = true
		case <-done:
			done = nil // lookups and attempts end by themselves
		}
	}
}

// isOver says whether the time has run out, maybe a moment before ctx knows it.
func isOver(ctx context.Context) bool {
	deadline, ok := ctx.Deadline()
	return ctx.Err() != nil || ok && !time.Now().Before(deadline)
}

// take notes the addresses found. Within a family they stay in the order that the
// resolver gave them by RFC 6724.
func (r *race) take(a answer) {
	r.asked--
	if a.err != nil {
		r.errs = append(r.errs, a.err)
	}
	for _, addr := range a.addrs {
		addr = addr.Unmap()
		if familyOf(addr) == a.family && !slices.Contains(r.waiting[a.family], addr) {
			r.waiting[a.family] = append(r.waiting[a.family], addr)
		}
	}
}

// begin begins the next attempt, to the family whose turn it is. It says whether
// there was an address left.
func (r *race) begin(ctx context.Context) bool {
	turn := ipv6
	if r.last == ipv6 && len(r.waiting[ipv4]) > 0 || len(r.waiting[ipv6]) == 0 {
		turn = ipv4
	}
	if len(r.waiting[turn]) == 0 {
		return false
	}
	to := netip.AddrPortFrom(r.waiting[turn][0], r.port)
	n, began := len(r.attempts), time.Now()
	r.waiting[turn], r.last = r.waiting[turn][1:], turn
	r.attempts = append(r.attempts, Attempt{Addr: to})
	r.running++
	r.workers.Go(func() {
		conn, err := r.connect(ctx, to)
		r.results <- result{n, conn, err, time.Since(began)}
	})
	return true
}

func (r *race) giveUpWaiting() {
	for _, f := range []family{ipv6, ipv4} {
		for _, addr := range r.waiting[f] {
			r.attempts = append(r.attempts, Attempt{Addr: netip.AddrPortFrom(addr, r.port), Err: errNotTried})
		}
		delete(r.waiting, f)
	}
}

// end stops what is still running and closes what came too late.
func (r *race) end(cancel context.CancelFunc) {
	cancel()
	for ; r.running > 0; r.running-- {
		if late := <-r.results; late.err == nil {
			late.conn.Close()
		}
	}
	r.workers.Wait()
}

package relay

import (
	"cmp"
	"context"
	"fmt"
	"io"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"github.com/fivetuple/fivetuple"
	"github.com/fivetuple/fivetuple/relay/splice"
	"github.com/fivetuple/fivetuple/relay/upstream"
	"github.com/fivetuple/fivetuple/secure"
	"github.com/fivetuple/fivetuple/sockopt"
	"github.com/fivetuple/fivetuple/stream"
)

// flow is a connection that ServeConn relays.
type flow struct {
	relay   *Relay
	config  *Config
	client  *stream.Conn
	from    io.Reader // what the client sends, from the first byte
	target  net.Conn
	address *upstream.Address
	began   time.Time

	up, down direction             // to the target, to the client
	failed   atomic.Pointer[error] // what ended it first; nil if nothing did
}

// direction is what is known of one.
type direction struct {
	bytes atomic.Uint64
	moved atomic.Int64 // when, in nanoseconds since the flow began
	over  atomic.Bool
}

// counted counts what is written.
type counted struct {
	io.Writer
	flow *flow
	d    *direction
}

func (c *counted) Write(b []byte) (int, error) {
	n, err := c.Writer.Write(b)
	c.d.bytes.Add(uint64(n))
	c.d.moved.Store(int64(time.Since(c.flow.began)))
	return n, err
}

// boundHalf ends a flow that is closed in one direction and silent in the other.
func (f *flow) boundHalf(ctx context.Context) {
	most := cmp.Or(f.config.HalfClosed, splice.DefaultHalfClosed)
	began := time.Since(f.began)
	t := time.NewTimer(most)
	defer t.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-t.C:
		}
		last := max(time.Duration(f.up.moved.Load()), time.Duration(f.down.moved.Load()), began)
		silent := time.Since(f.began) - last
		if silent >= most {
			f.resetBoth(fmt.Errorf("closed in one direction, and silent in the other for %v", most))
			return
		}
		t.Reset(most - silent)
	}
}

// flows are those that there are.
type flows struct {
	mu  sync.Mutex
	all map[*flow]struct{}
}

func (s *flows) add(f *flow) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.all == nil {
		s.all = make(map[*flow]struct{})
	}
	s.all[f] = struct{}{}
}

func (s *flows) remove(f *flow) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.all, f)
}

// Flows are the connections that ServeConn relays at this moment, in no order, as
// package splice describes its own.
func (r *Relay) Flows() []splice.Pair {
	r.flows.mu.Lock()
	defer r.flows.mu.Unlock()
	all := []splice.Pair{}
	for f := range r.flows.all {
		all = append(all, f.describe())
	}
	return all
}

func (f *flow) describe() splice.Pair {
	age := time.Since(f.began)
	last := max(time.Duration(f.up.moved.Load()), time.Duration(f.down.moved.Load()))
	leg := fivetuple.TupleOf(networkOf(f.target), f.target)
	p := splice.Pair{
		ID: f.client.ID(), State: "relaying", Client: f.client.Tuple(), Target: f.address.Target.String(), Leg: &leg,
		Age: age.Seconds(), Idle: (age - last).Seconds(), Up: f.up.describe(f), Down: f.down.describe(f),
		ClientTCP: tcpInfo(f.client), TargetTCP: tcpInfo(f.target),
	}
	switch {
	case p.Up.Ended:
		p.State = "half-closed up"
	case p.Down.Ended:
		p.State = "half-closed down"
	}
	return p
}

func (d *direction) describe(f *flow) splice.Flow {
	return splice.Flow{Bytes: d.bytes.Load(), Engine: "goroutine", Why: f.why(), Ended: d.over.Load()}
}

// why says why the flow has goroutines.
func (f *flow) why() string {
	_, secured := f.client.TLS()
	switch {
	case f.config.Faults.Active():
		return fmt.Sprintf("faults on purpose: %v", f.config.Faults)
	case secured:
		return "TLS ends here"
	case f.address.Target.Network == fivetuple.TLS:
		return "TLS begins here"
	}
	return "no event loops for this rule"
}

func tcpInfo(c net.Conn) *sockopt.TCPInfo {
	tc, ok := secure.NetConn(c).(*net.TCPConn)
	if !ok {
		return nil
	}
	i, err := sockopt.TCPInfoOf(tc)
	if err != nil {
		return nil
	}
	return &i
}

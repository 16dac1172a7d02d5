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

	up, down direction // to the target, to the client
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
	most := cmp.Or(f.config.HalfClosed, DefaultHalfClosed)
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
			resetConn(f.target)
			f.reset()
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

// Flow is what is to be known of a connection that ServeConn relays.
type Flow struct {
	ID            uint64           `json:"id"`
	Client        fivetuple.Tuple  `json:"client"`
	Target        fivetuple.Tuple  `json:"target"`
	TargetName    string           `json:"target_name"` // as the rule has it
	BytesUp       uint64           `json:"bytes_up"`
	BytesDown     uint64           `json:"bytes_down"`
	EndedUp       bool             `json:"ended_up"`
	EndedDown     bool             `json:"ended_down"`
	AgeSeconds    float64          `json:"age_s"`
	IdleSeconds   float64          `json:"idle_s"`
	Why           string           `json:"why"` // why no event loop serves it
	ClientTCPInfo *sockopt.TCPInfo `json:"client_tcp_info,omitempty"`
	TargetTCPInfo *sockopt.TCPInfo `json:"target_tcp_info,omitempty"`
}

// Flows are the connections that ServeConn relays at this moment, in no order.
func (r *Relay) Flows() []Flow {
	r.flows.mu.Lock()
	defer r.flows.mu.Unlock()
	var all []Flow
	for f := range r.flows.all {
		age := time.Since(f.began)
		last := max(time.Duration(f.up.moved.Load()), time.Duration(f.down.moved.Load()))
		all = append(all, Flow{
			ID: f.client.ID(), Client: f.client.Tuple(), Target: fivetuple.TupleOf(networkOf(f.target), f.target), TargetName: f.address.Target.String(),
			BytesUp: f.up.bytes.Load(), BytesDown: f.down.bytes.Load(), EndedUp: f.up.over.Load(), EndedDown: f.down.over.Load(),
			AgeSeconds: age.Seconds(), IdleSeconds: (age - last).Seconds(), Why: f.why(),
			ClientTCPInfo: tcpInfo(f.client), TargetTCPInfo: tcpInfo(f.target),
		})
	}
	return all
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

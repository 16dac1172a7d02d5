package stats

import (
	"cmp"
	"maps"
	"slices"
	"sync"
	"time"
)

// ServiceCounters are the sums of one service's events.
type ServiceCounters struct {
	Service      string            `json:"service"`
	Listeners    uint64            `json:"listeners"`    // sockets that listen now
	Live         uint64            `json:"live"`         // connections open now
	Connections  uint64            `json:"connections"`  // accepted and connected
	Accepted     uint64            `json:"accepted"`     // incoming, and UDP peers
	Connected    uint64            `json:"connected"`    // outgoing
	Disconnected uint64            `json:"disconnected"` // ended
	Causes       map[string]uint64 `json:"causes"`       // of the ends; "unknown" where none was given
	Unfinished   uint64            `json:"unfinished"`   // connections whose end nobody recorded, as the process was killed; in a history only
	Errors       uint64            `json:"errors"`
	BytesIn      uint64            `json:"bytes_in"`
	BytesOut     uint64            `json:"bytes_out"`
	PacketsIn    uint64            `json:"packets_in"`
	PacketsOut   uint64            `json:"packets_out"`
	First        time.Time         `json:"first,omitzero"` // earliest event
	Last         time.Time         `json:"last,omitzero"`  // latest event
}

// UnknownCause stands in [ServiceCounters.Causes] for ends without a cause.
const UnknownCause = "unknown"

// Add adds the sums of another service, or of another part of the same one.
func (s *ServiceCounters) Add(o ServiceCounters) {
	s.Listeners += o.Listeners
	s.Live += o.Live
	s.Connections += o.Connections
	s.Accepted += o.Accepted
	s.Connected += o.Connected
	s.Disconnected += o.Disconnected
	for cause, n := range o.Causes {
		s.addCause(cause, n)
	}
	s.Unfinished += o.Unfinished
	s.Errors += o.Errors
	s.BytesIn += o.BytesIn
	s.BytesOut += o.BytesOut
	s.PacketsIn += o.PacketsIn
	s.PacketsOut += o.PacketsOut
	s.span(o.First)
	s.span(o.Last)
}

// Total is the sum of all rows. Its Service is empty.
func Total(rows []ServiceCounters) ServiceCounters {
	sum := ServiceCounters{Causes: map[string]uint64{}}
	for _, r := range rows {
		sum.Add(r)
	}
	return sum
}

func (s *ServiceCounters) addCause(cause string, n uint64) {
	if cause == "" {
		cause = UnknownCause
	}
	if s.Causes == nil {
		s.Causes = map[string]uint64{}
	}
	s.Causes[cause] += n
}

// span widens First and Last to hold t.
func (s *ServiceCounters) span(t time.Time) {
	if t.IsZero() {
		return
	}
	if s.First.IsZero() || t.Before(s.First) {
		s.First = t
	}
	if t.After(s.Last) {
		s.Last = t
	}
}

// Counters is a Sink that adds events up by service. Totals reported by Data
// count at once and are made up for by the connection's Disconnect, so that
// long connections are seen while they live; a connection's Data must not come
// after its Disconnect. The zero value is ready to use.
type Counters struct {
	mu       sync.Mutex
	services map[string]*tally
}

// tally is a service's sums and, for connections that reported Data and still
// live, what was counted of them so far.
type tally struct {
	ServiceCounters
	reported map[uint64]traffic
}

type traffic struct{ bytesIn, bytesOut, packetsIn, packetsOut uint64 }

// Record adds the event.
func (c *Counters) Record(e Event) {
	c.mu.Lock()
	defer c.mu.Unlock()
	t := c.services[e.Service]
	if t == nil {
		if c.services == nil {
			c.services = map[string]*tally{}
		}
		t = &tally{ServiceCounters: ServiceCounters{Service: e.Service}, reported: map[uint64]traffic{}}
		c.services[e.Service] = t
	}
	t.record(&e)
}

func (t *tally) record(e *Event) {
	t.span(e.Time)
	switch e.Kind {
	case Listen:
		t.Listeners++
	case Close:
		down(&t.Listeners)
	case Accept:
		t.Accepted++
		t.Connections++
		t.Live++
	case Connect:
		t.Connected++
		t.Connections++
		t.Live++
	case Data:
		if e.Conn != 0 { // without an id the next report could not be told from this one
			t.reported[e.Conn] = t.advance(e)
		}
	case Disconnect:
		t.Disconnected++
		t.addCause(e.Cause, 1)
		down(&t.Live)
		t.advance(e)
		delete(t.reported, e.Conn)
	case Error:
		t.Errors++
	}
}

// advance adds what a connection's totals grew by since they were last
// reported, and returns the totals.
func (t *tally) advance(e *Event) traffic {
	last := t.reported[e.Conn]
	now := traffic{
		max(last.bytesIn, e.BytesIn), max(last.bytesOut, e.BytesOut),
		max(last.packetsIn, e.PacketsIn), max(last.packetsOut, e.PacketsOut),
	}
	t.BytesIn += now.bytesIn - last.bytesIn
	t.BytesOut += now.bytesOut - last.bytesOut
	t.PacketsIn += now.packetsIn - last.packetsIn
	t.PacketsOut += now.packetsOut - last.packetsOut
	return now
}

// down counts one less, never below zero: an end may be seen whose beginning was lost.
func down(n *uint64) {
	if *n > 0 {
		*n--
	}
}

// Snapshot returns the sums of every service so far, sorted by name; [Total]
// adds them up.
func (c *Counters) Snapshot() []ServiceCounters {
	c.mu.Lock()
	defer c.mu.Unlock()
	rows := make([]ServiceCounters, 0, len(c.services))
	for _, t := range c.services {
		row := t.ServiceCounters
		row.Causes = maps.Clone(row.Causes)
		rows = append(rows, row)
	}
	slices.SortFunc(rows, func(a, b ServiceCounters) int { return cmp.Compare(a.Service, b.Service) })
	return rows
}

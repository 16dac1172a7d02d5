// Package sessions relays UDP: a session for each client, with a connected
// socket of its own to the target.
//
//	s := &sessions.Server{Route: sessions.Route{Pool: pool}}
//	err := s.Serve(conns...)
//
// Each listening socket belongs to an event loop, of which there are up to one a
// processor, and with it the sessions of the clients that the kernel gives to
// that socket: the loops share nothing that a datagram needs. Datagrams are
// received and sent many at a time (recvmmsg(2), sendmmsg(2)), and those of one
// size for one session leave as one (UDP_SEGMENT, udp(7)) where the kernel and
// the device take it; trains that arrive are taken whole (UDP_GRO).
//
// A session is the client's address and port together with the address and port
// it wrote to, which is where replies leave from. That its socket is connected
// lets ICMP errors end it: the client's next datagram begins another, perhaps with
// another target. What the network says is too large for the path does not end it.
//
// It stands on Linux. On other systems Serve and Adopt return an error that
// wraps [errors.ErrUnsupported].
package sessions

import (
	"encoding/json"
	"math"
	"net/netip"
	"sync/atomic"
	"time"

	"github.com/fivetuple/fivetuple/relay/faults"
	"github.com/fivetuple/fivetuple/relay/upstream"
	"github.com/fivetuple/fivetuple/sockopt"
	"github.com/fivetuple/fivetuple/stats"
)

// Server relays the datagrams of any number of sockets. Set the fields before the
// first call of Serve or Adopt; limits and the route can change later.
type Server struct {
	Service string     // its name in events
	Route   Route      // where datagrams go; SetRoute changes it for new sessions
	Sink    stats.Sink // where events go; nil discards them
	Limits  Limits     // what it takes on; SetLimits changes them while it serves
	// IDs is where the ids of sessions come from: servers that follow each other
	// under one Service share it. nil counts from 1.
	IDs *atomic.Uint64

	engine
}

// Limits bound what a Server takes on. The zero value of a field is no limit, except where a default is given.
type Limits struct {
	// MaxSessions is how many sessions there may be; a new one ends the one that
	// was used least recently. Default what the descriptor limit allows, less an
	// eighth and 64 for the rest of the process.
	MaxSessions  int
	MaxPerSource int           // sessions of one address, or one /64 of IPv6; datagrams for more are dropped
	SessionRate  float64       // new sessions per second; datagrams for more are dropped
	FirstReply   time.Duration // a session without a reply ends so long after the last datagram; default 30 s
	Idle         time.Duration // one with a reply ends so long after the last datagram; default 180 s
	// Allow, if not empty, lists the only sources that are served; Deny lists
	// sources that are not. The longest matching prefix of both decides, Deny on a
	// tie. They are for new sessions.
	Allow, Deny []netip.Prefix
}

// Defaults of Limits.
const (
	DefaultFirstReply = 30 * time.Second
	DefaultIdle       = 180 * time.Second
)

// Route is where datagrams go, and how.
type Route struct {
	Pool *upstream.Pool
	// FirstPort, if not 0, is the local port that the target's port belongs to: what
	// comes to the next port goes to the target's next.
	FirstPort uint16
	Source    netip.AddrPort // to send from; a port of its own allows one session for each target at a time
	Interface string         // to send through (SO_BINDTODEVICE)
	// Transparent sends from the client's own address and port (IP_TRANSPARENT,
	// ip(7)): it needs CAP_NET_ADMIN or CAP_NET_RAW, and routes that lead the replies here.
	Transparent bool
	Options     sockopt.Settings // of sockets to targets
	Faults      faults.Config    // what goes wrong on purpose
	// Rate is how many bytes per second a session carries in each direction, 0 for
	// no limit. What comes faster waits up to 50 ms for its turn, and is dropped beyond that.
	Rate int64
}

// Session is what is to be known of one session. In is from the client, out is
// to the client.
type Session struct {
	ID         uint64
	Client     netip.AddrPort
	Local      netip.AddrPort // where the client writes to
	Target     string         // as the rule names it
	Address    netip.AddrPort // what that stands for, and where datagrams go
	Source     netip.AddrPort // where they leave from
	PacketsIn  uint64
	PacketsOut uint64
	BytesIn    uint64
	BytesOut   uint64
	Dropped    uint64 // datagrams not passed on: sending failed, or a fault or a rate wanted it
	// KernelDropped counts replies lost because the socket's receive buffer was full.
	KernelDropped uint64
	Replied       bool
	Age           time.Duration
	Quiet         time.Duration // since the last datagram of either direction
	Left          time.Duration // until it ends, if nothing comes
}

// sessionJSON has the keys of a Session, with durations in seconds.
type sessionJSON struct {
	ID            uint64         `json:"id"`
	Client        netip.AddrPort `json:"client"`
	Local         netip.AddrPort `json:"local"`
	Target        string         `json:"target"`
	Address       netip.AddrPort `json:"address"`
	Source        netip.AddrPort `json:"source"`
	PacketsIn     uint64         `json:"packets_in"`
	PacketsOut    uint64         `json:"packets_out"`
	BytesIn       uint64         `json:"bytes_in"`
	BytesOut      uint64         `json:"bytes_out"`
	Dropped       uint64         `json:"dropped"`
	KernelDropped uint64         `json:"kernel_dropped"`
	Replied       bool           `json:"replied"`
	Age           float64        `json:"age_s"`
	Quiet         float64        `json:"idle_s"`
	Left          float64        `json:"left_s"`
}

// MarshalJSON writes durations in seconds.
func (s Session) MarshalJSON() ([]byte, error) {
	return json.Marshal(sessionJSON{s.ID, s.Client, s.Local, s.Target, s.Address, s.Source, s.PacketsIn, s.PacketsOut, s.BytesIn, s.BytesOut,
		s.Dropped, s.KernelDropped, s.Replied, s.Age.Seconds(), s.Quiet.Seconds(), s.Left.Seconds()})
}

// UnmarshalJSON is the inverse of MarshalJSON.
func (s *Session) UnmarshalJSON(b []byte) error {
	var j sessionJSON
	if err := json.Unmarshal(b, &j); err != nil {
		return err
	}
	span := func(seconds float64) time.Duration { return time.Duration(math.Round(seconds * float64(time.Second))) }
	*s = Session{j.ID, j.Client, j.Local, j.Target, j.Address, j.Source, j.PacketsIn, j.PacketsOut, j.BytesIn, j.BytesOut,
		j.Dropped, j.KernelDropped, j.Replied, span(j.Age), span(j.Quiet), span(j.Left)}
	return nil
}

// Stats is what is to be known of a server as a whole.
type Stats struct {
	Sessions    int `json:"sessions"`
	MaxSessions int `json:"max_sessions"` // the limit in force
	Loops       int `json:"loops"`
	// GSO and GRO say "on", or "off" and why.
	GSO     string   `json:"gso"`
	GRO     string   `json:"gro"`
	Sockets []Socket `json:"sockets"` // that clients write to
	In      Flow     `json:"in"`      // from clients
	Out     Flow     `json:"out"`     // from targets
	Dropped uint64   `json:"dropped"` // datagrams of sessions that were not passed on
	Refused uint64   `json:"refused"` // datagrams that no session was made for
	Cut     uint64   `json:"cut"`     // datagrams longer than the buffer, which were dropped
	Delayed int      `json:"delayed"` // datagrams that wait now: for a fault's or a rate's sake
}

// Flow is what a server received from one side.
type Flow struct {
	Datagrams uint64 `json:"datagrams"`
	Trains    uint64 `json:"trains"` // that left as one of several datagrams (UDP_SEGMENT)
	// Batches counts receiving calls by how many messages they took: 1, 2 or
	// more, 4 or more, ... 256. Where most are full the relay is behind what comes.
	Batches [9]uint64 `json:"batches"`
}

// Socket is a socket that clients write to.
type Socket struct {
	Local         netip.AddrPort `json:"local"`
	ReceiveBuffer int            `json:"receive_buffer"` // granted, with the kernel's bookkeeping, in bytes
	SendBuffer    int            `json:"send_buffer"`
	Waiting       int            `json:"waiting"`        // of ReceiveBuffer in use now
	KernelDropped uint64         `json:"kernel_dropped"` // datagrams lost because ReceiveBuffer was full, since the socket was opened
}

// orDefault is v if that is set.
func orDefault[T int | time.Duration](v, otherwise T) T {
	if v > 0 {
		return v
	}
	return otherwise
}

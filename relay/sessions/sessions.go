// Package sessions relays UDP: a session for each client, with a connected
// socket of its own to the target.
package sessions

import (
	"context"
	"errors"
	"net/netip"
	"os"
	"sync/atomic"
	"time"

	"github.com/fivetuple/fivetuple/datagram"
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
	Limits  Limits     // what it takes on
	IDs     *atomic.Uint64
}

// Limits bound what a Server takes on. The zero value of a field is no limit, except where a default is given.
type Limits struct {
	// MaxSessions is how many sessions there may be; a new one ends the one that
	// was used least recently. Default what the descriptor limit allows.
	MaxSessions  int
	MaxPerSource int           // sessions of one address, or one /64 of IPv6; datagrams for more are dropped
	SessionRate  float64       // new sessions per second
	FirstReply   time.Duration // a session without a reply ends after so long; default 30 s
	Idle         time.Duration // one with a reply ends so long after the last datagram; default 180 s
	Allow, Deny  []netip.Prefix
}

// Route is where datagrams go, and how.
type Route struct {
	Pool        *upstream.Pool
	FirstPort   uint16           // see splice.Route
	Source      netip.AddrPort   // to send from
	Interface   string           // to send through
	Transparent bool             // send from the client's own address (IP_TRANSPARENT)
	Options     sockopt.Settings // of sockets to targets
	Faults      faults.Config    // what goes wrong on purpose
	Rate        int64            // bytes per second of a session in each direction; 0 is no limit
}

// Session is what is to be known of one session.
type Session struct {
	ID uint64 `json:"id"`
}

func (s *Server) SetRoute(r Route)                                              {}
func (s *Server) SetLimits(l Limits)                                            {}
func (s *Server) Serve(conns ...*datagram.Conn) error                           { return errors.ErrUnsupported }
func (s *Server) Shutdown(ctx context.Context) error                            { return nil }
func (s *Server) HandOff(give func(files []*os.File, state []byte) error) error { return nil }
func (s *Server) Resume() error                                                 { return nil }
func (s *Server) Release() error                                                { return nil }
func (s *Server) Adopt(files []*os.File, state []byte) error                    { return errors.ErrUnsupported }
func (s *Server) Len() int                                                      { return 0 }
func (s *Server) Sessions() []Session                                           { return nil }

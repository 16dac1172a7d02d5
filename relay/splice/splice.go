// Package splice relays streams between pairs of TCP and Unix sockets on event
// loops, without copying what is much: splice(2).
package splice

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"os"
	"sync/atomic"
	"time"

	"github.com/fivetuple/fivetuple/relay/upstream"
	"github.com/fivetuple/fivetuple/sockopt"
	"github.com/fivetuple/fivetuple/stats"
	"github.com/fivetuple/fivetuple/stream"
)

// Server relays the connections of any number of listeners. Set the fields before
// the first call of Serve or Adopt; limits and the route can change later.
type Server struct {
	Service string        // its name in events
	Route   Route         // where connections go; SetRoute changes it for new ones
	Sink    stats.Sink    // where events go; nil discards them
	Limits  stream.Limits // what it takes on; WriteQueue is not used
	IDs     *atomic.Uint64
	Options sockopt.Settings   // set on every accepted connection where the listener's do not carry over
	Peers   *stream.PeerFilter // who may connect to Unix sockets; nil lets everyone
	// Proxies lists the sources that must send a PROXY protocol header first, within HeaderTimeout, default 5 s.
	Proxies       []netip.Prefix
	HeaderTimeout time.Duration
	Loops         int // how many event loops; default GOMAXPROCS
}

// Route is where connections go, and how.
type Route struct {
	Pool *upstream.Pool // nil: only Names
	// Names are pools by the server name of a TLS client's greeting (SNI, RFC 6066
	// section 3), which is read and passed on, not decrypted: "a.example" or
	// "*.example". Other names, and clients that do not speak TLS, go to Pool.
	Names        map[string]*upstream.Pool
	HelloTimeout time.Duration // until the greeting is whole; default 5 s
	// FirstPort, if not 0, is the local port that the target's port belongs to:
	// a connection to the next port goes to the target's next.
	FirstPort      uint16
	ConnectTimeout time.Duration    // of each address; default 5 s
	HalfClosed     time.Duration    // how long a connection may be closed in one direction; default 60 s
	ProxyVersion   int              // of the PROXY protocol header that is sent first; 0 is none
	Source         netip.AddrPort   // to connect from
	Interface      string           // to connect through
	Transparent    bool             // connect from the client's own address (IP_TRANSPARENT)
	Options        sockopt.Settings // of connections to targets
	Rate           int64            // bytes per second of a connection in each direction; 0 is no limit
}

// Pair is what is to be known of one relayed connection.
type Pair struct {
	ID uint64 `json:"id"`
}

func (s *Server) SetRoute(r Route)                                              {}
func (s *Server) SetLimits(l stream.Limits)                                     {}
func (s *Server) Serve(lns ...net.Listener) error                               { return errors.ErrUnsupported }
func (s *Server) Shutdown(ctx context.Context) error                            { return nil }
func (s *Server) HandOff(give func(files []*os.File, state []byte) error) error { return nil }
func (s *Server) Resume() error                                                 { return nil }
func (s *Server) Release() error                                                { return nil }
func (s *Server) Adopt(files []*os.File, state []byte) error                    { return errors.ErrUnsupported }
func (s *Server) Len() int                                                      { return 0 }
func (s *Server) Cut(id uint64) error                                           { return stream.ErrNoConn }
func (s *Server) Pairs() []Pair                                                 { return nil }

//go:build !linux

package sessions

import (
	"context"
	"errors"
	"fmt"
	"os"

	"github.com/fivetuple/fivetuple/datagram"
)

// engine is Linux only.
type engine struct{}

var errNoEngine = fmt.Errorf("relay UDP: it stands on Linux's epoll, recvmmsg and sendmmsg: %w", errors.ErrUnsupported)

// Serve is Linux only: it closes the sockets and returns an error that wraps errors.ErrUnsupported.
func (s *Server) Serve(conns ...*datagram.Conn) error {
	for _, c := range conns {
		c.Close()
	}
	return errNoEngine
}

// Adopt is Linux only: it returns an error that wraps errors.ErrUnsupported.
func (s *Server) Adopt(files []*os.File, state []byte) error { return errNoEngine }

// SetRoute is Linux only.
func (s *Server) SetRoute(r Route) { s.Route = r }

// SetLimits is Linux only.
func (s *Server) SetLimits(l Limits) { s.Limits = l }

// Shutdown is Linux only: there is nothing to end.
func (s *Server) Shutdown(ctx context.Context) error { return nil }

// HandOff is Linux only: there is nothing to give.
func (s *Server) HandOff(give func(files []*os.File, state []byte) error) error { return nil }

// Resume is Linux only.
func (s *Server) Resume() error { return nil }

// Release is Linux only.
func (s *Server) Release() error { return nil }

// Len is Linux only: there are no sessions.
func (s *Server) Len() int { return 0 }

// Sessions is Linux only: there are none.
func (s *Server) Sessions() []Session { return nil }

// Stats is Linux only.
func (s *Server) Stats() Stats {
	return Stats{GSO: "off: not on this system", GRO: "off: not on this system"}
}

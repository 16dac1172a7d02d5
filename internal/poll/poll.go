// Package poll is what an event loop for very many sockets stands on: a
// [Poller] that waits for all of them with one thread, reads and writes that
// never wait, and a [Wheel] of deadlines.
//
// It is Linux's epoll(7), edge-triggered, with an eventfd(2) to wake the loop
// from elsewhere. Reads and writes on sockets are made without telling Go's
// scheduler, since with MSG_DONTWAIT (recv(2), send(2)) they return at once;
// that saves the scheduler's bookkeeping at each call. On other systems [New]
// and the rest return errors that wrap [errors.ErrUnsupported]; the wheel works
// everywhere.
package poll

import "net/netip"

// Ready is a set of things a socket can be ready for, and how to be told. The
// values are those of epoll_ctl(2).
type Ready uint32

// What there is to be told.
const (
	In    Ready = 0x1    // bytes, a connection to accept, or the end
	Pri   Ready = 0x2    // urgent data, at which a read stops short
	Out   Ready = 0x4    // room to write
	Err   Ready = 0x8    // an error waits; told unasked
	Hup   Ready = 0x10   // both directions have ended; told unasked
	RdHup Ready = 0x2000 // the peer has ended its side
)

// How to be told.
const (
	Exclusive Ready = 1 << 28 // wake one of the pollers that wait for it; excludes Change
	Edge      Ready = 1 << 31 // once for each change
)

// Peer is who is at the other end of an accepted connection.
type Peer struct {
	Addr netip.AddrPort // invalid for Unix sockets
	Name string         // the path or "@name" of a Unix socket that has one
}

// Credentials are those of the process that connected a Unix socket
// (SO_PEERCRED, unix(7)).
type Credentials struct {
	PID      int
	UID, GID uint32
}

// batch is how many events are taken at a time.
const batch = 256

// wakeToken marks the event that [Poller.Wake] makes.
const wakeToken = ^uint64(0)

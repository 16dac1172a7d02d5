package sockdiag

import (
	"context"
	"errors"
	"iter"
)

// ErrEventsLost stands in the place of events that the kernel dropped because
// they were not taken in time. How many it does not tell. More events follow.
var ErrEventsLost = errors.New("events of closed sockets were lost")

// Destroyed subscribes to the end of TCP and UDP sockets in the network
// namespace, and gives them from now on, each when the kernel frees it. TCP
// sockets come with their last Info, which is the caller's to keep; Inode and
// UID are 0 by then, and the State is that of the last moment, CLOSE as a rule.
// Not among them are connections that never were a socket (SYN_RECV) and
// the rest of one that a TIME_WAIT is.
//
// The sequence can be gone through once. It ends when ctx is done; the
// subscription does so too, and also when the loop is left. Its errors are
// [ErrEventsLost], after which it goes on, and others, which end it.
//
// It needs no privilege, but CAP_NET_ADMIN gives it a larger buffer than
// net.core.rmem_max, so that fewer events are lost.
func Destroyed(ctx context.Context) (iter.Seq2[Socket, error], error) {
	return destroyed(ctx)
}

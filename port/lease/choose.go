package lease

import (
	"context"
	"errors"
	"iter"
	"math/rand/v2"

	"github.com/fivetuple/fivetuple"
)

// choose returns the first of the candidates that is neither leased nor reserved
// and can be bound, or an [*ExhaustedError]. Only those that are not leased cost
// a system call.
func choose(ctx context.Context, r Request, candidates iter.Seq[uint16], leased func(port uint16) bool) (uint16, error) {
	reserved, err := reservedPorts()
	if err != nil {
		return 0, err
	}
	none := &ExhaustedError{Protocol: r.Protocol, Address: r.Address, Range: r.Range}
	for port := range candidates {
		if leased(port) {
			none.Leased++
			continue
		}
		if reserved.has(port) {
			none.Reserved++
			continue
		}
		if err := ctx.Err(); err != nil {
			return 0, err
		}
		switch err := r.bind(ctx, port); {
		case err == nil:
			return port, nil
		case errors.Is(err, ErrInUse):
			none.InUse++
		case errors.Is(err, ErrNotPermitted):
			none.Denied++
			none.denial = err
		default:
			return 0, err
		}
	}
	return 0, none
}

// candidates yields every port of the range once: first old, if it is in the
// range, then around from next, or from anywhere if next is not in the range.
// Starting where the last search ended lets ports rest that became free.
func candidates(within fivetuple.PortRange, old, next uint16) iter.Seq[uint16] {
	inRange := func(p uint16) bool { return within.First <= p && p <= within.Last }
	return func(yield func(uint16) bool) {
		if inRange(old) && !yield(old) {
			return
		}
		start := int(next) - int(within.First)
		if !inRange(next) {
			start = rand.IntN(within.Len())
		}
		for i := range within.Len() {
			p := within.First + uint16((start+i)%within.Len())
			if p != old && !yield(p) {
				return
			}
		}
	}
}

// portSet is a set of port numbers, one bit for each.
type portSet [1 << 16 / 64]uint64

func (s *portSet) add(p uint16)      { s[p/64] |= 1 << (p % 64) }
func (s *portSet) has(p uint16) bool { return s[p/64]&(1<<(p%64)) != 0 }

package lease

import (
	"context"
	"errors"
	"iter"
	"math/rand/v2"

	"github.com/fivetuple/fivetuple"
)

// portState is what a registry knows of a port.
type portState byte

const (
	portFree portState = iota
	portLeased
	portResting // freed a short while ago by another name
	portUsed    // freed a short while ago by nobody in particular, as is who asks
)

// choose returns a port of the request's range that the registry calls free,
// that the kernel has not reserved, and that can be taken; or an
// [*ExhaustedError]. It tries old first, the port that the name had last.
func choose(ctx context.Context, r Request, old uint16, look func(port uint16) (portState, error), take func(port uint16) error) (uint16, error) {
	reserved, err := reservedPorts()
	if err != nil {
		return 0, err
	}
	ephemeral, err := ephemeralPorts()
	if err != nil {
		return 0, err
	}
	none := &ExhaustedError{Protocol: r.Protocol, Address: r.Address, Range: r.Range}
	try := func(port uint16) (taken bool, err error) {
		if err := ctx.Err(); err != nil {
			return false, err
		}
		switch err := take(port); {
		case err == nil:
			return true, nil
		case errors.Is(err, ErrLeased): // in another registry
			none.Leased++
		case errors.Is(err, ErrInUse):
			none.InUse++
		case errors.Is(err, ErrNotPermitted):
			none.Denied++
			none.denial = err
		default:
			return false, err
		}
		return false, nil
	}
	var used []uint16 // tried after a few others, and before all of a large range
	tryUsed := func() (port uint16, taken bool, err error) {
		for _, port := range used {
			if taken, err := try(port); taken || err != nil {
				return port, taken, err
			}
		}
		used = nil
		return 0, false, nil
	}
	looked := 0
	for port := range candidates(r.Range, ephemeral, old) {
		if looked++; looked > draws {
			if port, taken, err := tryUsed(); taken || err != nil {
				return port, err
			}
		}
		state, err := look(port)
		switch {
		case err != nil:
			return 0, err
		case state == portLeased:
			none.Leased++
			continue
		case state == portResting:
			none.Resting++
			continue
		case reserved.has(port):
			none.Reserved++
			continue
		case state == portUsed && looked <= draws:
			used = append(used, port)
			continue
		}
		if taken, err := try(port); taken || err != nil {
			return port, err
		}
	}
	if port, taken, err := tryUsed(); taken || err != nil {
		return port, err
	}
	return 0, none
}

// draws is how many ports are tried at random. Of 16,384 with 12,000 leased one
// of so many is not in 99.99 % of all cases.
const draws = 32

// candidates yields every port of the range once: first old, if it is in the
// range; then some at random, those first that the kernel does not give to
// outgoing connections; then all others, from anywhere on.
func candidates(within, ephemeral fivetuple.PortRange, old uint16) iter.Seq[uint16] {
	return func(yield func(uint16) bool) {
		var tried portSet
		try := func(p uint16) (more bool) {
			if tried.has(p) {
				return true
			}
			tried.add(p)
			return yield(p)
		}
		random := func() uint16 { return within.First + uint16(rand.IntN(within.Len())) }
		if within.Contains(old) && !try(old) {
			return
		}
		var drawn [draws]uint16
		for i := range drawn {
			drawn[i] = random()
		}
		for _, p := range drawn {
			if !ephemeral.Contains(p) && !try(p) {
				return
			}
		}
		for _, p := range drawn {
			if !try(p) {
				return
			}
		}
		first := random()
		for p := first; try(p); {
			if p++; !within.Contains(p) { // past the end, or around past 65535
				p = within.First
			}
			if p == first {
				return
			}
		}
	}
}

// portSet is a set of port numbers, one bit for each.
type portSet [1 << 16 / 64]uint64

func (s *portSet) add(p uint16)      { s[p/64] |= 1 << (p % 64) }
func (s *portSet) has(p uint16) bool { return s[p/64]&(1<<(p%64)) != 0 }
func (s *portSet) remove(p uint16)   { s[p/64] &^= 1 << (p % 64) }

package upstream

import "net/netip"

// Choice is the way of one connection through the addresses of a pool. Addresses that
// the pool gets or loses meanwhile are not its concern.
type Choice struct {
	from   *snapshot
	turn   uint64 // of the connection, among all
	source uint64 // hash of the client
	tried  [MaxAddresses / 64]uint64
}

// Choose begins with the best address for a client. It does not wait and allocates
// nothing. The port of a client does not count, nor does an IPv6 zone; clients
// without an address, of a Unix socket, are spread as by [RoundRobin].
func (p *Pool) Choose(client netip.Addr) Choice {
	c := Choice{from: p.current.Load()}
	if c.from.policy != SourceHash || !client.IsValid() {
		c.turn = p.turn.Add(1) - 1
	}
	if c.from.policy == SourceHash {
		c.source = mix(c.turn)
		if client.IsValid() {
			c.source = hashAddr(client)
		}
	}
	return c
}

// Next is the next address to try: each once, those that work first. It is false when
// none is left. The address counts the connection until it is Closed, so that of those
// who choose at the same moment not all go to one.
//
// An address that was left out comes in its turn again when its time is over, for one
// connection, which has to be seen to its end: Opened or Failed.
func (c *Choice) Next() (*Address, bool) {
	if c.from == nil {
		return nil, false
	}
	for {
		i := c.best(true)
		if i < 0 {
			i = c.best(false)
			if i < 0 {
				return nil, false
			}
			return c.take(i), true
		}
		if c.from.addresses[i].admit(c.from) {
			return c.take(i), true
		} // or another connection has just taken its trial
	}
}

// best finds the index of the best address that was not tried, of those that work or
// of all; -1 if there is none. Equals are taken in turn.
func (c *Choice) best(working bool) int {
	all := c.from.addresses
	best, least, equals := -1, uint64(0), uint64(0)
	for i, a := range all {
		if !c.eligible(i, a, working) {
			continue
		}
		score := c.score(a)
		switch {
		case best < 0 || score < least:
			best, least, equals = i, score, 1
		case score == least:
			equals++
		}
	}
	if equals < 2 {
		return best
	}
	skip := c.turn % equals
	for i, a := range all[best:] {
		// What others do meanwhile may leave fewer equals than there were: then the first does.
		if !c.eligible(best+i, a, working) || c.score(a) != least {
			continue
		}
		if skip == 0 {
			return best + i
		}
		skip--
	}
	return best
}

func (c *Choice) eligible(i int, a *Address, working bool) bool {
	return c.tried[i/64]&(1<<(i%64)) == 0 && (!working || a.works(c.from))
}

func (c *Choice) take(i int) *Address {
	c.tried[i/64] |= 1 << (i % 64)
	a := c.from.addresses[i]
	a.Begun()
	return a
}

// score is low for the address that the policy prefers.
func (c *Choice) score(a *Address) uint64 {
	switch c.from.policy {
	case LeastConnections:
		return uint64(max(a.conns.Load(), 0))
	case SourceHash:
		// Rendezvous hashing (Thaler and Ravishankar, 1998): every address bids for the
		// source, so that only those of a lost address go elsewhere.
		return mix(c.source ^ a.hash)
	}
	return 0
}

// hashAddr and hashString are FNV-1a, which is the same in every process: relays side
// by side, and one that takes over from another, choose alike.
func hashAddr(a netip.Addr) uint64 {
	b := a.As16() // IPv4 and IPv4 mapped into IPv6 alike
	h := uint64(fnvBasis)
	for _, c := range b {
		h = (h ^ uint64(c)) * fnvPrime
	}
	return mix(h)
}

func hashString(s string) uint64 {
	h := uint64(fnvBasis)
	for i := range len(s) {
		h = (h ^ uint64(s[i])) * fnvPrime
	}
	return mix(h)
}

const fnvBasis, fnvPrime = 14695981039346656037, 1099511628211 // of Fowler, Noll and Vo, for 64 bits

// mix makes every bit of the result depend on every bit of x: the finalizer of SplitMix64.
func mix(x uint64) uint64 {
	x = (x ^ x>>30) * 0xbf58476d1ce4e5b9
	x = (x ^ x>>27) * 0x94d049bb133111eb
	return x ^ x>>31
}

package splice

import "github.com/fivetuple/fivetuple/stream/gate"

// table holds a loop's pairs in pieces that stay where they are.
type table struct {
	chunks []*[chunkPairs]pair
	vacant []int32 // free slots
}

const chunkPairs = 256

// at returns the pair, or the free place, in a slot.
func (t *table) at(slot int32) *pair { return &t.chunks[slot/chunkPairs][slot%chunkPairs] }

// find returns the pair that has a token and which of its sockets it is, or nil
// if it has ended.
func (t *table) find(token uint64) (*pair, side) {
	slot, of := int64(uint32(token)>>1), side(token&1)
	if slot >= int64(len(t.chunks)*chunkPairs) {
		return nil, 0
	}
	p := t.at(int32(slot))
	if p.state == free || p.gen != uint32(token>>32) {
		return nil, 0
	}
	return p, of
}

func (p *pair) token(of side) uint64 {
	return uint64(p.gen)<<32 | uint64(uint32(p.slot))<<1 | uint64(of)
}

// maxGen keeps the tokens of pairs apart from those of listeners.
const maxGen = uint32(gate.Tokens>>32) - 1

// take returns a free place for a new pair.
func (t *table) take() *pair {
	if len(t.vacant) == 0 {
		first := int32(len(t.chunks)) * chunkPairs
		t.chunks = append(t.chunks, new([chunkPairs]pair))
		for i := int32(chunkPairs) - 1; i >= 0; i-- {
			t.vacant = append(t.vacant, first+i)
		}
	}
	last := len(t.vacant) - 1
	slot := t.vacant[last]
	t.vacant = t.vacant[:last]
	p := t.at(slot)
	*p = pair{slot: slot, gen: p.gen%maxGen + 1, fd: [2]int32{-1, -1}}
	return p
}

func (t *table) release(p *pair) {
	*p = pair{slot: p.slot, gen: p.gen}
	t.vacant = append(t.vacant, p.slot)
}

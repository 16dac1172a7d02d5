package loop

import "github.com/fivetuple/fivetuple/stream/gate"

// table holds a loop's connections in pieces that stay where they are.
type table struct {
	chunks []*[chunkConns]conn
	vacant []int32 // free slots
}

const chunkConns = 256

// at returns the connection, or the free place, in a slot.
func (t *table) at(slot int32) *conn { return &t.chunks[slot/chunkConns][slot%chunkConns] }

// find returns the connection that has a token, or nil if it has ended.
func (t *table) find(token uint64) *conn {
	slot := int64(uint32(token))
	if slot >= int64(len(t.chunks)*chunkConns) {
		return nil
	}
	c := t.at(int32(slot))
	if c.state == free || c.gen != uint32(token>>32) {
		return nil
	}
	return c
}

func (c *conn) token() uint64 { return uint64(c.gen)<<32 | uint64(uint32(c.slot)) }

// maxGen keeps the tokens of connections apart from those of listeners.
const maxGen = uint32(gate.Tokens>>32) - 1

// take returns a free place for a new connection.
func (t *table) take() *conn {
	if len(t.vacant) == 0 {
		first := int32(len(t.chunks)) * chunkConns
		t.chunks = append(t.chunks, new([chunkConns]conn))
		for i := int32(chunkConns) - 1; i >= 0; i-- {
			t.vacant = append(t.vacant, first+i)
		}
	}
	last := len(t.vacant) - 1
	slot := t.vacant[last]
	t.vacant = t.vacant[:last]
	c := t.at(slot)
	*c = conn{slot: slot, gen: c.gen%maxGen + 1, state: open}
	return c
}

func (t *table) release(c *conn) {
	*c = conn{slot: c.slot, gen: c.gen}
	t.vacant = append(t.vacant, c.slot)
}

package sessions

import (
	"math/bits"
	"time"

	"github.com/fivetuple/fivetuple/relay/faults"
	"github.com/fivetuple/fivetuple/relay/upstream"
)

// key is what makes a session one: who writes, and where to. Addresses are IPv6,
// IPv4 mapped into it.
type key struct {
	client [16]byte
	local  [16]byte // zero if the kernel is to choose
	zone   uint32   // interface index, if one of them is of a link alone
	from   uint16   // the client's port
	port   uint16   // index of the loop's socket
}

// session lies in its loop's table. Times are the server's clock.
type session struct {
	id                    uint64
	key                   key
	packetsIn, packetsOut uint64
	bytesIn, bytesOut     uint64
	dropped               uint64
	started               int64
	active                int64 // the last datagram of either direction
	reported              int64 // when its totals were, in a Data event
	address               *upstream.Address
	line                  *line // nil for most
	fd                    int32
	slot                  int32
	gen                   uint32
	newer, older          int32  // of the loop's list by use; slots plus one
	run                   int16  // of the loop's batch; -1 if nothing of it is in there
	longestUp             uint16 // of what size the datagrams of a train may be
	longestDown           uint16
	state                 state
	flags                 flags
}

type state uint8

const (
	free state = iota
	live
)

type flags uint8

const (
	replied    flags = 1 << iota // something came from the target
	unreported                   // datagrams came since reported
	waits                        // it is in the loop's list of those to go on with
)

func (s *session) is(f flags) bool { return s.flags&f != 0 }

// line is what few sessions have: faults and a rate.
type line struct {
	faults  [2]*faults.Line // by direction; nil if nothing goes wrong
	rate    int64
	next    [2]int64 // by direction: when the next datagram may pass
	cutTime time.Duration
	cut     bool // by a fault: it is to end
}

// table holds a loop's sessions in pieces that stay where they are, and the order
// in which they were used.
type table struct {
	chunks []*chunk
	used   int
	room   int32 // no chunk before has room
	gen    uint32
	newest int32 // slot plus one; 0 if there is none
	oldest int32
}

const chunkSize = 64

type chunk struct {
	used     uint64 // a bit for each session
	sessions [chunkSize]session
}

// at returns the session in a slot, or the free place.
func (t *table) at(slot int32) *session {
	return &t.chunks[slot/chunkSize].sessions[slot%chunkSize]
}

func (s *session) token() uint64 { return uint64(s.gen)<<32 | uint64(uint32(s.slot)) }

// maxGen keeps the tokens of sessions apart from others.
const maxGen = 1<<32 - 16

// find returns the session that has a token, nil if it has ended.
func (t *table) find(token uint64) *session {
	i := uint32(token) / chunkSize
	if int(i) >= len(t.chunks) || t.chunks[i] == nil {
		return nil
	}
	s := &t.chunks[i].sessions[uint32(token)%chunkSize]
	if s.state == free || s.gen != uint32(token>>32) {
		return nil
	}
	return s
}

// take returns a free place, the first there is, so that the last chunks empty.
func (t *table) take() *session {
	for int(t.room) < len(t.chunks) && t.chunks[t.room] != nil && t.chunks[t.room].used == ^uint64(0) {
		t.room++
	}
	if int(t.room) == len(t.chunks) {
		t.chunks = append(t.chunks, nil)
	}
	c := t.chunks[t.room]
	if c == nil {
		c = new(chunk)
		t.chunks[t.room] = c
	}
	i := bits.TrailingZeros64(^c.used)
	c.used |= 1 << i
	t.used++
	t.gen = t.gen%maxGen + 1
	s := &c.sessions[i]
	*s = session{slot: t.room*chunkSize + int32(i), gen: t.gen, state: live, run: -1}
	t.push(s)
	return s
}

// release gives a place back, and the memory of chunks that have emptied.
func (t *table) release(s *session) {
	t.unlink(s)
	i := s.slot / chunkSize
	c := t.chunks[i]
	c.used &^= 1 << (s.slot % chunkSize)
	*s = session{}
	t.used--
	t.room = min(t.room, i)
	if c.used == 0 {
		t.chunks[i] = nil
	}
	for n := len(t.chunks); n > 0 && t.chunks[n-1] == nil; n-- {
		t.chunks = t.chunks[:n-1]
	}
	if t.used == 0 {
		t.chunks = nil
	}
}

// touch makes a session the one used last.
func (t *table) touch(s *session) {
	if t.newest != s.slot+1 {
		t.unlink(s)
		t.push(s)
	}
}

func (t *table) push(s *session) {
	s.newer, s.older = 0, t.newest
	if t.newest != 0 {
		t.at(t.newest - 1).newer = s.slot + 1
	} else {
		t.oldest = s.slot + 1
	}
	t.newest = s.slot + 1
}

func (t *table) unlink(s *session) {
	if s.newer != 0 {
		t.at(s.newer - 1).older = s.older
	} else {
		t.newest = s.older
	}
	if s.older != 0 {
		t.at(s.older - 1).newer = s.newer
	} else {
		t.oldest = s.newer
	}
}

// least returns the session used least recently, nil if there is none.
func (t *table) least() *session {
	if t.oldest == 0 {
		return nil
	}
	return t.at(t.oldest - 1)
}

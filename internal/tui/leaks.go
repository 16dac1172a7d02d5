package tui

import (
	"encoding/binary"
	"hash/maphash"
	"time"

	"github.com/fivetuple/fivetuple"
	"github.com/fivetuple/fivetuple/table"
)

// leaks are the warnings about what will run out sooner or later.
type leaks struct {
	at    time.Time
	lines []string
}

// leaksEvery is how often the sockets are gone through for leaks, which come slowly.
const leaksEvery = 5 * time.Second

func (m *model) warn() {
	if now := time.Now(); now.Sub(m.leaks.at) >= leaksEvery {
		m.leaks = leaks{now, m.book.leaks(m.options.Ephemeral)}
	}
}

// leaks makes rows of those sockets only that can be part of a leak.
func (b *book) leaks(ephemeral fivetuple.PortRange) []string {
	var t table.Table
	suspect := b.suspects(ephemeral)
	for i := range b.slots {
		p := &b.slots[i]
		if !p.is(inUse) || p.protocol != fivetuple.TCP || p.state != fivetuple.StateCloseWait && !suspect(p) {
			continue
		}
		var row table.Row
		b.unpack(int32(i), &row, &b.info)
		row.Info, row.Namespace = nil, nil // all are of this one, which the table does not know
		b.own(p, &row, nil)
		t.Rows = append(t.Rows, row)
	}
	return t.Leaks(ephemeral)
}

// suspects finds the sockets that share local address and peer with so many
// others that these may be nearly all local ports there are: half of them.
func (b *book) suspects(ephemeral fivetuple.PortRange) func(*slot) bool {
	if ephemeral == (fivetuple.PortRange{}) || b.total.sockets < ephemeral.Len()/2 {
		return func(*slot) bool { return false }
	}
	seed := maphash.MakeSeed()
	var counts [1 << 12]int
	place := func(p *slot) *int {
		var key [34]byte
		copy(key[:], p.local[:])
		copy(key[16:], p.remote[:])
		binary.NativeEndian.PutUint16(key[32:], p.remotePort)
		return &counts[maphash.Bytes(seed, key[:])%uint64(len(counts))]
	}
	takes := func(p *slot) bool {
		return p.is(inUse) && p.is(hasRemote) && p.protocol == fivetuple.TCP && ephemeral.Contains(p.localPort)
	}
	for i := range b.slots {
		if p := &b.slots[i]; takes(p) {
			*place(p)++
		}
	}
	return func(p *slot) bool { return takes(p) && *place(p) > ephemeral.Len()/2 }
}

package tui

import (
	"cmp"
	"slices"

	"github.com/fivetuple/fivetuple/sockopt"
	"github.com/fivetuple/fivetuple/table"
)

// order is what rows are sorted by.
type order struct {
	column  table.Column
	reverse bool
}

// page is a part of the sorted rows: those on the screen and some around them.
type page struct {
	first int // the place of the first row
	total int // how many there are in all
	rows  []pageRow
	// picked is the selected row, wherever it is; nil if it is gone.
	picked *pageRow
	rank   int // its place
}

type pageRow struct {
	slot   int32
	serial uint64
	table.Row
	info    sockopt.TCPInfo
	unowned string // why there is no owner
}

// sorter compares slots as rows.
type sorter struct {
	a, b       table.Row
	infoA      sockopt.TCPInfo
	infoB      sockopt.TCPInfo
	slotA      int32 // what is in a, so that it need not be unpacked again
	candidates []int32
}

// page sorts as much as it takes to know the rows from first on, n of them.
func (b *book) page(o order, first, n int, selected uint64) page {
	p := page{total: b.total.sockets, rank: -1}
	p.first = max(0, min(first, p.total-n))
	b.slotA = -1
	for i, slot := range b.least(o, min(p.first+n, p.total)) {
		if i >= p.first {
			p.rows = append(p.rows, b.show(slot, o))
		}
	}
	for i := range p.rows {
		p.rows[i].Info = infoOf(&p.rows[i])
		if p.rows[i].serial == selected {
			p.picked, p.rank = &p.rows[i], p.first+i
		}
	}
	if p.picked == nil && selected != 0 {
		b.pick(&p, o, selected)
	}
	return p
}

// infoOf lets a row that was moved in memory point to its own TCP_INFO.
func infoOf(r *pageRow) *sockopt.TCPInfo {
	if r.Info == nil {
		return nil
	}
	return &r.info
}

// pick finds a selected row that is not on the page, and its place.
func (b *book) pick(p *page, o order, selected uint64) {
	at := slices.IndexFunc(b.slots, func(s slot) bool { return s.serial == selected && s.is(matched) })
	if at < 0 {
		return
	}
	row := b.show(int32(at), o)
	p.picked, p.rank = &row, 0
	row.Info = infoOf(p.picked)
	for i := range b.slots {
		if b.slots[i].is(matched) && i != at && b.compare(o, int32(at), int32(i)) > 0 {
			p.rank++
		}
	}
}

// show makes the row of a slot with all that can be shown.
func (b *book) show(slot int32, o order) pageRow {
	r := pageRow{slot: slot, serial: b.slots[slot].serial}
	b.unpack(slot, &r.Row, &r.info)
	b.own(&b.slots[slot], &r.Row, nil)
	b.owners.place(&r.Row)
	switch u, known := b.owners.unowned(b, &b.slots[slot]); {
	case !known:
		r.unowned = "..."
	case u != table.Owned:
		r.unowned = "(" + u.String() + ")"
	}
	return r
}

// least returns the first n slots that match, in order. It keeps the n best so
// far as a heap, the worst on top, so that most sockets cost one comparison.
func (b *book) least(o order, n int) []int32 {
	heap := b.candidates[:0]
	if n <= 0 {
		return nil
	}
	all := n > b.total.sockets/4 // then it is less work to sort them all
	for i := range b.slots {
		switch slot := int32(i); {
		case !b.slots[i].is(matched):
		case all:
			heap = append(heap, slot)
		case len(heap) < n:
			heap = append(heap, slot)
			b.up(o, heap)
		case b.compare(o, heap[0], slot) > 0:
			heap[0] = slot
			b.down(o, heap)
		}
	}
	slices.SortFunc(heap, func(x, y int32) int { return b.compare(o, x, y) })
	b.candidates = heap
	return heap[:min(n, len(heap))]
}

func (b *book) up(o order, heap []int32) {
	for i := len(heap) - 1; i > 0; {
		parent := (i - 1) / 2
		if b.compare(o, heap[parent], heap[i]) >= 0 {
			return
		}
		heap[parent], heap[i] = heap[i], heap[parent]
		i = parent
	}
}

func (b *book) down(o order, heap []int32) {
	for i := 0; ; {
		worst := i
		for _, child := range []int{2*i + 1, 2*i + 2} {
			if child < len(heap) && b.compare(o, heap[child], heap[worst]) > 0 {
				worst = child
			}
		}
		if worst == i {
			return
		}
		heap[worst], heap[i] = heap[i], heap[worst]
		i = worst
	}
}

// compare orders two slots; those that are alike by when they came.
func (b *book) compare(o order, x, y int32) int {
	if b.slotA != x {
		b.unpackFor(o, x, &b.sorter.a, &b.infoA)
		b.slotA = x
	}
	b.unpackFor(o, y, &b.sorter.b, &b.infoB)
	c := o.column.Compare(&b.sorter.a, &b.sorter.b)
	if o.reverse {
		c = -c
	}
	return cmp.Or(c, cmp.Compare(b.slots[x].serial, b.slots[y].serial))
}

func (b *book) unpackFor(o order, i int32, row *table.Row, info *sockopt.TCPInfo) {
	b.unpack(i, row, info)
	if o.column.Owners {
		b.own(&b.slots[i], row, nil)
		if o.column.Name == "unit" || o.column.Name == "container" {
			b.owners.place(row)
		}
	}
}

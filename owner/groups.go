package owner

import (
	"math/bits"
	"slices"
)

// groups are the sockets that are looked for, and then their holders, in a hash table with
// open addressing: a hundred thousand rows ask for their holders one by one.
type groups struct {
	any     bool    // every socket is looked for
	slots   []group // a power of two, at most half of them used
	shift   int
	holders []Holder // those of one socket in a row
	cookies []uint64 // of the sockets of these holders; 0 where the search does not tell them
}

// group is a slot of the table, free with inode 0.
type group struct{ inode, from, to uint32 }

// newGroups takes note of what is looked for, passing over inode 0 and what is there
// already, and returns it too.
func newGroups(inodes []uint32) (g groups, wanted []uint32) {
	size := max(2, 1<<bits.Len(uint(2*len(inodes)-1)))
	g.slots, g.shift = make([]group, size), 32-bits.Len(uint(size-1))
	wanted = make([]uint32, 0, len(inodes))
	for _, i := range inodes {
		if i == 0 {
			continue
		}
		if slot := g.slot(i); slot.inode == 0 {
			slot.inode = i
			wanted = append(wanted, i)
		}
	}
	return g, wanted
}

// slot returns that of the inode, or the free one where it belongs.
func (g *groups) slot(inode uint32) *group {
	for at := inode * 2654435769 >> g.shift; ; at++ { // 2^32 by the golden ratio: neighbours are strewn
		slot := &g.slots[int(at)&(len(g.slots)-1)]
		if slot.inode == inode || slot.inode == 0 {
			return slot
		}
	}
}

func (g *groups) wants(inode uint32) bool {
	return inode != 0 && (g.any || g.slot(inode).inode == inode)
}

func (g *groups) of(inode uint32) []Holder {
	if len(g.slots) == 0 || inode == 0 {
		return nil
	}
	s := g.slot(inode)
	return g.holders[s.from:s.to:s.to]
}

// ofSocket narrows of down where sockets of several cookies share the inode.
func (g *groups) ofSocket(inode uint32, cookie uint64) []Holder {
	all := g.of(inode)
	if len(all) < 2 {
		return all
	}
	s := g.slot(inode)
	cookies := g.cookies[s.from:s.to]
	from := slices.Index(cookies, cookie)
	if from < 0 {
		return all
	}
	to := from
	for to < len(cookies) && cookies[to] == cookie {
		to++
	}
	return all[from:to:to]
}

// table is a table of descriptors, with the process or thread that has it.
type table struct {
	Process
	thread  int // 0 for the first
	sockets []descriptor
}

type descriptor struct {
	inode, fd uint32
	cookie    uint64 // 0 if it is not known
}

// fill adds the holders of what is looked for. They come in the order of the tables.
func (g *groups) fill(tables []table) {
	n := 0
	for i := range tables {
		for _, d := range tables[i].sockets {
			if s := g.slot(d.inode); s.inode != 0 && d.inode != 0 {
				s.to++ // how many, for now
				n++
			}
		}
	}
	at := uint32(0)
	for i := range g.slots {
		s := &g.slots[i]
		size := s.to
		s.from, s.to = at, at
		at += size
	}
	g.holders, g.cookies = make([]Holder, n), make([]uint64, n)
	for i := range tables {
		t := &tables[i]
		for _, d := range t.sockets {
			s := g.slot(d.inode)
			if s.inode == 0 || d.inode == 0 {
				continue
			}
			g.holders[s.to] = Holder{Process: t.Process, FD: int(d.fd), Thread: t.thread}
			g.cookies[s.to] = d.cookie
			s.to++
		}
	}
	for _, s := range g.slots {
		sortByCookie(g.holders[s.from:s.to], g.cookies[s.from:s.to])
	}
}

// sortByCookie puts the holders of each socket in a row. They are all of the same
// socket, and in their order already, unless two share the inode. Where a cookie is
// missing they cannot be told apart.
func sortByCookie(holders []Holder, cookies []uint64) {
	if slices.Contains(cookies, 0) {
		clear(cookies)
	}
	for i := range cookies {
		for j := i; j > 0 && cookies[j-1] > cookies[j]; j-- {
			cookies[j-1], cookies[j] = cookies[j], cookies[j-1]
			holders[j-1], holders[j] = holders[j], holders[j-1]
		}
	}
}

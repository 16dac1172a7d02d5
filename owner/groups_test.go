package owner

import (
	"math/rand/v2"
	"slices"
	"testing"
)

func TestGroupsHaveTheHoldersOfEachSocket(t *testing.T) {
	random := rand.New(rand.NewPCG(1, 2))
	for _, size := range []int{1, 2, 3, 7, 8, 100, 5000} {
		var inodes []uint32
		for len(inodes) < size {
			inodes = append(inodes, random.Uint32()>>random.IntN(30)) // also neighbours, zeros and duplicates
		}
		g, wanted := newGroups(append(inodes, 0))
		want := map[uint32][]Holder{}
		var tables []table
		for pid := range 5 {
			tab := table{Process: Process{PID: pid}, thread: pid % 2}
			for fd := range random.IntN(2 * size) {
				inode := inodes[random.IntN(len(inodes))]
				if fd%7 == 0 {
					inode = random.Uint32() | 1<<31 // not looked for
				}
				tab.sockets = append(tab.sockets, descriptor{inode: inode, fd: uint32(fd)})
				if inode != 0 && slices.Contains(inodes, inode) {
					want[inode] = append(want[inode], Holder{tab.Process, fd, tab.thread})
				}
			}
			tables = append(tables, tab)
		}
		g.fill(tables)
		distinct := map[uint32]bool{}
		for _, i := range inodes {
			if i != 0 {
				distinct[i] = true
			}
			if got := g.of(i); !slices.Equal(got, want[i]) {
				t.Errorf("%d sockets: inode %d: got %v, want %v", size, i, got, want[i])
			}
		}
		if len(wanted) != len(distinct) {
			t.Errorf("%d sockets: got %d wanted, want %d without 0 and duplicates", size, len(wanted), len(distinct))
		}
		if got := g.of(1<<31 | 12345); len(got) != 0 {
			t.Errorf("%d sockets: got %v for one not looked for", size, got)
		}
	}
}

func TestOfNothing(t *testing.T) {
	var none Found
	if got := none.Of(1); len(got) != 0 {
		t.Errorf("got %v, want nothing", got)
	}
	if got := none.OfSocket(1, 2); len(got) != 0 {
		t.Errorf("got %v, want nothing", got)
	}
}

func TestOfSocketTellsSocketsOfOneInodeApart(t *testing.T) {
	g, _ := newGroups([]uint32{1, 2, 3})
	g.fill([]table{
		{Process: Process{PID: 7}, sockets: []descriptor{{1, 3, 100}, {1, 4, 200}, {2, 5, 300}, {1, 6, 100}, {3, 8, 0}}},
		{Process: Process{PID: 8}, sockets: []descriptor{{1, 7, 200}, {3, 9, 400}}},
	})
	found := Found{groups: g}
	for _, c := range []struct {
		inode  uint32
		cookie uint64
		want   []int // descriptors
	}{
		{1, 100, []int{3, 6}},
		{1, 200, []int{4, 7}},
		{1, 300, []int{3, 6, 4, 7}}, // of none: a subflow of Multipath TCP, say
		{2, 300, []int{5}},
		{2, 100, []int{5}},
		{3, 400, []int{8, 9}}, // which got its cookie meanwhile
		{3, 0, []int{8, 9}},
	} {
		var got []int
		for _, h := range found.OfSocket(c.inode, c.cookie) {
			got = append(got, h.FD)
		}
		if !slices.Equal(got, c.want) {
			t.Errorf("inode %d, cookie %d: got descriptors %v, want %v", c.inode, c.cookie, got, c.want)
		}
	}
	if got := len(found.Of(1)); got != 4 {
		t.Errorf("got %d holders of the inode, want 4", got)
	}
}

func TestOfAllocatesNothing(t *testing.T) {
	g, _ := newGroups([]uint32{1, 2})
	g.fill([]table{{sockets: []descriptor{{1, 3, 100}, {1, 4, 200}, {2, 5, 0}}}})
	found := Found{groups: g}
	if n := testing.AllocsPerRun(100, func() { found.Of(1); found.Of(3); found.OfSocket(1, 100) }); n != 0 {
		t.Errorf("got %v allocations, want none", n)
	}
}

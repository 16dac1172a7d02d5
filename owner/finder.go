package owner

import (
	"cmp"
	"context"
	"fmt"
	"slices"
)

// Finder is [Find] for searches that are repeated, as a live view does: it keeps the
// loaded program, its memory, and the names of users. The zero value is ready; Close
// gives back what it holds. It is used by one goroutine at a time.
type Finder struct{ finder }

// Find is as the function [Find]. Processes are looked at anew each time.
func (f *Finder) Find(ctx context.Context, inodes []uint32) (Found, error) {
	groups, wanted := newGroups(inodes)
	found := Found{groups: groups}
	if len(wanted) == 0 {
		return found, nil
	}
	tables, unreadable, err := f.search(ctx, &found.groups, wanted)
	return f.fill(ctx, found, tables, unreadable, err)
}

// All finds the holders of every socket, so that the socket table can be read
// meanwhile. A socket opened later than the search began may lack holders: ask
// Find for it. Where there is but the slow way through /proc the error wraps
// [errors.ErrUnsupported], and Find, which needs it once, is the better one.
func (f *Finder) All(ctx context.Context) (Found, error) {
	tables, unreadable, err := f.searchAll(ctx)
	var inodes []uint32
	for _, t := range tables {
		for _, d := range t.sockets {
			inodes = append(inodes, d.inode)
		}
	}
	groups, _ := newGroups(inodes)
	return f.fill(ctx, Found{groups: groups}, tables, unreadable, err)
}

// Prepare does what the first search has to do before it can begin, and may run
// beside other things. It is of no use to call it, but for time.
func (f *Finder) Prepare() { f.prepare() }

// fill makes what was found of the tables of a search.
func (f *Finder) fill(ctx context.Context, found Found, tables []table, unreadable int, err error) (Found, error) {
	if err == nil {
		err = ctx.Err()
	}
	if err != nil {
		return Found{}, fmt.Errorf("find the holders of sockets: %w", err)
	}
	slices.SortFunc(tables, func(a, b table) int {
		return cmp.Or(cmp.Compare(a.PID, b.PID), cmp.Compare(a.thread, b.thread))
	})
	found.groups.fill(tables)
	found.Unreadable, found.Partial = unreadable, f.unseen()
	return found, nil
}

// Close gives back the memory and the descriptors that f holds. It may be used again after.
func (f *Finder) Close() error {
	f.close()
	return nil
}

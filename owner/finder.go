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

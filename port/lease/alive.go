package lease

import (
	"strconv"
	"strings"

	"github.com/fivetuple/fivetuple/owner"
)

// living judges whether owners still live, each process once.
type living struct {
	from  string // whose processes this process can see: owner.View
	known map[Owner]bool
}

func newLiving(view string) *living { return &living{view, make(map[Owner]bool)} }

// hasEnded says whether the owner is surely gone: a process that has ended, or
// any of an earlier start of the machine. Of processes that it cannot see, such
// as those of another container, it says that they live.
func (v *living) hasEnded(o Owner) bool {
	if o.PID == 0 || o.Start == "" {
		return false
	}
	o = Owner{PID: o.PID, Start: o.Start}
	ended, ok := v.known[o]
	if !ok {
		ended = v.look(o)
		v.known[o] = ended
	}
	return ended
}

func (v *living) look(o Owner) bool {
	slash := strings.LastIndexByte(o.Start, '/')
	view, ticks := o.Start[:max(slash, 0)], o.Start[slash+1:]
	start, err := strconv.ParseUint(ticks, 10, 64)
	switch {
	case err != nil || v.from == "":
		return false
	case bootOf(view) != bootOf(v.from):
		return true
	case view != v.from:
		return false
	}
	return !owner.Process{PID: o.PID, Start: start}.Alive()
}

// clockOf returns whose CLOCK_BOOTTIME is read from a view: that of a start of the
// machine, and of a time namespace (time_namespaces(7)).
func clockOf(view string) string {
	parts := strings.Split(view, "/")
	return parts[0] + "/" + parts[len(parts)-1]
}

// bootOf returns which start of the machine a view is of.
func bootOf(view string) string {
	boot, _, _ := strings.Cut(view, "/")
	return boot
}

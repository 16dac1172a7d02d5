// Package owner finds the processes that hold a socket, from the inode that
// the kernel's socket table gives.
//
//	found, err := owner.Find(ctx, inode)
//	for _, h := range found.Holders[inode] {
//		fmt.Println(h.Command, h.PID, h.FD)
//	}
//
// It stands on proc(5): /proc/PID/fd shows a socket as a link to
// "socket:[inode]". The descriptors of other users' processes can be read with
// CAP_SYS_PTRACE only; [Found].Unreadable says how many processes that hid. A
// process that /proc does not show at all (mounted with hidepid=2 or 4, or of
// another PID namespace) is not counted: a socket without a holder can be its,
// or the kernel's own. On other systems every call fails with an error wrapping
// [errors.ErrUnsupported].
package owner

import (
	"context"
	"fmt"
)

// Process is a running process. PID and Start together name it: a PID is used
// again, but not within the same clock tick. It is comparable.
type Process struct {
	PID int `json:"pid"`
	// Start is when it started, in clock ticks (1/100 s) since the machine
	// did: /proc/PID/stat, field 22. After a restart of the machine it says nothing.
	Start uint64 `json:"-"`
	// Command is the name of the program, 15 bytes at most (comm, proc(5)).
	// What does not print is escaped as in a Go string.
	Command string `json:"command"`
	UID     uint32 `json:"-"`    // the effective user
	User    string `json:"user"` // its name, or the number if it has none
}

// String returns `"nginx" (pid 123, user www-data)`, as errors name a process.
func (p Process) String() string {
	return fmt.Sprintf(`"%s" (pid %d, user %s)`, p.Command, p.PID, p.User)
}

// Holder is a descriptor by which a process holds a socket.
type Holder struct {
	Process
	FD int `json:"fd"`
}

// Found is what a search of all processes found.
type Found struct {
	// Holders are those of each inode, by PID and descriptor. A socket has
	// several after fork(2), dup(2), or when it was passed on (unix(7), SCM_RIGHTS).
	Holders map[uint32][]Holder
	// Unreadable counts the processes whose descriptors may not be read: a
	// socket without a holder can be theirs. Kernel threads and processes
	// that have ended hold none and are not counted, unless /proc is mounted
	// with hidepid=1 and hides which they are.
	Unreadable int
}

// Find looks for the holders of the sockets with these inodes. Inode 0, which
// stands for no inode, is passed over. It always looks at every process, since
// the last one may hold the socket too. The error is that ctx is done or /proc
// cannot be read; what single processes refuse is counted and no error.
func Find(ctx context.Context, inodes ...uint32) (Found, error) {
	wanted := make(map[uint32]bool, len(inodes))
	for _, i := range inodes {
		if i != 0 {
			wanted[i] = true
		}
	}
	if len(wanted) == 0 {
		return Found{Holders: map[uint32][]Holder{}}, nil
	}
	return search(ctx, wanted)
}

// ProcessOf describes a process. The error of one that does not exist wraps
// [fs.ErrNotExist].
func ProcessOf(pid int) (Process, error) { return processOf(pid) }

// Alive says whether the process, and not a later one of the same PID, still
// runs. A zombie does not: its descriptors are closed. Where it cannot be told
// the answer is true.
func (p Process) Alive() bool { return alive(p) }

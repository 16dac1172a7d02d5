// Package owner finds the processes that hold a socket, from the inode that
// the kernel's socket table gives. It says who a process is, from whom it descends,
// which unit or container it belongs to, who called this one, and when one ends.
//
//	found, err := owner.Find(ctx, inode)
//	for _, h := range found.Of(inode) {
//		fmt.Println(h.Command, h.PID, h.FD)
//	}
//
// A search always looks at every process. There are two ways:
//
//   - A BPF program walks through the tables of descriptors within the kernel, in a few
//     milliseconds for a hundred thousand sockets. This needs Linux 6.4 on a 64-bit
//     little-endian machine, a kernel that describes its types (CONFIG_DEBUG_INFO_BTF),
//     and CAP_BPF and CAP_PERFMON, or CAP_SYS_ADMIN, outside of user namespaces. See
//     walk_linux.go.
//   - Wherever the kernel refuses that, /proc/PID/fd is read (proc(5)), which shows a socket as a link
//     to "socket:[inode]", in some tenths of a second. The descriptors of other users' processes
//     can be read with CAP_SYS_PTRACE only; [Found].Unreadable says how many
//     processes that hid. See proc_linux.go.
//
// Processes that /proc does not show at all (mounted with hidepid=2 or 4, or outside the
// PID namespace) cannot be counted: [Found].Partial says why there may be such. A socket
// without a holder can be theirs, or the kernel's own. On other systems every call
// fails with an error wrapping [errors.ErrUnsupported].
package owner

import (
	"context"
	"fmt"
)

// Process is a running process. PID and Start together name it: a PID is used
// again, but not within the same clock tick. It is comparable, with those seen
// from the same [View].
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
	// Thread is the id of the thread whose descriptor it is, if that thread has
	// descriptors of its own (clone(2) without CLONE_FILES, unshare(2)). 0, as
	// almost always, if it is one of the process's first thread.
	Thread int `json:"thread,omitempty"`
}

// Found is what a search of all processes found.
type Found struct {
	// Unreadable counts the processes whose descriptors may not be read: a
	// socket without a holder can be theirs. Kernel threads and processes
	// that have ended hold none and are not counted, unless /proc is mounted
	// with hidepid=1 and hides which they are.
	Unreadable int
	// Partial says why there may be processes that the search did not even see:
	// "processes outside this PID namespace are not seen". It is empty if no such
	// reason is known.
	Partial string

	groups groups
}

// Of returns the holders of the socket with this inode, by PID and descriptor.
// A socket has several after fork(2), dup(2), or when it was passed on (unix(7),
// SCM_RIGHTS). Those of two sockets that share the inode come one after the other, see
// [Found.OfSocket]. The slice is part of what was found and not to be changed; a call
// allocates nothing.
func (f *Found) Of(inode uint32) []Holder { return f.groups.of(inode) }

// OfSocket is Of for a caller that knows the cookie as well: the kernel numbers
// inodes anew after four billion, and two sockets can come to have the same one. Where the
// search did not tell cookies, or none is this one, it is the same as Of: the cookie that the socket
// table gives for a Multipath TCP connection is not that of the socket which is held.
func (f *Found) OfSocket(inode uint32, cookie uint64) []Holder {
	return f.groups.ofSocket(inode, cookie)
}

// Find looks for the holders of the sockets with these inodes. Inode 0, which
// stands for no inode, is passed over. It always looks at every process, since
// the last one may hold the socket too. The error is that ctx is done or /proc
// cannot be read; what single processes refuse is counted and no error.
func Find(ctx context.Context, inodes ...uint32) (Found, error) {
	var f Finder
	defer f.Close()
	return f.Find(ctx, inodes)
}

// ProcessOf describes a process. The error of one that does not exist wraps
// [fs.ErrNotExist].
func ProcessOf(pid int) (Process, error) { return processOf(pid) }

// Caller is the process that called this one: its parent, but for subshells. A
// copy that a shell forks of itself counts as that shell: in
//
//	PORT=$(ft port lease -o json | jq .port)
//
// the parent is a subshell, which ends before the script goes on. A shell started
// as a program is a caller of its own, also by another shell. Only copies of shells are
// looked through: the worker that a server forks is a caller of its own, and so is a
// program that runs another and waits for it, such as sudo(8) and timeout(1).
//
// A subshell whose shell this user may not look into is taken for the caller. There
// is an error if the parent has just ended, is outside the PID namespace, or is
// process 1 and no shell: that takes over the children of processes that end, so it
// need not have called.
func Caller() (Process, error) {
	p, err := caller()
	if err != nil {
		return Process{}, fmt.Errorf("find the process that called this one: %w; name the owner with --owner PID", err)
	}
	return p, nil
}

// Alive says whether the process, and not a later one of the same PID, still
// runs. A zombie does not: its descriptors are closed. One of which only the first
// thread has ended does. Where it cannot be told
// the answer is true.
func (p Process) Alive() bool { return alive(p) }

// Wait returns nil when the process has ended, as [Process.Alive] would say. It
// need not be a child of this one. The error is that ctx was done first. A wait
// holds a descriptor and no thread (pidfd_open(2), Linux 5.3); where that is
// not to be had it asks Alive five times a second.
func (p Process) Wait(ctx context.Context) error {
	if err := wait(ctx, p); err != nil {
		return fmt.Errorf("wait for the end of %v: %w", p, err)
	}
	return nil
}

// View names the place that processes are seen from: the boot, the PID namespace
// and the time namespace, as "BOOT/PID/TIME". Another place may give the same PID
// and Start to another process, so those that are to be compared, or asked whether
// they are alive, must have been seen from here. The error is that /proc is missing,
// hides this, or shows another PID namespace.
//
// The kernel gives the number of a namespace that is gone to a new one. That
// does no harm: the processes of the old one have all ended, and no later one
// has the Start of any of them.
func View() (string, error) {
	v, err := view()
	if err != nil {
		return "", fmt.Errorf("find out where processes are seen from: %w", err)
	}
	return v, nil
}

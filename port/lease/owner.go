package lease

import (
	"fmt"
	"os"
	"os/user"
	"path/filepath"
	"strings"

	"github.com/fivetuple/fivetuple/internal/printable"
	"github.com/fivetuple/fivetuple/owner"
)

// Owner is the process that a port is leased to.
type Owner struct {
	PID int `json:"pid"`
	// Start tells the process from others that had its pid before or will have
	// it: two owners are the same process if PID and Start are equal. It is for
	// comparing only; "" where the system does not tell.
	Start   string `json:"start,omitempty"`
	Command string `json:"command"`
	User    string `json:"user"` // name, or number if it has none
}

// OwnerOf describes a running process: its start, the name of its program, and
// its effective user. It fails with an error that wraps [os.ErrNotExist] if there
// is no such process. On systems other than Linux it knows only the calling process.
func OwnerOf(pid int) (Owner, error) {
	if pid == os.Getpid() {
		return self(), nil
	}
	return ownerOf(pid)
}

// self describes this process as far as it can be known.
func self() Owner {
	pid := os.Getpid()
	if o, err := ownerOf(pid); err == nil {
		return o
	}
	o := Owner{PID: pid}
	if u, err := user.Current(); err == nil {
		o.User = printable.Escape(u.Username)
	}
	if len(os.Args) > 0 {
		o.Command = printable.Escape(filepath.Base(os.Args[0]))
	}
	return o
}

// ownerOf describes a process with a Start that no change of the clock moves and
// no restart of the machine repeats: the boot, and the clock tick in it.
func ownerOf(pid int) (Owner, error) {
	p, err := owner.ProcessOf(pid)
	if err != nil {
		return Owner{}, err
	}
	boot, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return Owner{}, fmt.Errorf("describe process %d: %w", pid, err)
	}
	return Owner{PID: pid, Start: fmt.Sprintf("%s/%d", strings.TrimSpace(string(boot)), p.Start), Command: p.Command, User: p.User}, nil
}

// String returns "node, pid 12, user alice".
func (o Owner) String() string {
	return fmt.Sprintf("%s, pid %d, user %s", o.Command, o.PID, o.User)
}

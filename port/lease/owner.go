package lease

import (
	"cmp"
	"errors"
	"fmt"
	"os"
	"os/user"
	"path/filepath"

	"github.com/fivetuple/fivetuple/internal/printable"
	"github.com/fivetuple/fivetuple/owner"
)

// Owner is the process that a port is leased to.
type Owner struct {
	PID int `json:"pid"` // 0: no process
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

func ownerOf(pid int) (Owner, error) {
	p, err := owner.ProcessOf(pid)
	if err != nil {
		return Owner{}, err
	}
	return describe(p)
}

// describe gives a process a Start that no change of the clock moves and no
// restart of the machine repeats: where it was seen from, and the clock tick.
func describe(p owner.Process) (Owner, error) {
	view, err := owner.View()
	if err != nil {
		return Owner{}, fmt.Errorf("describe process %d: %w", p.PID, err)
	}
	return Owner{PID: p.PID, Start: fmt.Sprintf("%s/%d", view, p.Start), Command: p.Command, User: p.User}, nil
}

// complete fills in what is not said of a running process, and checks the rest.
func (o Owner) complete() (Owner, error) {
	if o.PID > 0 && o.Start == "" {
		found, err := OwnerOf(o.PID)
		switch {
		case err == nil:
			o.Start, o.Command, o.User = found.Start, cmp.Or(o.Command, found.Command), cmp.Or(o.User, found.User)
		case !errors.Is(err, errors.ErrUnsupported):
			return o, err
		}
	}
	return o, errors.Join(checkText("owner's user", o.User, MaxPurpose), checkText("owner's command", o.Command, MaxPurpose))
}

// Caller describes the process that called this one, a subshell as the shell
// that it was forked from ([owner.Caller]).
func Caller() (Owner, error) {
	p, err := owner.Caller()
	if err != nil {
		return Owner{}, err
	}
	return describe(p)
}

// String returns "node, pid 12, user alice", or "user alice" if there
// is no process, or none that is known.
func (o Owner) String() string {
	if o.PID == 0 {
		return "user " + o.User
	}
	return fmt.Sprintf("%s, pid %d, user %s", o.Command, o.PID, o.User)
}

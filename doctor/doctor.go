// Package doctor examines the limits and rights of a machine that matter for
// sockets: what each is now, what it leads to, and the line that changes it.
//
//	findings, err := doctor.Examine(ctx, doctor.Options{})
//	for _, f := range findings {
//		if f.Level != doctor.OK {
//			fmt.Println(f.Check, f.Value, f.Effect, f.Fix)
//		}
//	}
//
// It stands on proc(5), on sock_diag(7) and on trying things out: what a kernel
// can do is found by doing it in a way that changes nothing, never by its
// version. The kernel may load a module of its own for that, as it does for
// whoever uses the thing. On other systems Examine fails with an error wrapping
// [errors.ErrUnsupported].
package doctor

import (
	"context"
	"fmt"
	"slices"
)

// Options say what to examine. The zero value is this machine, as the calling
// process sees it.
type Options struct {
	// Root is the directory that proc and sys are read from, "/" if it is
	// empty. What is found by system calls is of this machine all the same.
	Root string
}

// Finding is the state of one thing.
type Finding struct {
	Check string `json:"check"` // the name of the check, which stays the same: "listen_backlog"
	Group string `json:"group"` // what the check is about: "backlog"
	Level Level  `json:"level"`
	// Subject is the process, listener or destination that the finding is
	// about, "" for the machine or this process. A check with several bad
	// subjects has one finding for each.
	Subject string `json:"subject"`
	Value   string `json:"value"`  // the state, for people
	Effect  string `json:"effect"` // what it leads to; "" where all is well
	// Fix is the command that changes it, or what to do; "" where there is
	// nothing to do.
	Fix string `json:"fix"`
}

// Level says how bad a finding is.
type Level uint8

// The levels.
const (
	OK      Level = iota
	Unknown       // it could not be found out; Value says why
	Note          // a limit or a lack that some uses run into
	Warning       // it will cause trouble, or has
	Problem       // it does harm now
)

var levelNames = [...]string{"ok", "unknown", "note", "warning", "problem"}

// String returns the level in lower case.
func (l Level) String() string {
	if int(l) < len(levelNames) {
		return levelNames[l]
	}
	return fmt.Sprintf("level(%d)", uint8(l))
}

// MarshalText implements [encoding.TextMarshaler].
func (l Level) MarshalText() ([]byte, error) { return []byte(l.String()), nil }

// UnmarshalText implements [encoding.TextUnmarshaler].
func (l *Level) UnmarshalText(b []byte) error {
	i := slices.Index(levelNames[:], string(b))
	if i < 0 {
		return fmt.Errorf("unknown level %q: want one of %v", b, levelNames)
	}
	*l = Level(i)
	return nil
}

// Examine makes every check, in a fixed order, and returns at least one finding
// of each. The sockets and kernel parameters are those of the calling thread's
// network namespace. What this process may not look into is Unknown, and no
// error; the error is that ctx is done, or that the system is not Linux.
func Examine(ctx context.Context, o Options) ([]Finding, error) { return examine(ctx, o) }

package stream

import (
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/fivetuple/fivetuple/internal/printable"
)

// ExecOptions say how [Exec] runs commands. The zero value is good.
type ExecOptions struct {
	// Stderr gets what commands write to their standard error, of one at a time;
	// an [*os.File] they get themselves. nil discards it.
	Stderr io.Writer
	Env    []string // "NAME=value", added to the environment of this process
	Dir    string   // working directory; empty is that of this process
	// Pipes gives commands pipes also where they could have the socket itself.
	Pipes bool
	// Grace is how long a command may go on after the connection has ended in
	// order, and again after SIGHUP, before SIGKILL. Default 5 s.
	Grace time.Duration
}

// DefaultGrace is that of [ExecOptions].
const DefaultGrace = 5 * time.Second

// Exec makes a handler that runs a command for each connection, with the words of
// argv as they are: no shell reads them. It is an error if there is no such
// command.
//
// The socket of a plain TCP or Unix stream connection becomes the command's
// standard input and output itself, as inetd(8) does, in blocking mode. Other
// connections (TLS, seqpacket, vsock) reach it by two pipes, with an end of file in
// one direction passed on while the other goes on. The environment has
// FT_CONN, the connection's number; FT_PROTOCOL, FT_LOCAL and FT_REMOTE, its
// tuple; and of a Unix peer FT_PID, FT_UID and FT_GID.
//
// The command and its children are a process group. It ends with the connection:
//
//   - When the command exits, what remains of its group gets SIGHUP, and SIGKILL
//     after Grace; then the connection is closed. A status other than 0 is the
//     cause "command failed", with what was written still delivered.
//   - When the peer resets the connection, or this side closes it (limits, Cut,
//     Shutdown), the group gets SIGHUP at once and SIGKILL after Grace.
//   - When both sides have ended it in order, the command may read what is left and
//     finish its work: SIGHUP follows when nothing was read for Grace. The end of
//     the peer's side alone is just the end of the command's input.
//
// A process that leaves the group (setsid(2)) is not ended, but has no connection
// any more. The command itself is always reaped; orphans of its group are so by
// the system's first process.
//
// Bytes of a given TCP socket are counted by the kernel (TCP_INFO), of which
// IdleTimeout and FirstByteTimeout know, too: received is what arrived, sent what
// the peer has acknowledged. Of a given Unix socket nobody counts: it shows 0
// bytes, these timeouts do not hold, and Shutdown takes it for busy; Pipes changes
// that. Send and Broadcast do not reach a given socket.
//
// A command that cannot be started is an Error event and ends the connection.
// Exec needs Linux.
func Exec(argv []string, o ExecOptions) (Handler, error) {
	if len(argv) == 0 {
		return nil, errors.New("exec: no command")
	}
	path, err := exec.LookPath(argv[0])
	if err == nil {
		path, err = filepath.Abs(path) // Dir does not change what it means
	}
	if err != nil {
		return nil, fmt.Errorf("exec %s: %w", argv[0], reasonOf(err))
	}
	if o.Grace <= 0 {
		o.Grace = DefaultGrace
	}
	return newExec(path, slices.Clone(argv), o)
}

// reasonOf takes off what [exec.LookPath] says twice.
func reasonOf(err error) error {
	var e *exec.Error
	if errors.As(err, &e) {
		return e.Err
	}
	return err
}

// commandError is a command that ended by itself with a failure.
type commandError struct{ error }

func (e *commandError) Unwrap() error { return e.error }

// environ is the environment of the command of a connection. Names of ours that
// this process has itself, from another connection, are not passed on.
func environ(c *Conn, more []string) []string {
	ours := []string{
		"FT_CONN=" + strconv.FormatUint(c.id, 10),
		"FT_PROTOCOL=" + c.tuple.Protocol.String(),
		"FT_LOCAL=" + printable.Escape(c.tuple.Local.String()),
		"FT_REMOTE=" + printable.Escape(c.tuple.Remote.String()),
	}
	if p, ok := c.Peer(); ok {
		ours = append(ours, fmt.Sprint("FT_PID=", p.PID), fmt.Sprint("FT_UID=", p.UID), fmt.Sprint("FT_GID=", p.GID))
	}
	env := slices.DeleteFunc(os.Environ(), func(v string) bool {
		name, _, _ := strings.Cut(v, "=")
		return slices.Contains([]string{"FT_CONN", "FT_PROTOCOL", "FT_LOCAL", "FT_REMOTE", "FT_PID", "FT_UID", "FT_GID"}, name)
	})
	return append(append(env, ours...), more...)
}

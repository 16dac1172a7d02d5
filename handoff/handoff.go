// Package handoff lets a running process give its sockets, and what it knows of
// each, to another process of the same program, which then goes on with them: a
// new version takes over from an old one without a connection lost.
//
//	ln, err := handoff.Listen("/run/echo.handoff") // the old process
//	giver, err := ln.Accept(ctx)                   // a new one is there: stop reading
//	defer giver.Close()
//	err = giver.Give(handoff.Item{Kind: "tcp", Name: "echo", File: file, State: state})
//	err = giver.Commit(ctx) // nil: it is theirs; an error: go on as before
//
//	taker, err := handoff.Take(ctx, "/run/echo.handoff") // the new process
//	defer taker.Close()
//	item, err := taker.Next()   // until io.EOF
//	err = taker.Acknowledge()   // nil: it is ours
//	ln, err := taker.Listener() // give it on, one day
//
// # Who owns
//
// At every moment exactly one of the two processes owns all items. With the last
// of them goes a token, an eventfd(2) that holds a 1: whoever reads it owns. The
// new process reads it in [Taker.Acknowledge]. The old one does in [Giver.Commit],
// when the new one is gone, refuses, or is silent for too long. So none of them
// has to guess what the other made of a message that it could not answer any more:
//
//   - The old process is killed, or stopped, before it has given everything: the
//     new one has nothing, and gets an error. [Take] then tells by [ErrNobody]
//     that the old one is gone, and its sockets with it.
//   - It is killed or stopped later: the new one owns once it acknowledges.
//   - The new process is killed, or stopped, before it acknowledges: the old one
//     keeps all.
//   - It is killed once it has acknowledged: the owner is killed, and all is lost
//     as with any server. That is so too if it did not get to use what it owns.
//
// No step waits longer than [Config.Timeout] for the other side.
//
// # The way
//
// The control socket is a Unix socket of the kind that keeps records (SOCK_SEQPACKET,
// unix(7)); descriptors travel as SCM_RIGHTS, up to 253 with a record. Both sides
// begin with the version of this protocol and a text of the program's own, and each
// checks that the other is of its own user or root (SO_PEERCRED).
//
// The listening control socket is the last descriptor that is given. So its path
// always leads to the process that owns: there is no moment with nobody behind it,
// processes that wait in its backlog are served by the new owner, and the old one
// has nothing to unlink when it ends. Another process that comes while one is
// taking over is told so ([ErrBusy]).
//
// On systems other than Linux every call fails with an error wrapping
// [errors.ErrUnsupported].
package handoff

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"time"
)

// Limits of an [Item], in bytes.
const (
	MaxKind  = 255
	MaxName  = 4 << 10
	MaxState = 16 << 20
)

// MaxHello is how many bytes [Config.Hello] may have.
const MaxHello = 4 << 10

var (
	// ErrNobody is wrapped by the error of [Take] if no process listens at the path.
	ErrNobody = errors.New("no process gives its sockets here")

	// ErrBusy is wrapped by the error of [Take] if another process is taking over.
	ErrBusy = errors.New("another process is taking over")

	// ErrAborted is wrapped by an error that tells that the other process has ended
	// the handoff, or has itself ended: it was for nothing.
	ErrAborted = errors.New("the other process has ended the handoff")
)

// Item is a socket, or another open file, and what its owner knows of it.
type Item struct {
	// Kind and Name are what the program tells items apart by, such as "listener"
	// and "tcp://127.0.0.1:80": up to MaxKind and MaxName bytes.
	Kind, Name string
	// File is the socket; nil for a state without one. It shares its open file
	// description with the giver's, O_NONBLOCK and all (open(2)).
	File *os.File
	// State is up to MaxState bytes. nil comes back as empty.
	State []byte
}

// Config is how a process takes part in handoffs. Its zero value works.
type Config struct {
	// Hello is what this program tells the other one of itself, such as its name
	// and version, up to MaxHello bytes. It gets it before anything is given.
	Hello string
	// Timeout is how long the other process may keep this one waiting in each
	// step. 0 is 10 seconds.
	Timeout time.Duration
	// Refused is told why a process that came to take over was refused or failed
	// before it was given anything. Two goroutines may call it at once, and it must
	// not block. nil drops it.
	Refused func(error)
}

func (c Config) timeout() time.Duration { return cmp.Or(c.Timeout, 10*time.Second) }

func (c Config) check() error {
	if len(c.Hello) > MaxHello {
		return fmt.Errorf("the hello has %d bytes, of at most %d", len(c.Hello), MaxHello)
	}
	return nil
}

// Listen waits at a path for a process that takes over. See [Config.Listen].
func Listen(path string) (*Listener, error) { return Config{}.Listen(path) }

// Take asks the process that listens at a path for its items. See [Config.Take].
func Take(ctx context.Context, path string) (*Taker, error) { return Config{}.Take(ctx, path) }

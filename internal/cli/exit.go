package cli

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"syscall"

	"github.com/spf13/cobra"

	"github.com/fivetuple/fivetuple/internal/printable"
)

// Exit codes.
const (
	exitDone   = 0
	exitNo     = 1 // the answer is no: port closed, nothing matched
	exitUsage  = 2 // the command line or a configuration is wrong
	exitFailed = 3 // it could not be done: permission, no such host, I/O
)

// codeError is an error with an exit code. err may be nil: nothing is printed, as
// the command has said it all.
type codeError struct {
	code int
	err  error
}

func (e *codeError) Error() string {
	if e.err == nil {
		return fmt.Sprintf("exit code %d", e.code)
	}
	return e.err.Error()
}

func (e *codeError) Unwrap() error { return e.err }

// usage makes an error of the command line or the configuration.
func usage(format string, args ...any) error {
	return &codeError{exitUsage, fmt.Errorf(format, args...)}
}

// answerIsNo ends the command with exit code 1, after it has printed its answer.
var answerIsNo error = &codeError{code: exitNo}

// exit prints an error and returns its exit code. Errors without one could not be done.
func (a *app) exit(err error) int {
	var coded *codeError
	switch {
	case err == nil:
		return exitDone
	case errors.As(err, &coded) && coded.err == nil:
		return coded.code
	case errors.Is(err, syscall.EPIPE): // whoever read it has had enough
		return exitFailed
	case errors.Is(err, context.Canceled):
		a.warn("interrupted")
		return exitFailed
	}
	a.warn("%v", err)
	if coded != nil {
		return coded.code
	}
	return exitFailed
}

// no ends the command with exit code 1 and a line that says why.
func no(format string, args ...any) error {
	return &codeError{exitNo, fmt.Errorf(format, args...)}
}

// warn tells the user something beside the results. What is not printable in it
// does not reach the terminal.
func (a *app) warn(format string, args ...any) {
	for i, line := range strings.Split(strings.TrimSpace(fmt.Sprintf(format, args...)), "\n") {
		if i == 0 {
			line = "ft: " + line
		}
		fmt.Fprintln(a.err, printable.Escape(line))
	}
}

// warnOf is warn for an error.
func (a *app) warnOf(err error) { a.warn("%v", err) }

// noArgs refuses arguments. Those of a command that has others below it are
// commands that do not exist.
func noArgs(c *cobra.Command, args []string) error {
	switch {
	case len(args) == 0:
		return nil
	case c.HasSubCommands():
		return unknownCommand(c, args[0])
	}
	return usage("%s takes no arguments, but here is %q: see `%s --help`", c.CommandPath(), args[0], c.CommandPath())
}

// minArgs wants at least n arguments.
func minArgs(n int) cobra.PositionalArgs {
	return func(c *cobra.Command, args []string) error {
		if len(args) < n {
			return usage("%s takes at least %s, not %d: see `%s --help`", c.CommandPath(), plural(n, "argument"), len(args), c.CommandPath())
		}
		return nil
	}
}

package dial

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"strings"
	"time"

	"github.com/fivetuple/fivetuple"
)

// Error is why none of an endpoint's addresses took the connection.
type Error struct {
	Endpoint fivetuple.Endpoint
	Attempts []Attempt // in the order they were begun, never empty
}

// Attempt is what became of one address.
type Attempt struct {
	Addr netip.AddrPort // invalid for a lookup that failed while another gave addresses
	Err  error
	Took time.Duration // 0 if the time ran out before the address was tried
}

// Error is one line, or one for each address when there are several.
func (e *Error) Error() string {
	var b strings.Builder
	fmt.Fprintf(&b, "connect %s: ", e.Endpoint)
	if len(e.Attempts) == 1 {
		at := e.Attempts[0]
		if _, literal := e.Endpoint.Addr(); !literal {
			fmt.Fprintf(&b, "%s: ", at.Addr)
		}
		return b.String() + at.Err.Error()
	}
	b.WriteString("no address took the connection")
	for _, at := range e.Attempts {
		b.WriteString("\n  " + at.String())
	}
	return b.String()
}

// String returns a line such as "192.0.2.1:80: connection refused: nobody listens
// there (after 0.2ms)".
func (a Attempt) String() string {
	var late *timeoutError
	switch {
	case !a.Addr.IsValid():
		return a.Err.Error()
	case errors.As(a.Err, &late):
		return fmt.Sprintf("%s: %v", a.Addr, a.Err)
	}
	return fmt.Sprintf("%s: %v (after %v)", a.Addr, a.Err, round(a.Took))
}

// Unwrap returns the reason of each attempt.
func (e *Error) Unwrap() []error {
	errs := make([]error, len(e.Attempts))
	for i, at := range e.Attempts {
		errs[i] = at.Err
	}
	return errs
}

// errNotTried is of an address whose turn did not come.
var errNotTried = &timeoutError{stage: "not tried: the time ran out"}

// timeoutError says after how long a stage was given up. It is the two errors that
// callers look for, and a [net.Error].
type timeoutError struct {
	after time.Duration // 0 if the stage was not begun
	stage string
}

func (e *timeoutError) Error() string {
	if e.after == 0 {
		return e.stage
	}
	return fmt.Sprintf("timed out after %v: %s", round(e.after), e.stage)
}

func (e *timeoutError) Timeout() bool   { return true }
func (e *timeoutError) Temporary() bool { return true }

func (e *timeoutError) Is(target error) bool {
	return target == context.DeadlineExceeded || target == os.ErrDeadlineExceeded
}

// cut returns err, or, if it came of the end of ctx, an error that says so, and what
// was going on.
func (d Dialer) cut(ctx context.Context, stage string, err error) error {
	return cutSince(ctx, d.began, stage, err)
}

func cutSince(ctx context.Context, began time.Time, stage string, err error) error {
	switch {
	case errors.Is(ctx.Err(), context.Canceled):
		return ctx.Err()
	case ctx.Err() != nil, errors.Is(err, os.ErrDeadlineExceeded), errors.Is(err, context.DeadlineExceeded):
		return &timeoutError{time.Since(began), stage}
	}
	return err
}

// round leaves as many digits as a person reads.
func round(d time.Duration) time.Duration {
	switch {
	case d >= time.Second:
		return d.Round(10 * time.Millisecond)
	case d >= 10*time.Millisecond:
		return d.Round(time.Millisecond)
	}
	return d.Round(time.Microsecond)
}

package sockdiag

import (
	"context"
	"errors"
	"iter"
	"slices"
	"testing"

	"github.com/fivetuple/fivetuple"
)

// interrupted is a dump that lists sockets 1 and 2 and is interrupted the given number of times.
func interrupted(times int) func() iter.Seq2[Socket, error] {
	return func() iter.Seq2[Socket, error] {
		return func(yield func(Socket, error) bool) {
			if !yield(Socket{Cookie: 1}, nil) || !yield(Socket{Cookie: 2}, nil) {
				return
			}
			if times > 0 {
				yield(Socket{}, ErrInterrupted)
			}
			times--
		}
	}
}

func TestListReadsAnInterruptedTableAgain(t *testing.T) {
	want := []Socket{{Cookie: 1}, {Cookie: 2}}
	for times := range listTries {
		got, err := list(interrupted(times))
		if err != nil || !slices.Equal(got, want) {
			t.Errorf("interrupted %d times: got %v, %v, want %v", times, got, err, want)
		}
	}
	if got, err := list(interrupted(listTries)); !errors.Is(err, ErrInterrupted) || got != nil {
		t.Errorf("always interrupted: got %v, %v, want none and %v", got, err, ErrInterrupted)
	}
}

func TestDumpRefusesWhatItCannotList(t *testing.T) {
	q := Query{Protocols: []fivetuple.Network{fivetuple.TCP, fivetuple.Stdio}}
	if _, err := List(context.Background(), q); !errors.Is(err, errors.ErrUnsupported) {
		t.Errorf("got error %v, want one that wraps %v", err, errors.ErrUnsupported)
	}
}

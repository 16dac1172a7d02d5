package inspect

import (
	"context"
	"fmt"
	"iter"
	"time"

	"github.com/fivetuple/fivetuple/netns"
	"github.com/fivetuple/fivetuple/sockdiag"
	"github.com/fivetuple/fivetuple/table"
)

// Sample is a socket at a moment.
type Sample struct {
	Time time.Time
	sockdiag.Socket
}

// Samples reads the socket with TCP_INFO and memory now and then at each
// interval, until ctx is done, which is no error. It costs one netlink message each time,
// however many sockets there are. The error of a socket that is gone wraps
// [fs.ErrNotExist].
func Samples(ctx context.Context, row table.Row, interval time.Duration) iter.Seq2[Sample, error] {
	return func(yield func(Sample, error) bool) {
		tick := time.NewTicker(interval)
		defer tick.Stop()
		for {
			s, err := sample(ctx, row)
			if ctx.Err() != nil {
				return
			}
			if !yield(s, err) || err != nil {
				return
			}
			select {
			case <-ctx.Done():
				return
			case <-tick.C:
			}
		}
	}
}

func sample(ctx context.Context, row table.Row) (s Sample, err error) {
	err = inNamespace(row, func() (err error) {
		s.Socket, err = sockdiag.Get(ctx, row.Socket, sockdiag.WithInfo|sockdiag.WithMemory)
		s.Time = time.Now()
		return err
	})
	if err != nil {
		return Sample{}, fmt.Errorf("sample %s: %w", row.Tuple(), err)
	}
	return s, nil
}

// inNamespace runs fn on a thread in the network namespace of the socket, since
// the table shows those of the thread's.
func inNamespace(row table.Row, fn func() error) error {
	if row.Namespace == nil {
		return fn()
	}
	here, err := netns.Current()
	if err != nil || here.ID == row.Namespace.ID {
		return fn()
	}
	return row.Namespace.Do(fn)
}

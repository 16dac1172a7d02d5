package faults

import (
	"errors"
	"io"
	"net"
	"os"
	"time"
)

// Copy copies a stream through the line until its end, and returns how many bytes dst
// took. It reads on while what it has read waits to be due, of which it holds 1 MiB at
// most: like the window of TCP that is what can be under way, so that a delay of 100 ms
// lets 10 MiB/s through. With a bandwidth it holds what is under way, and one
// second of it, and writes in pieces of a hundredth of a second or a segment.
//
// The end of src takes the same time as bytes, and so does an error, which comes
// after all that was read before; but where src was closed or had its deadline on this
// side, and where dst fails, Copy returns the error at once. It returns ErrCut when
// the connection is cut.
//
// After an error what it held is gone, and both ends should be closed: to stop a
// Read or Write under way Copy lets its deadline pass, and where there is none, as of
// an [io.PipeReader], a goroutine remains until it returns.
//
// Where nothing goes wrong, Copy is [io.Copy].
func Copy(dst io.Writer, src io.Reader, l *Line) (int64, error) {
	if l == nil || !l.config.Active() {
		return io.Copy(dst, src)
	}
	h := newHeld(l)
	read, wrote := make(chan struct{}), make(chan error, 1)
	go func() { defer close(read); h.readFrom(src) }()
	go func() { wrote <- h.writeTo(dst) }()

	var timeUp <-chan time.Time
	if !l.cut.at.IsZero() {
		t := time.NewTimer(time.Until(l.cut.at))
		defer t.Stop()
		timeUp = t.C
	}
	var err error
	writing := true
	select {
	case err = <-wrote:
		writing = false
	case <-h.broken:
		err = h.why
	case <-timeUp:
		l.cut.fire()
	case <-l.cut.done:
	}
	if l.cut.isOver(time.Now()) && err != nil || writing && err == nil {
		err = ErrCut // even if others have closed the ends by now, because of it
	}
	if err == nil {
		<-read
		return h.written.Load(), nil
	}
	close(h.stop)
	past := time.Unix(1, 0)
	if s, ok := src.(interface{ SetReadDeadline(time.Time) error }); ok && s.SetReadDeadline(past) == nil {
		<-read
	}
	if d, ok := dst.(interface{ SetWriteDeadline(time.Time) error }); ok && writing && d.SetWriteDeadline(past) == nil {
		<-wrote
	}
	return h.written.Load(), err
}

// isOurs says whether an error of a Read comes from this side.
func isOurs(err error) bool {
	return errors.Is(err, net.ErrClosed) || errors.Is(err, os.ErrDeadlineExceeded) || errors.Is(err, io.ErrClosedPipe)
}

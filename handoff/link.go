package handoff

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"syscall"
	"time"

	"github.com/fivetuple/fivetuple/ancillary"
)

// link is one end of the control connection.
type link struct {
	conn    *net.UnixConn
	peer    ancillary.Credentials
	timeout time.Duration
	buf     []byte // holds what receive returned last
}

func newLink(conn *net.UnixConn, timeout time.Duration) (*link, error) {
	peer, err := ancillary.PeerCredentials(conn)
	if err != nil {
		return nil, err
	}
	return &link{conn: conn, peer: peer, timeout: timeout}, nil
}

// checkPeer lets nobody give to or take from this process but its own user and root.
func (l *link) checkPeer() error {
	if own := os.Geteuid(); int(l.peer.UID) != own && l.peer.UID != 0 {
		return fmt.Errorf("%w: only user %d and root may hand over to each other, not user %d", os.ErrPermission, own, l.peer.UID)
	}
	return nil
}

// limit bounds the next step by the timeout and by ctx. Between steps the
// connection has no deadline that matters.
func (l *link) limit(ctx context.Context) (stop func(), err error) {
	if err := l.conn.SetDeadline(time.Now().Add(l.timeout)); err != nil {
		return nil, err
	}
	done := make(chan struct{})
	end := context.AfterFunc(ctx, func() {
		defer close(done)
		l.conn.SetDeadline(time.Unix(1, 0))
	})
	return func() {
		if !end() {
			<-done // or it would end the next step
		}
	}, nil
}

// send sends a record, and files with it.
func (l *link) send(ctx context.Context, kind byte, payload []byte, files ...*os.File) error {
	return l.sendRecord(ctx, append([]byte{kind}, payload...), files...)
}

func (l *link) sendRecord(ctx context.Context, record []byte, files ...*os.File) error {
	stop, err := l.limit(ctx)
	if err != nil {
		return err
	}
	defer stop()
	giveUp := time.NewTimer(l.timeout)
	defer giveUp.Stop()
	for {
		err := ancillary.SendFiles(l.conn, record, files...)
		if !errors.Is(err, syscall.ETOOMANYREFS) {
			return l.explain(ctx, err)
		}
		// The peer has too many descriptors yet to receive, and the kernel does
		// not tell when it has (too_many_unix_fds in net/core/scm.c).
		select {
		case <-time.After(time.Millisecond):
		case <-ctx.Done():
		case <-giveUp.C:
			return err
		}
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
	}
}

// receive returns the next record, which is valid until the next call. Its files
// are the caller's. A peer's abort is an error, as is its end.
func (l *link) receive(ctx context.Context) (kind byte, payload []byte, files []*os.File, err error) {
	stop, err := l.limit(ctx)
	if err != nil {
		return 0, nil, nil, err
	}
	defer stop()
	if l.buf == nil {
		l.buf = make([]byte, maxRecord)
	}
	n, files, err := ancillary.ReceiveFiles(l.conn, l.buf)
	if errors.Is(err, syscall.ECONNRESET) {
		// It closed before it read all. What it has said waits behind this error.
		n, files, err = ancillary.ReceiveFiles(l.conn, l.buf)
	}
	if err != nil || n == 0 {
		closeFiles(files)
		return 0, nil, nil, l.explain(ctx, err)
	}
	kind, payload = l.buf[0], l.buf[1:n]
	if kind == recordAbort {
		closeFiles(files)
		return 0, nil, nil, fmt.Errorf("%w: \"%s\"", ErrAborted, reason(payload))
	}
	return kind, payload, files, nil
}

// explain makes an error of the connection one that tells what became of the peer.
func (l *link) explain(ctx context.Context, err error) error {
	switch {
	case err == nil:
		return nil
	case ctx.Err() != nil:
		return context.Cause(ctx)
	case errors.Is(err, os.ErrDeadlineExceeded):
		return fmt.Errorf("the peer did nothing for %v, is it stopped? %w", l.timeout, os.ErrDeadlineExceeded)
	case err == io.EOF, errors.Is(err, syscall.EPIPE), errors.Is(err, syscall.ECONNRESET):
		return fmt.Errorf("%w without a word, as when it is killed", ErrAborted)
	}
	return err
}

// lastWords returns why the peer has ended the handoff, if it has said so, or err.
func (l *link) lastWords(err error) error {
	if !errors.Is(err, ErrAborted) {
		return err
	}
	for { // what it has sent is there already, and then the end
		_, _, files, got := l.receive(context.Background())
		closeFiles(files)
		if got != nil {
			return got
		}
	}
}

// abort tells the peer why, unless that would have to wait, and closes the connection.
func (l *link) abort(why error) error { return l.dismiss(recordAbort, why.Error()) }

func (l *link) dismiss(kind byte, text string) error {
	trySend(l.conn, append([]byte{kind}, text[:min(len(text), maxReason)]...))
	return l.conn.Close()
}

// name is the peer as a person knows it.
func (l *link) name() string {
	if l.peer.PID == 0 {
		return "a process of another PID namespace"
	}
	return fmt.Sprintf("process %d", l.peer.PID)
}

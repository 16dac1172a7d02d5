package handoff

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"syscall"

	"github.com/fivetuple/fivetuple/ancillary"
	"github.com/fivetuple/fivetuple/internal/unixfile"
)

// Taker is a handoff in the process that takes over. It is for one goroutine.
type Taker struct {
	config Config
	path   string
	link   *link
	hello  string

	items    decoder
	count    uint64
	token    *os.File // with listener, what makes this process the owner; after the last item
	listener *os.File
	err      error // why nothing can be taken any more; io.EOF after the last item
	owner    bool
	ended    bool
}

// Take asks the process that listens at a path for its items, and waits until it
// has answered. The error wraps [ErrNobody] if none is there, or its file is left of
// one that is gone; [ErrBusy]; or [ErrAborted] if it refuses.
func (c Config) Take(ctx context.Context, path string) (*Taker, error) {
	t := &Taker{config: c, path: path}
	if err := t.connect(ctx); err != nil {
		return nil, t.failed(err)
	}
	if err := t.greet(ctx); err != nil {
		defer t.link.conn.Close()
		return nil, t.failed(err)
	}
	t.items.more = t.more
	return t, nil
}

// Peer is the process that gives, as it was when it began to listen.
func (t *Taker) Peer() ancillary.Credentials { return t.link.peer }

// Hello is what the other process tells of itself: [Config.Hello] there.
func (t *Taker) Hello() string { return t.hello }

// Next returns the next item, or [io.EOF] after the last. Its file is the caller's
// to close, and must not be used before Acknowledge has returned nil: another
// process still does. Do not wait between calls, since the other one does.
func (t *Taker) Next() (Item, error) {
	if t.err != nil {
		return Item{}, t.err
	}
	it, err := t.items.next()
	switch {
	case err == nil:
		t.count++
		return it, nil
	case err == io.EOF:
		t.err = err
	default:
		t.err = t.failed(err)
		t.Abort(err)
	}
	return Item{}, t.err
}

// Acknowledge makes this process the owner of all items, or returns an error: then
// it is not, and will never be, since the other one has gone on.
// It is called after Next has returned [io.EOF].
func (t *Taker) Acknowledge() error {
	if t.owner {
		return nil
	}
	if t.token == nil || t.ended {
		return t.failed(errors.New("not all items were taken"))
	}
	mine, err := takeToken(t.token)
	if err != nil {
		return t.failed(err)
	}
	if !mine {
		err := fmt.Errorf("%w and goes on itself", ErrAborted)
		if _, _, _, said := t.link.receive(context.Background()); said != nil {
			err = said
		}
		return t.failed(err)
	}
	t.owner = true
	t.tell()
	return nil
}

// tell lets the giver know at once what it else learns when it looks for the token.
func (t *Taker) tell() {
	_ = t.link.send(context.Background(), recordTaken, nil)
	t.link.conn.Close()
}

// Listener is the control socket, with which this process now gives its items to
// the next one. It is called once, after Acknowledge; if it is not, Close gives the
// path up. The socket keeps its file, whoever owns it.
func (t *Taker) Listener() (*Listener, error) {
	if !t.owner || t.listener == nil {
		return nil, t.failed(errors.New("there is no control socket to be had: only the owner has it, once"))
	}
	file := unixfile.Of(t.path)
	if file == nil && !strings.HasPrefix(t.path, "@") {
		return nil, t.failed(errors.New("the file of the control socket is gone"))
	}
	ln, err := listenAgain(t.listener)
	if err != nil {
		return nil, t.failed(err)
	}
	t.listener.Close()
	t.listener = nil
	return t.config.listener(t.path, ln, file), nil
}

// Close ends a handoff that was not acknowledged: the other process goes on with
// all items, and files that Next has returned are to be closed by the caller.
func (t *Taker) Close() error { return t.Abort(errors.New("nothing is taken")) }

// Abort is Close, and tells the other process why.
func (t *Taker) Abort(why error) error {
	if t.ended {
		return nil
	}
	t.ended = true
	closeFiles(t.items.files)
	if t.token != nil {
		t.token.Close()
	}
	if t.listener != nil {
		t.listener.Close()
	}
	if t.owner {
		return nil
	}
	if t.err == nil || t.err == io.EOF {
		t.err = os.ErrClosed
	}
	return t.link.abort(why)
}

func (t *Taker) connect(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, t.config.timeout())
	defer cancel()
	if err := t.config.check(); err != nil {
		return err
	}
	conn, err := connect(ctx, t.path)
	switch {
	case errors.Is(err, syscall.ENOENT), errors.Is(err, syscall.ECONNREFUSED):
		return fmt.Errorf("%w (%w)", ErrNobody, err)
	case err != nil:
		return err
	}
	if t.link, err = newLink(conn, t.config.timeout()); err != nil {
		conn.Close()
		return err
	}
	return nil
}

func (t *Taker) greet(ctx context.Context) error {
	if err := t.link.checkPeer(); err != nil {
		return err
	}
	sendErr := t.link.send(ctx, recordHello, encodeHello(t.config.Hello))
	kind, payload, files, err := t.link.receive(ctx) // also after an error: it may say why
	closeFiles(files)
	switch {
	case err != nil:
		return err
	case kind == recordBusy:
		return fmt.Errorf("%w: %s", ErrBusy, reason(payload))
	case sendErr != nil:
		return sendErr
	case kind != recordHello:
		payload = nil
	}
	t.hello, err = decodeHello(payload)
	return err
}

// more returns the next piece of the items, or keeps what comes after the last.
func (t *Taker) more() (piece []byte, files []*os.File, err error) {
	kind, payload, files, err := t.link.receive(context.Background())
	switch {
	case err != nil:
		return nil, nil, err
	case kind == recordItems:
		return payload, files, nil
	case kind != recordEnd || len(payload) != 8 || len(files) != 2:
		err = fmt.Errorf("the peer sent a record of the kind %q with %d bytes and %d descriptors, which cannot be", kind, len(payload), len(files))
	case binary.BigEndian.Uint64(payload) != t.count || len(t.items.files) != 0:
		err = fmt.Errorf("%d items came of %d, and %d descriptors too many", t.count, binary.BigEndian.Uint64(payload), len(t.items.files))
	default:
		t.token, t.listener = files[0], files[1]
		return nil, nil, io.EOF
	}
	closeFiles(files)
	return nil, nil, err
}

func (t *Taker) failed(err error) error {
	who := t.path
	if t.link != nil {
		who += " (" + t.link.name() + ")"
	}
	return fmt.Errorf("take over from %s: %w", who, err)
}

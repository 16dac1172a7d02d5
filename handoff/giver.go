package handoff

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"os"

	"github.com/fivetuple/fivetuple/ancillary"
)

// Giver is a handoff in the process that gives. It is for one goroutine.
type Giver struct {
	link     *link
	listener *Listener
	hello    string

	record []byte // items yet to be sent, as one record
	files  []*os.File
	count  uint64
	err    error // why nothing can be given any more
	ended  bool
}

// Peer is the process that takes over, as it was when it connected.
func (g *Giver) Peer() ancillary.Credentials { return g.link.peer }

// Hello is what the other process tells of itself: [Config.Hello] there.
func (g *Giver) Hello() string { return g.hello }

// Give gives an item. Its file must stay open until Flush, Commit or Close has
// returned, and the caller's means to go on with it until Commit has. After an
// error nothing more can be given.
func (g *Giver) Give(it Item) error {
	if g.err == nil {
		g.err = g.give(it)
	}
	if g.err != nil {
		return fmt.Errorf("give %s to %s: %w", describe(it), g.link.name(), g.err)
	}
	return nil
}

// Flush sends what was given so far, so that duplicates made for it can be closed.
func (g *Giver) Flush(ctx context.Context) error {
	if g.err == nil {
		g.err = g.flush(ctx)
	}
	if g.err != nil {
		return fmt.Errorf("give to %s: %w", g.link.name(), g.err)
	}
	return nil
}

// Commit gives what is needed to own the items, and returns nil once the other
// process does: this one must let go of them, without shutdown(2) or anything else
// that the peers of its sockets would notice, and its Listener is closed. After an
// error, such as that the other process was killed, is silent for [Config.Timeout]
// or until ctx ends, this process goes on as if nothing had happened: the other one
// will never own them. Either way the Giver is closed.
func (g *Giver) Commit(ctx context.Context) error {
	if g.err == nil {
		g.err = g.commit(ctx)
	}
	if g.err != nil {
		err := fmt.Errorf("hand over to %s: %w", g.link.name(), g.err)
		g.Close()
		return err
	}
	g.ended = true
	g.link.conn.Close()
	g.listener.given()
	g.err = os.ErrClosed
	return nil
}

// Close ends a handoff that was not committed: this process keeps all items.
func (g *Giver) Close() error { return g.Abort(errors.New("nothing is given")) }

// Abort is Close, and tells the other process why.
func (g *Giver) Abort(why error) error {
	if g.ended {
		return nil
	}
	g.ended = true
	if g.err != nil {
		why = g.err
	}
	g.err = os.ErrClosed
	g.listener.free() // first, since it may come again at once
	return g.link.abort(why)
}

func (g *Giver) give(it Item) error {
	switch {
	case len(it.Kind) > MaxKind:
		return fmt.Errorf("the kind has %d bytes, of at most %d", len(it.Kind), MaxKind)
	case len(it.Name) > MaxName:
		return fmt.Errorf("the name has %d bytes, of at most %d", len(it.Name), MaxName)
	case len(it.State) > MaxState:
		return fmt.Errorf("the state has %d bytes, of at most %d", len(it.State), MaxState)
	}
	if it.File != nil {
		g.files = append(g.files, it.File)
	}
	g.count++
	g.record = appendHeader(g.begun(), it)
	for rest := it.State; ; {
		n := min(len(rest), max(0, maxRecord-len(g.record)))
		g.record, rest = append(g.record, rest[:n]...), rest[n:]
		if len(g.record) >= maxRecord || len(g.files) == maxFiles {
			if err := g.flush(context.Background()); err != nil {
				return err
			}
		}
		if len(rest) == 0 {
			return nil
		}
		g.record = g.begun()
	}
}

// begun is the record that is being filled.
func (g *Giver) begun() []byte {
	if len(g.record) == 0 {
		return append(g.record, recordItems)
	}
	return g.record
}

// flush sends what is gathered. The header of the last item may have made it
// longer than a record.
func (g *Giver) flush(ctx context.Context) error {
	for len(g.record) > 1 {
		n := min(len(g.record), maxRecord)
		if err := g.link.sendRecord(ctx, g.record[:n], g.files...); err != nil {
			return g.link.lastWords(err)
		}
		rest := copy(g.record[1:], g.record[n:])
		g.record, g.files = g.record[:1+rest], g.files[:0]
	}
	g.record = g.record[:0]
	return nil
}

func (g *Giver) commit(ctx context.Context) error {
	if err := g.flush(ctx); err != nil {
		return err
	}
	token, err := newToken()
	if err != nil {
		return err
	}
	defer token.Close()
	ln, err := g.listener.ln.File()
	if err != nil {
		return err
	}
	defer ln.Close()
	if err := g.link.send(ctx, recordEnd, binary.BigEndian.AppendUint64(nil, g.count), token, ln); err != nil {
		return g.link.lastWords(err)
	}
	kind, _, files, err := g.link.receive(ctx)
	closeFiles(files)
	if err == nil && kind == recordTaken {
		return nil
	}
	if err == nil {
		err = fmt.Errorf("the peer sent a record of the kind %q", kind)
	}
	mine, tokenErr := takeToken(token)
	switch {
	case tokenErr != nil:
		return tokenErr
	case mine:
		return err
	}
	return nil // it owns, and could not say so
}

func describe(it Item) string { return fmt.Sprintf("the %s %q", it.Kind, it.Name) }

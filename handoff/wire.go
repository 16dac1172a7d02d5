package handoff

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"

	"github.com/fivetuple/fivetuple/ancillary"
	"github.com/fivetuple/fivetuple/internal/printable"
)

// A record on the control socket is a byte that says what it is, and:
const (
	recordHello = 'H' // magic, version, the program's text: the taker's, then the giver's
	recordBusy  = 'B' // the giver's, in the place of its hello: to whom it gives
	recordItems = 'I' // a piece of the stream of items; their descriptors
	recordEnd   = 'E' // how many items there were; the token and the listening socket
	recordTaken = 'T' // the taker's last word: nothing
	recordAbort = 'A' // anyone's last word: why
)

const (
	magic     = "ft-handoff\n"
	version   = 1
	maxRecord = 64 << 10
	maxReason = 1 << 10
	maxFiles  = ancillary.MaxFiles
)

// reason is a text from the peer, fit to be shown.
func reason(b []byte) string { return printable.Escape(string(b[:min(len(b), maxReason)])) }

func encodeHello(text string) []byte {
	b := append([]byte(magic), 0, 0)
	binary.BigEndian.PutUint16(b[len(magic):], version)
	return append(b, text...)
}

// decodeHello reads the payload of a hello. Its beginning, up to the version, is
// the same in all versions.
func decodeHello(b []byte) (text string, err error) {
	if len(b) < len(magic)+2 || string(b[:len(magic)]) != magic {
		return "", errors.New("the peer speaks another protocol: is the path that of another program's socket?")
	}
	b = b[len(magic):]
	switch v := binary.BigEndian.Uint16(b); {
	case v != version:
		return "", fmt.Errorf("the peer speaks version %d of the handoff protocol, not %d: restart without a handoff", v, version)
	case len(b) > 2+MaxHello:
		return "", fmt.Errorf("the peer's hello has %d bytes, of at most %d", len(b)-2, MaxHello)
	}
	return string(b[2:]), nil
}

// An item is its header, kind, name and state. Its descriptor comes no later than
// the record in which the header begins.
const headerSize = 8 // has a file 1, length of kind 1, of name 2, of state 4

func appendHeader(b []byte, it Item) []byte {
	file := byte(0)
	if it.File != nil {
		file = 1
	}
	b = append(b, file, byte(len(it.Kind)))
	b = binary.BigEndian.AppendUint16(b, uint16(len(it.Name)))
	b = binary.BigEndian.AppendUint32(b, uint32(len(it.State)))
	b = append(b, it.Kind...)
	return append(b, it.Name...)
}

// decoder reads items from a stream that comes in pieces.
type decoder struct {
	more  func() (piece []byte, files []*os.File, err error) // io.EOF at the end
	piece []byte
	files []*os.File // that belong to items yet to be read
}

// next returns an item, or io.EOF after the last. After another error it is no use.
func (d *decoder) next() (it Item, err error) {
	header, err := d.read(headerSize)
	if err != nil {
		return Item{}, err
	}
	hasFile, kind := header[0], int(header[1])
	name, state := int(binary.BigEndian.Uint16(header[2:])), int(binary.BigEndian.Uint32(header[4:]))
	switch {
	case hasFile > 1, name > MaxName, state > MaxState:
		return Item{}, fmt.Errorf("item with the header %x, which cannot be", header)
	case hasFile == 1 && len(d.files) == 0:
		return Item{}, errors.New("an item without its descriptor")
	}
	text, err := d.read(kind + name)
	if err == nil {
		it.State, err = d.read(state)
	}
	if err != nil {
		return Item{}, noEOF(err)
	}
	it.Kind, it.Name = string(text[:kind]), string(text[kind:])
	if hasFile == 1 {
		it.File, d.files = d.files[0], d.files[1:]
	}
	return it, nil
}

// read returns n bytes, for which it takes memory only as they come.
func (d *decoder) read(n int) ([]byte, error) {
	b := make([]byte, 0, min(n, maxRecord))
	for len(b) < n {
		if len(d.piece) == 0 {
			piece, files, err := d.more()
			d.files = append(d.files, files...)
			if err == io.EOF && len(b) > 0 {
				err = io.ErrUnexpectedEOF
			}
			if err != nil {
				return nil, err
			}
			d.piece = piece
			continue
		}
		take := min(n-len(b), len(d.piece))
		b = append(b, d.piece[:take]...)
		d.piece = d.piece[take:]
	}
	return b, nil
}

func noEOF(err error) error {
	if err == io.EOF {
		return io.ErrUnexpectedEOF
	}
	return err
}

func closeFiles(files []*os.File) {
	for _, f := range files {
		f.Close()
	}
}

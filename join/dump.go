package join

import (
	"encoding/hex"
	"fmt"
	"io"
	"strconv"
	"sync"
	"time"
	"unicode/utf8"
)

// Dump shows what passes at B, as it is on the wire: with CR LF, framing and Telnet's
// sequences. A row starts with the time, if wanted, in UTC with microseconds, and ">"
// for what A sends or "<" for what B sends:
//
//	> GET / HTTP/1.1\r\n
//	2006-01-02T15:04:05.000000Z < HTTP/1.1 200 OK\r\n
//
// Text is one row for each line, or for less where a read or write ended: only a row
// that ends in "\n" ends a line. What does not print is escaped as in Go, and so is
// the backslash. Hex is rows of 16 bytes with their offset in the direction, which
// xxd -r reads when what stands before the offset is taken off:
//
//	> 00000000: 4745 5420 2f20 4854 5450 2f31 2e31 0d0a  GET / HTTP/1.1..
//
// Each read or write is one Write to W, of whole rows. What A sends is shown as it is
// written, so that it stands before the answer to it, even if the write then fails.
// A W that fails is not written to again, and Run returns the error at its end.
type Dump struct {
	W               io.Writer
	Hex, Timestamps bool
}

type dumper struct {
	Dump
	mu     sync.Mutex
	offset map[byte]uint64 // by direction
	rows   []byte
	err    error
}

func newDumper(d Dump) *dumper { return &dumper{Dump: d, offset: map[byte]uint64{}} }

func (d *dumper) failure() error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.err == nil {
		return nil
	}
	return fmt.Errorf("the dump is cut, what it shows passed on in full: %w", d.err)
}

// show dumps what a read or write passed, an empty record too.
func (d *dumper) show(direction byte, b []byte) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.err != nil {
		return
	}
	var stamp []byte
	if d.Timestamps {
		stamp = time.Now().UTC().AppendFormat(nil, "2006-01-02T15:04:05.000000Z ")
	}
	d.rows = d.rows[:0]
	for first := true; first || len(b) > 0; first = false {
		d.rows = append(d.rows, stamp...)
		d.rows = append(d.rows, direction, ' ')
		n := 0
		if d.Hex {
			n = min(len(b), 16)
			d.rows = appendHex(d.rows, d.offset[direction], b[:n])
		} else {
			d.rows, n = appendText(d.rows, b)
		}
		d.rows = append(d.rows, '\n')
		d.offset[direction] += uint64(n)
		b = b[n:]
	}
	_, d.err = d.W.Write(d.rows)
}

func appendHex(row []byte, offset uint64, b []byte) []byte {
	row = fmt.Appendf(row, "%08x:", offset)
	for i := range 16 {
		if i%2 == 0 {
			row = append(row, ' ')
		}
		if i < len(b) {
			row = hex.AppendEncode(row, b[i:i+1])
		} else {
			row = append(row, "  "...)
		}
	}
	row = append(row, "  "...)
	for _, c := range b {
		if c < ' ' || c > '~' {
			c = '.'
		}
		row = append(row, c)
	}
	return row
}

// maxText bounds a row of text, in bytes before they are escaped.
const maxText = 4096

// appendText adds one row and says how much of b it shows.
func appendText(row, b []byte) (_ []byte, n int) {
	for n < len(b) && n < maxText {
		r, size := utf8.DecodeRune(b[n:])
		switch {
		case r == '\\':
			row = append(row, `\\`...)
		case r == utf8.RuneError && size == 1:
			row = fmt.Appendf(row, `\x%02x`, b[n])
		case strconv.IsPrint(r):
			row = append(row, b[n:n+size]...)
		default:
			quoted := strconv.QuoteRune(r)
			row = append(row, quoted[1:len(quoted)-1]...)
		}
		n += size
		if r == '\n' {
			break
		}
	}
	return row, n
}

type dumpedReader struct {
	r io.Reader
	d *dumper
}

func (r *dumpedReader) Read(p []byte) (int, error) {
	n, err := r.r.Read(p)
	if n > 0 || err == nil {
		r.d.show('<', p[:n])
	}
	return n, err
}

type dumpedWriter struct {
	w io.Writer
	d *dumper
}

func (w *dumpedWriter) Write(p []byte) (int, error) {
	w.d.show('>', p)
	return w.w.Write(p)
}

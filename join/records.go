package join

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"io"
)

// source gives what one side sends in the pieces that the other is to get: bytes as
// they come, or records. A piece is good until the next call. The error comes after
// the last piece; io.EOF is the end of file.
type source interface {
	next() ([]byte, error)
}

// chunks are the bytes of each read.
type chunks struct {
	read func([]byte) (int, error)
	buf  []byte
	err  error
}

func (c *chunks) next() ([]byte, error) {
	for range 100 {
		if c.err != nil {
			return nil, c.err
		}
		var n int
		if n, c.err = c.read(c.buf); n > 0 {
			return c.buf[:n], nil
		}
	}
	return nil, io.ErrNoProgress
}

// records are those of an end that keeps them. The buffer holds one byte more than
// the longest: a read cuts what does not fit.
type records struct {
	read func([]byte) (int, error)
	buf  []byte
	err  error
}

func (r *records) next() ([]byte, error) {
	if r.err != nil {
		return nil, r.err
	}
	var n int
	n, r.err = r.read(r.buf)
	switch {
	case n == len(r.buf):
		return nil, tooLong("one that was received has", n-1)
	case n == 0 && r.err != nil:
		return nil, r.err
	}
	return r.buf[:n], nil
}

// lines are records that end in LF, which is not of them.
type lines struct {
	read    func([]byte) (int, error)
	limit   int
	buf     []byte
	from    int // start of the record in buf
	scanned int // before which there is no LF
	err     error
}

func (l *lines) next() ([]byte, error) {
	for {
		if i := bytes.IndexByte(l.buf[l.scanned:], '\n'); i >= 0 {
			return l.take(l.scanned+i, 1), nil
		}
		l.scanned = len(l.buf)
		switch {
		case l.scanned-l.from > l.limit:
			return nil, tooLong("a line has", l.limit)
		case l.err == io.EOF && l.from < l.scanned:
			return l.take(l.scanned, 0), nil
		case l.err != nil:
			return nil, l.err
		}
		l.buf = append(l.buf[:0], l.buf[l.from:]...)
		l.from, l.scanned = 0, len(l.buf)
		l.buf, l.err = readMore(l.read, l.buf, l.limit+1) // and the LF
	}
}

func (l *lines) take(end, separator int) []byte {
	line := l.buf[l.from:end]
	l.from, l.scanned = end+separator, end+separator
	return line
}

// lengths are records with their length before them.
type lengths struct {
	read  func([]byte) (int, error)
	limit int
	buf   []byte
	from  int // start of the length in buf
	err   error
}

const prefix = 4

func (l *lengths) next() ([]byte, error) {
	for {
		have := l.buf[l.from:]
		if len(have) >= prefix {
			n := binary.BigEndian.Uint32(have)
			if uint64(n) > uint64(l.limit) {
				return nil, fmt.Errorf("%w: a length says %d bytes, more than the %d allowed", ErrTooLong, n, l.limit)
			}
			if end := prefix + int(n); len(have) >= end {
				l.from += end
				return have[prefix:end], nil
			}
		}
		switch {
		case l.err == io.EOF && len(have) > 0:
			return nil, fmt.Errorf("the last record is cut: it ends after %d bytes, length included: %w", len(have), io.ErrUnexpectedEOF)
		case l.err != nil:
			return nil, l.err
		}
		l.buf = append(l.buf[:0], have...)
		l.from = 0
		l.buf, l.err = readMore(l.read, l.buf, prefix+l.limit)
	}
}

// readMore appends one read to b, which may grow to the limit and is below it.
func readMore(read func([]byte) (int, error), b []byte, limit int) ([]byte, error) {
	if len(b) == cap(b) {
		bigger := make([]byte, len(b), min(limit, max(2*cap(b), 64<<10)))
		copy(bigger, b)
		b = bigger
	}
	for range 100 {
		if n, err := read(b[len(b):cap(b)]); n > 0 || err != nil {
			return b[:len(b)+n], err
		}
	}
	return b, io.ErrNoProgress
}

func tooLong(which string, limit int) error {
	return fmt.Errorf("%w: %s more than %d bytes: allow longer ones, or send shorter", ErrTooLong, which, limit)
}

// lineEnd writes records as lines.
type lineEnd struct {
	buf       []byte
	multiline *uint64
}

func (l *lineEnd) apply(b []byte) ([]byte, error) {
	if bytes.IndexByte(b, '\n') >= 0 {
		*l.multiline++
	}
	l.buf = append(append(l.buf[:0], b...), '\n')
	return l.buf, nil
}

// lengthPrefix writes records with their length before them.
type lengthPrefix struct{ buf []byte }

func (l *lengthPrefix) apply(b []byte) ([]byte, error) {
	l.buf = binary.BigEndian.AppendUint32(l.buf[:0], uint32(len(b)))
	l.buf = append(l.buf, b...)
	return l.buf, nil
}

// crlf makes a LF that follows no CR into CR LF.
type crlf struct {
	buf []byte
	cr  bool // the last byte was a CR
}

func (c *crlf) apply(b []byte) ([]byte, error) {
	c.buf = c.buf[:0]
	for {
		i := bytes.IndexByte(b, '\n')
		if i < 0 {
			break
		}
		c.buf = append(c.buf, b[:i]...)
		if i > 0 {
			c.cr = b[i-1] == '\r'
		}
		if !c.cr {
			c.buf = append(c.buf, '\r')
		}
		c.buf = append(c.buf, '\n')
		c.cr = false
		b = b[i+1:]
	}
	if len(b) > 0 {
		c.cr = b[len(b)-1] == '\r'
	}
	c.buf = append(c.buf, b...)
	return c.buf, nil
}

// Package fields writes and reads the states that a server hands to its
// successor: a byte of version, a byte of flags, and fields in order, numbers as
// uvarints (encoding/binary), strings behind their length.
package fields

import (
	"encoding/binary"
	"net/netip"
	"time"
)

// Append appends numbers.
func Append(b []byte, numbers ...uint64) []byte {
	for _, n := range numbers {
		b = binary.AppendUvarint(b, n)
	}
	return b
}

// AppendBytes appends a string, or bytes.
func AppendBytes[T string | []byte](b []byte, s T) []byte {
	return append(binary.AppendUvarint(b, uint64(len(s))), s...)
}

// AppendAddrPort appends an address, or that there is none if it is invalid.
func AppendAddrPort(b []byte, a netip.AddrPort) []byte {
	if !a.IsValid() {
		return AppendBytes(b, "")
	}
	return AppendBytes(b, a.String())
}

// Flags is a byte of up to eight, the first of them lowest.
func Flags(on ...bool) (f byte) {
	for i, is := range on {
		if is {
			f |= 1 << i
		}
	}
	return f
}

// Reader takes fields from the front of a state. What comes after damage is zero.
type Reader struct {
	rest []byte
	bad  bool
}

// Read returns a Reader of the fields in b, of which it keeps parts.
func Read(b []byte) *Reader { return &Reader{rest: b} }

// Whole says whether all was read and none of it was damaged.
func (r *Reader) Whole() bool { return !r.bad && len(r.rest) == 0 }

// Number takes one of up to most.
func (r *Reader) Number(most uint64) uint64 {
	n, size := binary.Uvarint(r.rest)
	if size <= 0 || n > most {
		r.damaged()
		return 0
	}
	r.rest = r.rest[size:]
	return n
}

// Duration takes one of up to a hundred years.
func (r *Reader) Duration() time.Duration {
	return time.Duration(r.Number(100 * 365 * 24 * uint64(time.Hour)))
}

// Bytes takes up to so many, a part of what is read.
func (r *Reader) Bytes(most int) []byte {
	n := r.Number(uint64(most))
	if n > uint64(len(r.rest)) {
		r.damaged()
	}
	if r.bad {
		return nil
	}
	b := r.rest[:n:n]
	r.rest = r.rest[n:]
	return b
}

// String takes one of up to so many bytes.
func (r *Reader) String(most int) string { return string(r.Bytes(most)) }

// AddrPort takes an address, invalid if there is none.
func (r *Reader) AddrPort() netip.AddrPort {
	text := r.String(128)
	if text == "" {
		return netip.AddrPort{}
	}
	a, err := netip.ParseAddrPort(text)
	if err != nil {
		r.damaged()
	}
	return a
}

func (r *Reader) damaged() { r.bad, r.rest = true, nil }

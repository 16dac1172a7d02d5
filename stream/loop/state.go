package loop

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"time"
)

// snapshot is what a server knows of a connection, as it is handed to another.
type snapshot struct {
	kind                 string
	id, in, out          uint64
	age, quiet, reported time.Duration // since it began, a byte moved, its totals were reported
	remote               netip.AddrPort
	peerName             string
	pos                  uint16
	unreported           bool
	closing              bool
	shut, peerEnded      bool
	cause                cause
	left                 time.Duration // until it is closed, if closing
	line                 []byte
	unsent               []byte
}

// The encoding is a version, a byte of flags, and the fields in order: numbers
// as uvarints, strings and bytes behind their length.
const stateVersion = 1

const (
	stateUnreported = 1 << iota
	stateClosing
	stateShut
	statePeerEnded
	stateFlags = 1<<iota - 1
)

// encode is the inverse of decode.
func (w *snapshot) encode() []byte {
	var f byte
	for i, on := range []bool{w.unreported, w.closing, w.shut, w.peerEnded} {
		if on {
			f |= 1 << i
		}
	}
	remote := ""
	if w.remote.IsValid() {
		remote = w.remote.String()
	}
	b := make([]byte, 0, 128+len(w.line)+len(w.unsent))
	b = append(b, stateVersion, f)
	for _, n := range []uint64{w.id, w.in, w.out, uint64(w.age), uint64(w.quiet), uint64(w.reported), uint64(w.pos), uint64(w.cause), uint64(w.left)} {
		b = binary.AppendUvarint(b, n)
	}
	for _, s := range []string{w.kind, remote, w.peerName} {
		b = append(binary.AppendUvarint(b, uint64(len(s))), s...)
	}
	for _, s := range [][]byte{w.line, w.unsent} {
		b = append(binary.AppendUvarint(b, uint64(len(s))), s...)
	}
	return b
}

var errState = errors.New("the state of the connection is damaged")

// decode reads what encode wrote. The state keeps b.
func (w *snapshot) decode(b []byte) error {
	if len(b) < 2 {
		return errState
	}
	if b[0] != stateVersion {
		return fmt.Errorf("the state of the connection is of version %d: this program knows version %d", b[0], stateVersion)
	}
	f := b[1]
	d := decoder{rest: b[2:]}
	*w = snapshot{
		unreported: f&stateUnreported != 0, closing: f&stateClosing != 0, shut: f&stateShut != 0, peerEnded: f&statePeerEnded != 0,
		id: d.number(1<<63 - 1), in: d.number(1<<64 - 1), out: d.number(1<<64 - 1),
		age: d.duration(), quiet: d.duration(), reported: d.duration(),
		pos: uint16(d.number(patternSize - 1)), cause: cause(d.number(uint64(len(causeNames) - 1))), left: d.duration(),
	}
	w.kind = string(d.bytes(16))
	remote := string(d.bytes(128))
	w.peerName = string(d.bytes(256))
	w.line = d.bytes(maxLine)
	w.unsent = d.bytes(len(b))
	if remote != "" {
		var err error
		if w.remote, err = netip.ParseAddrPort(remote); err != nil {
			return errState
		}
	}
	if d.bad || len(d.rest) > 0 || f&^stateFlags != 0 || w.left > flushTimeout || !w.closing && (w.shut || w.peerEnded) {
		return errState
	}
	return nil
}

// decoder takes fields from the front of rest.
type decoder struct {
	rest []byte
	bad  bool
}

func (d *decoder) number(most uint64) uint64 {
	n, size := binary.Uvarint(d.rest)
	if size <= 0 || n > most {
		d.bad, d.rest = true, nil
		return 0
	}
	d.rest = d.rest[size:]
	return n
}

// duration takes one of up to a hundred years.
func (d *decoder) duration() time.Duration {
	return time.Duration(d.number(100 * 365 * 24 * uint64(time.Hour)))
}

func (d *decoder) bytes(most int) []byte {
	n := int(min(d.number(1<<32), 1<<32))
	if n > most || n > len(d.rest) {
		d.bad, d.rest = true, nil
		return nil
	}
	b := d.rest[:n:n]
	d.rest = d.rest[n:]
	return b
}

package loop

import (
	"errors"
	"fmt"
	"net/netip"
	"time"

	"github.com/fivetuple/fivetuple/internal/fields"
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

// The encoding is as package fields has it.
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
	b := make([]byte, 0, 128+len(w.line)+len(w.unsent))
	b = append(b, stateVersion, fields.Flags(w.unreported, w.closing, w.shut, w.peerEnded))
	b = fields.Append(b, w.id, w.in, w.out, uint64(w.age), uint64(w.quiet), uint64(w.reported), uint64(w.pos), uint64(w.cause), uint64(w.left))
	b = fields.AppendBytes(b, w.kind)
	b = fields.AppendAddrPort(b, w.remote)
	b = fields.AppendBytes(b, w.peerName)
	b = fields.AppendBytes(b, w.line)
	return fields.AppendBytes(b, w.unsent)
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
	r := fields.Read(b[2:])
	*w = snapshot{
		unreported: f&stateUnreported != 0, closing: f&stateClosing != 0, shut: f&stateShut != 0, peerEnded: f&statePeerEnded != 0,
		id: r.Number(1<<63 - 1), in: r.Number(1<<64 - 1), out: r.Number(1<<64 - 1),
		age: r.Duration(), quiet: r.Duration(), reported: r.Duration(),
		pos: uint16(r.Number(patternSize - 1)), cause: cause(r.Number(uint64(len(causeNames) - 1))), left: r.Duration(),
		kind: r.String(16), remote: r.AddrPort(), peerName: r.String(256), line: r.Bytes(maxLine), unsent: r.Bytes(len(b)),
	}
	if !r.Whole() || f&^stateFlags != 0 || w.left > flushTimeout || !w.closing && (w.shut || w.peerEnded) {
		return errState
	}
	return nil
}

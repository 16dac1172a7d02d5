package splice

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"time"
)

// snapshot is what a server knows of a pair, as it is handed to another.
type snapshot struct {
	id                         uint64
	state                      state
	age, quiet, reported       time.Duration // since it began, a byte moved, its totals were reported
	left                       time.Duration // until what is waited for takes too long
	remote, proxy, destination netip.AddrPort
	addr                       netip.AddrPort // the pool's, of the target
	shift                      uint16
	path, name, peerName       string
	unreported, counted        bool
	accepted, targetFirst      bool
	flows                      [2]flowState
}

// flowState is what is known of a direction.
type flowState struct {
	moved uint64
	flags flowFlags // keptFlags
	err   uint16
	rest  []byte // what was read and not yet written
}

// keptFlags are what holds of a direction wherever it is served.
const keptFlags = eof | shut | broken | urgent

// The encoding is a version, a byte of flags, and the fields in order: numbers
// as uvarints, strings and bytes behind their length.
const stateVersion = 1

const stateFlags = 1<<4 - 1

const maxName = 256 // of a path or a host

// encode is the inverse of decode.
func (w *snapshot) encode() []byte {
	var f byte
	for i, on := range []bool{w.unreported, w.counted, w.accepted, w.targetFirst} {
		if on {
			f |= 1 << i
		}
	}
	b := make([]byte, 0, 256+len(w.flows[client].rest)+len(w.flows[target].rest))
	b = append(b, stateVersion, f)
	for _, n := range []uint64{w.id, uint64(w.state), uint64(w.age), uint64(w.quiet), uint64(w.reported), uint64(w.left), uint64(w.shift)} {
		b = binary.AppendUvarint(b, n)
	}
	for _, a := range []netip.AddrPort{w.remote, w.proxy, w.destination, w.addr} {
		text := ""
		if a.IsValid() {
			text = a.String()
		}
		b = appendString(b, text)
	}
	for _, s := range []string{w.path, w.name, w.peerName} {
		b = appendString(b, s)
	}
	for _, x := range w.flows {
		for _, n := range []uint64{x.moved, uint64(x.flags), uint64(x.err)} {
			b = binary.AppendUvarint(b, n)
		}
		b = appendString(b, x.rest)
	}
	return b
}

func appendString[T string | []byte](b []byte, s T) []byte {
	return append(binary.AppendUvarint(b, uint64(len(s))), s...)
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
		unreported: f&1 != 0, counted: f&2 != 0, accepted: f&4 != 0, targetFirst: f&8 != 0,
		id: d.number(1<<63 - 1), state: state(d.number(uint64(relaying))),
		age: d.duration(), quiet: d.duration(), reported: d.duration(), left: d.duration(), shift: uint16(d.number(1<<16 - 1)),
	}
	for _, a := range []*netip.AddrPort{&w.remote, &w.proxy, &w.destination, &w.addr} {
		*a = d.addrPort()
	}
	for _, s := range []*string{&w.path, &w.name, &w.peerName} {
		*s = string(d.bytes(maxName))
	}
	for i := range w.flows {
		w.flows[i] = flowState{moved: d.number(1<<64 - 1), flags: flowFlags(d.number(1<<16 - 1)), err: uint16(d.number(4095)), rest: d.bytes(len(b))}
		d.bad = d.bad || w.flows[i].flags&^keptFlags != 0
	}
	if d.bad || len(d.rest) > 0 || f&^stateFlags != 0 || w.state == free {
		return errState
	}
	if w.state != relaying && len(w.flows[client].rest) > maxPrelude || w.state == relaying && !w.addr.IsValid() && w.path == "" {
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

func (d *decoder) addrPort() netip.AddrPort {
	text := string(d.bytes(128))
	if text == "" {
		return netip.AddrPort{}
	}
	a, err := netip.ParseAddrPort(text)
	if err != nil {
		d.bad = true
	}
	return a
}

package splice

import (
	"errors"
	"fmt"
	"net/netip"
	"time"

	"github.com/fivetuple/fivetuple/internal/fields"
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

// The encoding is as package fields has it.
const stateVersion = 1

const stateFlags = 1<<4 - 1

const maxName = 256 // of a path or a host

// encode is the inverse of decode.
func (w *snapshot) encode() []byte {
	b := make([]byte, 0, 256+len(w.flows[client].rest)+len(w.flows[target].rest))
	b = append(b, stateVersion, fields.Flags(w.unreported, w.counted, w.accepted, w.targetFirst))
	b = fields.Append(b, w.id, uint64(w.state), uint64(w.age), uint64(w.quiet), uint64(w.reported), uint64(w.left), uint64(w.shift))
	for _, a := range []netip.AddrPort{w.remote, w.proxy, w.destination, w.addr} {
		b = fields.AppendAddrPort(b, a)
	}
	for _, s := range []string{w.path, w.name, w.peerName} {
		b = fields.AppendBytes(b, s)
	}
	for _, x := range w.flows {
		b = fields.Append(b, x.moved, uint64(x.flags), uint64(x.err))
		b = fields.AppendBytes(b, x.rest)
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
	r := fields.Read(b[2:])
	*w = snapshot{
		unreported: f&1 != 0, counted: f&2 != 0, accepted: f&4 != 0, targetFirst: f&8 != 0,
		id: r.Number(1<<63 - 1), state: state(r.Number(uint64(relaying))),
		age: r.Duration(), quiet: r.Duration(), reported: r.Duration(), left: r.Duration(), shift: uint16(r.Number(1<<16 - 1)),
		remote: r.AddrPort(), proxy: r.AddrPort(), destination: r.AddrPort(), addr: r.AddrPort(),
		path: r.String(maxName), name: r.String(maxName), peerName: r.String(maxName),
	}
	var all flowFlags
	for i := range w.flows {
		w.flows[i] = flowState{moved: r.Number(1<<64 - 1), flags: flowFlags(r.Number(1<<16 - 1)), err: uint16(r.Number(4095)), rest: r.Bytes(len(b))}
		all |= w.flows[i].flags
	}
	if !r.Whole() || f&^stateFlags != 0 || all&^keptFlags != 0 || w.state == free {
		return errState
	}
	if w.state != relaying && len(w.flows[client].rest) > maxPrelude || w.state == relaying && !w.addr.IsValid() && w.path == "" {
		return errState
	}
	return nil
}

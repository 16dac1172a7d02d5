package sessions

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"time"
)

// snapshot is what a server knows of a session, as it is handed to another. Where
// its socket leads the kernel knows.
type snapshot struct {
	id                    uint64
	packetsIn, packetsOut uint64
	bytesIn, bytesOut     uint64
	dropped               uint64
	age, quiet, reported  time.Duration // since it began, a datagram came, its totals were reported
	client                netip.AddrPort
	local                 netip.Addr     // that replies leave from; none leaves it to the kernel
	zone                  uint32         // interface index, if one of them is of a link alone
	socket                netip.AddrPort // that the client writes to
	cookie                uint64         // of that socket
	replied, unreported   bool
}

// The encoding is a version, a byte of flags, and the fields in order: numbers
// as uvarints, addresses as texts behind their length.
const stateVersion = 1

const (
	stateReplied = 1 << iota
	stateUnreported
	stateFlags = 1<<iota - 1
)

// encode is the inverse of decode.
func (w *snapshot) encode() []byte {
	var f byte
	for i, on := range []bool{w.replied, w.unreported} {
		if on {
			f |= 1 << i
		}
	}
	b := make([]byte, 0, 160)
	b = append(b, stateVersion, f)
	for _, n := range []uint64{w.id, w.packetsIn, w.packetsOut, w.bytesIn, w.bytesOut, w.dropped,
		uint64(w.age), uint64(w.quiet), uint64(w.reported), uint64(w.zone), w.cookie} {
		b = binary.AppendUvarint(b, n)
	}
	local := ""
	if w.local.IsValid() {
		local = w.local.String()
	}
	for _, s := range []string{w.client.String(), local, w.socket.String()} {
		b = append(binary.AppendUvarint(b, uint64(len(s))), s...)
	}
	return b
}

var errState = errors.New("the state of the session is damaged")

// decode reads what encode wrote.
func (w *snapshot) decode(b []byte) error {
	if len(b) < 2 {
		return errState
	}
	if b[0] != stateVersion {
		return fmt.Errorf("the state of the session is of version %d: this program knows version %d", b[0], stateVersion)
	}
	f := b[1]
	d := decoder{rest: b[2:]}
	*w = snapshot{
		replied: f&stateReplied != 0, unreported: f&stateUnreported != 0,
		id: d.number(1<<63 - 1), packetsIn: d.number(1<<63 - 1), packetsOut: d.number(1<<63 - 1),
		bytesIn: d.number(1<<63 - 1), bytesOut: d.number(1<<63 - 1), dropped: d.number(1<<63 - 1),
		age: d.duration(), quiet: d.duration(), reported: d.duration(),
		zone: uint32(d.number(1<<32 - 1)), cookie: d.number(1<<64 - 1),
	}
	client, local, socket := d.text(), d.text(), d.text()
	var errs [3]error
	w.client, errs[0] = netip.ParseAddrPort(client)
	if local != "" {
		w.local, errs[1] = netip.ParseAddr(local)
	}
	w.socket, errs[2] = netip.ParseAddrPort(socket)
	if d.bad || len(d.rest) > 0 || f&^stateFlags != 0 || errors.Join(errs[:]...) != nil || w.client.Port() == 0 || w.local.Zone() != "" {
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

func (d *decoder) text() string {
	n := d.number(128)
	if n > uint64(len(d.rest)) {
		d.bad, d.rest = true, nil
		return ""
	}
	s := string(d.rest[:n])
	d.rest = d.rest[n:]
	return s
}

package sessions

import (
	"errors"
	"fmt"
	"net/netip"
	"time"

	"github.com/fivetuple/fivetuple/internal/fields"
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

// The encoding is as package fields has it.
const stateVersion = 1

const stateFlags = 1<<2 - 1

const maxAddr = 128 // bytes of an address in text

// encode is the inverse of decode.
func (w *snapshot) encode() []byte {
	b := append(make([]byte, 0, 160), stateVersion, fields.Flags(w.replied, w.unreported))
	b = fields.Append(b, w.id, w.packetsIn, w.packetsOut, w.bytesIn, w.bytesOut, w.dropped,
		uint64(w.age), uint64(w.quiet), uint64(w.reported), uint64(w.zone), w.cookie)
	local := ""
	if w.local.IsValid() {
		local = w.local.String()
	}
	return fields.AppendAddrPort(fields.AppendBytes(fields.AppendAddrPort(b, w.client), local), w.socket)
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
	r := fields.Read(b[2:])
	*w = snapshot{
		replied: f&1 != 0, unreported: f&2 != 0,
		id: r.Number(1<<63 - 1), packetsIn: r.Number(1<<63 - 1), packetsOut: r.Number(1<<63 - 1),
		bytesIn: r.Number(1<<63 - 1), bytesOut: r.Number(1<<63 - 1), dropped: r.Number(1<<63 - 1),
		age: r.Duration(), quiet: r.Duration(), reported: r.Duration(),
		zone: uint32(r.Number(1<<32 - 1)), cookie: r.Number(1<<64 - 1), client: r.AddrPort(),
	}
	var err error
	if local := r.String(maxAddr); local != "" {
		w.local, err = netip.ParseAddr(local)
	}
	w.socket = r.AddrPort()
	if !r.Whole() || f&^stateFlags != 0 || err != nil || w.client.Port() == 0 || !w.socket.IsValid() || w.local.Zone() != "" {
		return errState
	}
	return nil
}

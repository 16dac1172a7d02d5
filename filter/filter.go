// Package filter is the language that chooses sockets (and later packets and
// events): "tcp and dst port 443", "state established and not src 10.0.0.0/8".
package filter

import "net/netip"

// Subject is what a filter is asked about: a row of the socket table, say.
type Subject interface {
	// Any says whether the test holds for one of the subject's values of the
	// field. What a subject has not, or what is not known of it, has no value.
	Any(f Field, test func(Value) bool) bool
}

// Value is one value of a field, in the member that fits the kind of field.
type Value struct {
	Number uint64 // numbers, sizes in bytes, durations in ns, states, protocols
	Text   string // names and paths
	Addr   netip.Addr
}

// Field is a thing that a term of a filter compares.
type Field uint8

// The fields of sockets, with the member of [Value] they use.
const (
	FieldNone       Field = iota
	FieldProtocol         // Number: a fivetuple.Network
	FieldFamily           // Number: 4, 6; a dual-stack socket has both
	FieldState            // Number: a fivetuple.State
	FieldLocalAddr        // Addr
	FieldRemoteAddr       // Addr
	FieldLocalPort        // Number
	FieldRemotePort       // Number
	FieldName             // Text: of a Unix socket
	FieldPeerName         // Text: what the peer of a Unix socket is bound to
	FieldDevice           // Text: SO_BINDTODEVICE; Number: its index
	FieldMark             // Number
	FieldCgroup           // Number: cgroup id; Text: path
	FieldCookie           // Number
	FieldInode            // Number
	FieldNetns            // Number: id; Text: name
	FieldUser             // Number: uid; Text: name
	FieldPID              // Number, one for each holder
	FieldCommand          // Text, one for each holder
	FieldUnit             // Text: systemd unit, one for each holder
	FieldContainer        // Text: container id or name, one for each holder
	FieldRTT              // Number: ns
	FieldRetrans          // Number: segments retransmitted in all
	FieldSendQueue        // Number: bytes
	FieldRecvQueue        // Number: bytes
	FieldCwnd             // Number: segments
	FieldAge              // Number: ns, where it is known when the socket was opened
	FieldRate             // Number: bytes per second, both directions, where it was measured
	FieldSent             // Number: bytes
	FieldReceived         // Number: bytes
	FieldDrops            // Number
)

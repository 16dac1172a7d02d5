// Package stats says what happened on the sockets that Fivetuple itself runs:
// one [Event] for each thing that happens, handed to a [Sink], and [Counters]
// that add them up.
//
// Engines (stream, datagram, relay) make events and know no sink; counters,
// history, metrics and the log are sinks and know no engine. The package uses
// no kernel interface and works everywhere.
package stats

import (
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/fivetuple/fivetuple"
)

// Kind is what happened.
type Kind uint8

// The kinds of events. The zero value is none.
const (
	KindNone   Kind = iota
	Listen          // a socket listens, or is bound and receives
	Connect         // an outgoing connection is established
	Accept          // an incoming connection is accepted, or a new UDP peer seen
	Data            // a long connection's totals so far, reported at intervals
	Disconnect      // a connection ended, with its cause, totals and final TCP_INFO
	Error           // something failed; the service goes on
	Close           // a listening socket is closed
	Forward         // an accepted connection, or a UDP session, goes on to a target; Tuple is the socket to that
)

var kindNames = [...]string{"", "listen", "connect", "accept", "data", "disconnect", "error", "close", "forward"}

// Kinds lists every kind in order.
func Kinds() []Kind { return []Kind{Listen, Connect, Accept, Data, Disconnect, Error, Close, Forward} }

// String returns the kind in lower case.
func (k Kind) String() string {
	if int(k) < len(kindNames) {
		return kindNames[k]
	}
	return fmt.Sprintf("kind(%d)", uint8(k))
}

// ParseKind is the inverse of [Kind.String].
func ParseKind(s string) (Kind, error) {
	for _, k := range Kinds() {
		if kindNames[k] == s {
			return k, nil
		}
	}
	return KindNone, fmt.Errorf("unknown event kind %q: want one of %s", s, strings.Join(kindNames[1:], ", "))
}

// MarshalText implements [encoding.TextMarshaler].
func (k Kind) MarshalText() ([]byte, error) { return []byte(k.String()), nil }

// UnmarshalText implements [encoding.TextUnmarshaler].
func (k *Kind) UnmarshalText(b []byte) (err error) {
	*k, err = ParseKind(string(b))
	return err
}

// Event is one thing that happened on one socket.
type Event struct {
	Time    time.Time
	Kind    Kind
	Service string          // the name of the service it happened to, "" for none
	Tuple   fivetuple.Tuple // Local is this side
	Conn    uint64          // the connection's id within its service, 0 for none
	// BytesIn and BytesOut are what the connection (or the UDP peer) received
	// and sent from its beginning until this event, in Data and Disconnect.
	BytesIn, BytesOut uint64
	// PacketsIn and PacketsOut count datagrams likewise; streams have none.
	PacketsIn, PacketsOut uint64
	Duration              time.Duration // of the connection, in Disconnect
	Cause                 string        // why it ended, in Disconnect: "peer closed", "idle timeout", ...
	Err                   string        // what failed, in Error and in Disconnect
	TCP                   *TCP          // the kernel's last view of a TCP connection, in Disconnect; nil if unknown
	Peer                  *Peer         // who connected, in Accept on a Unix socket; nil if unknown
}

// Peer is the process that connected to a Unix socket, as it was then
// (SO_PEERCRED, unix(7)).
type Peer struct {
	PID int    `json:"pid"` // 0 if unknown: it is of a PID namespace that is not seen from here
	UID uint32 `json:"uid"` // effective
	GID uint32 `json:"gid"`
}

// String is "pid 12 uid 1000 gid 1000", with "pid unknown" for 0.
func (p Peer) String() string {
	pid := "unknown"
	if p.PID != 0 {
		pid = strconv.Itoa(p.PID)
	}
	return fmt.Sprintf("pid %s uid %d gid %d", pid, p.UID, p.GID)
}

// TCP is what of the final TCP_INFO (tcp(7)) is worth keeping.
type TCP struct {
	RTT         time.Duration // smoothed round-trip time
	RTTVar      time.Duration // its variation
	Retransmits uint32        // segments sent again, in total
	Cwnd        uint32        // congestion window in segments
	MSS         uint32        // maximum segment size sent, in bytes
}

// Sink takes events. Record must not block and may be called by many
// goroutines at once; a sink that may be slow goes behind a [Queue].
type Sink interface {
	Record(Event)
}

// SinkFunc makes a function a Sink.
type SinkFunc func(Event)

// Record calls f.
func (f SinkFunc) Record(e Event) { f(e) }

// Tee hands every event to each of the sinks in turn.
func Tee(sinks ...Sink) Sink {
	return SinkFunc(func(e Event) {
		for _, s := range sinks {
			s.Record(e)
		}
	})
}

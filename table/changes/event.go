package changes

import (
	"encoding/json"
	"strconv"
	"time"

	"github.com/fivetuple/fivetuple"
	"github.com/fivetuple/fivetuple/owner"
	"github.com/fivetuple/fivetuple/sockopt"
	"github.com/fivetuple/fivetuple/table"
)

// EventKind is what happened.
type EventKind string

// The kinds of events.
const (
	Open     EventKind = "open"     // a connection, or a socket that has a peer
	Close    EventKind = "close"    // its end
	Listen   EventKind = "listen"   // a socket listens, or is bound and takes datagrams
	Unlisten EventKind = "unlisten" // it does so no more
	Lost     EventKind = "lost"     // the kernel dropped events: closes may be missing
)

// Event is something that happened to a socket.
type Event struct {
	// Time is when it was noticed: of a close that the kernel told of, the
	// moment; of all others, the first look at the table that showed it.
	Time time.Time
	Kind EventKind
	// Row is the socket as it was last seen, with its owners then, and of a
	// close the last TCP_INFO. It is the caller's to keep, and nil for Lost.
	Row *table.Row
	// Seen says whether a look at the table showed the socket while it was
	// open. If not, its owners, inode and user are not known.
	Seen bool
	// Final says whether TCP_INFO is that of the socket's end, rather than of
	// the last look.
	Final bool
	// Duration is how long the socket was open at least, MaxDuration at most;
	// 0 if there is no bound, as it was there before the watch began.
	Duration, MaxDuration time.Duration
	// Err says what went wrong: with the connection, or of Lost with the watch.
	Err string
}

// What a connection's end can tell of it, in [Event].Err.
const (
	errNeverConnected = "no connection was made"
	errReset          = "reset by its process"
	errDisconnected   = "reset by its process, or never connected" // the kernel has forgotten the peer's port
	errUnhashed       = "reset or disconnected; its process still holds it"
	errEndLost        = "its end was lost"
)

// Bytes is what a TCP connection received and sent until the event. It is
// known of sockets with TCP_INFO; up to the last look only if not Final.
//
// The kernel counts a SYN and a FIN as a byte each, which is taken off here. It
// does not tell of a connection that was reset whether there was a FIN: in may
// then be one too low.
func (e *Event) Bytes() (in, out uint64, known bool) {
	if e.Row == nil || e.Row.Info == nil || e.Row.State == fivetuple.StateListen {
		return 0, 0, false
	}
	in, out = payload(e.Row.Info, e.Row.State, e.Final)
	return in, out, true
}

// sentSince is the size of a struct tcp_info that has BytesSent (Linux 4.19).
const sentSince = 216

// payload takes SYN and FIN off the bytes that TCP_INFO counts: those sent have
// a count without them as well; a FIN was received if the last state says so, or
// at the end if our own was acknowledged, too.
func payload(i *sockopt.TCPInfo, state fivetuple.State, final bool) (in, out uint64) {
	in, out = i.BytesReceived, i.BytesAcked
	fin := false
	if i.Size >= sentSince {
		out = min(i.BytesAcked, i.BytesSent-min(i.BytesRetrans, i.BytesSent))
		fin = final && i.BytesAcked > out
	}
	switch state {
	case fivetuple.StateCloseWait, fivetuple.StateLastAck, fivetuple.StateClosing:
		fin = true
	}
	if fin && in > 0 {
		in--
	}
	return in, out
}

// MarshalJSON writes the keys that every command has for an event, and what is
// known beyond: what is not known is left out. Bounds are durations, too:
// duration_s is how long the socket was open at least, duration_max_s at most.
func (e Event) MarshalJSON() ([]byte, error) {
	j := jsonEvent{Time: e.Time, Kind: e.Kind, Err: e.Err}
	if e.Row == nil {
		return json.Marshal(j)
	}
	r := e.Row
	local, remote := r.LocalEnd().String(), r.RemoteEnd().String()
	j.Protocol, j.Local, j.Remote = r.Protocol.String(), &local, &remote
	j.Owners, j.Unit, j.Container, j.Netns, j.Seen = r.Owners, r.Unit, r.Container, r.ID().Netns, &e.Seen
	if r.Cookie != 0 {
		j.Cookie = strconv.FormatUint(r.Cookie, 16)
	}
	if e.Kind == Close || e.Kind == Unlisten {
		if e.Seen {
			j.Duration = seconds(e.Duration)
		}
		if e.MaxDuration > 0 {
			j.MaxDuration = seconds(e.MaxDuration)
		}
		if in, out, known := e.Bytes(); known {
			retrans := r.Info.TotalRetrans
			j.BytesIn, j.BytesOut, j.Retrans, j.Final = &in, &out, &retrans, &e.Final
			if r.Info.RTT != 0 {
				j.RTT = seconds(r.Info.RTT)
			}
		}
	}
	return json.Marshal(j)
}

type jsonEvent struct {
	Time        time.Time      `json:"time"`
	Kind        EventKind      `json:"kind"`
	Protocol    string         `json:"protocol,omitempty"`
	Local       *string        `json:"local,omitempty"`
	Remote      *string        `json:"remote,omitempty"`
	BytesIn     *uint64        `json:"bytes_in,omitempty"`
	BytesOut    *uint64        `json:"bytes_out,omitempty"`
	Duration    *float64       `json:"duration_s,omitempty"`
	MaxDuration *float64       `json:"duration_max_s,omitempty"`
	RTT         *float64       `json:"rtt_s,omitempty"`
	Retrans     *uint32        `json:"retrans,omitempty"`
	Final       *bool          `json:"final,omitempty"`
	Cookie      string         `json:"cookie,omitempty"`
	Netns       uint64         `json:"netns,omitempty"`
	Owners      []owner.Holder `json:"owners,omitempty"`
	Unit        string         `json:"unit,omitempty"`
	Container   string         `json:"container,omitempty"`
	Seen        *bool          `json:"seen,omitempty"`
	Err         string         `json:"error,omitempty"`
}

func seconds(d time.Duration) *float64 {
	s := d.Seconds()
	return &s
}

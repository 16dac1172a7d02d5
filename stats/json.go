package stats

import (
	"encoding/json"
	"time"

	"github.com/fivetuple/fivetuple"
)

// MarshalJSON writes {} for causes where there are none.
func (s ServiceCounters) MarshalJSON() ([]byte, error) {
	type keys ServiceCounters
	if s.Causes == nil {
		s.Causes = map[string]uint64{}
	}
	return json.Marshal(keys(s))
}

// MarshalJSON writes the event with the keys that every command shares; those
// that most events lack are left out where they are empty. Durations are in
// seconds, times in RFC 3339 with nanoseconds.
func (e Event) MarshalJSON() ([]byte, error) {
	j := eventJSON{
		Time: e.Time, Kind: e.Kind, Service: e.Service, Conn: e.Conn,
		Protocol: e.Tuple.Protocol, Local: e.Tuple.Local, Remote: e.Tuple.Remote,
		BytesIn: e.BytesIn, BytesOut: e.BytesOut, PacketsIn: e.PacketsIn, PacketsOut: e.PacketsOut,
		Duration: e.Duration.Seconds(), Cause: e.Cause, Error: e.Err, Peer: e.Peer,
	}
	if t := e.TCP; t != nil {
		j.TCP = &tcpJSON{t.RTT.Seconds(), t.RTTVar.Seconds(), t.Retransmits, t.Cwnd, t.MSS}
	}
	return json.Marshal(j)
}

type eventJSON struct {
	Time       time.Time         `json:"time"`
	Kind       Kind              `json:"kind"`
	Service    string            `json:"service"`
	Conn       uint64            `json:"conn,omitzero"`
	Protocol   fivetuple.Network `json:"protocol"`
	Local      fivetuple.Address `json:"local"`
	Remote     fivetuple.Address `json:"remote"`
	BytesIn    uint64            `json:"bytes_in"`
	BytesOut   uint64            `json:"bytes_out"`
	PacketsIn  uint64            `json:"packets_in,omitzero"`
	PacketsOut uint64            `json:"packets_out,omitzero"`
	Duration   float64           `json:"duration_s"`
	Cause      string            `json:"cause,omitzero"`
	Error      string            `json:"error"`
	TCP        *tcpJSON          `json:"tcp,omitzero"`
	Peer       *Peer             `json:"peer,omitzero"`
}

type tcpJSON struct {
	RTT         float64 `json:"rtt_s"`
	RTTVar      float64 `json:"rttvar_s"`
	Retransmits uint32  `json:"retransmits"`
	Cwnd        uint32  `json:"cwnd"`
	MSS         uint32  `json:"mss"`
}

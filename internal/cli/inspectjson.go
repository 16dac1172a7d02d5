package cli

import (
	"encoding/json"

	"github.com/fivetuple/fivetuple/inspect"
	"github.com/fivetuple/fivetuple/sockopt"
)

// MarshalJSON writes the keys that every command has for a socket, and those of
// this one beside them.
func (r inspected) MarshalJSON() ([]byte, error) {
	more, err := json.Marshal(r.more())
	if err != nil {
		return nil, err
	}
	socket := r.AppendJSON(nil)
	return append(append(socket[:len(socket)-1], ','), more[1:]...), nil
}

func (r inspected) more() inspectedJSON {
	j := inspectedJSON{Schema: schema, Queues: r.Queues, Options: []optionValue{}}
	if r.Missing != nil {
		j.Missing = r.Missing.Error()
	}
	for _, o := range r.Options {
		v := optionValue{Name: o.Option().Name, Level: o.Option().LevelName(), Value: o.Value(), Changed: o.Changed}
		if o.Option().Access != sockopt.ReadOnly && o.Default != "" {
			v.Default = &o.Default
		}
		j.Options = append(j.Options, v)
	}
	if c := r.counters; c != nil {
		j.Counters = &countersJSON{c.ListenOverflows, c.ListenDrops, c.SynCookiesSent, c.SynQueueDrops}
	}
	if v := r.verdict; v != nil {
		j.Verdict = &verdictJSON{v.Cause, v.Direction, v.Confidence, v.Summary, append([]string{}, v.Evidence...), v.Shares}
		j.Samples = newSamplesJSON(v.Delta)
	}
	return j
}

type inspectedJSON struct {
	Schema   int             `json:"schema"`
	Missing  string          `json:"missing,omitempty"` // why there are no options
	Queues   *inspect.Queues `json:"queues,omitempty"`
	Options  []optionValue   `json:"options"`
	Counters *countersJSON   `json:"namespace_counters,omitempty"`
	Samples  *samplesJSON    `json:"samples,omitempty"`
	Verdict  *verdictJSON    `json:"verdict,omitempty"`
}

type optionValue struct {
	Name    string  `json:"name"`
	Level   string  `json:"level"`
	Value   string  `json:"value"`
	Default *string `json:"default"` // null of what has none
	Changed bool    `json:"changed"`
}

type countersJSON struct {
	ListenOverflows uint64 `json:"listen_overflows"`
	ListenDrops     uint64 `json:"listen_drops"`
	SynCookiesSent  uint64 `json:"syn_cookies_sent"`
	SynQueueDrops   uint64 `json:"syn_queue_drops"`
}

type verdictJSON struct {
	Cause      inspect.Cause      `json:"cause"`
	Direction  inspect.Direction  `json:"direction"`
	Confidence inspect.Confidence `json:"confidence"`
	Summary    string             `json:"summary"`
	Evidence   []string           `json:"evidence"`
	Shares     inspect.Shares     `json:"shares"`
}

type samplesJSON struct {
	Samples       int     `json:"samples"`
	Over          float64 `json:"over_s"`
	Busy          float64 `json:"busy_s"`
	RwndLimited   float64 `json:"rwnd_limited_s"`
	SndbufLimited float64 `json:"sndbuf_limited_s"`
	BytesSent     uint64  `json:"bytes_sent"`
	BytesAcked    uint64  `json:"bytes_acked"`
	BytesReceived uint64  `json:"bytes_received"`
	SegsSent      uint32  `json:"data_segs_out"`
	SegsReceived  uint32  `json:"data_segs_in"`
	Retrans       uint32  `json:"retrans"`
	DSACKDups     uint32  `json:"dsack_dups"`
	Timeouts      uint32  `json:"timeouts"`
	Delivered     uint32  `json:"delivered"`
	DeliveredCE   uint32  `json:"delivered_ce"`
	OutOfOrder    uint32  `json:"rcv_ooopack"`
	ReceivedCE    uint32  `json:"received_ce"`
	Waiting       int     `json:"samples_waiting"`
	CwndFull      int     `json:"samples_cwnd_full"`
	Losing        int     `json:"samples_losing"`
	TimedOut      int     `json:"samples_timed_out"`
	WindowClosed  int     `json:"samples_window_closed"`
}

func newSamplesJSON(d inspect.Delta) *samplesJSON {
	return &samplesJSON{
		d.Samples, d.Over.Seconds(), d.Busy.Seconds(), d.RwndLimited.Seconds(), d.SndbufLimited.Seconds(),
		d.BytesSent, d.BytesAcked, d.BytesReceived, d.SegsSent, d.SegsReceived, d.Retrans, d.DSACKDups, d.Timeouts,
		d.Delivered, d.DeliveredCE, d.OutOfOrder, d.ReceivedCE, d.Waiting, d.CwndFull, d.Losing, d.TimedOut, d.WindowClosed,
	}
}

package scan

import (
	"encoding/json"
	"fmt"
	"net/netip"
	"time"

	"github.com/fivetuple/fivetuple"
)

// State is what a scan found out about a port. The zero value is none of them.
type State uint8

const (
	Open     State = iota + 1 // somebody listens
	Closed                    // the host answered that nobody listens
	Filtered                  // no answer, or one that says the port cannot be reached
	Failed                    // it could not be asked, for a reason on this side
)

var stateNames = [...]string{Open: "open", Closed: "closed", Filtered: "filtered", Failed: "error"}

// String returns "open", "closed", "filtered" or, for [Failed], "error".
func (s State) String() string {
	if int(s) < len(stateNames) {
		return stateNames[s]
	}
	return fmt.Sprintf("state(%d)", uint8(s))
}

// MarshalText implements [encoding.TextMarshaler].
func (s State) MarshalText() ([]byte, error) { return []byte(s.String()), nil }

// UnmarshalText implements [encoding.TextUnmarshaler].
func (s *State) UnmarshalText(text []byte) error {
	for state, name := range stateNames {
		if name == string(text) {
			*s = State(state)
			return nil
		}
	}
	return fmt.Errorf("unknown port state %q: want open, closed, filtered or error", text)
}

// Result is what a scan found out about one port.
type Result struct {
	Host     netip.Addr
	Name     string // the host's name, if it was asked for by name
	Port     uint16
	Protocol fivetuple.Network // TCP
	State    State
	Service  string        // the name of the port's service, "" if it has none
	Reason   string        // what shows the state: "connected", "connection refused", "timed out"
	RTT      time.Duration // until the answer came; 0 unless State is Open or Closed
	Err      error         // why the port could not be asked; nil unless State is Failed
}

// MarshalJSON writes the keys that every command shares for a port found, and
// name if there is one. Where there is no round-trip time rtt_s is null.
func (r Result) MarshalJSON() ([]byte, error) {
	j := resultJSON{r.Host, r.Name, r.Port, r.Protocol, r.State, r.Service, r.Reason, nil}
	if r.RTT > 0 {
		rtt := r.RTT.Seconds()
		j.RTT = &rtt
	}
	return json.Marshal(j)
}

type resultJSON struct {
	Host     netip.Addr        `json:"host"`
	Name     string            `json:"name,omitempty"`
	Port     uint16            `json:"port"`
	Protocol fivetuple.Network `json:"protocol"`
	State    State             `json:"state"`
	Service  string            `json:"service"`
	Reason   string            `json:"reason"`
	RTT      *float64          `json:"rtt_s"`
}

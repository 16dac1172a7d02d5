package fivetuple

import (
	"fmt"
	"strconv"
	"strings"
)

// State is a socket's state as the kernel numbers it (include/net/tcp_states.h).
// UDP and Unix sockets use the same numbers: CLOSE when unconnected,
// ESTABLISHED when connected.
type State uint8

// The kernel's TCP states. The zero value means that the state is not known.
const (
	StateUnknown State = iota
	StateEstablished
	StateSynSent
	StateSynRecv
	StateFinWait1
	StateFinWait2
	StateTimeWait
	StateClose
	StateCloseWait
	StateLastAck
	StateListen
	StateClosing
	StateNewSynRecv // a request socket: SYN received, no full socket yet
)

var stateNames = [...]string{
	"UNKNOWN", "ESTABLISHED", "SYN_SENT", "SYN_RECV", "FIN_WAIT1", "FIN_WAIT2", "TIME_WAIT",
	"CLOSE", "CLOSE_WAIT", "LAST_ACK", "LISTEN", "CLOSING", "NEW_SYN_RECV",
}

// States lists every kernel state in the kernel's order, without StateUnknown.
func States() []State {
	all := make([]State, 0, len(stateNames)-1)
	for s := StateEstablished; int(s) < len(stateNames); s++ {
		all = append(all, s)
	}
	return all
}

// String returns the kernel's upper-case name: "ESTABLISHED", "TIME_WAIT".
func (s State) String() string {
	if int(s) < len(stateNames) {
		return stateNames[s]
	}
	return fmt.Sprintf("STATE_%d", uint8(s))
}

// ParseState reads a kernel state name in any case, with "-" or "_" between
// words, or as ss(8) abbreviates it ("ESTAB", "UNCONN").
func ParseState(name string) (State, error) {
	n := strings.ReplaceAll(strings.ToUpper(name), "-", "_")
	switch n {
	case "ESTAB":
		return StateEstablished, nil
	case "UNCONN", "CLOSED":
		return StateClose, nil
	case "FIN_WAIT_1":
		return StateFinWait1, nil
	case "FIN_WAIT_2":
		return StateFinWait2, nil
	case "LISTENING":
		return StateListen, nil
	}
	for s, known := range stateNames {
		if n == known {
			return State(s), nil
		}
	}
	if number, ok := strings.CutPrefix(n, "STATE_"); ok { // of a newer kernel, as String writes it
		if v, err := strconv.ParseUint(number, 10, 8); err == nil && int(v) >= len(stateNames) {
			return State(v), nil
		}
	}
	return StateUnknown, fmt.Errorf("unknown socket state %q: want one of %s", name, strings.Join(stateNames[1:], ", "))
}

// MarshalText implements [encoding.TextMarshaler].
func (s State) MarshalText() ([]byte, error) { return []byte(s.String()), nil }

// UnmarshalText implements [encoding.TextUnmarshaler].
func (s *State) UnmarshalText(b []byte) (err error) {
	*s, err = ParseState(string(b))
	return err
}

// Phase is the state of a socket in the five words most people need.
type Phase uint8

// The phases of a socket's life.
const (
	PhaseClosed Phase = iota
	PhaseListening
	PhaseConnecting
	PhaseConnected
	PhaseClosing
)

var phaseNames = [...]string{"closed", "listening", "connecting", "connected", "closing"}

// String returns the phase in lower case.
func (p Phase) String() string {
	if int(p) < len(phaseNames) {
		return phaseNames[p]
	}
	return fmt.Sprintf("phase(%d)", uint8(p))
}

// MarshalText implements [encoding.TextMarshaler].
func (p Phase) MarshalText() ([]byte, error) { return []byte(p.String()), nil }

// UnmarshalText implements [encoding.TextUnmarshaler].
func (p *Phase) UnmarshalText(b []byte) error {
	for i, name := range phaseNames {
		if strings.EqualFold(string(b), name) {
			*p = Phase(i)
			return nil
		}
	}
	return fmt.Errorf("unknown phase %q: want one of %s", b, strings.Join(phaseNames[:], ", "))
}

// Phase derives the simple state: a connection is closing from the first FIN
// sent or received until the kernel has forgotten it (TIME_WAIT included).
func (s State) Phase() Phase {
	switch s {
	case StateListen:
		return PhaseListening
	case StateSynSent, StateSynRecv, StateNewSynRecv:
		return PhaseConnecting
	case StateEstablished:
		return PhaseConnected
	case StateFinWait1, StateFinWait2, StateCloseWait, StateLastAck, StateClosing, StateTimeWait:
		return PhaseClosing
	}
	return PhaseClosed
}

package fivetuple

import (
	"strings"
	"testing"
)

func TestStatesAreTheKernelsTwelve(t *testing.T) {
	// include/net/tcp_states.h, TCP_ESTABLISHED = 1 on.
	want := "ESTABLISHED SYN_SENT SYN_RECV FIN_WAIT1 FIN_WAIT2 TIME_WAIT CLOSE CLOSE_WAIT LAST_ACK LISTEN CLOSING NEW_SYN_RECV"
	var got []string
	for i, s := range States() {
		if int(s) != i+1 {
			t.Errorf("%v has number %d, want %d", s, s, i+1)
		}
		back, err := ParseState(strings.ToLower(s.String()))
		if err != nil || back != s {
			t.Errorf("%v parses back as %v, %v", s, back, err)
		}
		got = append(got, s.String())
	}
	if g := strings.Join(got, " "); g != want {
		t.Errorf("got %s, want %s", g, want)
	}
}

func TestPhaseOfEachState(t *testing.T) {
	want := map[Phase][]State{
		PhaseListening:  {StateListen},
		PhaseConnecting: {StateSynSent, StateSynRecv, StateNewSynRecv},
		PhaseConnected:  {StateEstablished},
		PhaseClosing:    {StateFinWait1, StateFinWait2, StateTimeWait, StateCloseWait, StateLastAck, StateClosing},
		PhaseClosed:     {StateClose, StateUnknown},
	}
	for phase, states := range want {
		for _, s := range states {
			if got := s.Phase(); got != phase {
				t.Errorf("%v is %v, want %v", s, got, phase)
			}
		}
	}
}

func TestParseStateKnowsOtherSpellings(t *testing.T) {
	for name, want := range map[string]State{
		"STATE_13": 13, "estab": StateEstablished, "time-wait": StateTimeWait, "FIN-WAIT-1": StateFinWait1, "unconn": StateClose, "listening": StateListen,
	} {
		if got, err := ParseState(name); err != nil || got != want {
			t.Errorf("%s is %v, %v, want %v", name, got, err, want)
		}
	}
	if _, err := ParseState("sleeping"); err == nil {
		t.Error("an unknown state parsed")
	}
}

package scan_test

import (
	"encoding/json"
	"net/netip"
	"testing"
	"time"

	"github.com/fivetuple/fivetuple"
	"github.com/fivetuple/fivetuple/scan"
)

func TestResultJSON(t *testing.T) {
	for _, tt := range []struct {
		result scan.Result
		want   string
	}{
		{
			scan.Result{Host: netip.MustParseAddr("127.0.0.1"), Name: "localhost", Port: 80, Protocol: fivetuple.TCP,
				State: scan.Open, Service: "http", Reason: "connected", RTT: 1500 * time.Microsecond},
			`{"host":"127.0.0.1","name":"localhost","port":80,"protocol":"tcp","state":"open","service":"http","reason":"connected","rtt_s":0.0015}`,
		},
		{
			scan.Result{Host: netip.MustParseAddr("fe80::1%eth0"), Port: 4, Protocol: fivetuple.TCP, State: scan.Filtered, Reason: "timed out"},
			`{"host":"fe80::1%eth0","port":4,"protocol":"tcp","state":"filtered","service":"","reason":"timed out","rtt_s":null}`,
		},
	} {
		got, err := json.Marshal(tt.result)
		if err != nil || string(got) != tt.want {
			t.Errorf("got %s, %v, want %s", got, err, tt.want)
		}
	}
}

func TestStateText(t *testing.T) {
	for state, want := range map[scan.State]string{scan.Open: "open", scan.Closed: "closed", scan.Filtered: "filtered", scan.Failed: "error"} {
		var back scan.State
		if err := back.UnmarshalText([]byte(state.String())); state.String() != want || back != state || err != nil {
			t.Errorf("got %s, read back as %v, %v, want %s", state, back, err, want)
		}
	}
	var state scan.State
	if err := state.UnmarshalText([]byte("ajar")); err == nil {
		t.Errorf("ajar: got %v, want an error", state)
	}
	if got, want := scan.State(9).String(), "state(9)"; got != want {
		t.Errorf("got %s, want %s", got, want)
	}
}

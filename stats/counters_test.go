package stats

import (
	"encoding/json"
	"math"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

func at(s int64) time.Time { return time.Unix(s, 0) }

func TestCountersAddUpByService(t *testing.T) {
	var c Counters
	for _, e := range []Event{
		{Time: at(5), Kind: Listen, Service: "web"},
		{Time: at(1), Kind: Listen, Service: "web"}, // the clock was set back
		{Time: at(6), Kind: Accept, Service: "web", Conn: 1},
		{Time: at(6), Kind: Accept, Service: "web", Conn: 2},
		{Time: at(6), Kind: Accept, Service: "web", Conn: 3},
		{Time: at(6), Kind: Connect, Service: "web", Conn: 4},
		{Time: at(7), Kind: Data, Service: "web", Conn: 1, BytesIn: 10, BytesOut: 20, PacketsIn: 1, PacketsOut: 2},
		{Time: at(7), Kind: Data, Service: "web", Conn: 2, BytesIn: 1000},
		{Time: at(8), Kind: Data, Service: "web", Conn: 1, BytesIn: 15, BytesOut: 20, PacketsIn: 2, PacketsOut: 2},
		{Time: at(9), Kind: Disconnect, Service: "web", Conn: 1, BytesIn: 16, BytesOut: 21, PacketsIn: 3, PacketsOut: 4, Cause: "peer closed"},
		{Time: at(9), Kind: Disconnect, Service: "web", Conn: 3, BytesIn: 100, Cause: "idle timeout"},
		{Time: at(9), Kind: Disconnect, Service: "web", Conn: 4, BytesIn: 200},
		{Time: at(9), Kind: Close, Service: "web"},
		{Time: at(9), Kind: Error, Service: "web"},
		{Time: at(2), Kind: Accept, Service: "api", Conn: 1},
		{Time: at(2), Kind: Data, Service: "api", BytesIn: 5},       // no id: says nothing
		{Time: at(3), Kind: Disconnect, Service: "api", BytesIn: 7}, // no id: counts whole
		{Time: at(3), Kind: Disconnect, Service: "api", BytesIn: 7},
	} {
		c.Record(e)
	}
	web := ServiceCounters{
		Service: "web", Listeners: 1, Live: 1, Connections: 4, Accepted: 3, Connected: 1, Disconnected: 3,
		Causes: map[string]uint64{"peer closed": 1, "idle timeout": 1, UnknownCause: 1}, Errors: 1,
		BytesIn: 1316, BytesOut: 21, PacketsIn: 3, PacketsOut: 4, First: at(1), Last: at(9),
	}
	api := ServiceCounters{
		Service: "api", Live: 0, Connections: 1, Accepted: 1, Disconnected: 2,
		Causes: map[string]uint64{UnknownCause: 2}, BytesIn: 14, First: at(2), Last: at(3),
	}
	rows := c.Snapshot()
	if diff := cmp.Diff([]ServiceCounters{api, web}, rows); diff != "" {
		t.Errorf("snapshot (-want +got):\n%s", diff)
	}
	total := ServiceCounters{
		Listeners: 1, Live: 1, Connections: 5, Accepted: 4, Connected: 1, Disconnected: 5,
		Causes: map[string]uint64{"peer closed": 1, "idle timeout": 1, UnknownCause: 3}, Errors: 1,
		BytesIn: 1330, BytesOut: 21, PacketsIn: 3, PacketsOut: 4, First: at(1), Last: at(9),
	}
	if diff := cmp.Diff(total, Total(rows)); diff != "" {
		t.Errorf("total (-want +got):\n%s", diff)
	}
	if n := len(c.services["web"].reported); n != 1 {
		t.Errorf("totals of %d connections are kept, want only that of the one alive", n)
	}
	rows[1].Causes["peer closed"] = 99
	if got := c.Snapshot()[1].Causes["peer closed"]; got != 1 {
		t.Errorf("a snapshot shares its causes with the counters: got %d", got)
	}
}

func TestCountersOfManyWriters(t *testing.T) {
	var c Counters
	var writers sync.WaitGroup
	for w := range uint64(8) {
		writers.Go(func() {
			for i := range uint64(1000) {
				c.Record(Event{Kind: Accept, Service: "s", Conn: w*1000 + i + 1})
				c.Record(Event{Kind: Data, Service: "s", Conn: w*1000 + i + 1, BytesIn: 4})
				c.Record(Event{Kind: Disconnect, Service: "s", Conn: w*1000 + i + 1, BytesIn: 5})
				c.Snapshot()
			}
		})
	}
	writers.Wait()
	if got := c.Snapshot()[0]; got.BytesIn != 40_000 || got.Live != 0 || got.Connections != 8000 {
		t.Errorf("got %+v, want 40000 bytes in of 8000 connections, none alive", got)
	}
}

func TestJSONKeys(t *testing.T) {
	e := Event{
		Time: time.Date(2025, 1, 2, 3, 4, 5, 6, time.UTC), Kind: Disconnect, Service: "echo", Conn: 3,
		BytesIn: 1, BytesOut: 2, Duration: 1500 * time.Millisecond, Cause: "peer closed",
		TCP: &TCP{RTT: time.Millisecond, MSS: 1448},
	}
	for _, tc := range []struct {
		v    any
		want string
	}{
		{e, `{"time":"2025-01-02T03:04:05.000000006Z","kind":"disconnect","service":"echo","conn":3,"protocol":"","local":"","remote":"",` +
			`"bytes_in":1,"bytes_out":2,"duration_s":1.5,"cause":"peer closed","error":"",` +
			`"tcp":{"rtt_s":0.001,"rttvar_s":0,"retransmits":0,"cwnd":0,"mss":1448}}`},
		{Event{Kind: Accept, Conn: 1, Peer: &Peer{PID: 12, UID: 1000, GID: 100}},
			`{"time":"0001-01-01T00:00:00Z","kind":"accept","service":"","conn":1,"protocol":"","local":"","remote":"",` +
				`"bytes_in":0,"bytes_out":0,"duration_s":0,"error":"","peer":{"pid":12,"uid":1000,"gid":100}}`},
		{ServiceCounters{Service: "echo", Causes: map[string]uint64{"reset": 1}},
			`{"service":"echo","listeners":0,"live":0,"connections":0,"accepted":0,"connected":0,"disconnected":0,"causes":{"reset":1},` +
				`"unfinished":0,"errors":0,"bytes_in":0,"bytes_out":0,"packets_in":0,"packets_out":0}`},
		{ServiceCounters{}, // no cause is not null
			`{"service":"","listeners":0,"live":0,"connections":0,"accepted":0,"connected":0,"disconnected":0,"causes":{},` +
				`"unfinished":0,"errors":0,"bytes_in":0,"bytes_out":0,"packets_in":0,"packets_out":0}`},
	} {
		got, err := json.Marshal(tc.v)
		if err != nil || string(got) != tc.want {
			t.Errorf("got  %s, %v\nwant %s", got, err, tc.want)
		}
	}
}

func TestPeerInWords(t *testing.T) {
	for p, want := range map[Peer]string{
		{PID: 12, UID: 1000, GID: 1000}:            "pid 12 uid 1000 gid 1000",
		{UID: math.MaxUint32, GID: math.MaxUint32}: "pid unknown uid 4294967295 gid 4294967295",
	} {
		if got := p.String(); got != want {
			t.Errorf("got %q, want %q", got, want)
		}
	}
}

func TestKindsReadBackAsWritten(t *testing.T) {
	for _, k := range Kinds() {
		if got, err := ParseKind(k.String()); got != k || err != nil {
			t.Errorf("ParseKind(%q) = %v, %v", k.String(), got, err)
		}
	}
	for _, bad := range []string{"", "Listen", "kind(9)"} {
		if _, err := ParseKind(bad); err == nil || !strings.Contains(err.Error(), "want one of") {
			t.Errorf("ParseKind(%q): got error %v", bad, err)
		}
	}
}

package sessions

import (
	"net/netip"
	"testing"
	"time"
)

var full = snapshot{
	id: 1, packetsIn: 2, packetsOut: 3, bytesIn: 4, bytesOut: 5, dropped: 6, age: time.Second, quiet: 2, reported: 3,
	client: netip.MustParseAddrPort("[fe80::1]:53"), local: netip.MustParseAddr("fe80::2"), zone: 7,
	socket: netip.MustParseAddrPort("[::]:53"), cookie: 1<<64 - 1, replied: true, unreported: true,
}

func TestStateIsReadAsItWasWritten(t *testing.T) {
	for _, w := range []snapshot{
		full,
		{client: netip.MustParseAddrPort("127.0.0.1:1"), socket: netip.MustParseAddrPort("127.0.0.1:2")},
	} {
		var got snapshot
		if err := got.decode(w.encode()); err != nil || got != w {
			t.Errorf("got %+v, %v, want %+v", got, err, w)
		}
	}
}

func TestDamagedStateIsRefused(t *testing.T) {
	good := full.encode()
	for n := range good {
		if err := new(snapshot).decode(good[:n]); err == nil {
			t.Errorf("%d bytes of %d are taken", n, len(good))
		}
	}
	for name, b := range map[string][]byte{
		"more bytes":      append(append([]byte(nil), good...), 0),
		"another version": append([]byte{stateVersion + 1}, good[1:]...),
		"unknown flags":   append([]byte{stateVersion, stateFlags + 1}, good[2:]...),
	} {
		if err := new(snapshot).decode(b); err == nil {
			t.Errorf("%s: taken", name)
		}
	}
}

func FuzzDecodeState(f *testing.F) {
	f.Add(full.encode())
	f.Add((&snapshot{client: netip.MustParseAddrPort("127.0.0.1:1"), socket: netip.MustParseAddrPort("127.0.0.1:2")}).encode())
	f.Fuzz(func(t *testing.T, b []byte) {
		var w, again snapshot
		if w.decode(b) != nil {
			return
		}
		if err := again.decode(w.encode()); err != nil || again != w {
			t.Errorf("%+v becomes %+v, %v", w, again, err)
		}
	})
}

package splice

import (
	"bytes"
	"net/netip"
	"reflect"
	"testing"
	"time"
)

func TestAStateIsTheSameWhenRead(t *testing.T) {
	none := [2]flowState{{rest: []byte{}}, {rest: []byte{}}}
	for _, want := range []snapshot{
		{state: introducing, flows: none},
		{
			state: relaying, id: 1 << 60, age: time.Hour, quiet: time.Second, reported: 3, left: time.Minute,
			remote: netip.MustParseAddrPort("[fe80::1%eth0]:65535"), proxy: netip.MustParseAddrPort("10.0.0.1:1"),
			destination: netip.MustParseAddrPort("[::1]:443"), addr: netip.MustParseAddrPort("10.0.0.2:80"), shift: 65535,
			path: "/run/x", name: "*.example", peerName: "@x", unreported: true, counted: true, accepted: true, targetFirst: true,
			flows: [2]flowState{
				{moved: 1<<64 - 1, flags: keptFlags, err: 104, rest: bytes.Repeat([]byte("u"), 100_000)},
				{moved: 5, flags: eof, rest: []byte("d")},
			},
		},
	} {
		var got snapshot
		if err := got.decode(want.encode()); err != nil || !reflect.DeepEqual(got, want) {
			t.Errorf("got %+v, %v, want %+v", got, err, want)
		}
	}
}

func FuzzState(f *testing.F) {
	f.Add((&snapshot{state: greeting}).encode())
	f.Add((&snapshot{state: relaying, id: 3, path: "@x", remote: netip.MustParseAddrPort("127.0.0.1:1"), flows: [2]flowState{{rest: []byte("x"), flags: shut | eof}}}).encode())
	f.Fuzz(func(t *testing.T, b []byte) {
		var w, again snapshot
		if w.decode(b) != nil {
			return
		}
		if w.age < 0 || w.quiet < 0 || w.reported < 0 || w.left < 0 || w.state == free || w.state > relaying || (w.flows[0].flags|w.flows[1].flags)&^keptFlags != 0 {
			t.Errorf("out of range: %+v", w)
		}
		if err := again.decode(w.encode()); err != nil || !reflect.DeepEqual(again, w) {
			t.Errorf("%+v read again is %+v, %v", w, again, err)
		}
	})
}

package loop

import (
	"bytes"
	"net/netip"
	"reflect"
	"testing"
	"time"
)

func TestAStateIsTheSameWhenRead(t *testing.T) {
	for _, want := range []snapshot{
		{kind: "echo", line: []byte{}, unsent: []byte{}},
		{
			kind: "chat", id: 1 << 60, in: 1<<64 - 1, out: 5, age: time.Hour, quiet: time.Second, reported: 3,
			remote: netip.MustParseAddrPort("[fe80::1%eth0]:65535"), peerName: "@x", pos: patternSize - 1,
			unreported: true, closing: true, shut: true, peerEnded: true, cause: causeShutdown, left: flushTimeout,
			line: []byte("hel"), unsent: bytes.Repeat([]byte("u"), 100_000),
		},
	} {
		var got snapshot
		if err := got.decode(want.encode()); err != nil || !reflect.DeepEqual(got, want) {
			t.Errorf("got %+v, %v, want %+v", got, err, want)
		}
	}
}

func FuzzState(f *testing.F) {
	f.Add((&snapshot{kind: "echo"}).encode())
	f.Add((&snapshot{kind: "chat", id: 3, line: []byte("hel"), unsent: []byte("x"), closing: true, remote: netip.MustParseAddrPort("127.0.0.1:1")}).encode())
	f.Fuzz(func(t *testing.T, b []byte) {
		var w, again snapshot
		if w.decode(b) != nil {
			return
		}
		if w.age < 0 || w.quiet < 0 || w.reported < 0 || w.left < 0 || int(w.cause) >= len(causeNames) || w.pos >= patternSize || len(w.line) > maxLine {
			t.Errorf("out of range: %+v", w)
		}
		if err := again.decode(w.encode()); err != nil || !reflect.DeepEqual(again, w) {
			t.Errorf("%+v read again is %+v, %v", w, again, err)
		}
	})
}

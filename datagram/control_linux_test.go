package datagram

import (
	"encoding/binary"
	"net/netip"
	"testing"

	"github.com/fivetuple/fivetuple"
)

func FuzzReadControl(f *testing.F) {
	c := &Conn{local: fivetuple.ParseAddress("[::]:700"), v6: true}
	for _, source := range []string{"10.0.0.1", "fd00::1", "fe80::1"} {
		b := make([]byte, controlOut)
		f.Add(writeControl(b, route{source: netip.MustParseAddr(source), ifindex: 2}))
	}
	f.Fuzz(func(t *testing.T, control []byte) {
		p := Packet{To: c.local}
		c.readControl(&p, control)
		if p.To.AddrPort.Port() != 700 {
			t.Errorf("got port %d, want the socket's", p.To.AddrPort.Port())
		}
		if r := p.route; r.source.IsValid() && (r.source.IsMulticast() || r.source.IsUnspecified() || r.source.Is4In6()) {
			t.Errorf("got a reply from %v", r.source)
		}
	})
}

func TestControlIsReadAsItIsWritten(t *testing.T) {
	c := &Conn{local: fivetuple.ParseAddress("[::]:700"), v6: true}
	for _, want := range []route{
		{source: netip.MustParseAddr("fd00::1")},
		{source: netip.MustParseAddr("fe80::1"), ifindex: 2},
		{source: netip.MustParseAddr("10.0.0.1")},
		{source: netip.MustParseAddr("169.254.0.1"), ifindex: 2},
	} {
		b := make([]byte, controlOut)
		p := Packet{To: c.local}
		c.readControl(&p, writeControl(b, want))
		if p.route != want || p.Interface != want.ifindex {
			t.Errorf("got %+v on interface %d, want %+v", p.route, p.Interface, want)
		}
	}
}

func FuzzICMPError(f *testing.F) {
	refused := binary.NativeEndian.AppendUint32(nil, 111)
	refused = append(refused, 2, 3, 3, 0, 0, 0, 0, 0, 0, 0, 0, 0)
	f.Add(binary.NativeEndian.AppendUint16(refused, 2))
	f.Add(append(binary.NativeEndian.AppendUint16(refused, 2), 0, 0, 10, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0))
	f.Fuzz(func(t *testing.T, b []byte) {
		if e := icmpError(b); e != nil && e.Error() == "" {
			t.Error("an error without text")
		}
	})
}

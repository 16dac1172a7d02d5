package fields

import (
	"bytes"
	"math"
	"net/netip"
	"testing"
	"time"
)

const years = 100 * 365 * 24 * time.Hour

var address = netip.MustParseAddrPort("[fe80::1%eth0]:65535")

// state is one of every field.
func state() []byte {
	b := Append(nil, 0, math.MaxUint64, uint64(years))
	b = AppendBytes(b, "text")
	b = AppendBytes(b, []byte{0, 255})
	b = AppendAddrPort(b, address)
	return AppendAddrPort(b, netip.AddrPort{})
}

func TestFieldsAreTheSameWhenRead(t *testing.T) {
	r := Read(state())
	if n, m, d := r.Number(0), r.Number(math.MaxUint64), r.Duration(); n != 0 || m != math.MaxUint64 || d != years {
		t.Errorf("got %d, %d, %v", n, m, d)
	}
	if s, b := r.String(4), r.Bytes(2); s != "text" || !bytes.Equal(b, []byte{0, 255}) {
		t.Errorf("got %q, %v", s, b)
	}
	if a, none := r.AddrPort(), r.AddrPort(); a != address || none.IsValid() {
		t.Errorf("got %v, %v", a, none)
	}
	if !r.Whole() {
		t.Error("what is whole is damaged")
	}
}

func TestTheEncodingStaysAsItIs(t *testing.T) {
	b := AppendAddrPort(AppendBytes(Append(nil, 300, 1), "ab"), netip.MustParseAddrPort("1.2.3.4:5"))
	if want := "\xac\x02\x01\x02ab\x091.2.3.4:5"; string(b) != want {
		t.Errorf("got %q, want %q", b, want)
	}
	if f := Flags(true, false, false, true); f != 9 {
		t.Errorf("flags are %#x, want 0x9", f)
	}
}

func TestDamageIsNoticed(t *testing.T) {
	for name, tt := range map[string]struct {
		state []byte
		read  func(r *Reader)
	}{
		"nothing":            {nil, func(r *Reader) { r.Number(1) }},
		"half a number":      {[]byte{0x80}, func(r *Reader) { r.Number(math.MaxUint64) }},
		"eleven byte number": {bytes.Repeat([]byte{0xff}, 11), func(r *Reader) { r.Number(math.MaxUint64) }},
		"too high":           {Append(nil, 8), func(r *Reader) { r.Number(7) }},
		"too long ago":       {Append(nil, uint64(years)+1), func(r *Reader) { r.Duration() }},
		"more than allowed":  {AppendBytes(nil, "abc"), func(r *Reader) { r.Bytes(2) }},
		"cut short":          {AppendBytes(nil, "abc")[:3], func(r *Reader) { r.Bytes(3) }},
		"huge length":        {Append(nil, math.MaxUint64), func(r *Reader) { r.Bytes(math.MaxInt) }},
		"no address":         {AppendBytes(nil, "1.2.3.4"), func(r *Reader) { r.AddrPort() }},
		"something left":     {Append(nil, 1, 2), func(r *Reader) { r.Number(1) }},
		"read on":            {Append(nil, 8, 0), func(r *Reader) { r.Number(7); r.Number(0) }},
	} {
		t.Run(name, func(t *testing.T) {
			r := Read(tt.state)
			if tt.read(r); r.Whole() {
				t.Error("it is taken for whole")
			}
		})
	}
}

func TestWhatComesAfterDamageIsZero(t *testing.T) {
	r := Read(Append(nil, 8, 1, 1, 1))
	r.Number(7)
	if n, b, a := r.Number(9), r.Bytes(9), r.AddrPort(); n != 0 || b != nil || a.IsValid() {
		t.Errorf("got %d, %v, %v", n, b, a)
	}
}

func TestBytesHaveNoRoomToGrowIntoWhatFollows(t *testing.T) {
	state := AppendBytes(AppendBytes(nil, "ab"), "cd")
	r := Read(state)
	_ = append(r.Bytes(2), "xyz"...)
	if s := r.String(2); s != "cd" {
		t.Errorf("the next field became %q", s)
	}
}

func FuzzReader(f *testing.F) {
	f.Add(state())
	f.Add(state()[:9])
	f.Fuzz(func(t *testing.T, b []byte) {
		r := Read(b)
		n, d, s, raw, a := r.Number(1<<40), r.Duration(), r.String(300), r.Bytes(len(b)), r.AddrPort()
		if n > 1<<40 || d < 0 || d > years || len(s) > 300 || len(raw) > len(b) {
			t.Errorf("out of range: %d, %v, %d, %d bytes", n, d, len(s), len(raw))
		}
		again := AppendAddrPort(AppendBytes(AppendBytes(Append(nil, n, uint64(d)), s), raw), a)
		if r.Whole() && len(again) > len(b) {
			t.Errorf("%x is longer than %x", again, b)
		}
	})
}

package proxyheader

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"testing/iotest"

	"github.com/pires/go-proxyproto"
)

// v2 is a header of version 2 without its signature: command, family, length, the rest.
func v2(command, family byte, length int, rest string) string {
	return signature + string([]byte{command, family, byte(length >> 8), byte(length)}) + rest
}

const (
	ends4 = "\xcb\x00\x71\x09\xc0\x00\x02\x01\x0f\xa0\x00\x50" // 203.0.113.9:4000, 192.0.2.1:80
	ends6 = "\x20\x01\x0d\xb8\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x05" +
		"\x20\x01\x0d\xb8\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x01\x0f\xa0\x00\x50"
	mixed6 = "\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\xff\xff\xcb\x00\x71\x09" +
		"\x20\x01\x0d\xb8\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x01\x0f\xa0\x00\x50"
)

var (
	client4 = netip.MustParseAddrPort("203.0.113.9:4000")
	dest4   = netip.MustParseAddrPort("192.0.2.1:80")
	client6 = netip.MustParseAddrPort("[2001:db8::5]:4000")
	dest6   = netip.MustParseAddrPort("[2001:db8::1]:80")
	local   = Header{Local: true}
	named4  = Header{Client: client4, Destination: dest4}
	named6  = Header{Client: client6, Destination: dest6}
)

var good = []struct {
	name, header string
	want         Header
}{
	{"1, IPv4", "PROXY TCP4 203.0.113.9 192.0.2.1 4000 80\r\n", named4},
	{"1, IPv6", "PROXY TCP6 2001:db8::5 2001:db8::1 4000 80\r\n", named6},
	{"1, IPv6 in full and upper case", "PROXY TCP6 2001:0DB8:0000:0000:0000:0000:0000:0005 2001:DB8:0:0:0:0:0:1 4000 80\r\n", named6},
	{"1, longest", "PROXY TCP6 ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff ffff:ffff:ffff:ffff:ffff:ffff:ffff:fffe 65535 65535\r\n",
		Header{Client: netip.MustParseAddrPort("[ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff]:65535"), Destination: netip.MustParseAddrPort("[ffff:ffff:ffff:ffff:ffff:ffff:ffff:fffe]:65535")}},
	{"1, shortest", "PROXY TCP6 :: :: 0 0\r\n", Header{Client: netip.MustParseAddrPort("[::]:0"), Destination: netip.MustParseAddrPort("[::]:0")}},
	{"1, mapped", "PROXY TCP6 ::ffff:cb00:7109 ::ffff:c000:201 4000 80\r\n", named4},
	{"1, mapped with dots", "PROXY TCP6 ::ffff:203.0.113.9 ::ffff:192.0.2.1 4000 80\r\n", named4},
	{"1, mixed", "PROXY TCP6 ::ffff:203.0.113.9 2001:db8::1 4000 80\r\n", Header{Client: client4, Destination: dest6}},
	{"1, unknown", "PROXY UNKNOWN\r\n", local},
	{"1, unknown with words", "PROXY UNKNOWN ffff:f...f:ffff \x00 \r 65535 65535\r\n", local},
	{"1, unknown, longest", "PROXY UNKNOWN " + strings.Repeat("x", 107-14-2) + "\r\n", local},
	{"2, IPv4", v2(0x21, 0x11, 12, ends4), named4},
	{"2, IPv6", v2(0x21, 0x21, 36, ends6), named6},
	{"2, mixed", v2(0x21, 0x21, 36, mixed6), Header{Client: client4, Destination: dest6}},
	{"2, TLVs", v2(0x21, 0x11, 12+7, ends4+"\x04\x00\x04\x01\x02\x03\x04"), named4},
	{"2, TLVs that are none", v2(0x21, 0x11, 12+3, ends4+"\xea\xff\xff"), named4},
	{"2, longest", v2(0x21, 0x21, 4096, ends6+strings.Repeat("\xea", 4096-36)), named6},
	{"2, local", v2(0x20, 0, 0, ""), local},
	{"2, local with addresses", v2(0x20, 0x11, 12, ends4), local},
	{"2, local, whose length is not of its family", v2(0x20, 0x21, 5, "12345"), local},
	{"2, local of a family unknown", v2(0x20, 0x55, 2, "12"), local},
	{"2, of no family", v2(0x21, 0, 3, "123"), local},
	{"2, Unix", v2(0x21, 0x31, 216, strings.Repeat("\x00", 216)), local},
	{"2, Unix datagrams", v2(0x21, 0x32, 216, strings.Repeat("a", 216)), local},
}

func TestAHeaderIsReadAndNotAByteMore(t *testing.T) {
	for _, tt := range good {
		for _, next := range []string{"", "x", "\n", "\r\n", "PROXY TCP4 1.2.3.4 5.6.7.8 1 2\r\n", strings.Repeat("\x16\x03\x01", 3000)} {
			h, n, err := Parse([]byte(tt.header + next))
			if h != tt.want || n != len(tt.header) || err != nil {
				t.Errorf("%s: got %+v, %d, %v; want %+v, %d", tt.name, h, n, err, tt.want, len(tt.header))
			}
			for name, r := range map[string]io.Reader{"at once": strings.NewReader(tt.header + next), "by bytes": iotest.OneByteReader(strings.NewReader(tt.header + next))} {
				h, b, err := Read(r)
				left, _ := io.ReadAll(r)
				if h != tt.want || string(b) != tt.header || err != nil || string(left) != next {
					t.Errorf("%s, read %s: got %+v, %q, %v and left %q, want %+v and %q", tt.name, name, h, b, err, left, tt.want, next)
				}
			}
		}
	}
}

func TestEveryBeginningOfAHeaderIsShort(t *testing.T) {
	for _, tt := range good {
		for i := range len(tt.header) {
			if h, n, err := Parse([]byte(tt.header[:i])); err != ErrShort || h != (Header{}) || n != 0 {
				t.Errorf("%s: %q: got %+v, %d, %v; want ErrShort", tt.name, tt.header[:i], h, n, err)
			}
		}
	}
}

// bad are not headers: from the byte after the bar it is clear.
var bad = []struct{ name, sent, want string }{
	{"HTTP", "|GET / HTTP/1.1\r\n", "begin"},
	{"POST", "P|OST", "begin"},
	{"HTTP/2", "PR|I * HTTP/2.0\r\n\r\nSM\r\n\r\n", "begin"},
	{"TLS", "|\x16\x03\x01", "begin"},
	{"lower case", "|proxy TCP4", "begin"},
	{"a blank line", "\r\n|X", "begin"},
	{"the signature but for its end", signature[:11] + "|\r", "begin"},
	{"an early end of line", "PROXY|\r\n", "begin"},
	{"two spaces", "PROXY | TCP4", "invalid protocol"},
	{"another protocol", "PROXY U|DP4 203.0.113.9 192.0.2.1 4000 80\r\n", "invalid protocol"},
	{"a longer protocol", "PROXY TCP4|4 1.2.3.4", "invalid protocol"},
	{"no protocol", "PROXY |\r\n", "invalid protocol"},
	{"a longer UNKNOWN", "PROXY UNKNOWN|S\r\n", "invalid protocol"},
	{"UNKNOWN and CR alone", "PROXY UNKNOWN\r|\r\n", "invalid protocol"},
	{"UNKNOWN and LF alone", "PROXY UNKNOWN|\n", "must end with CR LF"},
	{"no addresses", "PROXY TCP4|\r\n", "invalid address"},
	{"no second address", "PROXY TCP4 203.0.113.9|\r\n", "invalid address"},
	{"no ports", "PROXY TCP4 203.0.113.9 192.0.2.1|\r\n", "invalid port"},
	{"one port", "PROXY TCP4 203.0.113.9 192.0.2.1 4000|\r\n", "invalid port"},
	{"more than there is", "PROXY TCP4 203.0.113.9 192.0.2.1 4000 80| 1\r\n", "more than two addresses"},
	{"a space at the end", "PROXY TCP4 203.0.113.9 192.0.2.1 4000 80| \r\n", "more than two addresses"},
	{"LF alone", "PROXY TCP4 203.0.113.9 192.0.2.1 4000 80|\n", "must end with CR LF"},
	{"CR alone", "PROXY TCP4 203.0.113.9 192.0.2.1 4000 80\r|x\r\n", "invalid port"},
	{"a name", "PROXY TCP4 |localhost 192.0.2.1 4000 80\r\n", "invalid address"},
	{"three numbers", "PROXY TCP4 203.0.113| 192.0.2.1 4000 80\r\n", "invalid address"},
	{"zeros in front", "PROXY TCP4 203.0.113.09| 192.0.2.1 4000 80\r\n", "invalid address"},
	{"digits without end", "PROXY TCP4 111111111111111|1", "invalid address"},
	{"IPv6 for TCP4", "PROXY TCP4 2001|:db8::5 2001:db8::1 4000 80\r\n", "invalid address"},
	{"IPv4 for TCP6", "PROXY TCP6 203.0.113.9| 192.0.2.1 4000 80\r\n", "invalid address"},
	{"a zone", "PROXY TCP6 fe80::1|%eth0 fe80::2 4000 80\r\n", "invalid address"},
	{"no first address", "PROXY TCP4 | 192.0.2.1 4000 80\r\n", "invalid address"},
	{"a port too far", "PROXY TCP4 203.0.113.9 192.0.2.1 6553|6 80\r\n", "invalid port"},
	{"the second port too far", "PROXY TCP4 203.0.113.9 192.0.2.1 80 6553|6\r\n", "invalid port"},
	{"a port with zeros", "PROXY TCP4 203.0.113.9 192.0.2.1 0|80 80\r\n", "invalid port"},
	{"a sign", "PROXY TCP4 203.0.113.9 192.0.2.1 4000 |+80\r\n", "invalid port"},
	{"an empty port", "PROXY TCP4 203.0.113.9 192.0.2.1 4000 |\r\n", "invalid port"},
	{"an empty first port", "PROXY TCP4 203.0.113.9 192.0.2.1 | 80\r\n", "invalid port"},
	{"a line without end", "PROXY UNKNOWN " + strings.Repeat("x", 107-15) + "|x", "within 107 bytes"},
	{"an end too late", "PROXY UNKNOWN " + strings.Repeat("x", 107-15) + "|\r\n", "within 107 bytes"},
	{"version 1 in binary", signature + "|\x11\x11", "version 1"},
	{"version 3", signature + "|\x31\x11", "version 3"},
	{"another command", signature + "|\x22\x11", "command 2"},
	{"another family", signature + "\x21|\x41", "unsupported address family and protocol 0x41"},
	{"another protocol of IPv4", signature + "\x21|\x13", "0x13"},
	{"no protocol of IPv4", signature + "\x21|\x10", "0x10"},
	{"UDP", signature + "\x21|\x12\x00\x0c" + ends4, "names no TCP client"},
	{"UDP over IPv6", signature + "\x21|\x22", "names no TCP client"},
	{"too short for IPv4", signature + "\x21\x11\x00|\x0b", "11 bytes of addresses that have 12"},
	{"too short for IPv6", signature + "\x21\x21\x00|\x23", "35 bytes of addresses that have 36"},
	{"too short for Unix", signature + "\x21\x31\x00|\xd7", "215 bytes of addresses that have 216"},
	{"over 4 KiB", signature + "\x21\x11\x10|\x01", "4113 bytes long, over 4112"},
	{"over 4 KiB, local", signature + "\x20\x11\x10|\x01", "4113 bytes long"},
	{"longest", signature + "\x21\x11|\xff", "over 4112 bytes long"},
}

func TestWhatCannotBecomeAHeaderIsRefusedAtOnce(t *testing.T) {
	for _, tt := range bad {
		before, after, _ := strings.Cut(tt.sent, "|")
		for i := range len(before) + 1 {
			if _, n, err := Parse([]byte(before[:i])); err != ErrShort || n != 0 {
				t.Errorf("%s: %q: got %d, %v; want ErrShort", tt.name, before[:i], n, err)
			}
		}
		for i := 1; i <= len(after); i++ {
			h, n, err := Parse([]byte(before + after[:i]))
			if err == nil || err == ErrShort || n != 0 || h != (Header{}) {
				t.Errorf("%s: %q: got %+v, %d, %v; want another error", tt.name, before+after[:i], h, n, err)
			}
			if i == len(after) && (err == nil || !strings.Contains(err.Error(), tt.want)) {
				t.Errorf("%s: got %v, want %q in it", tt.name, err, tt.want)
			}
		}
	}
}

func TestReadTellsWhatCameOfAnError(t *testing.T) {
	for _, tt := range []struct {
		r    io.Reader
		got  string
		want string
	}{
		{strings.NewReader(""), "", "EOF"},
		{strings.NewReader("PROXY TCP4 203."), "PROXY TCP4 203.", "EOF"},
		{strings.NewReader("GET / HTTP/1.1\r\n\r\n"), "GET / HTTP/1.1\r", "begin"},
		{iotest.ErrReader(errors.New("broken")), "", "broken"},
		{io.MultiReader(strings.NewReader(signature+"\x21\x11\x00\x0c12"), iotest.ErrReader(errors.New("broken"))), signature + "\x21\x11\x00\x0c12", "broken"},
		{emptyReader{}, "", io.ErrNoProgress.Error()},
	} {
		h, b, err := Read(tt.r)
		if h != (Header{}) || string(b) != tt.got || err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("got %+v, %q, %v; want %q, %s", h, b, err, tt.got, tt.want)
		}
	}
}

type emptyReader struct{}

func (emptyReader) Read([]byte) (int, error) { return 0, nil }

func TestAppend(t *testing.T) {
	mapped := netip.AddrPortFrom(netip.AddrFrom16(client4.Addr().As16()), client4.Port())
	zoned := netip.MustParseAddrPort("[fe80::1%eth0]:4000")
	none := netip.AddrPort{}
	for _, tt := range []struct {
		client, destination netip.AddrPort
		v1, v2              string
	}{
		{client4, dest4, "PROXY TCP4 203.0.113.9 192.0.2.1 4000 80\r\n", v2(0x21, 0x11, 12, ends4)},
		{client6, dest6, "PROXY TCP6 2001:db8::5 2001:db8::1 4000 80\r\n", v2(0x21, 0x21, 36, ends6)},
		{client4, dest6, "PROXY TCP6 ::ffff:cb00:7109 2001:db8::1 4000 80\r\n", v2(0x21, 0x21, 36, mixed6)},
		{dest6, client4, "PROXY TCP6 2001:db8::1 ::ffff:cb00:7109 80 4000\r\n", v2(0x21, 0x21, 36, mixed6[16:32]+mixed6[:16]+"\x00\x50\x0f\xa0")},
		{mapped, dest4, "PROXY TCP4 203.0.113.9 192.0.2.1 4000 80\r\n", v2(0x21, 0x11, 12, ends4)},
		{mapped, dest6, "PROXY TCP6 ::ffff:cb00:7109 2001:db8::1 4000 80\r\n", v2(0x21, 0x21, 36, mixed6)},
		{zoned, zoned, "PROXY TCP6 fe80::1 fe80::1 4000 4000\r\n", v2(0x21, 0x21, 36, "\xfe\x80\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x01\xfe\x80\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x01\x0f\xa0\x0f\xa0")},
		{none, none, "PROXY UNKNOWN\r\n", v2(0x20, 0, 0, "")},
		{client4, none, "PROXY UNKNOWN\r\n", v2(0x20, 0, 0, "")},
		{none, dest6, "PROXY UNKNOWN\r\n", v2(0x20, 0, 0, "")},
	} {
		for version, want := range map[int]string{0: "", 1: tt.v1, 2: tt.v2, 3: ""} {
			if got := Append([]byte("before"), version, tt.client, tt.destination); string(got) != "before"+want {
				t.Errorf("version %d of %v to %v: got %q, want %q", version, tt.client, tt.destination, got, "before"+want)
			}
		}
	}
}

func TestAppendStaysWithinItsBoundAndB(t *testing.T) {
	longest := netip.MustParseAddrPort("[ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff]:65535")
	if n := len(Append(nil, 1, longest, longest)); n != MaxAppended {
		t.Errorf("%d bytes, want %d", n, MaxAppended)
	}
	b := make([]byte, 0, MaxAppended)
	for _, client := range []netip.AddrPort{client4, client6, longest, {}} {
		for version := range 3 {
			if n := testing.AllocsPerRun(100, func() { b = Append(b[:0], version, client, dest6) }); n != 0 {
				t.Errorf("version %d of %v allocates %v times", version, client, n)
			}
		}
	}
}

func BenchmarkParse(b *testing.B) {
	for version := 1; version <= 2; version++ {
		b.Run(fmt.Sprint("version ", version), func(b *testing.B) {
			header := Append(nil, version, client6, dest6)
			b.ReportAllocs()
			for b.Loop() {
				if _, n, err := Parse(header); n != len(header) || err != nil {
					b.Fatal(n, err)
				}
			}
		})
	}
}

func BenchmarkAppend(b *testing.B) {
	for version := 1; version <= 2; version++ {
		b.Run(fmt.Sprint("version ", version), func(b *testing.B) {
			header := make([]byte, 0, MaxAppended)
			b.ReportAllocs()
			for b.Loop() {
				header = Append(header[:0], version, client6, dest6)
			}
		})
	}
}

// FuzzParse compares with another implementation, but where that is stricter, or
// less strict, by choice.
func FuzzParse(f *testing.F) {
	for _, tt := range good {
		f.Add([]byte(tt.header + "rest"))
	}
	for _, tt := range bad {
		f.Add([]byte(strings.Replace(tt.sent, "|", "", 1)))
	}
	f.Fuzz(func(t *testing.T, sent []byte) {
		sent = slices.Clip(sent)
		h, n, err := Parse(sent)
		switch {
		case err != nil:
			if n != 0 || h != (Header{}) {
				t.Fatalf("%q: %+v, %d with %v", sent, h, n, err)
			}
			if errors.Is(err, ErrShort) && len(sent) >= MaxLen {
				t.Fatalf("%d bytes are short", len(sent))
			}
			// No more makes it good.
			if more, _, err2 := Parse(append(slices.Clone(sent), "\r\n 1 2\r\n"...)); err2 == nil && !errors.Is(err, ErrShort) {
				t.Fatalf("%q: %v, but with more %+v", sent, err, more)
			}
		case n <= 0 || n > len(sent) || n > MaxLen || h.Local == h.Client.IsValid() || h.Local == h.Destination.IsValid():
			t.Fatalf("%q: %+v, %d", sent, h, n)
		default:
			for i := range n {
				if _, _, err := Parse(sent[:i]); err != ErrShort {
					t.Fatalf("%q is a header, but its first %d bytes %v", sent[:n], i, err)
				}
			}
			for version := 1; version <= 2; version++ {
				again := Append(nil, version, h.Client, h.Destination)
				if h2, n2, err := Parse(again); h2 != h || n2 != len(again) || err != nil {
					t.Fatalf("%+v became %q and %+v, %v", h, again, h2, err)
				}
			}
		}
		_, got, readErr := Read(bytes.NewReader(sent))
		if !bytes.HasPrefix(sent, got) || (readErr == nil) != (err == nil) || err == nil && len(got) != n {
			t.Fatalf("%q: read %q, %v; parsed %d, %v", sent, got, readErr, n, err)
		}
		compare(t, sent, h, n, err)
	})
}

// compare holds what Parse made of sent against go-proxyproto.
func compare(t *testing.T, sent []byte, h Header, n int, err error) {
	t.Helper()
	r := bytes.NewReader(sent)
	br := bufio.NewReaderSize(r, 8192)
	oracle, oerr := proxyproto.Read(br)
	if binary := bytes.HasPrefix(sent, []byte(signature)); binary && len(sent) > 13 {
		switch command, family := sent[12], sent[13]; {
		case command == versionLocal && err == nil && oerr != nil: // it looks at the family, too
			return
		case command == versionProxy && family == unspecified && oerr != nil: // which one may accept or not
			return
		case command == versionProxy && (family == 0x12 || family == 0x22): // which have no place here
			return
		}
	}
	if (err == nil) != (oerr == nil) {
		t.Fatalf("%q: %+v, %v; go-proxyproto %+v, %v", sent, h, err, oracle, oerr)
	}
	if err != nil {
		return
	}
	if read := len(sent) - r.Len() - br.Buffered(); read != n {
		t.Fatalf("%q: %d bytes, go-proxyproto %d", sent, n, read)
	}
	from, to, named := oracle.TCPAddrs()
	if named = named && !oracle.Command.IsLocal(); named == h.Local {
		t.Fatalf("%q: %+v, go-proxyproto %+v", sent, h, oracle)
	}
	if named && (unmapped(from) != h.Client || unmapped(to) != h.Destination) {
		t.Fatalf("%q: %+v, go-proxyproto %v, %v", sent, h, from, to)
	}
}

func unmapped(a *net.TCPAddr) netip.AddrPort {
	ap := a.AddrPort()
	return netip.AddrPortFrom(ap.Addr().Unmap(), ap.Port())
}

// FuzzAppend has go-proxyproto read what Append writes.
func FuzzAppend(f *testing.F) {
	f.Add(1, []byte{203, 0, 113, 9}, []byte{192, 0, 2, 1}, uint16(4000), uint16(80))
	f.Add(2, []byte(ends6[:16]), []byte(mixed6[:16]), uint16(0), uint16(65535))
	f.Add(2, []byte{}, []byte{1}, uint16(1), uint16(2))
	f.Fuzz(func(t *testing.T, version int, from, to []byte, port, port2 uint16) {
		a, _ := netip.AddrFromSlice(from)
		b, _ := netip.AddrFromSlice(to)
		client, destination := netip.AddrPortFrom(a, port), netip.AddrPortFrom(b, port2)
		got := Append(nil, version, client, destination)
		if version != 1 && version != 2 {
			if len(got) > 0 {
				t.Fatalf("version %d is %q", version, got)
			}
			return
		}
		h, n, err := Parse(got)
		if n != len(got) || err != nil || len(got) > MaxAppended || !h.Local && (h.Client.Addr() != a.Unmap() || h.Destination.Addr() != b.Unmap()) || h.Local == (a.IsValid() && b.IsValid()) {
			t.Fatalf("%v, %v: %q is %+v, %d, %v", client, destination, got, h, n, err)
		}
		compare(t, got, h, n, err)
	})
}

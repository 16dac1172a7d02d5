package secure

import (
	"net"
	"strings"
	"testing"
	"time"
	"unicode/utf8"
)

func TestLooksLikeTLS(t *testing.T) {
	for _, tt := range []struct{ name, bytes, want string }{
		{"client hello", "\x16\x03\x01\x02\x00\x01\x00\x01\xfc", "a client hello"},
		{"server hello", "\x16\x03\x03\x00\x7a\x02\x00", "a server hello"},
		{"other message", "\x16\x03\x03\x00\x7a\x0b", "a handshake message"},
		{"alert", "\x15\x03\x01\x00\x02\x02\x46", `the alert "protocol version not supported"`},
		{"goodbye", "\x15\x03\x03\x00\x02\x01\x00", `the alert "close notify"`},
		{"alert without its end", "\x15\x03\x01\x00\x02\x02", "an alert"},
		{"encrypted alert", "\x15\x03\x03\x00\x1a\x7f", "an encrypted alert"},
		{"data", "\x17\x03\x03\x01\x00\x9a", "encrypted data"},
		{"change of cipher", "\x14\x03\x03\x00\x01\x01", "a change of cipher"},
		{"nothing", "", ""},
		{"header alone", "\x16\x03\x01\x02\x00", ""},
		{"HTTP", "GET / HTTP/1.1\r\n", ""},
		{"version 4", "\x16\x04\x01\x02\x00\x01", ""},
		{"version 3.5", "\x16\x03\x05\x02\x00\x01", ""},
		{"empty record", "\x16\x03\x01\x00\x00\x01", ""},
		{"too long", "\x17\x03\x03\x48\x01\x01", ""},
		{"no alert level", "\x15\x03\x01\x00\x02\x03\x46", ""},
		{"no handshake message", "\x16\x03\x01\x02\x00\x63", ""},
		{"no change", "\x14\x03\x03\x00\x01\x02", ""},
		{"heartbeat", "\x18\x03\x03\x00\x10\x01", ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			got, ok := LooksLikeTLS([]byte(tt.bytes))
			want := tt.want
			if want != "" {
				want = "the peer speaks TLS here: it sent " + want
			}
			if got != want || ok != (want != "") {
				t.Errorf("got %q, %v, want %q", got, ok, want)
			}
		})
	}
}

func TestHellosOfOpenSSLLookLikeTLS(t *testing.T) {
	ln := must(net.Listen("tcp", "127.0.0.1:0"))
	defer ln.Close()
	for _, version := range []string{"-tls1_3", "-tls1_2", "-tls1_1"} {
		startClient(t, ln.Addr().String(), version, "-cipher", "ALL:@SECLEVEL=0")
		c := must(ln.Accept())
		c.SetDeadline(time.Now().Add(patience))
		b := make([]byte, 1000)
		n, err := c.Read(b)
		if got, ok := LooksLikeTLS(b[:n]); err != nil || !ok || !strings.HasSuffix(got, "client hello") {
			t.Errorf("%s: got %q, %v, %v, want a client hello", version, got, ok, err)
		}
		c.Close()
	}
}

func FuzzLooksLikeTLS(f *testing.F) {
	f.Add([]byte("\x16\x03\x01\x02\x00\x01\x00\x01\xfc"))
	f.Add([]byte("\x15\x03\x01\x00\x02\x02\x46"))
	f.Add([]byte("HTTP/1.1 400 Bad Request\r\n"))
	f.Fuzz(func(t *testing.T, b []byte) {
		got, ok := LooksLikeTLS(b)
		if ok != (got != "") || strings.ContainsFunc(got, func(r rune) bool { return r < ' ' }) || !utf8.ValidString(got) {
			t.Errorf("got %q, %v", got, ok)
		}
		if ok && (b[0] >= ' ' || len(b) <= recordHeader) {
			t.Errorf("%q looks like TLS", b)
		}
	})
}

func FuzzFirstLine(f *testing.F) {
	f.Add([]byte("HTTP/1.1 400 Bad Request\r\n"))
	f.Add([]byte("\r\n\x1b[2J"))
	f.Fuzz(func(t *testing.T, b []byte) {
		got := firstLine(b)
		if len(got) > 210 || strings.ContainsFunc(got, func(r rune) bool { return r < ' ' || r == 0x7f }) || !utf8.ValidString(got) {
			t.Errorf("%q: got %q", b, got)
		}
	})
}

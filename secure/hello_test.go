package secure

import (
	"bytes"
	"crypto/tls"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"slices"
	"strings"
	"testing"
	"time"
)

// scripted is a connection that says what it says, and keeps what it is told.
type scripted struct {
	net.Conn
	says  io.Reader
	heard bytes.Buffer
}

func (s *scripted) Read(b []byte) (int, error)  { return s.says.Read(b) }
func (s *scripted) Write(b []byte) (int, error) { return s.heard.Write(b) }
func (s *scripted) Close() error                { return nil }

// greetingOf returns the greeting of a client of package tls.
func greetingOf(t testing.TB, config *tls.Config) []byte {
	t.Helper()
	config.InsecureSkipVerify = true
	c := &scripted{says: strings.NewReader("")}
	tls.Client(c, config).Handshake()
	if c.heard.Len() == 0 {
		t.Fatal("the client said nothing")
	}
	return c.heard.Bytes()
}

// greetingOfOpenSSL returns the greeting of openssl s_client.
func greetingOfOpenSSL(t *testing.T, args ...string) []byte {
	t.Helper()
	ln := must(net.Listen("tcp", "127.0.0.1:0"))
	defer ln.Close()
	startClient(t, ln.Addr().String(), args...)
	c := must(ln.Accept())
	defer c.Close()
	c.SetDeadline(time.Now().Add(patience))
	var got []byte
	for b := make([]byte, 4096); ; {
		n, err := c.Read(b)
		if got = append(got, b[:n]...); err != nil {
			t.Fatalf("got %q, %v", got, err)
		}
		if len(got) > recordHeader && len(got) >= recordHeader+int(binary.BigEndian.Uint16(got[3:])) {
			return got
		}
	}
}

// inRecords puts a message into records with so many bytes each, the last size for all that is left.
func inRecords(message []byte, sizes ...int) (b []byte) {
	for len(message) > 0 {
		n := min(sizes[0], len(message))
		if len(sizes) > 1 {
			sizes = sizes[1:]
		}
		b = binary.BigEndian.AppendUint16(append(b, recordHandshake, 3, 1), uint16(n))
		b = append(b, message[:n]...)
		message = message[n:]
	}
	return b
}

func TestTheServerNameOfRealClients(t *testing.T) {
	protocols := make([]string, 100)
	for i := range protocols {
		protocols[i] = strings.Repeat("p", 100)
	}
	for _, tt := range []struct {
		name  string
		hello []byte
		want  string
	}{
		{"package tls", greetingOf(t, &tls.Config{ServerName: "a.example"}), "a.example"},
		{"package tls, upper case", greetingOf(t, &tls.Config{ServerName: "WWW.Example.COM"}), "www.example.com"},
		{"package tls, a dot", greetingOf(t, &tls.Config{ServerName: "a.example."}), "a.example"},
		{"package tls, an address", greetingOf(t, &tls.Config{ServerName: "127.0.0.1"}), ""},
		{"package tls, no name", greetingOf(t, &tls.Config{}), ""},
		{"package tls, 1.2", greetingOf(t, &tls.Config{ServerName: "b.example", MaxVersion: tls.VersionTLS12}), "b.example"},
		{"package tls, 10 kB", greetingOf(t, &tls.Config{ServerName: "c.example", NextProtos: protocols}), "c.example"},
		{"OpenSSL", greetingOfOpenSSL(t, "-servername", "a.example"), "a.example"},
		{"OpenSSL, upper case", greetingOfOpenSSL(t, "-servername", "A.EXAMPLE"), "a.example"},
		{"OpenSSL, 1.2", greetingOfOpenSSL(t, "-tls1_2", "-servername", "b.example"), "b.example"},
		{"OpenSSL, 1.1", greetingOfOpenSSL(t, "-tls1_1", "-cipher", "ALL:@SECLEVEL=0", "-servername", "b.example"), "b.example"},
		{"OpenSSL, no name", greetingOfOpenSSL(t, "-noservername"), ""},
		{"OpenSSL, an address", greetingOfOpenSSL(t, "-servername", "127.0.0.1"), ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			for _, next := range []string{"", "\x14\x03\x03\x00\x01\x01", "GET /"} {
				if got, err := ServerName(append(slices.Clone(tt.hello), next...)); got != tt.want || err != nil {
					t.Errorf("with %q after it: got %q, %v, want %q", next, got, err, tt.want)
				}
			}
			for i := range tt.hello {
				if got, err := ServerName(tt.hello[:i]); err != ErrShort || got != "" {
					t.Fatalf("the first %d bytes of %d: got %q, %v, want ErrShort", i, len(tt.hello), got, err)
				}
			}
			message := tt.hello[recordHeader:]
			for i := 1; i < len(message); i += 1 + len(message)/2000 {
				split := inRecords(message, i, len(message))
				if got, err := ServerName(split); got != tt.want || err != nil {
					t.Fatalf("in two records, the first of %d bytes: got %q, %v, want %q", i, got, err, tt.want)
				}
				if _, err := ServerName(split[:len(split)-1]); err != ErrShort {
					t.Fatalf("in two records, but for a byte: %v, want ErrShort", err)
				}
			}
			if small := inRecords(message, 1); len(small) <= MaxHello {
				if got, err := ServerName(small); got != tt.want || err != nil {
					t.Errorf("in records of a byte: got %q, %v, want %q", got, err, tt.want)
				}
			}
		})
	}
}

// hello makes a client hello with extensions; nil: none at all.
func hello(extensions []byte) []byte {
	body := append([]byte{3, 3}, make([]byte, 32)...)
	body = append(body, 0, 0, 2, 0x13, 0x01, 1, 0)
	if extensions != nil {
		body = append(vector(body, 2), extensions...)
		binary.BigEndian.PutUint16(body[len(body)-len(extensions)-2:], uint16(len(extensions)))
	}
	return message(body)
}

func message(body []byte) []byte {
	return append([]byte{clientHello, byte(len(body) >> 16), byte(len(body) >> 8), byte(len(body))}, body...)
}

// vector appends parts with their length, of so many bytes, before them.
func vector(b []byte, size int, parts ...string) []byte {
	all := strings.Join(parts, "")
	for i := size - 1; i >= 0; i-- {
		b = append(b, byte(len(all)>>(8*i)))
	}
	return append(b, all...)
}

// extension of a type.
func extension(kind byte, data []byte) []byte { return vector([]byte{0, kind}, 2, string(data)) }

// sni is the extension server_name with a name of type 0.
func sni(name string) []byte {
	return extension(0, vector(nil, 2, string(vector([]byte{0}, 2, name))))
}

func TestTheServerNameIsANameOfAHost(t *testing.T) {
	long := strings.Repeat(strings.Repeat("a", 62)+".", 4) // 252 with its last dot
	for _, tt := range []struct{ sent, want string }{
		{"example.com", "example.com"},
		{"Example.COM", "example.com"},
		{"example.com.", "example.com"},
		{"localhost", "localhost"},
		{"xn--bcher-kva.example", "xn--bcher-kva.example"},
		{"_acme.example-.x1", "_acme.example-.x1"},
		{"1.example", "1.example"},
		{"1e100.net", "1e100.net"},
		{strings.Repeat("a", 63) + ".b", strings.Repeat("a", 63) + ".b"},
		{long + "b", long + "b"},
		{long + "b.", long + "b"},
		{long + "bb", ""},
		{strings.Repeat("a", 64) + ".b", ""},
		{"127.0.0.1", ""},
		{"127.1", ""},
		{"2130706433", ""},
		{"::1", ""},
		{"[::1]", ""},
		{"a.example\x00.b.example", ""},
		{"a.example:443", ""},
		{"*.example", ""},
		{"-a.example", ""},
		{"a..example", ""},
		{".example", ""},
		{"example..", ""},
		{".", ""},
		{"a b", ""},
		{"a/b", ""},
		{"bücher.example", ""},
		{"\u212a.example", ""}, // the Kelvin sign, whose lower case is k
		{"a\n", ""},
	} {
		if got, err := ServerName(inRecords(hello(sni(tt.sent)), 1<<14)); got != tt.want || err != nil {
			t.Errorf("%q: got %q, %v, want %q", tt.sent, got, err, tt.want)
		}
	}
}

func TestGreetingsWithoutAName(t *testing.T) {
	for _, tt := range []struct {
		name       string
		extensions []byte
	}{
		{"no extensions at all", nil},
		{"none in them", []byte{}},
		{"others", append(extension(16, []byte("\x00\x03\x02h2")), extension(0xff, nil)...)},
		{"a name of another type", extension(0, vector(nil, 2, string(vector([]byte{9}, 2, "a.example"))))},
	} {
		if got, err := ServerName(inRecords(hello(tt.extensions), 1<<14)); got != "" || err != nil {
			t.Errorf("%s: got %q, %v", tt.name, got, err)
		}
	}
}

func TestWhatIsNoGreetingIsToldAtOnce(t *testing.T) {
	record := func(b ...byte) string { return string(inRecords(b, 1<<14)) }
	good := sni("a.example")
	in := func(extensions []byte) string { return record(hello(extensions)...) }
	body := hello(good)[4:]
	for _, tt := range []struct{ name, sent, want string }{
		{"HTTP", "GET / HTTP/1.1\r\nHost: a\r\n", `not TLS: it begins with "GET / HTTP/1.1"`},
		{"a letter", "G", `not TLS: it begins with "G"`},
		{"SSH", "SSH-2.0-x\r\n", `not TLS: it begins with "SSH-2.0-x"`},
		{"an escape", "\x1b[2J", `not TLS: it begins with "\x1b[2J"`},
		{"SSL 2", "\x80\x2e\x01\x03\x01", "not TLS: it begins with"},
		{"version 4", "\x16\x04", "not TLS: it begins with"},
		{"an alert", "\x15\x03\x01\x00\x02\x02\x46", `not TLS: it begins with the alert "protocol version not supported", not with a client hello`},
		{"data", "\x17\x03\x03\x01\x00\x9a", "not TLS: it begins with encrypted data, not"},
		{"a server hello", "\x16\x03\x03\x00\x7a\x02", "not TLS: it begins with a server hello, not with a client hello"},
		{"an empty record", "\x16\x03\x01\x00\x00", "not TLS: a record of 0 bytes"},
		{"a record too long", "\x16\x03\x01\x40\x01", "not TLS: a record of 16385 bytes"},
		{"something between", record(hello(good)[:20]...) + "\x15", "something else between"},
		{"an empty record between", record(hello(good)[:20]...) + "\x16\x03\x01\x00\x00", "a record of 0 bytes"},
		{"a hello too long", "\x16\x03\x01\x40\x00\x01\x00\x40\x00", "more than 16384 bytes"},
		{"a hello of 16 MiB", "\x16\x03\x01\x40\x00\x01\xff\xff\xff", "more than 16384 bytes"},
		{"too many records", string(inRecords(hello(extension(21, make([]byte, 4000))), 1)), "more than 16384 bytes"},
		{"no body", record(clientHello, 0, 0, 0), "cut short before its extensions"},
		{"cut in the random", record(message(body[:20])...), "cut short"},
		{"cut in the session ID", record(message(append(slices.Clone(body[:34]), 5, 1))...), "cut short"},
		{"cut in the ciphers", record(message(body[:37])...), "cut short"},
		{"no compression", record(message(body[:39])...), "cut short"},
		{"cut in the extensions", record(message(body[:len(body)-1])...), "do not fill it"},
		{"more after the extensions", record(message(append(slices.Clone(body), 0))...), "do not fill it"},
		{"an extension cut short", in(good[:len(good)-1]), "cut short"},
		{"a type alone", in(append(slices.Clone(good), 0)), "cut short"},
		{"two names", in(extension(0, vector(nil, 2, string(vector([]byte{0}, 2, "a")), string(vector([]byte{0}, 2, "b"))))), "twice"},
		{"two extensions", in(append(slices.Clone(good), good...)), "twice"},
		{"no list", in(extension(0, nil)), "server name is cut short"},
		{"an empty list", in(extension(0, []byte{0, 0})), "server name is cut short"},
		{"an empty name", in(sni("")), "server name is cut short"},
		{"a name cut short", in(extension(0, []byte{0, 4, 0, 0, 5, 'a'})), "server name is cut short"},
		{"more after the list", in(extension(0, append(vector(nil, 2, string(vector([]byte{0}, 2, "a"))), 0))), "server name is cut short"},
	} {
		got, err := ServerName([]byte(tt.sent))
		if got != "" || errors.Is(err, ErrShort) || err == nil || !strings.HasPrefix(err.Error(), "not TLS: ") || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%s: got %q, %v, want %q", tt.name, got, err, tt.want)
		}
	}
}

func TestAGreetingOfTheGreatestLength(t *testing.T) {
	padding := MaxHello - recordHeader - len(hello(append(sni("a.example"), extension(21, nil)...)))
	most := inRecords(hello(append(sni("a.example"), extension(21, make([]byte, padding))...)), 1<<14)
	if got, err := ServerName(append(most, 'x')); got != "a.example" || err != nil || len(most) != MaxHello {
		t.Errorf("%d bytes: got %q, %v", len(most), got, err)
	}
	if _, err := ServerName(most[:len(most)-1]); err != ErrShort {
		t.Errorf("but for a byte: %v, want ErrShort", err)
	}
	over := inRecords(hello(append(sni("a.example"), extension(21, make([]byte, padding+1))...)), 1<<14)
	for _, n := range []int{20, len(over)} {
		if _, err := ServerName(over[:n]); err == nil || err == ErrShort {
			t.Errorf("%d of %d bytes: %v, want another error", n, len(over), err)
		}
	}
}

// oracle is the name that a server of package tls finds, if it takes the greeting.
func oracle(b []byte) (name string, taken bool) {
	c := &scripted{says: bytes.NewReader(b)}
	tls.Server(c, &tls.Config{GetConfigForClient: func(h *tls.ClientHelloInfo) (*tls.Config, error) {
		name, taken = h.ServerName, true
		return nil, errors.New("no more")
	}}).Handshake()
	return name, taken
}

func FuzzServerName(f *testing.F) {
	real := greetingOf(f, &tls.Config{ServerName: "a.example"})
	f.Add(real)
	f.Add(greetingOf(f, &tls.Config{ServerName: "B.example", MaxVersion: tls.VersionTLS12}))
	f.Add(inRecords(real[recordHeader:], 1, 2, 3, 500))
	f.Add(inRecords(hello(nil), 1<<14))
	f.Add(inRecords(hello(append(sni("c.example"), extension(16, []byte("\x00\x03\x02h2"))...)), 10))
	f.Add(inRecords(hello(sni("127.0.0.1")), 1<<14))
	f.Add([]byte("GET / HTTP/1.1\r\n"))
	f.Add([]byte("\x15\x03\x01\x00\x02\x02\x46"))
	f.Add(append(sni("d.example"), extension(43, []byte("\x02\x03\x04"))...))
	f.Fuzz(func(t *testing.T, b []byte) {
		compareWithTLS(t, slices.Clip(b))
		if len(b) > 0 && len(b) < 1<<14 { // as extensions, too, of which package tls knows many
			compareWithTLS(t, inRecords(hello(b), int(b[0])+1, 1<<14))
		}
	})
}

// compareWithTLS holds ServerName against a server of package tls.
func compareWithTLS(t *testing.T, b []byte) {
	t.Helper()
	got, err := ServerName(b)
	if err != nil && got != "" || err != nil && err != ErrShort && !strings.HasPrefix(err.Error(), "not TLS: ") || strings.ToLower(got) != got {
		t.Fatalf("%q: got %q, %v", b, got, err)
	}
	want, taken := oracle(b)
	switch {
	case taken && err != nil && len(b) <= MaxHello && !elsewhere(b):
		t.Fatalf("%q: %v, but package tls finds %q", b, err, want)
	case taken && err == nil && got != hostName(want):
		t.Fatalf("%q: got %q, package tls %q", b, got, want)
	}
	if err == nil {
		for _, n := range []int{0, 1, recordHeader, len(b) / 2} {
			if _, err := ServerName(b[:n]); err != nil && err != ErrShort {
				t.Fatalf("%q: good, but the first %d bytes: %v", b, n, err)
			}
		}
	}
}

// elsewhere says whether package tls may have read on where records of another
// version or kind stood between: it lets warnings pass.
func elsewhere(b []byte) bool {
	for at := 0; at+recordHeader <= len(b); at += recordHeader + int(binary.BigEndian.Uint16(b[at+3:])) {
		if b[at] != recordHandshake || b[at+1] != 3 {
			return true
		}
	}
	return false
}

func BenchmarkServerName(b *testing.B) {
	greeting := greetingOf(b, &tls.Config{ServerName: "a.example"})
	b.ReportAllocs()
	for b.Loop() {
		if name, err := ServerName(greeting); name != "a.example" || err != nil {
			b.Fatal(name, err)
		}
	}
}

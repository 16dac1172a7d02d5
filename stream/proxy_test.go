package stream

import (
	"context"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"net/netip"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/pires/go-proxyproto"

	"github.com/fivetuple/fivetuple"
	"github.com/fivetuple/fivetuple/stats"
)

var loopback = []netip.Prefix{netip.MustParsePrefix("127.0.0.1/32")}

// headerOf is a PROXY header for a client.
func headerOf(t *testing.T, version byte, client string) []byte {
	t.Helper()
	from := net.TCPAddrFromAddrPort(netip.MustParseAddrPort(client))
	to := &net.TCPAddr{IP: net.ParseIP("192.0.2.1"), Port: 80}
	if from.IP.To4() == nil {
		to.IP = net.ParseIP("2001:db8::1")
	}
	b, err := proxyproto.HeaderProxyFromAddrs(version, from, to).Format()
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// tellRemote answers with the address of the client and then echoes.
func tellRemote() Handler {
	return HandlerFunc(func(ctx context.Context, c *Conn) error {
		io.WriteString(c, c.RemoteAddr().String()+" "+c.Tuple().Remote.String()+"\n")
		return Echo().ServeConn(ctx, c)
	})
}

func TestAProxyNamesTheClient(t *testing.T) {
	long := append(headerOf(t, 2, "203.0.113.9:4000"), 0xea, 3, 232) // a TLV of 1000 bytes, padding
	long[15] += 3
	long = append(long, make([]byte, 1000)...)
	n := int(long[14])<<8 + int(long[15]) + 1000
	long[14], long[15] = byte(n>>8), byte(n)
	for _, tt := range []struct {
		name   string
		header []byte
		want   string // "" for the proxy itself
	}{
		{"version 1", headerOf(t, 1, "203.0.113.9:4000"), "203.0.113.9:4000"},
		{"version 1, IPv6", headerOf(t, 1, "[2001:db8::5]:4000"), "[2001:db8::5]:4000"},
		{"version 1, longest", []byte("PROXY TCP6 ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff ffff:ffff:ffff:ffff:ffff:ffff:ffff:fffe 65535 65535\r\n"), "[ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff]:65535"},
		{"version 1, unknown", []byte("PROXY UNKNOWN\r\n"), ""},
		{"version 1, unknown with words", []byte("PROXY UNKNOWN ffff:f...f:ffff ffff:f...f:ffff 65535 65535\r\n"), ""},
		{"version 2", headerOf(t, 2, "203.0.113.9:4000"), "203.0.113.9:4000"},
		{"version 2, IPv6", headerOf(t, 2, "[2001:db8::5]:4000"), "[2001:db8::5]:4000"},
		{"version 2 with TLVs", long, "203.0.113.9:4000"},
		{"version 2, of a Unix socket", append(append(slices.Clone(proxyproto.SIGV2), 0x21, 0x31, 0, 216), make([]byte, 216)...), ""},
		{"version 2, local", append(slices.Clone(proxyproto.SIGV2), 0x20, 0, 0, 0), ""},
	} {
		for _, way := range []string{"at once", "byte by byte"} {
			t.Run(tt.name+" "+way, func(t *testing.T) {
				ev := newEvents()
				ln := serve(t, &Server{Handler: tellRemote(), Sink: ev, Proxies: loopback}, "0")
				c := connect(t, ln)
				want := tt.want
				if want == "" {
					want = c.LocalAddr().String()
				}
				if all := append(slices.Clone(tt.header), "first"...); way == "at once" {
					c.Write(all)
				} else {
					for _, b := range all { // TCP_NODELAY: segments of their own
						c.Write([]byte{b})
					}
				}
				answer := want + " " + want + "\nfirst"
				if got := readFull(t, c, len(answer)); string(got) != answer {
					t.Errorf("got %q, want %q", got, answer)
				}
				c.Close()
				end := ev.wait(t, "disconnect", kindIs(stats.Disconnect))
				accepted := ev.wait(t, "accept", kindIs(stats.Accept))
				for _, e := range []stats.Event{accepted, end} {
					if e.Tuple.Remote.String() != want || e.Tuple.Local != fivetuple.AddressOf(ln.Addr()) {
						t.Errorf("%v of %v, want %s", e.Kind, e.Tuple, want)
					}
				}
				if end.BytesIn != 5 {
					t.Errorf("%d bytes in, want 5 without the header", end.BytesIn)
				}
			})
		}
	}
}

func TestWithoutAProperHeaderAProxyIsRefused(t *testing.T) {
	v2 := headerOf(t, 2, "203.0.113.9:4000")
	with := func(i int, b byte) []byte {
		c := slices.Clone(v2)
		c[i] = b
		return c
	}
	for _, tt := range []struct {
		name string
		sent []byte
		ends bool // the proxy ends its side
		want string
	}{
		{"HTTP", []byte("GET / HTTP/1.1\r\n\r\n"), false, `not a PROXY header, which the source must send as it is one of the proxies: it does not begin like one; got "GET / HTTP/1.1\r"`},
		{"TLS", []byte{22, 3, 1, 0, 200, 1}, false, `got "\x16\x03\x01`},
		{"nothing for too long", nil, false, "no PROXY header within 200ms, as the source is one of the proxies; got nothing"},
		{"a part of version 1", []byte("PROXY TCP4 203.0.113.9"), false, `within 200ms, as the source is one of the proxies; got "PROXY TCP4 203.0.113.9"`},
		{"a part of version 2", v2[:20], false, "within 200ms"},
		{"a part, then the end", []byte("PROXY TCP4 203."), true, `EOF; got "PROXY TCP4 203."`},
		{"a line without end", []byte("PROXY " + strings.Repeat("x", 500)), false, "not a PROXY header"},
		{"only LF", []byte("PROXY TCP4 203.0.113.9 192.0.2.1 1 2\n"), false, "must end with"},
		{"no address", []byte("PROXY TCP4 203.0.113 192.0.2.1 1 2\r\n"), false, "invalid address"},
		{"the other family", []byte("PROXY TCP6 203.0.113.9 192.0.2.1 1 2\r\n"), false, "invalid address"},
		{"a port too far", []byte("PROXY TCP4 203.0.113.9 192.0.2.1 65536 2\r\n"), false, "invalid port"},
		{"an early end of line", []byte("PROXY\r\nGET / HTTP/1.1\r\n"), false, "not a PROXY header"},
		{"version 3", with(12, 0x31), false, "unsupported version 3 of the protocol"},
		{"a family unknown", with(13, 0x51), false, "unsupported address family"},
		{"datagrams", with(13, 0x12), false, "names no TCP client"},
		{"too short for its addresses", with(15, 4), false, "invalid length"},
		{"over 4 KiB", with(14, 0xff), false, "over 4112 bytes long"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			ev := newEvents()
			s := &Server{Handler: tellRemote(), Sink: ev, Proxies: loopback, HeaderTimeout: 200 * time.Millisecond}
			c := connect(t, serve(t, s, "0"))
			c.Write(tt.sent)
			if tt.ends {
				c.(*net.TCPConn).CloseWrite()
			}
			if got, err := io.ReadAll(c); len(got) > 0 || !errors.Is(err, syscall.ECONNRESET) {
				t.Errorf("got %q, %v; want a reset", got, err)
			}
			refused := ev.wait(t, "refusal", kindIs(stats.Error))
			if !strings.HasPrefix(refused.Err, "refused: ") || !strings.Contains(refused.Err, tt.want) {
				t.Errorf("got %q, want %q in it", refused.Err, tt.want)
			}
			if refused.Tuple.Remote != fivetuple.AddressOf(c.LocalAddr()) {
				t.Errorf("of %v, want the proxy", refused.Tuple)
			}
			for _, e := range ev.snapshot() {
				if e.Kind == stats.Accept || e.Kind == stats.Disconnect {
					t.Errorf("it was taken on: %+v", e)
				}
			}
		})
	}
}

func TestAHeaderFromAnotherSourceIsJustBytes(t *testing.T) {
	header := headerOf(t, 1, "203.0.113.9:4000")
	ln := serve(t, &Server{Handler: tellRemote(), Proxies: []netip.Prefix{netip.MustParsePrefix("10.0.0.0/8")}}, "0")
	c := connect(t, ln)
	c.Write(header)
	want := c.LocalAddr().String() + " " + c.LocalAddr().String() + "\n" + string(header)
	if got := readFull(t, c, len(want)); string(got) != want {
		t.Errorf("got %q, want %q", got, want)
	}
}

func TestAProxyThatOnlyLooksIsNoError(t *testing.T) {
	ev := newEvents()
	s := &Server{Handler: Echo(), Sink: ev, Proxies: loopback}
	ln := serve(t, s, "0")
	for range 3 {
		connect(t, ln).Close()
	}
	c := connect(t, ln)
	c.Write(append(headerOf(t, 2, "203.0.113.9:4000"), 'x'))
	readFull(t, c, 1)
	waitFor(t, "only that one is left", func() bool {
		s.mu.Lock()
		defer s.mu.Unlock()
		return len(s.held) == 0
	})
	for _, e := range ev.snapshot() {
		if e.Kind == stats.Error {
			t.Errorf("got %+v", e)
		}
	}
}

func TestLimitsAreOfTheClientThatAProxyNames(t *testing.T) {
	ev := newEvents()
	s := &Server{Handler: Echo(), Sink: ev, Proxies: loopback, Limits: Limits{
		MaxPerSource: 1, Allow: []netip.Prefix{netip.MustParsePrefix("203.0.113.0/24")}}}
	ln := serve(t, s, "0")
	from := func(client string) (net.Conn, error) {
		c := connect(t, ln)
		c.Write(append(headerOf(t, 2, client), 'x'))
		_, err := io.ReadFull(c, make([]byte, 1))
		return c, err
	}
	for _, tt := range []struct{ client, refused string }{
		{"203.0.113.1:1000", ""},
		{"203.0.113.1:1001", "more than 1 connections from 203.0.113.1"},
		{"203.0.113.2:1000", ""},
		{"198.51.100.1:1000", "source not allowed"},
	} {
		c, err := from(tt.client)
		if tt.refused == "" {
			if err != nil {
				t.Errorf("%s: %v", tt.client, err)
			}
			continue
		}
		if !errors.Is(err, syscall.ECONNRESET) {
			t.Errorf("%s: %v, want a reset", tt.client, err)
		}
		c.Close()
		ev.wait(t, tt.refused, func(e stats.Event) bool {
			return e.Kind == stats.Error && e.Tuple.Remote.String() == tt.client && strings.Contains(e.Err, tt.refused)
		})
	}
}

func TestConnectionsThatWaitForTheirHeaderAreBoundAndHoldUpNobody(t *testing.T) {
	s := &Server{Handler: Echo(), Proxies: loopback, Limits: Limits{MaxConns: 3}, HeaderTimeout: time.Minute}
	ln := serve(t, s, "0")
	held := func(n int) func() bool {
		return func() bool {
			s.mu.Lock()
			defer s.mu.Unlock()
			return len(s.held) == n
		}
	}
	silent := []net.Conn{connect(t, ln), connect(t, ln)}
	waitFor(t, "two wait", held(2))
	third := connect(t, ln)
	third.Write(append(headerOf(t, 1, "203.0.113.9:4000"), 'x'))
	readFull(t, third, 1) // the silent ones do not hold it up
	fourth := connect(t, ln)
	fourth.Write(append(headerOf(t, 1, "203.0.113.9:4001"), 'x'))
	fourth.SetReadDeadline(time.Now().Add(100 * time.Millisecond))
	if _, err := fourth.Read(make([]byte, 1)); !isTimeout(err) {
		t.Errorf("a fourth was served: %v", err)
	}
	silent[0].Close()
	fourth.SetReadDeadline(time.Now().Add(10 * time.Second))
	readFull(t, fourth, 1)
	if n := s.Broadcast([]byte("b")); n != 2 {
		t.Errorf("a broadcast reached %d, want those whose client is known", n)
	}
}

func TestShutdownEndsTheWaitForHeaders(t *testing.T) {
	ev := newEvents()
	s := &Server{Handler: Echo(), Sink: ev, Proxies: loopback}
	ln, err := ListenConfig{}.Listen(t.Context(), endpoint(t, "0"))
	if err != nil {
		t.Fatal(err)
	}
	served := make(chan error, 1)
	go func() { served <- s.Serve(ln) }()
	c := connect(t, ln)
	waitFor(t, "one waits", func() bool {
		s.mu.Lock()
		defer s.mu.Unlock()
		return len(s.held) == 1
	})
	if err := s.Shutdown(t.Context()); err != nil {
		t.Error(err)
	}
	<-served
	if _, err := c.Read(make([]byte, 1)); err == nil {
		t.Error("the connection goes on")
	}
	if ev.wait(t, "close", kindIs(stats.Close)); slices.ContainsFunc(ev.snapshot(), kindIs(stats.Error)) {
		t.Errorf("got %+v", ev.snapshot())
	}
}

func TestTLSBehindAProxyBeginsAfterTheHeader(t *testing.T) {
	s := &Server{Handler: tellRemote(), Proxies: loopback, TLS: selfSigned(t)}
	raw := connect(t, serve(t, s, "tls://0"))
	raw.Write(headerOf(t, 1, "203.0.113.9:4000"))
	want := "203.0.113.9:4000 203.0.113.9:4000\n"
	if got := readFull(t, tls.Client(raw, trusting()), len(want)); string(got) != want {
		t.Errorf("got %q, want %q", got, want)
	}
}

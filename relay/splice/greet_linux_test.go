package splice

import (
	"bytes"
	"context"
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/fivetuple/fivetuple/internal/proxyheader"
	"github.com/fivetuple/fivetuple/relay/upstream"
	"github.com/fivetuple/fivetuple/stats"
	"github.com/fivetuple/fivetuple/stream"
)

var loopback = []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8")}

// tellsAll is a target that sends back everything it got, at the end.
func tellsAll(c net.Conn) {
	b, _ := io.ReadAll(c)
	c.Write(b)
}

// said is what arrives at a target of what a client says in pieces.
func said(t *testing.T, ln net.Listener, pieces ...string) string {
	t.Helper()
	c := dial(t, ln)
	for _, p := range pieces {
		if _, err := io.WriteString(c, p); err != nil {
			t.Fatal(err)
		}
		time.Sleep(2 * time.Millisecond) // so that they come apart
	}
	closeWrite(c)
	b, err := io.ReadAll(c)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

const (
	theClient = "192.0.2.7:4000"
	theHeader = "PROXY TCP4 192.0.2.7 198.51.100.1 4000 443\r\n"
)

func TestTheHeaderOfAProxyNamesTheClient(t *testing.T) {
	v2 := string(proxyheader.Append(nil, 2, netip.MustParseAddrPort(theClient), netip.MustParseAddrPort("198.51.100.1:443")))
	for _, pieces := range [][]string{{theHeader + "hello"}, {theHeader[:10], theHeader[10:], "hello"}, {v2[:5], v2[5:] + "hel", "lo"}, {v2 + "hello"}} {
		target := targets(t, "0", tellsAll)
		ev := &events{}
		s := relayTo(t, target, ev)
		s.Proxies = loopback
		ln := start(t, s, "0")
		if got := said(t, ln, pieces...); got != "hello" {
			t.Errorf("%q: the target got %q", pieces, got)
		}
		accept, end := ev.wait(t, stats.Accept), ev.wait(t, stats.Disconnect)
		if accept.Tuple.Remote.String() != theClient || end.Tuple != accept.Tuple || end.BytesIn != 5 || end.BytesOut != 5 {
			t.Errorf("got %+v and %+v", accept, end)
		}
	}
}

func TestAHeaderThatIsSentNamesTheOriginalClient(t *testing.T) {
	for _, version := range []int{1, 2} {
		target := targets(t, "0", tellsAll)
		s := relayTo(t, target, nil)
		s.Proxies = loopback
		s.Route.ProxyVersion = version
		ln := start(t, s, "0")
		want := string(proxyheader.Append(nil, version, netip.MustParseAddrPort(theClient), netip.MustParseAddrPort("198.51.100.1:443"))) + "hello"
		if got := said(t, ln, theHeader+"hello"); got != want {
			t.Errorf("got %q, want %q", got, want)
		}
	}
}

func TestAHeaderIsSentBeforeTheTargetHasToSpeak(t *testing.T) {
	target := targets(t, "0", func(c net.Conn) {
		h, _, err := proxyheader.Read(c)
		fmt.Fprintf(c, "%v %v", h.Client, err)
	})
	ev := &events{}
	s := relayTo(t, target, ev)
	s.Route.ProxyVersion = 2
	ln := start(t, s, "0")
	c := dial(t, ln)
	if b, _ := io.ReadAll(c); string(b) != c.LocalAddr().String()+" <nil>" {
		t.Errorf("got %q", b)
	}
	c.Close()
	if end := ev.wait(t, stats.Disconnect); end.BytesIn != 0 {
		t.Errorf("the header counts as the client's: %+v", end)
	}
}

func TestAProxyThatSendsNoHeaderIsRefused(t *testing.T) {
	target := targets(t, "0", tellsAll)
	for what, say := range map[string]string{"other bytes": "GET / HTTP/1.1\r\n", "nothing": "", "part of it": theHeader[:20]} {
		ev := &events{}
		s := relayTo(t, target, ev)
		s.Proxies, s.HeaderTimeout = loopback, 100*time.Millisecond
		ln := start(t, s, "0")
		c := dial(t, ln)
		c.Write([]byte(say))
		if _, err := c.Read(make([]byte, 1)); !isReset(err) {
			t.Errorf("%s: the client saw %v", what, err)
		}
		if e := ev.wait(t, stats.Error); !strings.Contains(e.Err, "PROXY header") {
			t.Errorf("%s: got %+v", what, e)
		}
		for _, e := range ev.snapshot() {
			if e.Kind == stats.Accept || e.Kind == stats.Disconnect {
				t.Errorf("%s: got %+v", what, e)
			}
		}
		waitForPairs(t, s, 0)
	}
}

func TestLimitsAreThoseOfTheClientThatAProxyNames(t *testing.T) {
	target := targets(t, "0", echoBack)
	ev := &events{}
	s := relayTo(t, target, ev)
	s.Proxies = loopback
	s.Limits = stream.Limits{MaxPerSource: 1, Deny: append(loopback, netip.MustParsePrefix("203.0.113.0/24"))}
	ln := start(t, s, "0")
	through := func(client string) (net.Conn, error) {
		c := dial(t, ln)
		fmt.Fprintf(c, "PROXY TCP4 %s 198.51.100.1 4000 443\r\nx", client)
		_, err := c.Read(make([]byte, 1))
		return c, err
	}
	first, err := through("192.0.2.1")
	if err != nil {
		t.Error(err)
	}
	if _, err := through("192.0.2.2"); err != nil {
		t.Error(err)
	}
	if _, err := through("192.0.2.1"); !isReset(err) {
		t.Errorf("a second of the same client saw %v", err)
	}
	if _, err := through("203.0.113.1"); !isReset(err) {
		t.Errorf("a client that is denied saw %v", err)
	}
	first.Close()
	waitForPairs(t, s, 1)
	if _, err := through("192.0.2.1"); err != nil {
		t.Errorf("one after the first ended: %v", err)
	}
}

// greetingOf is what a TLS client says first.
func greetingOf(t *testing.T, name string) string {
	t.Helper()
	near, far := net.Pipe()
	defer far.Close()
	got := make(chan string, 1)
	go func() {
		b := make([]byte, 16<<10)
		n, _ := far.Read(b)
		far.Close()
		got <- string(b[:n])
	}()
	tls.Client(near, &tls.Config{ServerName: name, InsecureSkipVerify: name == ""}).HandshakeContext(context.Background())
	near.Close()
	return <-got
}

func TestTLSClientsGoWhereTheNameTheyGreetBelongs(t *testing.T) {
	pool := func(name string) (p *upstream.Pool) {
		return poolOf(t, endpoint(targets(t, "0", func(c net.Conn) {
			b, _ := io.ReadAll(c)
			c.Write(append([]byte(name+":"), b...))
		})))
	}
	names := map[string]*upstream.Pool{"a.example": pool("a"), "*.example": pool("any"), "*.deep.example": pool("deep"), "B.Example.": pool("b")}
	s := &Server{Route: Route{Pool: pool("other"), Names: names, HelloTimeout: 200 * time.Millisecond}}
	ln := start(t, s, "0")
	for name, want := range map[string]string{
		"a.example": "a", "A.EXAMPLE": "a", "b.example": "b", "c.example": "any", "x.a.example": "any", "y.deep.example": "deep",
		"example": "other", "a.other": "other", "": "other",
	} {
		hello := greetingOf(t, name)
		if len(hello) < 100 {
			t.Fatalf("a greeting of %d bytes", len(hello))
		}
		for _, pieces := range [][]string{{hello + "more"}, {hello[:1], hello[1:60], hello[60:], "more"}} {
			if got := said(t, ln, pieces...); got != want+":"+hello+"more" {
				t.Errorf("%q went to %.10q, want %s with all that was said", name, got, want)
			}
		}
	}
	for _, other := range []string{"GET / HTTP/1.1\r\n\r\n", "\x16\x03\x01", strings.Repeat("\x16\x03\x01\x40\x00\x01\x00\xff\xff", 3000)} {
		if got := said(t, ln, other); got != "other:"+other {
			t.Errorf("%.20q went to %.20q of %d bytes", other, got, len(got))
		}
	}
	c := dial(t, ln)                   // waits for the server to speak
	time.Sleep(300 * time.Millisecond) // its silence is what is tested
	closeWrite(c)
	if b, err := io.ReadAll(c); string(b) != "other:" {
		t.Errorf("one that says nothing got %q, %v", b, err)
	}
}

func TestATLSClientForWhomThereIsNoTargetIsRefused(t *testing.T) {
	a := targets(t, "0", tellsAll)
	ev := &events{}
	s := &Server{Sink: ev, Route: Route{Names: map[string]*upstream.Pool{"a.example": poolOf(t, endpoint(a))}, HelloTimeout: 100 * time.Millisecond}}
	ln := start(t, s, "0")
	hello := greetingOf(t, "b.example")
	for _, say := range []string{hello, "GET /", ""} {
		c := dial(t, ln)
		c.Write([]byte(say))
		if _, err := c.Read(make([]byte, 1)); !isReset(err) {
			t.Errorf("%.10q saw %v", say, err)
		}
	}
	ev.waitFor(t, stats.Error, 3)
	if got := said(t, ln, greetingOf(t, "a.example"), "x"); !bytes.HasSuffix([]byte(got), []byte("x")) {
		t.Errorf("got %q", got)
	}
}

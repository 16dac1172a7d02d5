package stream

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"io"
	"math/rand/v2"
	"net"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/fivetuple/fivetuple"
	"github.com/fivetuple/fivetuple/dial"
	"github.com/fivetuple/fivetuple/secure"
	"github.com/fivetuple/fivetuple/stats"
)

func trusting() *tls.Config { return &tls.Config{InsecureSkipVerify: true} }

func TestTLSEchoReturnsTheBytesAndThenEOF(t *testing.T) {
	for _, where := range []string{"tls://0", "unix://@stream-test-tls"} {
		t.Run(where, func(t *testing.T) {
			ev := newEvents()
			ln := serve(t, &Server{Handler: Echo(), Sink: ev, TLS: selfSigned(t)}, where)
			c := tls.Client(connect(t, ln), trusting())
			sent := make([]byte, 3_000_000)
			rand.NewChaCha8([32]byte{3}).Read(sent)
			total := 0
			for _, size := range []int{1, smallSize - 1, smallSize, smallSize + 1, 16<<10 - 1, 16 << 10, 16<<10 + 1} { // around those of buffers and records
				c.Write(sent[:size])
				if got := readFull(t, c, size); !bytes.Equal(got, sent[:size]) {
					t.Fatalf("of %d bytes others came back", size)
				}
				total += size
			}
			go func() {
				c.Write(sent)
				c.CloseWrite()
			}()
			if got, err := io.ReadAll(c); err != nil || !bytes.Equal(got, sent) {
				t.Fatalf("got %d bytes, %v, want the %d sent", len(got), err, len(sent))
			}
			c.Close()
			end := ev.wait(t, "disconnect", kindIs(stats.Disconnect))
			if n := uint64(total + len(sent)); end.Cause != causePeerClosed || end.BytesIn != n || end.BytesOut != n {
				t.Errorf("got %+v", end)
			}
			if tcp := where == "tls://0"; tcp != (end.TCP != nil && end.TCP.MSS > 0) {
				t.Errorf("final TCP_INFO is %+v", end.TCP)
			}
		})
	}
}

func TestHandlersSeeWhatTheHandshakeCameTo(t *testing.T) {
	got := make(chan tls.ConnectionState, 1)
	h := HandlerFunc(func(_ context.Context, c *Conn) error {
		state, ok := c.TLS()
		if !ok {
			t.Error("no TLS")
		}
		got <- state
		return nil
	})
	tls.Client(connect(t, serve(t, &Server{Handler: h, TLS: selfSigned(t)}, "tls://0")), trusting()).Handshake()
	if state := <-got; state.Version != tls.VersionTLS13 || !state.HandshakeComplete {
		t.Errorf("got %+v", state)
	}
}

func TestHandlersSeeThatTheEndWasCutOff(t *testing.T) {
	got := make(chan bool, 1)
	h := HandlerFunc(func(_ context.Context, c *Conn) error {
		_, err := io.ReadAll(c)
		got <- secure.Truncated(c)
		return err
	})
	ln := serve(t, &Server{Handler: h, TLS: selfSigned(t)}, "tls://0")
	for _, cut := range []bool{true, false} {
		below := connect(t, ln)
		c := tls.Client(below, trusting())
		io.WriteString(c, "half a")
		if cut {
			closeWrite(below)
		} else {
			c.CloseWrite()
		}
		if <-got != cut {
			t.Errorf("cut off %v: it says otherwise", cut)
		}
	}
}

func TestPeersThatDoNotSpeakTLS(t *testing.T) {
	for _, tt := range []struct {
		name string
		does func(net.Conn)
		want []string // in the Error event; none if there is no event
	}{
		{"says HTTP", func(c net.Conn) { io.WriteString(c, "GET / HTTP/1.1\r\nHost: x\r\n\r\n") }, []string{"does not speak TLS", `it said "GET / HTTP/1.1"`}},
		{"says garbage", func(c net.Conn) { c.Write(bytes.Repeat([]byte{0xff, 0}, 500)) }, []string{"does not speak TLS"}},
		{"says one byte", func(c net.Conn) { c.Write([]byte("x")) }, []string{"no TLS handshake within"}},
		{"says nothing", func(net.Conn) {}, []string{"no TLS handshake within", "sent nothing"}},
		{"stops in the middle", func(c net.Conn) { c.Write([]byte{22, 3, 1, 0, 200, 1, 0, 0, 196}) }, []string{"no TLS handshake within"}},
		{"only connects", func(c net.Conn) { c.Close() }, nil},
		{"speaks an old version", func(c net.Conn) {
			tls.Client(c, &tls.Config{InsecureSkipVerify: true, MinVersion: tls.VersionTLS10, MaxVersion: tls.VersionTLS11}).Handshake()
		}, []string{"version", "TLS 1.2"}},
		{"does not trust the certificate", func(c net.Conn) { tls.Client(c, &tls.Config{ServerName: "x"}).Handshake() }, []string{"refused with the alert"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			ev := newEvents()
			ln := serve(t, &Server{Handler: Echo(), Sink: ev, TLS: selfSigned(t), HandshakeTimeout: 300 * time.Millisecond}, "tls://0")
			c := connect(t, ln)
			tt.does(c)
			end := ev.wait(t, "disconnect", kindIs(stats.Disconnect))
			errs := slices.DeleteFunc(ev.snapshot(), func(e stats.Event) bool { return e.Kind != stats.Error })
			if tt.want == nil {
				if len(errs) > 0 || end.Cause != causePeerClosed {
					t.Errorf("got %+v, %+v", errs, end)
				}
				return
			}
			if len(errs) != 1 || end.Cause != causeHandshake || end.Err != errs[0].Err || errs[0].Tuple.Remote.IsZero() {
				t.Fatalf("got %+v, %+v", errs, end)
			}
			for _, want := range tt.want {
				if !strings.Contains(errs[0].Err, want) {
					t.Errorf("got %q, want %q in it", errs[0].Err, want)
				}
			}
		})
	}
}

func TestUnfinishedHandshakesHoldUpNobodyAndCountAsConnections(t *testing.T) {
	s := &Server{Handler: Echo(), TLS: selfSigned(t), Limits: Limits{MaxConns: 4}}
	ln := serve(t, s, "tls://0")
	var silent []net.Conn
	for range 3 {
		silent = append(silent, connect(t, ln))
	}
	waitForConns(t, s, 3)
	c := tls.Client(connect(t, ln), trusting())
	io.WriteString(c, "x")
	readFull(t, c, 1)
	next := tls.Client(connect(t, ln), trusting())
	next.SetDeadline(time.Now().Add(100 * time.Millisecond))
	if err := next.Handshake(); !isTimeout(err) {
		t.Errorf("a fifth was served: %v", err)
	}
	silent[0].Close()
	waitForConns(t, s, 4) // with the fifth
}

func TestABroadcastWaitsForTheHandshake(t *testing.T) {
	s := &Server{Handler: Discard(), TLS: selfSigned(t)}
	raw := connect(t, serve(t, s, "tls://0"))
	waitForConns(t, s, 1)
	if n := s.Broadcast([]byte("to all")); n != 1 {
		t.Errorf("reached %d", n)
	}
	if got := readFull(t, tls.Client(raw, trusting()), 6); string(got) != "to all" {
		t.Errorf("got %q", got)
	}
}

func TestTLSPeersThatNeverReadDoNotHoldUpTheServer(t *testing.T) {
	ev := newEvents()
	s := &Server{Handler: Chargen(), TLS: selfSigned(t), Sink: ev, Limits: Limits{IdleTimeout: 200 * time.Millisecond}}
	ln := serve(t, s, "tls://0")
	began := time.Now()
	for range 5 {
		c := tls.Client(connect(t, ln), trusting())
		if err := c.Handshake(); err != nil {
			t.Fatal(err)
		}
	}
	for id := range uint64(5) {
		if end := ev.wait(t, "disconnect", func(e stats.Event) bool { return e.Kind == stats.Disconnect && e.Conn == id+1 }); end.Cause != causeIdle {
			t.Errorf("got %+v", end)
		}
	}
	if took := time.Since(began); took > 8*time.Second {
		t.Errorf("it took %v, as if one had waited for the other", took)
	}
}

func TestOpenSSLIsServed(t *testing.T) {
	client := func(t *testing.T, ln net.Listener, args ...string) (in io.WriteCloser, out io.Reader, wait func() error) {
		cmd := program(t, "openssl", "openssl", append([]string{"s_client", "-quiet", "-connect", ln.Addr().String()}, args...)...)
		in, err := cmd.StdinPipe()
		if err != nil {
			t.Fatal(err)
		}
		if out, err = cmd.StdoutPipe(); err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		return in, out, cmd.Wait
	}
	for _, version := range []string{"-tls1_2", "-tls1_3"} {
		t.Run("echo "+version, func(t *testing.T) {
			ev := newEvents()
			in, out, wait := client(t, serve(t, &Server{Handler: Echo(), TLS: selfSigned(t), Sink: ev}, "tls://0"), version, "-no_ign_eof")
			io.WriteString(in, "hello\n")
			got := make([]byte, 6)
			if _, err := io.ReadFull(out, got); err != nil || string(got) != "hello\n" {
				t.Errorf("got %q, %v", got, err)
			}
			in.Close()
			if err := wait(); err != nil {
				t.Error(err)
			}
			if end := ev.wait(t, "disconnect", kindIs(stats.Disconnect)); end.Cause != causePeerClosed || end.BytesIn != 6 {
				t.Errorf("got %+v", end)
			}
		})
		t.Run("the server ends "+version, func(t *testing.T) {
			_, out, wait := client(t, serve(t, &Server{Handler: Daytime(), TLS: selfSigned(t)}, "tls://0"), version)
			if got, err := io.ReadAll(out); err != nil || !bytes.HasSuffix(got, []byte("\r\n")) {
				t.Errorf("got %q, %v", got, err)
			}
			if err := wait(); err != nil {
				t.Errorf("openssl misses the end: %v", err)
			}
		})
	}
}

func TestAfterTheGoodbyeOfTLSComesAFIN(t *testing.T) {
	raw := connect(t, serve(t, &Server{Handler: Daytime(), TLS: selfSigned(t)}, "tls://0"))
	if _, err := io.ReadAll(tls.Client(raw, trusting())); err != nil {
		t.Fatal(err)
	}
	raw.SetReadDeadline(time.Now().Add(flushTimeout - time.Second))
	if n, err := raw.Read(make([]byte, 1)); err != io.EOF {
		t.Errorf("got %d bytes, %v; want the end", n, err)
	}
}

func TestClientConnectsOverTLSAndSaysWhyNot(t *testing.T) {
	ln := serve(t, &Server{Handler: Echo(), TLS: selfSigned(t)}, "tls://0")
	e := endpoint(t, "tls://"+ln.Addr().String())
	got := make(chan string, 1)
	c := &Client{Endpoint: e, Dialer: dial.Dialer{TLS: trusting()}, OnData: func(b []byte) { got <- string(b) }}
	if err := c.Connect(t.Context()); err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if err := c.Send([]byte("hello")); err != nil {
		t.Fatal(err)
	}
	if g := <-got; g != "hello" {
		t.Errorf("got %q", g)
	}
	if info, err := c.TCPInfo(); err != nil || info.SndMSS == 0 {
		t.Errorf("TCP_INFO: %+v, %v", info, err)
	}
	if c.Tuple().Protocol != fivetuple.TCP {
		t.Errorf("tuple is %v", c.Tuple())
	}
	strict := &Client{Endpoint: e, Tries: -1}
	if err := strict.Connect(t.Context()); err == nil || !strings.Contains(err.Error(), "certificate") {
		strict.Close()
		t.Errorf("an unknown certificate: %v", err)
	}
}

func TestSeqpacketCannotCarryTLS(t *testing.T) {
	ln, err := ListenConfig{}.Listen(t.Context(), endpoint(t, "seqpacket://@stream-test-tls"))
	if err != nil {
		t.Fatal(err)
	}
	s := &Server{Handler: Echo(), TLS: selfSigned(t)}
	if err := s.Serve(ln); err == nil || errors.Is(err, ErrServerClosed) || !strings.Contains(err.Error(), "records") {
		t.Errorf("Serve: %v", err)
	}
	s.Shutdown(t.Context())
}

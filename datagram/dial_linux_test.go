package datagram

import (
	"context"
	"fmt"
	"net/netip"
	"os"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/fivetuple/fivetuple"
	"github.com/fivetuple/fivetuple/internal/lab"
)

func TestDialedConnIsANetConn(t *testing.T) {
	s := serve(t, &Server{Handler: Echo()}, "udp://127.0.0.1:0")
	for _, d := range []Dialer{{}, {Unconnected: true}} {
		c := dialWith(t, d, udp(s))
		b := make([]byte, 100)
		for _, text := range []string{"one", "", "three"} {
			if n, err := c.Write([]byte(text)); n != len(text) || err != nil {
				t.Fatal(n, err)
			}
			if n, err := c.Read(b); string(b[:n]) != text || err != nil {
				t.Errorf("got %q, %v, want %q", b[:n], err, text)
			}
		}
		if n, err := c.Read(nil); n != 0 || err != nil {
			t.Errorf("read of nothing: got %d, %v", n, err)
		}
		if got := fivetuple.AddressOf(c.RemoteAddr()); got != s.local {
			t.Errorf("remote address: got %v, want %v", got, s.local)
		}
		c.Write([]byte("0123456789"))
		n, err := c.Read(b[:4])
		if wantError(t, err, ErrTruncated); string(b[:n]) != "0123" {
			t.Errorf("cut: got %q", b[:n])
		}
		c.SetDeadline(time.Unix(1, 0))
		_, err = c.Read(b)
		wantError(t, err, os.ErrDeadlineExceeded)
		_, err = c.Write(b)
		wantError(t, err, os.ErrDeadlineExceeded)
		if allocs := testing.AllocsPerRun(100, func() {
			c.SetDeadline(time.Time{})
			c.Write(b)
			c.Read(b)
		}); allocs != 0 {
			t.Errorf("%v allocations for a write and a read", allocs)
		}
	}
	wantError(t, s.Send([]byte("x")), ErrNotConnected, "was not dialed")
	if a := s.RemoteAddr(); a != nil {
		t.Errorf("a listener's remote address: got %v", a)
	}
}

func TestUnconnectedReceivesFromAnyone(t *testing.T) {
	s := listen(t, "udp://127.0.0.1:0")
	c := dialWith(t, Dialer{Unconnected: true}, udp(s))
	connected := dial(t, udp(s))
	stranger := listen(t, "udp://127.0.0.1:0")
	for _, to := range []*Conn{c, connected} {
		if err := stranger.SendTo(fivetuple.IPAddress(netip.AddrPortFrom(netip.MustParseAddr("127.0.0.1"), to.local.AddrPort.Port())), []byte("hello")); err != nil {
			t.Fatal(err)
		}
	}
	if p := want(t, c, "hello"); p.From != stranger.local {
		t.Errorf("from %v, want %v", p.From, stranger.local)
	}
	nothing(t, connected)
}

func TestDialFromASource(t *testing.T) {
	s := listen(t, "udp://127.0.0.1:0")
	for _, tt := range []struct {
		source string
		d      Dialer
	}{{"127.0.0.7:0", Dialer{}}, {"127.0.0.7:0", Dialer{Unconnected: true}}} {
		tt.d.Source = netip.MustParseAddrPort(tt.source)
		c := dialWith(t, tt.d, udp(s))
		send(t, c, "x")
		if p := want(t, s, "x"); p.From != c.local || p.From.AddrPort.Addr() != tt.d.Source.Addr() {
			t.Errorf("from %v, want %s", p.From, tt.source)
		}
		port := c.local.AddrPort.Port()
		c.Close()
		tt.d.Source = netip.AddrPortFrom(netip.Addr{}, port) // the port alone
		send(t, dialWith(t, tt.d, udp(s)), "x")
		if p := want(t, s, "x"); p.From.AddrPort.Port() != port {
			t.Errorf("from %v, want port %d", p.From, port)
		}
	}
	_, err := Dialer{Source: netip.MustParseAddrPort("[::1]:0")}.Dial(t.Context(), parse(t, udp(s)))
	if err == nil || !strings.Contains(err.Error(), "of different families") {
		t.Errorf("another family: got %v", err)
	}
	_, err = Dialer{Source: netip.MustParseAddrPort("192.0.2.9:0")}.Dial(t.Context(), parse(t, udp(s)))
	wantError(t, err, syscall.EADDRNOTAVAIL, "connect udp://127.0.0.1:", "192.0.2.9 is not an address of this host")
}

func TestDialTakesAnAddressWithARoute(t *testing.T) {
	for _, endpoint := range []string{"udp4://localhost:9", "udp://localhost:9", "udp://9", "udp6://[::1]:9"} {
		for _, d := range []Dialer{{}, {Unconnected: true}} {
			c := dialWith(t, d, endpoint)
			if a := c.remote.AddrPort.Addr(); !a.IsLoopback() || strings.Contains(endpoint, "4:") && !a.Is4() || strings.Contains(endpoint, "6:") && !a.Is6() {
				t.Errorf("%s: sends to %v", endpoint, a)
			}
			c.Close()
		}
	}
	// The tests' namespace has loopback only.
	for _, d := range []Dialer{{}, {Unconnected: true}} {
		_, err := d.Dial(t.Context(), parse(t, "udp://192.0.2.1:9"))
		wantError(t, err, syscall.ENETUNREACH, "connect udp://192.0.2.1:9")
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := (Dialer{}).Dial(ctx, parse(t, "udp://no.such.host.invalid:9")); err == nil || !strings.Contains(err.Error(), "no.such.host.invalid") {
		t.Errorf("a name that is none: got %v", err)
	}
}

func TestOnlyBroadcastAddressesSetBroadcast(t *testing.T) {
	a, b := lab.NewHost(t, "a"), lab.NewHost(t, "b")
	lab.Link(t, a, b, "10.0.0.0/24")
	a.AddRoute(t, "0.0.0.0/0", "10.0.0.2")
	c := listenIn(t, b, "udp4://*:700")
	index, _ := device(t, a, "b")
	for _, tt := range []struct {
		to        string
		d         Dialer
		broadcast bool
	}{
		{"10.0.0.2", Dialer{}, false},
		{"10.0.0.2", Dialer{Unconnected: true}, false},
		{"239.1.1.1", Dialer{Interface: fmt.Sprint(index)}, false},
		{"10.0.0.255", Dialer{}, true},
		{"255.255.255.255", Dialer{}, true},
		{"255.255.255.255", Dialer{Interface: fmt.Sprint(index)}, true},
	} {
		sender := dialFrom(t, a, tt.d, "udp://"+tt.to+":700")
		got := 0
		raw, err := sender.SyscallConn()
		if err == nil {
			err = onFD(raw, func(fd int) (err error) {
				got, err = unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_BROADCAST)
				return err
			})
		}
		if err != nil || (got != 0) != tt.broadcast {
			t.Errorf("%s: SO_BROADCAST is %d, %v", tt.to, got, err)
		}
		send(t, sender, tt.to)
		if tt.to != "239.1.1.1" {
			want(t, c, tt.to)
		}
		if !tt.broadcast && !sender.connected {
			wantError(t, sender.SendTo(fivetuple.ParseAddress("10.0.0.255:700"), []byte("x")), syscall.EACCES, "broadcast=on")
		}
	}
}

// The limited broadcast leaves by the interface that is named, whatever the routes say.
func TestBroadcastByTheInterfaceChosen(t *testing.T) {
	left, right, b := lab.NewHost(t, "left"), lab.NewHost(t, "right"), lab.NewHost(t, "middle")
	lab.Link(t, left, b, "10.1.0.0/24")
	lab.Link(t, right, b, "10.2.0.0/24")
	b.AddRoute(t, "0.0.0.0/0", "10.1.0.1")
	conns := map[string]*Conn{"left": listenIn(t, left, "udp4://*:700"), "right": listenIn(t, right, "udp4://*:700")}
	for _, side := range []string{"right", "left"} {
		index, _ := device(t, b, side)
		sender := dialFrom(t, b, Dialer{Interface: fmt.Sprint(index)}, "udp://255.255.255.255:700")
		send(t, sender, side)
		p := want(t, conns[side], side)
		if err := p.Reply([]byte("heard")); err != nil {
			t.Fatal(err)
		}
		want(t, sender, "heard")
	}
	for _, c := range conns {
		nothing(t, c)
	}
}

func TestICMPErrorsSurfaceOnceAndAreNotTheEnd(t *testing.T) {
	c := dial(t, "udp://127.0.0.1:9")
	b := make([]byte, 100)
	for range 3 {
		if _, err := c.Write([]byte("anybody there?")); err != nil {
			t.Fatal(err)
		}
		_, err := c.Read(b)
		wantError(t, err, syscall.ECONNREFUSED, "udp 127.0.0.1:9: connection refused (ICMP port unreachable from 127.0.0.1): nobody has the port open")
		nothing(t, c)
	}
	s := serve(t, &Server{Handler: Echo()}, "udp://127.0.0.1:9")
	if _, err := c.Write([]byte("and now?")); err != nil {
		t.Fatal(err)
	}
	if n, err := c.Read(b); string(b[:n]) != "and now?" {
		t.Errorf("got %q, %v from %v", b[:n], err, s.local)
	}
}

// Whoever waits in Read hears of the errors that Write has met.
func TestReaderHearsOfWhatTheWriterMet(t *testing.T) {
	c := dial(t, "udp://127.0.0.1:9")
	for range 3 { // no reader takes them
		send(t, c, "x")
	}
	c.mu.Lock()
	told := len(c.told)
	c.mu.Unlock()
	if told == 0 {
		t.Fatal("the writer has met no error")
	}
	b := make([]byte, 10)
	for range 3 {
		_, err := c.Read(b)
		wantError(t, err, syscall.ECONNREFUSED)
	}
	nothing(t, c)
	readers := make(chan error)
	for range 2 {
		go func() {
			_, err := c.Read(make([]byte, 10))
			readers <- err
		}()
	}
	c.tell(&ICMPError{Errno: syscall.EHOSTUNREACH})
	wantError(t, <-readers, syscall.EHOSTUNREACH)
	c.SetReadDeadline(time.Now())
	wantError(t, <-readers, os.ErrDeadlineExceeded)
}

func TestDialByAnInterface(t *testing.T) {
	s := serve(t, &Server{Handler: Echo()}, "udp://127.0.0.1:0")
	c := dialWith(t, Dialer{Interface: "lo"}, udp(s))
	send(t, c, "x")
	want(t, c, "x")
	a := listenWith(t, lab.NewHost(t, "h"), ListenConfig{Interface: "lo"}, "udp4://*:0")
	raw, err := a.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	if err := onFD(raw, func(fd int) error {
		if got, err := unix.GetsockoptString(fd, unix.SOL_SOCKET, unix.SO_BINDTODEVICE); got != "lo" {
			t.Errorf("bound to device %q, %v", got, err)
		}
		return nil
	}); err != nil {
		t.Fatal(err)
	}
}

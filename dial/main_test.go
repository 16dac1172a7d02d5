package dial

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"strings"
	"testing"

	"go.uber.org/goleak"

	"github.com/fivetuple/fivetuple"
	"github.com/fivetuple/fivetuple/internal/lab"
	"github.com/fivetuple/fivetuple/sockopt"
)

func TestMain(m *testing.M) {
	lab.Enter()
	goleak.VerifyTestMain(m)
}

// dialIn dials in a host, where the sockets of every attempt belong.
func dialIn(t *testing.T, h *lab.Host, d Dialer, endpoint string) (conn net.Conn, err error) {
	t.Helper()
	d.connect = func(d Dialer, ctx context.Context, to netip.AddrPort) (c connection, err error) {
		h.Do(t, func() { c, err = d.connectTCP(ctx, to) })
		return c, err
	}
	h.Do(t, func() { conn, err = d.Dial(t.Context(), fivetuple.MustParseEndpoint(endpoint)) })
	if conn != nil {
		t.Cleanup(func() { conn.Close() })
	}
	return conn, err
}

// serve accepts on an address of a host until the test ends.
func serve(t *testing.T, h *lab.Host, address string) {
	t.Helper()
	ln, err := h.Listen("tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	acceptAll(t, ln)
}

// acceptAll keeps what a listener accepts open until the test ends.
func acceptAll(t *testing.T, ln net.Listener) {
	t.Helper()
	done := make(chan struct{})
	go func() {
		defer close(done)
		for {
			conn, err := ln.Accept()
			if err != nil {
				return
			}
			defer conn.Close()
		}
	}()
	t.Cleanup(func() { ln.Close(); <-done })
}

// listen listens on the loopback of the lab.
func listen(t *testing.T, network, address string) net.Listener {
	t.Helper()
	var lc net.ListenConfig
	lc.SetMultipathTCP(false)
	ln, err := lc.Listen(t.Context(), network, address)
	if err != nil {
		t.Fatal(err)
	}
	return ln
}

func both(a6, a4 string) names {
	return names{&reply{addrs: []string{a6}}, &reply{addrs: []string{a4}}}
}

func wantError(t *testing.T, err error, is error, parts ...string) {
	t.Helper()
	if err == nil {
		t.Fatal("got a connection, want an error")
	}
	if is != nil && !errors.Is(err, is) {
		t.Errorf("got %v, want %v", err, is)
	}
	for _, part := range parts {
		if !strings.Contains(err.Error(), part) {
			t.Errorf("got %v, want it to say %q", err, part)
		}
	}
}

func options(t *testing.T, text string) (s sockopt.Settings) {
	t.Helper()
	if err := s.Set(text); err != nil {
		t.Fatal(err)
	}
	return s
}

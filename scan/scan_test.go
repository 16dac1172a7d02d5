package scan_test

import (
	"context"
	"errors"
	"io"
	"net"
	"net/netip"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/fivetuple/fivetuple"
	"github.com/fivetuple/fivetuple/scan"
)

func target(addr string) []scan.Target {
	return []scan.Target{{First: netip.MustParseAddr(addr)}}
}

func listen(t *testing.T, address string) (net.Listener, uint16) {
	t.Helper()
	l, err := net.Listen("tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	return l, netip.MustParseAddrPort(l.Addr().String()).Port()
}

func TestOpenAndClosedPorts(t *testing.T) {
	defer goleak.VerifyNone(t, goleak.IgnoreCurrent())
	for _, host := range []string{"127.0.0.1", "::1"} {
		l, closed := listen(t, net.JoinHostPort(host, "0"))
		_, open := listen(t, net.JoinHostPort(host, "0"))
		l.Close()

		var s scan.Scanner
		got := make(map[uint16]scan.Result)
		for r, err := range s.Scan(t.Context(), target(host), scan.Ports(open, closed)) {
			if err != nil {
				t.Fatal(err)
			}
			if r.RTT <= 0 || r.RTT > time.Second {
				t.Errorf("port %d: RTT %v", r.Port, r.RTT)
			}
			r.RTT = 0
			r.Service = "" // which port it is is chance
			got[r.Port] = r
		}
		want := scan.Result{Host: netip.MustParseAddr(host), Port: open, Protocol: fivetuple.TCP, State: scan.Open, Reason: "connected"}
		if got[open] != want {
			t.Errorf("open port: got %+v, want %+v", got[open], want)
		}
		want.Port, want.State, want.Reason = closed, scan.Closed, "connection refused"
		if got[closed] != want {
			t.Errorf("closed port: got %+v, want %+v", got[closed], want)
		}
		if done, total := s.Progress(); done != 2 || total != 2 {
			t.Errorf("progress: got %d of %d, want 2 of 2", done, total)
		}
	}
}

func TestResultNamesHostAndService(t *testing.T) {
	ports, err := scan.ParsePorts("https", nil)
	if err != nil {
		t.Fatal(err)
	}
	localhost := scan.Target{Name: "localhost", First: netip.MustParseAddr("127.0.0.1")}
	var s scan.Scanner
	for r, err := range s.Scan(t.Context(), []scan.Target{localhost}, ports) {
		if err != nil || r.Name != "localhost" || r.Service != "https" || r.Port != 443 {
			t.Errorf("got %+v, %v, want port 443, https, of localhost", r, err)
		}
	}
}

// The connection is reset, so no TIME_WAIT remains on either side, and has carried nothing.
func TestOpenPortSeesAResetAndNoData(t *testing.T) {
	l, open := listen(t, "127.0.0.1:0")
	var s scan.Scanner
	for _, err := range s.Scan(t.Context(), target("127.0.0.1"), scan.Ports(open)) {
		if err != nil {
			t.Fatal(err)
		}
	}
	conn, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	n, err := conn.Read(make([]byte, 1))
	if n != 0 || err == nil || errors.Is(err, io.EOF) {
		t.Errorf("read %d bytes, %v, want a reset", n, err)
	}
}

func TestNothingToScanIsAnError(t *testing.T) {
	for _, tt := range []struct {
		targets []scan.Target
		ports   scan.PortSet
		want    string
	}{
		{nil, scan.Ports(1), "scan: no target is given"},
		{target("127.0.0.1"), scan.PortSet{}, "scan: no port is given"},
	} {
		var s scan.Scanner
		var got error
		for _, err := range s.Scan(t.Context(), tt.targets, tt.ports) {
			got = err
		}
		if got == nil || got.Error() != tt.want {
			t.Errorf("got %v, want %s", got, tt.want)
		}
	}
}

func TestScanYieldsTheErrorOfItsContext(t *testing.T) {
	canceled, cancel := context.WithCancel(t.Context())
	cancel()
	expired, cancel := context.WithTimeout(t.Context(), -1)
	defer cancel()
	for ctx, want := range map[context.Context]error{canceled: context.Canceled, expired: context.DeadlineExceeded} {
		var s scan.Scanner
		var got []error
		for _, err := range s.Scan(ctx, target("127.0.0.1"), scan.Ports(1, 2, 3)) {
			got = append(got, err)
		}
		if len(got) != 1 || !errors.Is(got[0], want) {
			t.Errorf("got %v, want only %v", got, want)
		}
	}
}

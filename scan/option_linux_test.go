package scan_test

import (
	"errors"
	"math"
	"net"
	"strings"
	"syscall"
	"testing"

	"github.com/fivetuple/fivetuple/scan"
	"github.com/fivetuple/fivetuple/sockopt"
)

func TestAbsurdParallelIsCutToWhatThereIs(t *testing.T) {
	_, open := listen(t, "127.0.0.1:0")
	for _, parallel := range []int{math.MaxInt, 1e9, 65537} {
		s := scan.Scanner{Parallel: parallel}
		for r, err := range s.Scan(t.Context(), target("127.0.0.1"), scan.Ports(open)) {
			if err != nil || r.State != scan.Open {
				t.Errorf("parallel %d: got %+v, %v", parallel, r, err)
			}
		}
	}
}

// What the listener's socket sees of an option tells that it was set before connecting.
func TestOptionsAreSetBeforeConnecting(t *testing.T) {
	l, open := listen(t, "127.0.0.1:0")
	s := scan.Scanner{Options: settings(t, "maxseg=600")}
	for r, err := range s.Scan(t.Context(), target("127.0.0.1"), scan.Ports(open)) {
		if err != nil || r.State != scan.Open {
			t.Fatalf("got %+v, %v", r, err)
		}
	}
	conn, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	raw, err := conn.(*net.TCPConn).SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	var mss sockopt.Setting
	raw.Control(func(fd uintptr) { mss, err = sockopt.Get(int(fd), "maxseg") })
	if err != nil || mss.Int() > 600 {
		t.Errorf("the peer may send segments of %s (%v), want 600 at most", mss, err)
	}
	if n, err := conn.Read(make([]byte, 1)); !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("read %d bytes, %v, want a reset", n, err)
	}
}

func TestOptionThatCannotBeSetEndsTheScan(t *testing.T) {
	_, open := listen(t, "127.0.0.1:0")
	for _, tt := range []struct {
		option, host string
		wraps        error
		want         string
	}{
		{"gro=on", "127.0.0.1", sockopt.ErrSocket, "option gro"},
		{"v6only=on", "127.0.0.1", sockopt.ErrSocket, "target 127.0.0.1: option v6only"},
		// What errors of a connection would mean a filtered port or try again.
		{"bindtodevice=nosuch0", "127.0.0.1", syscall.ENODEV, "set bindtodevice"},
		{"congestion=nosuch", "127.0.0.1", syscall.ENOENT, "set congestion"},
	} {
		s := scan.Scanner{Options: settings(t, tt.option)}
		var errs []error
		for r, err := range s.Scan(t.Context(), target(tt.host), scan.Ports(open, 1, 2, 3)) {
			if err == nil {
				t.Errorf("%s: got %+v", tt.option, r)
			}
			errs = append(errs, err)
		}
		if len(errs) != 1 || !errors.Is(errs[0], tt.wraps) || !strings.Contains(errs[0].Error(), tt.want) {
			t.Errorf("%s: got %v, want one that wraps %v and has %q", tt.option, errs, tt.wraps, tt.want)
		}
	}
}

func settings(t *testing.T, text string) sockopt.Settings {
	var s sockopt.Settings
	if err := s.Set(text); err != nil {
		t.Fatal(err)
	}
	return s
}

package scan_test

import (
	"context"
	"errors"
	"os"
	"testing"
	"time"

	"go.uber.org/goleak"
	"golang.org/x/sys/unix"

	"github.com/fivetuple/fivetuple/scan"
)

func TestStoppedScanLeavesNothingBehind(t *testing.T) {
	port := silentPort(t)
	// One port that answers, being closed, and a hundred that do not.
	targets := target("127.0.0.2")
	for range 100 {
		targets = append(targets, target("127.0.0.1")...)
	}
	for _, tt := range []struct {
		name     string
		deadline time.Duration
		stop     func(context.CancelFunc) bool // at the first result; true to go on
		want     error
	}{
		{"break", time.Hour, func(context.CancelFunc) bool { return false }, nil},
		{"cancel", time.Hour, func(cancel context.CancelFunc) bool { cancel(); return true }, context.Canceled},
		{"deadline", 500 * time.Millisecond, func(context.CancelFunc) bool { return true }, context.DeadlineExceeded},
	} {
		t.Run(tt.name, func(t *testing.T) {
			defer goleak.VerifyNone(t, goleak.IgnoreCurrent())
			before := descriptors(t)
			ctx, cancel := context.WithTimeout(t.Context(), tt.deadline)
			defer cancel()

			var results []scan.Result
			var got error
			s := scan.Scanner{Timeout: time.Minute}
			start := time.Now()
			for r, err := range s.Scan(ctx, targets, scan.Ports(port)) {
				if got = err; err != nil {
					continue
				}
				results = append(results, r)
				if !tt.stop(cancel) {
					break
				}
			}
			if took := time.Since(start); took > 10*time.Second {
				t.Errorf("it took %v to stop", took)
			}
			if !errors.Is(got, tt.want) {
				t.Errorf("got %v, want %v", got, tt.want)
			}
			if len(results) != 1 || results[0].State != scan.Closed {
				t.Errorf("got %+v, want one closed port", results)
			}
			if done, total := s.Progress(); done != 1 || total != 101 {
				t.Errorf("progress: got %d of %d, want 1 of 101", done, total)
			}
			if after := descriptors(t); after != before {
				t.Errorf("%d descriptors are open, %d were before", after, before)
			}
		})
	}
}

// A list of all pairs would take terabytes.
func TestHugeScanStreams(t *testing.T) {
	targets, err := scan.ParseTargets(t.Context(), "127.0.0.0/8")
	if err != nil {
		t.Fatal(err)
	}
	ports, err := scan.ParsePorts("all", nil)
	if err != nil {
		t.Fatal(err)
	}
	var s scan.Scanner
	seen := 0
	for r, err := range s.Scan(t.Context(), targets, ports) {
		if err != nil {
			t.Fatal(err)
		}
		if r.State != scan.Closed && r.State != scan.Open {
			t.Errorf("got %+v, want an answer", r)
		}
		if seen++; seen == 1000 {
			break
		}
	}
	if done, total := s.Progress(); done != 1000 || total != 1<<24*65535 {
		t.Errorf("progress: got %d of %d, want 1000 of %d", done, total, 1<<24*65535)
	}
}

// silentPort returns a port of 127.0.0.1, closed on other addresses, that does not
// answer: its accept queue is full.
func silentPort(t *testing.T) uint16 {
	t.Helper()
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	socket := func() int {
		fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
		must(err)
		t.Cleanup(func() { unix.Close(fd) })
		return fd
	}
	listener := socket()
	must(unix.Bind(listener, &unix.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}}))
	must(unix.Listen(listener, 0))
	address, err := unix.Getsockname(listener)
	must(err)
	must(unix.Connect(socket(), address)) // a queue of length 0 has room for one
	return uint16(address.(*unix.SockaddrInet4).Port)
}

func descriptors(t *testing.T) int {
	t.Helper()
	entries, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	return len(entries)
}

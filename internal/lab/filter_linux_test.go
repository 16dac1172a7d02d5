package lab

import (
	"context"
	"errors"
	"net"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"
)

func TestFilteredPorts(t *testing.T) {
	a, b := NewHost(t, "a"), NewHost(t, "b")
	Link(t, a, b, "10.0.0.0/24", "fd00::/64")
	for _, proto := range []string{"tcp", "udp"} {
		b.Drop(t, proto, 1, 2)
		b.Reject(t, proto, 3)
	}
	const short, long = 200 * time.Millisecond, 10 * time.Second // for a veth pair
	for _, tt := range []struct {
		port     string
		patience time.Duration
		want     func(error) bool
	}{
		{"1", short, timedOut},
		{"2", short, timedOut},
		{"3", long, func(err error) bool { return errors.Is(err, syscall.ECONNREFUSED) }},
		{"4", long, func(err error) bool { return err == nil }},
	} {
		for _, network := range []string{"tcp", "udp"} {
			for _, host := range []string{"10.0.0.2", "fd00::2"} {
				address := net.JoinHostPort(host, tt.port)
				t.Run(network+" "+address, func(t *testing.T) {
					t.Parallel()
					serveEcho(t, b, network, address)
					if err := probe(t, a, network, address, tt.patience); !tt.want(err) {
						t.Errorf("got %v", err)
					}
				})
			}
		}
	}
}

func TestMissingProgramNamesItsPackage(t *testing.T) {
	h := NewHost(t, "h")
	t.Setenv("PATH", "")
	for want, fn := range map[string]func(testing.TB){
		"apt-get install nftables": func(tb testing.TB) { h.Drop(tb, "tcp", 1) },
		"apt-get install haproxy":  func(tb testing.TB) { h.Start(tb, exec.Command("haproxy", "-db")) },
		"apt-get install iproute2": func(tb testing.TB) { h.Start(tb, exec.Command("ss")) },
	} {
		if got := failure(t, fn); !strings.Contains(got, want) {
			t.Errorf("got failure %q, want %q in it", got, want)
		}
	}
}

// timedOut is of a dial, which the context ended, or of a read, which its deadline did.
func timedOut(err error) bool {
	return errors.Is(err, context.DeadlineExceeded) || errors.Is(err, os.ErrDeadlineExceeded)
}

// probe returns nil if a message to the address comes back in time.
func probe(t *testing.T, h *Host, network, address string, patience time.Duration) error {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	conn, err := h.Dial(ctx, network, address)
	if err != nil {
		return err
	}
	defer conn.Close()
	conn.SetDeadline(time.Now().Add(patience))
	if _, err := conn.Write([]byte("x")); err != nil {
		return err
	}
	_, err = conn.Read(make([]byte, 1))
	return err
}

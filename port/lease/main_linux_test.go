package lease

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"os"
	"syscall"
	"testing"

	"go.uber.org/goleak"
	"golang.org/x/sys/unix"

	"github.com/fivetuple/fivetuple"
	"github.com/fivetuple/fivetuple/internal/lab"
)

func TestMain(m *testing.M) {
	if role := os.Getenv(roleVariable); role != "" {
		os.Exit(play(role, os.Args[1:])) // one of the processes that tests start, in the lab already
	}
	lab.Enter()
	// Tests ask for ports by number, from 50000: the kernel is to take none of these for port 0 or a client.
	if err := os.WriteFile("/proc/sys/net/ipv4/ip_local_port_range", []byte("20000 29999"), 0); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	// Each registry of these tests is by itself, unless it is told of a directory.
	os.Setenv("FT_CLAIMS_DIR", "none")
	goleak.VerifyTestMain(m)
}

var (
	loopback = netip.MustParseAddr("127.0.0.1")
	any4     = netip.IPv4Unspecified()
	any6     = netip.IPv6Unspecified()
)

// listen opens a listener, or a UDP socket, on an address of the lab's host,
// closed at the end of the test, and returns its port.
func listen(t *testing.T, network, address string, options ...int) uint16 {
	t.Helper()
	closer, port, err := open(network, address, options...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { closer.Close() })
	return port
}

func open(network, address string, options ...int) (interface{ Close() error }, uint16, error) {
	config := net.ListenConfig{Control: func(_, _ string, raw syscall.RawConn) (err error) {
		errControl := raw.Control(func(fd uintptr) {
			for _, option := range options {
				if err == nil {
					err = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, option, 1)
				}
			}
		})
		if errControl != nil {
			return errControl
		}
		return err
	}}
	config.SetMultipathTCP(false)
	if n, _ := fivetuple.ParseNetwork(network); n.IsDatagram() {
		conn, err := config.ListenPacket(context.Background(), network, address)
		if err != nil {
			return nil, 0, err
		}
		return conn, conn.LocalAddr().(*net.UDPAddr).AddrPort().Port(), nil
	}
	listener, err := config.Listen(context.Background(), network, address)
	if err != nil {
		return nil, 0, err
	}
	return listener, listener.Addr().(*net.TCPAddr).AddrPort().Port(), nil
}

func acquire(t *testing.T, r Registry, request Request) Lease {
	t.Helper()
	l, err := r.Acquire(t.Context(), request)
	if err != nil {
		t.Fatalf("Acquire(%+v): %v", request, err)
	}
	return l
}

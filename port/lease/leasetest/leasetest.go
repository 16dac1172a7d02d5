// Package leasetest gives tests ports of their own, until the end of the test.
//
//	func TestServer(t *testing.T) {
//		l := leasetest.Listen(t)    // for what the test serves itself: bound from the first moment on
//		port := leasetest.Port(t)   // for a program that is started and binds by itself
//		server := exec.Command("server", "-listen", fmt.Sprintf("127.0.0.1:%d", port))
//		...
//	}
//
// The ports are leased in the registry of this user that `ft port` uses, which
// `ft port leases` shows. So neither other tests, in this test binary or in those
// that run beside it, nor other projects get the same, nor does a server get one
// that is leased and not bound yet. A lease ends with its test, also if that fails
// or panics; with the process if it is killed (Linux; on other systems after a
// day). A freed port rests for 60 s, which also is what connections in TIME_WAIT
// take: a test that is repeated finds none of its earlier connections. More than
// 16,000 ports in a minute cannot be had.
//
// Where there can be no registry, in a home directory that is read-only for
// example, the helpers use one in the memory of the process, and log that.
//
// Listen and ListenPacket leave no gap. Between Port and the bind of the program
// the port is leased and not bound: who asks no registry may take it. As nearly
// nobody but the kernel binds ports that it was not told of, and as that takes
// ports of ip_local_port_range (ip(7)) only, for outgoing connections and for
// those who bind port 0, Port prefers ports outside that range. With the range as
// Linux has it, 32768-60999, those are 61000-65535. If all of 49152-65535 is in
// the range, or those outside it are leased, the program may find its port in use.
package leasetest

import (
	"context"
	"errors"
	"io"
	"net"
	"net/netip"
	"sync"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/fivetuple/fivetuple"
	"github.com/fivetuple/fivetuple/internal/printable"
	"github.com/fivetuple/fivetuple/port/lease"
)

// Option changes what is leased: by default a TCP port of 127.0.0.1, in
// 49152-65535, whose purpose is the name of the test. [UDP] is one; others are
// functions such as
//
//	func(r *lease.Request) { r.Range = fivetuple.PortRange{First: 8000, Last: 8999} }
type Option func(*lease.Request)

// UDP makes it a UDP port.
func UDP(r *lease.Request) { r.Protocol = fivetuple.UDP }

// On leases the port on another address than 127.0.0.1.
func On(address netip.Addr) Option {
	return func(r *lease.Request) { r.Address = address }
}

// Port leases a port for a program that the test starts.
func Port(t testing.TB, options ...Option) uint16 {
	t.Helper()
	return acquire(t, request(t, fivetuple.TCP, options), func() {}).Port
}

// Listen returns a TCP listener, which is closed at the end of the test. If the
// test closes it earlier, the port stays leased.
func Listen(t testing.TB, options ...Option) net.Listener {
	t.Helper()
	var config net.ListenConfig
	config.SetMultipathTCP(false)
	return open(t, fivetuple.TCP, options, config.Listen)
}

// ListenPacket returns a UDP socket, which is closed at the end of the test. If
// the test closes it earlier, the port stays leased.
func ListenPacket(t testing.TB, options ...Option) net.PacketConn {
	t.Helper()
	var config net.ListenConfig
	return open(t, fivetuple.UDP, options, config.ListenPacket)
}

// open leases a port for a socket that is opened as part of the grant.
func open[S io.Closer](t testing.TB, protocol fivetuple.Network, options []Option, listen func(ctx context.Context, network, address string) (S, error)) S {
	t.Helper()
	r := request(t, protocol, options)
	if r.Protocol.Protocol() != protocol {
		t.Fatalf("leasetest: Listen is for tcp and ListenPacket for udp, but an option asks for %s", r.Protocol)
	}
	var socket S
	opened := false
	r.Bind = func(ctx context.Context, at netip.AddrPort) (err error) {
		network := r.Protocol.String()
		if at.Addr().Is4() {
			network = protocol.String() + "4" // or net would take 0.0.0.0 for ::
		}
		socket, err = listen(ctx, network, at.String())
		opened = err == nil
		return err
	}
	acquire(t, r, func() {
		if opened {
			socket.Close() // fails if the test has done so
		}
	})
	return socket
}

// longest is how long a lease lasts whose owner's death is not seen.
const longest = 24 * time.Hour

func request(t testing.TB, protocol fivetuple.Network, options []Option) lease.Request {
	r := lease.Request{Protocol: protocol, Purpose: purpose(t.Name()), TTL: longest}
	for _, change := range options {
		change(&r)
	}
	return r
}

func purpose(test string) string {
	s := printable.Escape("test " + test)
	for len(s) > lease.MaxPurpose {
		_, last := utf8.DecodeLastRuneInString(s)
		s = s[:len(s)-last]
	}
	return s
}

// acquire leases a port until the end of the test; then, or if it is not
// granted, it calls end first.
func acquire(t testing.TB, r lease.Request, end func()) lease.Lease {
	t.Helper()
	ctx := context.WithoutCancel(t.Context()) // that ends before the test's cleanups
	open := sharedRegistry(t)
	ports, err := open(ctx)
	if err != nil {
		t.Logf("leasetest: %v: other processes can get the port, too", err)
		open = processRegistry
		ports, err = open(ctx)
	}
	var l lease.Lease
	if err == nil {
		l, err = ports.Acquire(ctx, r)
		err = errors.Join(err, ports.Close())
	}
	if err != nil {
		end()
		t.Fatalf("leasetest: %v", err)
	}
	t.Cleanup(func() {
		end()
		ports, err := open(ctx)
		if err == nil {
			err = errors.Join(ports.Release(ctx, l), ports.Close())
		}
		if err != nil && !errors.Is(err, lease.ErrStale) {
			t.Logf("leasetest: the lease ends with the process only: %v", err)
		}
	})
	return l
}

// openRegistry opens a registry, which is closed again after each use: between
// the helpers' calls a test finds no goroutine or descriptor that is not its own.
type openRegistry func(context.Context) (registry, error)

type registry interface {
	lease.Registry
	io.Closer
}

// sharedRegistry is that of the user when it is called, whatever the test does
// to the environment later.
func sharedRegistry(t testing.TB) openRegistry {
	path, err := lease.DefaultPath()
	return func(ctx context.Context) (registry, error) {
		if err != nil {
			return nil, err
		}
		return lease.Open(ctx, path, lease.Options{Warn: func(err error) { t.Logf("leasetest: %v", err) }})
	}
}

func processRegistry(context.Context) (registry, error) { return inProcess{memory()}, nil }

type inProcess struct{ *lease.Memory }

func (inProcess) Close() error { return nil }

// memory is shared by all tests of the process, which would else get each other's ports.
var memory = sync.OnceValue(lease.NewMemory)

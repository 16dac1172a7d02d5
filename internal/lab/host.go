package lab

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strings"
	"testing"
)

// A Host is a network namespace with its own loopback, which is up, and nothing
// else until it is linked.
type Host struct {
	name string
	ns   *namespace
}

// NewHost makes a host that lasts until the test ends; then every process that is
// still in it is killed. Its name names the far end of links to it, so it must be
// fit for a network device: at most 15 bytes, no slash, no space.
func NewHost(t testing.TB, name string) *Host {
	t.Helper()
	ns, err := newNamespace()
	if err != nil {
		t.Fatalf("lab: make host %s: %v", name, err)
	}
	t.Cleanup(func() {
		if err := ns.close(); err != nil {
			t.Errorf("lab: close host %s: %v", name, err)
		}
	})
	h := &Host{name, ns}
	h.setUp(t, "lo")
	// A new IPv6 address is otherwise unusable for a second or two, while the kernel asks
	// the link whether anybody has it (duplicate address detection, RFC 4862 section 5.4).
	h.Sysctl(t, "net.ipv6.conf.all.accept_dad", "0")
	h.Sysctl(t, "net.ipv6.conf.default.accept_dad", "0")
	return h
}

// Do runs fn in the host, on the calling goroutine: the sockets that fn opens and
// the programs it starts belong to the host, and go on belonging to it after Do.
// Goroutines that fn starts are not in the host; nor are /proc/net and /proc/self/net,
// use /proc/thread-self/net. fn may fail the test.
//
// The net package remembers device names for a minute, whichever host they are of:
// write zones as numbers, or use a device name for one index only.
func (h *Host) Do(t testing.TB, fn func()) {
	t.Helper()
	if err := h.ns.do(fn); err != nil {
		t.Fatalf("lab: run in host %s: %v", h.name, err)
	}
}

// must runs a step of the set-up in the host and fails the test if it fails.
func (h *Host) must(t testing.TB, step string, fn func() error) {
	t.Helper()
	var err error
	h.Do(t, func() { err = fn() })
	if err != nil {
		t.Fatalf("lab: host %s: %s: %v", h.name, step, err)
	}
}

// Listen is [net.Listen] in the host, but never with Multipath TCP, which Go would
// use where the kernel has it.
func (h *Host) Listen(network, address string) (net.Listener, error) {
	var config net.ListenConfig
	config.SetMultipathTCP(false)
	return within(h, func() (net.Listener, error) {
		return config.Listen(context.Background(), network, address)
	})
}

// ListenPacket is [net.ListenPacket] in the host.
func (h *Host) ListenPacket(network, address string) (net.PacketConn, error) {
	return within(h, func() (net.PacketConn, error) {
		return net.ListenPacket(network, address)
	})
}

// Dial is [net.Dialer.DialContext] in the host. A TCP or UDP address must be
// literal: for a name, net opens sockets on other threads, which are not in the host.
func (h *Host) Dial(ctx context.Context, network, address string) (net.Conn, error) {
	if strings.HasPrefix(network, "tcp") || strings.HasPrefix(network, "udp") {
		if _, err := netip.ParseAddrPort(address); err != nil {
			return nil, fmt.Errorf("lab: dial %s %s from host %s: want a literal address and port: %w", network, address, h.name, err)
		}
	}
	return within(h, func() (net.Conn, error) {
		var dialer net.Dialer
		return dialer.DialContext(ctx, network, address)
	})
}

// within returns what fn returns in the host.
func within[T any](h *Host, fn func() (T, error)) (value T, err error) {
	errDo := h.ns.do(func() { value, err = fn() })
	return value, errors.Join(err, errDo)
}

package lab

import (
	"fmt"
	"net/netip"
	"testing"
	"time"
)

// Link joins two hosts with a veth pair that is ready when it returns. In a the device is
// named after b, and in b after a, so two hosts have one link at most. Of each
// network, an IPv4 or IPv6 prefix such as "10.0.0.0/24", a gets the first host
// address and b the second.
func Link(t testing.TB, a, b *Host, networks ...string) {
	t.Helper()
	a.must(t, "link to host "+b.name, func() error {
		return addVeth(b.name, a.name, b.ns)
	})
	a.setUp(t, b.name)
	b.setUp(t, a.name)
	addNetworks(t, a, b, networks)
}

// addNetworks gives the hosts of a link their addresses in each network.
func addNetworks(t testing.TB, a, b *Host, networks []string) {
	t.Helper()
	a.waitReady(t, b.name)
	b.waitReady(t, a.name)
	for _, network := range networks {
		prefix := parsePrefix(t, network).Masked()
		first := prefix.Addr().Next()
		second := first.Next()
		if !prefix.Contains(second.Next()) {
			t.Fatalf("lab: link hosts %s and %s: network %s is too small for two hosts", a.name, b.name, network)
		}
		a.AddAddr(t, b.name, netip.PrefixFrom(first, prefix.Bits()).String())
		b.AddAddr(t, a.name, netip.PrefixFrom(second, prefix.Bits()).String())
	}
}

// AddAddr gives a device of the host, such as "lo", an address with the length of
// its network, such as "10.0.0.7/24" or "fd00::7/64". It is usable at once.
func (h *Host) AddAddr(t testing.TB, device, prefix string) {
	t.Helper()
	p := parsePrefix(t, prefix)
	h.must(t, "add address "+prefix+" to "+device, func() error {
		return addAddr(device, p)
	})
	h.waitReady(t, device)
}

// AddRoute sends what the host has for a destination, such as "10.1.0.0/16" or
// "::/0", by way of a router on one of its links.
func (h *Host) AddRoute(t testing.TB, destination, router string) {
	t.Helper()
	p := parsePrefix(t, destination)
	via, err := netip.ParseAddr(router)
	if err != nil {
		t.Fatalf("lab: %v", err)
	}
	h.must(t, "add route to "+destination+" via "+router, func() error {
		return addRoute(p.Masked(), via)
	})
}

func (h *Host) setUp(t testing.TB, device string) {
	t.Helper()
	h.must(t, "set "+device+" up", func() error { return setUp(device) })
}

func parsePrefix(t testing.TB, text string) netip.Prefix {
	t.Helper()
	p, err := netip.ParsePrefix(text)
	if err != nil {
		t.Fatalf("lab: %v", err)
	}
	return p
}

// waitReady is untilReady for a device of the host.
func (h *Host) waitReady(t testing.TB, device string) {
	t.Helper()
	h.must(t, "wait for device "+device, func() error { return untilReady(device) })
}

// untilReady waits until what is sent through a device of this thread's namespace
// arrives. The kernel is ready a moment after it has answered, and until then drops
// packets, so that the first connection would take a retransmission's second longer.
func untilReady(device string) error {
	const patience = 10 * time.Second
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	for deadline := time.Now().Add(patience); time.Now().Before(deadline); <-tick.C {
		if ok, err := ready(device); ok || err != nil {
			return err
		}
	}
	return fmt.Errorf("not ready after %v", patience)
}

package cli

import (
	"encoding/hex"
	"net/netip"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/fivetuple/fivetuple"
	"github.com/fivetuple/fivetuple/internal/lab"
)

// TestInteropOfGroups: what is sent to a multicast group or a broadcast address, on
// one host, is heard by receivers on another.
func TestInteropOfGroups(t *testing.T) {
	const group, group6 = "239.1.2.3", "ff15::123"
	for _, tt := range []struct {
		name, group string // group: that is joined
		receiver    string
		sender      string
	}{
		{"ft connect to socat, multicast", group, "socat -u UDP4-RECV:PORT,ip-add-membership=239.1.2.3:sender -", "ft connect udp://239.1.2.3%receiver:PORT --messages length -q 10ms"},
		{"socat to ft listen, multicast", group, "ft listen udp://239.1.2.3%sender:PORT --messages length", "socat -u - UDP4-DATAGRAM:239.1.2.3:PORT,ip-multicast-if=10.0.0.1"},
		{"socat to ft listen, multicast from one source", group, "ft listen udp://239.1.2.3%sender:PORT --source 10.0.0.1 --messages length", "socat -u - UDP4-DATAGRAM:239.1.2.3:PORT,ip-multicast-if=10.0.0.1"},
		{"ft connect to socat, multicast over IPv6", group6, "socat -u UDP6-RECV:PORT,ipv6-join-group=[ff15::123]:sender -", "ft connect udp://[ff15::123%receiver]:PORT --messages length -q 10ms"},
		{"socat to ft listen, multicast over IPv6", group6, "ft listen udp://[ff15::123%sender]:PORT --messages length", "socat -u - UDP6-DATAGRAM:[ff15::123]:PORT,so-bindtodevice=receiver"},
		{"ft connect to socat, broadcast", "", "socat -u UDP4-RECV:PORT -", "ft connect udp://10.0.0.255:PORT --messages length -q 10ms"},
		{"ft connect to nc -l, broadcast", "", "nc.openbsd -u -l -k PORT", "ft connect udp://10.0.0.255:PORT --messages length -q 10ms"},
		{"ft connect to socat, limited broadcast", "", "socat -u UDP4-RECV:PORT -", "ft connect udp://255.255.255.255:PORT --interface receiver --messages length -q 10ms"},
		{"socat to ft listen, broadcast", "", "ft listen udp://*:PORT --messages length", "socat -u - UDP4-DATAGRAM:10.0.0.255:PORT,broadcast"},
		{"socat to ft listen, limited broadcast", "", "ft listen udp://*:PORT --messages length", "socat -u - UDP4-DATAGRAM:255.255.255.255:PORT,broadcast,so-bindtodevice=receiver"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			from, to := twoHosts(t)
			receiver := to.start(t, tt.receiver)
			receiver.awaitListening(t, fivetuple.UDP)
			if tt.group != "" {
				to.awaitGroup(t, netip.MustParseAddr(tt.group))
			}
			sender := from.start(t, tt.sender)
			for _, m := range datagrams[:3] { // no longer than a packet
				sender.say(sender.framed(m))
				receiver.hears(t, receiver.framed(m))
			}
			sender.endInput()
			sender.ends(t, 0)
			receiver.stops(t)
		})
	}
	t.Run("ft connect to ft listen and two socats on one port, multicast", func(t *testing.T) {
		t.Parallel()
		from, to := twoHosts(t)
		var receivers []*program
		for _, command := range []string{
			"ft listen udp://239.1.2.3%sender:PORT --messages length",
			"socat -u UDP4-RECV:PORT,reuseaddr,ip-add-membership=239.1.2.3:sender -",
			"socat -u UDP4-RECV:PORT,reuseaddr,ip-add-membership=239.1.2.3:sender -",
		} {
			receivers = append(receivers, to.start(t, command))
		}
		to.awaitMembers(t, netip.MustParseAddr(group), len(receivers))
		sender := from.start(t, "ft connect udp://239.1.2.3%receiver:PORT --messages length -q 10ms")
		for _, m := range datagrams[:3] {
			sender.say(sender.framed(m))
			for _, r := range receivers {
				r.hears(t, r.framed(m))
			}
		}
		sender.endInput()
		sender.ends(t, 0)
		for _, r := range receivers {
			r.stops(t)
		}
	})
}

// twoHosts are linked hosts, 10.0.0.1 and 10.0.0.2. The device of each is named after
// the other.
func twoHosts(t *testing.T) (sender, receiver place) {
	t.Helper()
	sender, receiver = newPlace(t), newPlace(t)
	receiver.port = sender.port
	sender.host, receiver.host = lab.NewHost(t, "sender"), lab.NewHost(t, "receiver")
	lab.Link(t, sender.host, receiver.host, "10.0.0.0/24", "fd00::/64")
	return sender, receiver
}

// awaitGroup waits until somebody on its host has joined the group: socat does so
// after it has bound the port.
func (p place) awaitGroup(t *testing.T, group netip.Addr) {
	t.Helper()
	p.awaitMembers(t, group, 1)
}

// awaitMembers waits until so many on its host have joined the group, as
// /proc/net/igmp and igmp6 tell (proc_pid_net(5)).
func (p place) awaitMembers(t *testing.T, group netip.Addr, n int) {
	t.Helper()
	deadline := time.Now().Add(patience)
	for ; ; time.Sleep(2 * time.Millisecond) { // nothing tells of a change
		if p.members(t, group) >= n {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("not %d have joined %s in %v", n, group, patience)
		}
	}
}

func (p place) members(t *testing.T, group netip.Addr) (n int) {
	t.Helper()
	name, address := "igmp6", group.AsSlice()
	if group.Is4() {
		name = "igmp" // has it as a number of the machine, as if that were little-endian
		slices.Reverse(address)
	}
	var table []byte
	var err error
	p.host.Do(t, func() { table, err = os.ReadFile("/proc/thread-self/net/" + name) })
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(table)) {
		fields := strings.Fields(strings.ToLower(line)) // ff15...0123 users ...
		if i := slices.Index(fields, hex.EncodeToString(address)); i >= 0 && i+1 < len(fields) {
			n += int(fields[i+1][len(fields[i+1])-1] - '0')
		}
	}
	return n
}

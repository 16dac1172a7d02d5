package datagram

import (
	"fmt"
	"net/netip"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/fivetuple/fivetuple/internal/lab"
	"github.com/fivetuple/fivetuple/sockopt"
)

// dialFrom dials in a host.
func dialFrom(t *testing.T, h *lab.Host, d Dialer, endpoint string) (c *Conn) {
	t.Helper()
	h.Do(t, func() { c = dialWith(t, d, endpoint) })
	return c
}

// listenWith listens in a host.
func listenWith(t *testing.T, h *lab.Host, lc ListenConfig, endpoint string) (c *Conn) {
	t.Helper()
	h.Do(t, func() {
		var err error
		if c, err = lc.Listen(t.Context(), parse(t, endpoint)); err != nil {
			t.Fatal(err)
		}
	})
	t.Cleanup(func() { c.Close() })
	c.SetReadDeadline(time.Now().Add(patience))
	return c
}

// nothing checks that no datagram waits at a socket. It is called when a later
// one has come elsewhere.
func nothing(t *testing.T, c *Conn) {
	t.Helper()
	c.SetReadDeadline(time.Now().Add(10 * time.Millisecond))
	var p Packet
	if err := c.Receive(&p); err == nil {
		t.Errorf("%s received %q from %v", c, p.Data, p.From)
	}
	c.SetReadDeadline(time.Now().Add(patience))
}

func addrs(list ...string) (a []netip.Addr) {
	for _, s := range list {
		a = append(a, netip.MustParseAddr(s))
	}
	return a
}

func TestSourceSpecificMulticast(t *testing.T) {
	a, b := lab.NewHost(t, "senders"), lab.NewHost(t, "receivers")
	lab.Link(t, a, b, "10.0.0.0/24", "fd00::/64")
	out, _ := device(t, a, "receivers")
	in, _ := device(t, b, "senders")
	for _, tt := range []struct{ group, first, second, third string }{
		{"232.1.1.1", "10.0.0.1", "10.0.0.77", "10.0.0.78"},
		{"ff35::1:1", "fd00::1", "fd00::77", "fd00::78"},
	} {
		t.Run(tt.group, func(t *testing.T) {
			endpoint := fmt.Sprintf("udp://%s:5000", tt.group)
			bits := "/24"
			if strings.Contains(tt.group, ":") {
				endpoint, bits = fmt.Sprintf("udp://[%s]:5000", tt.group), "/64"
			}
			a.AddAddr(t, "receivers", tt.second+bits)
			a.AddAddr(t, "receivers", tt.third+bits)
			senders := map[string]*Conn{}
			for _, own := range []string{tt.first, tt.second, tt.third} {
				senders[own] = dialFrom(t, a, Dialer{Source: netip.AddrPortFrom(netip.MustParseAddr(own), 0), Interface: fmt.Sprint(out)}, endpoint)
			}
			iface := fmt.Sprint(in)
			anyone := listenWith(t, b, ListenConfig{Interface: iface}, endpoint)
			first := listenWith(t, b, ListenConfig{Interface: iface, Sources: addrs(tt.first)}, endpoint)
			again := listenWith(t, b, ListenConfig{Interface: iface, Sources: addrs(tt.first)}, endpoint)
			both := listenWith(t, b, ListenConfig{Interface: iface, Sources: addrs(tt.first, tt.second)}, endpoint)
			for _, own := range []string{tt.third, tt.second, tt.first} {
				send(t, senders[own], "from "+own)
			}
			for c, sources := range map[*Conn][]string{anyone: {tt.third, tt.second, tt.first}, first: {tt.first}, again: {tt.first}, both: {tt.second, tt.first}} {
				for _, own := range sources {
					if p := want(t, c, "from "+own); p.From.AddrPort.Addr().String() != own {
						t.Errorf("from %v, want %s", p.From, own)
					}
				}
				nothing(t, c)
			}
			group := netip.MustParseAddr(tt.group)
			leave := func() (err error) {
				b.Do(t, func() { err = both.LeaveSource(group, netip.MustParseAddr(tt.first), iface) })
				return err
			}
			if err := leave(); err != nil {
				t.Fatal(err)
			}
			send(t, senders[tt.first], "to the others")
			want(t, first, "to the others")
			nothing(t, both)
			wantError(t, leave(), syscall.EADDRNOTAVAIL, "leave group "+tt.group)
		})
	}
}

func TestSourcesThatDoNotGo(t *testing.T) {
	for _, tt := range []struct {
		endpoint, source, want string
	}{
		{"udp://127.0.0.1:0", "10.0.0.1", "sources go with a multicast group"},
		{"unixgram://@x", "10.0.0.1", "sources go with a multicast group"},
		{"udp://232.1.1.1:0", "fd00::1", "fd00::1 is not an address that sends to it"},
		{"udp://232.1.1.1:0", "232.0.0.1", "is not an address that sends to it"},
		{"udp://[ff35::1]:0", "10.0.0.1", "is not an address that sends to it"},
	} {
		_, err := ListenConfig{Interface: map[bool]string{true: "lo"}[strings.Contains(tt.want, "address")], Sources: addrs(tt.source)}.Listen(t.Context(), parse(t, tt.endpoint))
		if err == nil || !strings.Contains(err.Error(), tt.want) || !strings.Contains(err.Error(), "listen on "+tt.endpoint) {
			t.Errorf("%s from %s: got %v, want %q", tt.endpoint, tt.source, err, tt.want)
		}
	}
	var many []netip.Addr
	for i := range 30 {
		many = append(many, netip.AddrFrom4([4]byte{10, 0, 0, byte(i + 1)}))
	}
	_, err := ListenConfig{Interface: "lo", Sources: many}.Listen(t.Context(), parse(t, "udp://232.1.1.1:0"))
	wantError(t, err, syscall.ENOBUFS, "igmp_max_msf")
}

// Both links carry the group, and other sockets have joined it on both.
func TestGroupIsReceivedByTheInterfaceChosen(t *testing.T) {
	left, right, b := lab.NewHost(t, "left"), lab.NewHost(t, "right"), lab.NewHost(t, "middle")
	lab.Link(t, left, b, "10.1.0.0/24", "fd01::/64")
	lab.Link(t, right, b, "10.2.0.0/24", "fd02::/64")
	for _, group := range []string{"239.1.1.1", "232.1.1.2", "[ff05::123]", "[ff02::123]", "[ff35::2]"} {
		t.Run(group, func(t *testing.T) {
			conns := map[string]*Conn{}
			for _, side := range []string{"left", "right"} {
				index, _ := device(t, b, side)
				lc := ListenConfig{Interface: fmt.Sprint(index)}
				if strings.HasPrefix(group, "232") {
					lc.Sources = addrs("10.1.0.1", "10.2.0.1")
				} else if group == "[ff35::2]" {
					lc.Sources = addrs("fd01::1", "fd02::1")
				}
				conns[side] = listenWith(t, b, lc, "udp://"+group+":5000")
			}
			for side, h := range map[string]*lab.Host{"left": left, "right": right} {
				index, _ := device(t, h, "middle")
				send(t, dialFrom(t, h, Dialer{Interface: fmt.Sprint(index)}, "udp://"+group+":5000"), side)
			}
			for side, c := range conns {
				want(t, c, side)
				nothing(t, c)
			}
			index, _ := device(t, b, "right")
			out := dialFrom(t, b, Dialer{Interface: fmt.Sprint(index), Options: settings(t, "multicast-loop=off")}, "udp://"+group+":5001")
			nearby, _ := device(t, right, "middle")
			far := listenWith(t, right, ListenConfig{Interface: fmt.Sprint(nearby)}, "udp://"+group+":5001")
			send(t, out, "to the right")
			want(t, far, "to the right")
		})
	}
}

// Nobody names an interface: it is that of the route, and no other.
func TestGroupIsReceivedByTheInterfaceOfTheRoute(t *testing.T) {
	left, right, b := lab.NewHost(t, "left"), lab.NewHost(t, "right"), lab.NewHost(t, "middle")
	lab.Link(t, left, b, "10.1.0.0/24")
	lab.Link(t, right, b, "10.2.0.0/24")
	b.AddRoute(t, "224.0.0.0/4", "10.1.0.1")
	index, _ := device(t, b, "right")
	for _, lc := range []ListenConfig{{}, {Sources: addrs("10.1.0.1")}} {
		routed := listenWith(t, b, lc, "udp://232.1.1.1:5000")
		other := listenWith(t, b, ListenConfig{Interface: fmt.Sprint(index)}, "udp://232.1.1.1:5000")
		for side, h := range map[string]*lab.Host{"right": right, "left": left} {
			out, _ := device(t, h, "middle")
			send(t, dialFrom(t, h, Dialer{Interface: fmt.Sprint(out)}, "udp://232.1.1.1:5000"), side)
		}
		want(t, routed, "left")
		nothing(t, routed)
		want(t, other, "right")
		other.Close()
		routed.Close()
	}
}

func TestTTLAndLoopOfTheSender(t *testing.T) {
	a, b := lab.NewHost(t, "a"), lab.NewHost(t, "b")
	lab.Link(t, a, b, "10.0.0.0/24", "fd00::/64")
	out, _ := device(t, a, "b")
	in, _ := device(t, b, "a")
	for _, group := range []string{"239.1.1.1", "[ff05::123]"} {
		endpoint := "udp://" + group + ":5000"
		here, there := listenWith(t, a, ListenConfig{Interface: fmt.Sprint(out)}, endpoint), listenWith(t, b, ListenConfig{Interface: fmt.Sprint(in), Options: settings(t, "recvttl=on")}, endpoint)
		for _, tt := range []struct {
			options string
			loops   bool
		}{{"multicast-loop=off", false}, {"multicast-loop=on,multicast-ttl=7", true}, {"multicast-ttl=0", true}} {
			var granted []sockopt.Granted
			sender := dialFrom(t, a, Dialer{Interface: fmt.Sprint(out), Options: settings(t, tt.options), Report: func(g []sockopt.Granted) { granted = g }}, endpoint)
			if len(granted) == 0 || granted[0].Got != granted[0].Asked {
				t.Errorf("%s: granted %v", tt.options, granted)
			}
			send(t, sender, tt.options)
			if tt.loops {
				want(t, here, tt.options)
			}
			if !strings.Contains(tt.options, "ttl=0") { // restricted to the host
				want(t, there, tt.options)
			}
			nothing(t, here)
			nothing(t, there)
		}
	}
}

func TestInterfaceThatDoesNotExist(t *testing.T) {
	for _, endpoint := range []string{"udp://239.1.1.1%nosuch:0", "udp://239.1.1.1:0", "udp://[ff02::1]:0", "udp://127.0.0.1:0"} {
		lc := ListenConfig{Interface: "nosuch"}
		_, err := lc.Listen(t.Context(), parse(t, endpoint))
		if err == nil || !strings.Contains(err.Error(), "interface nosuch: no such network interface: there are lo") || !strings.Contains(err.Error(), "listen on "+endpoint) {
			t.Errorf("listen on %s: got %v", endpoint, err)
		}
		endpoint = strings.TrimSuffix(endpoint, "0") + "9"
		if _, err = (Dialer{Interface: "nosuch"}).Dial(t.Context(), parse(t, endpoint)); err == nil || !strings.Contains(err.Error(), "interface nosuch: no such network interface: there are lo") {
			t.Errorf("connect %s: got %v", endpoint, err)
		}
	}
	if _, err := (ListenConfig{Interface: "lo"}).Listen(t.Context(), parse(t, "udp://239.1.1.1%1:0")); err == nil || !strings.Contains(err.Error(), "choose one") {
		t.Errorf("two interfaces: got %v", err)
	}
	if _, err := (ListenConfig{Interface: "lo"}).Listen(t.Context(), parse(t, "unixgram://@x")); err == nil || !strings.Contains(err.Error(), "goes with udp://") {
		t.Errorf("unixgram: got %v", err)
	}
}

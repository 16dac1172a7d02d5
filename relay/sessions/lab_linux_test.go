package sessions

import (
	"bytes"
	"fmt"
	"net"
	"net/netip"
	"os/exec"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/fivetuple/fivetuple/datagram"
	"github.com/fivetuple/fivetuple/internal/lab"
	"github.com/fivetuple/fivetuple/stats"
)

// serveIn relays in a host until the test ends: what a loop opens belongs to the
// namespace of its thread, so the server runs on one that stays in the host.
func serveIn(t *testing.T, h *lab.Host, s *Server, endpoint string) (at netip.AddrPort) {
	t.Helper()
	s.within = func(run func()) { h.Do(t, run) }
	var ln *datagram.Conn
	h.Do(t, func() { ln = listen(t, endpoint) })
	at = addrOf(ln)
	serve(t, s, ln)
	return at
}

func targetIn(t *testing.T, h *lab.Host, address string) (g *target) {
	t.Helper()
	h.Do(t, func() { g = newTarget(t, address) })
	return g
}

func clientIn(t *testing.T, h *lab.Host, to string) (c *net.UDPConn) {
	t.Helper()
	h.Do(t, func() { c = client(t, netip.MustParseAddrPort(to)) })
	return c
}

// chain is client, relay and target, one behind the other.
func chain(t *testing.T) (c, r, g *lab.Host) {
	c, r, g = lab.NewHost(t, "client"), lab.NewHost(t, "relay"), lab.NewHost(t, "target")
	lab.Link(t, c, r, "10.0.0.0/24", "fd00::/64") // client .1, relay .2
	lab.Link(t, r, g, "10.0.1.0/24", "fd01::/64") // relay .1, target .2
	return c, r, g
}

// linkLocal finds the device of a host that leads to another, and its own address there.
func linkLocal(t *testing.T, h *lab.Host, device string) (index int, address string) {
	t.Helper()
	h.Do(t, func() {
		ifi, err := net.InterfaceByName(device)
		if err != nil {
			t.Fatal(err)
		}
		addrs, err := ifi.Addrs()
		if err != nil {
			t.Fatal(err)
		}
		index = ifi.Index
		for _, a := range addrs {
			if n := a.(*net.IPNet); n.IP.To4() == nil && n.IP.IsLinkLocalUnicast() {
				address = n.IP.String()
			}
		}
	})
	return index, address
}

func TestRepliesLeaveFromTheAddressWrittenToOnEveryLink(t *testing.T) {
	ch, rh, gh := chain(t)
	rh.AddAddr(t, "client", "10.0.0.77/24")
	rh.AddAddr(t, "client", "fd00::77/64")
	_, there := linkLocal(t, rh, "client")
	out, _ := linkLocal(t, ch, "relay")
	g := targetIn(t, gh, "10.0.1.2:9")
	ev := &events{}
	s := &Server{Sink: ev, Route: Route{Pool: pool(t, g.addr)}}
	serveIn(t, rh, s, "udp://*:700")
	for _, to := range []string{"10.0.0.2:700", "10.0.0.77:700", "[fd00::2]:700", "[fd00::77]:700", fmt.Sprintf("[%s%%%d]:700", there, out)} {
		c := clientIn(t, ch, to) // it hears nobody else
		for range 2 {
			send(t, c, []byte("to "+to))
			b, from := g.take(t)
			if string(b) != "to "+to || from.Addr().Unmap().String() != "10.0.1.1" {
				t.Errorf("got %q from %v", b, from)
			}
			g.WriteToUDPAddrPort(b, from)
			if got := receive(t, c); string(got) != "to "+to {
				t.Errorf("got %q, want %q", got, "to "+to)
			}
		}
	}
	if errs := ev.of(stats.Error); len(errs) != 0 || s.Len() != 5 {
		t.Errorf("%d sessions, errors %+v", s.Len(), errs)
	}

	// Here only the packet info says by which link the reply is to leave.
	c := targetIn(t, ch, "[fd00::1]:0")
	to := netip.MustParseAddrPort(fmt.Sprintf("[%s%%%d]:700", there, out))
	c.WriteToUDPAddrPort([]byte("hello"), to)
	b, from := g.take(t)
	g.WriteToUDPAddrPort(b, from)
	if _, answered := c.take(t); answered.Addr().WithZone("") != to.Addr().WithZone("") || answered.Port() != 700 {
		t.Errorf("answered from %v, want %v", answered, to)
	}
}

func TestWhatComesByBroadcastIsAnsweredFromAnAddressOfTheHost(t *testing.T) {
	ch, rh, gh := chain(t)
	g := targetIn(t, gh, "10.0.1.2:9")
	s := &Server{Route: Route{Pool: pool(t, g.addr)}}
	serveIn(t, rh, s, "udp4://*:700")
	c := targetIn(t, ch, "0.0.0.0:0")
	c.WriteToUDPAddrPort([]byte("who is there?"), netip.MustParseAddrPort("10.0.0.255:700"))
	b, from := g.take(t)
	g.WriteToUDPAddrPort(b, from)
	if _, answered := c.take(t); answered.Addr().Unmap().String() != "10.0.0.2" {
		t.Errorf("answered from %v, want 10.0.0.2", answered)
	}
}

func TestWhatRoutersAndHostsRefuseEndsASession(t *testing.T) {
	ch, rh, gh := chain(t)
	for i, tt := range []struct{ target, reject, cause string }{
		{"10.0.1.2:91", "icmp host-unreachable", causeUnreachable}, {"10.0.1.2:92", "icmp admin-prohibited", causeUnreachable},
		{"10.0.1.2:93", "icmp net-unreachable", causeUnreachable}, {"10.0.1.2:94", "icmp port-unreachable", causeRefused},
		{"[fd01::2]:95", "icmpv6 addr-unreachable", causeUnreachable}, {"[fd01::2]:96", "icmpv6 port-unreachable", causeRefused},
	} {
		bad := netip.MustParseAddrPort(tt.target)
		g := targetIn(t, gh, "10.0.1.2:0")
		gh.Do(t, func() {
			nft := exec.Command("nft", "-f", "-")
			nft.Stdin = strings.NewReader(fmt.Sprintf("add table inet t\nadd chain inet t in { type filter hook input priority 0; }\n"+
				"add rule inet t in udp dport %d reject with %s\n", bad.Port(), strings.Replace(tt.reject, " ", " type ", 1)))
			if out, err := nft.CombinedOutput(); err != nil {
				t.Fatalf("%v %s", err, out)
			}
		})
		ev := &events{}
		s := &Server{Sink: ev, Route: Route{Pool: pool(t, bad, g.addr)}}
		serveIn(t, rh, s, fmt.Sprintf("udp4://*:%d", 700+i))
		c := clientIn(t, ch, fmt.Sprintf("10.0.0.2:%d", 700+i))
		send(t, c, []byte("lost"))
		if end := ev.wait(t, stats.Disconnect, 1)[0]; end.Cause != tt.cause || !strings.Contains(end.Err, tt.target) {
			t.Errorf("%s: got %+v", tt.reject, end)
		}
		send(t, c, []byte("again"))
		if b, _ := g.take(t); string(b) != "again" {
			t.Errorf("got %q", b)
		}
	}
}

func TestANarrowPathEndsNoSessionAndLosesNoLaterDatagram(t *testing.T) {
	ch, rh, gh := chain(t)
	far := lab.NewHost(t, "far")
	lab.Link(t, gh, far, "10.0.2.0/24") // target, a router here, .1, far .2
	gh.Sysctl(t, "net.ipv4.ip_forward", "1")
	rh.AddRoute(t, "10.0.2.0/24", "10.0.1.2")
	far.AddRoute(t, "10.0.1.0/24", "10.0.2.1")
	gh.Do(t, func() {
		if out, err := exec.Command("ip", "link", "set", "far", "mtu", "1280").CombinedOutput(); err != nil {
			t.Fatalf("%v %s", err, out)
		}
	})
	g := targetIn(t, far, "10.0.2.2:9")
	ev := &events{}
	s := &Server{Sink: ev, Route: Route{Pool: pool(t, g.addr)}}
	serveIn(t, rh, s, "udp4://*:700")
	c := clientIn(t, ch, "10.0.0.2:700")
	send(t, c, []byte("hello"))
	g.take(t)
	send(t, c, pattern(1400)) // the router says that it is too large: it is lost
	eventually(t, "the kernel knows how wide the path is", func() bool {
		mtu := 0
		for _, l := range s.allLoops() {
			l.each(func(c *session) { mtu, _ = unix.GetsockoptInt(int(c.fd), unix.IPPROTO_IP, unix.IP_MTU) })
		}
		return mtu == 1280
	})
	settle(t, s)
	standStill(t, s, func() { // a train that the path does not take
		for range 20 {
			send(t, c, pattern(1400))
		}
	})
	for i := range 20 {
		if b, _ := g.take(t); !bytes.Equal(b, pattern(1400)) {
			t.Fatalf("datagram %d: got %d bytes", i, len(b))
		}
	}
	for _, l := range s.allLoops() {
		l.each(func(c *session) {
			if c.longestUp >= 1400 || c.longestUp < 1000 || c.longestDown < 65535 {
				t.Errorf("trains are of up to %d bytes up, %d down", c.longestUp, c.longestDown)
			}
		})
	}
	before := s.Stats().In.Trains
	standStill(t, s, func() { // and one that it does
		for range 20 {
			send(t, c, pattern(1000))
		}
	})
	for range 20 {
		g.take(t)
	}
	if st := s.Stats(); st.GSO != "on" || st.In.Trains != before+20 {
		t.Errorf("got %+v, had %d trains before", st, before)
	}
	if n := len(ev.of(stats.Disconnect)); n != 0 || s.Len() != 1 {
		t.Errorf("%d sessions have ended", n)
	}
}

func TestATransparentRelaySendsFromTheClientsAddress(t *testing.T) {
	ch, rh, gh := chain(t)
	gh.AddRoute(t, "10.0.0.0/24", "10.0.1.1")
	g := targetIn(t, gh, "10.0.1.2:9")
	s := &Server{Route: Route{Pool: pool(t, g.addr), Transparent: true}}
	serveIn(t, rh, s, "udp4://*:700")
	rh.Do(t, func() { // the replies are for this host, though it has not that address
		for _, args := range []string{"rule add iif target lookup 100", "route add local 0.0.0.0/0 dev lo table 100"} {
			if out, err := exec.Command("ip", strings.Fields(args)...).CombinedOutput(); err != nil {
				t.Fatalf("ip %s: %v %s", args, err, out)
			}
		}
	})
	rh.Sysctl(t, "net.ipv4.conf.all.rp_filter", "0")
	c := clientIn(t, ch, "10.0.0.2:700")
	for range 2 {
		send(t, c, []byte("hello"))
		b, from := g.take(t)
		if from.Addr().Unmap().String() != "10.0.0.1" || from.Port() != addrOf(c).Port() {
			t.Fatalf("came from %v, want the client's %v", from, addrOf(c))
		}
		g.WriteToUDPAddrPort(b, from)
		if got := receive(t, c); string(got) != "hello" {
			t.Errorf("got %q", got)
		}
	}
}

func TestOutOfPortsTheOldestSessionMakesRoom(t *testing.T) {
	h := lab.NewHost(t, "relay")
	h.Sysctl(t, "net.ipv4.ip_local_port_range", "40000 40007")
	g := targetIn(t, h, "127.0.0.1:9")
	ev := &events{}
	s := &Server{Sink: ev, Route: Route{Pool: pool(t, g.addr)}}
	serveIn(t, h, s, "udp4://*:700")
	c := targetIn(t, h, "0.0.0.0:8")
	for i := range 20 {
		c.WriteToUDPAddrPort([]byte{byte(i)}, netip.AddrPortFrom(netip.AddrFrom4([4]byte{127, 0, 1, byte(i)}), 700))
		if b, _ := g.take(t); b[0] != byte(i) {
			t.Fatalf("got %v, want %d", b, i)
		}
	}
	for i, e := range ev.wait(t, stats.Disconnect, 12) {
		if e.Cause != causeEvicted || e.Conn != uint64(i+1) {
			t.Errorf("got %+v", e)
		}
	}
	if errs := ev.of(stats.Error); len(errs) != 1 || !strings.Contains(errs[0].Err, "ip_local_port_range") {
		t.Errorf("got %+v", errs)
	}
}

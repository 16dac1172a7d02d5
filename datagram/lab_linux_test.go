package datagram

import (
	"bytes"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/fivetuple/fivetuple"
	"github.com/fivetuple/fivetuple/internal/lab"
	"github.com/fivetuple/fivetuple/stats"
)

func listenIn(t *testing.T, h *lab.Host, endpoint string) (c *Conn) {
	t.Helper()
	h.Do(t, func() { c = listen(t, endpoint) })
	c.SetReadDeadline(time.Now().Add(patience))
	return c
}

func dialIn(t *testing.T, h *lab.Host, endpoint string) (c *Conn) {
	t.Helper()
	h.Do(t, func() { c = dial(t, endpoint) })
	return c
}

// serveIn serves in a host until the test ends.
func serveIn(t *testing.T, h *lab.Host, s *Server, endpoint string) *Conn {
	t.Helper()
	c := listenIn(t, h, endpoint)
	c.SetReadDeadline(time.Time{})
	return serveOn(t, s, c)
}

// device finds a device of a host: its index, and its link-local address.
func device(t *testing.T, h *lab.Host, name string) (index int, linkLocal string) {
	t.Helper()
	h.Do(t, func() {
		ifi, err := net.InterfaceByName(name)
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
				linkLocal = n.IP.String()
			}
		}
	})
	return index, linkLocal
}

func TestReplyLeavesFromTheAddressWrittenTo(t *testing.T) {
	a, b := lab.NewHost(t, "client"), lab.NewHost(t, "server")
	lab.Link(t, a, b, "10.0.0.0/24", "fd00::/64")
	b.AddAddr(t, "client", "10.0.0.77/24")
	b.AddAddr(t, "client", "fd00::77/64")
	index, linkLocal := device(t, b, "client")
	out, _ := device(t, a, "server")
	for _, listen := range []string{"udp4://*:700", "udp6://*:700", "udp://*:700"} {
		t.Run(listen, func(t *testing.T) {
			packets := make(chan Packet, 1)
			s := &Server{Sink: newEvents(), Handler: HandlerFunc(func(p *Packet) error {
				packets <- *p
				return p.Reply(p.Data)
			})}
			c := serveIn(t, b, s, listen)
			for _, to := range []string{"10.0.0.2", "10.0.0.77", "[fd00::2]", "[fd00::77]", fmt.Sprintf("[%s%%%d]", linkLocal, out)} {
				if six := to[0] == '['; six && strings.HasPrefix(listen, "udp4") || !six && strings.HasPrefix(listen, "udp6") {
					continue
				}
				// A connected socket receives from the address it writes to, and nothing else.
				client := dialIn(t, a, "udp://"+to+":700")
				send(t, client, "to "+to)
				want(t, client, "to "+to)
				p := next(t, "packet", packets)
				if got := p.To.AddrPort.Addr().WithZone(""); got != client.remote.AddrPort.Addr().WithZone("") || p.To.AddrPort.Port() != 700 || p.Interface != index {
					t.Errorf("to %s: received as sent to %v on interface %d, want interface %d", to, p.To, p.Interface, index)
				}
				if strings.Contains(to, "%") && p.To.AddrPort.Addr().Zone() == "" {
					t.Errorf("to %s: received as sent to %v, without a zone", to, p.To)
				}
				if err := s.SendTo(p.From, []byte("unasked")); err != nil {
					t.Errorf("send to the peer: %v", err)
				}
				want(t, client, "unasked")
			}
			if got := s.Sink.(*events).of(stats.Error); len(got) != 0 {
				t.Errorf("errors of %v: %+v", c, got)
			}
		})
	}
}

// Here only the packet info says by which interface the reply is to leave.
func TestReplyFromALinkLocalAddressToAGlobalOne(t *testing.T) {
	a, b := lab.NewHost(t, "client"), lab.NewHost(t, "server")
	lab.Link(t, a, b, "fd00::/64")
	_, linkLocal := device(t, b, "client")
	out, _ := device(t, a, "server")
	serveIn(t, b, &Server{Handler: Echo()}, "udp6://*:700")
	client := listenIn(t, a, "udp://[fd00::1]:0")
	server := fivetuple.ParseAddress(fmt.Sprintf("[%s%%%d]:700", linkLocal, out))
	if err := client.SendTo(server, []byte("hello")); err != nil {
		t.Fatal(err)
	}
	if p := want(t, client, "hello"); p.From.AddrPort.Addr().WithZone("") != server.AddrPort.Addr().WithZone("") {
		t.Errorf("answered from %v, want %v", p.From, server)
	}
}

func TestBroadcastIsAnsweredFromAnAddressOfTheHost(t *testing.T) {
	a, b := lab.NewHost(t, "client"), lab.NewHost(t, "server")
	lab.Link(t, a, b, "10.0.0.0/24")
	a.AddRoute(t, "0.0.0.0/0", "10.0.0.2")
	for _, listen := range []string{"udp4://*:700", "udp://*:701"} { // also on a dual-stack socket
		s := &Server{Handler: Echo(), Sink: newEvents()}
		c := serveIn(t, b, s, listen)
		for i, to := range []string{"10.0.0.255", "255.255.255.255"} {
			client := dialIn(t, a, fmt.Sprintf("udp://%s:%d", to, c.local.AddrPort.Port()))
			send(t, client, "who is there?")
			if p := want(t, client, "who is there?"); p.From.AddrPort.Addr().String() != "10.0.0.2" {
				t.Errorf("%s to %s: answered from %v, want 10.0.0.2", listen, to, p.From)
			}
			if got := s.Sink.(*events).of(stats.Accept)[i].Tuple.Local.AddrPort.Addr().String(); got != to {
				t.Errorf("%s: received as sent to %s, want %s", listen, got, to)
			}
		}
	}
}

func TestBroadcastSwitchedOff(t *testing.T) {
	a, b := lab.NewHost(t, "client"), lab.NewHost(t, "server")
	lab.Link(t, a, b, "10.0.0.0/24")
	options := settings(t, "broadcast=off")
	a.Do(t, func() {
		c, err := Dialer{Options: options}.Dial(t.Context(), parse(t, "udp://10.0.0.255:9"))
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		wantError(t, c.Send([]byte("x")), syscall.EACCES, "send to 10.0.0.255:9", "broadcast=on")
	})
}

func TestGroupReachesAllItsReceivers(t *testing.T) {
	a, b := lab.NewHost(t, "sender"), lab.NewHost(t, "receiver")
	lab.Link(t, a, b, "10.0.0.0/24", "fd00::/64")
	in, _ := device(t, b, "sender")
	out, _ := device(t, a, "receiver")
	for _, group := range []string{"239.1.1.1", "ff05::123", "ff02::123"} {
		t.Run(group, func(t *testing.T) {
			endpoint := func(group string, zone any) string {
				if strings.Contains(group, ":") {
					return fmt.Sprintf("udp://[%s%%%v]:5000", group, zone)
				}
				return fmt.Sprintf("udp://%s%%%v:5000", group, zone)
			}
			// The port's other groups and the host's own addresses are not the receivers' business.
			other := listenIn(t, b, endpoint(strings.TrimRight(group, "123")+"9", in))
			first, second := listenIn(t, b, endpoint(group, in)), listenIn(t, b, endpoint(group, "sender"))
			sender := dialIn(t, a, endpoint(group, out))
			send(t, dialIn(t, a, "udp://10.0.0.2:5000"), "not to the group")
			send(t, dialIn(t, a, "udp://[fd00::2]:5000"), "not to the group")
			send(t, sender, "to all")
			for _, receiver := range []*Conn{first, second} {
				p := want(t, receiver, "to all")
				if p.To.AddrPort.Addr().WithZone("").String() != group || p.Interface != in {
					t.Errorf("received as sent to %v on interface %d, want %s on %d", p.To, p.Interface, group, in)
				}
				if err := p.Reply([]byte("heard")); err != nil {
					t.Fatal(err)
				}
				if p := want(t, sender, "heard"); p.From.AddrPort.Addr().IsMulticast() {
					t.Errorf("answered from %v", p.From)
				}
			}
			send(t, dialIn(t, a, endpoint(strings.TrimRight(group, "123")+"9", out)), "to the other group")
			want(t, other, "to the other group")

			if !joined(t, b, group) {
				t.Fatalf("%s is not in the host's list of groups", group)
			}
			first.Close()
			if !joined(t, b, group) {
				t.Errorf("%s is left while a receiver has it", group)
			}
			second.Close()
			eventually(t, "the group is left", func() bool { return !joined(t, b, group) })
		})
	}
}

// joined says whether the host has a group joined on a device.
func joined(t *testing.T, h *lab.Host, group string) bool {
	t.Helper()
	ip := net.ParseIP(group)
	table, entry := "igmp6", fmt.Sprintf("%x", []byte(ip))
	if v4 := ip.To4(); v4 != nil {
		table, entry = "igmp", fmt.Sprintf("%02X%02X%02X%02X", v4[3], v4[2], v4[1], v4[0])
	}
	var text []byte
	h.Do(t, func() {
		var err error
		if text, err = os.ReadFile("/proc/thread-self/net/" + table); err != nil {
			t.Fatal(err)
		}
	})
	return bytes.Contains(text, []byte(entry))
}

func TestJoinAndLeave(t *testing.T) {
	h := lab.NewHost(t, "h")
	h.Do(t, func() {
		c := listen(t, "udp4://*:0")
		for _, group := range []string{"239.1.1.1", "239.1.1.2"} {
			if err := c.Join(fivetuple.ParseAddress(group+":0").AddrPort.Addr(), "lo"); err != nil {
				t.Fatal(err)
			}
		}
		if err := c.Leave(fivetuple.ParseAddress("239.1.1.1:0").AddrPort.Addr(), "lo"); err != nil {
			t.Error(err)
		}
		if joined(t, h, "239.1.1.1") || !joined(t, h, "239.1.1.2") {
			t.Errorf("joined: got 239.1.1.1 %v, 239.1.1.2 %v, want only the second", joined(t, h, "239.1.1.1"), joined(t, h, "239.1.1.2"))
		}
		err := c.Join(fivetuple.ParseAddress("10.0.0.1:0").AddrPort.Addr(), "lo")
		if err == nil || !strings.Contains(err.Error(), "not a multicast group") {
			t.Errorf("join 10.0.0.1: got %v", err)
		}
		wantError(t, c.Leave(fivetuple.ParseAddress("239.1.1.7:0").AddrPort.Addr(), "lo"), syscall.EADDRNOTAVAIL, "leave group 239.1.1.7")
	})
}

func TestClientReportsWhatRoutersSay(t *testing.T) {
	a, r, b := lab.NewHost(t, "a"), lab.NewHost(t, "r"), lab.NewHost(t, "b")
	lab.Link(t, a, r, "10.1.0.0/24", "fd01::/64")
	lab.Link(t, r, b, "10.2.0.0/24", "fd02::/64")
	r.Sysctl(t, "net.ipv4.ip_forward", "1")
	r.Sysctl(t, "net.ipv6.conf.all.forwarding", "1")
	r.Sysctl(t, "net/ipv4/neigh/b/mcast_solicit", "1") // to give up sooner on who is not there
	r.Sysctl(t, "net/ipv4/neigh/b/retrans_time_ms", "20")
	a.AddRoute(t, "0.0.0.0/0", "10.1.0.2")
	a.AddRoute(t, "::/0", "fd01::2")
	b.AddRoute(t, "0.0.0.0/0", "10.2.0.1")
	b.Reject(t, "udp", 666)
	for _, tt := range []struct {
		to    string
		errno syscall.Errno
		text  string
	}{
		{"10.2.0.2:9", syscall.ECONNREFUSED, "connection refused (ICMP port unreachable from 10.2.0.2)"},
		{"10.2.0.2:666", syscall.ECONNREFUSED, "connection refused (ICMP port unreachable from 10.2.0.2)"},
		{"10.2.0.99:9", syscall.EHOSTUNREACH, "no route to host (ICMP host unreachable from 10.1.0.2)"},
		{"10.3.0.1:9", syscall.ENETUNREACH, "network is unreachable (ICMP net unreachable from 10.1.0.2)"},
		{"[fd03::1]:9", syscall.ENETUNREACH, "network is unreachable (ICMP no route to destination from fd01::2)"},
	} {
		var errs chan error
		var c *Client
		a.Do(t, func() { c, _, errs, _ = connect(t, "udp://"+tt.to) })
		if err := c.Send([]byte("x")); err != nil {
			t.Fatal(err)
		}
		wantError(t, next(t, "error", errs), tt.errno, "udp "+tt.to+": "+tt.text)
	}
}

func TestPathWithASmallerMTU(t *testing.T) {
	a, b := lab.NewHost(t, "a"), lab.NewHost(t, "b")
	lab.Link(t, a, b, "10.0.0.0/24")
	options := settings(t, "mtu-discover=do")
	a.Do(t, func() {
		c, err := Dialer{Options: options}.Dial(t.Context(), parse(t, "udp://10.0.0.2:9"))
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		wantError(t, c.Send(make([]byte, 1473)), syscall.EMSGSIZE, "1473 bytes")
		if err := c.Send(make([]byte, 1472)); err != nil {
			t.Errorf("1472 bytes: %v", err)
		}
	})
}

func TestServerSurvivesAFirewallAndLostRoutes(t *testing.T) {
	a, b := lab.NewHost(t, "client"), lab.NewHost(t, "server")
	lab.Link(t, a, b, "10.0.0.0/24")
	s := &Server{Handler: Echo(), Sink: newEvents()}
	c := serveIn(t, b, s, "udp://*:700")
	client := dialIn(t, a, "udp://10.0.0.2:700")
	send(t, client, "before")
	want(t, client, "before")
	nft := func(script string) {
		t.Helper()
		b.Do(t, func() {
			if out, err := exec.Command("nft", script).CombinedOutput(); err != nil {
				t.Fatalf("nft %s: %v %s", script, err, out)
			}
		})
	}
	nft("add table inet out; add chain inet out output { type filter hook output priority filter; }; add rule inet out output udp sport 700 drop")
	send(t, client, "held back")
	e := s.Sink.(*events).wait(t, stats.Error, 1)[0]
	if !strings.Contains(e.Err, "operation not permitted: a firewall rule of this host") || e.Tuple.Remote != client.local {
		t.Errorf("got %+v", e)
	}
	nft("delete table inet out")
	stranger := fivetuple.ParseAddress("192.0.2.1:9")
	wantError(t, s.SendTo(stranger, []byte("x")), syscall.ENETUNREACH, "send to 192.0.2.1:9", "no route")
	send(t, client, "after")
	want(t, client, "after")
	if got := s.Peers()[0]; got.PacketsIn != 3 || got.PacketsOut != 2 {
		t.Errorf("peer of %v: got %+v, want 3 received and 2 sent", c, got)
	}
}

// With the option recverr an unconnected socket gets the ICMP errors of all its peers.
func TestServerSurvivesICMPErrors(t *testing.T) {
	options := settings(t, "recverr=on")
	c, err := ListenConfig{Options: options}.Listen(t.Context(), parse(t, "udp://127.0.0.1:0"))
	if err != nil {
		t.Fatal(err)
	}
	s := &Server{Handler: Echo(), Sink: newEvents()}
	serveOn(t, s, c)
	gone := dial(t, udp(c))
	send(t, gone, "x")
	want(t, gone, "x")
	gone.Close()
	eventually(t, "an error event names the peer", func() bool { // who comes second to the error queue has the bare error
		if err := s.SendTo(gone.local, []byte("are you there?")); err != nil && !errors.Is(err, syscall.ECONNREFUSED) {
			t.Fatal(err)
		}
		return slices.ContainsFunc(s.Sink.(*events).of(stats.Error), func(e stats.Event) bool {
			return strings.Contains(e.Err, "udp "+gone.local.String()+": connection refused (ICMP port unreachable")
		})
	})
	client := dial(t, udp(c))
	for range 10 { // an error that waits may still fail a reply
		send(t, client, "x")
		client.SetReadDeadline(time.Now().Add(time.Second))
		var p Packet
		if err := client.Receive(&p); err == nil {
			return
		}
	}
	t.Error("the server does not answer any more")
}

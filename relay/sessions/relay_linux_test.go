package sessions

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/fivetuple/fivetuple/datagram"
	"github.com/fivetuple/fivetuple/relay/faults"
	"github.com/fivetuple/fivetuple/sockopt"
	"github.com/fivetuple/fivetuple/stats"
)

func pattern(n int) []byte {
	b := make([]byte, n)
	for i := range b {
		b[i] = byte(i*7 + i>>8)
	}
	return b
}

func TestDatagramsOfEverySizePassWhole(t *testing.T) {
	for _, family := range []struct{ listen, target string }{
		{"udp://127.0.0.1:0", "127.0.0.1:0"}, {"udp://[::1]:0", "[::1]:0"}, {"udp://127.0.0.1:0", "[::1]:0"}, {"udp://[::1]:0", "127.0.0.1:0"},
		{"udp4://*:0", "127.0.0.1:0"}, {"udp6://*:0", "127.0.0.1:0"}, {"udp://*:0", "[::1]:0"},
	} {
		t.Run(family.listen+" to "+family.target, func(t *testing.T) {
			g := echoTarget(t, family.target)
			s := &Server{Route: Route{Pool: pool(t, g.addr)}}
			ln := listen(t, family.listen)
			at := addrOf(ln)
			serve(t, s, ln)
			hosts := []string{at.Addr().String()}
			switch {
			case strings.HasPrefix(family.listen, "udp4://*"):
				hosts = []string{"127.0.0.1", "127.0.0.77"}
			case strings.HasPrefix(family.listen, "udp6://*"):
				hosts = []string{"::1"}
			case strings.HasPrefix(family.listen, "udp://*"):
				hosts = []string{"127.0.0.1", "127.0.0.77", "::1"}
			}
			for _, host := range hosts {
				to := netip.AddrPortFrom(netip.MustParseAddr(host), at.Port())
				c := client(t, to)
				for _, n := range []int{0, 1, 100, 1400, 9000, 65507} {
					echoes(t, c, pattern(n))
				}
				if _, err := c.Write(pattern(65536)); !errors.Is(err, syscall.EMSGSIZE) {
					t.Errorf("a datagram that cannot be: %v", err)
				}
			}
			if got := s.Len(); got != len(hosts) {
				t.Errorf("%d sessions, want %d", got, len(hosts))
			}
			if st := s.Stats(); st.Cut+st.Dropped+st.Refused != 0 {
				t.Errorf("got %v", st)
			}
		})
	}
}

func TestOneClientOfSeveralAddressesHasASessionForEach(t *testing.T) {
	g := echoTarget(t, "127.0.0.1:0")
	s := &Server{Route: Route{Pool: pool(t, g.addr)}}
	ln := listen(t, "udp://*:0")
	port := addrOf(ln).Port()
	serve(t, s, ln)
	c := newTarget(t, "0.0.0.0:0") // not connected: it hears everyone
	for i := range 5 {
		to := netip.AddrPortFrom(netip.AddrFrom4([4]byte{127, 0, 0, byte(i + 1)}), port)
		c.WriteToUDPAddrPort([]byte{byte(i)}, to)
		b, from := c.take(t)
		if len(b) != 1 || b[0] != byte(i) || netip.AddrPortFrom(from.Addr().Unmap(), from.Port()) != to {
			t.Errorf("wrote to %v, %q came from %v", to, b, from)
		}
	}
	if n := s.Len(); n != 5 {
		t.Errorf("%d sessions, want 5", n)
	}
}

func TestASessionIsKnownByItsEventsAndNumbers(t *testing.T) {
	g := echoTarget(t, "127.0.0.1:0")
	ev := &events{}
	s := &Server{Service: "dns", Sink: ev, Limits: Limits{Idle: 100 * time.Millisecond}}
	at := relay(t, s, g.addr)
	c := client(t, at)
	echoes(t, c, []byte("hello"))
	echoes(t, c, nil)
	echoes(t, c, []byte("you"))
	v := only(t, s)
	if v.ID != 1 || v.Client != addrOf(c) || v.Local != at || v.Address != g.addr || v.Target != "udp://"+g.addr.String() || v.Source.Addr() != g.addr.Addr() ||
		v.PacketsIn != 3 || v.PacketsOut != 3 || v.BytesIn != 8 || v.BytesOut != 8 || !v.Replied || v.Left <= 0 || v.Left > 100*time.Millisecond {
		t.Errorf("got %+v", v)
	}
	b, err := json.Marshal(v)
	if err != nil || !bytes.Contains(b, []byte(`"idle_s":`)) || !bytes.Contains(b, []byte(`"address":"`+g.addr.String()+`"`)) {
		t.Errorf("got %s, %v", b, err)
	}
	var again Session
	if err := json.Unmarshal(b, &again); err != nil || again != v {
		t.Errorf("%+v is read as %+v, %v", v, again, err)
	}
	end := ev.wait(t, stats.Disconnect, 1)[0]
	accept, connect := ev.of(stats.Accept)[0], ev.of(stats.Forward)[0]
	if accept.Conn != 1 || accept.Tuple != udp(at, addrOf(c)) || accept.Service != "dns" {
		t.Errorf("got accept %+v", accept)
	}
	if connect.Conn != 1 || connect.Tuple != udp(v.Source, g.addr) {
		t.Errorf("got connect %+v, want from %v", connect, v.Source)
	}
	if end.Conn != 1 || end.Tuple != accept.Tuple || end.Cause != causeIdle || end.BytesIn != 8 || end.BytesOut != 8 || end.PacketsIn != 3 || end.PacketsOut != 3 || end.Duration < 100*time.Millisecond {
		t.Errorf("got disconnect %+v", end)
	}
	if l := ev.of(stats.Listen); len(l) != 1 || l[0].Tuple.Local.AddrPort != at {
		t.Errorf("got listen %+v", l)
	}
	if s.Len() != 0 || len(s.Sessions()) != 0 {
		t.Errorf("%d sessions are left", s.Len())
	}
}

func TestALongSessionReportsItsTotals(t *testing.T) {
	g := echoTarget(t, "127.0.0.1:0")
	ev := &events{}
	s := &Server{Sink: ev}
	c := client(t, relay(t, s, g.addr))
	echoes(t, c, []byte("hello"))
	for _, l := range s.allLoops() {
		l.each(func(c *session) { c.reported -= int64(dataEvery); l.arm(c) })
	}
	e := ev.wait(t, stats.Data, 1)[0]
	if e.Conn != 1 || e.BytesIn != 5 || e.BytesOut != 5 || e.PacketsIn != 1 || e.PacketsOut != 1 {
		t.Errorf("got %+v", e)
	}
	for _, l := range s.allLoops() { // one that was silent for long
		l.each(func(c *session) { c.reported -= int64(dataEvery); l.arm(c) })
	}
	echoes(t, c, []byte("hello"))
	ev.wait(t, stats.Data, 2)
}

func TestATargetThatRefusesEndsTheSessionAndTheNextDatagramTriesAnother(t *testing.T) {
	for _, host := range []string{"127.0.0.1:0", "[::1]:0"} {
		t.Run(host, func(t *testing.T) {
			gone, g := newTarget(t, host), echoTarget(t, host)
			gone.Close()
			ev := &events{}
			s := &Server{Sink: ev}
			at := relay(t, s, gone.addr, g.addr)
			c := client(t, at)
			send(t, c, []byte("lost"))
			end := ev.wait(t, stats.Disconnect, 1)[0]
			if end.Cause != causeRefused || !strings.Contains(end.Err, gone.addr.String()) || !strings.Contains(end.Err, "refused") {
				t.Errorf("got %+v", end)
			}
			echoes(t, c, []byte("hello"))
			if v := only(t, s); v.Address != g.addr || v.ID != 2 {
				t.Errorf("got %+v", v)
			}
			wantStatus(t, s, 0, 1, 1)
			s.SetLimits(Limits{Idle: time.Millisecond})
			eventually(t, "the session ends", func() bool { return s.Len() == 0 })
			wantStatus(t, s, 0, 1, 0)
		})
	}
}

// wantStatus is of a pool of two addresses of which the first refuses.
func wantStatus(t *testing.T, s *Server, first int, failed uint64, second int) {
	t.Helper()
	if st := s.Route.Pool.Status(); st[0].Connections != first || st[0].Failed != failed || st[1].Connections != second || st[1].Failed != 0 {
		t.Errorf("got %+v, want %d connections and %d failures, then %d", st, first, failed, second)
	}
}

func TestSilenceEndsASession(t *testing.T) {
	g := newTarget(t, "127.0.0.1:0")
	ev := &events{}
	s := &Server{Sink: ev, Limits: Limits{FirstReply: 300 * time.Millisecond, Idle: time.Hour}}
	at := relay(t, s, g.addr)
	began := time.Now()
	c := client(t, at)
	for time.Since(began) < 600*time.Millisecond { // the client's datagrams keep it
		send(t, c, []byte("hello"))
		g.take(t)
		time.Sleep(10 * time.Millisecond) // a pace
	}
	if len(ev.of(stats.Disconnect)) != 0 {
		t.Fatal("a session ended while its client wrote")
	}
	if end := ev.wait(t, stats.Disconnect, 1)[0]; end.Cause != causeNoReply || end.Duration < 600*time.Millisecond {
		t.Errorf("got %+v", end)
	}

	send(t, c, []byte("hello")) // one with a reply stays
	_, from := g.take(t)
	g.WriteToUDPAddrPort([]byte("reply"), from)
	receive(t, c)
	s.SetLimits(Limits{FirstReply: time.Millisecond, Idle: 300 * time.Millisecond})
	for began = time.Now(); time.Since(began) < 600*time.Millisecond; { // the target's datagrams keep it
		g.WriteToUDPAddrPort([]byte("more"), from)
		receive(t, c)
		time.Sleep(10 * time.Millisecond) // a pace
	}
	if n := len(ev.of(stats.Disconnect)); n != 1 {
		t.Fatalf("a session ended while its target wrote")
	}
	if end := ev.wait(t, stats.Disconnect, 2)[1]; end.Cause != causeIdle || end.PacketsIn != 1 || end.PacketsOut < 2 {
		t.Errorf("got %+v", end)
	}
}

func TestTheSessionUsedLeastRecentlyMakesRoom(t *testing.T) {
	g := echoTarget(t, "127.0.0.1:0")
	for _, sockets := range []int{1, 3} {
		t.Run(fmt.Sprint(sockets, " sockets"), func(t *testing.T) {
			ev := &events{}
			s := &Server{Sink: ev, Route: Route{Pool: pool(t, g.addr)}, Limits: Limits{MaxSessions: 3}}
			var lns []*datagram.Conn
			var at []netip.AddrPort
			for range sockets {
				c := listen(t, "udp://127.0.0.1:0")
				lns, at = append(lns, c), append(at, addrOf(c))
			}
			serve(t, s, lns...)
			var clients []*net.UDPConn
			for i := range 5 {
				clients = append(clients, client(t, at[i%len(at)]))
			}
			for _, i := range []int{0, 1, 2, 0, 3, 4} {
				echoes(t, clients[i], []byte("hello"))
				time.Sleep(10 * time.Millisecond) // loops compare times
			}
			ends := ev.wait(t, stats.Disconnect, 2)
			for i, want := range []int{1, 2} {
				if ends[i].Cause != causeEvicted || ends[i].Tuple.Remote.AddrPort != addrOf(clients[want]) {
					t.Errorf("%d: got %+v, want that of client %d, %v", i, ends[i], want, addrOf(clients[want]))
				}
			}
			eventually(t, "three sessions are left", func() bool { return s.Len() == 3 && len(s.Sessions()) == 3 })
			if n := len(ev.of(stats.Error)); n != 1 {
				t.Errorf("%d errors, want one that says it is full", n)
			}
			echoes(t, clients[0], []byte("still here"))
			if n := len(ev.of(stats.Accept)); n != 5 {
				t.Errorf("%d sessions were made, want 5", n)
			}
		})
	}
}

// A batch has datagrams of sessions that make room for others in the same batch.
func TestManyClientsThroughOneSession(t *testing.T) {
	g := newTarget(t, "127.0.0.1:0")
	s := &Server{Limits: Limits{MaxSessions: 1}}
	at := relay(t, s, g.addr)
	const n = 200
	for i := range n {
		c, err := net.DialUDP("udp", nil, net.UDPAddrFromAddrPort(at))
		if err != nil {
			t.Fatal(err)
		}
		send(t, c, []byte{byte(i)})
		c.Close()
	}
	var seen [n]bool
	for range n {
		b, _ := g.take(t)
		seen[b[0]] = true
	}
	for i, ok := range seen {
		if !ok {
			t.Errorf("datagram %d is lost", i)
		}
	}
	eventually(t, "one session is left", func() bool { return s.Len() == 1 })
}

func TestLimitsOfNewSessions(t *testing.T) {
	g := echoTarget(t, "127.0.0.1:0")
	for _, tt := range []struct {
		name   string
		limits Limits
		pass   int // of ten clients
		err    string
	}{
		{"per source", Limits{MaxPerSource: 4}, 4, "more than 4 sessions from 127.0.0.1"},
		{"rate", Limits{SessionRate: 0.001}, 1, "more than 0.001 new sessions"},
		{"deny", Limits{Deny: []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8")}}, 0, "source not allowed"},
		{"allow", Limits{Allow: []netip.Prefix{netip.MustParsePrefix("10.0.0.0/8")}}, 0, "source not allowed"},
		{"none", Limits{}, 10, ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			ev := &events{}
			s := &Server{Sink: ev, Limits: tt.limits}
			at := relay(t, s, g.addr)
			var clients []*net.UDPConn
			for range 10 {
				c := client(t, at)
				send(t, c, []byte("hello"))
				clients = append(clients, c)
			}
			eventually(t, "all ten are seen to", func() bool { return s.Len()+int(s.Stats().Refused) == 10 })
			if n := s.Len(); n != tt.pass {
				t.Errorf("%d sessions, want %d", n, tt.pass)
			}
			if tt.err != "" {
				if e := ev.wait(t, stats.Error, 1)[0]; !strings.Contains(e.Err, tt.err) || e.Tuple.Remote.AddrPort.Addr().String() != "127.0.0.1" {
					t.Errorf("got %+v, want %q", e, tt.err)
				}
			}
			s.SetLimits(Limits{Idle: time.Millisecond, FirstReply: time.Millisecond})
			eventually(t, "sessions end", func() bool { return s.Len() == 0 })
			s.SetLimits(Limits{MaxPerSource: 10})
			for _, c := range clients { // what has ended counts no more
				send(t, c, []byte("again"))
			}
			eventually(t, "all have one", func() bool { return s.Len() == 10 })
		})
	}
}

func TestOutOfDescriptorsTheOldestSessionMakesRoom(t *testing.T) {
	g := echoTarget(t, "127.0.0.1:0")
	ev := &events{}
	s := &Server{Sink: ev, Limits: Limits{MaxSessions: 1000}}
	at := relay(t, s, g.addr)
	var clients []*net.UDPConn
	for range 10 {
		clients = append(clients, client(t, at))
	}
	var was unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &was); err != nil {
		t.Fatal(err)
	}
	echoes(t, clients[0], []byte("hello"))
	var fds []int // below the limit there may be holes
	defer func() {
		for _, fd := range fds {
			unix.Close(fd)
		}
	}()
	limit := was
	limit.Cur = uint64(descriptors(t) + 20)
	if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &limit); err != nil {
		t.Fatal(err)
	}
	defer unix.Setrlimit(unix.RLIMIT_NOFILE, &was)
	for {
		fd, err := unix.Dup(0)
		if err != nil {
			break
		}
		fds = append(fds, fd)
	}
	for range 3 {
		unix.Close(fds[len(fds)-1])
		fds = fds[:len(fds)-1]
	}
	for _, c := range clients[1:] {
		echoes(t, c, []byte("hello"))
	}
	ends := ev.wait(t, stats.Disconnect, 6)
	for i, e := range ends {
		if e.Cause != causeEvicted || e.Conn != uint64(i+1) {
			t.Errorf("got %+v, want the eviction of session %d", e, i+1)
		}
	}
	if errs := ev.of(stats.Error); len(errs) != 1 || !strings.Contains(errs[0].Err, "too many open files") {
		t.Errorf("got %+v, want one that names the reason", errs)
	}
}

func TestPortsOfARangeGoToTheTargetsPorts(t *testing.T) {
	var first *target
	var second *target
	for range 100 { // two ports that follow each other
		first = echoTarget(t, "127.0.0.1:0")
		c, err := net.ListenUDP("udp", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1), Port: int(first.addr.Port()) + 1})
		if err == nil {
			second = &target{c, addrOf(c)}
			t.Cleanup(func() { c.Close() })
			break
		}
	}
	if second == nil {
		t.Fatal("no two ports follow each other")
	}
	var a, b *datagram.Conn
	for range 100 {
		a = listen(t, "udp://127.0.0.1:0")
		e := fmt.Sprintf("127.0.0.1:%d", addrOf(a).Port()+1)
		if probe, err := net.ListenPacket("udp", e); err == nil {
			probe.Close()
			b = listen(t, "udp://"+e)
			break
		}
		a.Close()
	}
	s := &Server{Route: Route{Pool: pool(t, first.addr), FirstPort: addrOf(a).Port()}}
	atA, atB := addrOf(a), addrOf(b)
	serve(t, s, a, b)
	echoes(t, client(t, atA), []byte("first"))
	send(t, client(t, atB), []byte("second"))
	if got, _ := second.take(t); string(got) != "second" {
		t.Errorf("got %q", got)
	}
}

func TestSourceInterfaceAndOptionsOfSessions(t *testing.T) {
	g := newTarget(t, "127.0.0.1:0")
	var options sockopt.Settings
	if err := options.Set("ttl=7"); err != nil {
		t.Fatal(err)
	}
	s := &Server{Route: Route{Pool: pool(t, g.addr), Source: netip.MustParseAddrPort("127.0.0.9:0"), Interface: "lo", Options: options}}
	send(t, client(t, relay(t, s)), []byte("hello"))
	_, from := g.take(t)
	if v := only(t, s); from.Addr().Unmap().String() != "127.0.0.9" || v.Source.Port() != from.Port() {
		t.Errorf("came from %v, of %+v", from, v)
	}
	for _, l := range s.allLoops() {
		l.each(func(c *session) {
			ttl, err := unix.GetsockoptInt(int(c.fd), unix.IPPROTO_IP, unix.IP_TTL)
			device, err2 := unix.GetsockoptString(int(c.fd), unix.SOL_SOCKET, unix.SO_BINDTODEVICE)
			if ttl != 7 || device != "lo" || err != nil || err2 != nil {
				t.Errorf("got ttl %d, device %q, %v, %v", ttl, device, err, err2)
			}
		})
	}
}

func TestARouteThatCannotBeSaysWhy(t *testing.T) {
	g := newTarget(t, "127.0.0.1:0")
	for _, tt := range []struct {
		route Route
		err   string
	}{
		{Route{Source: netip.MustParseAddrPort("192.0.2.1:0")}, "not an address of this host"},
		{Route{Source: netip.MustParseAddrPort("[::1]:0")}, "other family"},
		{Route{Interface: "none0"}, "none0"},
	} {
		ev := &events{}
		tt.route.Pool = pool(t, g.addr)
		s := &Server{Sink: ev, Route: tt.route}
		send(t, client(t, relay(t, s)), []byte("hello"))
		if e := ev.wait(t, stats.Error, 1)[0]; !strings.Contains(e.Err, tt.err) {
			t.Errorf("got %q, want %q", e.Err, tt.err)
		}
		if s.Len() != 0 {
			t.Errorf("%d sessions", s.Len())
		}
	}
}

func TestANewRouteIsForNewSessions(t *testing.T) {
	a, b := echoTarget(t, "127.0.0.1:0"), echoTarget(t, "127.0.0.1:0")
	s := &Server{}
	at := relay(t, s, a.addr)
	old := client(t, at)
	echoes(t, old, []byte("1"))
	s.SetRoute(Route{Pool: pool(t, b.addr)})
	echoes(t, old, []byte("2"))
	echoes(t, client(t, at), []byte("3"))
	for _, v := range s.Sessions() {
		want := b.addr
		if v.ID == 1 {
			want = a.addr
		}
		if v.Address != want {
			t.Errorf("got %+v, want target %v", v, want)
		}
	}
}

func TestShutdownLetsWhatIsBusyFinish(t *testing.T) {
	g := echoTarget(t, "127.0.0.1:0")
	ev := &events{}
	s := &Server{Sink: ev, Route: Route{Pool: pool(t, g.addr)}}
	ln := listen(t, "udp://127.0.0.1:0")
	at := addrOf(ln)
	before := descriptors(t)
	serve(t, s, ln)
	busy, quiet, stranger := client(t, at), client(t, at), client(t, at)
	echoes(t, quiet, []byte("hello"))
	echoes(t, busy, []byte("hello"))
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- s.Shutdown(ctx) }()
	for len(ev.of(stats.Disconnect)) == 0 {
		echoes(t, busy, []byte("more"))
		time.Sleep(time.Millisecond) // a pace
	}
	send(t, stranger, []byte("too late"))
	echoes(t, busy, []byte("still"))
	cancel()
	if err := <-done; !errors.Is(err, context.Canceled) {
		t.Errorf("Shutdown returned %v", err)
	}
	ends := ev.of(stats.Disconnect)
	if len(ends) != 2 || ends[0].Cause != causeDrained || ends[1].Cause != causeShutdown || ends[1].Tuple.Remote.AddrPort != addrOf(busy) {
		t.Errorf("got %+v", ends)
	}
	if err := s.Serve(listen(t, "udp://127.0.0.1:0")); err != datagram.ErrServerClosed {
		t.Errorf("Serve after Shutdown returned %v", err)
	}
	eventually(t, "all descriptors are given back", func() bool { return descriptors(t) <= before+3 })
}

func TestASocketClosedByAnotherEndsServeAndItsSessions(t *testing.T) {
	g := echoTarget(t, "127.0.0.1:0")
	ev := &events{}
	s := &Server{Sink: ev, Route: Route{Pool: pool(t, g.addr)}}
	ln := listen(t, "udp://127.0.0.1:0")
	at := addrOf(ln)
	served := make(chan error, 1)
	go func() { served <- s.Serve(ln) }()
	echoes(t, client(t, at), []byte("hello"))
	ln.Close()
	if err := <-served; !errors.Is(err, net.ErrClosed) {
		t.Errorf("Serve returned %v", err)
	}
	if end := ev.wait(t, stats.Disconnect, 1)[0]; end.Cause != causeClosed || s.Len() != 0 {
		t.Errorf("got %+v, %d sessions", end, s.Len())
	}
	s.Shutdown(t.Context())
}

func TestWhatServeCannotServe(t *testing.T) {
	s := &Server{}
	for _, e := range []string{"unixgram://@sessions-test"} {
		if err := s.Serve(listen(t, e)); err == nil || !strings.Contains(err.Error(), "UDP socket is needed") {
			t.Errorf("%s: Serve returned %v", e, err)
		}
	}
	g := newTarget(t, "127.0.0.1:0")
	c, err := net.DialUDP("udp", nil, net.UDPAddrFromAddrPort(g.addr))
	if err != nil {
		t.Fatal(err)
	}
	f, err := c.File()
	if err != nil {
		t.Fatal(err)
	}
	c.Close()
	conn, err := datagram.FileConn(f)
	f.Close()
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Serve(conn); !errors.Is(err, errors.ErrUnsupported) {
		t.Errorf("Serve of a connected socket returned %v", err)
	}
	s.Shutdown(t.Context())
}

// An ICMP error that a client's host answers is none of the relay's business.
func TestClientsThatAreGoneDisturbNobody(t *testing.T) {
	g := newTarget(t, "127.0.0.1:0")
	ev := &events{}
	s := &Server{Sink: ev, Route: Route{Pool: pool(t, g.addr)}}
	ln := listen(t, "udp://127.0.0.1:0", "recverr=on")
	at := addrOf(ln)
	serve(t, s, ln)
	for _, l := range s.allLoops() {
		if on, err := unix.GetsockoptInt(l.ports[0].fd, unix.IPPROTO_IP, unix.IP_RECVERR); on != 0 || err != nil {
			t.Errorf("the socket is told of ICMP errors: %d, %v", on, err)
		}
	}
	var from []netip.AddrPort
	for range 20 {
		c, err := net.DialUDP("udp", nil, net.UDPAddrFromAddrPort(at))
		if err != nil {
			t.Fatal(err)
		}
		send(t, c, []byte("hello"))
		c.Close()
		_, a := g.take(t)
		from = append(from, a)
	}
	c := client(t, at)
	send(t, c, []byte("hello"))
	_, a := g.take(t)
	for range 20 {
		for _, a := range from {
			g.WriteToUDPAddrPort([]byte("nobody is there"), a)
		}
		g.WriteToUDPAddrPort([]byte("you are"), a)
		if got := receive(t, c); string(got) != "you are" {
			t.Fatalf("got %q", got)
		}
	}
	if n := len(ev.of(stats.Disconnect)); n != 0 || s.Len() != 21 {
		t.Errorf("%d sessions have ended", n)
	}
	settle(t, s)
	if got := ev.of(stats.Error); len(got) != 0 || s.Stats().Dropped != 0 {
		t.Errorf("%d replies to others are lost, errors %+v", s.Stats().Dropped, got)
	}
}

func TestTheRuntimesPollerLetsGoOfTheSockets(t *testing.T) {
	g := echoTarget(t, "127.0.0.1:0")
	s := &Server{Route: Route{Pool: pool(t, g.addr)}}
	ln := listen(t, "udp://127.0.0.1:0")
	raw, err := ln.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	fd := 0
	raw.Control(func(n uintptr) { fd = int(n) })
	if n := pollersOf(t, fd); n != 1 {
		t.Fatalf("%d pollers have the socket, want the runtime's", n)
	}
	at := addrOf(ln)
	serve(t, s, ln)
	echoes(t, client(t, at), []byte("hello"))
	if n := pollersOf(t, fd); n != 0 {
		t.Errorf("%d pollers have the caller's descriptor", n)
	}
}

// pollersOf counts the epoll descriptors of this process that have a descriptor.
func pollersOf(t *testing.T, fd int) (n int) {
	entries, err := os.ReadDir("/proc/self/fdinfo")
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		b, err := os.ReadFile("/proc/self/fdinfo/" + e.Name())
		if err == nil && bytes.Contains(b, fmt.Appendf(nil, "tfd: %8d ", fd)) {
			n++
		}
	}
	return n
}

func TestFaultsAreReplayedBySeed(t *testing.T) {
	const n = 300
	pass := func(seed uint64) (up, down string) {
		g := newTarget(t, "127.0.0.1:0")
		s := &Server{}
		s.Route.Faults = faults.Config{Seed: seed, Loss: 0.4}
		c := client(t, relay(t, s, g.addr))
		marks := func(u *net.UDPConn, more func() bool) string {
			got := bytes.Repeat([]byte("."), n)
			for more() {
				if b := receive(t, u); b[0] < 100 {
					got[int(b[0])+int(b[1])*100] = 'x'
				}
			}
			return string(got)
		}
		for i := range n {
			send(t, c, []byte{byte(i % 100), byte(i / 100)})
		}
		eventually(t, "all have come", func() bool { v := s.Sessions(); return len(v) == 1 && v[0].PacketsIn == n })
		v := only(t, s)
		left := n - int(v.Dropped)
		up = marks(g.UDPConn, func() bool { left--; return left >= 0 })
		for i := range n {
			g.WriteToUDPAddrPort([]byte{byte(i % 100), byte(i / 100)}, v.Source)
		}
		eventually(t, "all are back", func() bool { return only(t, s).PacketsOut == n })
		left = n - int(only(t, s).Dropped-v.Dropped)
		down = marks(c, func() bool { left--; return left >= 0 })
		return up, down
	}
	want := func(seed uint64, d faults.Direction) string {
		line := faults.Config{Seed: seed, Loss: 0.4}.Line(1, d) // of the first session
		marks := bytes.Repeat([]byte("."), n)
		for i := range marks {
			if _, ok := line.Datagram(time.Now(), 2); ok {
				marks[i] = 'x'
			}
		}
		return string(marks)
	}
	for _, seed := range []uint64{1, 2} {
		for range 2 {
			up, down := pass(seed)
			if up != want(seed, faults.Up) || down != want(seed, faults.Down) {
				t.Errorf("seed %d:\n%s up\n%s want\n%s down\n%s want", seed, up, want(seed, faults.Up), down, want(seed, faults.Down))
			}
		}
	}
}

func TestDelayKeepsOrderAndIsNeverShort(t *testing.T) {
	const delay, n = 60 * time.Millisecond, 50
	g := echoTarget(t, "127.0.0.1:0")
	s := &Server{}
	s.Route.Faults = faults.Config{Delay: delay}
	c := client(t, relay(t, s, g.addr))
	began := time.Now()
	for i := range n {
		send(t, c, []byte{byte(i)})
	}
	for i := range n {
		b := receive(t, c)
		if took := time.Since(began); took < 2*delay {
			t.Fatalf("back after %v, want %v", took, 2*delay)
		}
		if b[0] != byte(i) {
			t.Fatalf("datagram %d is the %dth to come", b[0], i)
		}
	}
	if d := s.Stats().Delayed; d != 0 {
		t.Errorf("%d still wait", d)
	}
}

func TestACutEndsTheSession(t *testing.T) {
	g := echoTarget(t, "127.0.0.1:0")
	for _, f := range []faults.Config{{CutAfter: 1000}, {CutTime: 50 * time.Millisecond}} {
		ev := &events{}
		s := &Server{Sink: ev}
		s.Route.Faults = f
		c := client(t, relay(t, s, g.addr))
		echoes(t, c, pattern(400))
		if f.CutAfter > 0 {
			send(t, c, pattern(400))
		}
		end := ev.wait(t, stats.Disconnect, 1)[0]
		if end.Cause != causeCut || f.CutTime > end.Duration {
			t.Errorf("got %+v", end)
		}
		if n := end.BytesIn + end.BytesOut; f.CutAfter > 0 && n < 1000 {
			t.Errorf("cut after %d bytes", n)
		}
	}
}

func TestARateHoldsInBothDirections(t *testing.T) {
	g := echoTarget(t, "127.0.0.1:0")
	s := &Server{Route: Route{Rate: 100_000}}
	c := client(t, relay(t, s, g.addr))
	began := time.Now()
	sent := 0
	for time.Since(began) < 500*time.Millisecond {
		for range 10 {
			send(t, c, pattern(1000))
			sent++
		}
		time.Sleep(5 * time.Millisecond) // ten times the rate
	}
	var v Session
	eventually(t, "all have come", func() bool { v = only(t, s); return v.PacketsIn == uint64(sent) })
	eventually(t, "none waits", func() bool { return s.Stats().Delayed == 0 })
	v = only(t, s)
	most := time.Since(began).Seconds()*100 + 7 // and a burst of 50 ms
	if passed := sent - int(v.Dropped); float64(passed) > most || passed < 20 {
		t.Errorf("%d datagrams passed, want %.0f at most", passed, most)
	}
	if v.Dropped == 0 {
		t.Error("nothing was dropped")
	}
}

func TestStatsSayWhatToBelieve(t *testing.T) {
	g := echoTarget(t, "127.0.0.1:0")
	s := &Server{}
	at := relay(t, s, g.addr)
	for range 10 {
		echoes(t, client(t, at), []byte("hello"))
	}
	st := s.Stats()
	if st.Sessions != 10 || st.MaxSessions < 100 || st.Loops != 1 || st.In.Datagrams != 10 || st.Out.Datagrams != 10 || st.GSO != "on" || st.GRO != "on" {
		t.Errorf("got %+v", st)
	}
	if len(st.Sockets) != 1 || st.Sockets[0].Local != at || st.Sockets[0].ReceiveBuffer < 1<<20 || st.Sockets[0].KernelDropped != 0 {
		t.Errorf("got %+v", st.Sockets)
	}
	// While the loop stands still its socket overflows, and says how much it lost.
	if err := s.HandOff(func([]*os.File, []byte) error { return nil }); err != nil {
		t.Fatal(err)
	}
	c := client(t, at)
	const flood = 400
	for range flood {
		send(t, c, pattern(60000))
	}
	s.Resume()
	var lost uint64
	eventually(t, "all are accounted for", func() bool {
		st := s.Stats()
		lost = st.Sockets[0].KernelDropped
		return st.In.Datagrams-10+lost == flood
	})
	if lost == 0 {
		t.Error("nothing was lost")
	}
}

package sessions

import (
	"encoding/binary"
	"errors"
	"net"
	"net/netip"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/fivetuple/fivetuple/datagram"
	"github.com/fivetuple/fivetuple/relay/faults"
	"github.com/fivetuple/fivetuple/stats"
)

// parcel is what another process would get of a session.
type parcel struct {
	file  *os.File
	state []byte
}

// pack hands all sessions of a server off.
func pack(t testing.TB, s *Server) (all []parcel) {
	t.Helper()
	err := s.HandOff(func(files []*os.File, state []byte) error {
		if len(files) != 1 {
			t.Errorf("%d files, want one", len(files))
		}
		all = append(all, parcel{files[0], state})
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return all
}

func unpack(t testing.TB, s *Server, all []parcel) {
	t.Helper()
	for _, p := range all {
		if err := s.Adopt([]*os.File{p.file}, p.state); err != nil {
			t.Fatal(err)
		}
		p.file.Close()
	}
}

// copyOf is another Conn of the same socket.
func copyOf(t testing.TB, c *datagram.Conn) *datagram.Conn {
	t.Helper()
	f, err := c.File()
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	next, err := datagram.FileConn(f)
	if err != nil {
		t.Fatal(err)
	}
	return next
}

// move hands everything from one server to another, and returns its sockets.
func move(t testing.TB, from, to *Server, lns []*datagram.Conn) (next []*datagram.Conn) {
	t.Helper()
	all := pack(t, from)
	for _, ln := range lns {
		next = append(next, copyOf(t, ln))
	}
	slices.Reverse(next) // which is which the sockets tell
	unpack(t, to, all)
	if err := from.Release(); err != nil {
		t.Fatal(err)
	}
	serve(t, to, next...)
	return next
}

func TestBusySessionsMoveAgainAndAgainWithoutALostDatagram(t *testing.T) {
	const clients, moves = 50, 10
	g := echoTarget(t, "127.0.0.1:0")
	route := Route{Pool: pool(t, g.addr)}
	before := 0
	for _, wildcard := range []string{"udp4://127.0.0.1:0", "udp4://*:0"} {
		ev := &events{}
		s := &Server{Route: route, Sink: ev}
		first := listen(t, wildcard, "reuseport=on")
		at := netip.AddrPortFrom(netip.MustParseAddr("127.0.0.1"), addrOf(first).Port())
		lns := []*datagram.Conn{first, listen(t, strings.Replace(wildcard, ":0", ":"+itoa(at.Port()), 1), "reuseport=on")}
		serve(t, s, lns...)
		stop := make(chan struct{})
		var wg sync.WaitGroup
		var sent int64
		var mu sync.Mutex
		for range clients {
			c := client(t, at)
			wg.Go(func() {
				n := exchange(t, c, stop)
				mu.Lock()
				sent += n
				mu.Unlock()
			})
		}
		eventually(t, "all have sessions", func() bool { return s.Len() == clients })
		if before == 0 {
			before = descriptors(t)
		}
		for range moves {
			next := &Server{Route: route, Sink: ev}
			lns = move(t, s, next, lns)
			s = next
			time.Sleep(5 * time.Millisecond) // of normal work
		}
		close(stop)
		wg.Wait()
		var in uint64
		for _, v := range s.Sessions() {
			in += v.PacketsIn
		}
		if n := len(ev.of(stats.Accept)); n != clients || s.Len() != clients || len(ev.of(stats.Disconnect)) != 0 || in != uint64(sent) {
			t.Errorf("%d sessions were made, %d are left, %d have ended, want %d at all times; %d datagrams of %d counted",
				n, s.Len(), len(ev.of(stats.Disconnect)), clients, in, sent)
		}
	}
}

func itoa(n uint16) string {
	return netip.AddrPortFrom(netip.IPv4Unspecified(), n).String()[len("0.0.0.0:"):]
}

// exchange sends numbers, some ahead of their echo, until stop; every one has to
// come back, in order.
func exchange(t testing.TB, c *net.UDPConn, stop <-chan struct{}) int64 {
	const ahead = 8
	var sent, got uint64
	b := make([]byte, 8)
	for {
		select {
		case <-stop:
			if got == sent {
				return int64(sent)
			}
		default:
			for ; sent < got+ahead; sent++ {
				binary.BigEndian.PutUint64(b, sent)
				c.Write(b)
			}
			time.Sleep(time.Millisecond) // a pace at which no buffer overflows
		}
		c.SetReadDeadline(time.Now().Add(patience))
		if _, err := c.Read(b); err != nil {
			t.Errorf("after %d of %d: %v", got, sent, err)
			return 0
		}
		if n := binary.BigEndian.Uint64(b); n != got {
			t.Errorf("number %d came, want %d", n, got)
			return 0
		}
		got++
	}
}

func TestASessionIsTheSameAfterItMoved(t *testing.T) {
	for _, listenOn := range []string{"udp://127.0.0.1:0", "udp://*:0", "udp6://[::1]:0"} {
		g := newTarget(t, "127.0.0.1:0")
		ev := &events{}
		route := Route{Pool: pool(t, g.addr)}
		a, b := &Server{Sink: ev, Route: route}, &Server{Sink: ev, Route: route}
		ln := listen(t, listenOn)
		at := addrOf(ln)
		if at.Addr().IsUnspecified() {
			at = netip.AddrPortFrom(netip.MustParseAddr("127.0.0.66"), at.Port())
		}
		serve(t, a, ln)
		c, other := client(t, at), client(t, at)
		send(t, other, []byte("unanswered"))
		g.take(t)
		send(t, c, []byte("123"))
		_, from := g.take(t)
		g.WriteToUDPAddrPort([]byte("4567"), from)
		receive(t, c)
		was := a.Sessions()
		all := pack(t, a)
		send(t, c, []byte("meanwhile"))
		g.WriteToUDPAddrPort([]byte("meanwhile, too"), from)
		next := copyOf(t, ln)
		unpack(t, b, all)
		a.Release()
		if n := b.Len(); n != 2 {
			t.Errorf("%d sessions wait for their socket, want 2", n)
		}
		serve(t, b, next)
		if got, again := g.take(t); string(got) != "meanwhile" || again != from {
			t.Errorf("got %q from %v, want from %v", got, again, from)
		}
		if got := receive(t, c); string(got) != "meanwhile, too" {
			t.Errorf("got %q", got)
		}
		for _, v := range b.Sessions() {
			i := slices.IndexFunc(was, func(w Session) bool { return w.ID == v.ID })
			if i < 0 {
				t.Fatalf("session %+v is new", v)
			}
			w := was[i]
			if v.Client != w.Client || v.Local != w.Local || v.Target != w.Target || v.Address != w.Address || v.Source != w.Source || v.Replied != w.Replied || v.Age <= w.Age {
				t.Errorf("got %+v, was %+v", v, w)
			}
			if v.Client == addrOf(c) && (v.PacketsIn != 2 || v.BytesIn != 12 || v.PacketsOut != 2 || v.BytesOut != 18) {
				t.Errorf("got %+v", v)
			}
		}
		send(t, client(t, at), []byte("new"))
		g.take(t)
		if accepts := ev.wait(t, stats.Accept, 3); len(accepts) != 3 || accepts[2].Conn != 3 {
			t.Errorf("got %+v", accepts)
		}
		b.SetLimits(Limits{FirstReply: time.Millisecond, Idle: time.Hour})
		eventually(t, "those without a reply end", func() bool { return b.Len() == 1 })
	}
}

func TestNothingMovesBetweenHandOffAndResume(t *testing.T) {
	g := newTarget(t, "127.0.0.1:0")
	ev := &events{}
	s := &Server{Sink: ev, Limits: Limits{Idle: 50 * time.Millisecond, FirstReply: 50 * time.Millisecond}}
	c := client(t, relay(t, s, g.addr))
	send(t, c, []byte("1"))
	g.take(t)
	all := pack(t, s)
	defer unpackNowhere(all)
	if err := s.HandOff(nil); !errors.Is(err, errFrozen) {
		t.Errorf("a second HandOff returned %v", err)
	}
	send(t, c, []byte("2"))
	g.SetReadDeadline(time.Now().Add(200 * time.Millisecond))
	if n, err := g.Read(make([]byte, 10)); err == nil {
		t.Errorf("%d bytes came through", n)
	}
	if n := len(ev.of(stats.Disconnect)); n != 0 {
		t.Errorf("%d sessions have ended", n)
	}
	s.Resume()
	if b, _ := g.take(t); string(b) != "2" {
		t.Errorf("got %q", b)
	}
	if n := len(ev.of(stats.Accept)); n != 1 {
		t.Errorf("%d sessions, want the same one", n)
	}
	s.Resume()
	if err := s.Release(); err == nil {
		t.Error("Release without HandOff is no error")
	}
}

func unpackNowhere(all []parcel) {
	for _, p := range all {
		p.file.Close()
	}
}

func TestWhatAFaultDelaysIsSentBeforeTheHandOver(t *testing.T) {
	g := newTarget(t, "127.0.0.1:0")
	s := &Server{}
	s.Route.Faults = faults.Config{Delay: time.Hour}
	c := client(t, relay(t, s, g.addr))
	for i := range 10 {
		send(t, c, []byte{byte(i)})
	}
	eventually(t, "all wait", func() bool { return s.Stats().Delayed == 10 })
	unpackNowhere(pack(t, s))
	for i := range 10 {
		if b, _ := g.take(t); b[0] != byte(i) {
			t.Errorf("got %v, want %d", b, i)
		}
	}
}

// settle waits until the loops have seen to all that has come, and told it.
func settle(t testing.TB, s *Server) {
	t.Helper()
	for range 2 { // what came while the first turn ended
		unpackNowhere(pack(t, s))
		s.Resume()
	}
}

func TestAnErrorOfGiveIsHandOffs(t *testing.T) {
	g := echoTarget(t, "127.0.0.1:0")
	s := &Server{}
	c := client(t, relay(t, s, g.addr))
	echoes(t, c, []byte("hello"))
	before := descriptors(t)
	stop := errors.New("the other side has gone")
	if err := s.HandOff(func(files []*os.File, _ []byte) error { files[0].Close(); return stop }); !errors.Is(err, stop) {
		t.Errorf("HandOff returned %v", err)
	}
	s.Resume()
	echoes(t, c, []byte("still here"))
	if n := descriptors(t); n > before {
		t.Errorf("%d descriptors, were %d", n, before)
	}
}

func TestSessionsWithoutTheirSocketGoOnToTheNext(t *testing.T) {
	g := echoTarget(t, "127.0.0.1:0")
	route := Route{Pool: pool(t, g.addr)}
	a, ev := &Server{Route: route}, &events{}
	ln := listen(t, "udp://127.0.0.1:0")
	at := addrOf(ln)
	serve(t, a, ln)
	c := client(t, at)
	echoes(t, c, []byte("1"))
	all := pack(t, a)
	next := copyOf(t, ln)
	between, b := &Server{Route: route, Sink: ev}, &Server{Route: route}
	unpack(t, between, all)
	a.Release()
	all = pack(t, between)
	unpack(t, b, all)
	if err := between.Release(); err != nil {
		t.Error(err)
	}
	serve(t, b, next)
	if v := only(t, b); !v.Replied || b.Route.Pool.Find(g.addr, "").Conns() != 1 {
		t.Errorf("got %+v", v)
	}
	echoes(t, c, []byte("2"))
	if v := only(t, b); v.PacketsIn != 2 || v.ID != 1 {
		t.Errorf("got %+v", v)
	}

	all = pack(t, b) // and if nobody ever brings it, they end
	last := &Server{Sink: ev, Route: route}
	unpack(t, last, all)
	b.Release()
	last.Shutdown(t.Context())
	if end := ev.wait(t, stats.Disconnect, 1)[0]; end.Cause != causeShutdown || end.PacketsIn != 2 || end.Tuple != udp(at, addrOf(c)) {
		t.Errorf("got %+v", end)
	}
}

// A process with another configuration opens the port anew, or serves it already.
func TestAnotherSocketOfTheSamePortWillDo(t *testing.T) {
	g := echoTarget(t, "127.0.0.1:0")
	route := Route{Pool: pool(t, g.addr)}
	for _, late := range []bool{false, true} {
		a, b := &Server{Route: route}, &Server{Route: route}
		ln := listen(t, "udp://127.0.0.1:0")
		at := addrOf(ln)
		serve(t, a, ln)
		c := client(t, at)
		echoes(t, c, []byte("1"))
		all := pack(t, a)
		a.Release()
		var next *datagram.Conn
		eventually(t, "the port is free", func() bool {
			probe, err := net.ListenUDP("udp4", net.UDPAddrFromAddrPort(at))
			if err == nil {
				probe.Close()
			}
			return err == nil
		})
		next = listen(t, "udp://"+at.String())
		if late {
			serve(t, b, next)
			unpack(t, b, all)
		} else {
			unpack(t, b, all)
			serve(t, b, next)
		}
		echoes(t, c, []byte("2"))
		if v := only(t, b); v.PacketsIn != 2 {
			t.Errorf("got %+v", v)
		}
	}
}

func TestWhatCannotBeAdopted(t *testing.T) {
	g := newTarget(t, "127.0.0.1:0")
	s := &Server{Route: Route{Pool: pool(t, g.addr)}}
	good := (&snapshot{id: 1, client: g.addr, socket: g.addr}).encode()
	unconnected, err := g.File()
	if err != nil {
		t.Fatal(err)
	}
	defer unconnected.Close()
	plain, err := os.Open("/dev/null")
	if err != nil {
		t.Fatal(err)
	}
	defer plain.Close()
	for _, tt := range []struct {
		name  string
		files []*os.File
		state []byte
	}{
		{"no file", nil, good}, {"two files", []*os.File{unconnected, unconnected}, good}, {"no socket", []*os.File{plain}, good},
		{"not connected", []*os.File{unconnected}, good}, {"no state", []*os.File{unconnected}, nil}, {"another version", []*os.File{unconnected}, []byte{9, 0}},
	} {
		if err := s.Adopt(tt.files, tt.state); err == nil {
			t.Errorf("%s: adopted", tt.name)
		}
	}
	if n := s.Len(); n != 0 {
		t.Errorf("%d sessions", n)
	}
	s.Release()
}

// Another program, or this one with another service on the port, knows no trains.
func TestASocketThatIsHandedOverIsAPlainOne(t *testing.T) {
	g := newTarget(t, "127.0.0.1:0")
	s := &Server{Route: Route{Pool: pool(t, g.addr)}}
	ln := listen(t, "udp://127.0.0.1:0")
	at := addrOf(ln)
	serve(t, s, ln)
	c := client(t, at)
	send(t, c, []byte("hello"))
	g.take(t)
	unpackNowhere(pack(t, s))
	next := copyOf(t, ln)
	defer next.Close()
	train(t, c, nil, pattern(2000), 100)
	next.SetReadDeadline(time.Now().Add(patience))
	var p datagram.Packet
	for i := range 20 {
		if err := next.Receive(&p); err != nil || len(p.Data) != 100 {
			t.Fatalf("datagram %d has %d bytes, %v", i, len(p.Data), err)
		}
	}
	s.Resume()
	train(t, c, nil, pattern(2000), 100)
	for range 20 {
		if b, _ := g.take(t); len(b) != 100 {
			t.Fatalf("got %d bytes", len(b))
		}
	}
	if n := s.Stats().In.Batches[0]; n != 2 {
		t.Errorf("%d single messages, want the first and a train that came whole", n)
	}
}

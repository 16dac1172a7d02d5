package datagram

import (
	"encoding/binary"
	"fmt"
	"net/netip"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/fivetuple/fivetuple"
	"github.com/fivetuple/fivetuple/stats"
)

// offlineServer is a server with a socket that nobody reads, so that a test
// has admit judge packets at times of its own.
func offlineServer(t *testing.T, l Limits) (*Server, *events, func(from int, now time.Time) string) {
	sink := newEvents()
	s := &Server{Sink: sink, Limits: l, stop: make(chan struct{})}
	s.peers.init()
	s.SetLimits(l)
	c := listen(t, "udp://127.0.0.1:0")
	return s, sink, func(from int, now time.Time) string {
		var a [4]byte
		binary.BigEndian.PutUint32(a[:], 10<<24+uint32(from))
		p := &Packet{Data: []byte("abc"), From: fivetuple.Address{AddrPort: netip.AddrPortFrom(netip.AddrFrom4(a), 4000)}, To: c.local, conn: c, server: s}
		return s.admit(p, now)
	}
}

func TestFloodOfForgedSourcesIsBounded(t *testing.T) {
	const perSecond, maxPeers, sources = 100, 250, 200_000
	s, sink, admit := offlineServer(t, Limits{NewPeers: perSecond, MaxPeers: maxPeers})
	now := time.Unix(1000, 0)
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	for second := range 4 {
		for i := range sources / 4 {
			at := now.Add(time.Duration(second)*time.Second + time.Duration(i)*10*time.Microsecond)
			if refused := admit(second*sources/4+i, at); refused != "" {
				t.Fatalf("refused: %s", refused)
			}
		}
		s.recordKeptBack(now.Add(time.Duration(second+1) * time.Second))
	}
	runtime.GC()
	runtime.ReadMemStats(&after)
	for kind, want := range map[stats.Kind]int{stats.Accept: 4 * perSecond, stats.Disconnect: 4*perSecond - maxPeers, stats.Error: 4} {
		if got := len(sink.of(kind)); got != want {
			t.Errorf("%v events: got %d, want %d", kind, got, want)
		}
	}
	if got, want := sink.of(stats.Error)[3].Err, fmt.Sprintf("%d datagrams of new peers not tracked: more than 100 new peers in a second", sources/4-perSecond); got != want {
		t.Errorf("got %q, want %q", got, want)
	}
	if got := sink.of(stats.Disconnect)[0]; got.Cause != "evicted" || got.Conn != 1 || got.BytesIn != 3 || got.PacketsIn != 1 {
		t.Errorf("first evicted: got %+v", got)
	}
	if got := len(s.Peers()); got != maxPeers {
		t.Errorf("peers: got %d, want %d", got, maxPeers)
	}
	if grown := int64(after.HeapAlloc) - int64(before.HeapAlloc); grown > 2<<20 {
		t.Errorf("the heap grew by %d bytes", grown)
	}
}

func TestBusyPeerOutlivesAFlood(t *testing.T) {
	s, _, admit := offlineServer(t, Limits{NewPeers: 10, MaxPeers: 20, PeerRate: 100})
	now := time.Unix(1000, 0)
	refused := 0
	for i := range 1000 {
		if refused := admit(0, now); refused != "" {
			t.Fatalf("datagram %d of the busy peer: refused %q", i, refused)
		}
		for j := range 3 {
			if admit(3*i+j+1, now) != "" {
				refused++
			}
		}
		now = now.Add(time.Second / 10)
	}
	if refused == 0 {
		t.Error("all newcomers were served: that is no flood")
	}
	if got := s.Peers(); !slices.ContainsFunc(got, func(p Peer) bool { return p.ID == 1 && p.PacketsIn == 1000 }) {
		t.Errorf("got %+v, want the first peer with 1000 datagrams", got)
	}
}

func TestPeerRate(t *testing.T) {
	s, _, admit := offlineServer(t, Limits{PeerRate: 3, NewPeers: 2})
	now := time.Unix(1000, 0)
	for i, tt := range []struct {
		from    int
		after   time.Duration
		refused string
	}{
		{1, 0, ""}, {1, 0, ""}, {2, 0, ""}, {1, 0, ""},
		{1, 0, "more than 3 datagrams in a second"},
		{2, 0, ""},
		{3, 0, "peer not tracked"},
		{1, time.Second, ""},
		{3, 0, ""},
	} {
		now = now.Add(tt.after)
		if got := admit(tt.from, now); got != tt.refused {
			t.Errorf("datagram %d from %d: refused %q, want %q", i, tt.from, got, tt.refused)
		}
	}
	s.SetLimits(Limits{})
	for range 10 {
		if got := admit(1, now); got != "" {
			t.Errorf("without a limit: refused %q", got)
		}
	}
}

func TestPortZeroIsNotServed(t *testing.T) {
	s, _, _ := offlineServer(t, Limits{})
	p := &Packet{From: fivetuple.ParseAddress("10.0.0.1:0"), To: fivetuple.ParseAddress("10.0.0.2:7")}
	if got, want := s.admit(p, time.Unix(1000, 0)), "port 0 cannot be answered"; got != want || len(s.Peers()) != 0 {
		t.Errorf("got %q and %d peers, want %q and none", got, len(s.Peers()), want)
	}
}

func TestPeersExpireAndReport(t *testing.T) {
	s, _, admit := offlineServer(t, Limits{})
	begin := time.Unix(1000, 0)
	admit(1, begin)
	admit(2, begin.Add(5*time.Second))
	admit(1, begin.Add(10*time.Second))
	if got := s.peers.report(begin.Add(9 * time.Second)); len(got) != 0 {
		t.Errorf("report after 9 s: got %+v, want none", got)
	}
	if got := s.peers.report(begin.Add(10 * time.Second)); len(got) != 1 || got[0].Conn != 1 || got[0].PacketsIn != 2 || got[0].BytesIn != 6 {
		t.Errorf("report after 10 s: got %+v, want that of peer 1", got)
	}
	if got := s.peers.report(begin.Add(21 * time.Second)); len(got) != 1 || got[0].Conn != 2 {
		t.Errorf("report after 21 s: got %+v, want that of peer 2 alone", got)
	}
	gone := s.peers.expire(begin.Add(5 * time.Second))
	if len(gone) != 1 || gone[0].id != 2 {
		t.Errorf("silent since 5 s: got %v, want peer 2", gone)
	}
	if got := s.Peers(); len(got) != 1 || got[0].Seen.Sub(got[0].Since) != 10*time.Second {
		t.Errorf("left: got %+v, want peer 1 of 10 s", got)
	}
}

func TestDeniedSourceIsNotServed(t *testing.T) {
	sink := newEvents()
	s := &Server{Handler: Echo(), Sink: sink, Limits: Limits{Deny: []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8")}}}
	c := serve(t, s, "udp://*:0")
	client := dial(t, fmt.Sprintf("udp://127.0.0.1:%d", c.local.AddrPort.Port()))
	send(t, client, "not served")
	e := sink.wait(t, stats.Error, 1)[0]
	if e.Err != "refused: source not allowed" || e.Tuple.Remote != client.local {
		t.Errorf("got %+v", e)
	}
	s.SetLimits(Limits{})
	send(t, client, "served")
	want(t, client, "served")
	if got := sink.of(stats.Accept); len(got) != 1 {
		t.Errorf("accepted: got %+v, want one", got)
	}
}

func TestMayLoop(t *testing.T) {
	for _, tt := range []struct {
		from, to string
		want     bool
	}{
		{"10.0.0.1:40000", "10.0.0.2:7", false},
		{"10.0.0.1:7", "10.0.0.2:8081", true},
		{"10.0.0.1:13", "10.0.0.2:8081", true},
		{"10.0.0.1:17", "10.0.0.2:8081", true},
		{"10.0.0.1:19", "10.0.0.2:8081", true},
		{"10.0.0.1:9", "10.0.0.2:8081", false},
		{"10.0.0.2:8081", "10.0.0.2:8081", true},
		{"10.0.0.1:8081", "10.0.0.2:8081", true}, // a server like this one
		{"10.0.0.2:40000", "10.0.0.2:40000", true},
		{"10.0.0.1:40000", "10.0.0.2:40000", true}, // perhaps another address of the same host
		{"[::1]:7", "[::1]:8081", true},
		{"10.0.0.1:8082", "10.0.0.2:8081", false},
		{"10.0.0.1:8083", "10.0.0.2:8081", true}, // suspected by the server
	} {
		s := &Server{Suspects: func(from netip.AddrPort) bool { return from == netip.MustParseAddrPort("10.0.0.1:8083") }}
		p := &Packet{server: s, From: fivetuple.ParseAddress(tt.from), To: fivetuple.ParseAddress(tt.to)}
		if got := mayLoop(p); got != tt.want {
			t.Errorf("from %s to %s: got %v, want %v", tt.from, tt.to, got, tt.want)
		}
	}
}

func TestEchoServersDoNotTalkToEachOther(t *testing.T) {
	sink := newEvents()
	s := &Server{Handler: Echo(), Sink: sink}
	c := serve(t, s, "udp://127.0.0.1:0")
	seven := listen(t, "udp://127.0.0.1:7") // in the tests' own network namespace
	if err := seven.SendTo(c.local, []byte("ping")); err != nil {
		t.Fatal(err)
	}
	if e := sink.wait(t, stats.Error, 1)[0]; !strings.Contains(e.Err, "not answered") || e.Tuple.Remote != seven.local {
		t.Errorf("got %+v", e)
	}
	if got := s.Peers()[0].PacketsOut; got != 0 {
		t.Errorf("sent %d datagrams to port 7, want none", got)
	}
}

// The server's own socket plays the forger: it sends from its port, and from
// another address of the host.
func TestServerDoesNotTalkToItself(t *testing.T) {
	s := &Server{Handler: Echo(), Sink: newEvents()}
	c := serve(t, s, "udp4://*:0")
	to := netip.AddrPortFrom(netip.MustParseAddr("127.0.0.1"), c.local.AddrPort.Port())
	var control [controlOut]byte
	if err := c.sendFrom([]byte("ping"), fivetuple.IPAddress(to), route{source: netip.MustParseAddr("127.0.0.2")}, control[:], forever); err != nil {
		t.Fatal(err)
	}
	e := s.Sink.(*events).wait(t, stats.Error, 1)[0]
	if !strings.Contains(e.Err, "not answered") || e.Tuple.Remote.AddrPort != netip.AddrPortFrom(netip.MustParseAddr("127.0.0.2"), to.Port()) {
		t.Errorf("got %+v", e)
	}
	if got := s.Peers(); len(got) != 1 || got[0].PacketsIn != 1 || got[0].PacketsOut != 0 {
		t.Errorf("got %+v, want one peer and no answer", got)
	}
}

func TestServersThatKnowOfEachOtherDoNotTalk(t *testing.T) {
	a, b := listen(t, "udp4://*:0"), listen(t, "udp://127.0.0.1:0")
	ours := func(from netip.AddrPort) bool {
		return from.Port() == a.local.AddrPort.Port() || from.Port() == b.local.AddrPort.Port()
	}
	s := &Server{Handler: Echo(), Sink: newEvents(), Suspects: ours}
	serveOn(t, s, a)
	serveOn(t, &Server{Handler: Echo(), Suspects: ours}, b)
	if err := b.SendTo(fivetuple.ParseAddress(fmt.Sprintf("127.0.0.1:%d", a.local.AddrPort.Port())), []byte("ping")); err != nil {
		t.Fatal(err)
	}
	if e := s.Sink.(*events).wait(t, stats.Error, 1)[0]; !strings.Contains(e.Err, "not answered") || e.Tuple.Remote != b.local {
		t.Errorf("got %+v", e)
	}
	if got := s.Peers(); len(got) != 1 || got[0].PacketsIn != 1 || got[0].PacketsOut != 0 {
		t.Errorf("got %+v, want one peer and no answer", got)
	}
}

// Two sockets evict each other's peers while a third party reports all: of each
// peer the events must come as Accept, any Data, Disconnect.
func TestEventsOfAPeerComeInOrder(t *testing.T) {
	const rounds = 20_000
	s, sink, admit := offlineServer(t, Limits{MaxPeers: 1, NewPeers: 2 * rounds, PeerTimeout: time.Hour})
	s.Sink = stats.SinkFunc(func(e stats.Event) {
		runtime.Gosched() // who holds no lock lets others pass
		sink.Record(e)
	})
	var admits, reviews sync.WaitGroup
	for socket := range 2 {
		admits.Go(func() {
			for i := range rounds {
				admit(2*i+socket, time.Unix(1000, 0))
			}
		})
	}
	done := make(chan struct{})
	reviews.Go(func() {
		for {
			s.review(time.Unix(1010, 0))
			select {
			case <-done:
				s.review(time.Unix(1010, 0))
				return
			default:
			}
		}
	})
	admits.Wait()
	close(done)
	reviews.Wait()
	if got := len(sink.of(stats.Data)); got == 0 {
		t.Fatal("no Data events")
	}
	last := map[uint64]stats.Kind{}
	for _, e := range sink.list {
		before, known := last[e.Conn]
		if known == (e.Kind == stats.Accept) || before == stats.Disconnect {
			t.Fatalf("%v of peer %d after %v", e.Kind, e.Conn, before)
		}
		last[e.Conn] = e.Kind
	}
	if len(last) != 2*rounds {
		t.Errorf("%d peers, want %d", len(last), 2*rounds)
	}
}

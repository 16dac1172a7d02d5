package changes

import (
	"context"
	"errors"
	"io"
	"net"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/fivetuple/fivetuple"
	"github.com/fivetuple/fivetuple/internal/lab"
)

const patience = 20 * time.Second

// recorder keeps the events of a watch in a host of its own.
type recorder struct {
	host  *lab.Host
	start Start

	mu     sync.Mutex
	events []Event
	stall  chan struct{} // if not nil, the next event is taken when it is closed
	pace   time.Duration // how long each event takes
}

func record(t *testing.T, o Options) *recorder {
	t.Helper()
	r := &recorder{host: lab.NewHost(t, "host")}
	r.watch(t, o)
	return r
}

// watch starts to watch, and waits for the first look.
func (r *recorder) watch(t *testing.T, o Options) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	started, ended := make(chan struct{}), make(chan error, 1)
	o.Started = func(s Start) {
		r.start = s
		close(started)
	}
	go func() {
		var last error
		r.host.Do(t, func() {
			for e, err := range Watch(ctx, o) {
				if last = err; err == nil {
					r.take(e)
				}
			}
		})
		ended <- last
	}()
	t.Cleanup(func() {
		cancel()
		if err := <-ended; err != nil {
			t.Errorf("the watch ended with %v", err)
		}
	})
	select {
	case <-started:
	case <-time.After(patience):
		t.Fatal("the watch does not begin")
	}
}

func (r *recorder) take(e Event) {
	r.mu.Lock()
	r.events = append(r.events, e)
	stall, pace := r.stall, r.pace
	r.mu.Unlock()
	if pace > 0 {
		<-time.After(pace)
	}
	if stall != nil {
		<-stall
	}
}

// await waits until there are n events that match, and returns them.
func (r *recorder) await(t *testing.T, n int, match func(Event) bool) []Event {
	t.Helper()
	tick := time.NewTicker(2 * time.Millisecond)
	defer tick.Stop()
	for deadline := time.Now().Add(patience); ; <-tick.C {
		if found := r.matching(match); len(found) >= n {
			return found
		}
		if time.Now().After(deadline) {
			t.Fatalf("%d events came, want %d; all:\n%s", len(r.matching(match)), n, r)
		}
	}
}

func (r *recorder) matching(match func(Event) bool) (found []Event) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, e := range r.events {
		if match(e) {
			found = append(found, e)
		}
	}
	return found
}

func (r *recorder) String() string {
	var b strings.Builder
	for _, e := range r.matching(func(Event) bool { return true }) {
		text, _ := e.MarshalJSON()
		b.Write(append(text, '\n'))
	}
	return b.String()
}

func kind(k EventKind, protocol fivetuple.Network) func(Event) bool {
	return func(e Event) bool { return e.Kind == k && e.Row != nil && e.Row.Protocol == protocol }
}

// marker opens a UDP socket and waits until the watch has told of it: what came
// before has been told, too.
func (r *recorder) marker(t *testing.T) {
	t.Helper()
	c, err := r.host.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	r.await(t, 1, func(e Event) bool {
		return e.Kind == Listen && e.Row.Local.String() == c.LocalAddr().String()
	})
	c.Close()
	r.await(t, 1, func(e Event) bool {
		return e.Kind == Unlisten && e.Row.Local.String() == c.LocalAddr().String()
	})
}

// connect makes a connection to a listener of the host.
func (r *recorder) connect(t *testing.T, l net.Listener) (client, server net.Conn) {
	t.Helper()
	client, err := r.host.Dial(t.Context(), l.Addr().Network(), l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	server, err = l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { client.Close(); server.Close() })
	return client, server
}

func (r *recorder) listen(t *testing.T, network, address string) net.Listener {
	t.Helper()
	l, err := r.host.Listen(network, address)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	return l
}

// send sends n bytes and waits until they were received.
func send(t *testing.T, from, to net.Conn, n int) {
	t.Helper()
	go from.Write(make([]byte, n))
	if _, err := io.CopyN(io.Discard, to, int64(n)); err != nil {
		t.Fatal(err)
	}
}

// endBoth closes one side, and the other when it knows.
func endBoth(t *testing.T, first, second net.Conn) {
	t.Helper()
	first.Close()
	if _, err := second.Read(make([]byte, 1)); err != io.EOF {
		t.Fatalf("read: %v, want EOF", err)
	}
	second.Close()
}

func isEnd(e Event, c net.Conn) bool {
	return e.Row != nil && e.Row.Local.String() == c.LocalAddr().String() && e.Row.Remote.String() == c.RemoteAddr().String()
}

func TestConnectionIsToldOnceWithItsBytesAndDuration(t *testing.T) {
	for _, address := range []string{"127.0.0.1:0", "[::1]:0"} {
		for _, first := range []string{"client", "server"} {
			t.Run(address+" closed by "+first, func(t *testing.T) {
				r := record(t, Options{Interval: 20 * time.Millisecond})
				l := r.listen(t, "tcp", address)
				dialed := time.Now()
				client, server := r.connect(t, l)
				opened := time.Now()
				send(t, client, server, 70_001)
				send(t, server, client, 303)
				r.await(t, 2, kind(Open, fivetuple.TCP))
				r.marker(t) // so a look came after they were accepted, and found who holds them
				closing := time.Now()
				if first == "client" {
					endBoth(t, client, server)
				} else {
					endBoth(t, server, client)
				}
				closed := time.Now()
				r.await(t, 2, kind(Close, fivetuple.TCP))
				r.marker(t)
				closes := r.await(t, 2, kind(Close, fivetuple.TCP))
				if opens := r.matching(kind(Open, fivetuple.TCP)); len(opens) != 2 || len(closes) != 2 {
					t.Errorf("%d opens and %d closes, want 2 and 2:\n%s", len(opens), len(closes), r)
				}
				for _, e := range closes {
					in, out, known := e.Bytes()
					wantIn, wantOut := uint64(303), uint64(70_001)
					if isEnd(e, server) {
						wantIn, wantOut = wantOut, wantIn
					}
					if !known || in != wantIn || out != wantOut {
						t.Errorf("in %d, out %d, known %v, want %d and %d", in, out, known, wantIn, wantOut)
					}
					if !e.Final || !e.Seen || e.Err != "" || e.Row.Info.RTT == 0 {
						t.Errorf("got %+v", e)
					}
					if e.Duration > closed.Sub(dialed)+time.Second || e.MaxDuration < closing.Sub(opened) || e.MaxDuration < e.Duration {
						t.Errorf("was open for %v to %v, want %v to %v in it", e.Duration, e.MaxDuration, closing.Sub(opened), closed.Sub(dialed))
					}
					if len(e.Row.Owners) == 0 || e.Row.Owners[0].PID != os.Getpid() {
						t.Errorf("owners %v, want this process", e.Row.Owners)
					}
				}
			})
		}
	}
}

// No look shows any of them, and each end is told all the same.
func TestEveryShortConnectionOfABurstIsToldClosed(t *testing.T) {
	const n = 1000
	r := record(t, Options{Interval: time.Hour})
	if r.start.NoEvents != nil {
		t.Fatal(r.start.NoEvents)
	}
	l := r.listen(t, "tcp", "127.0.0.1:0")
	for range n {
		client, server := r.connect(t, l)
		send(t, client, server, 10)
		endBoth(t, client, server)
	}
	closes := r.await(t, 2*n, kind(Close, fivetuple.TCP))
	cookies := map[uint64]bool{}
	for _, e := range closes {
		cookies[e.Row.Cookie] = true
		in, out, known := e.Bytes()
		if in+out != 10 || !known || e.Seen || e.Err != "" || e.Duration != 0 || e.MaxDuration <= 0 || e.MaxDuration > patience {
			t.Fatalf("got %+v: in %d, out %d", e, in, out)
		}
	}
	if len(cookies) != 2*n || len(closes) != 2*n {
		t.Errorf("%d closes of %d sockets, want %d", len(closes), len(cookies), 2*n)
	}
}

// What waits to be told must not look as if the kernel had told nothing of it.
func TestEndsAreWholeThoughTheirReaderIsSlow(t *testing.T) {
	const held, short = 5, 60
	r := record(t, Options{Interval: 20 * time.Millisecond})
	l := r.listen(t, "tcp", "127.0.0.1:0")
	var clients, servers [held]net.Conn
	for i := range held {
		clients[i], servers[i] = r.connect(t, l)
	}
	r.await(t, 2*held, kind(Open, fivetuple.TCP))
	r.mu.Lock()
	r.pace = 20 * time.Millisecond // so that it is behind by more than grace
	r.mu.Unlock()
	for range short {
		client, server := r.connect(t, l)
		endBoth(t, client, server)
	}
	for i := range held {
		endBoth(t, clients[i], servers[i])
	}
	for _, e := range r.await(t, 2*(held+short), kind(Close, fivetuple.TCP)) {
		if !e.Final || e.Err != "" {
			t.Errorf("got %+v", e)
		}
	}
}

func TestWhatListensIsTold(t *testing.T) {
	for _, tt := range []struct {
		protocol         fivetuple.Network
		network, address string
	}{
		{fivetuple.TCP, "tcp", "127.0.0.1:0"},
		{fivetuple.UDP, "udp", "127.0.0.1:0"},
		{fivetuple.UDP, "udp", "[::1]:0"},
		{fivetuple.Unix, "unix", "@fivetuple-listens"},
		{fivetuple.Seqpacket, "unixpacket", "@fivetuple-packets"},
		{fivetuple.Unixgram, "unixgram", "@fivetuple-datagrams"},
	} {
		t.Run(tt.network+" "+tt.address, func(t *testing.T) {
			r := record(t, Options{Interval: 20 * time.Millisecond})
			var c io.Closer
			var err error
			if tt.network == "udp" || tt.network == "unixgram" {
				c, err = r.host.ListenPacket(tt.network, tt.address)
			} else {
				c, err = r.host.Listen(tt.network, tt.address)
			}
			if err != nil {
				t.Fatal(err)
			}
			r.await(t, 1, kind(Listen, tt.protocol))
			c.Close()
			r.await(t, 1, kind(Unlisten, tt.protocol))
			events := r.matching(func(e Event) bool { return true })
			if len(events) != 2 || len(events[0].Row.Owners) == 0 || len(events[1].Row.Owners) == 0 || events[1].Err != "" {
				t.Errorf("got\n%s", r)
			}
		})
	}
}

func TestUnixAndUDPConnectionsAreTold(t *testing.T) {
	r := record(t, Options{Interval: 20 * time.Millisecond})
	l := r.listen(t, "unix", "@fivetuple-connects")
	client, server := r.connect(t, l)
	r.await(t, 2, kind(Open, fivetuple.Unix))
	endBoth(t, client, server)
	r.await(t, 2, kind(Close, fivetuple.Unix))
	udp, err := r.host.Dial(t.Context(), "udp", "127.0.0.1:9")
	if err != nil {
		t.Fatal(err)
	}
	r.await(t, 1, kind(Open, fivetuple.UDP))
	udp.Close()
	if e := r.await(t, 1, kind(Close, fivetuple.UDP))[0]; !isEnd(e, udp) {
		t.Errorf("got\n%s", r)
	}
}

func TestWithoutEventsOfTheKernelLooksTellOpensAndCloses(t *testing.T) {
	r := record(t, Options{Interval: 20 * time.Millisecond, PollOnly: true})
	if r.start.NoEvents == nil {
		t.Error("the watch says that the kernel tells")
	}
	l := r.listen(t, "tcp", "127.0.0.1:0")
	client, server := r.connect(t, l)
	send(t, client, server, 5000)
	r.await(t, 2, kind(Open, fivetuple.TCP))
	r.marker(t) // so there was a look after the bytes
	endBoth(t, client, server)
	for _, e := range r.await(t, 2, kind(Close, fivetuple.TCP)) {
		in, out, known := e.Bytes()
		if in+out != 5000 || !known || e.Final || e.Err != "" {
			t.Errorf("got %+v: in %d, out %d", e, in, out)
		}
	}
}

func TestConnectionsThatFailSaySo(t *testing.T) {
	r := record(t, Options{Interval: 20 * time.Millisecond})
	l := r.listen(t, "tcp", "127.0.0.1:0")
	t.Run("reset by its process", func(t *testing.T) {
		client, server := r.connect(t, l)
		r.await(t, 1, func(e Event) bool { return e.Kind == Open && isEnd(e, client) })
		client.(*net.TCPConn).SetLinger(0)
		client.Close()
		e := r.await(t, 1, func(e Event) bool { return e.Kind == Close && isEnd(e, client) })[0]
		if e.Err != errReset || e.Final {
			t.Errorf("got %+v, want error %q", e, errReset)
		}
		// The other end is out of the table, but its process has it open.
		e = r.await(t, 1, func(e Event) bool { return e.Kind == Close && isEnd(e, server) })[0]
		if e.Err != errUnhashed {
			t.Errorf("got %+v, want error %q", e, errUnhashed)
		}
		addr := server.LocalAddr()
		server.Close()
		r.marker(t)
		if n := len(r.matching(func(e Event) bool {
			return e.Kind == Close && e.Row.Local.String() == addr.String()
		})); n != 1 {
			t.Errorf("%d closes, want 1:\n%s", n, r)
		}
	})
	t.Run("refused", func(t *testing.T) {
		closed := r.listen(t, "tcp", "127.0.0.1:0")
		closed.Close()
		if _, err := r.host.Dial(t.Context(), "tcp", closed.Addr().String()); !errors.Is(err, unix.ECONNREFUSED) {
			t.Fatal(err)
		}
		e := r.await(t, 1, func(e Event) bool { return e.Kind == Close && e.Row.Remote.String() == closed.Addr().String() })[0]
		if e.Err != errNeverConnected {
			t.Errorf("got %+v, want error %q", e, errNeverConnected)
		}
	})
	t.Run("no answer", func(t *testing.T) {
		r.host.Drop(t, "tcp", 81)
		ctx, cancel := context.WithCancel(t.Context())
		dialed := make(chan struct{})
		go func() {
			r.host.Dial(ctx, "tcp", "127.0.0.1:81")
			close(dialed)
		}()
		r.marker(t)
		cancel()
		<-dialed
		e := r.await(t, 1, func(e Event) bool { return e.Kind == Close && e.Row.Remote.Port() == 81 })[0]
		if e.Err != errNeverConnected || !e.Seen {
			t.Errorf("got %+v, want error %q", e, errNeverConnected)
		}
		if n := len(r.matching(func(e Event) bool { return e.Kind == Open && e.Row.Remote.Port() == 81 })); n != 0 {
			t.Errorf("%d opens of a connection that never was", n)
		}
	})
}

// A filter is asked about the socket as it was; one on a state must not make a
// socket look closed that changes it.
func TestFilterChoosesEvents(t *testing.T) {
	for text, want := range map[string][]EventKind{
		"":                                   {Listen, Open, Open, Close, Close, Unlisten},
		"state established":                  {Open, Open, Close, Close},
		"tcp and not state listen":           {Open, Open, Close, Close},
		"received > 99":                      {Close}, // none had any when it opened
		"pid:PID":                            {Listen, Open, Open, Close, Close, Unlisten},
		"proc:no-such-program":               nil,
		"udp":                                nil,
		"sport = :PORT and not state listen": {Open, Close},
		"tcp dst port PORT":                  {Open, Close},
	} {
		t.Run(text, func(t *testing.T) {
			host := lab.NewHost(t, "host")
			r := &recorder{host: host}
			l := r.listen(t, "tcp", "127.0.0.1:0")
			_, port, _ := net.SplitHostPort(l.Addr().String())
			l.Close()
			text := strings.NewReplacer("PID", strconv.Itoa(os.Getpid()), "PORT", port).Replace(text)
			all := &recorder{host: host}
			all.watch(t, Options{Interval: 20 * time.Millisecond})
			r.watch(t, Options{Interval: 20 * time.Millisecond, Filter: parse(t, withMarkers(text))})
			l = r.listen(t, "tcp", "127.0.0.1:"+port)
			client, server := r.connect(t, l)
			all.await(t, 2, kind(Open, fivetuple.TCP))
			if slices.Contains(want, Open) {
				r.await(t, 1, kind(Open, fivetuple.TCP))
			}
			r.marker(t) // so the other watch has looked, too
			send(t, client, server, 100)
			endBoth(t, client, server)
			l.Close()
			all.await(t, 1, kind(Unlisten, fivetuple.TCP))
			r.marker(t)
			for _, k := range []EventKind{Listen, Open, Close, Unlisten} {
				n := len(slices.DeleteFunc(slices.Clone(want), func(w EventKind) bool { return w != k }))
				if got := len(r.await(t, n, kind(k, fivetuple.TCP))); got != n {
					t.Errorf("%d events %s, want %d:\n%s", got, k, n, r)
				}
			}
		})
	}
}

// withMarkers is a filter that takes UDP sockets beside those of another one.
func withMarkers(text string) string {
	if text == "" {
		return ""
	}
	return "udp or (" + text + ")"
}

// While the events are not taken the kernel keeps as many as fit and drops the rest.
func TestEventsThatWereLostAreToldOf(t *testing.T) {
	r := record(t, Options{Interval: 20 * time.Millisecond})
	l := r.listen(t, "tcp", "127.0.0.1:0")
	client, server := r.connect(t, l)
	r.await(t, 2, kind(Open, fivetuple.TCP))
	stall := make(chan struct{})
	r.mu.Lock()
	r.stall = stall
	r.mu.Unlock()
	blocker, err := r.host.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer blocker.Close()
	r.await(t, 1, kind(Listen, fivetuple.UDP))
	r.host.Do(t, func() {
		for range 100_000 {
			fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
			if err != nil {
				t.Fatal(err)
			}
			unix.Close(fd)
		}
	})
	dropped := r.awaitDrops(t, 1)
	endBoth(t, client, server)
	r.awaitDrops(t, dropped+2)
	r.mu.Lock()
	r.stall = nil
	r.mu.Unlock()
	close(stall)
	r.await(t, 1, func(e Event) bool { return e.Kind == Lost })
	closes := r.await(t, 2, kind(Close, fivetuple.TCP))
	for _, e := range closes {
		if e.Err != errEndLost {
			t.Errorf("got %+v, want error %q", e, errEndLost)
		}
	}
	r.marker(t) // it goes on
	if n := len(r.matching(kind(Close, fivetuple.TCP))); n != 2 {
		t.Errorf("%d closes, want 2", n)
	}
}

// drops is how many events of the watch the kernel has dropped (proc_pid_net(5)).
func (r *recorder) drops(t *testing.T) int {
	t.Helper()
	var text []byte
	r.host.Do(t, func() { text, _ = os.ReadFile("/proc/thread-self/net/netlink") })
	for line := range strings.Lines(string(text)) {
		f := strings.Fields(line) // sk, Eth, Pid, Groups, Rmem, Wmem, Dump, Locks, Drops, Inode
		if len(f) > 8 && f[1] == strconv.Itoa(unix.NETLINK_SOCK_DIAG) && f[3] != "00000000" {
			n, _ := strconv.Atoi(f[8])
			return n
		}
	}
	t.Fatalf("the watch has no netlink socket:\n%s", text)
	return 0
}

// awaitDrops waits until the kernel has dropped n events and, as it sends them
// beside its other work, for a while no more.
func (r *recorder) awaitDrops(t *testing.T, n int) int {
	t.Helper()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	last, since := -1, time.Now()
	for deadline := time.Now().Add(patience); time.Now().Before(deadline); <-tick.C {
		if now := r.drops(t); now != last {
			last, since = now, time.Now()
		}
		if last >= n && time.Since(since) > 200*time.Millisecond {
			return last
		}
	}
	t.Fatalf("%d events were dropped, want %d", last, n)
	return 0
}

func TestMultipathTCPConnectionIsToldOnce(t *testing.T) {
	r := record(t, Options{Interval: 20 * time.Millisecond})
	var config net.ListenConfig
	config.SetMultipathTCP(true)
	dialer := net.Dialer{}
	dialer.SetMultipathTCP(true)
	var l net.Listener
	var client, server net.Conn
	var err error
	r.host.Do(t, func() {
		if l, err = config.Listen(t.Context(), "tcp", "127.0.0.1:0"); err == nil {
			client, err = dialer.DialContext(t.Context(), "tcp", l.Addr().String())
		}
	})
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	if server, err = l.Accept(); err != nil {
		t.Fatal(err)
	}
	protocol := fivetuple.TCP // where the kernel has no other
	if is, err := server.(*net.TCPConn).MultipathTCP(); is && err == nil {
		protocol = fivetuple.MPTCP
	}
	r.await(t, 2, kind(Open, protocol))
	endBoth(t, client, server)
	r.await(t, 2, kind(Close, protocol))
	r.marker(t)
	for _, k := range []EventKind{Open, Close} {
		all := r.matching(func(e Event) bool { return e.Kind == k })
		if len(all) != 2 {
			t.Errorf("%d events %s, want 2:\n%s", len(all), k, r)
		}
	}
}

func TestWatchEndsWhenItsLoopIsLeft(t *testing.T) {
	host := lab.NewHost(t, "host")
	host.Do(t, func() {
		var c net.PacketConn
		o := Options{Interval: 20 * time.Millisecond, Started: func(Start) { c, _ = net.ListenPacket("udp", "127.0.0.1:0") }}
		for e, err := range Watch(t.Context(), o) {
			if err != nil || e.Kind != Listen {
				t.Errorf("got %+v, %v", e, err)
			}
			break
		}
		c.Close()
	})
}

package datagram

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/fivetuple/fivetuple"
	"github.com/fivetuple/fivetuple/stats"
)

// unixPath is an endpoint in a directory of the test's own.
func unixPath(t testing.TB) string { return "unixgram://" + filepath.Join(t.TempDir(), "s") }

func TestUnixEcho(t *testing.T) {
	for _, endpoint := range []string{unixPath(t), "unixgram://@echo"} {
		for _, unconnected := range []bool{false, true} {
			s := &Server{Handler: Echo(), Sink: newEvents()}
			c := serve(t, s, endpoint)
			client := dialWith(t, Dialer{Unconnected: unconnected}, endpoint)
			for _, text := range []string{"one", "", "three"} {
				send(t, client, text)
				if p := want(t, client, text); p.From != c.local || p.To != client.local {
					t.Errorf("%s: from %v to %v, want from %v to %v", endpoint, p.From, p.To, c.local, client.local)
				}
			}
			peers := s.Peers()
			want := fivetuple.Tuple{Protocol: fivetuple.Unixgram, Local: c.local, Remote: client.local}
			if len(peers) != 1 || peers[0].Tuple != want || peers[0].PacketsOut != 3 || !strings.HasPrefix(client.local.Name, "@") {
				t.Errorf("peers: got %+v, want %v", peers, want)
			}
			if got := client.RemoteAddr().String(); got != c.local.Name {
				t.Errorf("remote address: got %s, want %v", got, c.local)
			}
			if errs := s.Sink.(*events).of(stats.Error); len(errs) != 0 {
				t.Errorf("errors: %+v", errs)
			}
			s.Shutdown(t.Context())
		}
	}
}

func TestUnixSocketFile(t *testing.T) {
	endpoint := unixPath(t)
	path := strings.TrimPrefix(endpoint, "unixgram://")
	for _, tt := range []struct{ mode, want fs.FileMode }{{0, 0o600}, {0o622, 0o622}} {
		c, err := ListenConfig{Mode: tt.mode, Owner: fmt.Sprintf("%d:%d", os.Getuid(), os.Getgid())}.Listen(t.Context(), parse(t, endpoint))
		if err != nil {
			t.Fatal(err)
		}
		if info, err := os.Stat(path); err != nil || info.Mode() != tt.want|fs.ModeSocket {
			t.Errorf("got %v, %v, want %v", info.Mode(), err, tt.want)
		}
		_, err = ListenConfig{}.Listen(t.Context(), parse(t, endpoint))
		wantError(t, err, syscall.EADDRINUSE, endpoint)
		c.unix.Close() // as of a killed process: the file stays
		again := listen(t, endpoint)
		again.Close()
		if _, err := os.Lstat(path); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("closed: got %v, want the file gone", err)
		}
	}
}

func TestEveryKindServesUnixSockets(t *testing.T) {
	answers := map[string]string{"echo": "hello", "chargen": " !\"#$", "daytime": ", ", "chat": "* you are 1;"}
	for _, kind := range Kinds() {
		h, err := NewHandler(kind)
		if err != nil {
			t.Fatal(err)
		}
		s := &Server{Handler: h, Sink: newEvents()}
		c := serve(t, s, "unixgram://@kind-"+kind)
		client, other := dial(t, endpointOf(c)), dial(t, endpointOf(c))
		send(t, client, "hello")
		s.Sink.(*events).wait(t, stats.Accept, 1)
		if kind == "broker" {
			send(t, other, "from the other")
			want(t, client, "from the other")
			continue
		}
		b := make([]byte, 1000)
		if answers[kind] == "" {
			continue
		}
		if n, err := client.Read(b); err != nil || !strings.Contains(string(b[:n]), answers[kind]) {
			t.Errorf("%s: got %q, %v", kind, b[:n], err)
		}
	}
}

func TestPeerWithoutANameIsHeardAndNotAnswered(t *testing.T) {
	s := &Server{Handler: Echo(), Sink: newEvents()}
	c := serve(t, s, "unixgram://@unnamed")
	nc, err := net.Dial("unixgram", "@unnamed")
	if err != nil {
		t.Fatal(err)
	}
	defer nc.Close()
	nc.Write([]byte("who am I?"))
	e := s.Sink.(*events).wait(t, stats.Error, 1)[0]
	if !strings.Contains(e.Err, "has no name, so it cannot be answered") {
		t.Errorf("got %q", e.Err)
	}
	if peers := s.Peers(); len(peers) != 1 || !peers[0].Tuple.Remote.IsZero() || peers[0].BytesIn != 9 {
		t.Errorf("peers: got %+v", peers)
	}
	before := len(s.Sink.(*events).of(stats.Error))
	if n := s.Broadcast([]byte("x")); n != 0 || len(s.Sink.(*events).of(stats.Error)) != before {
		t.Errorf("broadcast reached %d with %+v, want none and no error", n, s.Sink.(*events).of(stats.Error))
	}
	wantError(t, s.Send(1, nil), ErrUnnamed)
	send(t, dial(t, endpointOf(c)), "the next")
	s.Sink.(*events).wait(t, stats.Accept, 2)
}

// A program that passes all of sun_path has an abstract name full of NULs.
func TestNamesAreTakenWhole(t *testing.T) {
	c := serve(t, &Server{Handler: Echo()}, "unixgram://@whole")
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	own := "@padded" + strings.Repeat("\x00", 100)
	if err := unix.Bind(fd, &unix.SockaddrUnix{Name: own}); err != nil {
		t.Fatal(err)
	}
	if err := unix.Sendto(fd, []byte("hello"), 0, &unix.SockaddrUnix{Name: c.local.Name}); err != nil {
		t.Fatal(err)
	}
	unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Sec: 5})
	b := make([]byte, 10)
	if n, err := unix.Read(fd, b); err != nil || string(b[:n]) != "hello" {
		t.Errorf("got %q, %v, want the echo", b[:max(n, 0)], err)
	}
	for _, name := range []string{"/" + strings.Repeat("x", 107), "@" + strings.Repeat("x", 107), "@", "/x", "x"} { // the first fills sun_path
		var n unixName
		if !n.write(name) {
			t.Errorf("%d bytes do not fit", len(name))
		}
		n.text = ""
		if got := n.read(n.size); got != name {
			t.Errorf("written %q, read %q", name, got)
		}
	}
	var n unixName
	if n.write("/" + strings.Repeat("x", 108)) {
		t.Error("109 bytes fit")
	}
}

// fill sends to a socket until its queue is full, and returns how often.
func fill(t *testing.T, c *Conn) (n int) {
	t.Helper()
	for ; ; n++ {
		c.SetWriteDeadline(time.Now().Add(20 * time.Millisecond))
		if err := c.Send([]byte("fill")); errors.Is(err, os.ErrDeadlineExceeded) {
			c.SetWriteDeadline(time.Time{})
			return n
		} else if err != nil {
			t.Fatal(err)
		}
	}
}

func TestSenderWaitsForAFullReceiver(t *testing.T) {
	for _, unconnected := range []bool{false, true} {
		c := listen(t, unixPath(t))
		n := fill(t, dial(t, endpointOf(c))) // another sender: nothing tells ours when there is room
		sender := dialWith(t, Dialer{Unconnected: unconnected}, endpointOf(c))
		for _, text := range []string{"late", ""} {
			sender.SetWriteDeadline(time.Now().Add(10 * time.Millisecond))
			wantError(t, sender.Send([]byte(text)), os.ErrDeadlineExceeded, "send")
		}
		sender.SetWriteDeadline(time.Time{})
		sent := make(chan error)
		go func() { sent <- sender.Send([]byte("late")) }()
		for range n {
			want(t, c, "fill")
		}
		want(t, c, "late")
		if err := <-sent; err != nil {
			t.Error(err)
		}
		fill(t, dial(t, endpointOf(c)))
		go func() { sent <- sender.Send(nil) }()
		sender.Close()
		wantError(t, <-sent, net.ErrClosed)
	}
}

func TestPeerThatDoesNotReadDoesNotHoldUpOthers(t *testing.T) {
	s := &Server{Handler: Echo(), Sink: newEvents()}
	c := serve(t, s, "unixgram://@held-up")
	stuck, client := dialWith(t, Dialer{Unconnected: true}, endpointOf(c)), dial(t, endpointOf(c))
	began := time.Now()
	for range 100 {
		send(t, stuck, "x")
	}
	send(t, client, "still there?")
	want(t, client, "still there?")
	if took := time.Since(began); took > 2*time.Second {
		t.Errorf("answered after %v", took)
	}
	if e := s.Sink.(*events).wait(t, stats.Error, 1)[0]; !strings.Contains(e.Err, "fills the receiver's queue") || e.Tuple.Remote != stuck.local {
		t.Errorf("got %+v", e)
	}
	read := uint64(0)
	for stuck.SetReadDeadline(time.Now().Add(50 * time.Millisecond)); ; read++ {
		if _, err := stuck.Read(make([]byte, 10)); err != nil {
			break
		}
	}
	if got := s.Peers()[1]; got.PacketsIn != 100 || got.PacketsOut != read {
		t.Errorf("got %+v, want 100 received and %d sent", got, read)
	}
	stuck.SetReadDeadline(time.Now().Add(patience))
	send(t, stuck, "now I read")
	want(t, stuck, "now I read")
}

// The queue of a connected peer has no end but the server's send buffer.
func TestServerOutlivesAConnectedPeerThatDoesNotRead(t *testing.T) {
	s := &Server{Handler: Echo(), Sink: newEvents()}
	c := serve(t, s, "unixgram://@outlives")
	stuck, client := dial(t, endpointOf(c)), dial(t, endpointOf(c))
	for len(s.Sink.(*events).of(stats.Error)) == 0 {
		send(t, stuck, strings.Repeat("x", 1000))
	}
	send(t, client, "lost")
	s.Sink.(*events).wait(t, stats.Accept, 2)
	stuck.Close()
	eventually(t, "the client is answered again", func() bool {
		send(t, client, "still there?")
		client.SetReadDeadline(time.Now().Add(10 * time.Millisecond))
		_, err := client.Read(make([]byte, 100))
		return err == nil
	})
}

func TestUnixPeerThatIsGoneIsForgotten(t *testing.T) {
	s := &Server{Handler: Discard(), Sink: newEvents()}
	c := serve(t, s, "unixgram://@forgotten")
	stays, goes := dial(t, endpointOf(c)), dial(t, endpointOf(c))
	send(t, stays, "x")
	send(t, goes, "x")
	s.Sink.(*events).wait(t, stats.Accept, 2)
	goes.Close()
	if n := s.Broadcast([]byte("to all")); n != 1 {
		t.Errorf("broadcast reached %d, want 1", n)
	}
	want(t, stays, "to all")
	if e := s.Sink.(*events).wait(t, stats.Disconnect, 1)[0]; e.Cause != "gone" || e.Tuple.Remote != goes.local {
		t.Errorf("got %+v", e)
	}
}

func TestUnixDatagramsUpToTheSendBuffer(t *testing.T) {
	c := listen(t, unixPath(t))
	s := &Server{Handler: Echo(), Sink: newEvents()}
	serveOn(t, s, c)
	c.SetWriteBuffer(1 << 20) // for the way back
	client := dial(t, endpointOf(c))
	client.SetWriteBuffer(400 << 10)
	largest := 0
	onFD(client.unix.raw, func(fd int) (err error) {
		largest, err = unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_SNDBUF)
		return err
	})
	largest -= 32
	for _, size := range []int{0, 1, MaxSize, MaxSize + 1, 200_000, largest} {
		sent := bytes.Repeat([]byte{'x'}, size)
		if err := client.Send(sent); err != nil {
			t.Fatal(size, err)
		}
		var p Packet
		if err := client.Receive(&p); err != nil || !bytes.Equal(p.Data, sent) {
			t.Fatalf("%d bytes: got %d, %v", size, len(p.Data), err)
		}
	}
	wantError(t, client.Send(make([]byte, largest+1)), syscall.EMSGSIZE, fmt.Sprintf("a datagram of %d bytes; the send buffer takes at most %d: raise it with the option sndbuf=%d", largest+1, largest, largest+1))
	send(t, client, "0123456789")
	p := Packet{Data: make([]byte, 4)}
	wantError(t, client.Receive(&p), ErrTruncated, "to 4 bytes")
	send(t, client, "0123456789")
	b := make([]byte, 4)
	n, err := client.Read(b)
	if wantError(t, err, ErrTruncated); string(b[:n]) != "0123" {
		t.Errorf("read: got %q", b[:n])
	}
}

func TestClientOutlivesItsUnixServer(t *testing.T) {
	endpoint := unixPath(t)
	server := listen(t, endpoint)
	client := dial(t, endpoint)
	send(t, client, "before")
	want(t, server, "before")
	server.Close()
	for range 3 {
		wantError(t, client.Send([]byte("nobody")), fs.ErrNotExist, endpoint[len("unixgram://"):])
	}
	server = listen(t, endpoint)
	send(t, client, "after")
	p := want(t, server, "after")
	if err := p.Reply([]byte("welcome back")); err != nil {
		t.Fatal(err)
	}
	want(t, client, "welcome back")
	server.unix.Close() // the file stays
	wantError(t, client.Send([]byte("nobody")), syscall.ECONNREFUSED, "nobody has the socket open")
}

func TestUnixErrorsSayWhatToDo(t *testing.T) {
	dir := t.TempDir()
	stream, err := net.Listen("unix", filepath.Join(dir, "stream"))
	if err != nil {
		t.Fatal(err)
	}
	defer stream.Close()
	server := listen(t, "unixgram://"+dir+"/server")
	taken := dial(t, endpointOf(server)) // connected: takes from the server only
	for endpoint, want := range map[string]string{
		dir + "/none":                  "no such file",
		dir + "/stream":                "not one for datagrams",
		taken.local.Name:               "is connected to another",
		"@" + strings.Repeat("n", 106): "nobody has the socket open",
	} {
		_, err := Dialer{}.Dial(t.Context(), parse(t, "unixgram://"+endpoint))
		if err == nil || !strings.Contains(err.Error(), want) || !strings.HasPrefix(err.Error(), "connect unixgram://"+endpoint) {
			t.Errorf("dial %s: got %v, want %q", endpoint, err, want)
		}
	}
	for endpoint, want := range map[string]string{
		dir:                        "is a directory, not a socket",
		dir + "/stream":            "address already in use",
		dir + "/server":            "address already in use",
		dir + "/no/such":           "make the directory",
		server.local.Name + "/x":   "not a directory",
		"@" + taken.local.Name[1:]: "address already in use",
	} {
		_, err := ListenConfig{}.Listen(t.Context(), parse(t, "unixgram://"+endpoint))
		if err == nil || !strings.Contains(err.Error(), want) || !strings.HasPrefix(err.Error(), "listen on unixgram://"+endpoint) {
			t.Errorf("listen on %s: got %v, want %q", endpoint, err, want)
		}
	}
	for _, d := range []Dialer{{Interface: "lo"}, {Source: netip.MustParseAddrPort("127.0.0.1:0")}} {
		if _, err := d.Dial(t.Context(), parse(t, endpointOf(server))); err == nil || !strings.Contains(err.Error(), "goes with udp://") {
			t.Errorf("%+v: got %v", d, err)
		}
	}
	for _, lc := range []ListenConfig{{Mode: 0o600}, {Owner: "0"}} {
		if _, err := lc.Listen(t.Context(), parse(t, "unixgram://@open")); err == nil || !strings.Contains(err.Error(), "abstract") {
			t.Errorf("%+v: got %v", lc, err)
		}
	}
}

func TestUnixClient(t *testing.T) {
	s := serve(t, &Server{Handler: Echo()}, unixPath(t))
	c, data, _, sink := connect(t, endpointOf(s))
	if err := c.Send([]byte("hello")); err != nil {
		t.Fatal(err)
	}
	if got, want := next(t, "datagram", data), (received{"hello", s.local}); got != want {
		t.Errorf("got %v, want %v", got, want)
	}
	c.Close()
	if e := sink.of(stats.Disconnect)[0]; e.Tuple.Protocol != fivetuple.Unixgram || e.Tuple.Remote != s.local || e.PacketsIn != 1 {
		t.Errorf("got %+v", e)
	}
}

// What comes with a datagram beside its bytes must not pile up.
func TestDescriptorsThatComeAlongAreClosed(t *testing.T) {
	c := listen(t, "unixgram://@descriptors")
	client := dial(t, endpointOf(c))
	open := func() int {
		entries, err := os.ReadDir("/proc/self/fd")
		if err != nil {
			t.Fatal(err)
		}
		return len(entries)
	}
	before := open()
	for range 5 {
		if err := onFD(client.unix.raw, func(fd int) error { return unix.Sendmsg(fd, []byte("x"), unix.UnixRights(0, 1), nil, 0) }); err != nil {
			t.Fatal(err)
		}
		want(t, c, "x")
	}
	if after := open(); after != before {
		t.Errorf("%d descriptors open, before %d", after, before)
	}
}

func TestBrokerHandsToAllOthers(t *testing.T) {
	for _, endpoint := range []string{"udp://127.0.0.1:0", "unixgram://@broker"} {
		s := &Server{Handler: Broker(), Sink: newEvents()}
		c := serve(t, s, endpoint)
		clients := []*Conn{dial(t, endpointOf(c)), dial(t, endpointOf(c)), dial(t, endpointOf(c))}
		for i, client := range clients {
			send(t, client, "")
			s.Sink.(*events).wait(t, stats.Accept, i+1)
			for _, other := range clients[:i] {
				want(t, other, "")
			}
		}
		for i, client := range clients {
			text := fmt.Sprintf("from %d\x00\n", i)
			send(t, client, text)
			for j, other := range clients {
				if j != i {
					want(t, other, text)
				}
			}
		}
		ids := []uint64{}
		for _, p := range s.Peers() {
			ids = append(ids, p.ID)
		}
		if want := []uint64{3, 2, 1}; !slices.Equal(ids, want) {
			t.Errorf("peers: got %v, want %v", ids, want)
		}
	}
}

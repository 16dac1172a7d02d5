package datagram

import (
	"fmt"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/fivetuple/fivetuple/stats"
)

func TestKindsAreAllThere(t *testing.T) {
	for _, kind := range Kinds() {
		if h, err := NewHandler(kind); h == nil || err != nil {
			t.Errorf("%s: got %v, %v", kind, h, err)
		}
	}
	if h, err := NewHandler("telnet"); h != nil || err == nil || !strings.Contains(err.Error(), "echo, discard") {
		t.Errorf("telnet: got %v, %v, want an error that lists the kinds", h, err)
	}
}

func TestChargenSendsNoMoreThanItGets(t *testing.T) {
	client := dial(t, udp(serve(t, &Server{Handler: Chargen()}, "udp://127.0.0.1:0")))
	pattern := regexp.MustCompile(`^([ -~]{72}\r\n)*[ -~]*\r?\n?$`)
	seen := map[string]bool{}
	for _, tt := range []struct{ sent, got int }{{0, 0}, {1, 1}, {100, 100}, {512, 512}, {2000, 512}} {
		for range 100 { // through all lines
			send(t, client, strings.Repeat("x", tt.sent))
			var p Packet
			if err := client.Receive(&p); err != nil {
				t.Fatal(err)
			}
			if len(p.Data) != tt.got || !pattern.Match(p.Data) {
				t.Fatalf("sent %d bytes: got %d, %q, want %d", tt.sent, len(p.Data), p.Data, tt.got)
			}
			seen[string(p.Data)] = true
		}
	}
	if len(seen) < 3*95 {
		t.Errorf("%d different answers, want at least %d", len(seen), 3*95)
	}
}

func TestDaytime(t *testing.T) {
	client := dial(t, udp(serve(t, &Server{Handler: Daytime()}, "udp://127.0.0.1:0")))
	send(t, client, "")
	var p Packet
	if err := client.Receive(&p); err != nil {
		t.Fatal(err)
	}
	if !regexp.MustCompile(`^[A-Z][a-z]+day, [A-Z][a-z]+ \d+, \d{4} \d\d:\d\d:\d\d-\S+\r\n$`).Match(p.Data) {
		t.Errorf("got %q", p.Data)
	}
}

func TestDiscard(t *testing.T) {
	s := &Server{Handler: Discard()}
	client := dial(t, udp(serve(t, s, "udp://127.0.0.1:0")))
	send(t, client, "x")
	eventually(t, "it has arrived", func() bool { return len(s.Peers()) == 1 })
	if got := s.Peers()[0]; got.PacketsIn != 1 || got.PacketsOut != 0 {
		t.Errorf("got %+v", got)
	}
}

func TestChat(t *testing.T) {
	sink := newEvents()
	s := &Server{Handler: Chat(), Sink: sink}
	c := serve(t, s, "udp://127.0.0.1:0")
	clients := []*Conn{dial(t, udp(c)), dial(t, udp(c)), dial(t, udp(c))}
	for i, client := range clients {
		send(t, client, "/who\n")
		id := string(rune('1' + i))
		want(t, client, "* you are "+id+"; /who lists the others, /to ID text speaks to one, /quit leaves\n")
		want(t, client, "* here: "+strings.Join([]string{"1", "2", "3"}[:i+1], " ")+"\n")
	}
	for i, tt := range []struct{ sent, got string }{
		{"hello\r\nsecond line\n/who\n", "[1] hello\n"}, // one datagram is one line
		{"\nsecond line\n", ""},
		{"/who\n" + strings.Repeat("/who\n", 10_000), "* here: 1 2 3\n"},
		{"\x1b[2Jclear\x07\ttab \u009b31mred \xff\xc3\x9b\xc2 Gr\u00fc\u00dfe\x00\n", "[1] [2Jclear\ttab 31mred \u00db Gr\u00fc\u00dfe\n"},
		{"/to 1 \x1b]0;title\x07", "[1 to you] ]0;title\n"},
	} {
		send(t, clients[0], tt.sent)
		mark := fmt.Sprintf("mark %d", i)
		send(t, clients[0], mark)
		for j, client := range clients {
			if everybody := strings.HasPrefix(tt.got, "[1] "); tt.got != "" && (everybody || j == 0) {
				want(t, client, tt.got)
			}
			want(t, client, "[1] "+mark+"\n")
		}
	}
	send(t, clients[1], "/to 3 psst")
	want(t, clients[2], "[2 to you] psst\n")
	send(t, clients[1], "/to 9 psst")
	want(t, clients[1], "* nobody here is 9\n")
	send(t, clients[1], "/to me")
	want(t, clients[1], "* write /to ID text\n")
	send(t, clients[2], "/quit")
	if e := sink.wait(t, stats.Disconnect, 1)[0]; e.Cause != "left" || e.Conn != 3 {
		t.Errorf("disconnect: got %+v", e)
	}
	send(t, clients[0], "bye")
	want(t, clients[0], "[1] bye\n")
	want(t, clients[1], "[1] bye\n")
	ids := []uint64{}
	for _, p := range s.Peers() {
		ids = append(ids, p.ID)
	}
	if want := []uint64{1, 2}; !slices.Equal(ids, want) {
		t.Errorf("peers: got %v, want %v", ids, want)
	}
}

package datagram

import (
	"errors"
	"net"
	"net/netip"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/fivetuple/fivetuple"
)

// talk makes a conversation, and a list of the peers that it calls back with.
func talk(t *testing.T, c *Conn, o TalkOptions) (*Talk, func() []fivetuple.Address) {
	t.Helper()
	var mu sync.Mutex
	var peers []fivetuple.Address
	o.OnPeer = func(a fivetuple.Address) {
		mu.Lock()
		defer mu.Unlock()
		peers = append(peers, a)
	}
	conversation := c.Talk(o)
	t.Cleanup(func() { conversation.Close() })
	conversation.SetReadDeadline(time.Now().Add(patience))
	return conversation, func() []fivetuple.Address {
		mu.Lock()
		defer mu.Unlock()
		return slices.Clone(peers)
	}
}

// hears reads a datagram of a conversation and checks it.
func hears(t *testing.T, c net.Conn, text string) {
	t.Helper()
	b := make([]byte, 100)
	if n, err := c.Read(b); err != nil || string(b[:n]) != text {
		t.Fatalf("got %q, %v, want %q", b[:n], err, text)
	}
}

func say(t *testing.T, c net.Conn, text string) {
	t.Helper()
	if n, err := c.Write([]byte(text)); n != len(text) || err != nil {
		t.Fatalf("write %q: %d, %v", text, n, err)
	}
}

func TestTalkIsWithTheFirstSender(t *testing.T) {
	for _, endpoint := range []string{"udp://127.0.0.1:0", "udp://[::1]:0", "unixgram://@talk"} {
		c := listen(t, endpoint)
		conversation, peers := talk(t, c, TalkOptions{})
		if a := conversation.RemoteAddr(); a != nil {
			t.Errorf("remote address before the first datagram: %v", a)
		}
		written := make(chan error)
		go func() {
			_, err := conversation.Write([]byte("whoever you are"))
			written <- err
		}()
		first, second := dial(t, endpointOf(c)), dial(t, endpointOf(c))
		send(t, first, "one")
		hears(t, conversation, "one")
		if err := <-written; err != nil {
			t.Fatal(err)
		}
		want(t, first, "whoever you are")
		send(t, second, "not me")
		send(t, first, "")
		send(t, first, "two")
		hears(t, conversation, "")
		hears(t, conversation, "two")
		say(t, conversation, "")
		want(t, first, "")
		if got := fivetuple.AddressOf(conversation.RemoteAddr()); got != first.local || fivetuple.AddressOf(conversation.LocalAddr()) != c.local {
			t.Errorf("remote address: got %v, want %v", got, first.local)
		}
		if got := peers(); !slices.Equal(got, []fivetuple.Address{first.local}) {
			t.Errorf("peers: got %v, want %v", got, first.local)
		}
	}
}

func TestTalkKeptOpenIsWithWhomWasHeardLast(t *testing.T) {
	c := listen(t, "udp://127.0.0.1:0")
	conversation, peers := talk(t, c, TalkOptions{Keep: true})
	first, second := dial(t, udp(c)), dial(t, udp(c))
	for _, peer := range []*Conn{first, second, second, first} {
		send(t, peer, "hello")
		hears(t, conversation, "hello")
		say(t, conversation, "hello "+peer.local.String())
		want(t, peer, "hello "+peer.local.String())
	}
	if got, want := peers(), []fivetuple.Address{first.local, second.local, first.local}; !slices.Equal(got, want) {
		t.Errorf("peers: got %v, want %v", got, want)
	}
}

func TestTalkHeedsTheAccessList(t *testing.T) {
	c := listen(t, "udp://127.0.0.1:0")
	conversation, peers := talk(t, c, TalkOptions{Deny: []netip.Prefix{netip.MustParsePrefix("127.0.0.7/32")}})
	denied := dialWith(t, Dialer{Source: netip.MustParseAddrPort("127.0.0.7:0")}, udp(c))
	allowed := dial(t, udp(c))
	send(t, denied, "me first")
	send(t, allowed, "hello")
	hears(t, conversation, "hello")
	if got := peers(); !slices.Equal(got, []fivetuple.Address{allowed.local}) {
		t.Errorf("peers: got %v", got)
	}
}

func TestTalkAnswersFromTheAddressWrittenTo(t *testing.T) {
	c := listen(t, "udp4://*:0")
	conversation, _ := talk(t, c, TalkOptions{})
	client := dial(t, "udp://127.0.0.9:"+strings.TrimPrefix(c.local.String(), "0.0.0.0:")) // connected: hears 127.0.0.9 only
	send(t, client, "hello")
	hears(t, conversation, "hello")
	say(t, conversation, "hello yourself")
	want(t, client, "hello yourself")
}

func TestTalkWithOneWhoHasNoName(t *testing.T) {
	conversation, peers := talk(t, listen(t, "unixgram://@nameless"), TalkOptions{})
	nc, err := net.Dial("unixgram", "@nameless")
	if err != nil {
		t.Fatal(err)
	}
	defer nc.Close()
	say(t, nc, "hello")
	hears(t, conversation, "hello")
	_, err = conversation.Write([]byte("who are you?"))
	wantError(t, err, ErrUnnamed, "unixgram @nameless")
	if got := peers(); len(got) != 1 || !got[0].IsZero() || conversation.RemoteAddr() != nil {
		t.Errorf("peers: got %v, %v", got, conversation.RemoteAddr())
	}
}

func TestTalkCutsNothingSilently(t *testing.T) {
	c := listen(t, "udp://127.0.0.1:0")
	conversation, _ := talk(t, c, TalkOptions{})
	client := dial(t, udp(c))
	send(t, client, "0123456789")
	b := make([]byte, 4)
	n, err := conversation.Read(b)
	if wantError(t, err, ErrTruncated); string(b[:n]) != "0123" {
		t.Errorf("got %q", b[:n])
	}
	say(t, conversation, "heard")
	want(t, client, "heard")
}

func TestTalkEndsByDeadlineAndClose(t *testing.T) {
	conversation, _ := talk(t, listen(t, "udp://127.0.0.1:0"), TalkOptions{})
	conversation.SetDeadline(time.Now().Add(10 * time.Millisecond))
	_, err := conversation.Read(make([]byte, 1))
	wantError(t, err, os.ErrDeadlineExceeded)
	_, err = conversation.Write([]byte("x"))
	wantError(t, err, os.ErrDeadlineExceeded, "send on udp 127.0.0.1:")
	conversation.SetDeadline(time.Time{})
	errs := make(chan error)
	go func() {
		_, err := conversation.Read(make([]byte, 1))
		errs <- err
	}()
	go func() {
		_, err := conversation.Write([]byte("x"))
		errs <- err
	}()
	conversation.SetWriteDeadline(time.Now().Add(10 * time.Millisecond)) // also for a Write that waits
	wantError(t, <-errs, os.ErrDeadlineExceeded)
	conversation.SetDeadline(time.Now().Add(time.Hour)) // leaves no timer behind
	go func() {
		_, err := conversation.Write([]byte("x"))
		errs <- err
	}()
	conversation.Close()
	for range 2 {
		if err := <-errs; !errors.Is(err, net.ErrClosed) {
			t.Errorf("got %v, want %v", err, net.ErrClosed)
		}
	}
}

func TestTalkAllocatesNothing(t *testing.T) {
	for _, endpoint := range []string{"udp://127.0.0.1:0", "unixgram://@talk-allocs"} {
		c := listen(t, endpoint)
		conversation, client := c.Talk(TalkOptions{}), dial(t, endpointOf(c))
		b := make([]byte, 100)
		if got := testing.AllocsPerRun(100, func() {
			client.Write(b)
			conversation.Read(b)
			conversation.Write(b)
			client.Read(b)
		}); got != 0 {
			t.Errorf("%s: %v allocations for a round trip", endpoint, got)
		}
	}
}

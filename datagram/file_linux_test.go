package datagram

import (
	"net"
	"os"
	"strings"
	"testing"
)

// handOver gives a socket as another process would: by a descriptor alone.
func handOver(t *testing.T, c interface{ File() (*os.File, error) }) (*Conn, error) {
	t.Helper()
	f, err := c.File()
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	got, err := FileConn(f)
	if err == nil {
		t.Cleanup(func() { got.Close() })
	}
	return got, err
}

func TestSocketThatWasGivenServes(t *testing.T) {
	for _, endpoint := range []string{"udp://127.0.0.1:0", "udp6://*:0", "udp://*:0", "unixgram://@given", unixPath(t)} {
		var nc net.PacketConn
		network, address, err := parse(t, endpoint).ListenArgs()
		if err == nil {
			nc, err = net.ListenPacket(network, address)
		}
		if err != nil {
			t.Fatal(err)
		}
		defer nc.Close()
		c, err := handOver(t, nc.(interface{ File() (*os.File, error) }))
		if err != nil {
			t.Fatal(err)
		}
		if c.v6only != strings.HasPrefix(endpoint, "udp6") {
			t.Errorf("%s: v6only is %v", endpoint, c.v6only)
		}
		serveOn(t, &Server{Handler: Echo()}, c)
		to := endpointOf(c)
		if c.v6 { // another address of the host than the kernel would answer from
			to = strings.Replace(to, "[::]", "[::1]", 1)
			if !c.v6only {
				to = strings.Replace(to, "[::1]", "127.0.0.9", 1)
			}
		}
		client := dial(t, to)
		send(t, client, "hello")
		if p := want(t, client, "hello"); p.From != client.remote {
			t.Errorf("%s: answered from %v, want %v", endpoint, p.From, client.remote)
		}
	}
}

func TestConnectedSocketThatWasGiven(t *testing.T) {
	for _, endpoint := range []string{"udp://127.0.0.1:0", "unixgram://@given-connected"} {
		s := serve(t, &Server{Handler: Echo()}, endpoint)
		c, err := handOver(t, dial(t, endpointOf(s)))
		if err != nil {
			t.Fatal(err)
		}
		send(t, c, "hello")
		want(t, c, "hello")
		if c.remote != s.local {
			t.Errorf("remote: got %v, want %v", c.remote, s.local)
		}
	}
}

func TestWhatIsNoDatagramSocketIsRefused(t *testing.T) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	if _, err := handOver(t, ln.(*net.TCPListener)); err == nil {
		t.Error("a TCP listener: got no error")
	}
	f, err := os.Open(os.DevNull)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := FileConn(f); err == nil || !strings.Contains(err.Error(), os.DevNull) {
		t.Errorf("no socket: got %v", err)
	}
}

package table

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/fivetuple/fivetuple"
	"github.com/fivetuple/fivetuple/sockdiag"
)

func listen(t *testing.T, network, address string) net.Listener {
	t.Helper()
	var lc net.ListenConfig
	lc.SetMultipathTCP(false)
	ln, err := lc.Listen(t.Context(), network, address)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { ln.Close() })
	return ln
}

func us() string { return fmt.Sprintf("(pid %d, user ", os.Getpid()) }

func TestHoldersAreThoseInTheWay(t *testing.T) {
	ln := listen(t, "tcp", "[::]:0")
	port := ln.Addr().(*net.TCPAddr).AddrPort().Port()
	client, err := net.Dial("tcp", ln.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	for _, tt := range []struct {
		protocol fivetuple.Network
		addr     string
		want     int
	}{
		{fivetuple.TCP, "127.0.0.1", 1}, // the dual-stack wildcard covers it; the connection is not in the way
		{fivetuple.TCP, "::1", 1},
		{fivetuple.TCP, "::", 1},
		{fivetuple.UDP, "127.0.0.1", 0},
	} {
		held, err := Holders(t.Context(), tt.protocol, netip.AddrPortFrom(netip.MustParseAddr(tt.addr), port))
		if err != nil {
			t.Fatal(err)
		}
		if len(held.Rows) != tt.want {
			t.Errorf("%s %s: %d sockets, want %d: %v", tt.protocol, tt.addr, len(held.Rows), tt.want, held.Rows)
		}
		if tt.want > 0 && !strings.Contains(held.String(), us()) {
			t.Errorf("%s %s is held by %s, want this process", tt.protocol, tt.addr, held)
		}
	}
}

func TestHoldersOfSeveralPlacesAreThoseOfEach(t *testing.T) {
	ln := listen(t, "tcp", "[::]:0")
	client, err := net.Dial("tcp", ln.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	at := func(port uint16) netip.AddrPort { return netip.AddrPortFrom(netip.MustParseAddr("127.0.0.1"), port) }
	port, clientPort := ln.Addr().(*net.TCPAddr).AddrPort().Port(), client.LocalAddr().(*net.TCPAddr).AddrPort().Port()
	held, err := HoldersOf(t.Context(), []Place{
		{fivetuple.TCP, at(port)},
		{fivetuple.UDP, at(port)},
		{fivetuple.TCP, netip.AddrPortFrom(netip.IPv6Unspecified(), clientPort)}, // held by a connection alone
	})
	if err != nil || len(held) != 3 {
		t.Fatalf("got %v, %v", held, err)
	}
	for i, want := range []int{1, 0, 1} {
		if len(held[i].Rows) != want || want > 0 && !strings.Contains(held[i].String(), us()) {
			t.Errorf("place %d: held by %v, want %d sockets of this process", i, held[i], want)
		}
	}
	if none, err := HoldersOf(t.Context(), nil); err != nil || len(none) != 0 {
		t.Errorf("of no places: got %v, %v", none, err)
	}
}

func TestListJoinsSocketsWithTheirOwners(t *testing.T) {
	ln := listen(t, "tcp4", "127.0.0.1:0")
	held, err := List(t.Context(), sockdiag.Query{Protocols: []fivetuple.Network{fivetuple.TCP}, LocalPort: ln.Addr().(*net.TCPAddr).AddrPort().Port()})
	if err != nil || len(held.Rows) != 1 || len(held.Rows[0].Owners) != 1 || held.Rows[0].Owners[0].PID != os.Getpid() {
		t.Errorf("got %+v, %v", held, err)
	}
}

func TestExplainInUseNamesTheHolder(t *testing.T) {
	tcp := listen(t, "tcp4", "127.0.0.1:0")
	path := filepath.Join(t.TempDir(), "s")
	listen(t, "unix", path)
	gone := listen(t, "tcp4", "127.0.0.1:0")
	gone.Close()
	for _, tt := range []struct{ endpoint, want string }{
		{tcp.Addr().String(), "listen on " + tcp.Addr().String() + ": address already in use: held by "},
		{fmt.Sprint("*:", tcp.Addr().(*net.TCPAddr).Port), us()},
		{"unix://" + path, us()},
		{"seqpacket://" + path, us()}, // another kind of socket has the path
		{gone.Addr().String(), "nobody holds it any more: try again"},
	} {
		err := ExplainInUse(t.Context(), fmt.Errorf("bind: %w", syscall.EADDRINUSE), fivetuple.MustParseEndpoint(tt.endpoint))
		var inUse *InUseError
		if !errors.As(err, &inUse) || !errors.Is(err, syscall.EADDRINUSE) || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%s: got %v, want %q", tt.endpoint, err, tt.want)
		}
	}
	other := errors.New("other")
	if err := ExplainInUse(t.Context(), other, fivetuple.MustParseEndpoint("1")); err != other {
		t.Errorf("another error became %v", err)
	}
}

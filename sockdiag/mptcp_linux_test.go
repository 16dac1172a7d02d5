package sockdiag

import (
	"fmt"
	"net"
	"slices"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/fivetuple/fivetuple"
)

func TestMultipathTCPIsShownOnce(t *testing.T) {
	if !alone(t) {
		return
	}
	l := listenMultipath(t, "127.0.0.1:0")
	client := connectMultipath(t, l.Addr())
	server := accept(t, l)
	orphan := connectMultipath(t, l.Addr())
	accept(t, l)
	ok(orphan.Close()) // by its process, not by its peer
	waiting := connectMultipath(t, l.Addr())
	plainListener := listen(t, "tcp", "127.0.0.1:0")
	fallback := connectMultipath(t, plainListener.Addr()) // to a peer without Multipath TCP
	plainServer := accept(t, plainListener)
	bound := protocolSocket(t, unix.AF_INET, unix.SOCK_STREAM, unix.IPPROTO_MPTCP)
	ok(unix.Bind(bound, &unix.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}}))

	row := func(protocol fivetuple.Network, c interface{ LocalAddr() net.Addr }, peer interface{ LocalAddr() net.Addr }) string {
		return fmt.Sprintf("%v %v > %v", protocol, local(c), local(peer))
	}
	listening := fivetuple.AddressOf(l.Addr()).AddrPort
	want := []string{
		fmt.Sprintf("mptcp %v", listening),
		row(fivetuple.MPTCP, client, server), row(fivetuple.MPTCP, server, client),
		fmt.Sprintf("mptcp %v > %v", local(orphan), listening), fmt.Sprintf("mptcp %v > %v", listening, local(orphan)),
		fmt.Sprintf("mptcp %v > %v", local(waiting), listening), fmt.Sprintf("mptcp %v > %v", listening, local(waiting)),
		fmt.Sprintf("tcp %v", fivetuple.AddressOf(plainListener.Addr())),
		row(fivetuple.MPTCP, fallback, plainServer), row(fivetuple.TCP, plainServer, fallback),
		fmt.Sprintf("tcp 127.0.0.1:%d", must(unix.Getsockname(bound)).(*unix.SockaddrInet4).Port),
	}
	slices.Sort(want)
	both := []fivetuple.Network{fivetuple.TCP, fivetuple.MPTCP}
	for _, q := range []Query{{}, {Protocols: both}, {Protocols: both, Details: WithInfo}} {
		var got []string
		for s, err := range Dump(t.Context(), q) {
			if err != nil {
				t.Fatal(err)
			}
			if s.Protocol != fivetuple.Netlink {
				got = append(got, s.Tuple().String())
			}
		}
		slices.Sort(got)
		if !slices.Equal(got, want) {
			t.Errorf("%+v:\n got %q\nwant %q", q, got, want)
		}
	}
}

func TestMultipathTCPIsShownOnceHoweverItIsNarrowed(t *testing.T) {
	if !alone(t) {
		return
	}
	l := listenMultipath(t, "127.0.0.1:0")
	client := connectMultipath(t, l.Addr())
	server := accept(t, l)
	listening := fivetuple.AddressOf(l.Addr()).AddrPort
	listener := fmt.Sprintf("mptcp %v", listening)
	ours, theirs := fmt.Sprintf("mptcp %v > %v", local(client), local(server)), fmt.Sprintf("mptcp %v > %v", local(server), local(client))
	tcp := func(row string) string { return row[len("mp"):] }
	only := []fivetuple.Network{fivetuple.TCP}
	for _, c := range []struct {
		name string
		q    Query
		want []string
	}{
		{"local port", Query{LocalPort: listening.Port()}, []string{listener, theirs}},
		{"remote port", Query{RemotePort: listening.Port()}, []string{ours}},
		{"state", Query{States: StatesOf(fivetuple.StateListen)}, []string{listener}},
		{"program", Query{LocalPort: 1, Program: everything}, nil},
		{"all of the port", Query{LocalPort: listening.Port(), Program: everything}, []string{listener, theirs}},
		{"TCP alone shows the subflows", Query{Protocols: only, LocalPort: listening.Port()}, []string{tcp(listener), tcp(theirs)}},
	} {
		var got []string
		for s, err := range Dump(t.Context(), c.q) {
			if err != nil {
				t.Fatal(err)
			}
			got = append(got, s.Tuple().String())
		}
		slices.Sort(got)
		slices.Sort(c.want)
		if !slices.Equal(got, c.want) {
			t.Errorf("%s:\n got %q\nwant %q", c.name, got, c.want)
		}
	}
}

func TestMultipathTCPIsShownOnceInAnyState(t *testing.T) {
	if !alone(t) {
		return
	}
	l := listenMultipath(t, "127.0.0.1:0")
	client := connectMultipath(t, l.Addr())
	accept(t, l)
	ok(client.(*net.TCPConn).CloseWrite())
	half := find(t, Query{Protocols: []fivetuple.Network{fivetuple.MPTCP}, States: StatesOf(fivetuple.StateFinWait2)}, func(Socket) bool { return true })
	subflows := must(List(t.Context(), Query{Protocols: []fivetuple.Network{fivetuple.TCP}, States: StatesOf(fivetuple.StateEstablished)}))
	if half.Inode != inodeOf(client) || len(subflows) != 2 {
		t.Fatalf("got %+v and %d subflows in ESTABLISHED, want 2", half, len(subflows))
	}
	for _, s := range must(List(t.Context(), Query{States: StatesOf(fivetuple.StateEstablished)})) {
		t.Errorf("got %v in ESTABLISHED", s.Tuple())
	}
}

// everything is a program of one INET_DIAG_BC_NOP.
var everything = []byte{0, 4, 4, 0}

package table

import (
	"context"
	"encoding/json"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"reflect"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/fivetuple/fivetuple"
	"github.com/fivetuple/fivetuple/filter"
	"github.com/fivetuple/fivetuple/internal/lab"
	"github.com/fivetuple/fivetuple/netns"
	"github.com/fivetuple/fivetuple/owner"
	"github.com/fivetuple/fivetuple/sockdiag"
)

// alone runs a test in a host of its own, where no other test has sockets.
func alone(t *testing.T, test func()) {
	t.Helper()
	lab.NewHost(t, "alone").Do(t, test)
}

func dial(t *testing.T, a net.Addr) net.Conn {
	t.Helper()
	var d net.Dialer
	d.SetMultipathTCP(false)
	c, err := d.DialContext(t.Context(), a.Network(), a.String())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

func accept(t *testing.T, ln net.Listener) net.Conn {
	t.Helper()
	c, err := ln.Accept()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

func addrPort(a net.Addr) netip.AddrPort { return fivetuple.AddressOf(a).AddrPort }

func parse(t *testing.T, text string) *filter.Filter {
	t.Helper()
	f, err := filter.Parse(t.Context(), text)
	if err != nil {
		t.Fatal(err)
	}
	return f
}

// readUntil reads until the table is as the test wants it: the kernel closes
// connections in its own time.
func readUntil(t *testing.T, q Query, ok func(*Table) bool) *Table {
	t.Helper()
	for deadline := time.Now().Add(5 * time.Second); ; {
		tab, err := Read(t.Context(), q)
		if err != nil {
			t.Fatal(err)
		}
		if ok(tab) {
			return tab
		}
		if time.Now().After(deadline) {
			t.Fatalf("the table did not come to be as wanted, it has %d rows: %v", len(tab.Rows), texts(tab))
		}
	}
}

// texts writes a row in a line: protocol, state, ends, whether owned.
func texts(tab *Table) []string {
	var all []string
	for i := range tab.Rows {
		r := &tab.Rows[i]
		all = append(all, strings.Join([]string{r.Protocol.String(), r.State.String(), r.LocalEnd().String(), r.RemoteEnd().String(), tab.Unowned(r).String()}, " "))
	}
	return all
}

func TestReadJoinsSocketsAndProcesses(t *testing.T) {
	alone(t, func() { readJoinsSocketsAndProcesses(t) })
}

func readJoinsSocketsAndProcesses(t *testing.T) {
	ln := listen(t, "tcp", "127.0.0.1:0")
	client := dial(t, ln.Addr())
	server := accept(t, ln)
	tab, err := Read(t.Context(), Query{Protocols: []fivetuple.Network{fivetuple.TCP}, Owners: true, Peers: true})
	if err != nil {
		t.Fatal(err)
	}
	if len(tab.Rows) != 3 {
		t.Fatalf("got %d rows, want the listener and both ends: %v", len(tab.Rows), texts(tab))
	}
	for i := range tab.Rows {
		r := &tab.Rows[i]
		if len(r.Owners) != 1 || r.Owners[0].PID != os.Getpid() {
			t.Errorf("%v: owners %v, want this process", r.Tuple(), r.Owners)
		}
		if connected := r.Remote.IsValid(); connected != (len(r.Peers) == 1) {
			t.Errorf("%v: peers %v", r.Tuple(), r.Peers)
		}
		if r.Peers != nil && (r.Peers[0].PID != os.Getpid() || r.Peers[0].FD == r.Owners[0].FD) {
			t.Errorf("%v: peer %v is the socket itself, owner %v", r.Tuple(), r.Peers, r.Owners)
		}
	}
	// The peer is found too where the filter leaves it out.
	q := Query{Filter: parse(t, "dport = :"+portOf(ln.Addr())), Peers: true}
	if tab, err = Read(t.Context(), q); err != nil {
		t.Fatal(err)
	}
	if len(tab.Rows) != 1 || tab.Rows[0].Local != addrPort(client.LocalAddr()) || len(tab.Rows[0].Peers) != 1 {
		t.Errorf("got %v, want the client with its peer %v", texts(tab), server.LocalAddr())
	}
}

func portOf(a net.Addr) string {
	_, port, _ := net.SplitHostPort(a.String())
	return port
}

func TestFiltersOnOwnersNarrow(t *testing.T) {
	alone(t, func() { filtersOnOwnersNarrow(t) })
}

func filtersOnOwnersNarrow(t *testing.T) {
	ln := listen(t, "tcp", "127.0.0.1:0")
	self, err := os.ReadFile("/proc/self/comm")
	if err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		filter string
		want   int
	}{
		{"proc:" + strings.TrimSpace(string(self)), 1},
		{"proc:none-such", 0},
		{"not proc:none-such", 1},
		{"pid:1000000 or sport = :" + portOf(ln.Addr()), 1},
	} {
		tab, err := Read(t.Context(), Query{Filter: parse(t, "tcp and ("+tt.filter+")")})
		if err != nil {
			t.Fatal(err)
		}
		if len(tab.Rows) != tt.want {
			t.Errorf("%s: got %v, want %d rows", tt.filter, texts(tab), tt.want)
		}
	}
}

func TestRowsWithoutAnOwnerSayWhy(t *testing.T) {
	alone(t, func() { rowsWithoutAnOwnerSayWhy(t) })
}

func rowsWithoutAnOwnerSayWhy(t *testing.T) {
	ln := listen(t, "tcp", "127.0.0.1:0")
	timeWait := dial(t, ln.Addr())
	served := accept(t, ln)
	timeWait.Close()
	served.Close()

	orphan := dial(t, ln.Addr()).(*net.TCPConn)
	peer := accept(t, ln).(*net.TCPConn)
	orphan.Close() // FIN_WAIT2 until the peer closes

	waiting := dial(t, ln.Addr())

	deferred := listen(t, "tcp", "127.0.0.1:0")
	control(t, deferred.(*net.TCPListener), func(fd int) error {
		return unix.SetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_DEFER_ACCEPT, 30)
	})
	handshake := dial(t, deferred.Addr())

	reason := func(tab *Table, local, remote net.Addr) string {
		for i := range tab.Rows {
			r := &tab.Rows[i]
			if r.Local == addrPort(local) && r.Remote == addrPort(remote) {
				return r.State.String() + ": " + tab.Unowned(r).String()
			}
		}
		return "not listed"
	}
	want := []string{"TIME_WAIT: TIME_WAIT", "FIN_WAIT2: orphan", "ESTABLISHED: not accepted", "SYN_RECV: handshake"}
	got := func(tab *Table) []string {
		return []string{
			reason(tab, timeWait.LocalAddr(), ln.Addr()), reason(tab, orphan.LocalAddr(), ln.Addr()),
			reason(tab, ln.Addr(), waiting.LocalAddr()), reason(tab, deferred.Addr(), handshake.LocalAddr()),
		}
	}
	tab := readUntil(t, Query{Protocols: []fivetuple.Network{fivetuple.TCP}, Owners: true}, func(tab *Table) bool { return slices.Equal(got(tab), want) })
	counts := tab.CountUnowned()
	for _, u := range []Unowned{TimeWait, Orphan, NotAccepted, Handshake} {
		if counts[u] != 1 {
			t.Errorf("%v is counted %d times, want once", u, counts[u])
		}
	}
	peer.Close()
}

func control(t *testing.T, c syscall.Conn, f func(fd int) error) {
	t.Helper()
	raw, err := c.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	var inner error
	if err := raw.Control(func(fd uintptr) { inner = f(int(fd)) }); err != nil || inner != nil {
		t.Fatal(err, inner)
	}
}

func TestUnownedTellsWhatIsHidden(t *testing.T) {
	row := func(netnsID uint64) *Row {
		return &Row{Socket: sockdiag.Socket{Inode: 7, State: fivetuple.StateListen}, Namespace: &netns.Namespace{ID: netnsID}}
	}
	for _, tt := range []struct {
		table Table
		row   *Row
		want  Unowned
	}{
		{Table{Unreadable: 3, here: 1}, row(1), Denied},
		{Table{here: 1}, row(1), Hidden},
		{Table{here: 1}, row(2), Elsewhere},
	} {
		if got := tt.table.Unowned(tt.row); got != tt.want {
			t.Errorf("got %v, want %v", got, tt.want)
		}
	}
}

func TestReadOfSeveralNamespaces(t *testing.T) {
	a, b := lab.NewHost(t, "a"), lab.NewHost(t, "b")
	lab.Link(t, a, b, "10.0.0.0/24")
	ln, err := a.Listen("tcp", "10.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	client, err := b.Dial(t.Context(), "tcp", ln.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	accept(t, ln)
	var ids []uint64
	for _, h := range []*lab.Host{a, b} {
		h.Start(t, exec.Command("sleep", "100")) // by which the namespace is found
		h.Do(t, func() {
			n, err := netns.Current()
			if err != nil {
				t.Fatal(err)
			}
			ids = append(ids, n.ID)
		})
	}
	all, err := netns.All()
	if err != nil {
		t.Fatal(err)
	}
	chosen := slices.DeleteFunc(all, func(n netns.Namespace) bool { return !slices.Contains(ids, n.ID) })
	gone := netns.Namespace{ID: 1, PID: os.Getpid(), Path: "/proc/self/ns/net"} // another one by now
	tab, err := Read(t.Context(), Query{Namespaces: append(chosen, gone), Owners: true, Peers: true, Protocols: []fivetuple.Network{fivetuple.TCP}})
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for i := range tab.Rows {
		r := &tab.Rows[i]
		got = append(got, fmt.Sprintf("%d %v %d", slices.Index(ids, r.Namespace.ID), r.State, len(r.Peers)))
	}
	slices.Sort(got)
	if want := []string{"0 ESTABLISHED 1", "0 LISTEN 0", "1 ESTABLISHED 1"}; !slices.Equal(got, want) {
		t.Errorf("got %q, want %q (namespace, state, peers)", got, want)
	}
}

func TestRatesCompareTwoReadings(t *testing.T) {
	alone(t, func() { ratesCompareTwoReadings(t) })
}

func ratesCompareTwoReadings(t *testing.T) {
	ln := listen(t, "tcp", "127.0.0.1:0")
	client := dial(t, ln.Addr())
	server := accept(t, ln)
	var r Reader
	defer r.Close()
	q := Query{Filter: parse(t, "dport = :"+portOf(ln.Addr())), Rates: true}
	read := func() *Table {
		t.Helper()
		tab, err := r.Read(t.Context(), q)
		if err != nil {
			t.Fatal(err)
		}
		return tab
	}
	if row := read().Rows[0]; row.Rate.Known || !row.Opened.IsZero() {
		t.Errorf("first reading: got rate %+v, opened %v, want both unknown", row.Rate, row.Opened)
	}
	later := dial(t, ln.Addr())
	client.Write(make([]byte, 1<<20))
	go server.Read(make([]byte, 1))
	tab := read()
	for i := range tab.Rows {
		row := &tab.Rows[i]
		if isLater := row.Local == addrPort(later.LocalAddr()); isLater == row.Opened.IsZero() || isLater == row.Rate.Known {
			t.Errorf("%v: opened %v, rate %+v", row.Tuple(), row.Opened, row.Rate)
		}
		if row.Rate.Known && row.Rate.Out == 0 {
			t.Errorf("%v: nothing sent, want a rate", row.Tuple())
		}
	}
	if len(tab.Rows) != 2 {
		t.Errorf("got %d rows, want 2", len(tab.Rows))
	}
}

func TestRowsAreReadBackFromTheirJSON(t *testing.T) {
	alone(t, func() { rowsAreReadBackFromTheirJSON(t) })
}

func rowsAreReadBackFromTheirJSON(t *testing.T) {
	dir, err := os.MkdirTemp("", "ft") // not t.TempDir: sun_path has 108 bytes
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	ln := listen(t, "tcp", "[::1]:0")
	dial(t, ln.Addr())
	accept(t, ln)
	un := listen(t, "unix", dir+`/a "b"\c`)
	dial(t, un.Addr())
	listen(t, "unix", "@ft\x1b[31m")
	tab, err := Read(t.Context(), Query{Owners: true, Peers: true, Details: sockdiag.WithMemory | sockdiag.WithCongestion | sockdiag.WithTOS})
	if err != nil {
		t.Fatal(err)
	}
	if len(tab.Rows) < 6 {
		t.Fatalf("got only %v", texts(tab))
	}
	for i := range tab.Rows {
		want := tab.Rows[i]
		text, err := json.Marshal(&want)
		if err != nil {
			t.Fatal(err)
		}
		if strings.ContainsFunc(string(text), func(r rune) bool { return r < ' ' }) {
			t.Errorf("%q has control characters", text)
		}
		var got Row
		if err := json.Unmarshal(text, &got); err != nil {
			t.Fatalf("%s: %v", text, err)
		}
		// What people alone look at, and what a file cannot hold.
		want.Namespace, got.Namespace = nil, nil
		for _, row := range []*Row{&want, &got} {
			row.Owners, row.Peers = withoutStart(row.Owners), withoutStart(row.Peers)
		}
		if !reflect.DeepEqual(got, want) {
			t.Errorf("%s\n got %+v\nwant %+v", text, got, want)
		}
	}
}

func withoutStart(holders []owner.Holder) []owner.Holder {
	var all []owner.Holder
	for _, h := range holders {
		h.Start, h.UID = 0, 0
		all = append(all, h)
	}
	return all
}

func TestGroupsByPortShowServersAndClients(t *testing.T) {
	alone(t, func() { groupsByPortShowServersAndClients(t) })
}

func groupsByPortShowServersAndClients(t *testing.T) {
	ln := listen(t, "tcp", "127.0.0.1:0")
	for range 3 {
		dial(t, ln.Addr())
		accept(t, ln)
	}
	tab, err := Read(t.Context(), Query{Protocols: []fivetuple.Network{fivetuple.TCP}, Owners: true})
	if err != nil {
		t.Fatal(err)
	}
	groups, err := tab.Group("port")
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, g := range groups {
		got = append(got, strings.Join([]string{g.Key, text(g.Listening), text(g.Connected), text(g.Peers), text(len(g.Owners))}, " "))
	}
	port := portOf(ln.Addr())
	want := []string{"tcp " + port + " 1 3 1 1", "tcp to " + port + " 0 3 1 1"}
	if !slices.Equal(got, want) {
		t.Errorf("got  %q\nwant %q", got, want)
	}
	if _, err := tab.Group("colour"); err == nil {
		t.Error("grouped by what is no grouping")
	}
}

func text(n int) string { return string(rune('0' + n)) }

func TestEachRefusesWhatNeedsTheWholeTable(t *testing.T) {
	for _, q := range []Query{{Rates: true}, {Peers: true}, {Filter: parse(t, "pid 1")}} {
		if err := Each(t.Context(), q, func(*Row) bool { return true }); err == nil {
			t.Errorf("%+v: no error", q)
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := Each(ctx, Query{}, func(*Row) bool { return true }); err == nil {
		t.Error("no error of a context that is done")
	}
}

package dial

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/fivetuple/fivetuple"
	"github.com/fivetuple/fivetuple/internal/lab"
	"github.com/fivetuple/fivetuple/sockopt"
)

func TestBlackholeOfIPv6CostsAQuarterOfASecond(t *testing.T) {
	client, server := lab.NewHost(t, "client"), lab.NewHost(t, "server")
	lab.Link(t, client, server, "10.0.0.0/24", "fd00::/64")
	server.Do(t, func() { // the program's filter is for all families
		serve(t, server, "10.0.0.2:80")
		serve(t, server, "[fd00::2]:81")
	})
	server.Drop(t, "tcp", 81)
	d := Dialer{Resolver: both("fd00::2", "10.0.0.2"), Timeout: 10 * time.Second}
	d.connect = func(d Dialer, ctx context.Context, to netip.AddrPort) (c connection, err error) {
		if to.Addr().Is6() {
			to = netip.AddrPortFrom(to.Addr(), 81)
		}
		client.Do(t, func() { c, err = d.connectTCP(ctx, to) })
		return c, err
	}
	began := time.Now()
	conn, err := d.Dial(t.Context(), fivetuple.MustParseEndpoint("h.test:80"))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	took := time.Since(began)
	if got := conn.RemoteAddr().String(); got != "10.0.0.2:80" {
		t.Errorf("connected to %s, want 10.0.0.2:80", got)
	}
	// Over three seconds it would be a second try of IPv6.
	if took < 250*ms || took > 900*ms {
		t.Errorf("took %v, want 250ms and little more", took)
	}
	t.Logf("connected after %v", took)
}

func TestEachRealAddressFailsWithItsReason(t *testing.T) {
	client, server := lab.NewHost(t, "client"), lab.NewHost(t, "server")
	lab.Link(t, client, server, "10.0.0.0/24", "fd00::/64")
	server.Drop(t, "tcp", 80)
	server.AddAddr(t, "lo", "fd01::2/128")
	d := Dialer{Timeout: 700 * ms, Resolver: names{
		&reply{addrs: []string{"2001:db8::1", "fd00::2"}}, &reply{addrs: []string{"10.0.0.1"}},
	}}
	_, err := dialIn(t, client, d, "h.test:80")
	var e *Error
	if !errors.As(err, &e) || len(e.Attempts) != 3 {
		t.Fatalf("got %v, want an Error of three attempts", err)
	}
	want := map[string]error{
		"[2001:db8::1]:80": syscall.ENETUNREACH,
		"10.0.0.1:80":      syscall.ECONNREFUSED,
		"[fd00::2]:80":     os.ErrDeadlineExceeded,
	}
	for _, at := range e.Attempts {
		if reason := want[at.Addr.String()]; reason == nil || !errors.Is(at.Err, reason) || at.Took <= 0 {
			t.Errorf("got %v, want %v", at, reason)
		}
		delete(want, at.Addr.String())
	}
	wantError(t, err, nil, "\n  10.0.0.1:80: connection refused: nobody listens there", "no IPv6 route", "timed out after", "a firewall drops")
}

func TestReasonsOfTheKernel(t *testing.T) {
	host, peer := lab.NewHost(t, "host"), lab.NewHost(t, "peer")
	lab.Link(t, host, peer, "10.0.0.0/24", "fd00::/64")
	host.Sysctl(t, "net.ipv4.neigh.peer.retrans_time_ms", "50")
	serve(t, host, "10.0.0.1:5000") // holds the port
	serve(t, peer, "10.0.0.2:80")
	for _, tt := range []struct {
		name     string
		d        Dialer
		endpoint string
		is       error
		parts    []string
	}{
		{"refused", Dialer{}, "10.0.0.2:81", syscall.ECONNREFUSED, []string{"connect 10.0.0.2:81: connection refused: nobody listens there"}},
		{"no route", Dialer{}, "198.51.100.1:80", syscall.ENETUNREACH, []string{"ip route get 198.51.100.1"}},
		{"nobody has the address", Dialer{}, "10.0.0.9:80", syscall.EHOSTUNREACH, []string{"no machine answers"}},
		{"source of another machine", Dialer{Source: netip.MustParseAddrPort("10.0.0.2:0")}, "10.0.0.2:80", syscall.EADDRNOTAVAIL, []string{"source address 10.0.0.2", "127.0.0.1, 10.0.0.1"}},
		{"source port in use", Dialer{Source: netip.MustParseAddrPort("10.0.0.1:5000")}, "10.0.0.2:80", syscall.EADDRINUSE, []string{"source port 5000", "ft who 5000"}},
		{"source of another family", Dialer{Source: netip.MustParseAddrPort("10.0.0.1:0")}, "[fd00::2]:80", nil, []string{"10.0.0.1 is IPv4 and reaches no IPv6 address"}},
		{"no such interface", Dialer{Interface: "eth7"}, "10.0.0.2:80", nil, []string{"no network interface eth7: there are lo, peer"}},
		{"no such zone", Dialer{}, "[fe80::1%eth7]:80", nil, []string{"no network interface eth7: there are lo, peer"}},
		{"zone and interface differ", Dialer{Interface: "lo"}, "10.0.0.2%peer:80", nil, []string{"%peer and the interface lo are two"}},
		{"link-local without a zone", Dialer{}, "[fe80::1]:80", syscall.EINVAL, []string{"[fe80::1%NAME]:80", "peer"}},
		{"wrong interface", Dialer{Interface: "lo", Timeout: 200 * ms}, "10.0.0.2:80", context.DeadlineExceeded, []string{"timed out after ", "no answer through lo"}},
		{"option of other sockets", Dialer{Options: options(t, "hops=7")}, "10.0.0.2:80", sockopt.ErrSocket, []string{"set hops=7"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			tt.d.Timeout = cmp.Or(tt.d.Timeout, 10*time.Second)
			_, err := dialIn(t, host, tt.d, tt.endpoint)
			wantError(t, err, tt.is, tt.parts...)
		})
	}
}

func TestInterfaceIsTheWayTaken(t *testing.T) {
	client := lab.NewHost(t, "client")
	left, right := lab.NewHost(t, "left"), lab.NewHost(t, "right")
	lab.Link(t, client, left, "10.1.0.0/24")
	lab.Link(t, client, right, "10.2.0.0/24")
	for _, h := range []*lab.Host{left, right} { // the same address on both sides
		h.AddAddr(t, "lo", "192.0.2.1/32")
	}
	client.AddRoute(t, "192.0.2.0/24", "10.1.0.2")
	client.AddRoute(t, "192.0.0.0/16", "10.2.0.2")
	serve(t, left, "192.0.2.1:80")
	serve(t, right, "192.0.2.1:80")
	for _, tt := range []struct{ device, endpoint, local string }{
		{"", "192.0.2.1:80", "10.1.0.1"},
		{"left", "192.0.2.1:80", "10.1.0.1"},
		{"right", "192.0.2.1:80", "10.2.0.1"},
		{"", "192.0.2.1%right:80", "10.2.0.1"},
	} {
		conn, err := dialIn(t, client, Dialer{Interface: tt.device, Timeout: 5 * time.Second}, tt.endpoint)
		if err != nil {
			t.Fatal(err)
		}
		if got := conn.LocalAddr().(*net.TCPAddr).IP.String(); got != tt.local {
			t.Errorf("%s through %q: connected from %s, want %s", tt.endpoint, tt.device, got, tt.local)
		}
		if got := optionOf(t, conn, "bindtodevice"); tt.device != "" && got != tt.device {
			t.Errorf("bound to %q, want %q", got, tt.device)
		}
	}
}

// optionOf reads an option of the socket of a connection.
func optionOf(t *testing.T, conn net.Conn, name string) (value string) {
	t.Helper()
	raw, err := conn.(syscall.Conn).SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	var s sockopt.Setting
	if cerr := raw.Control(func(fd uintptr) { s, err = sockopt.Get(int(fd), name) }); cerr != nil || err != nil {
		t.Fatal(cerr, err)
	}
	return s.Value()
}

func TestLinkLocalAddressByZoneOrInterface(t *testing.T) {
	a, b := lab.NewHost(t, "llhere"), lab.NewHost(t, "llthere")
	lab.Link(t, a, b)
	var addr, index string
	b.Do(t, func() { addr, _ = linkLocal(t, "llhere") })
	a.Do(t, func() { _, index = linkLocal(t, "llthere") })
	serve(t, b, "[::]:80")
	for _, tt := range []struct {
		endpoint string
		device   string
	}{
		{"[" + addr + "%" + index + "]:80", ""},
		{"[" + addr + "%llthere]:80", ""},
		{"[" + addr + "]:80", "llthere"},
	} {
		conn, err := dialIn(t, a, Dialer{Interface: tt.device, Timeout: 5 * time.Second}, tt.endpoint)
		if err != nil {
			t.Error(err)
			continue
		}
		conn.Close()
	}
}

// linkLocal returns the link-local address and the index of a device.
func linkLocal(t *testing.T, device string) (addr, index string) {
	t.Helper()
	ifi, err := net.InterfaceByName(device)
	if err != nil {
		t.Fatal(err)
	}
	addrs, err := ifi.Addrs()
	if err != nil {
		t.Fatal(err)
	}
	for _, a := range addrs {
		if p := netip.MustParsePrefix(a.String()); p.Addr().IsLinkLocalUnicast() {
			return p.Addr().WithZone("").String(), strconv.Itoa(ifi.Index)
		}
	}
	t.Fatalf("%s has no link-local address", device)
	return "", ""
}

func TestSourceIsWhereTheConnectionComesFrom(t *testing.T) {
	client, server := lab.NewHost(t, "client"), lab.NewHost(t, "server")
	lab.Link(t, client, server, "10.0.0.0/24", "fd00::/64")
	client.AddAddr(t, "server", "10.0.0.7/24")
	client.AddAddr(t, "server", "fd00::7/64")
	serve(t, server, "10.0.0.2:80")
	serve(t, server, "[fd00::2]:80")
	for _, tt := range []struct{ source, endpoint, want string }{
		{"10.0.0.7:0", "10.0.0.2:80", "10.0.0.7:"},
		{"10.0.0.7:4000", "10.0.0.2:80", "10.0.0.7:4000"},
		{"[fd00::7]:0", "[fd00::2]:80", "[fd00::7]:"},
		{"[fd00::7]:4000", "[fd00::2]:80", "[fd00::7]:4000"},
		{"10.0.0.7:0", "h.test:80", "10.0.0.7:"},
		{"[fd00::7]:0", "h.test:80", "[fd00::7]:"},
		{":5001", "10.0.0.2:80", "10.0.0.1:5001"},
		{":5001", "[fd00::2]:80", ":5001"},
	} {
		var source netip.AddrPort
		if port, ok := strings.CutPrefix(tt.source, ":"); ok {
			n, _ := strconv.Atoi(port)
			source = netip.AddrPortFrom(netip.Addr{}, uint16(n))
		} else {
			source = netip.MustParseAddrPort(tt.source)
		}
		conn, err := dialIn(t, client, Dialer{Source: source, Resolver: both("fd00::2", "10.0.0.2"), Timeout: 5 * time.Second}, tt.endpoint)
		if err != nil {
			t.Error(err)
			continue
		}
		if got := conn.LocalAddr().String(); !strings.HasPrefix(got, tt.want) && !(tt.want[0] == ':' && strings.HasSuffix(got, tt.want)) {
			t.Errorf("source %s to %s: connected from %s", tt.source, tt.endpoint, got)
		}
	}
}

func TestSourcePortIsFreeAgainAtOnce(t *testing.T) {
	client, server := lab.NewHost(t, "client"), lab.NewHost(t, "server")
	lab.Link(t, client, server, "10.0.0.0/24")
	serve(t, server, "10.0.0.2:80")
	serve(t, server, "10.0.0.2:81")
	for _, endpoint := range []string{"10.0.0.2:80", "10.0.0.2:81"} {
		conn, err := dialIn(t, client, Dialer{Source: netip.MustParseAddrPort("10.0.0.1:4000"), Timeout: 5 * time.Second}, endpoint)
		if err != nil {
			t.Fatal(err)
		}
		conn.Close() // leaves FIN_WAIT2 or TIME_WAIT on the port
	}
	_, err := dialIn(t, client, Dialer{Source: netip.MustParseAddrPort("10.0.0.1:4000"), Timeout: 5 * time.Second}, "10.0.0.2:81")
	wantError(t, err, syscall.EADDRNOTAVAIL, "source port 4000", "TIME_WAIT")
}

func TestSourceAddressTakesNoPortForAllDestinations(t *testing.T) {
	client, server := lab.NewHost(t, "client"), lab.NewHost(t, "server")
	lab.Link(t, client, server, "10.0.0.0/24")
	client.Sysctl(t, "net.ipv4.ip_local_port_range", "40000 40001")
	for port := 80; port < 90; port++ {
		serve(t, server, fmt.Sprint("10.0.0.2:", port))
	}
	d := Dialer{Source: netip.MustParseAddrPort("10.0.0.1:0"), Timeout: 5 * time.Second}
	for port := 80; port < 90; port++ {
		if _, err := dialIn(t, client, d, fmt.Sprint("10.0.0.2:", port)); err != nil {
			t.Fatalf("connection %d: %v", port-79, err)
		}
	}
	if _, err := dialIn(t, client, d, "10.0.0.2:80"); err != nil {
		t.Fatal(err)
	}
	_, err := dialIn(t, client, d, "10.0.0.2:80")
	wantError(t, err, syscall.EADDRNOTAVAIL, "ip_local_port_range")
}

func TestConnectionToItselfIsRefused(t *testing.T) {
	source := netip.MustParseAddrPort("127.0.0.1:4001")
	for range 2 { // the first has left no TIME_WAIT
		_, err := Dialer{Source: source, Timeout: 5 * time.Second}.Dial(t.Context(), fivetuple.MustParseEndpoint("127.0.0.1:4001"))
		wantError(t, err, syscall.ECONNREFUSED, "its own source port")
	}
	lc := net.ListenConfig{Control: options(t, "reuseaddr=off").Control}
	ln, err := lc.Listen(t.Context(), "tcp", "127.0.0.1:4001")
	if err != nil {
		t.Fatalf("the port is not free: %v", err)
	}
	ln.Close()
}

func TestConnectionIsPlainTCPWithTheOptionsAsked(t *testing.T) {
	t.Setenv("GODEBUG", "multipathtcp=1") // package net would make it Multipath TCP
	ln := listen(t, "tcp", "127.0.0.1:0")
	acceptAll(t, ln)
	var reports [][]sockopt.Granted
	d := Dialer{
		Options: options(t, "nodelay=off,keepalive=31s/7s/3,tos=ef,rcvbuf=64KiB"),
		Report:  func(g []sockopt.Granted) { reports = append(reports, g) },
	}
	conn, err := d.Dial(t.Context(), fivetuple.MustParseEndpoint(ln.Addr().String()))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	want := map[string]string{"nodelay": "off", "keepalive": "31s/7s/3", "tos": "ef", "rcvbuf": "128KiB", "protocol": "tcp"}
	for name, value := range want {
		if got := optionOf(t, conn, name); got != value {
			t.Errorf("%s: got %s, want %s", name, got, value)
		}
	}
	if len(reports) != 1 {
		t.Fatalf("got %d reports, want one", len(reports))
	}
	seen := map[string]int{}
	for _, g := range reports[0] {
		seen[g.Option.Name]++
		if g.Option.Name == "nodelay" && g.Got != "off" {
			t.Errorf("reported %v", g)
		}
	}
	for _, name := range []string{"nodelay", "keepalive", "keepalive-idle", "tos", "rcvbuf"} {
		if seen[name] != 1 {
			t.Errorf("%s: reported %d times, want once", name, seen[name])
		}
	}
}

func TestWithoutOptionsKeepAliveIsAsTheKernelHasIt(t *testing.T) {
	ln := listen(t, "tcp", "127.0.0.1:0")
	acceptAll(t, ln)
	conn, err := Dialer{}.Dial(t.Context(), fivetuple.MustParseEndpoint(ln.Addr().String()))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if got := optionOf(t, conn, "keepalive"); got != "off" {
		t.Errorf("keepalive: got %s, want off", got)
	}
}

func TestEndpointsThatAreNotForConnections(t *testing.T) {
	for _, tt := range []struct {
		endpoint string
		d        Dialer
		is       error
		part     string
	}{
		{"udp://127.0.0.1:9", Dialer{}, errors.ErrUnsupported, "connections are made over tcp"},
		{"unixgram:///run/x", Dialer{}, errors.ErrUnsupported, "connections are made over tcp"},
		{"-", Dialer{}, errors.ErrUnsupported, "connections are made over tcp"},
		{"127.0.0.1:80-90", Dialer{}, nil, "names 11 ports"},
		{"127.0.0.1:0", Dialer{}, nil, "port 0"},
		{"127.0.0.1:nosuchservice", Dialer{}, nil, "nosuchservice"},
		{"vsock://*:80", Dialer{}, nil, "name the context"},
		{"unix:///run/x", Dialer{Interface: "lo"}, nil, "belong to TCP"},
		{"unix:///run/x", Dialer{Source: netip.MustParseAddrPort("127.0.0.1:0")}, nil, "belong to TCP"},
	} {
		t.Run(tt.endpoint, func(t *testing.T) {
			_, err := tt.d.Dial(t.Context(), fivetuple.MustParseEndpoint(tt.endpoint))
			wantError(t, err, tt.is, tt.part, "connect "+tt.endpoint+": ")
		})
	}
}

func TestServiceNameIsResolved(t *testing.T) {
	w := &world{began: time.Now()}
	d := Dialer{Resolver: names{}, connect: w.connect} // every service is on port 80
	conn, err := d.dial(t.Context(), fivetuple.MustParseEndpoint("192.0.2.1:http"))
	if err != nil || conn.Conn.(*fakeConn).addr != "192.0.2.1" {
		t.Errorf("got %v, %v", conn, err)
	}
}

func TestDescriptorsExhaustedIsSaid(t *testing.T) {
	var had unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &had); err != nil {
		t.Fatal(err)
	}
	conn, err := Dialer{}.Dial(t.Context(), fivetuple.MustParseEndpoint("127.0.0.1:1")) // warms the poller up
	if err == nil {
		conn.Close()
	}
	if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &unix.Rlimit{Cur: 0, Max: had.Max}); err != nil {
		t.Fatal(err)
	}
	_, errIP := Dialer{}.Dial(t.Context(), fivetuple.MustParseEndpoint("127.0.0.1:1"))
	_, errUnix := Dialer{}.Dial(t.Context(), fivetuple.MustParseEndpoint("unix://@nobody"))
	if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &had); err != nil {
		t.Fatal(err)
	}
	wantError(t, errIP, syscall.EMFILE, "ulimit -n")
	wantError(t, errUnix, syscall.EMFILE, "ulimit -n")
}

func TestDialWithNoTimeLeftIsATimeout(t *testing.T) {
	ln := listen(t, "tcp", "127.0.0.1:0")
	acceptAll(t, ln)
	ctx, cancel := context.WithDeadline(t.Context(), time.Now().Add(-time.Second))
	defer cancel()
	for _, tt := range []struct{ endpoint, part string }{
		{ln.Addr().String(), "not tried"},
		{"h.test:80", "the addresses of h.test"},
		{"unix:///nosuch/path", "connecting to the socket"},
	} {
		d := Dialer{Resolver: names{&reply{after: never}, &reply{after: never}}}
		_, err := d.Dial(ctx, fivetuple.MustParseEndpoint(tt.endpoint))
		wantError(t, err, context.DeadlineExceeded, "connect "+tt.endpoint+": ", tt.part)
		wantError(t, err, os.ErrDeadlineExceeded)
	}
}

func TestErrorNamesTheEndpointAsItWasGiven(t *testing.T) {
	w := &world{began: time.Now(), err: map[string]error{"127.0.0.1": syscall.ECONNREFUSED}}
	d := Dialer{Resolver: names{}, connect: w.connect}
	_, err := d.Dial(t.Context(), fivetuple.MustParseEndpoint("127.0.0.1%lo:http"))
	if want := "connect 127.0.0.1%lo:http: connection refused"; err == nil || err.Error() != want {
		t.Errorf("got %v, want %s", err, want)
	}
}

package scan_test

import (
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/fivetuple/fivetuple/internal/lab"
	"github.com/fivetuple/fivetuple/scan"
)

// serve accepts and forgets connections on an address of the host.
func serve(t *testing.T, h *lab.Host, address string) uint16 {
	t.Helper()
	l, err := h.Listen("tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	return netip.MustParseAddrPort(l.Addr().String()).Port()
}

// twoHosts returns linked hosts; the second has the addresses 10.0.0.2 and fd00::2.
func twoHosts(t *testing.T) (client, server *lab.Host) {
	t.Helper()
	client, server = lab.NewHost(t, "client"), lab.NewHost(t, "server")
	lab.Link(t, client, server, "10.0.0.0/24", "fd00::/64")
	return client, server
}

func TestEveryAnswerHasItsState(t *testing.T) {
	client, server := twoHosts(t)
	for _, port := range []string{"80", "82", "83", "84"} {
		serve(t, server, ":"+port)
	}
	server.Drop(t, "tcp", 82)
	server.Reject(t, "tcp", 83)
	prohibit(t, server, 84)
	const (
		host4, host6 = "10.0.0.2", "fd00::2"
		nobody4      = "10.0.0.77"  // on the link, but nobody has it
		noRoute4     = "172.16.0.1" // no route leads there
		noRoute6     = "fd01::1"
	)
	results := scanFrom(t, client, job{
		Targets: []string{host4, host6, nobody4, noRoute4, noRoute6},
		Ports:   "80-84",
		Timeout: 5 * time.Second, // address resolution takes three until it gives up
	})
	for _, tt := range []struct {
		host   string
		port   uint16
		state  scan.State
		reason string
	}{
		{host4, 80, scan.Open, "connected"},
		{host4, 81, scan.Closed, "connection refused"},
		{host4, 82, scan.Filtered, "timed out"},
		{host4, 83, scan.Closed, "connection refused"},
		{host4, 84, scan.Filtered, "no route to host"}, // how Linux puts "administratively prohibited"
		{host6, 80, scan.Open, "connected"},
		{host6, 81, scan.Closed, "connection refused"},
		{host6, 82, scan.Filtered, "timed out"},
		{host6, 83, scan.Closed, "connection refused"},
		{host6, 84, scan.Filtered, "prohibited"},
		{nobody4, 80, scan.Filtered, "no route to host"},
		{noRoute4, 80, scan.Filtered, "network is unreachable"},
		{noRoute6, 80, scan.Filtered, "network is unreachable"},
	} {
		want := found{netip.MustParseAddr(tt.host), tt.port, tt.state, tt.reason}
		if !slices.Contains(results, want) {
			t.Errorf("no %+v in %+v", want, results)
		}
	}
}

// prohibit makes the host answer with ICMP "administratively prohibited".
func prohibit(t *testing.T, h *lab.Host, port uint16) {
	t.Helper()
	nft := exec.Command("nft", "-f", "-")
	nft.Stdin = strings.NewReader(fmt.Sprintf("table inet prohibit { chain input { type filter hook input priority 0; "+
		"tcp dport %d reject with icmpx admin-prohibited; }; }\n", port))
	if err := h.Start(t, nft).Wait(); err != nil {
		t.Fatal(err)
	}
}

func TestFullRangeFindsExactlyTheOpenPorts(t *testing.T) {
	client, server := twoHosts(t)
	for _, host := range []string{"10.0.0.2", "fd00::2"} {
		var want []uint16
		for _, port := range []string{"1", "22", "443", "32768", "60999", "65535", "0", "0", "0", "0"} {
			want = append(want, serve(t, server, net.JoinHostPort(host, port)))
		}
		checkOpen(t, scanFrom(t, client, job{Targets: []string{host}, Ports: "all"}), want...)
		checkNoTimeWait(t, client)
		checkNoTimeWait(t, server)
	}
}

// checkOpen checks that these ports are open and all others closed.
func checkOpen(t *testing.T, results []found, want ...uint16) {
	t.Helper()
	for _, got := range results {
		state := scan.Closed
		if slices.Contains(want, got.Port) {
			state = scan.Open
		}
		if got.State != state {
			t.Errorf("port %d: got %v, %s, want %v", got.Port, got.State, got.Reason, state)
		}
	}
}

func checkNoTimeWait(t *testing.T, h *lab.Host) {
	t.Helper()
	h.Do(t, func() {
		for _, table := range []string{"tcp", "tcp6"} {
			text, err := os.ReadFile("/proc/thread-self/net/" + table)
			if err != nil {
				t.Fatal(err)
			}
			for line := range strings.Lines(string(text)) {
				if fields := strings.Fields(line); fields[3] == "06" { // TCP_TIME_WAIT: include/net/tcp_states.h
					t.Errorf("a TIME_WAIT socket remains: %s", line)
				}
			}
		}
	})
}

func TestLoopbackScanIsNotFooledByItself(t *testing.T) {
	h := lab.NewHost(t, "h")
	for _, tt := range []struct {
		ephemeral, ports string
		repeat           int
		reason           string // to be found among the results
	}{
		{ephemeral: "32768 60999", ports: "all"},
		// The probe of port 40000 cannot but connect to itself.
		{ephemeral: "40000 40000", ports: "39900-40100", reason: "connected to itself"},
		// And these often connect to one another.
		{ephemeral: "40000 40003", ports: "40000-40003", repeat: 500},
	} {
		h.Sysctl(t, "net.ipv4.ip_local_port_range", tt.ephemeral)
		for _, host := range []string{"127.0.0.1", "::1"} {
			results := scanFrom(t, h, job{Targets: []string{host}, Ports: tt.ports, Repeat: tt.repeat})
			checkOpen(t, results)
			checkNoTimeWait(t, h)
			if tt.reason != "" && !slices.ContainsFunc(results, func(f found) bool { return f.Reason == tt.reason }) {
				t.Errorf("%s, source ports %s: no port has the reason %q", host, tt.ephemeral, tt.reason)
			}
		}
	}
}

func TestOpenPortThatResetsIsOpen(t *testing.T) {
	h := lab.NewHost(t, "h")
	l, err := h.Listen("tcp", "127.0.0.1:80")
	if err != nil {
		t.Fatal(err)
	}
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			conn.(*net.TCPConn).SetLinger(0)
			conn.Close()
		}
	}()
	defer func() { l.Close(); <-ended }()
	checkOpen(t, scanFrom(t, h, job{Targets: []string{"127.0.0.1"}, Ports: "80-81", Repeat: 1000}), 80)
}

func TestShortageIsNeverClosed(t *testing.T) {
	client, server := twoHosts(t)
	var open, silent []uint16
	for _, port := range []string{"1", "1500", "3000"} {
		open = append(open, serve(t, server, "10.0.0.2:"+port))
	}
	for port := uint16(2); port < 62; port++ {
		silent = append(silent, port)
	}
	server.Drop(t, "tcp", silent...)
	results := scanFrom(t, client, job{
		Targets: []string{"10.0.0.2"}, Ports: "1-3000", Window: 500, Files: 40, // the silent ports alone would take 60
	})
	checkOpen(t, slices.DeleteFunc(results, func(f found) bool {
		return f.State == scan.Filtered && slices.Contains(silent, f.Port)
	}), open...)
}

func TestLastingShortageIsAnErrorSoon(t *testing.T) {
	h, no6 := lab.NewHost(t, "h"), lab.NewHost(t, "no6")
	no6.Sysctl(t, "net.ipv6.conf.all.disable_ipv6", "1")
	for _, tt := range []struct {
		host   *lab.Host
		job    job
		reason string
	}{
		{h, job{Targets: []string{"127.0.0.1"}, Files: 40, TakeAll: true}, "too many open files"},
		{no6, job{Targets: []string{"::1"}}, "cannot assign requested address"},
	} {
		tt.job.Ports = "1-5000"
		start := time.Now()
		results := scanFrom(t, tt.host, tt.job)
		if took := time.Since(start); took > 20*time.Second {
			t.Errorf("%s: took %v, though each port alone is given up after one second", tt.reason, took)
		}
		for _, got := range results {
			if got.State != scan.Failed || got.Reason != tt.reason {
				t.Errorf("port %d: got %v, %s, want error, %s", got.Port, got.State, got.Reason, tt.reason)
			}
		}
	}
}

package sockdiag

import (
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/fivetuple/fivetuple"
)

// TestAgreesWithSS compares the whole table with what ss(8) shows, row by row.
// ss does not ask for TCP sockets that are only bound, so there are none.
func TestAgreesWithSS(t *testing.T) {
	if !alone(t) {
		return
	}
	openEverything(t)
	for _, c := range []struct {
		protocols []fivetuple.Network
		least     int
		ours      func(Socket) string
		flags     string
		theirs    func(line string) string // "" to leave out
	}{
		{[]fivetuple.Network{fivetuple.TCP}, 200, inetRow, "-HaneOt", ssInetRow},
		{[]fivetuple.Network{fivetuple.UDP}, 10, inetRow, "-HaneOu", ssInetRow},
		{[]fivetuple.Network{fivetuple.MPTCP}, 8, inetRow, "-HaneOM", ssInetRow},
		{[]fivetuple.Network{fivetuple.Raw}, 4, rawRow, "-HaneOw", ssRawRow},
		{[]fivetuple.Network{fivetuple.Packet}, 4, packetRow, "-HaneO0", ssPacketRow},
		{[]fivetuple.Network{fivetuple.Netlink}, 8, netlinkRow, "-HanOf netlink", ssNetlinkRow},
		{[]fivetuple.Network{fivetuple.Unix, fivetuple.Unixgram, fivetuple.Seqpacket}, 10, unixRow, "-HaneOx", ssUnixRow},
	} {
		// Connections go on closing while the two look: once must be the same.
		deadline := time.Now().Add(5 * time.Second)
		ours, theirs := ourRows(t, c.protocols, c.ours), ss(t, c.flags, c.theirs)
		for !slices.Equal(ours, theirs) && time.Now().Before(deadline) {
			ours, theirs = ourRows(t, c.protocols, c.ours), ss(t, c.flags, c.theirs)
		}
		if len(ours) < c.least || !slices.Equal(ours, theirs) {
			t.Errorf("ss %s: got %d rows, want at least %d; ss has %d\nours only:\n%s\nof ss only:\n%s", c.flags, len(ours), c.least, len(theirs), without(ours, theirs), without(theirs, ours))
		}
	}
}

// openEverything opens sockets of every kind and state that is easy to reach.
func openEverything(t *testing.T) {
	for _, address := range []string{"127.0.0.1:0", "[::1]:0", "[::]:0", "0.0.0.0:0", "[fe80::1%void]:0"} {
		l := listen(t, "tcp", address)
		for i := range 20 {
			client := connect(t, l.Addr())
			server := accept(t, l)
			must(client.Write(make([]byte, i)))
			if i%5 == 0 {
				ok(server.Close()) // TIME_WAIT or FIN_WAIT2, and CLOSE_WAIT
			}
		}
		connect(t, l.Addr())
		deferAccept(l)
		connect(t, l.Addr()) // SYN_RECV
		u := packets(t, "udp", address)
		must(connect(t, u.LocalAddr()).Write([]byte("unread")))
	}
	lost := rawSocket(t, unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_NONBLOCK)
	unix.Connect(lost, &unix.SockaddrInet4{Addr: [4]byte{192, 0, 2, 9}, Port: 9})
	dual := must(net.ListenTCP("tcp", &net.TCPAddr{Port: 0})) // of the net package: Multipath TCP
	t.Cleanup(func() { dual.Close() })
	connect(t, &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1), Port: dual.Addr().(*net.TCPAddr).Port})

	for _, address := range []string{"127.0.0.1:0", "[::1]:0"} {
		l := listenMultipath(t, address)
		client := connectMultipath(t, l.Addr())
		accept(t, l)
		must(client.Write([]byte("unread")))
		connectMultipath(t, l.Addr())
	}
	for _, s := range []struct{ family, protocol int }{
		{unix.AF_INET, unix.IPPROTO_ICMP}, {unix.AF_INET, unix.IPPROTO_RAW}, {unix.AF_INET6, unix.IPPROTO_ICMPV6}, {unix.AF_INET6, 89},
	} {
		protocolSocket(t, s.family, unix.SOCK_RAW, s.protocol)
	}
	connected := protocolSocket(t, unix.AF_INET, unix.SOCK_RAW, 200)
	ok(unix.Connect(connected, &unix.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}}))
	for _, proto := range []uint16{unix.ETH_P_ALL, unix.ETH_P_ARP, unix.ETH_P_LLDP, 0} {
		protocolSocket(t, unix.AF_PACKET, unix.SOCK_DGRAM, int(proto>>8|proto<<8))
	}
	arp := protocolSocket(t, unix.AF_PACKET, unix.SOCK_RAW, 0)
	ok(unix.Bind(arp, &unix.SockaddrLinklayer{Protocol: 0x0608, Ifindex: 1}))
	for i, family := range []int{unix.NETLINK_ROUTE, unix.NETLINK_KOBJECT_UEVENT, unix.NETLINK_GENERIC} {
		fd := protocolSocket(t, unix.AF_NETLINK, unix.SOCK_RAW, family)
		ok(unix.Bind(fd, &unix.SockaddrNetlink{Family: unix.AF_NETLINK, Pid: uint32(1<<31 + i), Groups: uint32(i)}))
	}
	dir := must(os.MkdirTemp("", "ft")) // not t.TempDir: sun_path has 108 bytes
	t.Cleanup(func() { os.RemoveAll(dir) })
	for _, network := range []string{"unix", "unixpacket", "unixgram"} {
		for _, name := range []string{filepath.Join(dir, network), "@ft-test-" + network} {
			if network == "unixgram" {
				must(connect(t, packets(t, network, name).LocalAddr()).Write([]byte("unread")))
				continue
			}
			l := listen(t, network, name)
			must(connect(t, l.Addr()).Write([]byte("unread")))
			accept(t, l)
			connect(t, l.Addr())
		}
	}
	rawSocket(t, unix.AF_UNIX, unix.SOCK_STREAM)
}

// ourRows writes the table one socket on a line, sorted.
func ourRows(t *testing.T, protocols []fivetuple.Network, row func(Socket) string) []string {
	t.Helper()
	var rows []string
	for s, err := range Dump(t.Context(), Query{Protocols: protocols}) {
		if err != nil {
			t.Fatal(err)
		}
		if r := row(s); r != "" {
			rows = append(rows, r)
		}
	}
	slices.Sort(rows)
	return rows
}

// ss runs ss(8) and writes its rows as ourRows does. It shows some netlink
// sockets twice, as the kernel does.
func ss(t *testing.T, flags string, row func(line string) string) []string {
	t.Helper()
	out, err := exec.Command("ss", strings.Fields(flags)...).Output()
	if err != nil {
		t.Fatalf("ss: %v (needs apt install iproute2)", err)
	}
	var rows []string
	for line := range strings.Lines(string(out)) {
		if r := row(line); r != "" {
			rows = append(rows, r)
		}
	}
	slices.Sort(rows)
	return slices.Compact(rows)
}

// without gives the rows that are not among the others, one on a line.
func without(rows, others []string) string {
	rows = slices.DeleteFunc(slices.Clone(rows), func(r string) bool { return slices.Contains(others, r) })
	return strings.Join(rows, "\n")
}

func inetRow(s Socket) string {
	return fmt.Sprintf("%v %d %d %v %v %d %x %d", s.State, s.RecvQueue, s.SendQueue, s.Local, remoteText(s), s.Inode, s.Cookie, s.UID)
}

func remoteText(s Socket) string {
	if !s.Remote.IsValid() {
		return "*"
	}
	return netip.AddrPortFrom(s.Remote.Addr().WithZone(""), s.Remote.Port()).String() // ss gives it no zone
}

func ssInetRow(line string) string {
	f := strings.Fields(line)
	extra := ssExtra(line)
	return fmt.Sprintf("%v %s %s %s %s %s %s %s", must(fivetuple.ParseState(f[0])), f[1], f[2], ssAddress(f[3]), ssRemote(f[4]), extra["ino"], extra["sk"], extra["uid"])
}

var ssExtraField = regexp.MustCompile(`(uid|ino|sk):([0-9a-f]+)`)

func ssExtra(line string) map[string]string {
	extra := map[string]string{"ino": "0", "uid": "0"} // left out by ss when 0
	for _, m := range ssExtraField.FindAllStringSubmatch(line, -1) {
		extra[m[1]] = m[2]
	}
	return extra
}

func ssRemote(text string) string {
	if strings.HasSuffix(text, ":*") {
		return "*"
	}
	return ssAddress(text)
}

// ssAddress reads "*:80" (dual stack), "[fe80::1]%void:80" and IPv4 mapped into IPv6.
func ssAddress(s string) string {
	s = strings.Replace(s, "*:", "[::]:", 1)
	if host, port, ok := strings.Cut(s, "]%"); ok {
		zone, port, _ := strings.Cut(port, ":")
		s = host + "%" + zone + "]:" + port
	}
	ap := netip.MustParseAddrPort(s)
	return netip.AddrPortFrom(ap.Addr().Unmap(), ap.Port()).String()
}

// ss writes the protocol as the local port, and any remote port as "*".
func rawRow(s Socket) string {
	remote := "any"
	if s.Remote.IsValid() {
		remote = s.Remote.Addr().String()
	}
	return fmt.Sprintln(s.State, s.RecvQueue, s.SendQueue, netip.AddrPortFrom(s.Local.Addr(), s.Number), remote)
}

func ssRawRow(line string) string {
	f := strings.Fields(line)
	remote := strings.Trim(strings.TrimSuffix(f[4], ":*"), "[]")
	if remote == "0.0.0.0" || remote == "::" || remote == "*" {
		remote = "any"
	}
	return fmt.Sprintln(must(fivetuple.ParseState(f[0])), must64(f[1]), must64(f[2]), ssAddress(f[3]), remote)
}

func packetRow(s Socket) string {
	_, device, _ := strings.Cut(s.Name, ":")
	return fmt.Sprintln(s.State, s.RecvQueue, s.SendQueue, s.Number, device, s.Inode, fmt.Sprintf("%x", s.Cookie))
}

func ssPacketRow(line string) string {
	f := strings.Fields(line)
	extra := ssExtra(line)
	number, device, _ := strings.Cut(f[4], ":")
	if number = strings.Trim(number, "[]"); number == "*" {
		number = "3" // ETH_P_ALL
	}
	return fmt.Sprintln(must(fivetuple.ParseState(f[1])), must64(f[2]), must64(f[3]), must64(number), device, must64(extra["ino"]), extra["sk"])
}

// The sockets that the two look through come and go.
func netlinkRow(s Socket) string {
	if s.Number == unix.NETLINK_SOCK_DIAG {
		return ""
	}
	_, port, _ := strings.Cut(s.Name, ":")
	if port == "kernel" {
		port = "0"
	}
	return fmt.Sprintf("%d:%s %d %d", s.Number, port, s.RecvQueue, s.SendQueue)
}

func ssNetlinkRow(line string) string {
	f := strings.Fields(line)
	if strings.HasPrefix(f[3], "4:") {
		return ""
	}
	family, port, _ := strings.Cut(f[3], ":")
	return fmt.Sprintf("%s:%d %s %s", family, uint32(must64(port)), f[1], f[2])
}

func unixRow(s Socket) string {
	kind := map[fivetuple.Network]string{fivetuple.Unix: "u_str", fivetuple.Unixgram: "u_dgr", fivetuple.Seqpacket: "u_seq"}[s.Protocol]
	name := s.Name
	if name == "" {
		name = "*"
	}
	return fmt.Sprintln(kind, s.State, s.RecvQueue, s.SendQueue, name, s.Inode, s.PeerInode)
}

func ssUnixRow(line string) string {
	f := strings.Fields(line)
	return fmt.Sprintln(f[0], must(fivetuple.ParseState(f[1])), must64(f[2]), must64(f[3]), f[4], must64(f[5]), must64(f[7]))
}

func must64(text string) int64 { return must(strconv.ParseInt(text, 10, 64)) }
